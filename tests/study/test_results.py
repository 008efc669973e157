from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_ssp.evaluation.statistics import summarise
from nnunet_ssp.study.results import Coordinates, Results, Value

# With `dice` of conftest: the mean over eight subjects, two phases and three classes.
SEED_0 = {"all": 0.694, "10": 0.494}
OVER_SUBJECTS = 0.004 * np.std(range(8), ddof=1)


def test_the_mean_is_over_subjects_then_seeds_and_both_spreads_are_sample_deviations(miniature):
    results = miniature().finish().results
    for fold, expected in SEED_0.items():
        value = results.value(Coordinates("baseline", fold))
        assert value.seeds == pytest.approx({s: expected + 0.01 * s for s in range(3)})
        assert value.mean == pytest.approx(expected + 0.01)
        assert value.sd_seeds == pytest.approx(0.01)
        assert value.sd_subjects == pytest.approx(OVER_SUBJECTS)
        assert value.wanted == 3
    assert results.value(Coordinates("MIM", "10")).mean == pytest.approx(0.604)


def test_values_are_those_of_the_evaluation(miniature):
    mini = miniature().finish()
    results = mini.results
    table = summarise(results.frames["MIM", "all"]).set_index("class")
    for name in ("LVBP", "LVM", "RV", "mean"):
        value = results.value(Coordinates("MIM", "all", class_name=name))
        row = table.loc[name]
        assert value.mean == pytest.approx(row["dice_mean"])
        assert value.sd_seeds == pytest.approx(row["dice_sd_seeds"])
        assert value.sd_subjects == pytest.approx(row["dice_sd_subjects"])


@pytest.mark.parametrize(
    ("test", "subjects", "higher"),
    [
        ("all", range(8), 0.01),
        ("ED", range(8), 0.02),
        ("A+B", (0, 2, 4, 6), 0.01),
        ("C+D", (1, 3, 5, 7), 0.01),
    ],
)
def test_a_test_counts_the_cases_that_have_its_values(miniature, test, subjects, higher):
    results = miniature().finish().results
    value = results.value(Coordinates("baseline", "all", test))
    expected = 0.5 + 0.2 - 0.03 + higher + 0.004 * np.mean(subjects)
    assert value.seeds[0] == pytest.approx(expected)
    table = results.seed_values(Coordinates("baseline", "all", test))
    assert set(table["n_subjects"]) == {len(subjects)}


def test_codes_are_compared_as_text(miniature):
    mini = miniature(tests={"all": {}, "one": {"centre": "04"}, "other": {"centre": "4"}}).finish()
    results = mini.results
    assert results.value(Coordinates("MIM", "all", "one")).mean == pytest.approx(0.804)
    assert results.value(Coordinates("MIM", "all", "other")).seeds == {}


def test_structures_stand_for_the_datasets_classes(miniature):
    results = miniature().finish().results
    for name, own, lower in (("LV", "LVBP", 0.0), ("MYO", "LVM", 0.03), ("RV", "RV", 0.06)):
        value = results.value(Coordinates("MIM", "all", class_name=name))
        assert value.seeds[0] == pytest.approx(0.824 - lower)
        assert value == results.value(Coordinates("MIM", "all", class_name=own))
        assert results.structure_of(own) == results.structure_of(name) == name
    assert results.structure_of("mean") == "mean"


def test_other_scores(miniature):
    results = miniature().finish().results
    place = Coordinates("baseline", "all")
    assert results.value(place._replace(score="hd95_mm")).mean == pytest.approx(10 - 0.704)
    # The errors are +1 and -1 for seed 0, 2 for seed 1, ...: their mean would be 0.
    assert results.value(place._replace(score="LV EF")).seeds == {0: 1.0, 1: 2.0, 2: 3.0}
    area = results.value(place._replace(score="area"))
    assert area.seeds == pytest.approx({0: 0.3, 1: 0.4, 2: 0.5})
    assert math.isnan(area.sd_subjects)
    # Of three points none has a running mean at four fifths.
    assert results.value(place._replace(score="rise")).seeds == {}
    # Three points: the running mean is known at the last alone, where seed by seed both curves are equal.
    steps = results.value(Coordinates("MIM", "all", score="steps"))
    assert steps.seeds == {0: 60.0, 1: 60.0, 2: 60.0}


