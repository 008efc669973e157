"""The exact Wilcoxon signed-rank test, also with ties, which are common among Dice scores.

From 14 pairs on, SciPy uses the normal approximation as soon as there is a tie. If all of 14 subjects gain, its p
value is five times the exact one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

EXACT = 500  # subjects; beyond it the approximation agrees and the exact distribution takes seconds
METHOD = (
    f"exact whatever the ties (equal differences share their mean rank, differences of 0 are dropped) up to {EXACT} "
    "subjects"
)


def signed_rank_p(gains: npt.NDArray[np.float64]) -> float:
    """Return the one-sided p value of the hypothesis that gains are above 0.

    Under the null hypothesis each sign is a fair coin, given the absolute gains. The distribution of the sum of the
    positive ranks follows by adding one rank after the other. Gains of 0 are dropped (Wilcoxon 1945); equal absolute
    gains share the mean of their ranks.

    Args:
        gains: One finite value per subject, of shape (n,).

    Returns:
        The p value: exact for up to `EXACT` gains other than 0, else by the normal approximation with the variance of
        the tied ranks; 1 if all gains are 0.
    """
    from scipy.stats import rankdata

    gains = gains[gains != 0]
    # Twice the rank is a whole number, also for the mean of two ranks.
    ranks = np.rint(2 * rankdata(np.abs(gains))).astype(np.int64)
    observed = int(ranks[gains > 0].sum())
    if len(ranks) > EXACT:
        deviation = math.sqrt(float((ranks.astype(float) ** 2).sum())) / 2
        return 0.5 * math.erfc((observed - ranks.sum() / 2) / deviation / math.sqrt(2))
    probabilities = np.zeros(int(ranks.sum()) + 1)  # of each sum of positive ranks
    probabilities[0] = 1
    largest = 0
    for rank in np.sort(ranks):
        largest += int(rank)
        reached = probabilities[: largest + 1]
        reached[rank:] += reached[:-rank]
        reached /= 2
    return min(1.0, float(probabilities[observed:].sum()))
