"""Folds, and folds made from them: label subsets of any size, restrictions to vendors or to one phase.

All functions depend only on the cases and a seed. A fold lists cases, as nnU-Net's `splits_final.json` does, but
divides subjects: none is on both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.cohort.membership import is_trainable, shuffled, subjects_of

UNITS = ("subjects", "slices")  # of the size of a label subset


@dataclass(frozen=True)
class Fold:
    """One fold: its name, the sorted case names of both sides, and where it comes from."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    source: str

    def same_cases(self, other: Fold) -> bool:
        """Whether both train and validate on the same cases."""
        return (self.train, self.val) == (other.train, other.val)


def is_from(vendor: str, wanted: Iterable[str]) -> bool:
    """Whether a vendor begins with a wanted name, in any case: `GE MEDICAL SYSTEMS` counts as `GE`."""
    return any(vendor.casefold().startswith(name.casefold()) for name in wanted)


def make_fold(
    name: str,
    train: Collection[str],
    val: Collection[str],
    cases: Mapping[str, Case],
    source: str,
    phase: str = "",
) -> Fold:
    """Make a fold of the labelled frames of these subjects, of one phase or of both."""

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


# -- folds made from another fold ------------------------------------------------------------------


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
        ValueError: No subject has such a vendor, or one side would be empty.
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
    """Draw a label subset; with one seed, a smaller subset is part of a larger one.

    Returns:
        `n` subjects, sorted.

    Raises:
        ValueError: `n` is below 1 or above the number of subjects.
    """
    _check_number(n, len(subjects), "training subjects")
    return sorted(shuffled(subjects, seed)[:n])


def draw_slices(n_slices: Mapping[str, int], n: int, seed: int) -> list[str]:
    """Draw whole frames until they hold `n` slices; nested like `draw_subjects`.

    Kalapos and Gyires-Tóth (https://arxiv.org/abs/2209.00314) draw single slices. A fold cannot hold them, as a case of
    nnU-Net is a frame. This subset therefore exceeds `n` by less than one frame, and the smallest is one frame.

    Args:
        n_slices: Number of slices of each frame.
        n: Number of slices to reach.
        seed: The same seed and frames give the same subset.

    Returns:
        Frames, sorted.

    Raises:
        ValueError: `n` is below 1 or above the number of slices.
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
    """Draw label subsets of a fold's training side; the validation side stays.

    Args:
        fold: The fold to draw from.
        cases: Every case.
        amounts: Sizes: an integer is a number, a float a fraction in (0, 1] of the fold's training side.
        seeds: Seeds, each of which gives one subset of each size.
        n_slices: Number of slices of each training frame, to count slices; None counts subjects.

    Returns:
        One fold for each number and seed; amounts that give the same number share it.

    Raises:
        ValueError: A number is below 1 or above what the fold holds, or a fraction is outside (0, 1].
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
    """Return the name of a label subset of a fold; `unit` is one of `UNITS`."""
    return f"{base}-{'slices' if unit == 'slices' else 'nr'}{n}-seed{seed}"


def part_of(fraction: float, total: int) -> int:
    """Return the number that is a fraction of a total, rounded, at least 1.

    Raises:
        ValueError: The fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction (={fraction}) must be above 0 and at most 1.")
    return max(1, round(fraction * total))


def merge(folds: Sequence[Fold], new: Sequence[Fold], overwrite: bool = False) -> list[Fold]:
    """Append folds; existing ones keep their number, and their cases unless `overwrite` is set.

    Args:
        folds: Existing folds.
        new: Folds to append.
        overwrite: Whether a new fold may replace an existing one of the same name with other cases.

    Raises:
        ValueError: A fold of the same name has other cases, and `overwrite` is False.
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
