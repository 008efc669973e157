"""The tables of a study: filled, and written as Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

import pandas as pd

from nnunet_ssp.evaluation.statistics import MEAN
from nnunet_ssp.evaluation.volumes import UNITS
from nnunet_ssp.reporting.page import GAP
from nnunet_ssp.reporting.wording import listing, rounded
from nnunet_ssp.study.convergence import STILL
from nnunet_ssp.study.data import ON_TEST
from nnunet_ssp.study.published import Published, read_published
from nnunet_ssp.study.results import DISTANCES, TITLES, Coordinates, Results, Value
from nnunet_ssp.study.spec import (
    AREA,
    AXES,
    CURVE_SCORES,
    DICE,
    RISE,
    STEPS,
    Axis,
    Figure,
    Table,
)

HEADINGS: dict[Axis, str] = {
    "models": "Model",
    "folds": "Trained on",
    "tests": "Tested on",
    "classes": "Class",
    "scores": "Score",
}
# Names of scores at the head of a row or column; the caption gives the rest.
SHORT = (
    TITLES
    | {name: f"{name} ({unit})" for name, unit in UNITS.items()}
    | {AREA: "Area", STEPS: "Steps", RISE: "Rise"}
)


@dataclass(frozen=True)
class Entry:
    """One place in a table.

    Attributes:
        place: Its coordinates.
        value: Score of the finished runs.
        spread: Standard deviation that the table shows; may be NaN.
        published: Published number to compare with.
        runs: Folders of the finished runs, below the study's.
    """

    place: Coordinates
    value: Value
    spread: float
    published: Published | None
    runs: tuple[str, ...]

    def text(self, digits: int) -> str:
        """Write mean and spread; a dash if no run is done or none has a value."""
        if not self.value.seeds:
            return GAP
        mean = rounded(self.value.mean, digits)
        return mean if math.isnan(self.spread) else f"{mean} ± {rounded(self.spread, digits)}"

    @property
    def note(self) -> str:
        """Numbers of missing seeds and values, and how often a class is missed; empty if all is there."""
        known, done, wanted = len(self.value.seeds), self.value.done, self.value.wanted
        notes = [f"{done} of {wanted} seeds"] * (0 < done < wanted)
        notes += [f"a value in {known} of {done}"] * (0 < known < done)
        return ", ".join([*notes, *[f"{self.value.missed} missed"] * bool(self.value.missed)])


@dataclass(frozen=True)
class Filled:
    """A table of a study with its numbers.

    Attributes:
        table: Its specification.
        caption: Text that explains it.
        sources: Sources of the published numbers; empty without any.
        rows: Names on the row axes, one tuple for each row.
        columns: Names on the column axes, one tuple for each column.
        entries: Entries by row and column.
    """

    table: Table
    caption: str
    sources: str
    rows: list[tuple[str, ...]]
    columns: list[tuple[str, ...]]
    entries: list[list[Entry]]

    @property
    def headings(self) -> list[str]:
        """Headings of the columns that name the rows."""
        return [HEADINGS[axis] for axis in self.table.rows]

    @property
    def row_names(self) -> list[list[str]]:
        """The rows' names for readers."""
        return [_for_readers(self.table.rows, row) for row in self.rows]

    @property
    def column_names(self) -> list[list[str]]:
        """The columns' names for readers."""
        return [_for_readers(self.table.columns, column) for column in self.columns]

    def full_caption(self, where: str) -> str:
        """Write the caption, with the place and source of the published numbers."""
        return f"{self.caption} {where}: {self.sources}." if self.sources else self.caption

    def texts(self, row: int) -> list[str]:
        """Write the row's values with their notes."""
        return [
            f"{entry.text(self.table.digits)}{f' ({entry.note})' if entry.note else ''}"
            for entry in self.entries[row]
        ]


def _for_readers(axes: Sequence[Axis], names: Sequence[str]) -> list[str]:
    paired = zip(axes, names, strict=True)
    return [SHORT.get(name, name) if axis == "scores" else name for axis, name in paired]


def fill_table(table: Table, results: Results) -> Filled:
    """Fill a table with the values of the finished runs.

    Raises:
        ValueError: It names an unknown class, score or table of published numbers.
    """
    shown = results.study.entries(table)
    rows = list(product(*(shown[axis] for axis in table.rows)))
    columns = list(product(*(shown[axis] for axis in table.columns)))
    fixed = {axis: names[0] for axis, names in shown.items()}
    published = read_published(table.published) if table.published else {}

    def entry(row: tuple[str, ...], column: tuple[str, ...]) -> Entry:
        names = fixed | dict(zip(table.rows, row, strict=True))
        names |= dict(zip(table.columns, column, strict=True))
        place = Coordinates(*(names[axis] for axis in AXES))
        value = results.value(place, table.seeds)
        runs = results.done.get((place.model, place.fold), {})
        printed = (place.model, place.fold, place.test, results.structure_of(place.class_name))
        return Entry(
            place,
            value,
            value.sd_seeds if table.spread == "seeds" else value.sd_subjects,
            published.get(printed) if place.score == DICE else None,
            tuple(runs[seed].folder for seed in table.seeds or results.study.seeds if seed in runs),
        )

    entries = [[entry(row, column) for column in columns] for row in rows]
    sources = [e.published for line in entries for e in line if e.published is not None]
    return Filled(table, _caption(table, results), _sources(sources), rows, columns, entries)


