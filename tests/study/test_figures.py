from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure as Canvas

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.reporting.figures import render
from nnunet_ssp.reporting.page import Link
from nnunet_ssp.study.figures import drawn, fit_power_law
from nnunet_ssp.study.spec import Figure

AMOUNTS = np.array([0, 1000, 2500, 5000, 10000])


@settings(max_examples=30, deadline=None)
@given(a=st.floats(0.02, 0.3), k=st.floats(0.15, 2.0), c=st.floats(-0.5, 0.9))
def test_a_power_law_is_recovered(a, k, c):
    law = fit_power_law(AMOUNTS, a * (AMOUNTS / 10000) ** k + c)
    assert law is not None
    assert law.k == pytest.approx(k, rel=0.02)
    assert law.c == pytest.approx(c, abs=0.003)
    assert law.a * 10000**law.k == pytest.approx(a, rel=0.02)
    assert law.residual_error < 1e-4


def test_without_an_amount_of_zero_the_exponent_may_be_negative():
    amounts = np.array([*AMOUNTS[1:], 20000])
    law = fit_power_law(amounts, 0.9 - 3.0 * amounts**-0.5)
    assert law is not None
    assert (law.a, law.k, law.c) == pytest.approx((-3.0, -0.5, 0.9), rel=1e-2)


def test_the_residual_error_counts_three_parameters():
    scores = 0.5 + 0.1 * (AMOUNTS / 10000) ** 0.5 + np.array([0.01, -0.01, 0.01, -0.01, 0.01])
    law = fit_power_law(AMOUNTS, scores)
    squares = np.sum((law(AMOUNTS) - scores) ** 2)
    assert law.residual_error == pytest.approx(np.sqrt(squares / 2))
    assert 0 < squares < 5e-4


@pytest.mark.parametrize("amounts", [[0, 1, 2], [0, 1, 2, 2, 2]])
def test_fewer_than_four_amounts_are_not_fitted(amounts):
    assert fit_power_law(np.array(amounts), np.linspace(0, 1, len(amounts))) is None


def test_four_amounts_are_fitted_with_one_degree_of_freedom():
    amounts, a, k, c = np.array([1000.0, 2500.0, 5000.0, 10000.0]), 0.002, 0.4, 0.6
    law = fit_power_law(amounts, a * amounts**k + c)
    assert (law.a, law.k, law.c) == pytest.approx((a, k, c), rel=1e-2)
    scores = a * amounts**k + c + np.array([0.004, -0.004, 0.004, -0.004])
    law = fit_power_law(amounts, scores)
    assert law.residual_error == pytest.approx(np.sqrt(np.sum((law(amounts) - scores) ** 2)))


def test_flat_scores_are_fitted():
    law = fit_power_law(AMOUNTS, np.full(5, 0.7))
    assert law(AMOUNTS) == pytest.approx(0.7)
    assert law.residual_error == pytest.approx(0, abs=1e-9)


def figure(**parts: object) -> Figure:
    return Figure.model_validate({"title": "A figure"} | parts)


def axes_of(plot):
    """Draw and also render a picture, which finds more faults than drawing alone; return its axes."""
    render(plot.draw)
    canvas = Canvas()
    plot.draw(canvas)
    (axes,) = canvas.axes
    return canvas, axes


def test_curves_over_labelled_subjects(miniature):
    (plot,) = drawn(figure(kind="labels"), miniature().finish().results).plots
    canvas, axes = axes_of(plot)
    lines = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
    assert list(lines) == ["baseline", "MIM"]
    assert lines["MIM"].get_xdata().tolist() == [2, 6]
    assert lines["MIM"].get_ydata() == pytest.approx([0.604, 0.804])
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "6"]
    # The band is one sample standard deviation wide on either side.
    corners = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((0.594, 0.814))
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [6, 6]
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["baseline", "MIM"]


def test_folds_of_as_many_subjects_are_placed_by_their_slices(miniature):
    mini = miniature(folds={"all": "paper", "10": "nr10-seed{seed}", "half": "nr10-seed1"})
    # One of the two subjects has two frames, and of them one.
    cases = mini.data.dataset.folds
    index = next(i for i, fold in enumerate(cases) if fold.name == "nr10-seed1")
    cases[index] = replace(cases[index], train=cases[index].train[1:])
    (plot,) = drawn(figure(kind="labels"), mini.finish().results).plots
    _, axes = axes_of(plot)
    assert axes.get_xlabel() == "labelled slices"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["30", "36.7", "120"]


