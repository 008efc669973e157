"""The card of a shared pretraining: what it is and what it has seen, as JSON and as a page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.cases import Case, read_cases
from nnunet_ssp.console import count_of
from nnunet_ssp.evaluation.statistics import SUBJECTS_TO_INFER
from nnunet_ssp.files.bundles import FORMAT, VERSION
from nnunet_ssp.files.contents import printable
from nnunet_ssp.slices.store import INDEX, read_index, store_folder

GROUPS = ("source", "vendor", "field")
NOT_MEASURED = (
    "lrs",
    "images_per_second",
    *privacy.TIMES,
)  # curves that say nothing about the weights
NNUNET = "Isensee et al., nnU-Net, Nature Methods 18, 203-211, 2021."
MEASURED = (
    "Mean 3D Dice of fine-tunings and of their baselines. Differences are paired by subject, with 95 % bootstrap "
    "intervals over subjects and over seeds and subjects; p is of a one-sided Wilcoxon signed-rank test. Under "
    f"{SUBJECTS_TO_INFER} subjects there is neither."
)
FRONT_MATTER = """---
library_name: nnunet-ssp
pipeline_tag: image-segmentation
tags: [nnU-Net, self-supervised-learning, cardiac-mri, cine-mri]
---
"""


def prepared_folder(dataset_name: object) -> Path | None:
    """Return the dataset's folder in nnUNet_preprocessed, where this machine has it."""
    base = os.environ.get("nnUNet_preprocessed")
    if not base or not isinstance(dataset_name, str) or not dataset_name:
        return None
    folder = Path(base) / dataset_name
    return folder if folder.is_dir() else None


def seen_cases(
    record: Mapping[str, Any], prepared: Path | None, data_identifier: str
) -> dict[str, tuple[Case, int]]:
    """Return the frames that a pretraining has drawn from, each with its number of slices.

    Args:
        record: The pretraining's record.
        prepared: The dataset's folder in nnUNet_preprocessed.
        data_identifier: Of the configuration.

    Returns:
        Rows of `cases.csv` by case; empty where these are not to be had, or have changed since.
    """
    if prepared is None or not (prepared / "cases.csv").is_file():
        return {}
    store = store_folder(prepared, data_identifier)
    if not (store / INDEX).is_file():
        return {}
    _, index = read_index(store)
    hashes = privacy.hashed_subjects(record.get("subjects", ()))
    seen = {
        name: (case, index[name].shape[0])
        for name, case in read_cases(prepared / "cases.csv").items()
        if name in index and privacy.hashed_subject(case.subject_key) in hashes
    }
    counts = {
        "subjects": len({case.subject_key for case, _ in seen.values()}),
        "frames": len(seen),
        "slices": sum(slices for _, slices in seen.values()),
    }
    return seen if counts == record.get("counts") else {}


def by_group(seen: Mapping[str, tuple[Case, int]]) -> list[dict[str, Any]]:
    """Count subjects, frames and slices per source, vendor and field strength."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    subjects: dict[tuple[str, ...], set[str]] = {}
    for case, slices in seen.values():
        key = tuple(getattr(case, name) for name in GROUPS)
        row = rows.setdefault(
            key, dict(zip(GROUPS, key, strict=True)) | dict.fromkeys(("subjects", "frames"), 0)
        )
        subjects.setdefault(key, set()).add(case.subject_key)
        row["subjects"] = len(subjects[key])
        row["frames"] += 1
        row["slices"] = row.get("slices", 0) + slices
    return [rows[key] for key in sorted(rows)]


def last_values(logging: Mapping[str, Any]) -> dict[str, float]:
    """Return the last value of each of a training's curves."""
    last = {}
    for name, curve in logging.items():
        if name in NOT_MEASURED or not isinstance(curve, list) or not curve:
            continue
        value = curve[-1]
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            last[name] = float(value)
    return last


