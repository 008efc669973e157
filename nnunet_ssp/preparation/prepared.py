"""The record of the cases that `prepare` has written files of: what is removed later is theirs, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import is_plain

RECORD = "prepared_cases.json"  # in the dataset's folder in nnUNet_preprocessed


def recorded(target: Path) -> set[str]:
    """The cases on record; none where there is no record, or a damaged one."""
    try:
        names = read_json(target / RECORD, list)
    except (OSError, ValueError):
        return set()
    return {name for name in names if is_plain(name)}


def record(target: Path, cases: Iterable[str]) -> None:
    """Put cases on record, before their first file is written, in place of those that were."""
    names = set(cases)
    if names != recorded(target):
        write_json(target / RECORD, sorted(names))


def remove_others(
    folder: Path, cases: Collection[str], endings: Sequence[str], keep: Collection[str]
) -> None:
    """Remove the files of recorded cases that are no longer wanted; other files are somebody else's.

    Args:
        folder: where they are.
        cases: the recorded cases.
        endings: of a case's files.
        keep: names of the files that stay.
    """
    for file in folder.iterdir() if folder.is_dir() else ():
        ours = any(
            file.name.removesuffix(end) in cases for end in endings if file.name.endswith(end)
        )
        if ours and file.name not in keep and (file.is_file() or file.is_symlink()):
            file.unlink()
