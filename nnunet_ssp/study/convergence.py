"""Speed at which a fine-tuning reaches a Dice, from its learning curve on the fold's validation subjects.

The curve has a point for each epoch, so all runs of one study have one grid of steps. Its points are means over random
patches and noisy; what is compared is the mean of the last three up to each point.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

SMOOTHED = 3  # points of the curve


def smoothed(curve: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the mean pseudo Dice of each point and the two before it; NaN for the first two."""
    points = curve["pseudo_dice"].astype(float)
    return points.rolling(SMOOTHED).mean().to_numpy()


def final_dice(curve: pd.DataFrame) -> float:
    """Return the pseudo Dice at the end of a training; NaN for a curve of fewer than three points."""
    return float(smoothed(curve)[-1])


def steps_to_dice(curve: pd.DataFrame, wanted: float) -> float:
    """Return the steps after which a training reaches a pseudo Dice; NaN if it never does.

    Args:
        curve: Columns `step` and `pseudo_dice`, one row per epoch.
        wanted: The pseudo Dice to reach.
    """
    reached = np.flatnonzero(smoothed(curve) >= wanted)
    return float(curve["step"].iloc[reached[0]]) if len(reached) else math.nan
