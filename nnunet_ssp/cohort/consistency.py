"""Checks that the parts of a dataset fit each other: its cases, its folds and their copies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.console import some

TABLES = ("cases.csv", "folds.csv", "splits_final.json")  # these are copied
HOLDS_NOBODY_OUT = "`val` is empty, so nobody is held out, and validation is on training cases"


def unknown_names(fold: Mapping[str, Collection[str]], known: Collection[str]) -> list[str]:
    """Say which names of a fold are unknown, one line a side.

    Args:
        fold: Case names of `train` and `val`.
        known: Those that a fold may name.
    """
    strangers = {side: set(fold[side]) - set(known) for side in ("train", "val")}
    return [
        f"`{side}` names {some(names)}, which must be labelled training cases of this dataset"
        for side, names in strangers.items()
        if names
    ]


def require_known_names(
    file: Path, folds: Sequence[Mapping[str, Collection[str]]], known: Collection[str]
) -> None:
    """Refuse folds with unknown names: a case that is misspelt in `val` would be trained on.

    Args:
        file: Where the folds are from, for the message.
        folds: Case names of `train` and `val`.
        known: Those that a fold may name.

    Raises:
        ValueError: A fold has unknown names; says which.
    """
    wrong = [
        f"fold {number}: {line}"
        for number, fold in enumerate(folds)
        for line in unknown_names(fold, known)
    ]
    if wrong:
        raise ValueError(f"{file}: {'; '.join(wrong)}.")


def differing_tables(raw: Path, prepared: Path) -> list[str]:
    """Return the tables whose copy beside the prepared data is missing or differs from the one in `nnUNet_raw`.

    Args:
        raw: The dataset's folder in nnUNet_raw; nothing differs from one that is not there.
        prepared: Its folder in nnUNet_preprocessed.
    """
    return [name for name in TABLES if (raw / name).is_file() and not _same(raw, prepared, name)]


def _same(raw: Path, prepared: Path, name: str) -> bool:
    copy = prepared / name
    return copy.is_file() and copy.read_bytes() == (raw / name).read_bytes()


def differing_fold(raw: Path, prepared: Path, fold: int) -> str:
    """Say how a fold differs between the two copies; empty where it does not.

    Args:
        raw: The dataset's folder in nnUNet_raw; nothing differs from one that is not there.
        prepared: Its folder in nnUNet_preprocessed.
        fold: Number of the fold.
    """
    differing = [name for name in differing_tables(raw, prepared) if name != "folds.csv"]
    if "splits_final.json" in differing:
        name = "splits_final.json"
        copies = [read_splits(folder / name)[fold : fold + 1] for folder in (raw, prepared)]
        if copies[0] == copies[1]:
            differing.remove(name)
    return "" if not differing else f"{' and '.join(differing)} in {prepared} and {raw} differ"
