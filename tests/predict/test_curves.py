from __future__ import annotations

import numpy as np
import pytest

from nnunet_ssp.predict.curves import find_phases, minima, smooth

BEAT = np.array([100.0, 95, 80, 60, 48, 45, 55, 70, 82, 88, 92, 97])


@pytest.mark.parametrize("start", range(12))
def test_phases_are_found_wherever_the_cycle_starts(start: int) -> None:
    assert find_phases(np.roll(BEAT, start)) == (start, (5 + start) % 12)


@pytest.mark.parametrize(("bad", "ml"), [(9, 130.0), (8, 30.0), (2, 20.0)])
def test_one_bad_frame_is_not_chosen(bad: int, ml: float) -> None:
    curve = BEAT.copy()
    curve[bad] = ml
    assert find_phases(curve) == (0, 5)


def test_equal_volumes_are_told_apart_by_their_neighbours() -> None:
    assert find_phases(np.array([9.0, 9, 5, 2, 2, 3, 6, 8])) == (0, 4)


def test_a_constant_curve_has_its_phases_somewhere() -> None:
    ed, es = find_phases(np.zeros(5))
    assert {ed, es} <= set(range(5))


def test_smoothing_goes_around_the_cycle() -> None:
    np.testing.assert_array_equal(smooth(np.roll(BEAT, 3)), np.roll(smooth(BEAT), 3))
    assert smooth(BEAT).max() < BEAT.max()


def test_minima_need_depth_on_both_sides() -> None:
    assert minima(BEAT, 10) == [5]
    twice = np.array([100.0, 60, 90, 50, 80])
    assert minima(twice, 10) == [1, 3]
    assert minima(twice, 35) == [3]
    assert minima(np.zeros(6), 1) == []
