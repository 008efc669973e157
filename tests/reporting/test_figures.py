from __future__ import annotations

import io

import matplotlib.style
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_ssp.reporting.figures import (
    PIXELS,
    SERIES_COLOURS,
    STRUCTURE_COLOURS,
    THEMES,
    Overlay,
    bland_altman,
    box_plot,
    class_colours,
    count_along,
    curves_with_bands,
    label_window,
    overlay_grid,
    render,
    render_light_and_dark,
    slices_to_show,
)


@pytest.fixture(autouse=True)
def matplotlibs_own_style():
    """`render` has its own style, even if others left one behind, as nnU-Net's progress.png does."""
    with matplotlib.style.context("default"):
        yield


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png))


def line(figure: Figure) -> None:
    figure.subplots().plot([0, 1], [0, 1])


def drawn(draw) -> Figure:
    """Draw and also render a figure for both themes, which finds more faults than drawing alone."""
    assert render_light_and_dark(draw) == (render(draw), render(draw, theme="dark"))
    figure = Figure()
    draw(figure)
    return figure


def test_render_gives_its_pixels_per_inch_and_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    assert pixels(render(line, size=(2, 1), theme="dark")).shape[:2] == (PIXELS, 2 * PIXELS)
    assert dict(matplotlib.rcParams) == before


def test_render_gives_the_same_pdf_each_time():
    first = render(line, format="pdf")
    assert first.startswith(b"%PDF")
    assert b"CreationDate" not in first
    assert render(line, format="pdf") == first


def test_themes_have_the_ground_of_their_page():
    corner = {t: pixels(render(line, theme=t))[0, 0] for t in THEMES}
    assert corner["light"][:3].min() == 1
    assert corner["dark"][:3].max() < 0.15


def contrast(one: str, other: str) -> float:
    """Contrast of two colours as WCAG 2.2 defines it, from 1 to 21."""

    def luminance(colour: str) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_from_its_ground():
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#7b8794", "#fff") == pytest.approx(3.66, abs=0.01)  # too pale
    for ink, paper, _ in THEMES.values():
        assert contrast(ink, paper) >= 4.5


def test_both_themes_are_as_if_drawn_apart():
    """Text, ticks, legends, white marks and the colours of the data included."""

    def draw(figure: Figure) -> None:
        for axes in figure.subplots(1, 2):
            axes.plot([0, 1], [0, 1], "o-", markeredgecolor="white", label="a")
            axes.errorbar([0, 1], [1, 0], [0.1, 0.2], capsize=3)
            axes.axvline(0.5, color="grey")
            axes.fill_between([0, 1], [0, 0], [1, 1], color="#fff", alpha=0.2)
            axes.annotate("b", (0.5, 0.5))
            axes.text(0, 1, "c", color="#E69F00")
            axes.set(title="d", xlabel="e")
        figure.legend(handles=axes.lines[:1], loc="outside lower center")

    light, dark = render_light_and_dark(draw, (4, 3))
    assert light == render(draw, size=(4, 3))
    assert dark == render(draw, size=(4, 3), theme="dark")
    assert light != dark


def test_boxes_are_the_quartiles_of_what_is_finite():
    values = np.array([1.0, 2, 3, 4, 5, np.nan]) / 5
    groups = {"LV": {"a": values, "b": values / 2}, "RV": {"a": values[:0]}}
    (axes,) = drawn(box_plot(groups, "Dice", ends=(0, 1))).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["LV", "RV"]
    medians = [
        float(own.get_ydata()[0])
        for own in axes.lines
        if own.get_linewidth() == 2 and len(own.get_ydata()) == 2
    ]
    np.testing.assert_allclose([m for m in medians if np.isfinite(m)], [0.6, 0.3])
    assert [len(own.get_ydata()) for own in axes.lines if own.get_marker() == "."] == [5, 5, 0, 0]
    assert axes.get_ylim() == (0, 1)


def test_a_dice_of_1_is_drawn_whole():
    """The edge of the axes does not cut dots and boxes that lie on it."""

    def height(values: list[float]) -> int:
        png = render(box_plot({"LV": {"a": np.array(values)}}, "Dice", (0, 1)), size=(3, 3))
        coloured = np.ptp(pixels(png)[..., :3], axis=2) > 0.2
        return int(coloured.any(axis=1).sum())

    assert height([1.0, 1.0]) == pytest.approx(height([0.5, 0.5]), abs=1)


