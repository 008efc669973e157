"""The record of a conversion, `convert.json`: its settings and remarks, by which a later call may continue it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_ssp.cohort.privacy import cut_paths, hashed_path
from nnunet_ssp.cohort.splits import FOLD_SOURCE
from nnunet_ssp.conversion.subjects import Outcome
from nnunet_ssp.files.atomic import TEMPORARY
from nnunet_ssp.files.contents import TEXTS, check, read_json
from nnunet_ssp.files.lock import LOCK
from nnunet_ssp.files.tables import read_table

OVERWRITES = "this deletes the converted dataset, never your files"
KEY_NOTE = (
    "Local subjects have pseudonyms. The key is {key}. It names patients: keep it, but apart from all that you share. "
    "{log} beside it has the remarks on these subjects. --keep-ids keeps names."
)


@dataclass(frozen=True)
class NewDataset:
    """The dataset that a conversion makes."""

    # 1 to 999
    dataset_id: int
    # The part of the folder's name after the id
    name: str
    # Of `dataset.json`: consecutive from background 0, also those that never occur
    labels: Mapping[str, int]
    description: str
    # For `convert.json`: the converter, its input folder, and all that changes the result
    converter: str
    source: Path
    options: Mapping[str, object]

    def settings(self) -> dict[str, object]:
        """Return the content of `convert.json`; only a run with equal settings continues another."""
        return with_hashed_paths(
            {
                "converter": self.converter,
                "input": str(self.source.resolve()),
                "options": dict(self.options),
            }
        )


def with_hashed_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace folders in the settings of a conversion by hashes: `convert.json` is a part of the dataset.

    Hashes stay as they are; records of earlier versions hold paths.
    """
    options = settings.get("options")
    if not isinstance(options, dict) or not isinstance(settings.get("input"), str):
        return dict(settings)
    options = {
        k: hashed_path(v) if isinstance(v, str) and Path(v).is_absolute() else v
        for k, v in options.items()
    }
    if isinstance(options.get("add"), list):
        parted = [str(text).partition(":") for text in options["add"]]
        options["add"] = [f"{name}:{hashed_path(folder)}" for name, _, folder in parted]
    return {**settings, "input": hashed_path(settings["input"]), "options": options}


def without_folder(text: str, folder: Path) -> str:
    """Shorten paths in a text: those in the input folder start there, all others keep their last name."""
    for beginning in (f"{folder.resolve()}{os.sep}", f"{folder}{os.sep}"):
        text = text.replace(beginning, "")
    return cut_paths(text)


def in_own_names(outcomes: Sequence[Outcome], names: Mapping[str, str]) -> list[Outcome]:
    """Return the outcomes under the names that the user knows."""
    return [replace(o, subject=names.get(o.subject, o.subject)) for o in outcomes]


def without_texts(log: Mapping[str, Any], names: Mapping[str, str], instead: str) -> dict[str, Any]:
    """Replace all texts about pseudonymous subjects, as these may name patients, files and folders."""
    return {
        kind: {s: [instead] if s in names else said for s, said in texts.items()}
        if isinstance(texts, dict)
        else texts
        for kind, texts in log.items()
    }


def check_folder(target: Path, settings: Mapping[str, object], overwrite: bool) -> None:
    """Check that the folder is new, or ours to continue or overwrite."""
    marker = target / "convert.json"
    if marker.is_file():
        if overwrite:
            return
        if (target / "dataset.json").exists():
            raise FileExistsError(
                f"{target}: a finished dataset; --overwrite converts again, as for new or mended subjects: "
                f"{OVERWRITES}. Else go on: nnunet-ssp prepare {target.name}"
            )
        earlier = with_hashed_paths(read_marker(target))
        for key, value in settings.items():
            if earlier.get(key) != value:
                raise FileExistsError(
                    f"{target}: an unfinished conversion with another `{key}` "
                    f"(={earlier.get(key)}, now {value}); with --overwrite it begins again: {OVERWRITES}."
                )
    elif target.exists() and any(
        not f.name.startswith((TEMPORARY, LOCK)) for f in target.iterdir()
    ):
        raise FileExistsError(
            f"{target}: holds no convert.json, so it is not ours to continue or overwrite; "
            "choose another id or remove it."
        )


def read_marker(target: Path) -> dict[str, Any]:
    """Return the checked content of `convert.json`."""
    file = target / "convert.json"
    content = read_json(file, dict)
    check(content, {"deleted_folds": TEXTS}, str(file))
    return content


def was_finished(target: Path, settings: Mapping[str, object]) -> bool:
    """Whether a run with these settings was killed when it had only temporary files left to remove."""
    return (target / TEMPORARY).exists() and is_finished(target, settings)


def is_finished(target: Path, settings: Mapping[str, object]) -> bool:
    """Whether the folder holds a whole dataset of a conversion with these settings."""
    if not all((target / name).exists() for name in ("convert.json", "dataset.json")):
        return False
    earlier = with_hashed_paths(read_marker(target))
    return all(earlier.get(key) == value for key, value in settings.items())


def appended_folds(target: Path) -> list[str]:
    """Return the folds that a user appended to an earlier conversion, or that an interrupted run deleted."""
    marker = read_marker(target)
    table = target / "folds.csv"
    rows = read_table(table, ["fold"], ["name", "source"]) if table.is_file() else []
    there = [
        f"fold {row['fold']} ({row['name']}: {row['source'] or 'unknown'})"
        for row in rows
        if row["source"] != FOLD_SOURCE
    ]
    return list(dict.fromkeys([*marker.get("deleted_folds", ()), *there]))
