"""One self-contained HTML page: text, tables, plots and images in a single file.

The page asks the network for nothing (a content security policy forbids it), follows the reader's
light or dark setting, and fits a phone: wide tables scroll inside their own box.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ssp.cases import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    Array = np.ndarray[Any, Any]

Cell = str | int | float | None

# Okabe and Ito's colours: told apart by colour-blind readers, on white and on black.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5a646e; --paper: #fff; --line: #d6dbe0;
  --panel: #f3f5f7; --notice: #fff3d1; }
@media (prefers-color-scheme: dark) { :root { --ink: #d5dae0; --soft: #97a1ac; --paper: #101316;
  --line: #333a42; --panel: #1a1f24; --notice: #3a2f10; } }
* { box-sizing: border-box; }
body { max-width: 54rem; margin: 0 auto; padding: 1rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.4rem 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.notice { margin: 0; padding: .7rem .9rem; border-radius: .4rem; background: var(--notice); }
.scroll { overflow-x: auto; }
table { min-width: min(100%, 26rem); border-collapse: collapse;
  font-variant-numeric: tabular-nums; }
caption, figcaption, summary { color: var(--soft); font-size: .9rem; text-align: left; }
caption { padding-bottom: .4rem; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
details, figure, .scroll { margin: 1rem 0; }
summary { cursor: pointer; }
img { display: block; max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { figure > img { filter: brightness(.85); } }
figcaption { margin-top: .4rem; }
pre { padding: .7rem .9rem; border-radius: .4rem; background: var(--panel); overflow-x: auto;
  font-size: .85rem; line-height: 1.5; }
"""


