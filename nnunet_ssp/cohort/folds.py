"""How folds are made: the published split and its label subsets, subsets of any size, restrictions, split files.

Pure functions of the cases and a seed. A fold lists cases, as nnU-Net's `splits_final.json` does, but is always made
of whole subjects. The published lists of subjects are not in here, only the procedure that makes them (de Mooij et al.
2024, arXiv 2409.18100, and their code) and the checksums by which they are known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.cohort.membership import is_trainable, shuffled, subjects_of

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
        ValueError: N is below 1 or more than there are.
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
        ValueError: N is below 1 or more than there are.
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