@pytest.mark.parametrize(("n", "boxes"), [(1, 0), (4, 0), (5, 1)])
def test_few_values_are_dots_without_a_box(n: int, boxes: int):
    (axes,) = drawn(box_plot({"LV": {"a": np.linspace(0.2, 0.8, n)}}, "Dice", (0, 1))).axes
    (dots,) = [own for own in axes.lines if own.get_marker() == "."]
    assert len(dots.get_ydata()) == n
    assert len(axes.patches) == boxes
    assert dots.get_markersize() == (3 if boxes else 9)


@pytest.mark.parametrize("labels", [("LV", "MYO", "RV"), ("RV", "MYO", "LV"), ("scar", "RV", "LV")])
def test_a_structure_has_one_colour_whatever_the_order_of_the_labels(labels: tuple[str, ...]):
    painted = class_colours(labels)
    assert list(painted) != [] and len(set(painted.values())) == 3
    for name in {"LV", "MYO", "RV"} & set(labels):
        assert painted[name] == STRUCTURE_COLOURS[name]
    # Curves and boxes of models or phases do not begin with a structure's colour.
    assert not set(SERIES_COLOURS[:3]) & set(STRUCTURE_COLOURS.values())


def test_a_box_plot_has_a_title():
    (axes,) = drawn(box_plot({"LV": {"a": np.ones(3)}}, "Dice", (0, 1), "Dataset1, a")).axes
    assert axes.get_title() == "Dataset1, a"


NAMES = (
    "Dataset999_Phantom: first labelled frame of each subject",
    "Dataset131_Cardiac_MRI_Hospital, " * 4,
)


@pytest.mark.parametrize("title", NAMES)
def test_long_titles_break_into_lines_and_are_not_cut(title: str, monkeypatch: pytest.MonkeyPatch):
    figures = []
    own = FigureCanvasAgg.print_png

    def keep(canvas: FigureCanvasAgg, *given) -> None:
        figures.append(canvas.figure)
        own(canvas, *given)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    render(box_plot({"LV": {"a": np.ones(3)}}, "Dice", title=title), size=(4.8, 3.2))
    slice_ = np.eye(9)
    overlay_grid({"a": [Overlay(slice_, slice_.astype(int))] * 3}, "abc", {"LV": 1}, title)
    titles = [figures[0].axes[0].title, figures[1]._suptitle]
    for figure, text in zip(figures, titles, strict=True):
        place = text.get_window_extent()
        assert 0 <= place.x0 < place.x1 <= figure.bbox.width
        assert "".join(text.get_text().split()) == "".join(title.split())


def test_one_series_needs_no_legend():
    assert drawn(box_plot({"LV": {"a": np.ones(3)}}, "Dice")).legends == []
    two = drawn(box_plot({"LV": {"a": np.ones(3), "b": np.ones(3)}}, "Dice"))
    assert [text.get_text() for text in two.legends[0].get_texts()] == ["a", "b"]


@pytest.mark.parametrize("names", [[f"m{i}" for i in range(13)], ["long name " * 9, "b", "c" * 90]])
def test_a_legend_takes_its_room_from_nothing_else(names):
    heights = []
    for series in (["a", "b"], names):
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        box_plot({"LV": dict.fromkeys(series, np.ones(3))}, "Dice")(figure)
        figure.savefig(io.BytesIO())
        (axes,), (legend,) = figure.axes, figure.legends
        heights.append(axes.get_window_extent().height)
        assert legend.get_window_extent().x0 >= 0
        assert legend.get_window_extent().x1 <= figure.bbox.width
    assert heights[1] == pytest.approx(heights[0], rel=0.1)


def test_thirteen_series_have_colours_of_their_own():
    (axes,) = drawn(box_plot({"LV": {f"m{i}": np.ones(3) for i in range(13)}}, "Dice")).axes
    assert len({own.get_color() for own in axes.lines if own.get_marker() == "."}) == 13


def test_names_are_no_formulas():
    drawn(box_plot({"$x_%": {"cost $5": np.ones(3), r"$\nothing$": np.ones(3)}}, "Dice"))


