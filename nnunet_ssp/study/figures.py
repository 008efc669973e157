"""The figures of a study: Dice against labelled subjects and unlabelled slices, box plots, learning curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_ssp.reporting.figures import OVERLAY_WIDTH, box_plot
from nnunet_ssp.reporting.page import Cell, Link
from nnunet_ssp.reporting.wording import rounded
from nnunet_ssp.study.epochs import epochs_figure
from nnunet_ssp.study.plots import (
    Draw,
    Drawn,
    Plot,
    Styles,
    add_legend,
    add_seeds,
    caption,
    each_plot,
    fixed_words,
    styles,
)
from nnunet_ssp.study.results import TITLES, Coordinates, Results, Value
from nnunet_ssp.study.spec import AREA, CURVE_SCORES, Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Array = npt.NDArray[Any]

SIZE = (OVERLAY_WIDTH, 3.2)  # inches; a wider picture would have tiny letters on a phone
EXPONENTS = (0.01, 3.0)  # the smallest and the largest fitted size, with either sign
AMOUNTS_FOR_A_FIT = 4  # for three parameters, as Dominic et al. fitted


def drawn(figure: Figure, results: Results) -> Drawn:
    """Make the pictures of a figure from the finished runs."""
    make = {
        "labels": _labels,
        "unlabelled": _unlabelled,
        "epochs": epochs_figure,
        "boxes": _boxes,
        "learning": _learning,
    }
    return make[figure.kind](figure, results)


# -- against the number of labelled subjects -------------------------------------------------------


def _labels(figure: Figure, results: Results) -> Drawn:
    shown = results.study.entries(figure)
    sizes = {fold: results.labelled(fold) for fold in shown["folds"]}
    # Small folds may have equal numbers of subjects, and differ only in their slices.
    slices = len({subjects for subjects, _ in sizes.values()}) < len(sizes)
    unit = "slices" if slices else "subjects"
    plots = []
    for test, name, score, file, title in each_plot(figure, results):
        curves = {}
        for model in shown["models"]:
            points = [
                (
                    sizes[fold][slices],
                    results.value(Coordinates(model, fold, test, name, score), figure.seeds),
                )
                for fold in shown["folds"]
            ]
            if any(value.seeds for _, value in points):  # a fold without runs breaks the line
                curves[model] = sorted(points, key=lambda point: point[0])
        if curves:
            words = f"labelled {unit}", TITLES[score], title
            draw = _draw_labels(curves, styles(shown["models"]), *words)
            plots.append(Plot(file, draw, f"{TITLES[score]} against labelled {unit}, {title}"))
    return Drawn(
        figure.title,
        plots,
        caption(
            figure,
            results,
            fixed_words(figure, results),
            "Lines: mean over seeds; bands: ± sample standard deviation over seeds; dots: seeds.",
        ),
    )


def _draw_labels(
    curves: Mapping[str, Sequence[tuple[float, Value]]],
    by_curve: Styles,
    xlabel: str,
    ylabel: str,
    title: str,
) -> Draw:
    """Draw means with bands against the number of labelled subjects, and a dot for each seed."""

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        lines = []
        for name, points in curves.items():
            style = by_curve[name]
            x = np.array([x for x, _ in points])
            lines += axes.plot(x, [v.mean for _, v in points], label=name, **style)
            add_seeds(axes, points, style["color"])
            _add_band(axes, x, points, style["color"])
        _count_axis(axes, [x for points in curves.values() for x, _ in points])
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        add_legend(canvas, lines)

    return draw


def _count_axis(axes: Axes, numbers: Sequence[float]) -> None:
    """Scale an axis logarithmically, with plain numbers below it."""
    ticks = sorted(set(numbers))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{round(tick, 1):g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    # A single number would have no width.
    axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)


def _add_band(axes: Axes, x: Array, points: Sequence[tuple[float, Value]], colour: str) -> None:
    mean, sd = (np.array([getattr(v, k) for _, v in points]) for k in ("mean", "sd_seeds"))
    known = np.isfinite(sd)
    band = (x[known], (mean - sd)[known], (mean + sd)[known])
    if known.sum() == 1:
        axes.errorbar(x[known], mean[known], sd[known], color=colour, capsize=3)
    elif known.any():
        axes.fill_between(*band, color=colour, alpha=0.2, linewidth=0)


# -- against the amount of unlabelled data ---------------------------------------------------------


@dataclass(frozen=True)
class PowerLaw:
    """Curve a * n^k + c.

    Attributes:
        a: Factor.
        k: Exponent.
        c: Offset.
        residual_error: Residual standard error, the root of the sum of squares over (points - 3).
    """

    a: float
    k: float
    c: float
    residual_error: float

    def __call__(self, n: Array) -> Array:
        """Compute the value at each amount."""
        return self.a * n.astype(float) ** self.k + self.c


def fit_power_law(amounts: Array, scores: Array) -> PowerLaw | None:
    """Fit a * n^k + c by least squares.

    The exponent lies between 0.01 and 3 or, if no amount is 0, also between -3 and -0.01.

    Args:
        amounts: Amounts of shape (n,), at least 0.
        scores: Scores of shape (n,).

    Returns:
        The curve; None for fewer than `AMOUNTS_FOR_A_FIT` different amounts.
    """
    from scipy.optimize import least_squares

    if len(np.unique(amounts)) < AMOUNTS_FOR_A_FIT:
        return None
    unit = float(np.max(amounts))
    x, y = amounts / unit, scores.astype(float)

    def residuals(parameters: Array) -> Array:
        a, k, c = parameters
        return np.asarray(a * x**k + c - y)

    fits = []
    for sign in (1, -1) if x.min() > 0 else (1,):
        low, high = sorted(sign * exponent for exponent in EXPONENTS)
        bounds = (-np.inf, low, -np.inf), (np.inf, high, np.inf)
        for start in (0.1 * sign, 0.5 * sign, 1.5 * sign):
            # For a given exponent, factor and offset are those of a straight line.
            a, c = np.polyfit(x**start, y, 1)
            fits.append(least_squares(residuals, (a, start, c), bounds=bounds, max_nfev=20_000))
    best = min(fits, key=lambda fit: float(fit.cost))  # half the sum of squares
    a, k, c = map(float, best.x)
    return PowerLaw(a / unit**k, k, c, math.sqrt(2 * best.cost / (len(x) - 3)))


def _unlabelled(figure: Figure, results: Results) -> Drawn:
    shown = results.study.entries(figure)
    amounts = {model: results.unlabelled_slices(model) for model in shown["models"]}
    plots, few = [], False
    rows: list[list[Cell]] = []
    for test, name, score, file, title in each_plot(figure, results):
        curves = {}
        for fold in shown["folds"]:
            points = []
            for model, amount in amounts.items():
                value = results.value(Coordinates(model, fold, test, name, score), figure.seeds)
                if amount is not None and value.seeds:
                    points.append((float(amount), value))
            if not points:
                continue
            points.sort(key=lambda point: point[0])
            x, means = (np.array(numbers) for numbers in zip(*_means(points), strict=True))
            law = fit_power_law(x, means)
            curves[fold] = points, law
            few = few or law is None
            if law is not None:
                numbers = (law.a, law.k, law.c, law.residual_error)
                texts = [f"{number:.3g}" for number in numbers]
                if np.isclose(abs(law.k), EXPONENTS).any():
                    texts[1] += " (as far as was searched)"
                rows.append([", ".join(filter(None, (fold, title))), len(points), *texts])
        if curves:
            draw = _draw_unlabelled(curves, styles(shown["folds"]), TITLES[score], title)
            plots.append(Plot(file, draw, f"{TITLES[score]} against unlabelled slices, {title}"))
    return Drawn(
        figure.title,
        plots,
        caption(
            figure,
            results,
            fixed_words(figure, results),
            "A colour for each set of training subjects. Large: mean over seeds, dots: seeds; 0 slices: from scratch.",
            "Lines: a·nᵏ + c, fitted to the means by least squares." if rows else "",
            f"No line where there are fewer than {AMOUNTS_FOR_A_FIT} amounts." if few else "",
        ),
        ("Trained on", "Points", "a", "k", "c", "Residual standard error") if rows else (),
        rows,
    )


def _means(points: Sequence[tuple[float, Value]]) -> list[tuple[float, float]]:
    return [(x, value.mean) for x, value in points]


def _draw_unlabelled(
    curves: Mapping[str, tuple[Sequence[tuple[float, Value]], PowerLaw | None]],
    by_curve: Styles,
    ylabel: str,
    title: str,
) -> Draw:
    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        lines = []
        for name, (points, law) in curves.items():
            x = np.array([x for x, _ in points])
            style = {**by_curve[name], "linestyle": "none"}
            lines += axes.plot(x, [v.mean for _, v in points], label=name, **style)
            add_seeds(axes, points, style["color"])
            if law is not None:
                fine = np.linspace(x.min(), x.max(), 400)
                axes.plot(fine, law(fine), color=style["color"], linewidth=1.2)
        axes.set(xlabel="unlabelled slices in pretraining", ylabel=ylabel, title=title)
        add_legend(canvas, lines)

    return draw


# -- the subjects' scores --------------------------------------------------------------------------


def _boxes(figure: Figure, results: Results) -> Drawn:
    shown = results.study.entries(figure)
    plots = []
    for test, name, score, file, title in each_plot(figure, results):
        if score in CURVE_SCORES:
            raise ValueError(f"{figure.title}: scores (={score}) must be scores of subjects.")
        groups: dict[str, dict[str, Array]] = {fold: {} for fold in shown["folds"]}
        for fold, model in itertools.product(shown["folds"], shown["models"]):
            table = results.subject_values(Coordinates(model, fold, test, name, score))
            own = table[table["seed"].isin(figure.seeds or results.study.seeds)]
            groups[fold][model] = own.groupby("subject")["value"].mean().to_numpy()
        if any(len(values) for group in groups.values() for values in group.values()):
            draw = box_plot(groups, TITLES[score], title=title)
            plots.append(Plot(file, draw, f"Box plots of {TITLES[score]}, {title}"))
    text = "Boxes: quartiles, whiskers to 1.5 times their distance; dots: subjects, mean over frames and seeds."
    return Drawn(figure.title, plots, caption(figure, results, fixed_words(figure, results), text))


# -- learning curves -------------------------------------------------------------------------------


def _learning(figure: Figure, results: Results) -> Drawn:
    shown = results.study.entries(figure)
    seeds = figure.seeds or results.study.seeds
    plots = []
    rows: list[list[Cell]] = []
    for fold in shown["folds"]:
        curves = {}
        areas: list[Cell] = [fold]
        for model in shown["models"]:
            runs = results.done.get((model, fold), {})
            found = (results.learning_curve(runs[seed]) for seed in seeds if seed in runs)
            if own := [curve for curve in found if curve is not None]:
                curves[model] = _mean_curve(own)
            value = results.value(Coordinates(model, fold, score=AREA), seeds)
            target = f"#{results.anchors[model, fold]}" if (model, fold) in results.anchors else ""
            text = _area_text(value)
            areas.append(Link(text, target) if text and target else text)
        if curves:
            file, title = (fold, f"trained on {fold}") if len(shown["folds"]) > 1 else ("", "")
            alt = f"Learning curves on {fold}"
            draw = _draw_learning(curves, styles(shown["models"]), title)
            plots.append(Plot(file, draw, alt))
            rows.append(areas)
    return Drawn(
        figure.title,
        plots,
        caption(
            figure,
            results,
            "nnU-Net’s pseudo Dice on random patches of the validation subjects, by optimiser step. Lines: mean over "
            "seeds, as far as all of them ran; bands: ± sample standard deviation over seeds. The table has the area "
            "under the curves divided by the steps, which is their mean (the measure of convergence of Kalapos and "
            "Gyires-Tóth, arXiv 2209.00314).",
        ),
        ("Trained on", *shown["models"]),
        rows,
    )


def _area_text(value: Value) -> str | None:
    if not value.seeds:
        return None
    spread = "" if math.isnan(value.sd_seeds) else f" ± {rounded(value.sd_seeds, 3)}"
    n = len(value.seeds)
    missing = f" ({n} of {value.wanted} seeds)" if n < value.wanted else ""
    return f"{rounded(value.mean, 3)}{spread}{missing}"


def _mean_curve(curves: Sequence[pd.DataFrame]) -> tuple[Array, Array, Array]:
    """Compute steps, mean and sample standard deviation over seeds, up to the last step of the shortest run.

    With `match=epochs` the seeds' epochs may differ in steps, so a curve is interpolated linearly between its epochs.
    """
    first, last = max(c["step"].min() for c in curves), min(c["step"].max() for c in curves)
    steps = np.unique(np.concatenate([c["step"] for c in curves]))
    steps = steps[(steps >= first) & (steps <= last)]
    table = pd.DataFrame(np.interp(steps, c["step"], c["pseudo_dice"]) for c in curves)
    return steps, table.mean().to_numpy(), table.std().to_numpy()


def _draw_learning(
    curves: Mapping[str, tuple[Array, Array, Array]], by_curve: Styles, title: str
) -> Draw:
    """Draw learning curves: steps, mean and standard deviation over seeds, by model."""

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        lines = []
        for name, (steps, mean, sd) in curves.items():
            style = {**by_curve[name], "markevery": max(1, len(steps) // 8)}
            lines += axes.plot(steps, mean, label=name, **style)
            axes.fill_between(
                steps, mean - sd, mean + sd, color=style["color"], alpha=0.2, linewidth=0
            )
        axes.set(xlabel="optimiser steps", ylabel="pseudo Dice", title=title)
        add_legend(canvas, lines)

    return draw
