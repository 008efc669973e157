from __future__ import annotations

import pytest

from nnunet_ssp.sharing.gains import THESE, measured_gains
from nnunet_ssp.study.comparisons import comparisons
from nnunet_ssp.study.exports import (
    CURVE_COLUMNS,
    SCORE_COLUMNS,
    comparison_table,
    model_tables,
)
from nnunet_ssp.study.report import write_results
from nnunet_ssp.study.workflow import WORKFLOW


def test_each_model_has_its_scores_and_its_curves(miniature):
    mini = miniature()
    mini.finish([run for run in mini.runs[1] if run.name == "MIM" and run.seed < 2])
    tables = dict(model_tables(mini.results))
    assert list(tables) == ["MIM", "MIM-curves"]
    scores, curves = tables["MIM"], tables["MIM-curves"]
    assert tuple(scores.columns) == SCORE_COLUMNS
    assert tuple(curves.columns) == CURVE_COLUMNS
    # Two folds, two seeds, eight subjects, two phases, three classes and their mean.
    assert len(scores) == 2 * 2 * 8 * 2 * 4
    assert len(curves) == 2 * 2 * 3
    own = scores[(scores["fold"] == "10") & (scores["seed"] == 1) & (scores["class"] == "mean")]
    assert own["dice"].mean() == mini.results.dice(mini.run("MIM", "10", 1))


def test_comparisons_say_what_was_compared(miniature):
    results = miniature().finish().results
    table = comparison_table(results, comparisons(results)).set_index("fold")
    (file,) = set(table["pretraining"])
    assert file.startswith("pretraining/MIM/seed0-aa/results/")
    assert file.endswith("/fold_0/checkpoint_final.pth")
    assert table["labelled_subjects"].to_dict() == {"all": 6, "10": 2}
    assert (table["dice"] - table["dice_baseline"]).tolist() == pytest.approx([0.1, 0.1])
    assert table.loc["10", ["scored_on", "trainer", "trainer_baseline"]].tolist() == [
        "test",
        "nnUNetTrainerFinetune",
        "nnUNetTrainerScratch",
    ]


def test_a_card_finds_the_gains_of_its_weights(miniature):
    mini = miniature().finish()
    write_results(mini.results, [])
    (pretraining,) = mini.runs[0]
    file = mini.output / pretraining.fold_folder(mini.data) / "checkpoint_final.pth"
    assert measured_gains(file, "none") == {}  # no study's folder yet
    (mini.output / WORKFLOW).touch()
    measured = measured_gains(file, "none")
    assert measured["of"] == THESE
    rows = {row["labelled_subjects"]: row for row in measured["rows"]}
    assert {n: row["difference"] for n, row in rows.items()} == {2: 0.1, 6: 0.1}
    assert rows[2]["n_seeds"] == 3 and rows[2]["n_subjects"] == 8
    assert not {"model", "baseline", "fold", "pretraining"} & rows[2].keys()
