"""How folds are made: the published split and its label subsets, subsets of any size, restrictions, split files.

Pure functions of the cases and a seed. A fold lists cases, as nnU-Net's `splits_final.json` does, but is always made
of whole subjects. The published lists of subjects are not in here, only the procedure that makes them (de Mooij et al.
2024, arXiv 2409.18100, and their code) and the checksums by which they are known.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.files.atomic import atomic_write, write_json, write_table
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import must_all_be_plain

UNITS = ("subjects", "slices")  # that the size of a label subset may count


@dataclass(frozen=True)
class Fold:
    """One fold: sorted case names of both sides, what it is called and where it comes from."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    source: str

    def same_cases(self, other: Fold) -> bool:
        """Whether both train and validate on the same cases."""
        return (self.train, self.val) == (other.train, other.val)


# -- subjects and cases --------------------------------------------------------------------------


def subjects_of(names: Iterable[str], cases: Mapping[str, Case]) -> set[str]:
    """The keys of the subjects that these cases show."""
    return {cases[name].subject_key for name in names}


def is_trainable(case: Case) -> bool:
    """Whether a fold may hold the case: labelled, and of no test subject."""
    return case.labelled and case.split == "train"


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Sort, then shuffle as `numpy.random.seed(seed); numpy.random.shuffle` do, which no numpy will change."""
    order = sorted(names)
    np.random.RandomState(seed).shuffle(order)
    return order


def is_from(vendor: str, wanted: Iterable[str]) -> bool:
    """Whether a vendor is one of those wanted: `GE` is also `GE MEDICAL SYSTEMS`, and SIEMENS is Siemens."""
    return any(vendor.casefold().startswith(name.casefold()) for name in wanted)


# -- the published folds -------------------------------------------------------------------------


def make_fold(
    name: str,
    train: Collection[str],
    val: Collection[str],
    cases: Mapping[str, Case],
    source: str,
    phase: str = "",
) -> Fold:
    """A fold of the labelled frames of these subjects, of one phase or of both."""

    def of(subjects: Collection[str]) -> tuple[str, ...]:
        chosen = set(subjects)
        return tuple(
            sorted(
                name
                for name, case in cases.items()
                if is_trainable(case) and case.subject_key in chosen and phase in ("", case.phase)
            )
        )

    return Fold(name, of(train), of(val), source)


# -- folds made from another fold ----------------------------------------------------------------


def restrict(
    fold: Fold, cases: Mapping[str, Case], vendors: Sequence[str] = (), phase: str = ""
) -> Fold:
    """Keep frames of some vendors or of one phase, on both sides of a fold.

    Args:
        fold: The fold to restrict.
        cases: Every case.
        vendors: Names or their beginnings, in any case; all vendors by default.
        phase: `ED`, `ES`, or empty for both.

    Raises:
        ValueError: No subject is of such a vendor, or one side would be empty.
    """
    known = sorted({cases[name].vendor for name in (*fold.train, *fold.val)})
    for vendor in vendors:
        if not any(is_from(other, [vendor]) for other in known):
            raise ValueError(
                f"`vendors` (={vendor}) must be among those of fold {fold.name}: {', '.join(known)}."
            )

    def keep(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            name
            for name in names
            if phase in ("", cases[name].phase)
            and (not vendors or is_from(cases[name].vendor, vendors))
        )

    what = [*(["+".join(vendors)] if vendors else []), *([phase] if phase else [])]
    source = f"{', '.join(what)} of {fold.name}"
    kept = Fold("-".join([fold.name, *what]), keep(fold.train), keep(fold.val), source)
    for side, names in (("training", kept.train), ("validation", kept.val)):
        if not names:
            raise ValueError(f"{source}: no {side} frame would be left.")
    return kept


def draw_subjects(subjects: Collection[str], n: int, seed: int) -> list[str]:
    """Draw label subsets that are nested: with one seed the smaller is part of the larger.

    Returns:
        n subjects, sorted.

    Raises:
        ValueError: n is below 1 or more than there are.
    """
    _check_number(n, len(subjects), "training subjects")
    return sorted(shuffled(subjects, seed)[:n])


def draw_slices(n_slices: Mapping[str, int], n: int, seed: int) -> list[str]:
    """Draw whole frames until they hold n slices; nested like `draw_subjects`.

    A case of nnU-Net is a frame, so a subset of single slices, as Kalapos and Gyires-Toth (2022) draw it, cannot be
    written as a fold: this one holds up to one frame more, its slices come in stacks, and the smallest is one frame.

    Args:
        n_slices: Slices of each frame.
        n: Slices wanted.
        seed: The same seed and frames give the same subset.

    Returns:
        Frames, sorted.

    Raises:
        ValueError: n is below 1 or more than there are.
    """
    _check_number(n, sum(n_slices.values()), "training slices")
    order = shuffled(n_slices, seed)
    before = np.cumsum([0] + [n_slices[name] for name in order[:-1]])
    return sorted(name for name, reached in zip(order, before, strict=True) if reached < n)


def _check_number(n: int, most: int, what: str) -> None:
    if not 1 <= n <= most:
        raise ValueError(f"a subset (={n}) must be within 1 to {most}, the number of {what}.")


def subsets(
    fold: Fold,
    cases: Mapping[str, Case],
    amounts: Sequence[int | float],
    seeds: Sequence[int],
    n_slices: Mapping[str, int] | None = None,
) -> list[Fold]:
    """Label subsets of a fold's training side; the validation stays.

    Args:
        fold: The fold to draw from.
        cases: Every case.
        amounts: Integers are numbers, floating point is a fraction within (0, 1] of the fold's training side.
        seeds: One subset of each amount for each seed.
        n_slices: Slices of each training frame, to count slices; without it, subjects are counted.

    Returns:
        A fold for each amount and seed; amounts that come to the same number give one.

    Raises:
        ValueError: An amount is below 1, above what there is, or no fraction.
    """
    subjects = subjects_of(fold.train, cases)
    total = sum(n_slices[name] for name in fold.train) if n_slices else len(subjects)
    unit = "slices" if n_slices else "subjects"
    found: dict[str, Fold] = {}
    for amount in amounts:
        n = amount if isinstance(amount, int) else part_of(amount, total)
        for seed in seeds:
            if n_slices:
                chosen = draw_slices({name: n_slices[name] for name in fold.train}, n, seed)
            else:
                drawn = set(draw_subjects(subjects, n, seed))
                chosen = [name for name in fold.train if cases[name].subject_key in drawn]
            name = subset_name(fold.name, n, seed, unit)
            source = f"{n} {unit if n > 1 else unit[:-1]} of {fold.name}, seed {seed}"
            if n_slices and (held := sum(n_slices[name] for name in chosen)) != n:
                source += f" ({held} held, in whole frames)"
            found[name] = replace(fold, name=name, train=tuple(chosen), source=source)
    return list(found.values())


def subset_name(base: str, n: int | str, seed: int | str, unit: str) -> str:
    """What a label subset of a fold is called; `unit` is one of `UNITS`."""
    return f"{base}-{'slices' if unit == 'slices' else 'nr'}{n}-seed{seed}"


def part_of(fraction: float, total: int) -> int:
    """The number that a fraction comes to, at least 1.

    Raises:
        ValueError: It is no fraction.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction (={fraction}) must be above 0 and at most 1.")
    return max(1, round(fraction * total))


