"""Pseudonyms of local subjects, and the key that leads from them back to names.

The key is a table in the hidden folder `.ssp-keys` beside the datasets of nnUNet_raw, readable by its owner alone. No
dataset contains it, so that copies of a dataset are without it.
"""

from __future__ import annotations

import csv
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from nnunet_ssp.files.atomic import atomic_write
from nnunet_ssp.files.contents import shown
from nnunet_ssp.files.tables import read_table

FOLDER = ".ssp-keys"
COLUMNS = ("pseudonym", "name")
DIGITS = 8  # hexadecimal: two sites of 1000 subjects share one in 4000 times, which would look like a leak


def key_file(dataset: Path) -> Path:
    """Return the path of a dataset's key.

    Args:
        dataset: Its folder in nnUNet_raw.
    """
    return dataset.parent / FOLDER / f"{dataset.name}.csv"


def read_key(file: Path) -> dict[str, str]:
    """Return the pseudonyms by name; none where there is no file.

    Raises:
        ValueError: A name or pseudonym is empty or occurs twice.
    """
    if not file.is_file():
        return {}
    key: dict[str, str] = {}
    for row in read_table(file, COLUMNS, nothing=()):
        name, pseudonym = row["name"], row["pseudonym"]
        if not name or not pseudonym or name in key or pseudonym in key.values():
            raise ValueError(
                f"{file}, row {row['row']}: `name` (={name}) and `pseudonym` (={pseudonym}) must occur once each."
            )
        key[name] = pseudonym
    return key


def extend_key(file: Path, names: Iterable[str]) -> dict[str, str]:
    """Give each new name a pseudonym and write the key; existing pseudonyms stay.

    A name that the key of another dataset has keeps its pseudonym, so that the checks for leaks know a subject in both.

    Args:
        file: The key; created with its folder.
        names: Names of the subjects.

    Returns:
        The pseudonyms by name, of all subjects of the key.

    Raises:
        ValueError: See `read_key`; or two names differ in outer blanks alone, which a table does not keep.
    """
    given: dict[str, str] = {}
    for name in names:
        if given.setdefault(name.strip(), name) != name:
            raise ValueError(
                f"{file}: the names of two subjects, {shown(name)} and {shown(given[name.strip()])}, must differ in "
                "more than outer blanks."
            )
    key = read_key(file)
    known: dict[str, str] = {}
    for other in sorted(file.parent.glob("*.csv")):
        known = read_key(other) | known
    new = sorted(given.keys() - key.keys())
    for name in new:
        taken = {*key.values()}
        pseudonym = known.get(name, "")
        while not pseudonym or pseudonym in taken:
            taken |= {*known.values()}
            pseudonym = f"p{secrets.token_hex(DIGITS // 2)}"
        key[name] = pseudonym
    if new:
        rows = sorted((pseudonym, name) for name, pseudonym in key.items())
        _write_key(file, [COLUMNS, *rows])
    return key | {name: key[short] for short, name in given.items()}


def _write_key(file: Path, rows: Iterable[tuple[str, ...]]) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.touch(mode=0o600)
        with open(temporary, "w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows(rows)


def write_log(file: Path, log: Mapping[str, object]) -> Path:
    """Write what was said about subjects, in their own names, beside the key; return the file."""
    file = file.with_suffix(".json")
    with atomic_write(file) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
    return file