def test_curves_keep_their_colours_when_others_are_missing(miniature):
    mini = miniature()
    mini.finish(run for run in mini.runs[1] if run.name == "MIM")
    colours = []
    for kind in ("labels", "learning"):
        plots = drawn(figure(kind=kind), mini.results).plots
        colours += [axes_of(plot)[1].lines[0].get_color() for plot in plots]
    assert colours == ["#D55E00"] * 3


def test_one_seed_has_no_band(miniature):
    mini = miniature(seeds=[0]).finish()
    (plot,) = drawn(figure(kind="labels"), mini.results).plots
    assert not axes_of(plot)[1].collections
    for plot in drawn(figure(kind="learning"), mini.results).plots:
        axes_of(plot)


def amounts(miniature, number: int):
    """Make a study of one method on growing parts of the unlabelled data: Dice is 0.5 + 0.1 sqrt(share)."""
    names = [f"MIM {share}" for share in range(1, number)]
    mini = miniature(
        pretraining={name: {"trainer": "MIM", "fold": "all"} for name in names},
        models={"scratch": {"trainer": "Scratch"}}
        | {name: {"trainer": "Finetune", "pretraining": name} for name in names},
        baseline="scratch",
    )

    def share(name: str) -> int:
        return int(name.removeprefix("MIM ")) if name != "scratch" else 0

    mini.finish(dice=lambda run, *_: 0.5 + 0.1 * share(run.name) ** 0.5 + 0.01 * run.seed)
    for run in mini.runs[0]:
        file = mini.output / run.fold_folder(mini.data) / "settings.json"
        write_json(file, {"counts": {"slices": 100 * share(run.name)}})
    return mini


def test_scores_over_unlabelled_slices_with_the_fit(miniature):
    result = drawn(figure(kind="unlabelled", folds="10"), amounts(miniature, 6).results)
    (plot,) = result.plots
    _, axes = axes_of(plot)
    points, _, law = axes.lines
    assert points.get_xdata().tolist() == [0, 100, 200, 300, 400, 500]
    assert points.get_ydata()[[0, 4]] == pytest.approx([0.51, 0.71])
    assert law.get_ydata()[[0, -1]] == pytest.approx([0.51, 0.51 + 0.1 * 5**0.5], abs=1e-3)
    ((fold, n, a, k, c, error),) = result.rows
    assert (fold, n) == ("10", 6)
    assert [float(text) for text in (a, k, c)] == pytest.approx([0.01, 0.5, 0.51], rel=0.01)
    assert float(error) < 1e-4
    assert "No line" not in result.caption


def test_fewer_amounts_are_points_only_and_the_caption_says_so(miniature):
    result = drawn(figure(kind="unlabelled", folds="10"), amounts(miniature, 3).results)
    assert len(axes_of(result.plots[0])[1].lines) == 2
    assert result.rows == []
    assert "No line where there are fewer than 4 amounts." in result.caption
    assert "fitted" not in result.caption


def test_boxes_are_of_subjects(miniature):
    result = drawn(figure(kind="boxes", classes=["LV", "mean"]), miniature().finish().results)
    assert [plot.name for plot in result.plots] == ["LV", "mean"]
    _, axes = axes_of(result.plots[1])
    assert (axes.get_ylabel(), axes.get_title()) == ("3D Dice", "mean")
    dots = [line.get_ydata() for line in axes.lines if line.get_marker() == "."]
    assert [len(values) for values in dots] == [8] * 4
    assert sorted(dots[0]) == pytest.approx([0.69 + 0.004 * i for i in range(8)])
    with pytest.raises(ValueError, match=r"A figure: scores \(=area\) must be scores of subjects"):
        drawn(figure(kind="boxes", scores="area"), miniature().finish().results)


