"""What a pretraining gained over its baseline: as a study has measured these weights, or others of their method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_ssp.evaluation.statistics import SUBJECTS_TO_INFER
from nnunet_ssp.files.tables import read_table
from nnunet_ssp.training.evidence import WHERE, read_measured, rows_of

COMPARISONS = "comparisons.csv"  # of a study's folder
REPORTED = "reported-"  # before the names of what is scored once, on the test subjects
STUDY = "workflow.json"  # a study's folder holds this file
FOLDER = "pretraining"  # of a study, where its pretrainings are
TEXTS = ("scored_on", "trainer", "settings", "trainer_baseline", "settings_baseline")
COUNTS = ("labelled_subjects", "n_subjects", "n_seeds", "n_better", "n_seeds_better")
INFERRED = ("low", "high", "low_seeds", "high_seeds", "p", "p_holm")
NUMBERS = ("dice", "dice_baseline", "difference", *INFERRED)
COLUMNS = ("model", "baseline", "fold", "pretraining", *TEXTS, *COUNTS, *NUMBERS)
THESE, OTHERS = "these weights", f"other weights of this method, see {WHERE} of nnunet-ssp"
# Settings that may tell names.
PRIVATE = ("subject_pattern=",)


def measured_gains(
    checkpoint: Path, method: str, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what was measured, for a card.

    Args:
        checkpoint: A pretraining's; if a study has made it, that study's comparisons count.
        method: Name of its method, for which the package may know figures of other weights.
        settings: Those that it recorded; figures of another recipe do not count.

    Returns:
        `of`, the weights that were measured, and `rows`, one per comparison; nothing if nothing was measured.

    Raises:
        ValueError: The study's table cannot be read.
    """
    if rows := _of_study(checkpoint.resolve()):
        return {"of": THESE, "rows": rows}
    rows = [
        {name: value for name, value in row.items() if name != "method"}
        for row in rows_of(read_measured(), method, settings)
    ]
    return {"of": OTHERS, "rows": rows} if rows else {}


def _of_study(checkpoint: Path) -> list[dict[str, Any]]:
    for folder in checkpoint.parents:
        parts = checkpoint.relative_to(folder).parts
        if parts[0] == FOLDER and (folder / STUDY).is_file():
            own = "/".join(parts)
            tables = (folder / f"{prefix}{COMPARISONS}" for prefix in (REPORTED, ""))
            return [row for table in tables if table.is_file() for row in _rows(table, own)]
    return []


def _rows(table: Path, pretraining: str) -> Iterable[dict[str, Any]]:
    """Yield the comparisons of a pretraining, without the study's names, which may tell whose data they are."""
    for row in read_table(table, COLUMNS):
        if row["pretraining"] != pretraining:
            continue
        found: dict[str, Any] = {name: row[name] for name in TEXTS}
        for name in ("settings", "settings_baseline"):
            words = [word for word in row[name].split() if not word.startswith(PRIVATE)]
            found[name] = " ".join(words)
        for name in (*COUNTS, *NUMBERS):
            value = _number(row[name], f"{table}, {name}")
            if value is not None:
                found[name] = int(value) if value.is_integer() and name in COUNTS else value
        if (
            found.get("n_subjects", 0) < SUBJECTS_TO_INFER
        ):  # a table of an earlier version has intervals
            found = {name: value for name, value in found.items() if name not in INFERRED}
        yield found


def _number(text: str, where: str) -> float | None:
    """Read a number; None for an empty text, as a p value of too few subjects."""
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise ValueError(
            f"{where} (={text}) must be a number: make the study's tables anew, with --results."
        )
    return value
