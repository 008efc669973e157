from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.evaluation.scoring import score_pair
from nnunet_ssp.evaluation.volumes import (
    METRIC_COLUMNS,
    UNITS,
    agreement,
    clinical_metrics,
    implausible,
)
from tests.evaluation.conftest import write_pair

STRUCTURES = {"LV": "cavity", "MYO": "wall", "RV": "right"}


def rows(subject: str, volumes: dict, model: str = "m", seed: int = 0) -> list[dict]:
    """Frames of a subject; volumes: {(phase, class): (reference, predicted)} in ml."""
    return [
        {
            "model": model,
            "seed": seed,
            "subject": subject,
            "case": f"{subject}_{phase}",
            "phase": phase,
            "class": name,
            "reference_ml": reference,
            "predicted_ml": predicted,
        }
        for (phase, name), (reference, predicted) in volumes.items()
    ]


FULL = {
    ("ED", "cavity"): (120.0, 100.0),
    ("ES", "cavity"): (48.0, 50.0),
    ("ED", "wall"): (100.0, 110.0),
    ("ES", "wall"): (99.0, 99.0),
    ("ED", "right"): (150.0, 160.0),
    ("ES", "right"): (75.0, 80.0),
}


def test_figures_of_a_hand_computed_subject():
    table, refused = clinical_metrics(pd.DataFrame(rows("s", FULL)), STRUCTURES)
    assert refused == {}
    assert tuple(table.columns) == METRIC_COLUMNS
    found = table.set_index("figure")
    expected = {
        "LV EDV": (120, 100, -20, -100 / 6),
        "LV ESV": (48, 50, 2, 100 / 24),
        "LV SV": (72, 50, -22, -100 * 22 / 72),
        "LV EF": (60, 50, -10, -100 / 6),
        "LV mass": (105, 115.5, 10.5, 10),
        "RV EDV": (150, 160, 10, 100 / 15),
        "RV ESV": (75, 80, 5, 100 / 15),
        "RV EF": (50, 50, 0, 0),
    }
    assert list(found.index) == list(expected) == list(UNITS)
    for figure, numbers in expected.items():
        np.testing.assert_allclose(found.loc[figure, list(METRIC_COLUMNS[5:])].tolist(), numbers)
        assert found.loc[figure, "unit"] == UNITS[figure]


def test_figures_of_a_hand_computed_phantom(tmp_path):
    """Boxes of known size: 10 x 10 x 2 and 5 x 10 x 2 voxels of 10 x 2 x 1 mm = 0.02 ml."""
    maps = {phase: np.zeros((4, 20, 20), np.uint8) for phase in ("ED", "ES")}
    maps["ED"][1:3, :10, :10] = 1
    maps["ES"][1:3, :5, :10] = 1
    maps["ED"][1:3, 10:, :10] = 2
    frames = []
    for phase, array in maps.items():
        pair = write_pair(tmp_path / phase, np.roll(array, 3, 2), array, spacing=(10, 2, 1))
        for row in score_pair(pair, Labels({"cavity": (1,), "wall": (2,)}))[0]:
            frames.append(row | {"subject": "s", "case": phase, "phase": phase})
    table, _ = clinical_metrics(pd.DataFrame(frames), STRUCTURES)
    assert dict(zip(table["figure"], table["reference"].round(9), strict=True)) == {
        "LV EDV": 4.0,
        "LV ESV": 2.0,
        "LV SV": 2.0,
        "LV EF": 50.0,
        "LV mass": 4.2,
    }
    np.testing.assert_allclose(table["error"], 0, atol=1e-12)


def test_an_ejection_fraction_needs_an_end_diastolic_volume():
    volumes = FULL | {("ED", "cavity"): (120.0, 0.0)}
    table, _ = clinical_metrics(pd.DataFrame(rows("s", volumes)), STRUCTURES)
    found = table.set_index("figure")
    assert found.loc["LV EDV", "predicted"] == 0
    assert np.isnan(found.loc["LV EF", ["predicted", "error", "percent_error"]].astype(float)).all()
    assert found.loc["LV EF", "reference"] == 60


def test_what_is_not_labelled_is_left_out():
    only_lv = {key: value for key, value in FULL.items() if key[1] == "cavity"}
    table, _ = clinical_metrics(pd.DataFrame(rows("s", only_lv)), STRUCTURES)
    assert list(table["figure"]) == ["LV EDV", "LV ESV", "LV SV", "LV EF"]
    # A reference without myocardium is not labelled, whatever the prediction has.
    some = FULL | {("ED", "wall"): (0.0, 110.0)}
    both = pd.DataFrame(rows("full", FULL) + rows("some", some))
    table, refused = clinical_metrics(both, STRUCTURES)
    mass = table[table["figure"] == "LV mass"].set_index("subject")
    assert refused == {}
    assert np.isnan(mass.loc["some", ["reference", "predicted", "error"]].astype(float)).all()
    assert mass.loc["full", "error"] == pytest.approx(10.5)
    assert agreement(table).set_index("figure").loc["LV mass", "n_subjects"] == 1


