from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import case_files, read_cases
from nnunet_ssp.cohort.dataset import open_dataset, read_folds
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.files.nifti import write_nifti
from nnunet_ssp.slices.store import StoredCase, write_index


def test_slices_are_counted_from_images_or_from_the_store(raw: Path, prepared: Path):
    cases = read_cases(raw / "cases.csv")
    name = read_splits(raw / "splits_final.json")[0]["val"][0]
    assert open_dataset(114).n_slices == {}
    write_index(prepared / "p_2d_slices", {}, {name: StoredCase((7, 1, 4, 4), 1, 9)})
    assert open_dataset(114).n_slices == {name: 9}
    image = case_files(raw, cases[name])[0]
    image.parent.mkdir()
    write_nifti(image, np.ones((4, 5, 11), np.uint8), np.eye(4))
    assert open_dataset(114).n_slices == {name: 11}


def test_folds_without_a_description_have_a_name(raw: Path):
    (raw / "folds.csv").write_text("fold,name,source\n1,mine,me\n")
    found = read_folds(raw)
    assert [fold.name for fold in found] == ["fold-0", "mine", "fold-2", "fold-3", "fold-4"]
    assert [fold.source for fold in found[:2]] == ["unknown", "me"]
    (raw / "splits_final.json").unlink()
    assert read_folds(raw) == []


def test_a_dataset_is_read_from_raw_or_from_its_copy(raw: Path, prepared: Path):
    found = open_dataset(114)
    assert (found.raw, found.prepared, found.home) == (raw, prepared, raw)
    assert len(found.folds) == 5
    shutil.copy(raw / "dataset.json", prepared)
    shutil.rmtree(raw)
    copy = open_dataset("Dataset114_Toy")
    assert copy.home == prepared
    assert (copy.cases, copy.folds) == (found.cases, found.folds)


def test_a_dataset_that_is_nowhere_is_an_error(raw: Path):
    with pytest.raises(FileNotFoundError, match="no dataset 115 here"):
        open_dataset(115)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("dataset.json", "the conversion is unfinished, run nnunet-ssp convert again"),
        ("cases.csv", "without it subjects are unknown"),
    ],
)
def test_a_missing_table_is_named(raw: Path, missing: str, message: str):
    (raw / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{missing} is missing: .*{message}"):
        open_dataset(114)


@pytest.mark.parametrize("rows", ["x,mine\n", "0,mine\n0,other\n"])
def test_numbers_of_folds_are_unique(raw: Path, rows: str):
    (raw / "folds.csv").write_text(f"fold,name\n{rows}")
    with pytest.raises(ValueError, match=r"folds\.csv: `fold` must be a number from 0, each once"):
        read_folds(raw)


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"no NIfTI", gzip.compress(b"abcd", mtime=0), "cut", "flat"]
)
def test_an_image_that_cannot_be_read_is_no_traceback(raw: Path, capsys, content):
    case = read_cases(raw / "cases.csv")[read_splits(raw / "splits_final.json")[0]["val"][0]]
    image = case_files(raw, case)[0]
    image.parent.mkdir()
    if content == "flat":
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 5), np.uint8), np.eye(4)), image)
    else:
        write_nifti(image, np.ones((4, 5, 11), np.uint8), np.eye(4))
        image.write_bytes(image.read_bytes()[:60] if content == "cut" else content)
    assert main(["folds", "114"]) == 0
    line = capsys.readouterr().out.splitlines()[4]
    assert line.split()[:8] == ["0", "5-fold-0", "12", "24", "-", "4", "8", "-"]