def test_learning_curves_go_as_far_as_all_seeds(miniature):
    mini = miniature().finish()
    run = mini.run("MIM", "10", 2)
    file = mini.output / run.fold_folder(mini.data) / "learning_curve.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:3]) + "\n")
    result = drawn(figure(kind="learning"), mini.results)
    assert [plot.name for plot in result.plots] == ["all", "10"]
    baseline, mim = axes_of(result.plots[1])[1].lines
    assert baseline.get_xdata().tolist() == [20, 40, 60]
    assert baseline.get_ydata() == pytest.approx([0.1, 0.2, 0.4])
    assert mim.get_xdata().tolist() == [20, 40]
    assert result.columns == ("Trained on", "baseline", "MIM")
    anchors = mini.results.anchors
    assert result.rows[0][1:] == [
        Link("0.400 ± 0.100", f"#{anchors[model, 'all']}") for model in ("baseline", "MIM")
    ]
    # Its seeds stand at 0.3, 0.4 and, cut short, 0.2.
    assert [cell.text for cell in result.rows[1][1:]] == ["0.400 ± 0.100", "0.300 ± 0.100"]


def test_learning_curves_of_seeds_with_epochs_of_different_length(miniature):
    """With match=epochs the seeds' subsets may have different numbers of slices."""
    mini = miniature(seeds=[0, 1]).finish()
    for seed, steps in enumerate(([30, 60, 90], [20, 40, 60, 80])):
        run = mini.run("MIM", "10", seed)
        file = mini.output / run.fold_folder(mini.data) / "learning_curve.csv"
        rows = (f"{step},{step / 100},0.5\n" for step in steps)
        file.write_text("step,pseudo_dice,pseudo_dice_area\n" + "".join(rows))
    result = drawn(figure(kind="learning"), mini.results)
    mim = axes_of(result.plots[1])[1].lines[1]
    assert mim.get_xdata().tolist() == [30, 40, 60, 80]
    assert mim.get_ydata() == pytest.approx([0.3, 0.4, 0.6, 0.8])  # both are the same line


@pytest.mark.parametrize("kind", ["labels", "unlabelled", "epochs", "boxes", "learning"])
def test_nothing_is_drawn_where_nothing_is_done(miniature, kind):
    result = drawn(figure(kind=kind), miniature().results)
    assert result.plots == []
    assert list(result.rows) == []


def test_twenty_models_can_be_told_apart(miniature):
    models = {f"model {i}": {"trainer": "Scratch"} for i in range(20)}
    mini = miniature(models=models, baseline=None, seeds=[0]).finish()
    (plot,) = drawn(figure(kind="labels"), mini.results).plots
    lines = [line for line in axes_of(plot)[1].lines if line.get_label()[0] != "_"]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20


def test_what_is_missing_breaks_the_line_and_is_said(miniature):
    folds = {"all": "paper", "10": "nr10-seed{seed}", "5": "nr10-seed3"}
    mini = miniature(folds=folds, seeds=[0, 1]).finish()
    record = mini.output / mini.run("MIM", "10", 1).folder / "evaluate.json"
    record.unlink()
    result = drawn(figure(kind="labels"), mini.results)
    assert "Incomplete: MIM on 10 (1 of 2 seeds)." in result.caption
    (mini.output / mini.run("MIM", "10", 0).folder / "evaluate.json").unlink()
    result = drawn(figure(kind="labels"), mini.results)
    assert "Incomplete: MIM on 10 (0 of 2 seeds)." in result.caption
    lines = axes_of(result.plots[0])[1].lines
    curves = [line for line in lines if line.get_label() in ("baseline", "MIM")]
    assert [np.isfinite(line.get_ydata()).sum() for line in curves] == [3, 2]


def test_an_exponent_at_its_bound_is_said(miniature):
    law = fit_power_law(AMOUNTS, np.array([0.70, 0.72, 0.72, 0.72, 0.72]))
    assert law is not None
    assert law.k == pytest.approx(0.01, abs=1e-4)


def test_boxes_of_models_that_are_not_done_stay_empty(miniature):
    mini = miniature()
    mini.finish([run for run in mini.runs[1] if run.name == "baseline"])
    (plot,) = drawn(figure(kind="boxes"), mini.results).plots
    assert axes_of(plot)
    (plot,) = drawn(figure(kind="boxes", scores="LV EF"), mini.results).plots
    assert axes_of(plot)
