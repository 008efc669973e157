"""The exit status of converters' commands, and what they print where subjects are refused."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.files.nifti import read_image, write_nifti
from tests.evaluation.conftest import heart

AFFINE = np.diag([1.5, 1.5, 8, 1])
FRAMES = 3


@pytest.fixture
def root(raw: Path) -> Path:
    return raw.parent / "own"


def subject(root: Path, name: str, values: tuple[int, ...] | None, labelled: int = 2) -> None:
    """Write a cine, and its mask with these values of LV, MYO and RV; labels in the first frames."""
    mask = np.moveaxis(heart(), 0, -1)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    image = random.integers(1, 900, (*mask.shape, FRAMES)).astype(np.int16)
    root.mkdir(exist_ok=True)
    write_nifti(root / f"{name}.nii.gz", image, AFFINE)
    if values is not None:
        cine = np.array([0, *values], np.uint8)[mask][..., None].repeat(FRAMES, -1)
        cine[..., labelled:] = 0
        write_nifti(root / f"{name}_gt.nii.gz", cine, AFFINE)


def run(root: Path, *more: str) -> int:
    return main(["convert", "cine", "-i", str(root), "-d", "120", "-np", "1", "--keep-ids", *more])


def five_of_six_scaled(root: Path) -> None:
    for n in range(5):
        subject(root, f"s{n}", (85, 170, 255))
    subject(root, "s5", None)


@pytest.mark.parametrize("dry_run", [False, True])
def test_refused_masks_are_the_reason_the_status_and_the_end(root: Path, capsys, dry_run: bool):
    five_of_six_scaled(root)
    assert run(root, *["--dry-run"] * dry_run) == 1
    said = capsys.readouterr().out
    line = (
        "  s0, s1, s2, s3, s4: mask values (=85, 170, 255) must be among [0, 1, 2, 3]. They are 1 = LV, 2 = MYO, "
        "3 = RV. If the masks have other values, --label-values V V V names those of LV, MYO, RV. The first: "
    )
    assert f"\n{line}{root / 's0_gt.nii.gz'}\n" in said
    assert "Nothing is labelled: 5 subjects with masks are refused, for the reasons above." in said
    assert "masks are empty" not in said and "Next:" not in said
    assert ("Would be REFUSED:" in said) is dry_run


def test_the_option_that_the_refusal_names_converts_them(root: Path, tmp_path: Path, capsys):
    five_of_six_scaled(root)
    assert run(root, "--label-values", "85", "170", "255", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "Labelled frames: 10, of 5 subjects." in said
    assert "\nValues of the masks: 85 = LV, 170 = MYO, 255 = RV. " in said
    assert run(root, "--label-values", "85", "170", "255") == 0
    said = capsys.readouterr().out
    assert "\nNext: nnunet-ssp prepare 120" in said and "WARNING" not in said
    cases = read_cases(tmp_path / "raw" / "Dataset120_Cine" / "cases.csv").values()
    assert sum(case.labelled for case in cases) == 10


@pytest.mark.parametrize("dry_run", [False, True])
def test_swapped_masks_are_warned_of_and_the_rule_is_said(root: Path, capsys, dry_run: bool):
    for n in range(3):
        subject(root, f"s{n}", (3, 2, 1))
    assert run(root, *["--dry-run"] * dry_run) == 0
    said = capsys.readouterr().out
    assert "\nValues of the masks: 1 = LV, 2 = MYO, 3 = RV. " in said
    assert (
        "\nWARNING:\n  s0, s1, s2: label 1 is taken for LV and label 2 for MYO, but MYO does "
        in said
    )
    assert "convert with --label-values 3 2 1, for 3 = LV, 2 = MYO, 1 = RV. Where other" in said


@pytest.mark.parametrize("dry_run", [False, True])
def test_one_subject_that_is_numbered_otherwise_is_named_and_mended(
    root: Path, raw: Path, capsys, dry_run: bool
):
    """Of those that are right nothing is said; the options of the warning convert all alike."""
    for n, values in enumerate([(1, 2, 3), (3, 2, 1), (1, 2, 3)]):
        subject(root, f"s{n}", values)
    dry = ["--dry-run"] * dry_run
    assert run(root, *dry) == 0
    said = capsys.readouterr().out
    assert "\nWARNING:\n  s1: label 1 is taken for LV" in said and "s0: label" not in said
    assert "--label-values 3 2 1, for" in said and "--label-values-for and the names" in said
    words = ["--label-values", "3", "2", "1", "--label-values-for", "s1", "--overwrite", *dry]
    assert run(root, *words) == 0
    said = capsys.readouterr().out
    assert "WARNING" not in said
    assert "3 = LV, 2 = MYO, 1 = RV in the 1 subject of --label-values-for." in said
    if not dry_run:
        folder = raw / "Dataset120_Cine" / "labelsTr"
        masks = [read_image(file).voxels for file in sorted(folder.iterdir())]
        assert len(masks) == 6 and all(np.array_equal(masks[0], mask) for mask in masks)


def test_names_of_subjects_are_checked_and_stay_out_of_the_dataset(root: Path, raw: Path, capsys):
    subject(root, "Smith", (3, 2, 1))
    subject(root, "Jones", (1, 2, 3))
    words = ["convert", "cine", "-i", str(root), "-d", "120", "-np", "1", "--label-values-for"]
    assert main([*words, "Smith"]) == 1
    assert "needs `--label-values`" in capsys.readouterr().err
    assert main([*words, "Smth", "--label-values", "3", "2", "1"]) == 1
    assert (
        "(=Smth) must name subjects, as --dry-run lists them. Perhaps Smith?"
        in capsys.readouterr().err
    )
    assert main([*words, "Smith", "--label-values", "3", "2", "1"]) == 0
    file = raw / "Dataset120_Cine" / "convert.json"
    record = file.read_text()
    assert "label_values_for" in record and "Smith" not in record
    assert main([*words, "Smith", "Smith", "--label-values", "3", "2", "1", "--overwrite"]) == 0
    assert file.read_text() == record  # a name given twice is no other setting


def test_without_masks_nothing_is_said_of_their_values(root: Path, capsys):
    subject(root, "s0", None)
    assert run(root) == 0
    said = capsys.readouterr().out
    assert "Values of the masks" not in said and "\nNext:" in said


@pytest.mark.parametrize("dry_run", [False, True])
def test_empty_masks_are_said_to_be_empty(root: Path, capsys, dry_run: bool):
    subject(root, "s0", (1, 2, 3), labelled=0)
    assert run(root, *["--dry-run"] * dry_run) == 0
    said = capsys.readouterr().out
    assert "Nothing is labelled: all masks are empty" in said
    assert "  s0: the masks are empty: converted as unlabelled" in said
    assert ("Labelled frames: 0, of 0 subjects." in said) is dry_run


def test_one_refused_of_many_is_an_error_at_the_end(root: Path, capsys):
    subject(root, "s0", (1, 2, 3))
    subject(root, "s1", (1, 2, 4))
    assert run(root) == 1
    said = capsys.readouterr().out
    assert "--overwrite converts all again: this deletes the converted dataset, never your" in said
    assert "\nNext: nnunet-ssp prepare 120" in said


@pytest.mark.parametrize("words", [["3", "2"], ["1", "2", "2"]])
def test_the_values_are_checked_before_anything_is_read(root: Path, capsys, words: list[str]):
    subject(root, "s0", (1, 2, 3))
    assert run(root, "--label-values", *words) == 1
    assert "must be 3 different whole numbers from 1" in capsys.readouterr().err
