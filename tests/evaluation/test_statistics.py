from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nnunet_ssp.evaluation.statistics import (
    MEAN,
    SCORES,
    bootstrap_interval,
    compare_models,
    holm,
    subject_means,
    summarise,
    two_level_interval,
    with_mean,
)


def frames_of(dice: np.ndarray, model: str = "m") -> pd.DataFrame:
    """Frames with the Dice of an array (seeds, subjects, 2 phases, classes)."""
    rows = []
    for (seed, subject, phase, number), value in np.ndenumerate(dice):
        rows.append(
            {
                "model": model,
                "seed": seed,
                "subject": f"s{subject}",
                "case": f"s{subject}_{phase}",
                "phase": ("ED", "ES")[phase],
                "class": f"c{number}",
                **dict.fromkeys(SCORES, value),
                "hd95_mm": 10 * value,
                "missed": int(value == 0),
                "reference_ml": 1.0,
                "predicted_ml": 1.0,
            }
        )
    return pd.DataFrame(rows)


DICE = np.random.default_rng(0).random((3, 6, 2, 2))


def test_the_mean_class_is_that_of_each_frame():
    frames = with_mean(frames_of(DICE))
    own = frames[frames["class"] == MEAN]
    assert list(frames["class"][-len(own) :].unique()) == [MEAN]
    np.testing.assert_allclose(own["dice"].to_numpy(), DICE.mean(axis=3).ravel())
    assert list(own["phase"][:4]) == ["ED", "ES", "ED", "ES"]
    holes = DICE.copy()
    holes[0, 0, 0, 0] = np.nan
    own = with_mean(frames_of(holes)).query("`class` == @MEAN")
    assert own["dice"].iloc[0] == DICE[0, 0, 0, 1]


def test_missed_frames_are_counted_for_each_class_and_for_all():
    dice = DICE.copy()
    dice[0, 0, :, 0] = 0
    dice[1, 2, 0, 1] = 0
    table = summarise(with_mean(frames_of(dice))).set_index("class")
    assert table["missed"].to_dict() == {"c0": 2, "c1": 1, MEAN: 3}


def test_the_unit_is_the_subject():
    table = summarise(with_mean(frames_of(DICE))).set_index("class")
    assert list(table.index) == ["c0", "c1", MEAN]
    for number, name in enumerate(("c0", "c1")):
        own = DICE[..., number]
        of_seed = own.mean(axis=2)  # (seeds, subjects)
        row = table.loc[name]
        assert row["n_subjects"] == 6
        assert row["dice_mean"] == pytest.approx(own.mean())
        assert row["dice_sd_subjects"] == pytest.approx(of_seed.std(axis=1, ddof=1).mean())
        assert row["dice_sd_seeds"] == pytest.approx(of_seed.mean(axis=1).std(ddof=1))
        limits = bootstrap_interval(of_seed.mean(axis=0)[:, None])[:, 0]
        assert (row["dice_low"], row["dice_high"]) == pytest.approx(tuple(limits))
        assert row["hd95_mm_mean"] == pytest.approx(10 * own.mean())


def test_subjects_with_more_frames_do_not_weigh_more():
    frames = frames_of(np.array([0.0, 0.0, 1.0, 1.0]).reshape(1, 2, 2, 1))
    row = summarise(frames.drop(index=3)).iloc[0]  # the second subject has one frame left
    assert row["dice_mean"] == 0.5


def test_one_seed_and_one_subject_have_no_spread():
    row = summarise(frames_of(DICE[:1, :1])).iloc[0]
    for name in ("sd_subjects", "sd_seeds", "low", "high"):
        assert np.isnan(row[f"dice_{name}"])


def test_intervals_take_six_subjects_with_the_score():
    dice = DICE.copy()
    dice[:, 5, :, 0] = np.nan  # the first class of one of the six
    row = summarise(frames_of(dice)).set_index("class")
    assert row.loc["c1", ["dice_low", "hd95_mm_low"]].notna().all()
    assert row.loc["c1", "dice_low"] < row.loc["c1", "dice_mean"] < row.loc["c1", "dice_high"]
    limits = [f"{score}_{end}" for score in SCORES for end in ("low", "high")]
    assert row.loc["c0", limits].isna().all()
    assert row.loc["c0", "dice_mean"] == pytest.approx(DICE[:, :5, :, 0].mean())
    assert summarise(frames_of(DICE[:, :5]))[limits].isna().all(axis=None)


def test_groups():
    table = summarise(frames_of(DICE), ["phase"]).set_index(["phase", "class"])
    assert table.loc[("ES", "c1"), "dice_mean"] == pytest.approx(DICE[:, :, 1, 1].mean())


# -- bootstrap -------------------------------------------------------------------------------------