def card_of(
    name: str,
    content: Mapping[str, Any],
    seen: Mapping[str, tuple[Case, int]],
    licences: Sequence[str],
    names: bool,
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of `card.json`.

    Args:
        name: Of the pretraining.
        content: Content of its checkpoint without names and paths, see `privacy.stripped`.
        seen: From `seen_cases`.
        licences: Of the data.
        names: Whether to list the subjects by name.
        measured: From `gains.measured_gains`.
    """
    record, arguments = content["ssp"], content["init_args"]
    data: dict[str, Any] = {
        "counts": record.get("counts", {}),
        "by_group": by_group(seen),
        "licences": list(licences),
    }
    if names:
        data["subjects"] = sorted({case.subject_key for case, _ in seen.values()})
    earlier = [*record.get("chain", []), record.get("pretraining", {}), record]
    papers = [paper for link in earlier for paper in link.get("papers", ())]
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "configuration": arguments["configuration"],
        "plans_name": arguments["plans"].get("plans_name", ""),
        "channel_names": arguments.get("dataset_json", {}).get("channel_names", {}),
        "data": data,
        "epochs": content.get("current_epoch"),
        "last_values": last_values(content.get("logging", {})),
        "measured": dict(measured),
        "papers": [*dict.fromkeys(papers), NNUNET],
        "record": record,
    }


def page_of(card: Mapping[str, Any], configuration: Mapping[str, Any], hub: bool) -> str:
    """Return the card as Markdown.

    Args:
        card: From `card_of`.
        configuration: The configuration of the network.
        hub: Whether the page is read on a hub, which wants a header.
    """
    record, data = card["record"], card["data"]
    counts = ", ".join(count_of(n, what.removesuffix("s")) for what, n in data["counts"].items())
    spacing = " x ".join(f"{side:g}" for side in configuration["spacing"])
    patch = " x ".join(map(str, configuration["patch_size"]))
    width = ", ".join(configuration["normalization_schemes"])
    what = "folder" if hub else "zip"
    lines = [
        f"# {_cell(card['name'])}",
        "",
        f"nnU-Net's planned 2D network, pretrained without labels by [nnunet-ssp]: {_cell(record['method'])}, "
        f"{_cell(record.get('transfers', ''))}.",
        "",
        f"* **Data**: {counts or 'not recorded'}. Licences: {_cell('; '.join(data['licences'])) or 'not stated'}.",
        f"* **Input**: {count_of(len(card['channel_names']), 'channel')}, {spacing} mm, {width}; patch {patch}.",
        f"* **Epochs**: {card['epochs'] if card['epochs'] is not None else 'not recorded'}.",
        "* **Subjects**: "
        + (
            _cell(", ".join(data["subjects"])) or "no names known"
            if "subjects" in data
            else "hashes only, for the check that no test subject was seen."
        ),
        "",
        "## Use",
        "",
        "```bash",
        f"nnunet-ssp import THIS_{what.upper()} -d DATASET     # checks it, and says how to go on",
        "```",
        "",
    ]
    if data["by_group"]:
        lines += ["## Data", "", *_table(data["by_group"]), ""]
    if record.get("chain"):
        links = [
            {"training": link.get("method", link.get("trainer", "")), **link.get("counts", {})}
            for link in record["chain"]
        ]
        lines += ["## Trained before that", "", *_table(links), ""]
    if measured := card.get("measured"):
        rows = [{name: _value(value) for name, value in row.items()} for row in measured["rows"]]
        lines += [f"## Measured, {measured['of']}", "", MEASURED, "", *_table(rows), ""]
    for title, values in (
        ("Settings", record.get("settings", {})),
        ("Last values", card["last_values"]),
        ("Versions", record.get("versions", {})),
    ):
        rows = [{"name": name, "value": _value(value)} for name, value in values.items()]
        lines += [f"## {title}", "", *_table(rows), ""] if rows else []
    lines += ["## Please cite", "", *(f"* {_cell(paper)}" for paper in card["papers"]), ""]
    text = "\n".join(lines)
    return FRONT_MATTER + text if hub else text


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    body = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    return [
        f"| {' | '.join(map(_cell, cells))} |" for cells in (columns, ["---"] * len(columns), *body)
    ]


def _cell(value: object) -> str:
    """Return a text that stays in its cell."""
    return printable(str(value)).replace("|", "/").replace("<", "&lt;")


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
