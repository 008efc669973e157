from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.cohort.cases import write_cases
from nnunet_ssp.cohort.splits import make_splits, write_splits
from nnunet_ssp.files.atomic import write_json
from tests.cohort.test_folds import make_cases, numbered

NAME = "Dataset114_Toy"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A converted dataset of 16 labelled, 2 unlabelled and 2 test subjects, without images."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    cases = make_cases(numbered(16)) | make_cases({"U1": "GE", "U2": "Canon"}, phases=("", ""))
    cases |= make_cases({"T1": "GE", "T2": "Canon"}, split="test")
    write_dataset(tmp_path / "raw" / NAME, cases)
    return tmp_path / "raw" / NAME


def write_dataset(folder: Path, cases: dict) -> None:
    folder.mkdir()
    write_cases(folder / "cases.csv", cases.values())
    splits = make_splits(cases)
    names = [f"{len(splits)}-fold-{number}" for number in range(len(splits))]
    write_splits(folder, splits, cases, names, "by subject, stratified by vendor, seed 12345")
    write_json(folder / "dataset.json", {})


@pytest.fixture
def prepared(raw: Path) -> Path:
    folder = raw.parents[1] / "preprocessed" / NAME
    folder.mkdir()
    for table in ("cases.csv", "splits_final.json", "folds.csv"):
        (folder / table).write_bytes((raw / table).read_bytes())
    return folder
