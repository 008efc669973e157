from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.cohort.recommending import pretraining_line
from nnunet_ssp.conversion.subjects import Task, make_cases


def dataset(n_subjects: int, n_frames: int = 4) -> SimpleNamespace:
    """Subjects with a labelled frame each, of which a fold validates on the last."""
    cases = {
        case.case: case
        for number in range(n_subjects)
        for case in make_cases(
            Task(f"S{number:02}", "train", ()),
            {0: "ED"},
            n_frames,
            source="toy",
            base="first",
            vendor="GE",
        )
    }
    train = [name for name, case in cases.items() if case.labelled]
    fold = Fold("f", tuple(train[:-1]), tuple(train[-1:]), "")
    return SimpleNamespace(prepared=Path("Dataset007_Heart"), cases=cases, folds=[fold])


@pytest.mark.parametrize(
    ("data", "options", "trainer"),
    [
        (dataset(11), {}, "-tr nnUNetTrainerDensePretrain"),
        (dataset(12), {}, "-tr nnUNetTrainerMIMPretrain"),
        (dataset(12), {"at_most": 10}, "-tr nnUNetTrainerDensePretrain"),
        (dataset(3), {"paper": True}, "-tr nnUNetTrainerMIMPretrain"),
        (dataset(3, n_frames=1), {}, "-tr nnUNetTrainerMIMPretrain"),
    ],
)
def test_the_trainer_follows_the_labels_of_the_fold(data, options, trainer: str):
    line = pretraining_line(data, 0, **options)
    assert trainer in line and " 7 2d 0 " in line
    assert ("nnUNet_ssp_settings='contrast=0 " in line) == ("DensePretrain" in trainer)
