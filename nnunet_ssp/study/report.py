"""Output of a study's results: tables, figures, CSV files, and one page that shows them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from nnunet_ssp.console import count_of
from nnunet_ssp.evaluation.signed_rank import METHOD
from nnunet_ssp.evaluation.statistics import SUBJECTS_TO_INFER
from nnunet_ssp.files.atomic import atomic_write, write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import is_plain
from nnunet_ssp.reporting.figures import LETTERS_PER_INCH, render
from nnunet_ssp.reporting.names import wrapped
from nnunet_ssp.reporting.page import GAP, Cell, Link, Noted, Page
from nnunet_ssp.reporting.wording import duration, interval, listing, p_value, rounded
from nnunet_ssp.sharing.gains import COMPARISONS, REPORTED
from nnunet_ssp.study.comparisons import comparisons
from nnunet_ssp.study.exports import comparison_table, model_tables
from nnunet_ssp.study.figures import SIZE, drawn
from nnunet_ssp.study.hyperparameters import hyperparameters
from nnunet_ssp.study.plots import Draw, Drawn, Plot
from nnunet_ssp.study.results import STAGES, Coordinates, Results
from nnunet_ssp.study.runs import Run, slug
from nnunet_ssp.study.spec import REPORT, Figure
from nnunet_ssp.study.tables import (
    Filled,
    capitalised,
    fill_table,
    fold_size,
    latex,
    markdown,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

PAGE = "report.html"
FORMATS: tuple[Literal["png", "pdf"], ...] = ("png", "pdf")
TABLE_FORMATS = ("md", "tex", "csv")
LONGEST_NAME = 100  # of a file, before its ending
GALLERY = (3.6, 2.8)  # inches, of one of several pictures


def write_results(results: Results, setup: Sequence[str], notes: Sequence[str] = ()) -> Path:
    """Write the results of a study's finished runs.

    These are `tables/`, `figures/`, `models/`, `cells.csv`, `comparisons.csv` and `report.html`. The names of those on
    the test subjects of a study that chooses begin with `reported-`.

    Args:
        results: Results of the study; some runs may not be done.
        setup: Shell lines that set what the commands need.
        notes: Paragraphs that say who was chosen on and what was chosen.

    Returns:
        The page.

    Raises:
        ValueError: A table or figure names an unknown class, score, column or published table.
    """
    study, output = results.study, results.output
    own = Written(REPORTED if study.evaluate == REPORT else "")
    names = _names([table.title for table in study.tables])
    tables = {
        name: fill_table(table, results) for name, table in zip(names, study.tables, strict=True)
    }
    figures = [drawn(figure, results) for figure in study.figures]
    pictures = [(figure.title, plot) for figure in figures for plot in figure.plots]
    names = _names([f"{title} {plot.name}".strip() for title, plot in pictures])
    titles = {
        plot: _title(figure, results, drawn_figure)
        for figure, drawn_figure in zip(study.figures, figures, strict=True)
        for plot in drawn_figure.plots
    }
    files = {plot: name for (_, plot), name in zip(pictures, names, strict=True)}
    models = dict(model_tables(results))
    for name, filled in tables.items():
        _write_table(filled, name, output, own, results.anchors)
    for plot, name in files.items():
        _write_plot(plot, titles[plot], name, output / own.figures)
    for name, table in models.items():
        _write_csv(table, output / own.models / f"{name}.csv")
    written = [f"{own.tables}/{name}.{ending}" for name in tables for ending in TABLE_FORMATS]
    written += [f"{own.figures}/{name}.{ending}" for name in names for ending in FORMATS]
    written += [f"{own.models}/{name}.csv" for name in models]
    _remove_earlier(output, own, written)
    _write_csv(_cells(results, list(tables.values())), output / f"{own.prefix}cells.csv")
    compared = comparisons(results)
    _write_csv(comparison_table(results, compared), output / f"{own.prefix}{COMPARISONS}")
    page = _page(results, tables, figures, files, titles, setup, notes, own, compared)
    page.write(output / own.page)
    return output / own.page


@dataclass(frozen=True)
class Written:
    """Names of what is written, which begin with a prefix.

    Attributes:
        prefix: The prefix, or nothing.
    """

    prefix: str

    @property
    def page(self) -> str:
        """The page."""
        return f"{self.prefix}{PAGE}"

    @property
    def tables(self) -> str:
        """Folder of the tables."""
        return f"{self.prefix}tables"

    @property
    def figures(self) -> str:
        """Folder of the figures."""
        return f"{self.prefix}figures"

    @property
    def models(self) -> str:
        """Folder of the tables of each model."""
        return f"{self.prefix}models"

    @property
    def written(self) -> str:
        """List of the files that the study wrote."""
        return f".{self.prefix}written.json"


def _names(titles: Sequence[str]) -> list[str]:
    """Make a file name for each title, all different."""
    names: list[str] = []
    for title in titles:
        name = own = slug(title)[:LONGEST_NAME]
        number = 2
        while own.casefold() in map(str.casefold, names):
            own, number = f"{name}-{number}", number + 1
        names.append(own)
    return names


Links = dict[tuple[str, str], str]  # name of a row of runs on the page, by model and fold


# -- files -----------------------------------------------------------------------------------------


def _remove_earlier(output: Path, own: Written, written: list[str]) -> None:
    """Remove the tables and figures of an earlier version of the study, which would pass for current ones."""
    file = output / own.written
    earlier = read_json(file, list) if file.is_file() else []
    kinds = {own.tables: TABLE_FORMATS, own.figures: FORMATS, own.models: ("csv",)}
    for name in earlier:
        folder, _, end = name.partition("/") if isinstance(name, str) else ("", "", "")
        # Remove nothing but what a study writes, whatever the list says.
        ours = is_plain(end) and end.rpartition(".")[2] in kinds.get(folder, ())
        if ours and name not in written and not (output / folder).is_symlink():
            (output / name).unlink(missing_ok=True)
    write_json(file, written)


def _write_table(filled: Filled, name: str, output: Path, own: Written, links: Links) -> None:
    folder = output / own.tables

    def target(place: Coordinates) -> str:
        return f"../{own.page}#{links[place.model, place.fold]}"

    _write_csv(tidy(filled), folder / f"{name}.csv")
    _write_text(markdown(filled, target), folder / f"{name}.md")
    _write_text(latex(filled, name), folder / f"{name}.tex")


def _title(figure: Figure, results: Results, shown: Drawn) -> str:
    """Name a figure's subject, the dataset and the number of seeds."""
    seeds = figure.seeds or results.study.seeds
    return f"{shown.title}, {results.data.name}, {count_of(len(seeds), 'seed')}"


