"""Several visits of one patient on one side of a fold, as docs/data.md tells it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.membership import subjects_of
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.files.nifti import write_nifti
from nnunet_ssp.nnunet import dataset_folder
from tests.printed import ROOT

AFFINE = np.diag([1.5, 1.25, 8, 1])


def cine(file: Path, n_frames: int = 3, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(1, 900, (6, 5, 4, n_frames)).astype(np.int16)
    write_nifti(file, voxels, AFFINE)


def test_visits_stay_together_in_a_fold_from_a_file(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    visits = ("PAT1_2019", "PAT1_2021", "PAT2", "PAT3")
    for seed, visit in enumerate(visits):
        cine(tmp_path / "own" / visit / "sa.nii.gz", seed=seed)
        mask = np.zeros((6, 5, 4), np.uint8)
        mask[:4, :4], mask[1:3, 1:3] = 2, 1
        write_nifti(tmp_path / "own" / visit / f"{visit}_frame00_gt.nii.gz", mask, AFFINE)
    assert main(["convert", "cine", "-i", str(tmp_path / "own"), "-d", "170", "--keep-ids"]) == 0
    assert "visits of one patient: PAT1_2019, PAT1_2021. " in capsys.readouterr().out
    page = (ROOT / "docs" / "data.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "visits.yaml").write_text(text)
    assert main(["folds", "170", "--from", str(tmp_path / "visits.yaml")]) == 0
    target = dataset_folder(raw, 170)
    cases = read_cases(target / "cases.csv")
    fold = read_splits(target / "splits_final.json")[-1]
    assert subjects_of(fold["val"], cases) == {"cine-PAT1_2019", "cine-PAT1_2021"}
    assert subjects_of(fold["train"], cases) == {"cine-PAT2", "cine-PAT3"}


@pytest.mark.parametrize("frames", [(3, 3), (3, 4)])
@pytest.mark.parametrize("names", [("2019_sa", "2021_sa"), ("before", "after"), ("v1/sa", "v2/sa")])
def test_visits_in_one_folder_are_named_as_two_cines(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], frames, names
):
    for name, n_frames in zip(names, frames, strict=True):
        cine(tmp_path / "own" / "PAT1" / f"{name}.nii.gz", n_frames)
    cine(tmp_path / "own" / "PAT2.nii.gz")
    for more in (["--dry-run"], []):
        line = ["convert", "cine", "-i", str(tmp_path / "own"), "-d", "170", *more]
        assert main(line) == 1
        said = capsys.readouterr().out
        assert "a folder for each, and folds that keep" in said, said
