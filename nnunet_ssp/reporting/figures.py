"""Figures as PNG images: box plots, curves, Bland-Altman plots, label maps on images."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from nnunet_ssp.reporting.names import wrapped

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

# Okabe and Ito's colours: told apart by colour-blind readers, on white and on black.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
COLOUR_WORDS = ("orange", "sky blue", "green", "pink", "blue", "red")  # what people call these
# Structures of the heart, the same in every picture; curves and boxes begin with the other colours.
STRUCTURE_COLOURS = dict(zip(("LV", "MYO", "RV"), COLOURS, strict=False))
SERIES_COLOURS = ("#0072B2", "#D55E00", "#CC79A7", *COLOURS[:3])
# For more than six curves: each as far as possible from all before it, in CIELAB.
MORE_COLOURS = ("#8811FF", "#00EE00", "#FF11CC", "#FF0066", "#DDCCAA", "#77AA11", "#776622")

PIXELS = 190  # of an inch; the width of a page's text is 4.8 inches of a picture
LETTERS_PER_INCH = 12  # of text in matplotlib's default size
VALUES_FOR_A_BOX = 5  # of fewer, quartiles say less than the values
# Ink, paper and lines of a page's themes. No grey has a contrast of 4.5 to both papers.
THEMES = {
    "light": ("#1c2126", "#fff", "#d6dbe0"),
    "dark": ("#d5dae0", "#101316", "#333a42"),
}
OVERLAY_WIDTH = 4.8  # inches; a wider picture would have tiny letters on a phone


def render(
    draw: Callable[[Figure], None],
    *,
    size: tuple[float, float] = (5.6, 2.8),
    theme: Literal["light", "dark"] = "light",
    format: Literal["png", "pdf"] = "png",
) -> bytes:
    """Draw a figure, and return the content of its file.

    Args:
        draw: Draws on the empty figure it is given.
        size: Width and height in inches, at `PIXELS` each.
        theme: Page of the figure: dark lines on white, or light lines on the page's dark background.
        format: Format of the file.
    """
    with _style(theme):
        figure = _drawn(draw, size)
        if format == "png":
            return _png(figure)
        buffer = io.BytesIO()
        # Without a date the same figure gives the same file.
        figure.savefig(buffer, format=format, dpi=PIXELS, metadata={"CreationDate": None})
        return buffer.getvalue()


def render_light_and_dark(
    draw: Callable[[Figure], None], size: tuple[float, float] = (5.6, 2.8)
) -> tuple[bytes, bytes]:
    """Draw a figure once, and return the PNG images for light and for dark pages, see `render`."""
    with _style("light"):
        figure = _drawn(draw, size)
        light = _png(figure)
    with _style("dark"):
        _recolour(figure, THEMES["light"], THEMES["dark"])
        return light, _png(figure)


def _style(theme: str) -> AbstractContextManager[None]:
    from cycler import cycler
    from matplotlib import style

    ink, paper, line = THEMES[theme]
    settings: dict[Any, Any] = {
        "axes.edgecolor": line,
        "axes.facecolor": paper,
        "axes.grid": True,
        "axes.labelcolor": ink,
        "axes.prop_cycle": cycler(color=SERIES_COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "figure.facecolor": paper,
        "figure.titlesize": "medium",  # of the letters that lines are counted by
        "grid.color": line,
        "legend.frameon": False,
        "pdf.fonttype": 42,  # text that drawing programs can edit
        "text.color": ink,
        "text.parse_math": False,  # a $ in a name is a $
        "xtick.color": ink,
        "ytick.color": ink,
    }
    # The style starts from matplotlib's own, because nnU-Net's progress.png leaves seaborn's behind.
    return cast(AbstractContextManager[None], style.context(["default", settings]))


def _drawn(draw: Callable[[Figure], None], size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    # Without pyplot no display is needed and nothing stays open.
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    return figure


def _png(figure: Figure) -> bytes:
    """Return a figure's image, and keep its layout for a second one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(PIXELS)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")
    buffer = io.BytesIO()
    # `savefig` draws all twice, the first time for a layout.
    canvas.print_png(buffer)
    return buffer.getvalue()


def _recolour(figure: Figure, before: Sequence[str], after: Sequence[str]) -> None:
    """Give a figure the colours of another theme."""
    from matplotlib.colors import to_rgba

    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_facecolor(after[1])  # no other white is the paper's
    replaced = {to_rgba(before[place]): after[place] for place in (0, 2)}
    for artist in figure.findobj():
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get, put = (getattr(artist, f"{way}_{name}", None) for way in ("get", "set"))
            colour = get() if get and put else None
            if colour is None or isinstance(colour, np.ndarray):  # those of a collection
                continue
            new = None if colour == "none" else replaced.get(to_rgba(colour))
            if new is not None and put is not None:
                put(new)


