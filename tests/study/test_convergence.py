from __future__ import annotations

import math

import pandas as pd
import pytest

from nnunet_ssp.study.convergence import final_dice, smoothed, steps_to_dice


def curve(*dice: float) -> pd.DataFrame:
    return pd.DataFrame({"step": [20 * (i + 1) for i in range(len(dice))], "pseudo_dice": dice})


def test_the_running_mean_is_of_three_points():
    found = smoothed(curve(0.0, 0.3, 0.6, 0.9))
    assert [math.isnan(value) for value in found] == [True, True, False, False]
    assert found[2:].tolist() == pytest.approx([0.3, 0.6])
    assert final_dice(curve(0.0, 0.3, 0.6, 0.9)) == pytest.approx(0.6)
    assert math.isnan(final_dice(curve(0.5, 0.5)))


def test_steps_to_a_dice():
    slow, fast = curve(0.0, 0.1, 0.2, 0.3, 0.4, 0.5), curve(0.4, 0.4, 0.4, 0.6, 0.6, 0.6)
    wanted = final_dice(slow)
    assert wanted == pytest.approx(0.4)
    assert steps_to_dice(slow, wanted) == 120
    assert steps_to_dice(fast, 0.4) == 60
    # One high point does not count.
    assert math.isnan(steps_to_dice(curve(0.0, 0.0, 0.9, 0.0, 0.0), 0.4))
    assert math.isnan(steps_to_dice(slow, math.nan))