def merge(folds: Sequence[Fold], new: Sequence[Fold], overwrite: bool = False) -> list[Fold]:
    """Append folds; those that are there keep their number, and their cases unless told otherwise.

    Args:
        folds: Those that are there.
        new: A fold of a known name must have the same cases, or it replaces the known one.
        overwrite: Whether it may.

    Raises:
        ValueError: A name is taken by a fold with other cases.
    """
    merged = list(folds)
    for fold in new:
        taken = {known.name: number for number, known in enumerate(merged)}
        if fold.name not in taken:
            merged.append(fold)
            continue
        number = taken[fold.name]
        if not merged[number].same_cases(fold):
            if not overwrite:
                raise ValueError(
                    f"the name {fold.name} is taken by fold {number}, which has other cases; --overwrite replaces it."
                )
            merged[number] = fold
    return merged


# -- split files ---------------------------------------------------------------------------------


FOLD_COLUMNS = ("fold", "name", "n_train_subjects", "n_val_subjects", "source")


FOLD_SEED = 12345  # nnU-Net's own seed for its cross-validation
FOLD_SOURCE = f"by subject, stratified by vendor, seed {FOLD_SEED}"


def subject_folds(
    subjects: Mapping[str, str], n_folds: int = 5, seed: int = FOLD_SEED
) -> list[list[str]]:
    """Divide subjects into validation folds, stratified by vendor.

    Every subject is in exactly one fold. Folds differ by at most one subject, in total and for
    each vendor. There are never more folds than subjects, and none at all for a single subject.

    Args:
        subjects: Vendor of each subject.
        n_folds: Number of folds wanted, at least 2.
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
    # Dealing on from vendor to vendor, like cards, keeps both each vendor and the total even.
    return [sorted(dealt[fold::n_folds]) for fold in range(n_folds)]


def make_splits(
    cases: Mapping[str, Case], n_folds: int = 5, seed: int = FOLD_SEED
) -> list[dict[str, list[str]]]:
    """Cross-validation by subject over the labelled training cases, as nnU-Net's splits.

    Returns:
        `{"train": [...], "val": [...]}` for each fold; an empty list with fewer than two labelled
        training subjects, where only nnU-Net's fold `all` makes sense.
    """
    labelled = [case for case in cases.values() if case.labelled and case.split == "train"]
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
        source: Where the folds come from, all of them or each.
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
    # A run that is killed between the two leaves names without folds; folds without names would be appended again.
    write_table(folder / "folds.csv", FOLD_COLUMNS, rows)
    write_json(folder / "splits_final.json", [dict(fold) for fold in splits])


def trained_folds(
    new: Sequence[Mapping[str, Sequence[str]]],
    old: Sequence[Mapping[str, Sequence[str]]],
    results: Path,
) -> list[int]:
    """The numbers of the folds that differ although `results`, a dataset's folder, were trained on them."""
    changed = [fold for fold, (a, b) in enumerate(zip_longest(new, old)) if a != b]
    return [fold for fold in changed if any(results.glob(f"*/fold_{fold}"))]


def copy_tables(raw: Path, prepared: Path, results: Path, overwrite: bool) -> list[int]:
    """Copy `cases.csv`, `folds.csv` and `splits_final.json`, those that there are, beside the prepared data.

    Args:
        raw: The dataset's folder in nnUNet_raw.
        prepared: Its folder in nnUNet_preprocessed.
        results: Its folder in nnUNet_results, which need not exist.
        overwrite: Also replace folds on which results were trained.

    Returns:
        The numbers of the folds that changed although results were trained on them.

    Raises:
        FileExistsError: There are such folds, and `overwrite` is False. Nothing is copied then.
    """
    name = "splits_final.json"
    trained = []
    if (raw / name).is_file() and (prepared / name).is_file():
        trained = trained_folds(read_splits(raw / name), read_splits(prepared / name), results)
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
