"""CRC-32 of zips: the bytes are those that the standard library writes."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import pytest

from nnunet_ssp.files import crc
from nnunet_ssp.files.crc import DESCRIBED, StoredMember, crc32, write_sums

CONTENTS = {"empty": b"", "short": b"abc", "pieces": bytes(range(256)) * 30}


def test_it_is_zlibs() -> None:
    content = CONTENTS["pieces"]
    assert crc32(content) == zlib.crc32(content)
    assert crc32(content[7:], crc32(content[:7])) == zlib.crc32(content)


def test_a_member_is_as_the_standard_library_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crc, "PIECE", 1000)
    ours, theirs = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(ours, "w") as archive:
        for name, content in CONTENTS.items():
            with StoredMember(archive, zipfile.ZipInfo(name)) as member:
                for part in (content[:5], content[5:]):
                    assert member.write(memoryview(part)) == len(part)
        archive.writestr(zipfile.ZipInfo("last"), b"x")
    with zipfile.ZipFile(theirs, "w") as archive:
        for name, content in CONTENTS.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(content)
        archive.writestr(zipfile.ZipInfo("last"), b"x")
    assert ours.getvalue() == theirs.getvalue()


class _Onwards(io.FileIO):
    """A file that cannot go back, so that sums stand behind what they are of, as PyTorch writes them."""

    def seekable(self) -> bool:
        return False

    def seek(self, *where: int) -> int:
        raise OSError

    tell = seek


@pytest.mark.parametrize("kind", [io.FileIO, _Onwards])
@pytest.mark.parametrize("known", [True, False])
def test_sums_are_put_in(tmp_path: Path, kind, known: bool, monkeypatch) -> None:
    """Before a file or behind it, and in the directory; those that nobody has taken are read."""
    monkeypatch.setattr(crc, "PIECE", 1000)
    file = tmp_path / "x.zip"
    with kind(file, "w") as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, content in CONTENTS.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    whole, sums = file.read_bytes(), {}
    blank = whole
    with zipfile.ZipFile(file) as archive:
        for name, content in CONTENTS.items():
            described = bool(archive.getinfo(name).flag_bits & DESCRIBED)
            assert described == (kind is _Onwards)
            if known and content:
                sums[whole.index(content), len(content)] = zlib.crc32(content)
            if content:
                blank = blank.replace(zlib.crc32(content).to_bytes(4, "little"), bytes(4))
    assert blank != whole
    file.write_bytes(blank)
    write_sums(file, sums)
    assert file.read_bytes() == whole


def test_a_zip_without_descriptors_where_it_says_so(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    with _Onwards(file, "w") as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a"), b"abc")
    file.write_bytes(file.read_bytes().replace(b"PK\x07\x08", b"PK\x07\x09"))
    with pytest.raises(ValueError, match="a: no data descriptor"):
        write_sums(file, {})
