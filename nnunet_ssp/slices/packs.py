"""Packs: many small cases of a slice store in one file, one array behind the other.

A pack is written once and never changed. When a case of it has changed, or is gone, all of its cases are made anew, so
that a store holds no bytes that nobody reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_ssp.files.atomic import TEMPORARY, atomic_write
from nnunet_ssp.files.names import must_be_plain
from nnunet_ssp.slices.intact import file_stamp
from nnunet_ssp.slices.store import PACK, StoredCase

CASES = 256  # of one pack, at most: few files, and little to do again when one of them has changed


def pack_name(cases: Iterable[str]) -> str:
    """Return the name of the pack of these cases; packs of a store share no case, so it is the only one."""
    return f"pack_{hashlib.sha256(chr(10).join(cases).encode()).hexdigest()[:16]}.f16"


def write_pack(
    folder: Path, name: str, cases: Iterable[tuple[str, NDArray[np.float16], StoredCase]]
) -> dict[str, StoredCase]:
    """Write a pack, one case at a time, whole or not at all.

    Args:
        folder: The store; created when missing.
        name: Name of the pack, see `pack_name`.
        cases: Name, array (slices, channels, rows, cols) and entry of each case; without any there is no pack.

    Returns:
        The entries, which now say where the arrays are.
    """
    remaining = iter(cases)
    first = next(remaining, None)
    if first is None:
        return {}
    entries: dict[str, StoredCase] = {}
    with (
        atomic_write(folder / name, folder.parent / TEMPORARY) as temporary,
        open(temporary, "wb") as stream,
    ):
        for case, slices, entry in chain([first], remaining):
            must_be_plain(case, "case", str(folder))
            entries[case] = replace(entry, shape=slices.shape, pack=name, offset=stream.tell())
            slices.tofile(stream)
    stored = (file_stamp(folder / name),)
    return {case: replace(entry, stored=stored) for case, entry in entries.items()}


def in_whole_packs(
    valid: Mapping[str, StoredCase], stored: Mapping[str, StoredCase]
) -> dict[str, StoredCase]:
    """Return the valid cases without those of packs that hold another case.

    Args:
        valid: Entries of the cases that are as they should be.
        stored: All entries of the store.
    """
    broken = {entry.pack for case, entry in stored.items() if case not in valid} - {""}
    return {case: entry for case, entry in valid.items() if entry.pack not in broken}


def remove_other_packs(folder: Path, cases: Mapping[str, StoredCase]) -> None:
    """Remove the packs of a store that hold none of these cases."""
    used = {entry.pack for entry in cases.values()}
    for file in folder.glob("pack_*.f16"):
        if PACK.fullmatch(file.name) and file.name not in used:
            file.unlink()