def test_the_interval_agrees_with_scipy():
    values = np.random.default_rng(1).beta(8, 2, (40, 2))
    ours = bootstrap_interval(values, resamples=20_000)
    for column in range(2):
        theirs = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=20_000, method="percentile"
        ).confidence_interval
        np.testing.assert_allclose(ours[:, column], theirs, atol=0.002)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(2)
    values = generator.normal(0, 1, (60, 400))  # 400 studies of 60 subjects
    low, high = bootstrap_interval(values, resamples=1000)
    assert 0.91 < ((low < 0) & (high > 0)).mean() < 0.98


def test_the_interval_is_seeded_and_leaves_nan_out():
    values = np.random.default_rng(3).random((20, 1))
    np.testing.assert_array_equal(bootstrap_interval(values), bootstrap_interval(values))
    assert (bootstrap_interval(values) != bootstrap_interval(values, seed=1)).any()
    holes = np.full((20, 3), np.nan)
    holes[:10, 0] = values[:10, 0]
    holes[:5, 1] = 1
    low, high = bootstrap_interval(holes)
    alone = bootstrap_interval(values[:10])[:, 0]
    np.testing.assert_allclose([low[0], high[0]], alone, atol=0.04)
    assert np.isnan([low[1:], high[1:]]).all()


def test_the_interval_of_six_is_that_of_all_resamples_and_five_have_none():
    """Of six subjects there are 6^6 resamples, equally likely."""
    values = np.array([0.0, 1.0, 3.0, 4.0, 8.0, 9.0])
    means = values[np.indices((6,) * 6).reshape(6, -1)].mean(axis=0)
    ((low,), (high,)) = bootstrap_interval(values[:, None], resamples=100_000)
    expected = np.quantile(means, (0.025, 0.975))
    assert (low, high) == pytest.approx(tuple(expected), abs=0.1)
    assert np.isnan(bootstrap_interval(values[:5, None])).all()


def test_equal_values_have_an_interval_of_no_width():
    np.testing.assert_allclose(bootstrap_interval(np.full((9, 1), 0.7)), 0.7)


# -- comparison ------------------------------------------------------------------------------------


def table_of(**models: list[float]) -> pd.DataFrame:
    """Scores of one frame and class for each subject."""
    return pd.DataFrame(
        [
            {"model": model, "seed": 0, "subject": i, "case": i, "class": "c", "x": x, "missed": 0}
            for model, values in models.items()
            for i, x in enumerate(values)
        ]
    )


def test_subject_means_are_over_seeds_and_frames():
    frames = pd.concat([frames_of(DICE, "b"), frames_of(DICE[:1] / 2, "a")])
    table = subject_means(frames[frames["class"] == "c0"], "dice")
    assert list(table.columns) == ["b", "a"]
    np.testing.assert_allclose(table["b"], DICE[..., 0].mean(axis=(0, 2)))
    np.testing.assert_allclose(table["a"], DICE[0, ..., 0].mean(axis=1) / 2)


def test_the_test_is_the_one_sided_wilcoxon_of_scipy():
    generator = np.random.default_rng(4)
    base = generator.random(12)
    table = table_of(base=base, model=base + generator.normal(0.1, 0.1, 12))
    (row,) = compare_models(table, "x", "base").to_dict("records")
    scores = subject_means(table, "x")
    differences = (scores["model"] - scores["base"]).round(9)
    assert row["p"] == pytest.approx(stats.wilcoxon(differences, alternative="greater").pvalue)
    assert row["p_holm"] == row["p"]  # one model, nothing to correct
    assert row["difference"] == pytest.approx(differences.mean())
    assert row["low"] < row["difference"] < row["high"]
    assert (row["n_subjects"], row["n_better"]) == (12, (differences > 0).sum())
    (lower,) = compare_models(table, "x", "base", better="lower").to_dict("records")
    assert lower["p"] == pytest.approx(stats.wilcoxon(-differences, alternative="greater").pvalue)
    assert lower["n_better"] == 12 - row["n_better"]
    assert lower["difference"] == row["difference"]


