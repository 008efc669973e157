from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.cohort.removal import without
from nnunet_ssp.cohort.splits import FOLD_SOURCE

FOLDS = [Fold(f"f{n}", (), (), FOLD_SOURCE if n < 2 else "a subset") for n in range(5)]


def test_the_last_folds_are_removed(tmp_path: Path):
    assert without(FOLDS, [4, 3], tmp_path) == FOLDS[:3]
    assert without(FOLDS, [], tmp_path) == FOLDS


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([3], r"\(=3\) must be the last of the folds, up to 4: .* as 4 would"),
        ([9], r"\(=9\) must be the last of the folds, up to 4: there is no 9\."),
        ([2, 4, -1], r"\(=2, 4, -1\) .* there is no -1\."),
        ([1, 2, 3, 4], r"\(=1, 2, 3, 4\) must leave .* cross-validation, which 1 belong"),
    ],
)
def test_every_refusal_names_the_numbers(tmp_path: Path, numbers: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        without(FOLDS, numbers, tmp_path)


def test_a_trained_fold_stays(tmp_path: Path):
    (tmp_path / "nnUNetTrainer__nnUNetPlans__2d" / "fold_3").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"`--remove` \(=3, 4\): .* on fold 3, which"):
        without(FOLDS, [3, 4], tmp_path)
