from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.conversion.dicom.named_series import choose_series, series_of
from tests.dicom_files import series

Subjects = dict[tuple[Path, str], list[Path]]


@pytest.fixture
def subjects(tmp_path: Path) -> Subjects:
    """Two subjects: one with the series 4 and 14 in folders of their own, one with 4 alone."""
    series(tmp_path / "A" / "sa_4", [0], uid="1.4", number=4)
    series(tmp_path / "A" / "14", [0], uid="1.14", number=14)
    series(tmp_path / "B", [0], uid="2.4", number=4)
    (tmp_path / "A" / "notes.txt").write_text("no DICOM")
    return {
        (tmp_path / name, name): sorted(f for f in (tmp_path / name).rglob("*") if f.is_file())
        for name in "AB"
    }


def uids(chosen: Subjects) -> dict[str, set[str]]:
    found = {}
    for (_, name), files in chosen.items():
        found[name] = {series_of(file)[0] for file in files}
    return found


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["4"], {"A": {"1.4"}, "B": {"2.4"}}),
        (["14"], {"A": {"1.14"}}),
        (["2.4"], {"B": {"2.4"}}),
        (["SA"], {"A": {"1.4"}}),
        (["4", "14"], {"A": {"1.4", "1.14"}, "B": {"2.4"}}),
    ],
)
def test_a_series_is_named_by_number_uid_or_folder(
    subjects: Subjects, wanted: list[str], expected: dict[str, set[str]]
):
    assert uids(choose_series(subjects, wanted, 1)) == expected


def test_each_file_is_chosen_once(subjects: Subjects):
    chosen = choose_series(subjects, ["4", "1.4"], 1)
    files = next(iter(chosen.values()))
    assert len(files) == len(set(files)) == 10


def test_a_number_is_no_part_of_a_folders_name(subjects: Subjects):
    with pytest.raises(ValueError, match=r"`series` \(=1\) is no DICOM series .*numbers are 4, 14"):
        choose_series(subjects, ["4", "1"], 1)


def test_the_series_of_a_file(subjects: Subjects, tmp_path: Path):
    assert series_of(subjects[tmp_path / "B", "B"][0]) == ("2.4", "4")
    assert series_of(tmp_path / "A" / "notes.txt") is None
