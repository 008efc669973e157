"""The page that shows an evaluation.

Tables, box plots, the best and the worst cases, the agreement of clinical figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_ssp.evaluation.figures import (
    OVERLAY_WIDTH,
    Panel,
    bland_altman,
    box_plot,
    curves_with_bands,
    label_window,
    labelled_slices,
    overlay_grid,
)
from nnunet_ssp.evaluation.files import read_array
from nnunet_ssp.evaluation.page import PIXELS_PER_INCH, Cell, Page
from nnunet_ssp.evaluation.results import POSITION_BINS, Evaluation
from nnunet_ssp.evaluation.statistics import MEAN, SUBJECTS_FOR_A_TEST, subject_means
from nnunet_ssp.evaluation.wording import decimal, interval, introduction, listing, p_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS_PER_OVERLAY = 4


def report(evaluation: Evaluation) -> Page:
    """The page of an evaluation."""
    models = list(evaluation.models)
    page = Page(f"{evaluation.dataset}: {listing(models)}")
    page.paragraph(introduction(evaluation))
    for note in evaluation.notes:
        page.paragraph(f"Note: {note}")
    _add_scores(page, evaluation)
    if len(models) > 1:
        _add_comparisons(page, evaluation)
    _add_overlays(page, evaluation)
    _add_clinical(page, evaluation)
    _add_positions(page, evaluation)
    _add_groups(page, evaluation)
    _add_subjects(page, evaluation)
    _add_methods(page, evaluation)
    return page


def _add_scores(page: Page, evaluation: Evaluation) -> None:
    page.heading("Overlap and distance")
    seeds = bool(evaluation.frames["seed"].nunique() > 1)
    distances = evaluation.has_distances
    columns = ["Model", "Class", "3D Dice", "95 % CI", "SD", *["SD seeds"] * seeds]
    columns += [*["HD95 (mm)", "ASSD (mm)"] * distances, "Missed", "nnU-Net’s rule"]
    rows: list[list[Cell]] = []
    for row in evaluation.overall.to_dict("records"):
        cells = [row["model"], row["class"], row["dice_mean"], interval(row, "dice")]
        cells += [row["dice_sd_subjects"], *[row["dice_sd_seeds"]] * seeds]
        cells += [decimal(row[f"{s}_mean"], 1) for s in ("hd95_mm", "assd_mm") if distances]
        rows.append([*cells, row["missed"], row["dice_nan_mean"]])
    _add_table(
        page,
        evaluation,
        columns,
        rows,
        caption="Means over subjects, each the mean of its frames and seeds, and the standard deviation over subjects. "
        "Missed: frames with the class in only one of the two label maps, whose Dice is 0 and which have no distance. "
        "A class in neither has a Dice of 1 (the papers’ rule), or does not count (nnU-Net’s, in the last column).",
        collapse_above=40,
    )
    page.plot(
        box_plot(_box_groups(evaluation), "3D Dice", top=1.0),
        alt="Box plots of the Dice of each class.",
        caption="A dot is a subject"
        + ("." if len(evaluation.models) > 1 or not evaluation.phases else " at ED or at ES."),
        size=(OVERLAY_WIDTH, 3.2),
    )


def _box_groups(evaluation: Evaluation) -> dict[str, dict[str, np.ndarray]]:
    """The subjects' Dice by class and model; of a single model by class and phase."""
    groups = {}
    for name in evaluation.classes:
        own = evaluation.scores[evaluation.scores["class"] == name]
        series = list(evaluation.models)
        if len(series) == 1 and evaluation.phases:
            own, series = own.assign(model=own["phase"]), evaluation.phases
        means = subject_means(own, "dice").reindex(columns=series)
        groups[name] = {str(model): means[model].to_numpy() for model in means}
    return groups


def _add_comparisons(page: Page, evaluation: Evaluation) -> None:
    table = evaluation.comparisons
    page.heading(f"Compared with {evaluation.baseline}")
    dice = table["score"].str.startswith("Dice")
    for part, caption, collapse_above in (
        (
            table[dice],
            f"Model minus {evaluation.baseline}, paired by subject. p: one-sided Wilcoxon signed-rank test that the "
            "model is better; Holm: corrected for the number of models, not for the number of scores, so decide on "
            f"one score beforehand. No p value under {SUBJECTS_FOR_A_TEST} subjects.",
            60,
        ),
        (table[~dice], "Distances and absolute errors of the clinical figures, likewise", 0),
    ):
        rows = [
            [
                row["score"],
                row["model"],
                f"{row['difference']:+.3f}",
                interval(row),
                f"{row['n_better']} of {row['n_subjects']}",
                p_value(row["p"]),
                p_value(row["p_holm"]),
            ]
            for row in part.to_dict("records")
        ]
        columns = ["Score", "Model", "Difference", "95 % CI", "Better on", "p", "p, Holm"]
        if rows:
            page.table(columns, rows, caption=caption, collapse_above=collapse_above)