def test_bland_altman_shows_differences_over_means_and_the_three_lines():
    reference, predicted = np.array([10.0, 20]), np.array([12.0, 18])
    (axes,) = drawn(bland_altman(reference, predicted, (-3.0, 0.5, 4.0), "LV EDV", "ml")).axes
    dots, *lines = axes.lines
    assert dots.get_xdata().tolist() == [11, 19]
    assert dots.get_ydata().tolist() == [2, -2]
    assert [own.get_ydata()[0] for own in lines] == [-3, 0.5, 4]
    assert [text.get_text() for text in axes.texts] == ["-3.0", "+0.5", "+4.0"]
    nan = float("nan")
    (single,) = drawn(bland_altman(reference[:1], predicted[:1], (nan, 2, nan), "EF", "%")).axes
    assert [text.get_text() for text in single.texts] == ["+2.0"]


def test_curves_have_bands():
    x, mean = np.array([0.25, 0.75]), np.array([0.5, 0.6])
    limits = np.array([[0.4, 0.5], [0.6, 0.7]])
    curves = {"a": (x, mean, limits), "b": (x, mean + 0.1, limits)}
    (axes,) = drawn(curves_with_bands(curves, "place", "Dice", "LV")).axes
    assert axes.get_title() == "LV"
    assert [own.get_ydata().tolist() for own in axes.lines] == [[0.5, 0.6], [0.6, 0.7]]
    assert len(axes.collections) == 2


def test_label_window_is_a_square_around_the_labels_within_the_slice():
    labels = np.zeros((6, 40, 30), int)
    labels[2:5, 20:25, 0:4] = 3  # slices 2, 3, 4; five rows from 20, four columns at the border
    assert label_window(labels) == (slice(17, 27), slice(0, 10))
    labels[2, 0, 29] = 1
    rows, columns = label_window(labels)
    assert labels[0][rows, columns].shape == (40, 30)
    assert label_window(np.zeros((6, 4, 4))) == (slice(None), slice(None))


@pytest.mark.parametrize(
    ("labelled", "count", "expected"),
    [
        ([2, 3, 4], 1, [3]),
        ([2, 3, 4, 5], 1, [4]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 3, [2, 5, 8]),
        ([4], 3, [4, 4, 4]),
        ([], 1, [5]),
    ],
)
def test_labelled_slices_are_the_middles_of_equal_parts(labelled, count, expected):
    labels = np.zeros((10, 4, 4), int)
    labels[labelled, 1, 1] = 2
    assert slices_to_show(labels, count) == expected


def test_the_styles_of_others_do_not_matter():
    import matplotlib

    expected = render(line)
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert render(line) == expected


def test_overlay_grid_paints_each_class_and_draws_outlines():
    image = np.random.default_rng(0).normal(size=(20, 30))
    nothing = np.zeros((20, 30), int)
    labels = nothing.copy()
    labels[5:15, 5:25] = 1
    many = {f"class {i}": i for i in range(1, 8)} | {"region": (1, 8)}  # more than colours

    def picture(overlay: Overlay, classes) -> np.ndarray:
        grid = overlay_grid({"row": [overlay, overlay]}, ["a", "b"], classes)
        return pixels(grid)[:-100]  # above the legend, only paint has a colour

    coloured = [
        (np.ptp(picture(Overlay(image, own), classes)[..., :3], axis=2) > 0.25).mean()
        for own, classes in ((nothing, {"LV": 1}), (labels, {"LV": 1}), (labels, many))
    ]
    assert coloured[0] == 0
    assert min(coloured[1:]) > 0.05
    plain, outlined = (picture(Overlay(image, nothing, own), {"LV": 1}) for own in (None, labels))
    assert (plain != outlined).any()


@pytest.mark.parametrize(("first", "last"), [(1, 1), (0, 0), (0, 1), (1, 100), (0, 24)])
def test_epochs_and_frames_are_counted_in_whole_numbers(first: int, last: int):
    axes = Figure().subplots()
    axes.plot(range(first, last + 1), range(first, last + 1))
    count_along(axes, first, last)
    low, high = axes.get_xlim()
    ticks = [float(tick) for tick in axes.get_xticks() if low <= tick <= high]
    assert low < first <= last < high
    assert ticks and all(tick.is_integer() for tick in ticks)
