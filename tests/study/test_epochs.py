from __future__ import annotations

import pytest

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.study.figures import drawn
from tests.study.test_figures import axes_of, figure

SNAPSHOTS = (2, 4)


@pytest.fixture
def made(miniature):
    """From scratch, from snapshots after 2 and 4 of 6 epochs, and from the end: Dice is 0.5 + 0.01 n - 0.001 n^2."""
    models = {"scratch": {"trainer": "Scratch"}, "6": {"trainer": "Finetune", "pretraining": "MIM"}}
    for n in SNAPSHOTS:
        models[f"{n}"] = {"trainer": "Finetune", "pretraining": "MIM", "snapshot": n}
    mini = miniature(models=models, baseline="scratch")

    def dice(run, *_):
        n = 0 if run.name == "scratch" else int(run.name)
        return 0.5 + 0.01 * n - 0.001 * n**2 + 0.01 * run.seed

    mini.finish(dice=dice)
    file = mini.output / mini.runs[0][0].fold_folder(mini.data) / "settings.json"
    write_json(file, {"settings": {"num_epochs": 6}})
    return mini


def test_the_score_by_the_epochs_of_one_pretraining(made):
    result = drawn(figure(kind="epochs", folds="10"), made.results)
    (plot,) = result.plots
    _, axes = axes_of(plot)
    scratch, curve, _ = axes.lines
    assert curve.get_xdata().tolist() == [2, 4, 6]
    assert curve.get_ydata() == pytest.approx([0.526, 0.534, 0.534])
    assert scratch.get_ydata() == pytest.approx([0.51, 0.51])
    assert axes.get_xlabel() == "epochs of pretraining"
    assert list(result.columns) == ["Trained on", "2 epochs", "4 epochs", "6 epochs"]
    assert result.rows == [["10", "+0.016", "+0.024", "+0.024"]]


def test_what_is_not_done_is_left_out(made):
    for seed in made.study.seeds:
        run = made.run("4", "10", seed)
        (made.output / run.folder / "evaluate.json").unlink()
    result = drawn(figure(kind="epochs", folds="10"), made.results)
    assert axes_of(result.plots[0])[1].lines[1].get_xdata().tolist() == [2, 6]
    assert result.rows == [["10", "+0.016", None, "+0.024"]]
    assert "Incomplete: 4 on 10 (0 of 3 seeds)." in result.caption


def test_without_a_control_there_is_no_gain(made):
    result = drawn(figure(kind="epochs", folds="10", models=["2", "6"]), made.results)
    assert result.rows == [["10", None, None]]
    assert len(axes_of(result.plots[0])[1].lines) == 2