def _add_groups(page: Page, evaluation: Evaluation) -> None:
    distances = evaluation.has_distances
    for group, table in evaluation.groups.items():
        if group == next(iter(evaluation.groups)):
            page.heading("By phase, vendor, centre and pathology")
        rows: list[list[Cell]] = []
        for (value, model), own in table.groupby([group, "model"], sort=False):
            by_class = own.set_index("class")
            scores = [
                float(by_class["dice_mean"].get(name, math.nan)) for name in evaluation.classes
            ]
            count = int(by_class["n_subjects"].max())
            rows.append([str(value), str(model), count, *scores])
            if distances:
                rows[-1].append(decimal(by_class["hd95_mm_mean"][MEAN], 1))
        _add_table(
            page,
            evaluation,
            [
                *(group.capitalize(), "Model", "Subjects", *evaluation.classes),
                *["HD95 (mm)"] * distances,
            ],
            sorted(rows, key=lambda row: str(row[0])),
            caption=f"3D Dice by {group}{'; HD95 is the mean over classes' * distances}.",
        )


def _add_positions(page: Page, evaluation: Evaluation) -> None:
    table = evaluation.positions
    if table.empty:
        return
    page.heading("From base to apex")
    plots = []
    for name in table["class"].unique():
        curves = {}
        for model in evaluation.models:
            own = table[(table["class"] == name) & (table["model"] == model)].set_index("bin")
            middles = (own.index.to_numpy() + 0.5) / POSITION_BINS
            curves[model] = middles, own["mean"].to_numpy(), own[["low", "high"]].to_numpy().T
        plots.append(
            (
                curves_with_bands(curves, "base (0) to apex (1)", "2D Dice", str(name)),
                f"Dice of {name} by position in the stack.",
            )
        )
    page.gallery(
        plots,
        caption="Slices from the first to the last one with any reference label. Mean over subjects and its 95 % "
        "confidence interval; slices with the class in neither label map are left out.",
    )


