"""The main results as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from nnunet_ssp.console import count_of
from nnunet_ssp.evaluation.results import Evaluation
from nnunet_ssp.evaluation.statistics import MEAN, SUBJECTS_TO_INFER
from nnunet_ssp.reporting.page import GAP
from nnunet_ssp.reporting.wording import interval, limits, listing, p_value, rounded

AGREEMENT = "95 % limits of agreement, r and Bland-Altman plot"


def summary_text(evaluation: Evaluation) -> str:
    """Write the main results for the terminal."""
    distances = evaluation.has_distances
    columns = ["model", "class", "Dice", "95 % CI", *["HD95 mm", "ASSD mm"] * distances, "missed"]
    rows = [columns]
    for row in evaluation.overall.to_dict("records"):
        name = evaluation.labels.shown(row["class"])
        cells = [row["model"], name, f"{row['dice_mean']:.3f}", interval(row, "dice")]
        if distances:
            cells += [rounded(row["hd95_mm_mean"], 1), rounded(row["assd_mm_mean"], 1)]
        rows.append([*cells, str(row["missed"])])
    lines = [introduction(evaluation), "", *_aligned(rows)]
    if len(evaluation.models) > 1:
        lines += _compared(evaluation, "Dice")
        if distances:
            lines += _compared(evaluation, "HD95 (mm)", " where neither missed a class")
    if len(evaluation.agreement):
        rows = [["model", "metric", "subjects", "reference", "bias", "95 % limits", "r"]]
        for row in evaluation.agreement.to_dict("records"):
            agreed = limits(row["lower"], row["upper"])
            cells = [row["model"], f"{row['figure']} ({row['unit']})", str(row["n_subjects"])]
            cells += [rounded(row["reference"], 1), rounded(row["bias"], 1), agreed]
            rows.append([*cells, rounded(row["correlation"], 3)])
        lines += ["", *_aligned(rows)]
        # With fewer subjects a note says it of all
        if evaluation.frames["subject"].nunique() >= SUBJECTS_TO_INFER:
            lines += without_agreement(evaluation)
    remarks = [note if note.startswith("WARNING") else f"Note: {note}" for note in evaluation.notes]
    for subject, reason in evaluation.refused.items():
        whose = "" if subject == "all" else f" of {subject}"
        remarks.append(f"No clinical metrics{whose}: {reason}.")
    return "\n".join([*lines, "", *remarks] if remarks else lines)


def _compared(evaluation: Evaluation, score: str, where: str = "") -> list[str]:
    """Compare the models' mean of a score with the baseline's; with `where`, also count what was missed."""
    lines = ["", f"Mean {score} compared with {evaluation.baseline}{where}:"]
    table = evaluation.comparisons
    for row in table[table["score"] == f"{score}, {MEAN}"].to_dict("records"):
        difference = f"{row['difference']:+.3f}" if row["n_subjects"] else GAP
        missed = f"; missed {row['missed']}, {evaluation.baseline} {row['missed_baseline']}"
        p = f"p {p_value(row['p'])}, after Holm {p_value(row['p_holm'])}"
        if row["n_subjects"] < SUBJECTS_TO_INFER:
            p = f"no 95 % CI and no p value, which take {SUBJECTS_TO_INFER} subjects"
        else:
            difference += f" ({interval(row)})"
        lines.append(
            f"  {row['model']}: {difference}, better on {row['n_better']} of {row['n_subjects']} "
            f"subjects; {p}"
            f"{missed if where else ''}"
        )
    return lines


def without_agreement(evaluation: Evaluation) -> Iterator[str]:
    """Yield what has no limits of agreement, and why: a line for each model where they differ."""
    few = evaluation.agreement["n_subjects"] < SUBJECTS_TO_INFER
    why = f"they take {SUBJECTS_TO_INFER} subjects with the metric, and there are fewer"
    if few.all():
        yield f"No {AGREEMENT}: {why}."
        return
    for model, own in evaluation.agreement[few].groupby("model", sort=False):
        whose = f" for {model}" if len(evaluation.models) > 1 else ""
        yield f"No {AGREEMENT} of {listing([*own['figure']])}{whose}: {why}."


def _aligned(rows: list[list[str]]) -> list[str]:
    """Align columns for the terminal, the first two flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{'<' if i < 2 else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def introduction(evaluation: Evaluation) -> str:
    """Say in a sentence what was evaluated."""
    frames = evaluation.frames
    counts = frames.drop_duplicates("case")["phase"].value_counts()
    named = [f"{counts[phase]} {phase}" for phase in evaluation.phases]
    seeds = frames.groupby("model", sort=False)["seed"].nunique()
    models = [f"{model} ({n} seeds)" if n > 1 else str(model) for model, n in seeds.items()]
    return (
        f"{count_of(frames['case'].nunique(), 'frame')} ({', '.join(named) or 'of unknown phase'}) "
        f"of {count_of(frames['subject'].nunique(), 'subject')}, predicted by {listing(models)}."
    )