def box_plot(
    groups: Mapping[str, Mapping[str, Array]],
    ylabel: str,
    ends: tuple[float | None, float | None] = (None, None),
    title: str = "",
) -> Callable[[Figure], None]:
    """Make boxes (quartiles; whiskers to 1.5 times their distance) with every value as a dot.

    A series of fewer than `VALUES_FOR_A_BOX` values has no box, and larger dots.

    Args:
        groups: Values by group (a place on the x axis) and series (a colour), each of shape (n,). NaN are left
            out.
        ylabel: Name of the values.
        ends: Ends of the y axis, between which all values lie; by default matplotlib's.
        title: Title of the axes.

    Returns:
        A function that draws on an empty figure.
    """
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    colours = _colours(series)
    width = 0.8 / len(series)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        jitter = np.random.default_rng(0)
        for place, group in enumerate(groups.values()):
            for number, name in enumerate(series):
                values = group.get(name, np.empty(0))
                values = values[np.isfinite(values)]
                x = place + (number - (len(series) - 1) / 2) * width
                few = len(values) < VALUES_FOR_A_BOX
                drawn = [] if few else _box(axes, values, x, 0.8 * width, colours[name])
                spread = jitter.uniform(-0.2, 0.2, len(values)) * width
                style: dict[str, Any] = (
                    {"markersize": 9} if few else {"markersize": 3, "alpha": 0.7}
                )
                drawn += axes.plot(x + spread, values, ".", color=colours[name], **style)
                for artist in drawn:
                    artist.set_clip_on(False)  # a Dice of 1 lies on the axes' edge
        room = _letters(figure) // len(groups) - 2
        axes.set_xticks(range(len(groups)), [wrapped(name, max(room, 4)) for name in groups])
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set(ylabel=ylabel, ylim=ends)
        add_title(axes, title)
        axes.grid(False, axis="x")
        if len(series) > 1:
            _legend(figure, colours)

    return draw


def _box(axes: Axes, values: Array, x: float, width: float, colour: str) -> list[Artist]:
    drawn = axes.boxplot(
        [values],
        positions=[x],
        widths=width,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": (colour, 0.35), "edgecolor": colour},
        medianprops={"color": colour, "linewidth": 2},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        manage_ticks=False,
    )
    return [part for parts in drawn.values() for part in parts]


def curves_with_bands(
    curves: Mapping[str, tuple[Array, Array, Array]], xlabel: str, ylabel: str, title: str
) -> Callable[[Figure], None]:
    """Make curves with a band, for numbers from 0 to 1 at places from 0 to 1.

    Args:
        curves: Place (n,), mean (n,), and lower and upper limit (2, n), by the curve's name.
        xlabel: Name of the place.
        ylabel: Name of the mean.
        title: Title of the axes.

    Returns:
        A function that draws on an empty figure.
    """
    colours = _colours(curves)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (x, mean, limits) in curves.items():
            axes.plot(x, mean, color=colours[name], marker="o", markersize=3, clip_on=False)
            axes.fill_between(x, *limits, color=colours[name], alpha=0.2, linewidth=0)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=xlabel, ylabel=ylabel, title=title)
        if len(curves) > 1:
            _legend(figure, colours)

    return draw


def bland_altman(
    reference: Array, predicted: Array, lines: tuple[float, float, float], name: str, unit: str
) -> Callable[[Figure], None]:
    """Plot the difference of two methods against their mean (Bland and Altman 1986).

    Args:
        reference: Values of the one, of shape (n,).
        predicted: Values of the other, of shape (n,).
        lines: Lower limit of agreement, bias and upper limit.
        name: What is measured.
        unit: Its unit.

    Returns:
        A function that draws on an empty figure.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            (reference + predicted) / 2,
            predicted - reference,
            "o",
            color=SERIES_COLOURS[0],
            markersize=4,
            alpha=0.6,
            markeredgewidth=0,
        )
        for value, style in zip(lines, ("--", "-", "--"), strict=True):
            if np.isnan(value):  # a single subject has no limits
                continue
            axes.axhline(value, color=SERIES_COLOURS[1], linestyle=style, linewidth=1.2)
            axes.annotate(
                f"{value:+.1f}",
                (1, value),
                xytext=(4, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
            )
        axes.set(xlabel=f"mean of both ({unit})", ylabel=f"predicted − reference ({unit})")
        add_title(axes, name)

    return draw


def add_title(axes: Axes, title: str) -> None:
    """Give the only axes of a figure a title, in as many lines as it takes."""
    # It is centred above the axes, which leave room for numbers at their left alone.
    axes.set_title(wrapped(title, _letters(cast("Figure", axes.figure)) - 12))


def _letters(figure: Figure) -> int:
    return int(LETTERS_PER_INCH * figure.get_figwidth())


def count_along(axes: Axes, first: int, last: int) -> None:
    """Let an axis count whole things, such as epochs or frames; around a single one matplotlib would mark fractions."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(first - 0.5, max(last, first + 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _colours(names: Iterable[str]) -> dict[str, str]:
    return dict(zip(names, itertools.cycle(SERIES_COLOURS + MORE_COLOURS), strict=False))


