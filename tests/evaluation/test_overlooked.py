from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.evaluation.overlooked import joint, overlooked
from nnunet_ssp.evaluation.scoring import score_pair
from tests.evaluation.conftest import heart, write_pair

SEVERAL = "WARNING: structures that were not found.\n* "
LABELS = Labels({"LVBP": (1,), "LVM": (2,), "RV": (3,)}, structures={"LV": "LVBP", "MYO": "LVM"})


def said(folder, *predictions: np.ndarray) -> list[str]:
    pairs, rows = [], []
    for number, prediction in enumerate(predictions):
        pair = write_pair(folder / str(number), prediction, heart())
        pairs.append(pair)
        rows += score_pair(pair, LABELS)[0]
    frames = pd.DataFrame(rows)
    warnings = overlooked(frames, pairs, LABELS)
    assert len(warnings) < 2  # one box for all
    return [item for text in warnings for item in text.removeprefix(SEVERAL).split("\n* ")]


def swapped() -> np.ndarray:
    return np.array([0, 3, 2, 1], np.uint8)[heart()]


def without(value: int) -> np.ndarray:
    stack = heart()
    stack[stack == value] = 0
    return stack


def test_swapped_labels_are_named_by_what_lies_there(tmp_path):
    lv, rv = said(tmp_path, swapped())
    assert (
        "LV has a Dice of 0 in 1 of 1 frame whose reference has it. 100% of its voxels are " in lv
    )
    assert (
        "predicted as label 3 (RV), which fits it with a Dice of 1.00: most likely the labels" in lv
    )
    assert "(here it is label 1). Else the model did not learn it." in lv
    assert "RV has a Dice of 0" in rv and "label 1 (LV)" in rv


def test_a_structure_that_was_not_learned(tmp_path):
    (lv,) = said(tmp_path, without(1))
    assert "Most likely the model did not learn it; 100% of its voxels are predicted as back" in lv


@pytest.mark.parametrize(("n_missed", "n_warnings"), [(9, 1), (8, 0)])
def test_nearly_all_frames_are_as_good_as_all(tmp_path, n_missed: int, n_warnings: int):
    stacks = [without(1)] * n_missed + [heart()] * (10 - n_missed)
    assert len(said(tmp_path, *stacks)) == n_warnings


def test_what_no_reference_has_is_not_missed(tmp_path):
    pair = write_pair(tmp_path, heart(), without(3))
    frames = pd.DataFrame(score_pair(pair, LABELS)[0])
    assert overlooked(frames, [pair], LABELS) == []


def blob() -> np.ndarray:
    """All that the reference has, and as much again, is LV."""
    stack = np.zeros_like(heart())
    rows, columns = np.nonzero(heart().any(0))
    stack[1:5, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
    return stack


def test_a_blob_is_not_taken_for_swapped_labels(tmp_path):
    _, rv = said(tmp_path, blob())
    times = (blob() == 1).sum() / (heart() == 3).sum()
    assert "swapped" not in rv and "RV has a Dice of 0 in 1 of 1" in rv
    assert "did not learn it: 100% of its voxels lie in label 1 (LV), which is predicted" in rv
    assert f"{times:.1f} times as large as the structure." in rv


def test_a_blob_over_two_structures_is_none_either(tmp_path):
    stack = np.where(heart() == 2, 0, heart())
    stack[stack == 3] = 1
    (myo, rv) = said(tmp_path, stack)
    assert "background" in myo and "swapped" not in rv


def test_almost_none_is_not_called_none(tmp_path):
    stack = swapped()
    stack[2, 20, 24] = 1  # one voxel in the middle of the LV
    lv, _ = said(tmp_path, stack)
    assert "LV has a Dice of almost 0 in 1 of 1 frame" in lv


def test_counts_add_up_over_frames(tmp_path):
    pairs = [write_pair(tmp_path / "a", without(1), heart())]
    pairs.append(write_pair(tmp_path / "b", swapped(), heart()))
    lv = (heart() == 1).sum()
    assert joint(pairs, LABELS)[:, 1].tolist() == [lv, 0, 0, lv]
