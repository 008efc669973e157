from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.evaluation.overlooked import overlooked, shares
from nnunet_ssp.evaluation.scoring import score_pair
from tests.evaluation.conftest import heart, write_pair

LABELS = Labels({"LVBP": (1,), "LVM": (2,), "RV": (3,)}, structures={"LV": "LVBP", "MYO": "LVM"})


def said(folder, *predictions: np.ndarray) -> list[str]:
    pairs, rows = [], []
    for number, prediction in enumerate(predictions):
        pair = write_pair(folder / str(number), prediction, heart())
        pairs.append(pair)
        rows += score_pair(pair, LABELS)[0]
    frames = pd.DataFrame(rows)
    return overlooked(frames, pairs, LABELS)


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
        "predicted as label 3 (RV): most likely the labels of predictions and references are" in lv
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


def test_shares_add_up_over_frames(tmp_path):
    pairs = [write_pair(tmp_path / "a", without(1), heart())]
    pairs.append(write_pair(tmp_path / "b", swapped(), heart()))
    found = shares("LVBP", pairs, LABELS)
    assert found == {0: 0.5, 1: 0, 2: 0, 3: 0.5}
