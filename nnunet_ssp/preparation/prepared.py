"""The record of the cases whose files `prepare` has written; only their files are removed later."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import is_plain

RECORD = "prepared_cases.json"  # in the dataset's folder in nnUNet_preprocessed


def recorded(target: Path) -> set[str]:
    """Read the recorded cases; none if the record is missing or damaged."""
    try:
        names = read_json(target / RECORD, list)
    except (OSError, ValueError):
        return set()
    return {name for name in names if is_plain(name)}


def record(target: Path, cases: Iterable[str]) -> None:
    """Replace the recorded cases, before the first file of a new one is written."""
    names = set(cases)
    if names != recorded(target):
        write_json(target / RECORD, sorted(names))


def remove_others(
    folder: Path, cases: Collection[str], endings: Sequence[str], keep: Collection[str]
) -> None:
    """Remove the files of recorded cases that are no longer wanted; other files are not ours.

    Args:
        folder: Where the files are.
        cases: The recorded cases.
        endings: Endings of a case's files.
        keep: Names of the files that stay.
    """
    for file in folder.iterdir() if folder.is_dir() else ():
        ours = any(
            file.name.removesuffix(end) in cases for end in endings if file.name.endswith(end)
        )
        if ours and file.name not in keep and (file.is_file() or file.is_symlink()):
            file.unlink()