def test_a_missing_run_is_a_hole(miniature):
    mini = miniature()
    mini.finish([mini.run("MIM", "10", 1)])
    results = mini.results
    assert results.value(Coordinates("MIM", "10")).seeds == pytest.approx({1: 0.604})
    assert results.value(Coordinates("MIM", "10"), [0, 2]).seeds == {}
    one = results.value(Coordinates("MIM", "10"))
    assert (one.wanted, math.isnan(one.sd_seeds)) == (3, True)
    nothing = results.value(Coordinates("baseline", "all"))
    assert (nothing.seeds, math.isnan(nothing.mean)) == ({}, True)
    assert results.value(Coordinates("MIM", "all", score="area")).seeds == {}
    assert results.value(Coordinates("MIM", "all", score="LV EF")).seeds == {}


def test_what_is_not_recorded_does_not_count(miniature):
    mini = miniature().finish()
    run = mini.run("MIM", "10", 0)
    (mini.output / run.folder / "evaluate.json").unlink()
    assert set(mini.results.value(Coordinates("MIM", "10")).seeds) == {1, 2}
    assert not mini.results.is_done(run)


def test_states_say_how_far_a_run_has_come(miniature):
    mini = miniature()
    (pretraining,), run = mini.runs[0], mini.run("MIM", "10", 0)
    folder = mini.output / run.folder
    assert mini.results.state(mini.run("baseline", "10", 0)) == ("training not begun", None)
    assert mini.results.state(run) == ("waits for the pretraining MIM", None)
    mini.finish([pretraining, run])
    (folder / "evaluate.json").unlink()
    (folder / "evaluate.log").unlink()
    assert mini.results.state(run) == ("evaluation not begun", None)
    (folder / "predict.json").unlink()
    log = f"{run.folder}/predict.log"
    assert mini.results.state(run) == ("prediction did not end", log)
    (mini.output / pretraining.folder / "train.json").unlink()
    log = f"{pretraining.folder}/train.log"
    assert mini.results.state(pretraining) == ("training did not end", log)


def test_amounts_of_data(miniature):
    mini = miniature()
    assert mini.results.labelled("all") == (6, 120)
    assert mini.results.labelled("10") == (2, 40)
    assert mini.results.unlabelled_slices("baseline") == 0
    assert mini.results.unlabelled_slices("MIM") is None
    mini.finish()
    assert mini.results.unlabelled_slices("MIM") == 1000
    assert mini.results.steps(mini.run("MIM", "10", 0)) == 60


