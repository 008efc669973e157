"""The page of an evaluation: tables, box plots, best and worst cases, agreement of clinical metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_ssp.console import Paced, count_of
from nnunet_ssp.evaluation.console import introduction, without_agreement
from nnunet_ssp.evaluation.files import (
    case_list,
    read_array,
    read_label_map,
    read_predicted_labels,
    read_sitk_image,
)
from nnunet_ssp.evaluation.results import POSITION_BINS, Evaluation
from nnunet_ssp.evaluation.signed_rank import METHOD
from nnunet_ssp.evaluation.statistics import MEAN, SUBJECTS_TO_INFER, subject_means
from nnunet_ssp.reporting.figures import (
    OVERLAY_WIDTH,
    VALUES_FOR_A_BOX,
    Overlay,
    bland_altman,
    box_plot,
    curves_with_bands,
    label_window,
    overlay_grid,
    slices_to_show,
)
from nnunet_ssp.reporting.page import GAP, Cell, Page
from nnunet_ssp.reporting.wording import interval, limits, listing, p_value, rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS_PER_OVERLAY = 4


def evaluation_page(evaluation: Evaluation, tell: Callable[[str], None] | None = None) -> Page:
    """Build the page of an evaluation; `tell` prints how far it is."""
    models = list(evaluation.models)
    tell = tell or Paced()
    page = Page(
        f"{evaluation.dataset}: {listing(models)}",
        drawn=lambda n: tell(f"Drawing the report: {count_of(n, 'figure')} so far"),
    )
    page.paragraph(introduction(evaluation))
    for note in evaluation.notes:
        page.remark(note)
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
    seeds, distances = evaluation.has_seeds, evaluation.has_distances
    columns = ["Model", "Class", "3D Dice", "nnU-Net’s", "95 % CI", "SD"]
    columns += [*["SD seeds"] * seeds, "Missed", *["HD95 (mm)", "ASSD (mm)"] * distances]
    rows: list[list[Cell]] = []
    for row in evaluation.overall.to_dict("records"):
        name = evaluation.labels.shown(row["class"])
        cells = [row["model"], name, row["dice_mean"], row["dice_nan_mean"]]
        cells += [interval(row, "dice"), row["dice_sd_subjects"], *[row["dice_sd_seeds"]] * seeds]
        means = [rounded(row[f"{s}_mean"], 1) for s in ("hd95_mm", "assd_mm") if distances]
        rows.append([*cells, row["missed"], *means])
    missed = "their Dice is 0"
    if distances:
        missed += " and they have no distance, so who misses what is difficult has smaller ones"
    if distances and len(evaluation.models) > 1:
        missed += " (not so in the next section, which compares like with like)"
    _add_table(
        page,
        evaluation,
        columns,
        rows,
        caption="Means over subjects, each the mean of its frames and seeds, and the standard deviation over subjects. "
        "A class in neither label map has a Dice of 1 (the papers’ rule), or does not count (nnU-Net’s rule). "
        f"Missed: frames with the class in only one of the two, summed over seeds; {missed}. "
        f"No interval under {SUBJECTS_TO_INFER} subjects.",
        collapse_above=40,
    )
    page.plot(
        box_plot(_box_groups(evaluation), "3D Dice", (0, 1), _figure_title(evaluation)),
        alt="Box plots of the Dice of each class.",
        caption="A dot is a subject"
        + ("." if len(evaluation.models) > 1 or not evaluation.phases else " at ED or at ES.")
        + f" No box for fewer than {VALUES_FOR_A_BOX}.",
        size=(OVERLAY_WIDTH, 3.2),
    )


def _figure_title(evaluation: Evaluation) -> str:
    """Name the dataset, and a single model, which no legend names."""
    single = evaluation.models if len(evaluation.models) == 1 else ()
    return ", ".join([evaluation.dataset, *single])


def _box_groups(evaluation: Evaluation) -> dict[str, dict[str, np.ndarray]]:
    """Group the subjects' Dice by class and model; for a single model by class and phase."""
    groups = {}
    for name in evaluation.classes:
        own = evaluation.scores[evaluation.scores["class"] == name]
        series = list(evaluation.models)
        if len(series) == 1 and evaluation.phases:
            own, series = own.assign(model=own["phase"]), evaluation.phases
        means = subject_means(own, "dice").reindex(columns=series)
        groups[evaluation.labels.shown(name)] = {
            str(model): means[model].to_numpy() for model in means
        }
    return groups


