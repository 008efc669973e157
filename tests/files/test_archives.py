"""Files that travel together: whole, unaltered, within bounds and without code."""

from __future__ import annotations

import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from nnunet_ssp.files import archives
from nnunet_ssp.files.archives import SUMS, open_archive, write_folder, write_zip

PARTS = {"a.json": lambda sink: sink.write(b'{"a": 1}'), "b": lambda sink: sink.write(b"b" * 99)}


def read_all(path: Path) -> dict[str, bytes]:
    with open_archive(path) as archive:
        content = {name: archive.text(name) for name in archive.sizes if name != SUMS}
        archive.check_sums(archive.listed_sums())
    return content


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_round_trip(tmp_path: Path, write) -> None:
    write(tmp_path / "x", PARTS)
    assert read_all(tmp_path / "x") == {"a.json": b'{"a": 1}', "b": b"b" * 99}


def test_equal_contents_make_equal_files(tmp_path: Path) -> None:
    for name in "xy":
        write_zip(tmp_path / name, PARTS)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_the_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", PARTS)
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=tmp_path / "x", check=True)


def zipped(file: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../x", "leads out of the folder"),
        ("a/../../x", "leads out"),
        ("/etc/x", "leads out"),
        ("C:\\x", "leads out"),
        ("data.pkl", "may run code"),
        ("archive/W.PTH", "may run code"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, name: str, words: str) -> None:
    file = zipped(tmp_path / "x.zip", {name: b""})
    with pytest.raises(ValueError, match=words), open_archive(file):
        pass


def test_a_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    file = zipped(tmp_path / "x.zip", {"a": bytes(2**25)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="would unpack to 33554432 bytes"), open_archive(file):
        pass


@pytest.mark.parametrize("size", [60, 10])
def test_a_stored_file_is_as_long_as_it_says(tmp_path: Path, size: int) -> None:
    """Another length would be read from, or into, the next file."""
    file = zipped(tmp_path / "x.zip", {"a": bytes(50), "b": b"next"})
    content = file.read_bytes()
    at = content.index(b"PK\x01\x02") + 24  # the directory's size of the first file, unpacked
    file.write_bytes(content[:at] + size.to_bytes(4, "little") + content[at + 4 :])
    with (
        pytest.raises(ValueError, match="altered: a is not where it says"),
        open_archive(file),
    ):
        pass


@pytest.mark.parametrize("offset", [5, 10**6])
def test_a_file_lies_within_the_zip(tmp_path: Path, offset: int) -> None:
    file = zipped(tmp_path / "x.zip", {"a": bytes(50)})
    content = file.read_bytes()
    at = content.index(b"PK\x05\x06") + 16  # where the directory begins
    moved = int.from_bytes(content[at : at + 4], "little") + offset
    file.write_bytes(content[:at] + moved.to_bytes(4, "little") + content[at + 4 :])
    with (
        pytest.raises(ValueError, match="not whole, or altered"),
        open_archive(file) as archive,
    ):
        archive.text("a")


def test_no_more_is_read_than_is_declared(tmp_path: Path) -> None:
    """A directory that lies about a size does not make us read on."""
    file = zipped(tmp_path / "x.zip", {"a": bytes(2**20)}, zipfile.ZIP_DEFLATED)
    content = file.read_bytes()
    declared = (2**20).to_bytes(4, "little")
    assert content.count(declared) == 2  # of the file, and in the directory
    file.write_bytes(content.replace(declared, (99).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="not whole, or altered"), open_archive(file) as archive:
        archive.text("a")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    with pytest.raises(ValueError, match="a occurs twice"), open_archive(tmp_path / "x.zip"):
        pass


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    file = zipped(tmp_path / "x.zip", {"a": b"1"}, zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="must be stored or deflated"), open_archive(file):
        pass


def test_a_deflated_zip_is_read(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.zip", PARTS)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert read_all(zipped(tmp_path / "y.zip", members, zipfile.ZIP_DEFLATED))["b"] == b"b" * 99


def test_altered_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    write_folder(folder, PARTS)
    (folder / "b").write_bytes(b"c")
    with pytest.raises(ValueError, match="b was altered"):
        read_all(folder)
    with open_archive(folder) as archive:
        for name in PARTS:
            archive.text(name)
        archive.check_sums(archive.listed_sums(), but=("b",))
    (folder / "b").unlink()
    with pytest.raises(ValueError, match="b is missing"):
        read_all(folder)
    (folder / "b").write_bytes(b"b" * 99)
    (folder / "c").write_bytes(b"")
    with pytest.raises(ValueError, match="c was altered"):
        read_all(folder)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_byte_is_seen(tmp_path: Path, compression: int) -> None:
    """Wherever it lies: in a file, in its checksum, in a name, or in the directory."""
    write_zip(tmp_path / "x.zip", PARTS)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    file = zipped(tmp_path / "y.zip", members, compression)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        heads = [member.header_offset for member in archive.infolist()]
    directory = whole.index(b"PK\x01\x02")
    content = [at for at in range(directory) if all(not 0 <= at - head < 30 for head in heads)]
    refused = 0
    for at in content:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            assert read_all(file) == {
                "a.json": b'{"a": 1}',
                "b": b"b" * 99,
            }  # bits that say nothing
        except ValueError as error:
            assert "altered" in str(error) or "not whole" in str(error)
            refused += 1
    assert refused > 100
    assert refused == len(content) or compression == zipfile.ZIP_DEFLATED


def test_large_files_are_summed_in_order(tmp_path: Path, monkeypatch) -> None:
    """More pieces than may wait, in a zip and in a folder."""
    monkeypatch.setattr(archives, "PIECE", 1000)
    content = bytes(range(256)) * 100
    for write in (write_zip, write_folder):
        target = tmp_path / write.__name__
        write(target, {"a": lambda sink: sink.write(memoryview(content))})
        assert read_all(target) == {"a": content}
        with open_archive(target) as archive:
            with archive.stream("a") as stream:
                begin = bytearray(10)
                assert stream.readinto(memoryview(begin)) == 10
            archive.check_sums(archive.listed_sums())
        assert begin == content[:10]


def test_what_ends_a_reading_ends_its_thread(tmp_path: Path) -> None:
    write_zip(tmp_path / "x", PARTS)
    before = threading.active_count()
    with (
        pytest.raises(KeyError),
        open_archive(tmp_path / "x") as archive,
        archive.stream("b") as stream,
    ):
        stream.read()
        raise KeyError
    assert threading.active_count() == before


@pytest.mark.parametrize("part", [0.1, 0.5, 0.98])
def test_a_truncated_zip(tmp_path: Path, part: float) -> None:
    write_zip(tmp_path / "x.zip", PARTS)
    content = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="not whole, or altered"):
        read_all(tmp_path / "x.zip")


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git lfs pull"), open_archive(tmp_path):
        pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not a JSON file"),
        (b"\xff", "not a JSON file"),
        (b"[]", "names with values"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "levels deep"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=words), open_archive(tmp_path) as archive:
        archive.names_and_values("a.json")


def test_a_text_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LONGEST_TEXT", 3)
    (tmp_path / "a").write_bytes(b"1234")
    with pytest.raises(ValueError, match="at most 3 bytes"), open_archive(tmp_path) as archive:
        archive.text("a")