def test_six_subjects_that_all_gain_have_the_smallest_p_there_is():
    table = table_of(base=[0.0] * 6, model=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    (row,) = compare_models(table, "x", "base").to_dict("records")
    assert row["p"] == 1 / 2**6
    assert 0.1 < row["low"] < row["difference"] < row["high"] < 0.6


def test_no_p_value_and_no_interval_under_six_subjects():
    table = table_of(base=[0.0] * 5, model=[0.1, 0.2, 0.3, 0.4, 0.5])
    (row,) = compare_models(table, "x", "base").to_dict("records")
    assert np.isnan([row[name] for name in ("p", "p_holm", "low", "high")]).all()
    assert row["n_better"] == 5 and row["difference"] == pytest.approx(0.3)


def test_subjects_without_a_score_are_left_out_of_their_comparison():
    values = list(np.linspace(0, 1, 7))
    table = table_of(base=values, a=[v + 0.1 for v in values], b=[np.nan, *values[1:]])
    compared = compare_models(table, "x", "base").set_index("model")
    assert compared["n_subjects"].to_dict() == {"a": 7, "b": 6}
    assert compared.loc["b", "p"] == 1  # no difference at all
    assert compared.loc["b", "difference"] == 0


def test_a_model_gains_nothing_by_missing_what_is_difficult():
    easy, difficult = DICE.copy(), 1 + DICE.copy()
    base = np.concatenate([easy, difficult], axis=3)
    frames = frames_of(base, "base")
    missing = base.copy()
    missing[:, :, 0, 2:] = np.nan  # both difficult classes at ED, in all seeds
    missing[1, 3, 1, 0] = np.nan  # and one frame in one seed
    table = pd.concat([frames, frames_of(missing, "model")])
    table["missed"] = table["hd95_mm"].isna().astype(int)
    means = subject_means(table, "hd95_mm").mean()
    assert means["model"] < means["base"] - 1  # what each has, without pairing
    (row,) = compare_models(table, "hd95_mm", "base", "lower").to_dict("records")
    assert (row["difference"], row["n_better"], row["n_subjects"]) == (0, 0, 6)
    assert (row["missed"], row["missed_baseline"]) == (3 * 6 * 2 + 1, 0)
    nothing = pd.concat([frames, frames_of(base * np.nan, "model")])
    (row,) = compare_models(nothing, "hd95_mm", "base", "lower").to_dict("records")
    assert row["n_subjects"] == 0 and np.isnan([row["difference"], row["low"], row["p"]]).all()


def test_the_mean_of_classes_is_that_of_each_frame():
    table = frames_of(DICE)
    table.loc[0, "dice"] = np.nan  # so two frames of the subject differ in their classes
    expected = [DICE[0, 0, 0, 1], *DICE[:, 0].mean(axis=2).ravel()[1:]]
    assert subject_means(table, "dice").loc["s0", "m"] == pytest.approx(np.mean(expected))


def test_the_noise_of_floating_point_is_no_gain():
    table = table_of(base=[0.3] * 8, model=[0.1 + 0.2] * 8)
    (row,) = compare_models(table, "x", "base").to_dict("records")
    assert (row["n_better"], row["p"], row["difference"]) == (0, 1, 0)


def test_holm_by_hand():
    p = np.array([0.04, 0.01, np.nan, 0.03, 0.5])
    # Sorted 0.01 x 4, 0.03 x 3, 0.04 x 2 (raised to the one before), 0.5 x 1.
    np.testing.assert_allclose(holm(p), [0.09, 0.04, np.nan, 0.09, 0.5])
    assert np.isnan(holm(np.array([np.nan]))).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(values):
    p = np.array(values)
    corrected = holm(p)
    assert (corrected >= p).all() and (corrected <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_the_interval_of_two_levels_is_that_of_all_resamples():
    """Of two seeds and six subjects there are 2^2 x 6^6 resamples, equally likely."""
    values = np.array([[0.0, 1.0, 3.0, 4.0, 8.0, 9.0], [4.0, 9.0, 2.0, 0.0, 1.0, 5.0]])
    columns = np.indices((6,) * 6).reshape(6, -1)
    rows = itertools.product(range(2), repeat=2)
    means = [values[list(two)].mean(axis=0)[columns].mean(axis=0) for two in rows]
    expected = np.quantile(np.concatenate(means), (0.025, 0.975))
    found = two_level_interval(values, resamples=100_000)
    assert found == pytest.approx(tuple(expected), abs=0.1)


def test_without_one_level_the_interval_is_that_of_the_other():
    rng = np.random.default_rng(0)
    subjects = rng.normal(size=20)
    found = two_level_interval(np.tile(subjects, (5, 1)), resamples=100_000)
    ((low,), (high,)) = bootstrap_interval(subjects[:, None], resamples=100_000)
    assert found == pytest.approx((low, high), abs=0.01)
    found = two_level_interval(np.tile(subjects[:, None], (1, 7)), resamples=100_000)
    assert found == pytest.approx((low, high), abs=0.01)


def test_the_interval_of_two_levels_has_the_spread_of_both():
    """Additive effects of seeds and subjects: the variances of both means add."""
    rng = np.random.default_rng(1)
    seeds, subjects = rng.normal(size=12), rng.normal(size=30)
    low, high = two_level_interval(seeds[:, None] + subjects, resamples=100_000)
    deviation = np.sqrt(seeds.var() / 12 + subjects.var() / 30)
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.03)
    assert (high + low) / 2 == pytest.approx(seeds.mean() + subjects.mean(), abs=0.1 * deviation)


@pytest.mark.parametrize("shape", [(1, 8), (3, 5), (3, 1), (0, 0)])
def test_one_seed_or_five_subjects_have_no_interval_of_two_levels(shape):
    assert np.isnan(two_level_interval(np.zeros(shape))).all()