# -- captions --------------------------------------------------------------------------------------


def _caption(table: Table, results: Results) -> str:
    sentences = [
        table.caption,
        _what(table, results),
        *matching(table, results),
        fold_sizes(table, results),
    ]
    return " ".join(" ".join(sentence.split()) for sentence in sentences if sentence)


def _what(table: Table, results: Results) -> str:
    """Describe the values, and the subjects and seeds that they cover."""
    shown = results.study.entries(table)
    seeds = table.seeds or results.study.seeds
    of_subjects = not {*shown["scores"]} <= {*CURVE_SCORES}
    of_classes = any(score not in (*UNITS, *CURVE_SCORES) for score in shown["scores"])
    fixed = [
        describe_axis(axis, shown[axis][0], results)
        for axis in reversed(AXES)
        if axis not in (*table.rows, *table.columns) and (axis != "classes" or of_classes)
    ]
    if len(shown["scores"]) > 1:
        fixed += ["absolute errors of the clinical metrics"] * bool(UNITS.keys() & shown["scores"])
        fixed += ["area: mean pseudo Dice of the learning curve"] * (AREA in shown["scores"])
    if STEPS in shown["scores"]:
        fixed.append(
            "steps: where the running mean of three points of the learning curve first reaches the end of the "
            "baseline’s with the same seed; a run that never does has no value, and is counted"
        )
    if RISE in shown["scores"]:
        fixed.append(
            "rise: the running mean of three points of the learning curve at its end, minus that at four fifths of the "
            f"steps; below {STILL} a training no longer improves"
        )
    means = ["mean over subjects, each the mean of its frames"] if of_subjects else []
    several = len(seeds) > 1
    named = ", ".join(map(str, seeds))
    if any(score in DISTANCES for score in shown["scores"]):
        means.append(
            "a class that a frame misses, or finds where it is not, has no distance: it is left out, and counted as "
            "missed, over all seeds"
        )
    means.append(f"mean over {len(seeds)} seeds ({named})" if several else f"seed {named} alone")
    if table.spread == "seeds" and several:
        means.append("± sample standard deviation over seeds")
    if table.spread == "subjects" and of_subjects:
        means.append(f"± sample standard deviation over subjects{', mean over seeds' * several}")
    return f"{capitalised('; '.join([*fixed, *means]))}."


def describe_axis(axis: Axis, name: str, results: Results) -> str:
    """Describe an entry of an axis in words."""
    if axis == "scores":
        return TITLES.get(name, name)
    if axis == "classes":
        return "mean over classes" if name == MEAN else f"class {name}"
    if axis == "tests":
        kind = "test" if results.study.evaluate in ON_TEST else "validation"
        if not results.study.tests[name]:
            return f"all {kind} subjects"
        return f"{kind} subjects, {name} only"
    return f"{HEADINGS[axis].lower()} {name}"


def capitalised(text: str) -> str:
    """Capitalise the first letter; the others stay."""
    return text[:1].upper() + text[1:]


def matching(part: Table | Figure, results: Results) -> Iterator[str]:
    """Describe how trainings on folds of different size are matched, with their steps as they ran."""
    shown = results.study.entries(part)
    seeds = part.seeds or results.study.seeds
    steps: dict[str, set[int]] = {fold: set() for fold in shown["folds"]}
    for fold, model in product(shown["folds"], shown["models"]):
        runs = results.done.get((model, fold), {})
        own = (results.steps(runs[seed]) for seed in seeds if seed in runs)
        steps[fold] |= {n for n in own if n is not None}
    every = set().union(*steps.values())
    ran = ""
    if len(every) == 1:
        ran = f" {next(iter(every)):,} steps as run."
    elif every:
        each = (f"{fold}: {_range(own)}" for fold, own in steps.items() if own)
        ran = f" Steps as run: {'; '.join(each)}."
    if len(shown["folds"]) == 1:
        yield f"Matched by {results.study.match}.{ran}"
    elif results.study.match == "steps":
        yield f"Matched by steps: trainings on folds of different size take equally many.{ran}"
    else:
        yield (
            "Matched by epochs: the steps of an epoch are in proportion to the labelled slices, so trainings on fewer "
            f"slices take fewer steps.{ran}"
        )


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def fold_sizes(part: Table | Figure, results: Results) -> str:
    """List the labelled subjects and slices of the folds."""
    folds = results.study.entries(part)["folds"]
    each = (f"{fold}: {fold_size(fold, results)}" for fold in folds)
    return f"Trained on, in labelled subjects (slices): {'; '.join(each)}."


