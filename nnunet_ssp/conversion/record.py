"""The record of a conversion, `convert.json`: its settings and remarks, by which a later call may continue it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.privacy import cut_paths, hashed_path
from nnunet_ssp.cohort.pseudonyms import key_file, read_key
from nnunet_ssp.cohort.splits import FOLD_SOURCE
from nnunet_ssp.console import count_of, some
from nnunet_ssp.conversion.subjects import Outcome
from nnunet_ssp.files.atomic import TEMPORARY
from nnunet_ssp.files.contents import TEXTS, check, read_json
from nnunet_ssp.files.lock import LOCK
from nnunet_ssp.files.tables import read_table
from nnunet_ssp.launch import preparing_command

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
            if made := made_otherwise(target, settings):
                raise FileExistsError(
                    f"{target}: a finished dataset, {made}. Choose another -d: --overwrite would replace it: "
                    f"{OVERWRITES}."
                )
            raise FileExistsError(
                f"{target}: a finished dataset; --overwrite converts again, as for new or mended subjects: "
                f"{OVERWRITES}. Else go on: {preparing_command(target.name)}"
            )
        if other := differing_options(read_marker(target), settings):
            raise FileExistsError(
                f"{target}: an unfinished conversion with other settings: {'; '.join(other)}. To go on, repeat its "
                f"command; else choose another -d, or begin again with --overwrite: {OVERWRITES}."
            )
    elif target.exists() and any(
        not f.name.startswith((TEMPORARY, LOCK)) for f in target.iterdir()
    ):
        raise FileExistsError(
            f"{target}: holds no convert.json, so it is not ours to continue or overwrite; "
            "choose another id or remove it."
        )


def made_otherwise(target: Path, settings: Mapping[str, object]) -> str:
    """Say from what else a finished dataset was made, and of which subjects; empty where that is not so."""
    if not (target / "dataset.json").exists() or not (target / "convert.json").is_file():
        return ""
    earlier = with_hashed_paths(read_marker(target))
    if earlier.get("converter") != settings["converter"]:
        made = f"made by convert {earlier.get('converter')}"
    elif earlier.get("input") != settings["input"]:
        made = "made from another folder"
    else:
        return ""
    try:
        subjects = {case.subject for case in read_cases(target / "cases.csv").values()}
        names = {pseudonym: name for name, pseudonym in read_key(key_file(target)).items()}
    except (OSError, ValueError):  # natural images have no such table
        return made
    listed = some(sorted(names.get(subject, subject) for subject in subjects))
    return f"{made} with {count_of(len(subjects), 'subject')} ({listed})"


def differing_options(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words what another conversion's settings have in place of these.

    >>> differing_options({"input": "path:1", "options": {"test": "path:2"}}, {"input": "path:3", "options": {}})
    ['another folder -i', 'with --test, now without']
    """
    earlier = with_hashed_paths(earlier)
    said = []
    if earlier.get("converter") != now.get("converter"):
        said.append(f"by convert {earlier.get('converter')}, now {now.get('converter')}")
    if earlier.get("input") != now.get("input"):
        said.append("another folder -i")
    before, after = earlier.get("options"), now.get("options")
    before, after = (x if isinstance(x, dict) else {} for x in (before, after))
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            said.append(_difference(key, before.get(key), after.get(key)))
    return said


def _difference(key: str, before: object, after: object) -> str:
    """Return in words how an option differs; hashes tell only that it does."""
    if key == "pseudonyms":
        return "without --keep-ids, now with it" if before else "with --keep-ids, now without"
    if key == "mnms2":
        return "another second folder -i"
    option = f"--{key.replace('_', '-')}"
    shown = [_as_typed(value) for value in (before, after)]
    absent = [value is None or value is False or value in ([], "") for value in (before, after)]
    if any(absent):
        gone = absent[1]
        return f"with {option}{shown[0]}, now without" if gone else f"without {option}, now with it"
    if not all(shown):
        return f"another {option}"
    return f"{option}{shown[0]}, now{shown[1]}"


def _as_typed(value: object) -> str:
    """Return the values of an option after a blank; empty where they are hashes or none."""
    values = [str(one) for one in (value if isinstance(value, list) else [value])]
    plain = not isinstance(value, bool) and not any("path:" in one for one in values)
    return " " + some([shlex.quote(one) for one in values]) if plain else ""


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