def _titled(plot: Plot, title: str) -> Draw:
    """Return what draws a plot with a title, as it stands alone."""

    def draw(canvas: Canvas) -> None:
        plot.draw(canvas)
        canvas.suptitle(wrapped(title, int(LETTERS_PER_INCH * SIZE[0])))

    return draw


def _write_plot(plot: Plot, title: str, name: str, folder: Path) -> None:
    """Write the files of a plot, with a title: they stand without the page."""
    draw = _titled(plot, title)
    for ending in FORMATS:
        with atomic_write(folder / f"{name}.{ending}") as temporary:
            temporary.write_bytes(render(draw, size=SIZE, format=ending))


def _cells(results: Results, tables: Sequence[Filled]) -> pd.DataFrame:
    """Collect the values of all places in the tables, one row per finished seed."""
    places = dict.fromkeys(
        entry.place for filled in tables for line in filled.entries for entry in line
    )
    names = ("model", "fold", "test", "class", "score")
    parts = [
        results.seed_values(place).assign(**dict(zip(names, place, strict=True)))
        for place in places
    ]
    columns = [*names, "seed", "value", "sd_subjects", "n_subjects", "missed", "run"]
    filled = [part[columns] for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)


def _write_csv(table: pd.DataFrame, file: Path) -> None:
    with atomic_write(file) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def _write_text(text: str, file: Path) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


# -- the page --------------------------------------------------------------------------------------


def _page(
    results: Results,
    tables: dict[str, Filled],
    figures: Sequence[Drawn],
    files: dict[Plot, str],
    titles: dict[Plot, str],
    setup: Sequence[str],
    notes: Sequence[str],
    own: Written,
    compared: pd.DataFrame,
) -> Page:
    study = results.study
    missing = [
        run for run in (*results.pretrainings, *results.trainings) if not results.is_done(run)
    ]
    notice = ""
    if missing:
        total = len(results.pretrainings) + len(results.trainings)
        notice = f"Not complete: {len(missing)} of {count_of(total, 'run')} are missing; what needs them stays empty."
    page = Page(study.title, notice=notice)
    for paragraph in filter(None, map(str.strip, study.about.splitlines())):
        page.paragraph(paragraph)
    for note in notes:
        page.paragraph(note)
    _add_what_ran(page, results, missing)
    for name, filled in tables.items():
        _add_table(page, filled, name, own, results.anchors)
    for figure in figures:
        _add_figure(page, figure, own, files, titles)
    _add_comparisons(page, results, compared)
    _add_settings(page, results)
    _add_pretrainings(page, results)
    _add_runs(page, results)
    _add_commands(page, results, setup)
    return page


