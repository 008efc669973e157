"""One self-contained HTML page: text, tables, plots and images in a single file.

The page loads nothing from the network: a content security policy forbids it. It follows the reader's
light or dark setting, and fits a phone: wide tables scroll inside their own box.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from nnunet_ssp.files.atomic import atomic_write
from nnunet_ssp.reporting.figures import render_light_and_dark
from nnunet_ssp.reporting.names import LONG, pieces
from nnunet_ssp.reporting.player import SCRIPT, Sprites, markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHORT_NAME = 10  # letters of a name that needs no break
SLIM = 12  # letters of a name in a first column that takes no more width than it needs
SHORT = 30  # letters of a text that is set as a number: 0.89 ± 0.01
PIXELS_PER_INCH = 110  # of the page; images have more, for sharper screens

GAP = "–"  # stands in a table for a missing value


class Link(NamedTuple):
    """Text that leads to a file beside the page, or to a row on it."""

    text: str
    # Path relative to the page, with `/`; or `#` and the row's name.
    target: str


class Noted(NamedTuple):
    """Text with smaller lines below it, each of one or more parts."""

    text: str | Link
    lines: Sequence[Sequence[str | Link]]


Cell = str | int | float | Link | Noted | None

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5a646e; --paper: #fff; --line: #d6dbe0;
  --panel: #f3f5f7; --notice: #fff3d1; --link: #0b5cad; --shadow: #0006; }
@media (prefers-color-scheme: dark) { :root { --ink: #d5dae0; --soft: #97a1ac; --paper: #101316;
  --line: #333a42; --panel: #1a1f24; --notice: #3a2f10; --link: #7db7f2; --shadow: #fff6; } }
* { box-sizing: border-box; }
body { max-width: 58rem; margin: 0 auto; padding: 1rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.4rem 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.notice { margin: .7rem 0; padding: .7rem .9rem; border-radius: .4rem; background: var(--notice); }
.notice p, .notice ul { margin: 0; }
.notice ul { padding-left: 1.2rem; }
/* A wide table shows that it scrolls: a bar that stays, and shadows that its ends cover. */
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 1rem, transparent) 0 0 / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 1rem, transparent) 100% 0 / 2rem 100% no-repeat local,
  linear-gradient(to right, var(--shadow), transparent) 0 0 / .8rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shadow), transparent) 100% 0 / .8rem 100% no-repeat scroll; }
.scroll::-webkit-scrollbar { height: .6rem; background: var(--line); border-radius: .3rem; }
.scroll::-webkit-scrollbar-thumb { background: var(--soft); border-radius: .3rem; }
@supports not selector(::-webkit-scrollbar) { .scroll { scrollbar-color: var(--soft) var(--line); } }
table { min-width: min(100%, 26rem); border-collapse: collapse;
  font-variant-numeric: tabular-nums; }
figcaption, summary, .note { color: var(--soft); font-size: .9rem; text-align: left; }
th, td { padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
td:not(:last-child) { white-space: nowrap; }
/* A long name takes lines in place of the table's width, and breaks where `_breakable` lets it. */
td:first-child:not(.number), td.words { white-space: normal; overflow-wrap: normal; min-width: 13ch; }
.slim td:first-child { min-width: 0; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
/* What is left for the last column on a phone is no ribbon of words. */
td:last-child:not(.number) { overflow-wrap: normal; min-width: 9rem; }
td .note { display: block; white-space: nowrap; }
td:first-child .note { white-space: normal; }
.number .note { text-align: right; }
tr:target { background: var(--notice); }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: .15em; }
td a { color: inherit; text-decoration-color: var(--soft); }
.number { text-align: right; }
td.number { white-space: nowrap; }
details, figure, .scroll { margin: 1rem 0; }
summary { cursor: pointer; }
img { display: block; max-width: 100%; height: auto; }
.wide img { width: 100%; }
.scroll > img { width: 100%; max-width: none; min-width: 32rem; }
/* The letters of a plot are about as large as those of a gallery and of the text. */
.wide picture img { max-width: 40rem; }
[hidden] { display: none; }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr));
  gap: 0 1.5rem; margin: 1rem 0; }
.gallery figure { margin: .5rem 0; max-width: 29rem; }
.gallery img { width: 100%; }
.sheet { display: grid; gap: .5rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(45%, 18rem), 1fr)); }
.sheet figure { margin: 0; }
.sheet img { width: 100%; image-rendering: pixelated; }
.sheet figcaption { margin: .1rem 0; }
.player canvas { display: block; width: 100%; max-width: 30rem; background: #000; }
.player label { display: flex; gap: .6rem; align-items: center; max-width: 30rem; margin: .5rem 0; }
.player label > span { min-width: 3rem; }
.player input[type=range] { flex: 1; min-width: 0; }
.player output { min-width: 6.5rem; font-variant-numeric: tabular-nums; }
.player button { font: inherit; padding: .2rem .8rem; }
@media (prefers-color-scheme: dark) { figure > img { filter: brightness(.85); } }
figcaption { margin: .4rem 0; }
figcaption + .scroll { margin: 0; }
pre { padding: .7rem .9rem; border-radius: .4rem; background: var(--panel); overflow-wrap: anywhere;
  white-space: pre-wrap; font-size: .85rem; line-height: 1.5; }
"""


