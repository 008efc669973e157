from __future__ import annotations

from nnunet_ssp.study.exports import CURVE_COLUMNS, SCORE_COLUMNS, model_tables


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