class Page:
    """A page that grows from top to bottom and is written once.

    All text is escaped: arguments are plain text, never HTML.

    Args:
        title: Title of the window and first heading.
        notice: A line above the heading, for what must be read before anything else.
    """

    def __init__(self, title: str, notice: str = "") -> None:
        self.title = title
        self._parts: list[str] = []
        if notice:
            self._parts.append(f'<p class="notice">{html.escape(notice)}</p>')
        self._parts.append(f"<h1>{html.escape(title)}</h1>")

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph of running text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        """Add preformatted text, such as commands; line breaks are kept."""
        self._parts.append(f"<pre><code>{html.escape(text)}</code></pre>")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        caption: str = "",
        digits: int = 3,
        collapse_above: int = 20,
    ) -> None:
        """Add a table; a column of numbers is set flush right.

        Args:
            columns: Headings, one per column.
            rows: Cells, one sequence per row. Floats are rounded; None and NaN show as a dash.
            caption: Text above the table.
            digits: Decimals of the floats.
            collapse_above: A table with more rows is shown closed, under its caption.

        Raises:
            ValueError: A row has not as many cells as there are columns.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(
                    f"`row` (={list(row)}) must have one cell for each of the {len(columns)} "
                    f"columns, has {len(row)}."
                )
        numeric = [
            any(isinstance(row[i], int | float) for row in rows)
            and not any(isinstance(row[i], str) for row in rows)
            for i in range(len(columns))
        ]

        def line(cells: Sequence[Cell], tag: str) -> str:
            marks = (' class="number"' if number else "" for number in numeric)
            inner = (
                f"<{tag}{mark}>{html.escape(_text(cell, digits))}</{tag}>"
                for cell, mark in zip(cells, marks, strict=True)
            )
            return f"<tr>{''.join(inner)}</tr>"

        collapsed = len(rows) > collapse_above
        head = "" if collapsed or not caption else f"<caption>{html.escape(caption)}</caption>"
        body = "\n".join(line(row, "td") for row in rows)
        table = (
            f'<div class="scroll"><table>{head}<thead>{line(columns, "th")}</thead>\n'
            f"<tbody>{body}</tbody></table></div>"
        )
        if collapsed:
            summary = html.escape(f"{caption} ({len(rows)} rows)".lstrip())
            table = f"<details><summary>{summary}</summary>{table}</details>"
        self._parts.append(table)

    def image(self, png: bytes | Path, *, alt: str, caption: str = "") -> None:
        """Add a PNG image.

        Args:
            png: The file's path or its content.
            alt: What the image shows, for readers who do not see it.
            caption: Text under the image.

        Raises:
            ValueError: `png` is no PNG image.
        """
        content = png if isinstance(png, bytes) else png.read_bytes()
        if not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"`png` (={str(png)[:80]}) must be a PNG image.")
        self._figure(f'<img src="{_data_uri(content)}" alt="{html.escape(alt)}">', caption)

    def plot(
        self,
        draw: Callable[[Figure], None],
        *,
        alt: str,
        caption: str = "",
        size: tuple[float, float] = (5.6, 2.8),
    ) -> None:
        """Add a plot, drawn twice: for readers with light and with dark pages.

        Args:
            draw: Draws on the empty figure it is given.
            alt: What the plot shows, for readers who do not see it.
            caption: Text under the plot.
            size: Width and height in inches, at 110 pixels of the page each.
        """
        light, dark = (_data_uri(render(draw, size=size, dark=dark)) for dark in (False, True))
        image = f'<img width="{round(110 * size[0])}" src="{light}" alt="{html.escape(alt)}">'
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        self._figure(f"<picture>{source}{image}</picture>", caption)

    def html(self) -> str:
        """The whole document."""
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        body = "\n".join(self._parts)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<title>{html.escape(self.title)}</title>\n<link rel="icon" href="data:,">\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the document; a reader sees the old file or the new one, never half of it."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def _figure(self, content: str, caption: str) -> None:
        note = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>{content}{note}</figure>")


def render(
    draw: Callable[[Figure], None], *, size: tuple[float, float] = (5.6, 2.8), dark: bool = False
) -> bytes:
    """Draw a figure and return it as a PNG image.

    Args:
        draw: Draws on the empty figure it is given.
        size: Width and height in inches, at 150 pixels each.
        dark: Light lines on the page's dark background instead of dark lines on white.

    Returns:
        Content of a PNG file.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    ink, paper, line = ("#d5dae0", "#101316", "#333a42") if dark else ("#1c2126", "#fff", "#d6dbe0")
    settings: dict[Any, Any] = {
        "axes.edgecolor": line,
        "axes.facecolor": paper,
        "axes.grid": True,
        "axes.labelcolor": ink,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "figure.facecolor": paper,
        "grid.color": line,
        "legend.frameon": False,
        "text.color": ink,
        "xtick.color": ink,
        "ytick.color": ink,
    }
    buffer = io.BytesIO()
    # Figures made without pyplot: no global state, no display, nothing left open.
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def overlay_grid(
    rows: Mapping[str, tuple[Array, Mapping[str, Array]]], labels: Mapping[str, int]
) -> bytes:
    """Label maps in colour on images, one row per image and one column per label map.

    Each row shows one slice, cut to a window around the labels of its first label map.

    Args:
        rows: Image and named label maps by the row's name; every row has the same columns.
            Shape of each array: (slices, rows, columns), equal within a row.
        labels: Name and value of each class to paint.

    Returns:
        Content of a PNG file.
    """
    import numpy as np
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    columns = list(next(iter(rows.values()))[1])
    colours = dict(zip(labels, itertools.cycle(COLOURS), strict=False))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, (name, (volume, label_maps)) in zip(grid, rows.items(), strict=True):
            z, window = label_window(label_maps[columns[0]])
            image = volume[z][window]
            low, high = np.percentile(image, (1, 99))
            for axes, column in zip(line, columns, strict=True):
                axes.imshow(image, cmap="gray", vmin=low, vmax=high)
                paint = np.zeros((*image.shape, 4))
                for label, value in labels.items():
                    paint[label_maps[column][z][window] == value] = to_rgba(colours[label], 0.5)
                axes.imshow(paint)
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
            line[0].set_ylabel(name)
        for axes, column in zip(grid[0], columns, strict=True):
            axes.set_title(column)
        handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))

    return render(draw, size=(5.6, 5.4 / len(columns) * len(rows) + 0.6), dark=True)


def label_window(labels: Array) -> tuple[int, tuple[slice, slice]]:
    """The middle slice of the labelled ones, and its part around all labels.

    Args:
        labels: Label map; 0 is the background. Shape: (slices, rows, columns).

    Returns:
        Index of the slice, and the rows and columns of a square window that is twice as wide as
        the labels, or as the slice where that is less. Without labels: the middle slice, whole.
    """
    import numpy as np

    slices = np.flatnonzero(labels.any(axis=(1, 2)))
    if len(slices) == 0:
        return len(labels) // 2, (slice(None), slice(None))
    rows, columns = (np.flatnonzero(labels.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    side = 2 * int(max(np.ptp(rows), np.ptp(columns)) + 1)

    def around(found: Array, length: int) -> slice:
        start = max(0, min(int(found[0] + found[-1] + 1 - side) // 2, length - side))
        return slice(start, start + side)

    window = around(rows, labels.shape[1]), around(columns, labels.shape[2])
    return int(slices[len(slices) // 2]), window


def _text(cell: Cell, digits: int) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