class Page:
    """A page that grows from top to bottom and is written once.

    All text is escaped: arguments are plain text, never HTML.

    Args:
        title: Title of the window and first heading.
        notice: Line above the heading that must be read first.
        drawn: Called with the number of figures so far, after each.
    """

    def __init__(
        self, title: str, notice: str = "", drawn: Callable[[int], None] = lambda number: None
    ) -> None:
        self.title = title
        self._drawn, self._n_drawn = drawn, 0
        self._parts: list[str] = []
        self._moves = False
        if notice:
            self._parts.append(f'<p class="notice">{html.escape(notice)}</p>')
        self._parts.append(f"<h1>{_breakable(title)}</h1>")

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{_breakable(text)}</h2>")

    def remark(self, note: str) -> None:
        """Add a note; one that begins with WARNING stands out as what must be read.

        Lines of a warning that begin with `* ` are its list.
        """
        if note.startswith("WARNING"):
            first, *items = map(html.escape, note.split("\n* "))
            inner = f"<p>{first}</p><ul><li>{'</li><li>'.join(items)}</li></ul>" if items else first
            tag = "div" if items else "p"
            self._parts.append(f'<{tag} class="notice" role="note">{inner}</{tag}>')
        else:
            self.paragraph(f"Note: {note}")

    def paragraph(self, *text: str | Link) -> None:
        """Add a paragraph of text and links."""
        self._parts.append(f"<p>{''.join(map(_inline, text))}</p>")

    def code(self, text: str, *, summary: str = "") -> None:
        """Add preformatted text, such as commands; line breaks are kept.

        Args:
            text: The text.
            summary: Title under which the text is collapsed.
        """
        code = f"<pre><code>{html.escape(text)}</code></pre>"
        self._parts.append(_collapsed(summary, code) if summary else code)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        caption: str = "",
        digits: int = 3,
        collapse_above: int = 20,
        names: Sequence[str] = (),
    ) -> None:
        """Add a table; columns of numbers, or of short texts that begin with one, are set flush right.

        The first column is set flush right only if it holds no text.

        Args:
            columns: Headings, one per column.
            rows: Cells, one sequence per row. Floats are rounded; None and NaN show as a dash.
            caption: Text above the table.
            digits: Decimals of the floats.
            collapse_above: A table with more rows is collapsed under its caption.
            names: Names by which a `Link` leads to the rows, one for each; empty for rows without a link.

        Raises:
            ValueError: A row does not have one cell for each column, or a link leads outside the folder.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(
                    f"`row` (={list(row)}) must have one cell for each of the {len(columns)} "
                    f"columns, has {len(row)}."
                )
        last = len(columns) - 1
        marks = [_mark([row[i] for row in rows], i, last) for i in range(len(columns))]

        def line(cells: Sequence[Cell], tag: str, name: str = "") -> str:
            inner = (
                f"<{tag}{mark}>{_content(cell, digits)}</{tag}>"
                for cell, mark in zip(cells, marks, strict=True)
            )
            target = f' id="{html.escape(name)}"' if name else ""
            return f"<tr{target}>{''.join(inner)}</tr>"

        headings = [name.replace(" %", "\u00a0%") for name in columns]
        collapsed = len(rows) > collapse_above
        named = zip(rows, names or [""] * len(rows), strict=True)
        body = "\n".join(line(row, "td", name) for row, name in named)
        slim = ' class="slim"' if all(len(_plain(row[0])) <= SLIM for row in rows) else ""
        table = (
            f'<div class="scroll"><table{slim}><thead>{line(headings, "th")}</thead>\n'
            f"<tbody>{body}</tbody></table></div>"
        )
        if collapsed:
            table = _collapsed(f"{caption} ({len(rows)} rows)".lstrip(), table)
        elif caption:
            # Not a <caption>, which would be as wide as the table and scroll with it.
            table = f"<figure><figcaption>{html.escape(caption)}</figcaption>{table}</figure>"
        self._parts.append(table)

    def image(
        self,
        png: bytes | Path,
        *,
        alt: str,
        caption: str = "",
        width: int | None = None,
        wide: bool = False,
        summary: str = "",
        scrolls: bool = False,
    ) -> None:
        """Add a PNG image.

        Args:
            png: The file's path or its content.
            alt: What the image shows, for readers who do not see it.
            caption: Text under the image.
            width: Largest width in pixels of the page; by default the width of the image.
            wide: Whether the image takes the width of the text.
            summary: Title under which the image is collapsed.
            scrolls: Whether it keeps its size on a phone and scrolls, for pictures with words in them.

        Raises:
            ValueError: `png` is no PNG image.
        """
        content = png if isinstance(png, bytes) else png.read_bytes()
        if not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"`png` (={str(png)[:80]}) must be a PNG image.")
        size = "" if width is None else f' width="{width}"'
        image = f'<img{size} src="{_data_uri(content)}" alt="{html.escape(alt)}">'
        image = f'<div class="scroll">{image}</div>' if scrolls else image
        figure = _figure(image, caption, wide)
        self._parts.append(_collapsed(summary, figure) if summary else figure)

    def plot(
        self,
        draw: Callable[[Figure], None],
        *,
        alt: str,
        caption: str = "",
        size: tuple[float, float] = (5.6, 2.8),
    ) -> None:
        """Add a plot as wide as the text on a phone, drawn twice: for light and for dark pages.

        Args:
            draw: Draws on the empty figure it is given.
            alt: What the plot shows, for readers who do not see it.
            caption: Text under the plot.
            size: Width and height in inches; they decide the size of the letters.
        """
        self._parts.append(_plot(draw, alt, caption, size, wide=True))
        self._count_figure()

    def gallery(
        self,
        plots: Sequence[tuple[Callable[[Figure], None], str]],
        *,
        caption: str = "",
        size: tuple[float, float] = (3.4, 2.6),
    ) -> None:
        """Add small plots, side by side where they fit and below each other on a phone.

        Args:
            plots: For each plot the function that draws it and its text, see `plot`.
            caption: Text under all of them.
            size: Width and height of each in inches.
        """
        drawn = []
        for draw, alt in plots:
            drawn.append(_plot(draw, alt, "", size))
            self._count_figure()
        inner = "\n".join(drawn)
        note = f'<p class="note">{html.escape(caption)}</p>' if caption else ""
        self._parts.append(f'<div class="gallery">{inner}</div>{note}')

    def sheet(self, images: Sequence[tuple[bytes, str]], alt: str) -> None:
        """Add small images with captions: as many in a row as fit, two on a phone.

        Args:
            images: For each its PNG content and its caption.
            alt: What all of them show.
        """
        figures = (
            _figure(f'<img src="{_data_uri(png)}" alt="{html.escape(f"{alt}: {text}")}">', text)
            for png, text in images
        )
        self._parts.append(f'<div class="sheet">{"".join(figures)}</div>')

    def _count_figure(self) -> None:
        self._n_drawn += 1
        self._drawn(self._n_drawn)

    def player(self, sprites: Sprites, caption: str = "") -> None:
        """Add a cine with sliders for frame and slice; a page has at most one."""
        self._moves = True
        images, contours = _data_uri(sprites.images), _data_uri(sprites.contours)
        self._parts.append(_figure(markup(sprites, images, contours), caption))

    def html(self) -> str:
        """Return the whole document."""
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        if self._moves:  # this script and no other
            digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
            policy += f"; script-src 'sha256-{digest}'"
        body = "\n".join(self._parts)
        script = f"<script>{SCRIPT}</script>\n" if self._moves else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<title>{html.escape(self.title)}</title>\n<link rel="icon" href="data:,">\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n{script}</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the document; a reader sees the old file or the new one, never a part."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")


def _plot(
    draw: Callable[[Figure], None],
    alt: str,
    caption: str,
    size: tuple[float, float],
    wide: bool = False,
) -> str:
    light, dark = map(_data_uri, render_light_and_dark(draw, size))
    image = (
        f'<img width="{round(PIXELS_PER_INCH * size[0])}" src="{light}" alt="{html.escape(alt)}">'
    )
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return _figure(f"<picture>{source}{image}</picture>", caption, wide)


def _figure(content: str, caption: str, wide: bool = False) -> str:
    mark = ' class="wide"' if wide else ""
    note = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure{mark}>{content}{note}</figure>"


def _collapsed(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _content(cell: Cell, digits: int) -> str:
    """Write a cell as HTML."""
    if isinstance(cell, Noted):
        lines = (" · ".join(map(_inline, parts)) for parts in cell.lines)
        shown = _inline(cell.text, _breakable)
        return shown + "".join(f'<span class="note">{line}</span>' for line in lines)
    return _inline(cell if isinstance(cell, Link) else _text(cell, digits), _breakable)


def _inline(text: str | Link, escape: Callable[[str], str] = html.escape) -> str:
    if isinstance(text, str):
        return escape(text)
    # Links lead only to files beside the page, so that they still work when all are moved together.
    if re.match(r"[a-zA-Z][\w+.-]*:|/", text.target):
        raise ValueError(f"`target` (={text.target}) must be a relative path or # and a name.")
    return f'<a href="{html.escape(quote(text.target, safe="/#+,="))}">{escape(text.text)}</a>'


def _mark(cells: Sequence[Cell], place: int, last: int) -> str:
    """Return the class of a column's cells: numbers, or words within the table that may take several lines."""
    if _is_numeric(cells, text=place > 0):
        return ' class="number"'
    texts = [cell.text if isinstance(cell, Link) else cell for cell in cells]
    long = any(isinstance(text, str) and len(text) > LONG for text in texts)
    return ' class="words"' if long and 0 < place < last else ""


def _plain(cell: Cell) -> str:
    words = cell.text if isinstance(cell, Noted) else cell
    return str(words.text if isinstance(words, Link) else words)


def _breakable(text: str) -> str:
    """Return a text as HTML whose long names can break: behind signs, before capitals, and never within a word."""
    return " ".join(_breakable_name(word) for word in text.split(" "))


def _breakable_name(name: str) -> str:
    parts = [name] if len(name) <= SHORT_NAME else pieces(name)
    return "<wbr>".join(map(html.escape, parts))


def _is_numeric(cells: Sequence[Cell], text: bool) -> bool:
    """Whether a column holds numbers only, besides gaps; with `text`, also short texts that begin with a number."""
    words = [cell.text if isinstance(cell, Noted) else cell for cell in cells]
    plain = [word.text if isinstance(word, Link) else word for word in words]
    filled = [cell for cell in plain if cell not in (None, GAP)]
    return (text or bool(filled)) and all(
        text and re.match(rf"[+-]?\d.{{,{SHORT}}}$", cell) is not None
        if isinstance(cell, str)
        else True
        for cell in filled
    )


def _text(cell: str | int | float | None, digits: int) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return GAP
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
