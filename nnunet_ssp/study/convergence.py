"""Speed at which a fine-tuning reaches a Dice, and whether it had ended, from its learning curve.

The curve is of the fold's validation subjects.

The curve has a point for each epoch, so all runs of one study have one grid of steps. Its points are means over random
patches and noisy; what is compared is the mean of the last three up to each point.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

SMOOTHED = 3  # points of the curve
LATE = 0.8  # of the steps
STILL = 0.005  # a training whose Dice rises by less after `LATE` no longer improves; chosen here, for all arms


def smoothed(curve: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the mean pseudo Dice of each point and the two before it; NaN for the first two."""
    points = curve["pseudo_dice"].astype(float)
    return points.rolling(SMOOTHED).mean().to_numpy()


def final_dice(curve: pd.DataFrame) -> float:
    """Return the pseudo Dice at the end of a training; NaN for a curve of fewer than three points."""
    return float(smoothed(curve)[-1])


def late_rise(curve: pd.DataFrame) -> float:
    """Return how far the smoothed pseudo Dice rises in the last fifth of a training.

    A training no longer improves when this is less than `STILL`. What counts as four fifths is the last point up to
    there.

    Args:
        curve: Columns `step` and `pseudo_dice`, one row per epoch.

    Returns:
        The rise; negative where the Dice falls, NaN for a curve too short for a smoothed point at four fifths.
    """
    before = curve["step"].to_numpy() <= LATE * curve["step"].iloc[-1]
    known = smoothed(curve)
    return float(known[-1] - known[before][-1]) if before.any() else math.nan


def steps_to_dice(curve: pd.DataFrame, wanted: float) -> float:
    """Return the steps after which a training reaches a pseudo Dice; NaN if it never does.

    Args:
        curve: Columns `step` and `pseudo_dice`, one row per epoch.
        wanted: The pseudo Dice to reach.
    """
    reached = np.flatnonzero(smoothed(curve) >= wanted)
    return float(curve["step"].iloc[reached[0]]) if len(reached) else math.nan