def _add_what_ran(page: Page, results: Results, missing: Sequence[Run]) -> None:
    page.heading("What ran")
    for kind, runs in (("Pretrainings", results.pretrainings), ("Trainings", results.trainings)):
        if not runs:
            continue
        seconds = sum(results.record(run, s).get("seconds", 0) for run in runs for s in STAGES)
        done = sum(run not in missing for run in runs)
        machines = dict.fromkeys(
            str(machine)
            for run in runs
            if (machine := results.record(run, "train").get("machine")) is not None
        )
        where = f" on {listing(list(machines))}" if machines else ""
        page.paragraph(f"{kind}: {done} of {len(runs)} done, {duration(seconds)} of work{where}.")
    for note in results.notes():
        page.paragraph(f"{capitalised(note)}")
    if missing:
        rows: list[list[Cell]] = []
        for run in missing:
            state, log = results.state(run)
            rows.append([Noted(run.title, [[Link(state, log) if log else state]])])
        page.table(["Run"], rows, caption="Missing")


def _add_table(page: Page, filled: Filled, name: str, own: Written, links: Links) -> None:
    table = filled.table
    page.heading(table.title)
    rows: list[list[Cell]] = []
    for row, entries in zip(filled.row_names, filled.entries, strict=True):
        cells: list[Cell] = list(row)
        for entry in entries:
            link = Link(entry.text(table.digits), f"#{links[entry.place.model, entry.place.fold]}")
            notes = [entry.note, f"paper {entry.published}" if entry.published else ""]
            cells.append(Noted(link, [[note] for note in notes if note]))
        rows.append(cells)
    page.table(
        [*filled.headings, *map(", ".join, filled.column_names)],
        rows,
        caption=filled.full_caption("Paper"),
        collapse_above=len(rows),
    )
    _add_files(page, [f"{own.tables}/{name}.{ending}" for ending in TABLE_FORMATS])


def _add_files(page: Page, files: Sequence[str]) -> None:
    links: list[str | Link] = ["Files"]
    for file in files:
        links += [", " if len(links) > 1 else ": ", Link(file.rpartition("/")[2], file)]
    page.paragraph(*links)


def _add_figure(
    page: Page, figure: Drawn, own: Written, files: dict[Plot, str], titles: dict[Plot, str]
) -> None:
    page.heading(figure.title)
    if not figure.plots:
        page.paragraph("No run of this figure is done.")
        return
    if len(figure.plots) == 1:
        (plot,) = figure.plots
        draw = _titled(plot, titles[plot])
        page.plot(draw, alt=plot.alt, caption=figure.caption, size=SIZE)
    else:
        plots = [(plot.draw, plot.alt) for plot in figure.plots]
        page.gallery(plots, caption=figure.caption, size=GALLERY)
    if figure.rows:
        page.table(figure.columns, figure.rows)
    _add_files(
        page, [f"{own.figures}/{files[plot]}.{end}" for plot in figure.plots for end in FORMATS]
    )


def _add_comparisons(page: Page, results: Results, table: pd.DataFrame) -> None:
    if not len(table):
        return
    page.heading("Comparisons")
    rows: list[list[Cell]] = [
        [
            row["fold"],
            Link(row["model"], f"#{results.anchors[row['model'], row['fold']]}"),
            Link(row["baseline"], f"#{results.anchors[row['baseline'], row['fold']]}"),
            f"{row['difference']:+.3f}",
            interval(row),
            interval({"low": row["low_seeds"], "high": row["high_seeds"]}),
            f"{row['n_better']} of {row['n_subjects']}",
            f"{row['n_seeds_better']} of {row['n_seeds']}",
            p_value(row["p"]),
            p_value(row["p_holm"]),
        ]
        for row in table.to_dict("records")
    ]
    family = results.study.family
    corrected = (
        "for the number of models that are tested against the same one on the same training subjects, no further."
        if family is None
        else f"for the {int(table['p_holm'].notna().sum())} comparisons of one family, {family.title}; no other has a "
        "corrected value."
    )
    page.table(
        [
            *("Trained on", "Model", "Against", "Difference", "95 % CI", "95 % CI, two levels"),
            *("Better on", "Better with seeds", "p", "p, Holm"),
        ],
        rows,
        caption="Mean 3D Dice of the model minus that of the one it is tested against, paired by subject: the mean "
        "over frames and over the seeds that both have. Intervals: bootstrap over subjects; over seeds and subjects, "
        "each drawn independently. p: one-sided Wilcoxon "
        f"signed-rank test that the model is better, {METHOD}. Holm: corrected {corrected} "
        f"No interval and no p value under {SUBJECTS_TO_INFER} subjects.",
        collapse_above=60,
    )