def fold_size(fold: str, results: Results) -> str:
    """Write labelled subjects and slices of a fold, as `10 (231)`."""
    return "{:,.0f} ({:,.0f})".format(*results.labelled(fold))


def _sources(published: Sequence[Published]) -> str:
    """Cite where the published numbers were printed, and how they were read."""
    sources = list(dict.fromkeys(number.source for number in published))
    notes = list(dict.fromkeys(number.note for number in published if number.note))
    return f"{'; '.join(sources)}{f' ({listing(notes)})' if notes else ''}"


# -- formats ---------------------------------------------------------------------------------------


def tidy(filled: Filled) -> pd.DataFrame:
    """Make one row per place: coordinates, mean, spread, seeds, the published number, the folders of the runs."""
    rows = []
    for entry in (entry for line in filled.entries for entry in line):
        model, fold, test, class_name, score = entry.place
        published = entry.published
        rows.append(
            {
                **{"model": model, "fold": fold, "test": test, "class": class_name, "score": score},
                "mean": entry.value.mean,
                "spread": entry.spread,
                "spread_over": filled.table.spread,
                "n_seeds": len(entry.value.seeds),
                "wanted_seeds": entry.value.wanted,
                "missed": entry.value.missed,
                "published_mean": published.mean if published else "",
                "published_spread": published.spread if published else "",
                "published_source": published.source if published else "",
                "runs": ";".join(entry.runs),
            }
        )
    return pd.DataFrame(rows)


def markdown(filled: Filled, target: Callable[[Coordinates], str]) -> str:
    """Write the table in Markdown.

    Args:
        filled: The table.
        target: Returns the link of the value at a place.
    """
    table = filled.table
    heads = [*filled.headings, *map(", ".join, filled.column_names)]
    rules = ["---"] * len(table.rows) + ["---:"] * len(filled.columns)
    lines = [f"# {_for_markdown(table.title)}", "", _line(map(_for_markdown, heads)), _line(rules)]
    for number, row in enumerate(filled.row_names):
        cells = [_for_markdown(name) for name in row]
        for text, entry in zip(filled.texts(number), filled.entries[number], strict=True):
            printed = f"<br>*{entry.published}*" if entry.published else ""
            cells.append(f"[{text}]({target(entry.place)}){printed}")
        lines.append(_line(cells))
    return "\n".join([*lines, "", _for_markdown(filled.full_caption("In italics"))]) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _for_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]|<>#])", r"\\\1", " ".join(text.split()))


LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
        **{"±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≥": r"$\geq$", "≤": r"$\leq$"},
        **{GAP: "--", "—": "---", "’": "'", "‘": "`", "“": "``", "”": "''", "…": r"\ldots{}"},
    }
)


def latex(filled: Filled, label: str) -> str:
    """Write the table in LaTeX, with booktabs.

    Args:
        filled: The table.
        label: Label by which the document refers to it.
    """
    table, columns = filled.table, filled.column_names
    heads: list[str] = []
    for level in range(len(table.columns)):
        last = level == len(table.columns) - 1
        cells = [_for_latex(name) if last else "" for name in filled.headings]
        # A name that neighbouring columns share stands once, over all of them.
        for _, group in groupby(columns, key=lambda column: column[: level + 1]):
            own = list(group)
            name = _for_latex(own[0][level])
            cells.append(name if len(own) == 1 else rf"\multicolumn{{{len(own)}}}{{c}}{{{name}}}")
        heads.append(_latex_line(cells))
    body: list[str] = []
    for number, row in enumerate(filled.row_names):
        names = [_for_latex(name) for name in row]
        body.append(_latex_line([*names, *map(_for_latex, filled.texts(number))]))
        printed = [str(entry.published or "") for entry in filled.entries[number]]
        if any(printed):
            blank = [r"\quad paper", *[""] * (len(row) - 1)]
            small = [rf"\footnotesize {_for_latex(text)}" if text else "" for text in printed]
            body.append(_latex_line([*blank, *small]))
    caption = _for_latex(f"{table.title}. {filled.full_caption('Rows “paper”')}")
    return "\n".join(
        [
            r"% In the preamble: \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', label)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.rows)}{'c' * len(columns)}}}",
            r"\toprule",
            *heads,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_line(cells: Sequence[str]) -> str:
    # LaTeX would read a bracket or star at the beginning as part of the line break before it.
    first = f"{{}}{cells[0]}" if cells[0].startswith(("[", "*")) else cells[0]
    return f"{' & '.join([first, *cells[1:]])} \\\\"


def _for_latex(text: str) -> str:
    return " ".join(text.split()).translate(LATEX)
