"""Parts of a study's figures that several kinds share: pictures, captions, and the style of curves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnunet_ssp.console import count_of
from nnunet_ssp.evaluation.statistics import MEAN
from nnunet_ssp.evaluation.volumes import UNITS
from nnunet_ssp.reporting.figures import MORE_COLOURS, SERIES_COLOURS, legend
from nnunet_ssp.reporting.page import Cell
from nnunet_ssp.study.results import Results, Value
from nnunet_ssp.study.spec import CURVE_SCORES, Axis, Figure
from nnunet_ssp.study.tables import capitalised, describe_axis, fold_sizes, matching

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

Draw = Callable[["Canvas"], None]
Styles = Mapping[str, Mapping[str, Any]]  # arguments of matplotlib's `plot` by curve

MARKERS = "osD^vP"  # a new one for every six curves
MOST_NAMED = 8  # incomplete runs that a caption names


@dataclass(frozen=True, eq=False)
class Plot:
    """One picture.

    Attributes:
        name: Part of its files' names within the figure; may be empty.
        draw: Draws it on an empty figure.
        alt: What it shows, for readers who do not see it.
    """

    name: str
    draw: Draw
    alt: str


@dataclass(frozen=True)
class Drawn:
    """A drawn figure of a study.

    Attributes:
        title: Its title.
        plots: Its pictures; none if no run is done.
        caption: Text that explains them.
        columns: Headings of a table below; may be empty.
        rows: Rows of that table.
    """

    title: str
    plots: list[Plot]
    caption: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()


def caption(figure: Figure, results: Results, *sentences: str) -> str:
    """Join the study's own caption, a kind's sentences, and what is incomplete."""
    numbers = (
        *matching(figure, results),
        fold_sizes(figure, results),
        _incomplete(figure, results),
    )
    words = (figure.caption, *sentences, *numbers)
    return " ".join(" ".join(sentence.split()) for sentence in words if sentence)


def _incomplete(figure: Figure, results: Results) -> str:
    """Name the models and folds that are shown with fewer seeds than planned."""
    shown = results.study.entries(figure)
    seeds = figure.seeds or results.study.seeds
    found = []
    for model, fold in itertools.product(shown["models"], shown["folds"]):
        n = sum(seed in results.done.get((model, fold), {}) for seed in seeds)
        if n < len(seeds):
            found.append(f"{model} on {fold} ({n} of {count_of(len(seeds), 'seed')})")
    more = f" and {len(found) - MOST_NAMED} more" * (len(found) > MOST_NAMED)
    return f"Incomplete: {'; '.join(found[:MOST_NAMED])}{more}." if found else ""


def each_plot(figure: Figure, results: Results) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield test, class and score of each picture, with its name and title; both are empty for a single picture."""
    shown = results.study.entries(figure)
    for score in shown["scores"]:
        classes = [MEAN] if score in (*UNITS, *CURVE_SCORES) else shown["classes"]
        for test, name in itertools.product(shown["tests"], classes):
            parts: dict[Axis, str] = {"tests": test, "classes": name, "scores": score}
            several = [axis for axis in parts if len(shown[axis]) > 1]
            title = ", ".join(parts[axis] for axis in several)
            yield test, name, score, "-".join(parts[axis] for axis in several), title


def fixed_words(figure: Figure, results: Results) -> str:
    """Describe what all pictures have in common."""
    shown = results.study.entries(figure)
    axes: tuple[Axis, ...] = ("tests", "classes")
    words = [describe_axis(axis, shown[axis][0], results) for axis in axes if len(shown[axis]) == 1]
    return f"{capitalised(', '.join(words))}." if words else ""


def add_seeds(axes: Axes, points: Sequence[tuple[float, Value]], colour: str) -> None:
    """Draw a dot for each seed."""
    dots = [(x, y) for x, value in points for y in value.seeds.values()]
    axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=3, alpha=0.6)


def styles(names: Sequence[str]) -> Styles:
    """Choose a colour and a marker for each curve, whether or not the others are drawn."""
    colours = itertools.cycle(SERIES_COLOURS + MORE_COLOURS)
    markers = (
        MARKERS[number // len(SERIES_COLOURS) % len(MARKERS)] for number in itertools.count()
    )
    return {
        name: {"color": colour, "marker": marker, "markersize": 5}
        for name, colour, marker in zip(names, colours, markers, strict=False)
    }


def add_legend(canvas: Canvas, lines: Sequence[Line2D]) -> None:
    """Add a legend if there is more than one curve."""
    if len(lines) > 1:
        legend(canvas, lines)
