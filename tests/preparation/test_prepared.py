from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.preparation.prepared import RECORD, record, recorded, remove_others


def test_what_is_recorded_is_read_again(tmp_path: Path):
    assert recorded(tmp_path) == set()
    record(tmp_path, ["b", "a", "b"])
    assert recorded(tmp_path) == {"a", "b"}
    record(tmp_path, ["c"])
    assert recorded(tmp_path) == {"c"}


def test_the_same_cases_are_not_written_again(tmp_path: Path):
    record(tmp_path, ["a", "b"])
    before = (tmp_path / RECORD).stat().st_mtime_ns
    (tmp_path / RECORD).chmod(0o444)
    record(tmp_path, ("b", "a"))
    assert (tmp_path / RECORD).stat().st_mtime_ns == before


@pytest.mark.parametrize("content", ["", "[", "{}", "3", '"ab"'])
def test_a_damaged_record_names_no_case(tmp_path: Path, content: str):
    (tmp_path / RECORD).write_text(content)
    assert recorded(tmp_path) == set()


def test_names_that_lead_elsewhere_are_not_taken_from_a_record(tmp_path: Path):
    (tmp_path / RECORD).write_text('["a", "../b", "c/d", "", "..", 3, null]')
    assert recorded(tmp_path) == {"a"}


def test_only_files_of_recorded_cases_are_removed(tmp_path: Path):
    folder = tmp_path / "data"
    remove_others(folder, {"a"}, (".npy",), set())  # there is no such folder
    folder.mkdir()
    for name in ("a.npy", "a.pkl", "a_seg.npy", "b.npy", "foreign.npy", "a.npy.txt"):
        (folder / name).touch()
    (folder / "sub.npy").mkdir()
    remove_others(folder, {"a", "b", "sub"}, (".npy", ".pkl"), {"b.npy"})
    left = {path.name for path in folder.iterdir()}
    assert left == {"a_seg.npy", "b.npy", "foreign.npy", "a.npy.txt", "sub.npy"}


def test_a_link_is_removed_and_its_target_stays(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.npy").symlink_to(precious)
    remove_others(tmp_path / "data", {"a"}, (".npy",), set())
    assert precious.is_dir() and not list((tmp_path / "data").iterdir())
