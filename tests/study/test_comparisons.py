from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_ssp.evaluation.statistics import holm
from nnunet_ssp.study.comparisons import comparisons, differences_by_seed, scores_by_seed
from nnunet_ssp.study.results import Results


def compared(results: Results) -> pd.DataFrame:
    """Return the comparisons on fold 10."""
    table = comparisons(results)
    return table[table["fold"] == "10"].reset_index(drop=True)


def test_models_are_compared_on_the_seeds_that_both_have(miniature):
    models = {"baseline": {"trainer": "Scratch"}}
    models |= {name: {"trainer": "Finetune", "pretraining": "MIM"} for name in ("MIM", "worse")}

    def dice(run, subject, phase, class_name):
        gain = {"baseline": 0.0, "MIM": 0.01 * (subject + 1), "worse": -0.1}[run.name]
        return 0.5 + 0.1 * run.seed + gain

    mini = miniature(models=models)
    wanted = [r for r in mini.runs[1] if (r.name, r.seed) not in (("MIM", 1), ("baseline", 2))]
    table = compared(mini.finish(wanted, dice).results).set_index("model")
    assert list(table.index) == ["MIM", "worse"]
    assert table["n_seeds"].tolist() == [1, 2]
    # Otherwise the seeds would make a difference of their own.
    assert table["difference"].tolist() == pytest.approx([0.045, -0.1])
    # All eight subjects are better: one of the 2^8 signs.
    assert table.loc["MIM", "p"] == pytest.approx(1 / 256)
    assert table.loc["MIM", "p_holm"] == pytest.approx(2 / 256)
    assert table.loc["worse", "p_holm"] == pytest.approx(1)


def test_nothing_is_compared_without_a_baseline(miniature):
    mini = miniature(baseline=None).finish()
    assert comparisons(mini.results).empty


def test_nothing_is_compared_with_a_baseline_that_is_missing(miniature):
    mini = miniature()
    mini.finish([r for r in mini.runs[1] if r.name != "baseline"])
    assert comparisons(mini.results).empty


def test_models_are_compared_with_their_own_baseline(miniature):
    """p values are corrected for the models with the same baseline."""
    models = {
        "baseline": {"trainer": "Scratch"},
        "plain": {"trainer": "Scratch", "baseline": "plain"},
    }
    own = {"MIM": "baseline", "PCL": "baseline", "plain MIM": "plain"}
    models |= {
        name: {"trainer": "Finetune", "pretraining": "MIM", "baseline": baseline}
        for name, baseline in own.items()
    }

    def dice(run, subject, phase, class_name):
        return 0.5 - 0.2 * run.name.startswith("plain") + 0.001 * subject * (run.name in own)

    table = compared(miniature(models=models).finish(dice=dice).results)
    assert dict(zip(table["model"], table["baseline"], strict=True)) == own
    assert table["difference"].tolist() == pytest.approx([0.0035] * 3)
    p = table["p"].iloc[0]
    assert table["p_holm"].tolist() == pytest.approx([2 * p, 2 * p, p])


def noisy(run, subject, phase, class_name):
    """Return a Dice whose gain differs with seed and subject, and has both signs."""
    drawn = np.random.default_rng([run.seed, subject]).normal(0.01, 0.02)
    return 0.5 + 0.01 * subject + drawn * (run.name == "MIM")


def test_the_sign_of_each_seed_and_the_test_agree_with_scipy(miniature):
    results = miniature().finish(dice=noisy).results
    table = compared(results)
    gains = np.array(
        [
            [np.random.default_rng([seed, subject]).normal(0.01, 0.02) for subject in range(8)]
            for seed in range(3)
        ]
    )
    (row,) = table.to_dict("records")
    assert row["n_seeds_better"] == (gains.mean(axis=1) > 0).sum()
    assert row["difference"] == pytest.approx(gains.mean())
    test = stats.wilcoxon(gains.mean(axis=0), alternative="greater", method="exact")
    assert row["p"] == pytest.approx(test.pvalue)
    assert row["low_seeds"] < gains.mean() < row["high_seeds"]
    # Other seeds are a second source of variation.
    assert row["high_seeds"] - row["low_seeds"] > row["high"] - row["low"]


def test_subjects_without_a_score_in_a_seed_are_left_out():
    rows = [
        {"model": model, "seed": seed, "subject": subject, "dice": value}
        for model, shift in (("a", 0.25), ("b", 0.0))
        for seed in (0, 1)
        for subject, value in (("s", 0.5 + seed / 8), ("t", np.nan if seed else 0.5))
    ]
    assert differences_by_seed(*scores_by_seed(pd.DataFrame(rows), "a", "b")).tolist() == [
        [0.0],
        [0.0],
    ]
    rows = [row | {"dice": row["dice"] + 0.25 * (row["model"] == "a")} for row in rows]
    assert differences_by_seed(*scores_by_seed(pd.DataFrame(rows), "a", "b")).tolist() == [
        [0.25],
        [0.25],
    ]


def test_the_p_values_of_a_family_are_corrected_together(miniature):
    models = {
        name: {"trainer": "Finetune", "pretraining": "MIM"} for name in ("MIM", "PCL", "other")
    }
    family = {"title": "two models", "models": ["MIM", "PCL"], "folds": ["all", "10"]}
    table = comparisons(
        miniature(models={"baseline": {"trainer": "Scratch"}} | models, family=family)
        .finish(dice=lambda run, *about: noisy(run, *about) + 0.001 * len(run.label) * about[0])
        .results
    )
    inside = table["model"] != "other"
    assert len(table) == 6
    assert table.loc[inside, "p_holm"].tolist() == pytest.approx(
        holm(table.loc[inside, "p"].to_numpy()).tolist()
    )
    assert table.loc[~inside, "p_holm"].isna().all()


def test_a_family_may_count_some_seeds_alone(miniature):
    family = {"title": "one seed", "models": "MIM", "folds": "10", "seeds": [1]}
    table = comparisons(miniature(family=family).finish().results).set_index("fold")
    assert table["n_seeds"].to_dict() == {"all": 3, "10": 1}