def _add_settings(page: Page, results: Results) -> None:
    page.heading("Settings")
    runs = results.pretrainings, results.trainings
    columns, rows, caption = hyperparameters(results.study, runs, results.data)
    page.table(columns, rows, caption=caption)


def _add_pretrainings(page: Page, results: Results) -> None:
    if not results.pretrainings:
        return
    page.heading("Pretrainings")
    rows: list[list[Cell]] = []
    for run in results.pretrainings:
        counts = results.settings(run).get("counts", {})
        rows.append(
            [
                run.name,
                run.trainer,
                run.label,
                counts.get("subjects"),
                counts.get("slices"),
                _train_cell(results, run),
            ]
        )
    page.table(
        ["Name", "Trainer", "Fold", "Subjects", "Slices", "Time"], rows, collapse_above=len(rows)
    )
    for run in results.pretrainings:
        if curves := _curves(results, run):
            alt = f"Curves of the pretraining {run.name} by epoch"
            page.image(results.output / curves, alt=alt, summary=f"Curves of {run.title}")


def _curves(results: Results, run: Run) -> str | None:
    """Find the picture of a training's curves, below the study's folder."""
    file = f"{run.fold_folder(results.data)}/progress.png"
    return file if (results.output / file).is_file() else None


def _train_cell(results: Results, run: Run) -> Cell:
    """Show the time of a pretraining with its files or, if it is not done, its state."""
    record = results.record(run, "train")
    if not record:
        return _state_cell(results, run)
    curves = _curves(results, run)  # a link, because the picture in the page is small on a phone
    files = [*_files(run), *([Link("curves", curves)] if curves else [])]
    return Noted(duration(record["seconds"]), [files])


def _state_cell(results: Results, run: Run) -> Cell:
    state, log = results.state(run)
    return Noted(GAP, [[Link(state, log) if log else state]])


def _add_runs(page: Page, results: Results) -> None:
    page.heading("Runs")
    seeds = sorted({run.seed for run in results.trainings})
    every = {(run.name, run.label, run.seed): run for run in results.trainings}
    rows: list[list[Cell]] = []
    for model, fold in results.done:
        cells: list[Cell] = [Noted(model, [[f"on {fold}: {fold_size(fold, results)}"]])]
        for seed in seeds:
            run = every.get((model, fold, seed))
            cells.append(None if run is None else _run_cell(results, run))
        rows.append(cells)
    page.table(
        ["Model", *(f"Seed {seed}" for seed in seeds)],
        rows,
        caption="Model, and on how many labelled subjects (slices). Mean 3D Dice of all tested frames, which leads to "
        "the run’s own report; its training’s log, command and time.",
        collapse_above=len(rows),
        names=list(results.anchors.values()),
    )


def _run_cell(results: Results, run: Run) -> Cell:
    if not results.is_done(run):
        return _state_cell(results, run)
    dice, report = (
        rounded(results.dice(run), 3),
        f"{results.folder(run, 'evaluate')}/evaluation/{PAGE}",
    )
    # `evaluation: --no-report` writes no page.
    shown = Link(dice, report) if (results.output / report).is_file() else dice
    record = results.record(run, "train")
    return Noted(shown, [[*_files(run), *[duration(record["seconds"])] * bool(record)]])


def _files(run: Run) -> list[str | Link]:
    """Link to the log and the command of a training."""
    return [Link("log", f"{run.folder}/train.log"), Link("command", f"{run.folder}/train.json")]


def _add_commands(page: Page, results: Results, setup: Sequence[str]) -> None:
    page.heading("Commands")
    page.paragraph("What ran, in the study’s folder.")
    page.code("\n".join(setup))
    for title, runs in (
        ("Pretraining", results.pretrainings),
        ("Training, prediction and evaluation", results.trainings),
    ):
        blocks = []
        for run in runs:
            lines = [results.record(run, stage).get("command") for stage in STAGES]
            if done := [line for line in lines if line is not None]:
                blocks.append("\n".join([f"# {run.title}", *done]))
        if blocks:
            page.code("\n\n".join(blocks), summary=f"{title}: {count_of(len(blocks), 'run')}")
