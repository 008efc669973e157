"""Pseudonyms of local subjects, and the key that leads from them back to names.

The key is a table in the hidden folder `.ssp-keys` beside the datasets of nnUNet_raw, readable by its owner alone. No
dataset contains it, so that copies of a dataset are without it.
"""

from __future__ import annotations

import csv
import json
import secrets
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from nnunet_ssp.cohort.cases import read_cases
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
        _write_key(file, key)
    return key | {name: key[short] for short, name in given.items()}


def shorten_key(file: Path, names: Iterable[str]) -> None:
    """Take names out of a key; remove an empty key, and the folder with the last one.

    Args:
        file: The key.
        names: Names that no dataset has got; the others stay.
    """
    key = read_key(file)
    kept = {name: pseudonym for name, pseudonym in key.items() if name not in {*names}}
    if kept == key:
        return
    if kept:
        _write_key(file, kept)
        return
    file.unlink()
    with suppress(OSError):  # it holds other keys
        file.parent.rmdir()


def named_otherwise(
    dataset: Path, names: Collection[str], sources: Collection[str], pseudonyms: bool
) -> list[str]:
    """Return the datasets that have some local subjects under the other kind of name.

    Args:
        dataset: Folder of the new dataset. What it holds now counts, and so do all others of its nnUNet_raw.
        names: Names of the local subjects.
        sources: Their sources, as in `cases.csv`.
        pseudonyms: Whether the new dataset gives them pseudonyms.
    """
    found = []
    for table in sorted(dataset.parent.glob("Dataset*/cases.csv")):
        try:
            cases, key = read_cases(table).values(), read_key(key_file(table.parent))
        except (OSError, ValueError):  # other commands name what is wrong with it
            continue
        others = names if pseudonyms else {key[name] for name in names if name in key}
        if any(case.source in sources and case.subject in others for case in cases):
            found.append(table.parent.name)
    return found


def _write_key(file: Path, key: Mapping[str, str]) -> None:
    rows = sorted((pseudonym, name) for name, pseudonym in key.items())
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.touch(mode=0o600)
        with open(temporary, "w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows([COLUMNS, *rows])


def write_log(file: Path, log: Mapping[str, object]) -> Path:
    """Write what was said about subjects, in their own names, beside the key; return the file."""
    file = file.with_suffix(".json")
    with atomic_write(file) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
    return file