def test_subjects_without_exactly_one_ed_and_one_es_are_refused():
    one_phase = {key: value for key, value in FULL.items() if key[0] == "ED"}
    two = rows("two", FULL) + [row | {"case": "other"} for row in rows("two", one_phase)]
    neither = [row | {"phase": ""} for row in rows("neither", one_phase)]
    frames = pd.DataFrame(rows("good", FULL) + rows("bad", one_phase) + two + neither)
    table, refused = clinical_metrics(frames, STRUCTURES)
    assert set(table["subject"]) == {"good"}
    assert refused == {
        "bad": "no ES frame",
        "two": "2 ED frames",
        "neither": "no ED frame and no ES frame",
    }
    table, refused = clinical_metrics(frames[frames["subject"] == "bad"], STRUCTURES)
    assert table.empty and tuple(table.columns) == METRIC_COLUMNS and list(refused) == ["bad"]
    assert agreement(table).empty


def test_agreement_is_that_of_bland_and_altman():
    errors = dict(zip("abcdef", (3.0, -1.0, 4.0, 2.0, 0.0, 4.0), strict=True))
    frames = []
    for number, (subject, error) in enumerate(errors.items()):
        reference = 100.0 + 10 * number
        frames += rows(subject, FULL | {("ED", "cavity"): (reference, reference + error)})
    table = agreement(clinical_metrics(pd.DataFrame(frames), STRUCTURES)[0])
    row = table[table["figure"] == "LV EDV"].iloc[0]
    sd = np.std([*errors.values()], ddof=1)
    assert (row["n_subjects"], row["reference"], row["predicted"]) == (6, 125, 127)
    assert row["bias"] == pytest.approx(2)
    assert row["sd"] == pytest.approx(sd)
    assert (row["lower"], row["upper"]) == pytest.approx((2 - 1.96 * sd, 2 + 1.96 * sd))
    assert row["mae"] == pytest.approx(14 / 6)
    assert row["percent_error"] == pytest.approx(
        (3 - 100 / 110 + 400 / 120 + 200 / 130 + 400 / 150) / 6
    )
    expected = np.corrcoef([100, 110, 120, 130, 140, 150], [103, 109, 124, 132, 140, 154])[0, 1]
    assert row["correlation"] == pytest.approx(expected)
    constant = table[table["figure"] == "RV EDV"].iloc[0]
    assert np.isnan(constant["correlation"])


def test_limits_and_correlation_take_six_subjects_in_each_seed():
    frames = []
    for seed in range(2):
        for subject in range(6):
            predicted = np.nan if (seed, subject) == (1, 5) else 101.0 + subject
            volumes = FULL | {("ED", "cavity"): (100.0 + subject, predicted)}
            frames += rows(f"s{subject}", volumes, seed=seed)
    table = agreement(clinical_metrics(pd.DataFrame(frames), STRUCTURES)[0]).set_index("figure")
    few, enough = table.loc["LV EDV"], table.loc["LV mass"]
    assert (few["n_subjects"], enough["n_subjects"]) == (5, 6)
    assert np.isnan([few["lower"], few["upper"], few["correlation"]]).all()
    assert (few["bias"], few["sd"]) == (1, 0)
    assert enough["lower"] == enough["upper"] == enough["bias"]


def test_limits_are_those_of_one_seed_not_of_the_mean_of_seeds():
    frames = []
    for seed, sign in ((0, 1), (1, -1)):  # errors that cancel between the seeds
        for subject, error in (("a", 5.0), ("b", -5.0)):
            volumes = FULL | {("ED", "cavity"): (100.0, 100.0 + sign * error)}
            frames += rows(subject, volumes, seed=seed)
    row = agreement(clinical_metrics(pd.DataFrame(frames), STRUCTURES)[0]).iloc[0]
    assert row["bias"] == 0
    assert row["sd"] == pytest.approx(np.sqrt(50))


def test_models_and_subjects_keep_their_order():
    frames = pd.DataFrame(rows("z", FULL, "second") + rows("a", FULL, "second") + rows("z", FULL))
    table, _ = clinical_metrics(frames, STRUCTURES)
    assert list(table["model"].unique()) == ["second", "m"]
    assert list(table["subject"].unique()) == ["z", "a"]


def test_a_wrong_spacing_is_told_from_a_result():
    def table(reference: float, predicted: float) -> pd.DataFrame:
        row = {"model": "m", "seed": 0, "subject": "s", "figure": "LV EDV", "unit": "ml"}
        error = predicted - reference
        values = {"reference": reference, "predicted": predicted, "error": error}
        return pd.DataFrame([row | values | {"percent_error": 100 * error / reference}])

    assert implausible(table(150, 240)) == []
    for reference, predicted in ((150, 1986), (2000, 2100), (60, 180)):
        (warning,) = implausible(table(reference, predicted))
        assert f"LV EDV is {predicted} ml on average, {reference} ml in the references" in warning


def test_several_volumes_of_no_heart_are_one_warning():
    row = {"seed": 0, "subject": "s", "unit": "ml", "reference": 150.0, "predicted": 1986.0}
    rows = [
        row | {"model": model, "figure": figure, "error": 1836.0, "percent_error": 1224.0}
        for model in ("a", "b")
        for figure in ("LV EDV", "RV EDV")
    ]
    (warning,) = implausible(pd.DataFrame(rows))
    first, *lines = warning.splitlines()
    assert first.startswith(
        "WARNING: volumes or masses that no heart has, or far from those of the references. Such numbers come from"
    )
    assert lines == [
        f"* {model}: {figure} is 1986 ml on average, 150 ml in the references."
        for model in ("a", "b")
        for figure in ("LV EDV", "RV EDV")
    ]
