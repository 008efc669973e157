from __future__ import annotations

import math

import pandas as pd
import pytest

from nnunet_ssp.study.convergence import STILL, final_dice, late_rise, smoothed, steps_to_dice


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


def test_the_rise_in_the_last_fifth_of_a_training():
    # A straight line of 10 points rises by its slope times the two points after four fifths.
    assert late_rise(curve(*(0.01 * n for n in range(10)))) == pytest.approx(0.02)
    assert late_rise(curve(*[0.7] * 10)) == 0 < STILL
    # 0.5 (1 - e^(-n / 3)): its running mean is a = (1 + e^(1/3) + e^(2/3)) / 3 times as far from 0.5.
    dice = [0.5 * (1 - math.exp(-n / 3)) for n in range(25)]
    a = (1 + math.exp(1 / 3) + math.exp(2 / 3)) / 3
    wanted = 0.5 * a * (math.exp(-19 / 3) - math.exp(-24 / 3))
    assert late_rise(curve(*dice)) == pytest.approx(wanted)
    assert 0 < wanted < STILL < late_rise(curve(*dice[:12]))
    # A last high point counts a third; of 11 points the eighth, not the ninth, is within four fifths.
    assert late_rise(curve(*[0.0] * 8, 0.3, 0.3, 0.9)) == pytest.approx(0.5)
    assert late_rise(curve(0.9, 0.9, 0.9, 0.9, 0.3)) == pytest.approx(-0.2)


def test_a_curve_that_is_too_short_has_no_rise():
    assert math.isnan(late_rise(curve(0.5)))
    assert math.isnan(late_rise(curve(0.1, 0.2, 0.3)))
