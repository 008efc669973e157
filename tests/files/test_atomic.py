from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ssp.console import in_words
from nnunet_ssp.files.atomic import (
    atomic_write,
    remove_half_written,
    require_place,
    write_together,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    file, temporary = tmp_path / "images" / "a.nii.gz", tmp_path / ".ssp-tmp"
    with atomic_write(file, temporary) as path:
        assert path.parent == temporary
        assert path.name.endswith("a.nii.gz")
        path.write_text("old")
    with pytest.raises(OSError, match="disk"), atomic_write(file, temporary) as path:
        path.write_text("ne")
        raise OSError("disk")
    assert file.read_text() == "old"
    assert list(temporary.iterdir()) == []
    assert list(file.parent.iterdir()) == [file]


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which path is flushed, and when a file gets its name."""
    done: list[str] = []
    flush, replace_file = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replaced"), replace_file(a, b)))
    return done


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, order: list[str]):
    """After a power cut there is the old file or the new one, and the name, too."""
    with atomic_write(tmp_path / "a.json") as path:
        path.write_text("new")
    assert order == [str(path), "replaced", str(tmp_path)]


def test_files_written_together_are_on_the_disk_before_the_first_has_its_name(
    tmp_path: Path, order: list[str]
):
    with write_together(tmp_path / "out") as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text("new")
    files = [str(temporary / name) for name in ("a", "b")]
    assert order == [*files, "replaced", "replaced", str(tmp_path / "out")]


def test_an_error_of_the_disk_names_the_file(tmp_path: Path):
    file = tmp_path / "a.json"
    with pytest.raises(OSError, match="No space") as full, atomic_write(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert in_words(full.value) == f"{file}: no space left."
    with pytest.raises(FileNotFoundError) as other, atomic_write(file):
        (tmp_path / "nowhere").read_text()
    assert other.value.filename == str(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path: Path):
    code = "import os, sys; from nnunet_ssp.files.atomic import atomic_write\n"
    code += "with atomic_write(sys.argv[1]) as path: path.touch(); os._exit(9)"
    file = tmp_path / "checkpoint_latest.pth"
    subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".ssp-tmp-")
    file.touch()
    remove_half_written(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_files_written_together_are_all_old_or_all_new(tmp_path: Path):
    folder = tmp_path / "made" / "out"
    with write_together(folder) as temporary:
        assert not folder.exists()
        (temporary / "a").write_text("1")
        (temporary / "b").write_text("1")
    assert [f.name for f in sorted(tmp_path.rglob("*"))] == ["made", "out", "a", "b"]

    with pytest.raises(OSError, match="disk"), write_together(folder) as temporary:
        (temporary / "a").write_text("2")
        raise OSError("the disk is full")
    assert {f.name: f.read_text() for f in folder.iterdir()} == {"a": "1", "b": "1"}

    (folder / "kept").touch()
    with write_together(folder) as temporary:
        (temporary / "a").write_text("2")
    assert {f.name: f.read_text() for f in folder.iterdir()} == {"a": "2", "b": "1", "kept": ""}


def test_writers_of_equal_numbers_do_not_share_a_file(tmp_path: Path, monkeypatch):
    """As in two containers."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    file = tmp_path / "a.json"
    with atomic_write(file) as one:
        one.write_text("one")
        with atomic_write(file) as other:
            other.write_text("other")
        assert file.read_text() == "other"
    assert file.read_text() == "one"
    with write_together(tmp_path) as one, write_together(tmp_path) as other:
        (one / "x").touch()
        (other / "y").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "x", "y"]


def test_a_folder_that_a_killed_writer_left_is_removed(tmp_path: Path):
    """As `evaluate` leaves it; what a link leads to stays."""
    code = "import os, sys; from nnunet_ssp.files.atomic import write_together\n"
    code += "with write_together(sys.argv[1]) as folder: (folder / 'a').touch(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "fold_0")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.is_dir() and left.name.startswith(".ssp-tmp-")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    (tmp_path / ".ssp-tmp-link").symlink_to(tmp_path / "else")
    remove_half_written(tmp_path)
    assert [file.name for file in tmp_path.rglob("*")] == ["else", "file"]


@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_place_of_a_folder_is_told_at_once(tmp_path: Path, link: bool):
    wrong = tmp_path / "wrong"
    if link:
        wrong.symlink_to(tmp_path / "gone")
    else:
        wrong.write_text("file")
    for folder in (wrong, wrong / "a" / "b"):
        with pytest.raises(NotADirectoryError) as refused:
            require_place(folder)
        assert refused.value.filename == str(wrong)
    with pytest.raises(NotADirectoryError), write_together(wrong):
        raise AssertionError("nothing may be computed")


def test_a_place_behind_a_link_is_one(tmp_path: Path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert require_place("link/new") == tmp_path / "link"
    assert require_place("new/folder") == tmp_path


def test_a_place_that_one_may_not_write_to_is_told_at_once(tmp_path: Path, monkeypatch):
    assert require_place(tmp_path / "a" / "b") == tmp_path
    monkeypatch.setattr("os.access", lambda path, how: Path(path) != tmp_path)
    with pytest.raises(PermissionError) as refused:
        require_place(tmp_path / "a" / "b")
    assert refused.value.filename == str(tmp_path / "a" / "b")
    with pytest.raises(PermissionError), write_together(tmp_path):
        raise AssertionError("nothing may be computed")
