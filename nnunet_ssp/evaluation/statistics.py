"""Summaries over subjects and seeds, and the comparison of models.

The unit is the subject. Its ED and ES frames are not independent, nor are the seeds of a model on the same subject, so
a subject's score is first averaged over both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from nnunet_ssp.evaluation.signed_rank import signed_rank_p

if TYPE_CHECKING:
    import pandas as pd

Better = Literal["higher", "lower"]

SCORES: dict[str, Better] = {
    "dice": "higher",
    "dice_nan": "higher",
    "hd95_mm": "lower",
    "assd_mm": "lower",
}
MEAN = "mean"  # the class that stands for the mean of all classes
DIFFERENCE_DIGITS = 9
# For p values, intervals, limits of agreement and correlations. With fewer no two-sided p can be below 0.05, a
# percentile interval spans little more than the values themselves, and the correlation of two is always 1 or -1.
SUBJECTS_TO_INFER = 6


def with_mean(frames: pd.DataFrame) -> pd.DataFrame:
    """Add the class `mean` to each frame: the mean of its classes, without those that are NaN.

    Args:
        frames: Scores of frames: `model, seed, case, class`, `SCORES`, `missed`, and any columns that are the same for
            all classes of a case.
    """
    import pandas as pd

    keys = ["model", "seed", "case"]
    own = frames.groupby(keys, sort=False)
    means = own[list(SCORES)].mean().join(own["missed"].sum()).reset_index()
    shared = frames.drop(columns=[*SCORES, "missed", "class", "reference_ml", "predicted_ml"])
    means = means.merge(shared.drop_duplicates(keys), on=keys).assign(**{"class": MEAN})
    # The mean comes last in each model.
    order = {model: place for place, model in enumerate(frames["model"].unique())}
    both = pd.concat([frames, means], ignore_index=True)
    return both.sort_values(
        "model", key=lambda own: own.map(order), kind="stable", ignore_index=True
    )


def subject_means(table: pd.DataFrame, score: str) -> pd.DataFrame:
    """Average a score by subject, over seeds and frames, each the mean of its classes.

    Args:
        table: Columns `model, seed, subject, case` and the score, one row per class.
        score: Name of the column.

    Returns:
        One row per subject, one column per model.
    """
    frames = table.groupby(["subject", "model", "seed", "case"], sort=False)[score].mean()
    means = frames.groupby(["subject", "model"], sort=False).mean()
    return means.unstack("model")[table["model"].unique()]


def summarise(frames: pd.DataFrame, by: Sequence[str] = (), seed: int = 0) -> pd.DataFrame:
    """Compute mean and spread of all scores by model and class.

    Args:
        frames: Table from `with_mean`.
        by: More columns to group by: `phase`, `vendor`, ...
        seed: Seed of the bootstrap.

    Returns:
        One row per `model, *by, class`. `n_subjects` and `missed` count subjects, and frames whose class is empty in
        only one label map, summed over seeds. Each score has, with names joined as in `dice_mean`: `mean`, over
        subjects and seeds; `sd_subjects`, the sample standard deviation over subjects, averaged over seeds (de Mooij et
        al., Appendix B); `sd_seeds`, that of the seeds' means (their Tables 1 to 4), NaN for one seed; and `low, high`,
        the 95 % confidence interval of the mean over subjects, NaN for fewer than 6 with the score.
    """
    import pandas as pd

    rows = []
    keys = ["model", *by, "class"]
    scores = list(SCORES)
    for key, own in frames.groupby(keys, sort=False):
        subjects = own.groupby("subject")[scores].mean()
        of_seed = own.groupby(["seed", "subject"])[scores].mean().groupby("seed")
        numbers = pd.DataFrame(
            {
                "mean": subjects.mean(),
                "sd_subjects": of_seed.std().mean(),
                "sd_seeds": of_seed.mean().std(),
            }
        )
        numbers[["low", "high"]] = bootstrap_interval(subjects.to_numpy(), seed).T
        row = dict(zip(keys, key, strict=True))
        row |= {"n_subjects": len(subjects), "missed": int(own["missed"].sum())}
        for score, own_numbers in numbers.to_dict("index").items():
            row |= {f"{score}_{name}": value for name, value in own_numbers.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def bootstrap_interval(
    values: npt.NDArray[np.float64], seed: int = 0, resamples: int = 10_000
) -> npt.NDArray[np.float64]:
    """Compute the 95 % percentile bootstrap interval of the mean, resampling rows (Efron 1979).

    Args:
        values: One row per subject, of shape (n, columns); NaN are left out.
        seed: The same seed gives the same interval; all columns see the same resamples.
        resamples: Number of resamples.

    Returns:
        Lower and upper limits, of shape (2, columns); NaN for a column with fewer than 6 values.
    """
    n = len(values)
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    draws += n * np.arange(resamples)[:, None]
    # Counts of each subject in each resample; the means of all columns are then one product.
    weights = (
        np.bincount(draws.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)
    )
    there = np.isfinite(values)
    counts = weights @ there  # (resamples, columns)
    sums = weights @ np.where(there, values, 0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    limits = np.full((2, values.shape[1]), np.nan)
    enough = there.sum(axis=0) >= SUBJECTS_TO_INFER
    limits[:, enough] = np.nanquantile(means[:, enough], (0.025, 0.975), axis=0)
    return limits


def two_level_interval(
    values: npt.NDArray[np.float64], seed: int = 0, resamples: int = 10_000
) -> tuple[float, float]:
    """Compute the 95 % percentile bootstrap interval of the mean over seeds and subjects, resampling both.

    Every seed scores the same subjects, so rows and columns are drawn independently: the pigeonhole bootstrap (Owen
    2007, 10.1214/07-AOAS122). The interval covers other seeds as well as other subjects.

    Args:
        values: One row per seed, one column per subject, all finite, of shape (seeds, subjects).
        seed: The same seed gives the same interval.
        resamples: Number of resamples.

    Returns:
        Lower and upper limit; NaN for fewer than 2 seeds or 6 subjects.
    """
    seeds, subjects = values.shape
    if seeds < 2 or subjects < SUBJECTS_TO_INFER:
        return np.nan, np.nan
    generator = np.random.default_rng(seed)
    rows, columns = (
        generator.multinomial(n, np.full(n, 1 / n), size=resamples) / n for n in values.shape
    )
    means = ((rows @ values) * columns).sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def compare_models(
    table: pd.DataFrame, score: str, baseline: str, better: Better = "higher", seed: int = 0
) -> pd.DataFrame:
    """Test for each model whether it is better than the baseline, where both have scores.

    A model that misses a class has no distance there, so its mean would cover easier classes and frames only. A class
    of a case without a score, in any seed of either model, is therefore left out for both before any mean is taken.

    The test is the paired one-sided Wilcoxon signed-rank test (Dominic et al.), exact also with ties, see
    `signed_rank`. Its p values are corrected for the number of models after Holm (1979).

    Args:
        table: One row per `model, seed, case, class`, with `subject`, `missed` and the score.
        score: Name of the column.
        baseline: Model that the others are compared with.
        better: Which scores are better.
        seed: Seed of the bootstrap.

    Returns:
        One row per other model: `model`, `baseline` and `n_subjects`; the mean `difference` to the baseline with its
        95 % bootstrap interval `low, high`; `n_better`, the number of subjects on which the model is better; `missed`
        and `missed_baseline`, summed over the table; `p` and `p_holm`. Interval and p values are NaN for fewer than 6
        subjects.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    missed = table.groupby("model", sort=False)["missed"].sum()
    for model in missed.index.drop(baseline):
        both = table[table["model"].isin((model, baseline))]
        known = both[score].notna().groupby([both["case"], both["class"]]).transform("all")
        scores = subject_means(both[known], score).reindex(columns=[model, baseline])
        differences = (scores[model] - scores[baseline]).to_numpy()
        # Rounding removes the noise of floating point; adding zero turns -0.0 into 0.0.
        differences = differences.round(DIFFERENCE_DIGITS) + 0.0
        gains = differences if better == "higher" else -differences
        p = np.nan
        if len(gains) >= SUBJECTS_TO_INFER:
            p = signed_rank_p(gains)
        low, high = bootstrap_interval(differences[:, None], seed)[:, 0]
        rows.append(
            {
                "model": model,
                "baseline": baseline,
                "n_subjects": len(gains),
                "difference": differences.mean() if len(gains) else np.nan,
                "low": low,
                "high": high,
                "n_better": int((gains > 0).sum()),
                "missed": int(missed[model]),
                "missed_baseline": int(missed[baseline]),
                "p": float(p),
            }
        )
    compared = pd.DataFrame(rows)
    return compared.assign(p_holm=holm(compared["p"].to_numpy()))


def holm(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Correct p values for their number after Holm (1979); NaN stay and do not count.

    Args:
        p: One value per test, of shape (n,).

    Returns:
        The corrected values, at most 1, of shape (n,).
    """
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sort last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return corrected