def _add_comparisons(page: Page, evaluation: Evaluation) -> None:
    table = evaluation.comparisons
    page.heading(f"Compared with {evaluation.baseline}")
    columns = ["Score", "Model", "Difference", "95 % CI", "Better on", "p", "p, Holm"]
    for better, caption, collapse_above in (
        (
            "higher",
            f"Model minus {evaluation.baseline}, paired by subject. p: one-sided Wilcoxon signed-rank test that the "
            f"model is better, {METHOD}. Holm: corrected for the number of models, not for the number of scores, so "
            f"decide on one score beforehand. No interval and no p value under {SUBJECTS_TO_INFER} "
            "subjects.",
            60,
        ),
        (
            "lower",
            "Distances and absolute errors of the clinical metrics, likewise; here a negative difference is better. "
            f"Missed: how many of them the model / {evaluation.baseline} does not have, over all seeds. What one of "
            "the two does not have in one of its seeds is left out for both.",
            0,
        ),
    ):
        rows: list[list[Cell]] = []
        for row in table[table["better"] == better].to_dict("records"):
            difference = f"{row['difference']:+.3f}" if row["n_subjects"] else GAP
            cells = [row["score"], row["model"], difference, interval(row)]
            cells += [f"{row['n_better']} of {row['n_subjects']}"]
            cells += [p_value(row["p"]), p_value(row["p_holm"])]
            if better == "lower":
                cells.append(f"{row['missed']} / {row['missed_baseline']}")
            rows.append(cells)
        if rows:
            heads = [*columns, *["Missed"] * (better == "lower")]
            page.table(heads, rows, caption=caption, collapse_above=collapse_above)


def _add_groups(page: Page, evaluation: Evaluation) -> None:
    distances = evaluation.has_distances
    page.heading("By phase, vendor, centre and pathology")
    if not evaluation.groups:
        page.paragraph("None: there is no cases.csv with phases, vendors, centres or pathologies.")
    for group, table in evaluation.groups.items():
        rows: list[list[Cell]] = []
        for (value, model), own in table.groupby([group, "model"], sort=False):
            by_class = own.set_index("class")
            scores = [
                float(by_class["dice_mean"].get(name, math.nan)) for name in evaluation.classes
            ]
            count = int(by_class["n_subjects"].max())
            rows.append([str(value), str(model), count, *scores])
            if distances:
                mean = by_class.loc[MEAN]
                rows[-1] += [rounded(mean["hd95_mm_mean"], 1), int(mean["missed"])]
        _add_table(
            page,
            evaluation,
            [
                *(group.capitalize(), "Model", "Subjects"),
                *map(evaluation.labels.shown, evaluation.classes),
                *["HD95 (mm)", "Missed"] * distances,
            ],
            sorted(rows, key=lambda row: str(row[0])),
            caption=f"3D Dice by {group}"
            f"{'; HD95 is the mean over the classes that were not missed' * distances}.",
        )


def _add_positions(page: Page, evaluation: Evaluation) -> None:
    table = evaluation.positions
    page.heading("From base to apex")
    if table.empty:
        page.paragraph("None: no cases.csv says at which end of the stacks the base is.")
        return
    # Models are the curves, or phases where there is a single model, as in the boxes.
    single = len(evaluation.models) == 1
    phases = sorted(table["phase"].unique())
    plots = []
    for name in evaluation.classes[:-1]:
        for panel in [""] if single else phases:
            curves = {}
            for curve in phases if single else evaluation.models:
                phase, model = (curve, next(iter(evaluation.models))) if single else (panel, curve)
                chosen = (table["class"] == name) & (table["phase"] == phase)
                own = table[chosen & (table["model"] == model)]
                if len(own):
                    middles = (own["bin"].to_numpy() + 0.5) / POSITION_BINS
                    band = own[["low", "high"]].to_numpy().T
                    curves[curve or "other frames"] = middles, own["mean"].to_numpy(), band
            shown = ", ".join(filter(None, (evaluation.labels.shown(str(name)), panel)))
            if curves:
                draw = curves_with_bands(curves, "base (0) to apex (1)", "2D Dice", shown)
                plots.append((draw, f"Dice of {shown} by position in the stack."))
    page.gallery(
        plots,
        caption="Slices from the first to the last one with any reference label. Mean over subjects and its 95 % "
        f"confidence interval, if there are {SUBJECTS_TO_INFER} subjects; slices with the class "
        "in neither label map are left out.",
    )


