from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nnunet_ssp.evaluation.dice import dice_of_counts
from nnunet_ssp.study.slice_scores import slice_ious


def test_the_iou_of_slices_is_that_of_their_pixels():
    rng = np.random.default_rng(0)
    truth, found = rng.random((2, 2, 3, 40)) < [[[[0.4]]], [[[0.5]]]]  # classes, slices, pixels
    rows, expected = [], {}
    for name, one, other in zip(("LV", "RV"), truth, found, strict=True):
        both, either = (one & other).sum(1), (one | other).sum(1)
        expected[name] = float(np.mean(both / either))
        for number in range(3):
            n_sum = one[number].sum() + other[number].sum()
            dice = float(dice_of_counts(both[number], n_sum, "one"))
            about = {"seed": 0, "subject": "A", "case": "A_0", "vendor": "", "phase": "ED"}
            rows.append(about | {"class": name, "slice": number, "dice": dice})
    found = slice_ious(pd.DataFrame(rows)).set_index("class")["iou"]
    assert found["LV"] == pytest.approx(expected["LV"])
    assert found["RV"] == pytest.approx(expected["RV"])
    assert found["mean"] == pytest.approx(np.mean([*expected.values()]))


def test_frames_count_alike_and_nothing_gives_nothing():
    frames = [("A_0", 1.0), ("A_0", 0.5), ("A_1", 0.0)]
    table = pd.DataFrame(
        [{"seed": 0, "subject": "A", "case": c, "class": "LV", "dice": d} for c, d in frames]
    )
    found = slice_ious(table)
    own = found[found["class"] == "LV"].set_index("case")["iou"]
    assert own.to_dict() == pytest.approx({"A_0": (1 + 1 / 3) / 2, "A_1": 0.0})
    empty = slice_ious(pd.DataFrame(columns=["seed", "subject", "class", "dice"]))
    assert (len(empty), "iou" in empty) == (0, True)
