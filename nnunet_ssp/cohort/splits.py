"""Reading, writing and copying of `splits_final.json` and `folds.csv`, and the default folds by subject."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.files.atomic import atomic_write, write_json, write_table
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import must_all_be_plain

FOLD_COLUMNS = ("fold", "name", "n_train_subjects", "n_val_subjects", "source")
NNUNET_FOLDS = 5  # that nnU-Net draws itself
FOLD_SEED = 12345  # nnU-Net's own seed for its cross-validation
FOLD_SOURCE = f"by subject, stratified by vendor, seed {FOLD_SEED}"


def subject_folds(
    subjects: Mapping[str, str], n_folds: int = 5, seed: int = FOLD_SEED
) -> list[list[str]]:
    """Divide subjects into validation folds, stratified by vendor.

    Every subject is in exactly one fold. Folds differ by at most one subject, in total and for each vendor. There are
    never more folds than subjects, and none for a single subject.

    Args:
        subjects: Vendor of each subject.
        n_folds: Number of folds, at least 2.
        seed: The same seed and subjects give the same folds.

    Returns:
        The validation subjects of each fold, sorted.
    """
    if n_folds < 2:
        raise ValueError(f"`n_folds` (={n_folds}) must be at least 2.")
    n_folds = min(n_folds, len(subjects))
    if n_folds < 2:
        return []
    generator = random.Random(seed)
    dealt: list[str] = []
    for vendor in sorted(set(subjects.values())):
        group = sorted(subject for subject in subjects if subjects[subject] == vendor)
        generator.shuffle(group)
        dealt += group
    # Dealing like cards across vendors balances each vendor and the total.
    return [sorted(dealt[fold::n_folds]) for fold in range(n_folds)]


def first_fold(splits: Path, n_labelled: int) -> str:
    """Return the first fold to train on.

    Args:
        splits: The dataset's `splits_final.json`; without the file nnU-Net draws five folds, which need as many cases.
        n_labelled: Number of labelled cases.
    """
    validated = bool(read_splits(splits)) if splits.is_file() else n_labelled >= NNUNET_FOLDS
    return "0" if n_labelled and validated else "all"


def make_splits(
    cases: Mapping[str, Case], n_folds: int = 5, seed: int = FOLD_SEED
) -> list[dict[str, list[str]]]:
    """Make a cross-validation by subject of the labelled training cases, in the form of nnU-Net's splits.

    Returns:
        `{"train": [...], "val": [...]}` for each fold. The list is empty for fewer than two labelled training subjects,
        which only nnU-Net's fold `all` can use.
    """
    labelled = [case for case in cases.values() if case.trainable]
    folds = subject_folds({case.subject_key: case.vendor for case in labelled}, n_folds, seed)
    return [
        {
            "train": sorted(case.case for case in labelled if case.subject_key not in val),
            "val": sorted(case.case for case in labelled if case.subject_key in val),
        }
        for val in folds
    ]


def read_splits(file: str | Path) -> list[dict[str, list[str]]]:
    """Read nnU-Net's `splits_final.json`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a list of folds with the case names of `train` and `val`.
    """
    splits = read_json(file, list)
    for number, fold in enumerate(splits):
        for side in ("train", "val"):
            names = fold.get(side) if isinstance(fold, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{file}: fold {number} must have a list of case names `{side}`.")
            must_all_be_plain(names, "case", f"{file}, fold {number}, `{side}`")
    return [{side: list(fold[side]) for side in ("train", "val")} for fold in splits]


def read_copy(prepared: Path) -> list[dict[str, list[str]]] | None:
    """Read the folds beside the prepared data; None if there is no copy, or a damaged one, to make anew."""
    try:
        return read_splits(prepared / "splits_final.json")
    except (FileNotFoundError, ValueError):
        return None


def write_splits(
    folder: str | Path,
    splits: Sequence[Mapping[str, Sequence[str]]],
    cases: Mapping[str, Case],
    names: Sequence[str],
    source: str | Sequence[str],
) -> None:
    """Write `splits_final.json` and its description, `folds.csv`, into a dataset's folder.

    Args:
        folder: `nnUNet_raw/DatasetXXX_Name` or `nnUNet_preprocessed/DatasetXXX_Name`.
        splits: Case names of `train` and `val` for each fold.
        cases: Every case that the splits name.
        names: One name for each fold.
        source: Origin of all folds, or of each.
    """
    folder = Path(folder)
    sources = [source] * len(splits) if isinstance(source, str) else source
    rows = [
        {
            "fold": number,
            "name": name,
            "n_train_subjects": len({cases[case].subject_key for case in fold["train"]}),
            "n_val_subjects": len({cases[case].subject_key for case in fold["val"]}),
            "source": origin,
        }
        for number, (fold, name, origin) in enumerate(zip(splits, names, sources, strict=True))
    ]
    # In this order: a run killed in between leaves names without folds; folds without names would be appended again.
    write_table(folder / "folds.csv", FOLD_COLUMNS, rows)
    write_json(folder / "splits_final.json", [dict(fold) for fold in splits])


def trained_folds(
    new: Sequence[Mapping[str, Sequence[str]]],
    old: Sequence[Mapping[str, Sequence[str]]],
    results: Path,
) -> list[int]:
    """Return the numbers of the folds that differ although `results`, a dataset's folder, were trained on them."""
    changed = [fold for fold, (a, b) in enumerate(zip_longest(new, old)) if a != b]
    return [fold for fold in changed if any(results.glob(f"*/fold_{fold}"))]


def copy_tables(raw: Path, prepared: Path, results: Path, overwrite: bool) -> list[int]:
    """Copy `cases.csv`, `folds.csv` and `splits_final.json`, if they exist, beside the prepared data.

    Args:
        raw: The dataset's folder in nnUNet_raw.
        prepared: Its folder in nnUNet_preprocessed.
        results: Its folder in nnUNet_results, which need not exist.
        overwrite: Whether to replace folds on which results were trained.

    Returns:
        The numbers of the folds that changed although results were trained on them.

    Raises:
        FileExistsError: There are such folds, and `overwrite` is False. Then nothing is copied.
    """
    name = "splits_final.json"
    trained = []
    if (raw / name).is_file():
        new, old = read_splits(raw / name), read_copy(prepared)
        trained = [] if old is None else trained_folds(new, old, results)
    if trained and not overwrite:
        raise FileExistsError(
            f"{raw / name}: fold {', '.join(map(str, trained))} differs from the one that results in {results} were "
            "trained on; --overwrite replaces it."
        )
    for table in ("cases.csv", "folds.csv", name):
        if (raw / table).is_file():
            with atomic_write(prepared / table) as temporary:
                shutil.copyfile(raw / table, temporary)
    return trained
