from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nnunet_ssp.cohort.membership import subjects_of
from nnunet_ssp.cohort.published import (
    paper_folds,
)
from nnunet_ssp.cohort.split_files import fold_from_file, read_split_file
from tests.cohort.test_folds import make_cases, numbered


def write_split(file: Path, **sides: dict[str, list[str]]) -> Path:
    file.write_text(yaml.safe_dump(sides, default_style='"'))
    return file


def test_a_split_file_becomes_a_fold(tmp_path: Path):
    cases = make_cases(numbered(6)) | make_cases({"T": "GE"}, split="test")
    cases |= make_cases({"U": "GE"}, phases=("",))
    file = write_split(
        tmp_path / "mine.yaml",
        test={"mm1": ["T", "gone"], "mm2": ["281"]},
        train={"mm1": ["S000", "S001", "U"], "mm2": ["101", "102"]},
        valid={"mm1": ["S002"]},
    )
    fold, notes = fold_from_file(file, cases)
    assert (fold.name, fold.source) == ("mine", "file mine.yaml")
    assert subjects_of(fold.train, cases) == {"mm1-S000", "mm1-S001"}
    assert subjects_of(fold.val, cases) == {"mm1-S002"}
    assert "2 subjects of mm2 left out" in notes[0]
    assert notes[1].endswith("without labelled frames, so in no fold: mm1-U")


def test_a_file_with_the_test_alone_stands_for_the_procedure(tmp_path: Path):
    cases = make_cases(numbered(60)) | make_cases({"T": "GE"}, split="test")
    fold, notes = fold_from_file(write_split(tmp_path / "t.yaml", test={"mm1": ["T"]}), cases)
    assert notes == []
    assert fold.same_cases(paper_folds(cases)[0][0])


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"test": {"mm1": ["S000"]}}, "test subject mm1-S000 must be a test subject of the data"),
        ({"train": {"mm1": ["T"]}}, "mm1-T must not be a test subject of the dataset"),
        ({"valid": {"mm1": ["T"]}}, "mm1-T must not be a test subject of the dataset"),
        ({"train": {"mm1": ["X"]}}, r"mm1-X must be in cases\.csv"),
        ({"valid": {"mm1": ["S001"]}}, "mm1-S001 must not be in both `train` and `valid`"),
        ({"test": {"mm1": ["S001"]}}, "mm1-S001 must not be in both `test` and `train`"),
        ({"valid": {"mm1": ["U"]}}, "no labelled frame of its training or validation subjects"),
        ({"train": {"mm9": ["1"]}}, "no labelled frame of its training or validation subjects"),
    ],
)
def test_split_files_that_would_leak_are_refused(
    tmp_path: Path, sides: dict[str, dict[str, list[str]]], message: str
):
    cases = make_cases(numbered(6)) | make_cases({"T": "GE"}, split="test")
    cases |= make_cases({"U": "GE"}, phases=("",))
    good = {"test": {"mm1": []}, "train": {"mm1": ["S001"]}, "valid": {"mm1": ["S002"]}}
    file = write_split(tmp_path / "mine.yaml", **(good | sides))
    with pytest.raises(ValueError, match=rf"mine\.yaml: .*{message}"):
        fold_from_file(file, cases)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not a YAML file"),
        ("- a", "must have the keys test, train, valid, or test alone"),
        ('{"train": {}, "test": {}}', "must have the keys test, train, valid, or test alone"),
        ('{"test": ["A"]}', r"`test` must map each source \(mm1, ...\) to a list of subjects"),
        ('{"test": {"mm2": [001]}}', r"`test`, mm2: must be a list of ids in quotes"),
        ('{"test": {"mm2": "001"}}', r"`test`, mm2: must be a list of ids in quotes"),
    ],
)
def test_what_is_no_split_file_is_named(tmp_path: Path, text: str, message: str):
    file = tmp_path / "split.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"split\.yaml: {message}"):
        read_split_file(file)
