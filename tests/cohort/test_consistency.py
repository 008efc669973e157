from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.cohort.consistency import (
    TABLES,
    differing_fold,
    differing_tables,
    require_known_names,
    unknown_names,
)
from nnunet_ssp.files.atomic import write_json

FOLDS = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, Path]:
    """The same tables in both folders of a dataset."""
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    for folder in (raw, prepared):
        folder.mkdir()
        for table in TABLES:
            (folder / table).write_text(table)
        write_json(folder / "splits_final.json", FOLDS)
    return raw, prepared


def test_known_names_are_no_fault():
    assert unknown_names(FOLDS[0], {"a", "b"}) == []
    require_known_names(Path("splits_final.json"), FOLDS, ["a", "b"])


def test_unknown_names_are_listed_in_order_by_side():
    rule = "which must be labelled training cases of this dataset"
    wrong = {"train": ["z", "a", "y"], "val": ["x"]}
    assert unknown_names(wrong, {"a"}) == [
        f"`train` names y, z, {rule}",
        f"`val` names x, {rule}",
    ]
    many = {"train": [f"s{n:02}" for n in range(12)], "val": []}
    (line,) = unknown_names(many, {})
    assert "s00, " in line and "s09, ... (12 in all), which" in line and "s10" not in line


def test_the_fold_of_an_unknown_name_is_named():
    folds = [*FOLDS, {"train": ["a"], "val": ["c"]}]
    with pytest.raises(ValueError, match=r"^here\.json: fold 2: `val` names c, which must be"):
        require_known_names(Path("here.json"), folds, {"a", "b"})


def test_equal_copies_do_not_differ(copies: tuple[Path, Path]):
    assert differing_tables(*copies) == []
    assert differing_fold(*copies, 0) == ""


def test_copies_differ_by_content_or_absence(copies: tuple[Path, Path]):
    raw, prepared = copies
    (prepared / "folds.csv").write_text("other")
    (prepared / "cases.csv").unlink()
    assert differing_tables(raw, prepared) == ["cases.csv", "folds.csv"]


def test_nothing_differs_from_a_folder_that_is_not_there(copies: tuple[Path, Path], tmp_path: Path):
    assert differing_tables(tmp_path / "none", copies[1]) == []


def test_another_fold_does_not_count(copies: tuple[Path, Path]):
    raw, prepared = copies
    write_json(prepared / "splits_final.json", [FOLDS[0], {"train": ["a"], "val": ["b"]}])
    assert differing_tables(raw, prepared) == ["splits_final.json"]
    assert differing_fold(raw, prepared, 0) == ""
    assert differing_fold(raw, prepared, 1) == f"splits_final.json in {prepared} and {raw} differ"


def test_descriptions_of_folds_may_differ(copies: tuple[Path, Path]):
    (copies[1] / "folds.csv").write_text("other")
    assert differing_fold(*copies, 0) == ""
