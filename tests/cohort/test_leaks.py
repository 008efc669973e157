from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.cohort.cases import Case, case_files
from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.cohort.leaks import leaks_in_folds, leaks_in_store, report
from nnunet_ssp.cohort.lookalikes import UNSEEN
from nnunet_ssp.cohort.splits import write_splits
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.nifti import write_nifti
from tests.cohort.test_folds import make_cases
from tests.cohort.test_lookalikes import picture

AFFINE = np.diag([6.0, 6.0, 8.0, 1.0])
CASES = make_cases(dict.fromkeys("ABC", "GE")) | make_cases({"T": "GE"}, split="test")
CASES |= make_cases({"U": "GE"}, phases=("",))


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_def_n_proc", "1")


def fold(train: str, val: str) -> Fold:
    """A fold of the subjects' end-diastolic frames."""
    sides = (tuple(f"mm1-{subject}_frame00" for subject in side) for side in (train, val))
    return Fold("f", *sides, "x")


@pytest.mark.parametrize(
    ("train", "val", "leaks"),
    [
        ("AB", "C", []),
        ("AT", "C", ["fold 0: mm1-T_frame00 belongs to a test subject"]),
        ("A", "CT", ["fold 0: mm1-T_frame00 belongs to a test subject"]),
        ("AU", "C", ["fold 0: mm1-U_frame00 is unlabelled"]),
        ("AX", "C", ["fold 0: mm1-X_frame00 is not in cases.csv"]),
        ("AC", "C", ["fold 0: C is in both train and val"]),
    ],
)
def test_leaks_in_folds(train: str, val: str, leaks: list[str]):
    assert list(leaks_in_folds([fold(train, val)], CASES)) == leaks


def test_two_frames_of_a_subject_on_two_sides():
    """The most frequent leak: nnU-Net's own folds are by case."""
    split = Fold("f", ("mm1-A_frame00",), ("mm1-A_frame02",), "x")
    assert list(leaks_in_folds([fold("A", "B"), split], CASES)) == [
        "fold 1: A is in both train and val"
    ]


def test_a_store_must_not_hold_test_subjects(tmp_path: Path):
    index = tmp_path / "index.json"
    write_json(index, {"cases": {"mm1-A_frame00": {}, "mm1-T_frame01": {}, "old": {}}})
    assert list(leaks_in_store(index, CASES)) == [
        f"{index}: mm1-T_frame01 belongs to a test subject",
        f"{index}: old is not in cases.csv",
    ]


def write_images(raw: Path, cases: dict[str, Case], images: dict[str, int]) -> None:
    """The picture of a number for all frames of a subject; every second one flipped, padded and rescaled."""
    for case in cases.values():
        number = images[case.subject_key]
        voxels = picture(number, (40, 48, 8)).astype(np.float32)
        if case.source == "mm2":
            voxels = np.pad(3 * voxels.swapaxes(0, 1)[::-1], 3)
        file = case_files(raw, case)[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(file, voxels, AFFINE)


def dataset(tmp_path: Path, images: dict[str, int], test: str = "") -> tuple[Path, dict[str, Case]]:
    cases = make_cases(dict.fromkeys("AB", "GE")) | make_cases({"9": "GE"}, "mm2")
    cases = {
        name: replace(case, split="test" if case.subject_key == test else "train")
        for name, case in cases.items()
    }
    write_images(tmp_path, cases, images)
    return tmp_path, cases


DIFFERENT = {"mm1-A": 0, "mm1-B": 1, "mm2-9": 2}
TWICE = {"mm1-A": 0, "mm1-B": 1, "mm2-9": 0}


@pytest.mark.parametrize(
    ("images", "test", "sides", "line"),
    [
        (DIFFERENT, "", ("A", "B"), "ok      3 subjects: none looks like one on another side"),
        (
            TWICE,
            "mm2-9",
            ("B", ""),
            "LEAK    mm1-A and mm2-9 look like one heart (similarity 1.00): mm2-9 is a test subject",
        ),
        (TWICE, "", ("B", "A"), "(similarity 1.00): on two sides of fold 0"),
        (
            TWICE,
            "",
            ("A", "B"),
            "note    mm1-A and mm2-9 look like one heart (similarity 1.00): on the"
            " same side everywhere",
        ),
    ],
    ids=["different", "in the test", "in the validation", "both trained on"],
)
def test_the_same_heart_under_two_names(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    images: dict[str, int],
    test: str,
    sides: tuple[str, str],
    line: str,
):
    """Pretraining trains on the subject that is in no fold."""
    raw, cases = dataset(tmp_path, images, test)
    leak = report(raw, tmp_path / "none", cases, [fold(*sides)])
    output = capsys.readouterr().out
    assert output.count(UNSEEN) == 1
    assert line in output
    assert leak == ("LEAK" in output) == ("LEAK" in line or "two sides" in line)


def test_the_same_heart_before_there_are_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw, cases = dataset(tmp_path, TWICE, "")
    assert not report(raw, tmp_path / "none", cases, [])
    assert (
        "(similarity 1.00): there are no folds yet, and nnU-Net's own may"
        in capsys.readouterr().out
    )


def test_two_test_subjects_are_on_one_side_whatever_the_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, cases = dataset(tmp_path, TWICE)
    same = ("mm1-A", "mm2-9")
    cases = {
        n: replace(c, split="test" if c.subject_key in same else "train") for n, c in cases.items()
    }
    write_images(tmp_path, cases, TWICE)
    assert not report(tmp_path, tmp_path / "none", cases, [])
    assert "(similarity 1.00): on the same side everywhere" in capsys.readouterr().out


def test_everything_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    split = [{"train": ["mm1-A_frame00"], "val": ["mm1-B_frame00"]}]
    for folder, splits in ((raw, split), (prepared, [])):
        write_splits(folder, splits, CASES, ["f"] * len(splits), "x")
    write_json(prepared / "plans_2d_slices" / "index.json", {"cases": {"mm1-T_frame00": {}}})
    assert report(raw, prepared, CASES, [fold("AC", "C")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "LEAK    fold 0: C is in both train and val",
        f"LEAK    {prepared}/plans_2d_slices/index.json: mm1-T_frame00 belongs to a test subject",
        f"DIFFER  {prepared}/splits_final.json differs from {raw}/splits_final.json: run nnunet-ssp prepare",
        f"--      5 subjects without an image in {raw} to compare",
    ]