def _add_overlays(page: Page, evaluation: Evaluation) -> None:
    own = evaluation.scores[evaluation.scores["class"] == MEAN]
    ranked = own.groupby("case")["dice"].mean().sort_values()
    ranked = ranked[[case for case in ranked.index if case in evaluation.images]]
    if ranked.empty:
        return
    page.heading("Best, median and worst")
    chosen = {"Best": -1, "Median": len(ranked) // 2, "Worst": 0}
    for title, place in chosen.items():
        case = str(ranked.index[place])
        for models in _chunks(list(evaluation.models), MODELS_PER_OVERLAY):
            page.image(
                _overlay(evaluation, case, models),
                alt=f"Reference and predictions in colour on three slices of {case}.",
                caption=f"{title}: {_described(evaluation, case)}. White: outline of the reference.",
                width=round(PIXELS_PER_INCH * OVERLAY_WIDTH),
            )


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _described(evaluation: Evaluation, case: str) -> str:
    """The case's name, phase and Dice in words."""
    own = evaluation.scores[evaluation.scores["case"] == case]
    dice = own.groupby("class", sort=False)["dice"].mean()
    scores = ", ".join(f"{name} {value:.2f}" for name, value in dice.items())
    return ", ".join(word for word in (case, own["phase"].iloc[0], f"Dice {scores}") if word)


def _overlay(evaluation: Evaluation, case: str, models: list[str]) -> bytes:
    """Basal, middle and apical slice of a case: the reference and each model's first seed."""
    image = read_array(evaluation.images[case])
    pairs = {p.model: p for p in reversed(evaluation.pairs) if p.case == case}
    reference = read_array(pairs[models[0]].reference)
    maps = {"Reference": reference} | {name: read_array(pairs[name].prediction) for name in models}
    z, window = labelled_slices(reference, 3), label_window(reference)
    base = evaluation.frames.loc[evaluation.frames["case"] == case, "base"].iloc[0]
    titles = {"first": ["basal", "middle", "apical"], "last": ["apical", "middle", "basal"]}
    rows = {
        name: [
            Panel(image[i][window], labels[i][window], reference[i][window] if row else None)
            for i in z
        ]
        for row, (name, labels) in enumerate(maps.items())
    }
    columns = titles.get(base, [f"slice {i + 1}" for i in z])
    return overlay_grid(rows, columns, evaluation.labels.classes)


def _add_clinical(page: Page, evaluation: Evaluation) -> None:
    page.heading("Clinical figures")
    if everyone := evaluation.refused.get("all"):
        page.paragraph(f"None: {everyone}.")
        return
    if evaluation.refused:
        page.table(
            ["Subject", "Refused because of"],
            list(evaluation.refused.items()),
            caption="Subjects without clinical figures",
        )
    if evaluation.figures.empty:
        return
    rows: list[list[Cell]] = []
    for row in evaluation.agreement.to_dict("records"):
        cells = [row["model"], f"{row['figure']} ({row['unit']})", row["n_subjects"]]
        numbers = [row["reference"], row["predicted"], row["bias"], row["sd"]]
        limits = f"{decimal(row['lower'], 1)} to {decimal(row['upper'], 1)}"
        rows.append(
            [
                *cells,
                *(decimal(number, 1) for number in numbers),
                limits,
                decimal(row["mae"], 1),
                decimal(row["percent_error"], 1),
                row["correlation"],
            ]
        )
    _add_table(
        page,
        evaluation,
        [
            *("Model", "Figure", "n", "Reference", "Predicted", "Bias", "SD"),
            *("95 % limits", "MAE", "Error (%)", "r"),
        ],
        rows,
        caption="Volumes are those of the voxels at the reference’s ED and ES frames; mass is that of the myocardium "
        "at ED, 1.05 g/ml. Means over n subjects. Bias: predicted minus reference, and its standard deviation; limits: "
        "bias ± 1.96 SD (Bland and Altman); MAE: mean absolute error; error (%): mean of the errors in percent of the "
        "reference; r: Pearson’s correlation.",
        collapse_above=40,
    )
    for model in evaluation.models:
        page.gallery(
            list(_bland_altman_plots(evaluation, model)),
            caption=f"{model}: difference to the reference against the mean of both, with bias and 95 % limits of "
            "agreement. A dot is a subject and seed.",
        )


def _bland_altman_plots(
    evaluation: Evaluation, model: str
) -> Iterator[tuple[Callable[[Figure], None], str]]:
    figures = evaluation.figures[evaluation.figures["model"] == model]
    agreement = evaluation.agreement
    rows = agreement[agreement["model"] == model].set_index("figure")
    for figure, own in figures.groupby("figure", sort=False):
        line = rows.loc[figure]
        lines = (float(line["lower"]), float(line["bias"]), float(line["upper"]))
        own = own.dropna(subset="error")
        if own.empty:
            continue
        yield (
            bland_altman(
                own["reference"].to_numpy(),
                own["predicted"].to_numpy(),
                lines,
                str(figure),
                line["unit"],
            ),
            f"Bland-Altman plot of {figure}.",
        )


def _add_subjects(page: Page, evaluation: Evaluation) -> None:
    page.heading("Subjects")
    own = evaluation.scores[evaluation.scores["class"] == MEAN]
    means = subject_means(own, "dice")
    about = own.drop_duplicates("subject").set_index("subject")
    columns = [name for name in ("vendor", "centre", "pathology") if (about[name] != "").any()]
    page.table(
        ["Subject", *(name.capitalize() for name in columns), *map(str, means.columns)],
        [
            [str(subject), *about.loc[subject, columns], *map(float, scores)]
            for subject, scores in means.sort_values(means.columns[0]).iterrows()
        ],
        caption="Mean Dice of each subject, worst first",
    )


def _add_methods(page: Page, evaluation: Evaluation) -> None:
    page.heading("How it was measured")
    structures = ", ".join(f"{s} is {name}" for s, name in evaluation.labels.structures.items())
    page.paragraph(
        "Dice is that of whole 3D frames. HD95 and ASSD are distances between the surface voxels of prediction and "
        "reference in mm: the larger of the two directions’ 95th percentiles, and the mean over both surfaces. "
        "Confidence intervals: percentile bootstrap over subjects, 10,000 resamples, seed 0. Class “mean”: the mean "
        f"of the classes of each frame. {structures + '.' if structures else ''}"
    )
    page.table(
        ["Model", "Predictions"],
        [[name, str(f)] for name, folders in evaluation.models.items() for f in folders],
    )


def _add_table(
    page: Page,
    evaluation: Evaluation,
    columns: Sequence[str],
    rows: list[list[Cell]],
    **options: Any,
) -> None:
    """`Page.table` without the column `Model` where there is only one."""
    kept = [i for i, name in enumerate(columns) if name != "Model" or len(evaluation.models) > 1]
    page.table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], **options)
