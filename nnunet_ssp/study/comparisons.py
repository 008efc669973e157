"""Comparisons of a study's models with their baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_ssp.evaluation.statistics import (
    DIFFERENCE_DIGITS,
    MEAN,
    compare_models,
    holm,
    two_level_interval,
)
from nnunet_ssp.study.results import Results
from nnunet_ssp.study.spec import DICE


def comparisons(results: Results) -> pd.DataFrame:
    """Compare the mean Dice of every model with that of its baseline, on the seeds that both have.

    Subjects are compared by their mean over frames and seeds. p values are corrected for the number of comparisons of
    the study's family or, if it names none, of the models on one fold with the same baseline.

    Returns:
        One row per fold and model: `fold`, the columns of `evaluation.statistics.compare_models`, `n_seeds`,
        `n_seeds_better`, the number of seeds whose mean difference is above 0, and `low_seeds, high_seeds`, from
        `two_level_interval`. `dice` and `dice_baseline` are means over seeds and subjects. `p_holm` is NaN outside of
        the family. No row if no baseline is done.
    """
    study = results.study
    tables = []
    for fold in dict.fromkeys(fold for _, fold in results.done):
        for (model, label), runs in results.done.items():
            baseline = study.baseline_of(model)
            if label != fold or baseline is None:
                continue
            own = study.family.seeds if study.family and study.in_family(model, fold) else None
            seeds = [
                seed
                for seed in runs
                if seed in results.done.get((baseline, fold), {}) and seed in (own or runs)
            ]
            if seeds:
                tables.append(_compared(results, model, baseline, fold, seeds))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    if study.family is None:
        groups = table.groupby(["fold", "baseline"], sort=False)["p"]
        return table.assign(p_holm=groups.transform(lambda p: holm(p.to_numpy())))
    inside = np.array([study.in_family(*row) for row in table[["model", "fold"]].to_numpy()])
    return table.assign(p_holm=holm(np.where(inside, table["p"], np.nan)))


def _compared(
    results: Results, model: str, baseline: str, fold: str, seeds: Sequence[int]
) -> pd.DataFrame:
    both = pd.concat([results.frames[baseline, fold], results.frames[model, fold]])
    both = both[both["seed"].isin(seeds) & (both["class"] == MEAN)]
    own, theirs = scores_by_seed(both, model, baseline)
    differences = differences_by_seed(own, theirs)
    low, high = two_level_interval(differences)
    better = int((differences.mean(axis=1) > 0).sum()) if differences.size else 0
    return compare_models(both, DICE, baseline).assign(
        fold=fold,
        n_seeds=len(seeds),
        n_seeds_better=better,
        low_seeds=low,
        high_seeds=high,
        dice=own.mean() if own.size else np.nan,
        dice_baseline=theirs.mean() if theirs.size else np.nan,
    )


def scores_by_seed(
    frames: pd.DataFrame, model: str, baseline: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the Dice of every seed and subject of both, each of shape (seeds, subjects).

    Args:
        frames: Columns `model, seed, subject, dice`, one row per frame.
        model: The model.
        baseline: What it is compared with; subjects without a score in any seed of either are left out.
    """
    means = frames.groupby(["model", "seed", "subject"])[DICE].mean().unstack("subject")
    own, theirs = (means.xs(name).to_numpy(float) for name in (model, baseline))
    known = np.isfinite(own).all(axis=0) & np.isfinite(theirs).all(axis=0)
    return own[:, known], theirs[:, known]


def differences_by_seed(
    own: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the differences of what `scores_by_seed` returns: (seeds, subjects)."""
    # Rounding removes the noise of floating point, which has a sign.
    return (own - theirs).round(DIFFERENCE_DIGITS)