def test_names_that_do_not_exist_are_refused(miniature):
    with pytest.raises(
        ValueError, match=r"classes \(=atrium\) must be mean, LV, MYO, RV or of LVBP"
    ):
        miniature().finish().results.value(Coordinates("MIM", "all", class_name="atrium"))
    table = {"title": "T", "rows": "folds", "columns": "models"}
    for change, message in (
        ({"classes": "atrium"}, r"classes \(=atrium\)"),
        ({"published": "nobody/table1"}, r"published \(=nobody/table1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            miniature(tables=[table | change]).results.check()
    with pytest.raises(ValueError, match=r"published_settings \(=nobody\)"):
        miniature(published_settings="nobody").results.check()
    miniature(tables=[table | {"classes": "MYO", "published": "demooij/table1"}]).results.check()


def test_scores_that_the_data_do_not_allow_are_refused(miniature):
    table = {
        "title": "T",
        "rows": "models",
        "columns": "scores",
        "folds": "all",
        "scores": ["LV mass"],
    }
    mini = miniature(tables=[table])
    mini.results.check()
    for evaluation, message in (
        ("--spacing-unknown", r"T: scores \(=LV mass\) must not be in mm or ml without a spacing"),
        ("--myo LVBP", "LVBP, which is taken for LV, and LVBP, for MYO, share the label value 1"),
        ("--myo atrium", r"`--myo` \(=atrium\) must be a class of"),
        (
            "-np many",
            "evaluation must be arguments of nnunet-ssp evaluate: argument -np: .*many",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            miniature(tables=[table], evaluation=evaluation).results.check()
    file = mini.data.dataset.home / "dataset.json"
    text = file.read_text()
    file.write_text(text.replace("LVM", "muscle"))
    with pytest.raises(
        ValueError, match=r"must have a class MYO in .*dataset\.json; name it .* --myo NAME"
    ):
        mini.results.check()
    mini = miniature(tables=[table], evaluation="--myo muscle")
    file.write_text(text.replace("LVM", "muscle"))
    mini.results.check()
    assert mini.results.structure_of("muscle") == "MYO"
    file.write_text(text.replace("LVM", "left ventricle"))
    with pytest.raises(ValueError, match="could both be the LV; say which with --lv NAME"):
        mini.results.check()


def test_a_test_that_no_case_belongs_to_is_noted_before_anything_runs(miniature):
    tests = {"all": {}, "ED": {"phase": "ED"}, "first": {"frame": 0}, "es": {"phase": "es"}}
    (note,) = miniature(tests=tests).results.notes()
    assert note.startswith(
        "no tested case belongs to the test es: what is tested on it stays empty"
    )
    (note,) = miniature(
        tests={"all": {}, "of": {"centre": "4"}}, evaluate="validation"
    ).results.notes()
    assert "the test of" in note


def test_what_is_to_run_again_does_not_count(miniature):
    mini = miniature().finish()
    run = mini.run("MIM", "10", 0)
    results = Results(
        mini.study, *mini.runs, mini.data, mini.output, {f"{run.folder}/evaluate.json"}
    )
    assert set(results.value(Coordinates("MIM", "10")).seeds) == {1, 2}
    assert results.state(run) == ("evaluation is outdated", None)


def test_seed_values_name_their_runs(miniature):
    mini = miniature().finish()
    table = mini.results.seed_values(Coordinates("MIM", "10"))
    assert table["seed"].tolist() == [0, 1, 2]
    for folder in table["run"]:
        assert (mini.output / folder / "evaluate.json").is_file()


def test_a_value_of_one_seed_has_no_spread():
    assert Value({3: 0.5}, 0.1, 1, 1).mean == 0.5
    assert math.isnan(Value({3: 0.5}, 0.1, 1, 1).sd_seeds)


def test_a_frame_without_a_distance_is_left_out(miniature):
    mini = miniature(seeds=[0]).finish()
    file = Path(mini.output, mini.run("MIM", "all", 0).folder, "evaluation", "metrics.csv")
    table = pd.read_csv(file)
    table.loc[(table["subject"] == "T0") & (table["phase"] == "ED"), "hd95_mm"] = np.nan
    table.loc[table["subject"] == "T1", "hd95_mm"] = np.nan
    table.loc[table["class"] == "RV", "hd95_mm"] = 7.0
    table.loc[(table["class"] == "RV") & (table["subject"] == "T1"), "hd95_mm"] = np.nan
    table.loc[(table["class"] == "RV") & (table["case"] == "T0_0"), "hd95_mm"] = np.nan
    table.loc[(table["class"] == "RV") & (table["case"] == "T0_1"), "hd95_mm"] = 14.0
    table.to_csv(file, index=False)
    values = mini.results.seed_values(Coordinates("MIM", "all", class_name="RV", score="hd95_mm"))
    assert values["value"].tolist() == pytest.approx([(14 + 6 * 7) / 7])
    assert values["n_subjects"].tolist() == [7]


def test_a_seed_that_misses_a_class_everywhere_is_done_and_has_no_distance(miniature):
    mini = miniature(seeds=[0, 1]).finish()
    file = Path(mini.output, mini.run("MIM", "all", 0).folder, "evaluation", "metrics.csv")
    table = pd.read_csv(file)
    table.loc[table["class"] == "RV", ["hd95_mm", "missed"]] = np.nan, 1
    table.to_csv(file, index=False)
    value = mini.results.value(Coordinates("MIM", "all", class_name="RV", score="hd95_mm"))
    assert (list(value.seeds), value.done, value.wanted, value.missed) == ([1], 2, 2, 16)
    mean = mini.results.value(Coordinates("MIM", "all", score="hd95_mm"))
    assert (list(mean.seeds), mean.missed) == ([0, 1], 16)
    assert mini.results.value(Coordinates("MIM", "all", class_name="RV")).missed == 0


@pytest.mark.parametrize("content", [b"", b'model,seed\n"MIM,0\n', b"model\n\xe9\n"])
def test_a_damaged_table_of_scores_is_named(miniature, content: bytes):
    mini = miniature(seeds=[0]).finish()
    file = Path(mini.output, mini.run("MIM", "all", 0).folder, "evaluation", "metrics.csv")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv: must be the table that the study's run"):
        mini.results.value(Coordinates("MIM", "all"))
