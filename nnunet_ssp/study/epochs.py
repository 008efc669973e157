"""A study's figure of the score against the epochs of pretraining (Kalapos and Gyires-Tóth 2022, Figure 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nnunet_ssp.reporting.figures import count_along
from nnunet_ssp.reporting.page import Cell
from nnunet_ssp.reporting.wording import rounded
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
from nnunet_ssp.study.spec import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Points = Sequence[tuple[int, Value]]


def epochs_figure(figure: Figure, results: Results) -> Drawn:
    """Draw a curve for each fold, and its gain over no pretraining as a table.

    The epochs of a model are those of its snapshot or, without one, of its whole pretraining.
    """
    shown = results.study.entries(figure)
    epochs = {model: results.pretraining_epochs(model) for model in shown["models"]}
    plots = []
    rows: list[list[Cell]] = []
    amounts = sorted({n for n in epochs.values() if n is not None})
    for test, name, score, file, title in each_plot(figure, results):
        curves: dict[str, Points] = {}
        for fold in shown["folds"]:
            points = [
                (n, results.value(Coordinates(model, fold, test, name, score), figure.seeds))
                for model, n in epochs.items()
                if n is not None
            ]
            if found := sorted((p for p in points if p[1].seeds), key=lambda point: point[0]):
                curves[fold] = found
                what = ", ".join(filter(None, (fold, title)))
                rows.append([what, *_gains(found, amounts)])
        if curves:
            draw = _draw(curves, styles(shown["folds"]), TITLES[score], title)
            alt = f"{TITLES[score]} against epochs of pretraining, {title}"
            plots.append(Plot(file, draw, alt))
    words = (
        "A colour for each set of training subjects. Large: mean over seeds, dots: seeds; dotted: from scratch. The "
        "table has the gain over no pretraining."
    )
    columns = ("Trained on", *(f"{n} epochs" for n in amounts if n)) if rows else ()
    return Drawn(
        figure.title,
        plots,
        caption(figure, results, fixed_words(figure, results), words),
        columns,
        rows,
    )


def _gains(points: Points, amounts: Sequence[int]) -> list[Cell]:
    """Return the differences to no pretraining, as text; None where one of the two is missing."""
    means = {n: value.mean for n, value in points}
    if 0 not in means:
        return [None for n in amounts if n]
    gains = {n: mean - means[0] for n, mean in means.items()}
    return [
        f"{'+' * (gains[n] >= 0)}{rounded(gains[n], 3)}" if n in gains else None
        for n in amounts
        if n
    ]


def _draw(curves: Mapping[str, Points], by_curve: Styles, ylabel: str, title: str) -> Draw:
    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        lines = []
        for name, points in curves.items():
            style = by_curve[name]
            pretrained = [point for point in points if point[0]]
            if scratch := [point for point in points if not point[0]]:
                axes.axhline(scratch[0][1].mean, color=style["color"], linestyle=":", linewidth=1)
            if pretrained:
                x, y = zip(*((n, value.mean) for n, value in pretrained), strict=True)
                lines += axes.plot(x, y, label=name, **style)
                add_seeds(axes, pretrained, style["color"])
        axes.set(xlabel="epochs of pretraining", ylabel=ylabel, title=title)
        counted = [n for points in curves.values() for n, _ in points if n]
        if counted:
            count_along(axes, min(counted), max(counted))
        add_legend(canvas, lines)

    return draw