def _add_overlays(page: Page, evaluation: Evaluation) -> None:
    own = evaluation.scores[evaluation.scores["class"] == MEAN]
    means = own.groupby("case")["dice"].mean().sort_values(kind="stable")
    ranked = [str(case) for case in means.index if case in evaluation.images]
    left_out: list[str] = []
    while bad := [c for c in _best_median_worst(ranked).values() if not _has_image(evaluation, c)]:
        left_out += bad
        ranked = [case for case in ranked if case not in bad]
    chosen = _best_median_worst(ranked)
    page.heading(listing([*chosen]).capitalize() if chosen else "Best, median and worst")
    if not ranked and not left_out:
        page.paragraph("None: the images are not in imagesTs or imagesTr of nnUNet_raw.")
        return
    page.paragraph(
        "Of the frames with an image, by the mean Dice of all classes, models and seeds"
        f"{'; shown is the first seed of each model' * evaluation.has_seeds}. "
        "White: outline of the reference."
    )
    if left_out:
        page.paragraph(
            "Note: left out, as the image cannot be read or has another size than the reference: "
            f"{case_list(left_out)}."
        )
    for title, case in chosen.items():
        for models in _chunks(list(evaluation.models), MODELS_PER_OVERLAY):
            page.image(
                _overlay(evaluation, case, models),
                alt=f"Reference and predictions in colour on three slices of {case}.",
                caption=f"{title}: {_described(evaluation, case, models)}",
                wide=True,
            )


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _best_median_worst(ranked: list[str]) -> dict[str, str]:
    """Pick from cases sorted from worst to best; two have no median, a single one is neither best nor worst."""
    if len(ranked) == 1:
        return {"The only frame": ranked[0]}
    places = {0: "Worst", len(ranked) // 2: "Median", len(ranked) - 1: "Best"}
    return {title: ranked[place] for place, title in reversed(places.items())} if ranked else {}


def _has_image(evaluation: Evaluation, case: str) -> bool:
    """Whether the image of a case can be read and has the size of the reference."""
    reference = next(pair.reference for pair in evaluation.pairs if pair.case == case)
    try:
        image, label_map = (read_sitk_image(path) for path in (evaluation.images[case], reference))
    except ValueError:
        return False
    return bool(image.GetSize() == label_map.GetSize())


def _described(evaluation: Evaluation, case: str, models: list[str]) -> str:
    """Describe in words the case, its phase, and the Dice of the predictions shown."""
    scores = evaluation.scores
    own = scores[(scores["case"] == case) & (scores["seed"] == 0) & scores["model"].isin(models)]
    lines = []
    for model in models:
        dice = own[own["model"] == model].set_index("class")["dice"]
        named = f"{model}: " if len(evaluation.models) > 1 else ""
        shown = evaluation.labels.shown
        lines.append(f"{named}{', '.join(f'{shown(str(n))} {d:.2f}' for n, d in dice.items())}")
    return f"{_frame(evaluation, case)}. Dice of {'; '.join(lines)}."


def _overlay(evaluation: Evaluation, case: str, models: list[str]) -> bytes:
    """Draw a basal, middle and apical slice of a case: the reference and each model's first seed."""
    image = read_array(evaluation.images[case])
    pairs = {pair.model: pair for pair in evaluation.pairs if (pair.case, pair.seed) == (case, 0)}
    reference = read_label_map(pairs[models[0]].reference)
    predictions = {name: read_predicted_labels(pairs[name]) for name in models}
    maps = {"Reference": reference, **predictions}
    z, window = slices_to_show(reference, 3), label_window(reference)
    base = evaluation.frames.loc[evaluation.frames["case"] == case, "base"].iloc[0]
    along = {"first": ("basal", "middle", "apical"), "last": ("apical", "middle", "basal")}
    rows = {
        name: [
            Overlay(image[i][window], labels[i][window], reference[i][window] if row else None)
            for i in z
        ]
        for row, (name, labels) in enumerate(maps.items())
    }
    numbers = [f"slice {i + 1}" for i in z]
    places = along.get(base)
    columns = [f"{p}, {n}" for p, n in zip(places, numbers, strict=True)] if places else numbers
    labels = evaluation.labels
    painted = {labels.shown(n): v for n, v in labels.classes.items()}
    return overlay_grid(rows, columns, painted, _frame(evaluation, case))


def _frame(evaluation: Evaluation, case: str) -> str:
    """Name a case with its phase."""
    scores = evaluation.scores
    phase = scores.loc[scores["case"] == case, "phase"].iloc[0]
    return ", ".join(word for word in (case, phase) if word)


def _add_clinical(page: Page, evaluation: Evaluation) -> None:
    page.heading("Clinical metrics")
    if everyone := evaluation.refused.get("all"):
        page.paragraph(f"None: {everyone}.")
        return
    if evaluation.refused:
        page.table(
            ["Subject", "Refused because of"],
            list(evaluation.refused.items()),
            caption="Subjects without clinical metrics",
        )
    if evaluation.clinical.empty:
        page.paragraph("None: no subject has both an ED and an ES frame.")
        return
    rows: list[list[Cell]] = []
    for row in evaluation.agreement.to_dict("records"):
        # What is looked for first comes first: a phone shows three or four columns
        cells = [f"{row['figure']} ({row['unit']})", row["model"]]
        numbers = [row["predicted"], row["reference"], row["bias"], row["sd"]]
        agreed = limits(row["lower"], row["upper"])
        errors = (rounded(row[name], 1) for name in ("mae", "percent_error"))
        rows.append(
            [
                *cells,
                *(rounded(number, 1) for number in numbers),
                *(agreed, *errors, row["correlation"], row["n_subjects"]),
            ]
        )
    _add_table(
        page,
        evaluation,
        [
            *("Metric", "Model", "Predicted", "Reference", "Bias", "SD"),
            *("95 % limits", "MAE", "Error (%)", "r", "Subjects"),
        ],
        rows,
        caption="Volumes are those of the voxels at the reference’s ED and ES frames; mass is that of the myocardium "
        "at ED, 1.05 g/ml. Means over the subjects that have the metric in reference and prediction, of which a model "
        "may have fewer than another (no EF without an EDV); their number is that of the seed with fewest. "
        "Bias: predicted minus reference, and its standard deviation; limits: bias ± 1.96 SD (Bland and Altman); "
        "MAE: mean absolute error; error (%): mean of the errors in percent of the reference; r: Pearson’s "
        f"correlation. No limits and no r under {SUBJECTS_TO_INFER} subjects.",
        collapse_above=40,
    )
    for model in evaluation.models:
        if plots := list(_bland_altman_plots(evaluation, model)):
            page.gallery(
                plots,
                caption=f"{model}: difference to the reference against the mean of both, with bias and 95 % limits of "
                "agreement. A dot is a subject and seed.",
            )
    for line in without_agreement(evaluation):
        page.paragraph(line)


def _bland_altman_plots(
    evaluation: Evaluation, model: str
) -> Iterator[tuple[Callable[[Figure], None], str]]:
    clinical = evaluation.clinical[evaluation.clinical["model"] == model]
    agreement = evaluation.agreement
    rows = agreement[agreement["model"] == model].set_index("figure")
    whose = f", {model}" if len(evaluation.models) > 1 else ""
    for metric, own in clinical.groupby("figure", sort=False):
        line = rows.loc[metric]
        lines = (float(line["lower"]), float(line["bias"]), float(line["upper"]))
        own = own.dropna(subset="error")
        if line["n_subjects"] < SUBJECTS_TO_INFER:
            continue
        yield (
            bland_altman(
                own["reference"].to_numpy(),
                own["predicted"].to_numpy(),
                lines,
                f"{metric}{whose}",
                line["unit"],
            ),
            f"Bland-Altman plot of {metric}.",
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
    own = evaluation.labels.structures.items()
    structures = ", ".join(f"{name} for {s}" for s, name in own if name != s)
    if structures:
        structures = f"The dataset, and with it the tables beside this page, say {structures}."
    page.paragraph(
        "Dice is that of whole 3D frames. HD95 and ASSD are distances between the surface voxels of prediction and "
        "reference in mm: the larger of the two directions’ 95th percentiles, and the mean over both surfaces. "
        "Confidence intervals: percentile bootstrap over subjects, 10,000 resamples, seed 0. Class “mean”: the mean "
        f"of the classes of each frame. {structures}"
    )
    page.table(
        ["Model", "Predictions"],
        [[name, _place(f)] for name, folders in evaluation.models.items() for f in folders],
    )


def _place(folder: Path) -> str:
    """Return a folder as seen from the working folder, or its last names: the page may be shared."""
    here = Path.cwd()
    if folder.is_relative_to(here) and folder != here:
        return str(folder.relative_to(here))
    return "/".join(["...", *folder.parts[1:][-3:]])


def _add_table(
    page: Page,
    evaluation: Evaluation,
    columns: Sequence[str],
    rows: list[list[Cell]],
    **options: Any,
) -> None:
    """Add a table; leave out the column `Model` if there is only one model."""
    kept = [i for i, name in enumerate(columns) if name != "Model" or len(evaluation.models) > 1]
    page.table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], **options)