def class_colours(names: Collection[str]) -> dict[str, str]:
    """Return the colours of classes: those of LV, MYO and RV are the same whatever else there is."""
    own = {name: STRUCTURE_COLOURS[name] for name in names if name in STRUCTURE_COLOURS}
    free = [c for c in (*COLOURS[3:], *COLOURS[:3], *MORE_COLOURS) if c not in own.values()]
    others = (name for name in names if name not in own)
    return {**own, **dict(zip(others, itertools.cycle(free), strict=False))}


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    legend(figure, [Patch(color=colour, label=name) for name, colour in colours.items()])


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend under a figure, and make the figure higher by what does not fit into one line.

    Args:
        figure: The figure.
        handles: The artists that it explains, with labels.
    """
    room = _letters(figure)
    for handle in handles:
        handle.set_label(wrapped(str(handle.get_label()), room - 8))
    # As many columns as fit the width; long names take more room.
    names = [str(handle.get_label()).splitlines() for handle in handles]
    longest = max(len(line) for name in names for line in name)
    columns = max(1, min(len(names), room // (8 + longest)))
    lines = math.ceil(sum(map(len, names)) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * (lines - 1))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


# -- label maps on images --------------------------------------------------------------------------


class Overlay(NamedTuple):
    """Labels in colour on one slice. Shape of each array: (rows, columns)."""

    image: Array
    # Label map to paint.
    labels: Array
    # A label map whose classes get an outline.
    outline: Array | None = None


def overlay_grid(
    rows: Mapping[str, Sequence[Overlay]],
    columns: Sequence[str],
    labels: Mapping[str, int | tuple[int, ...]],
    title: str = "",
) -> bytes:
    """Draw label maps in colour on images; the legend says what each colour means.

    The ground is dark on every page, as where images are read.

    Args:
        rows: Panels by the row's name, one for each column.
        columns: The columns' titles.
        labels: Name and value, or values, of each class to paint.
        title: Title of the whole, such as case and frame.

    Returns:
        The content of a PNG file.
    """
    colours = class_colours(labels)
    outlined = any(o.outline is not None for overlays in rows.values() for o in overlays)
    maps = [overlay.labels for overlays in rows.values() for overlay in overlays]
    there = [name for name, values in labels.items() if any(np.isin(m, values).any() for m in maps)]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, (name, overlays) in zip(grid, rows.items(), strict=True):
            for axes, overlay in zip(line, overlays, strict=True):
                _draw_overlay(axes, overlay, {colours[name]: labels[name] for name in labels})
            line[0].set_ylabel(wrapped(name, 18))
        for axes, column in zip(grid[0], columns, strict=True):
            axes.set_title(column)
        if title:
            figure.suptitle(wrapped(title, _letters(figure)))
        if there:
            _overlay_legend(figure, {name: colours[name] for name in there}, outlined)

    size = OVERLAY_WIDTH, OVERLAY_WIDTH / len(columns) * len(rows) + (0.9 if title else 0.6)
    return render(draw, size=size, theme="dark")


def _overlay_legend(figure: Figure, colours: Mapping[str, str], outlined: bool) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    if outlined:  # a white line, as on the images
        white: dict[str, Any] = {"facecolor": "#444", "edgecolor": "white", "linewidth": 0}
        patches.append(Patch(label="outline: reference", hatch="--", **white))
    legend(figure, patches)


def _draw_overlay(axes: Axes, overlay: Overlay, paint: Mapping[str, int | tuple[int, ...]]) -> None:
    from matplotlib.colors import to_rgba

    low, high = np.percentile(overlay.image, (1, 99))
    axes.imshow(overlay.image, cmap="gray", vmin=low, vmax=high)
    painted = np.zeros((*overlay.image.shape, 4))
    for colour, values in paint.items():
        painted[np.isin(overlay.labels, values)] = to_rgba(colour, 0.5)
    axes.imshow(painted)
    for values in paint.values():
        if overlay.outline is not None and (inside := np.isin(overlay.outline, values)).any():
            axes.contour(inside, levels=[0.5], colors="white", linewidths=0.8)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def label_window(labels: Array) -> tuple[slice, slice]:
    """Find the window of a stack's slices around all labels.

    Args:
        labels: Label map of shape (slices, rows, columns); 0 is the background.

    Returns:
        Rows and columns of a square window that is twice as wide as the labels, at most as wide as the slice; without
        labels all rows and columns.
    """
    rows, columns = (np.flatnonzero(labels.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    if len(rows) == 0:
        return slice(None), slice(None)
    side = 2 * int(max(np.ptp(rows), np.ptp(columns)) + 1)

    def around(found: Array, length: int) -> slice:
        start = max(0, min(int(found[0] + found[-1] + 1 - side) // 2, length - side))
        return slice(start, start + side)

    return around(rows, labels.shape[1]), around(columns, labels.shape[2])


def slices_to_show(labels: Array, count: int) -> list[int]:
    """Choose the middle slices of equal parts of the labelled stack; without labels, of the whole stack.

    Args:
        labels: Label map of shape (slices, rows, columns); 0 is the background.
        count: Number of parts: 1 gives the middle slice, 3 the middles of three thirds.
    """
    found = np.flatnonzero(labels.any(axis=(1, 2)))
    stack = found if len(found) else np.arange(len(labels))
    return [int(stack[(2 * part + 1) * len(stack) // (2 * count)]) for part in range(count)]
