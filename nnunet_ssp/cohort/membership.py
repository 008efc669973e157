"""Subjects of pretraining, validation and test: one rule for trainers, `prepare`, leak checks and studies.

Test subjects are in no slice store and in no fold. Pretraining on a fold draws from every stored case, labelled or not,
except those of subjects with a case in the fold's validation list. Fold `all` holds nobody out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ssp.cohort.cases import Case, shown_subjects, subject_of
from nnunet_ssp.console import count_of

SHOWN = 10  # subjects that the log names
# Entry of a fine-tuning's record: how many of the fold's validation subjects a training behind its weights has seen
SEEN = "validation_subjects_seen_in_pretraining"


def test_subjects(cases: Mapping[str, Case]) -> set[str]:
    """Return the subjects that only the test may see."""
    return {case.subject_key for case in cases.values() if case.split == "test"}


def training_cases(cases: Mapping[str, Case]) -> set[str]:
    """Return the cases of all subjects but those of the test, labelled or not."""
    return {name for name, case in cases.items() if case.split == "train"}


def tested_cases(cases: Mapping[str, Case]) -> list[str]:
    """Return the labelled cases of the test subjects, sorted."""
    return sorted(name for name, case in cases.items() if case.split == "test" and case.labelled)


def is_trainable(case: Case) -> bool:
    """Whether a fold may hold the case: it is labelled and belongs to no test subject."""
    return case.trainable


def subjects_of(names: Iterable[str], cases: Mapping[str, Case]) -> set[str]:
    """Return the keys of the subjects that these cases show."""
    return {cases[name].subject_key for name in names}


def subjects_by_case(
    names: Iterable[str], cases: Mapping[str, Case], pattern: str | None = None
) -> dict[str, str]:
    """Return the subject of each case, see `cases.subject_of`.

    Raises:
        ValueError: `pattern` is not a regular expression, or finds no subject in a name.
    """
    return {name: subject_of(name, cases, pattern) for name in names}


def held_out(
    validation: Iterable[str], cases: Mapping[str, Case], pattern: str | None = None
) -> set[str]:
    """Return the subjects with a case in a fold's validation list, none of whose cases may be trained on."""
    return set(subjects_by_case(validation, cases, pattern).values())


def count_for_advice(
    fold: int | str,
    labelled: Collection[str],
    splits: Sequence[Mapping[str, Sequence[str]]],
    cases: Mapping[str, Case],
) -> tuple[int, bool]:
    """Return how many subjects a fold has labels of to train on, and whether some subject has several frames.

    Args:
        fold: Number of the fold, or `all`.
        labelled: The labelled training cases.
        splits: The folds; without any nnU-Net draws five by case.
        cases: The table of cases; without it each case counts as a subject of one frame.
    """
    numbered = str(fold).isdecimal()
    known = numbered and int(fold) < len(splits)
    train = {*splits[int(fold)]["train"]} & {*labelled} if known else labelled
    n_subjects = len({*subjects_by_case(train, cases).values()})
    if numbered and not splits:
        n_subjects -= math.ceil(n_subjects / 5)
    frames = Counter(case.subject_key for case in cases.values())
    return n_subjects, max(frames.values(), default=0) > 1


def validated_on(fold: int | str, train: Collection[str], val: Collection[str]) -> list[str]:
    """Return the validation cases that a fold holds out.

    Fold `all`, and a numbered one that validates on its training cases, hold nobody out.

    Args:
        fold: Number of the fold, or `all`.
        train: Its training cases.
        val: Its validation cases.

    >>> validated_on(0, ["a", "b"], ["c"]), validated_on(0, ["a"], ["a"]), validated_on("all", ["a"], ["a"])
    (['c'], [], [])
    """
    holds_out = isinstance(fold, int) and not set(val) <= set(train)
    return list(val) if holds_out else []


def pretraining_cases(subjects: Mapping[str, str], excluded: Collection[str]) -> list[str]:
    """Return the stored cases that a pretraining draws from, in the store's order.

    Args:
        subjects: Subject of each stored case.
        excluded: Subjects that pretraining must not see, see `held_out`.
    """
    return [case for case, subject in subjects.items() if subject not in excluded]


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Sort, then shuffle as `numpy.random.seed(seed); numpy.random.shuffle` do, a stream that numpy keeps fixed."""
    order = sorted(names)
    np.random.RandomState(seed).shuffle(order)
    return order


def share_of(subjects: Collection[str], fraction: float, seed: int) -> set[str]:
    """Draw a share of the subjects, at least one; with one seed the smaller share is part of the larger.

    Args:
        subjects: Subjects to draw from.
        fraction: Share in (0, 1].
        seed: The same seed and subjects give the same share.
    """
    n = max(1, round(fraction * len(subjects)))
    return set(shuffled(subjects, seed)[:n])


def superset_of(
    labelled: Collection[str], allowed: Collection[str], factor: float, seed: int
) -> set[str]:
    """Add others to the labelled subjects; with one seed the smaller superset is part of the larger.

    Args:
        labelled: Subjects that are always drawn.
        allowed: All subjects that may be trained on.
        factor: Size of the superset, as a multiple of the labelled subjects.
        seed: Seed of the draw.

    Raises:
        ValueError: There are too few others.
    """
    own, others = set(labelled) & set(allowed), set(allowed) - set(labelled)
    n = round(factor * len(own)) - len(own)
    if not own or n > len(others):
        most = f"{(len(own) + len(others)) / len(own):.4g}" if own else "without labels none"
        raise ValueError(
            f"`data_superset` (={factor}) asks for {n} subjects besides the {len(own)} with labels, but there are "
            f"{len(others)}: the most is {most}."
        )
    return own | set(shuffled(others, seed)[:n])


@dataclass(frozen=True)
class Sides:
    """The stored cases as a pretraining on one fold sees them.

    Attributes:
        subjects: Subject of each stored case, in the store's order.
        held_out: Subjects that the fold holds out.
        drawn: Subjects that are trained on.
        fraction: Drawn share of the subjects that may be trained on.
        seed: Seed of the draw.
        superset: Size of the drawn part, as a multiple of the labelled subjects; None where a share was drawn.
    """

    subjects: dict[str, str]
    held_out: set[str]
    drawn: set[str]
    fraction: float = 1.0
    seed: int = 0
    superset: float | None = None

    @property
    def train(self) -> list[str]:
        """The cases to train on."""
        return [case for case, subject in self.subjects.items() if subject in self.drawn]

    @property
    def val(self) -> list[str]:
        """The cases that give the validation loss."""
        return [case for case, subject in self.subjects.items() if subject in self.held_out]


def sides(
    stored: Iterable[str],
    validation: Iterable[str],
    cases: Mapping[str, Case],
    pattern: str | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    superset: float | None = None,
    labelled: Collection[str] = (),
) -> Sides:
    """Return the training and validation sides of a pretraining.

    Args:
        stored: Cases of the slice store.
        validation: Cases of the fold's validation list; none for fold `all`.
        cases: Rows of `cases.csv`; none for a dataset without that file.
        pattern: Finds the subject in the name of a case that `cases` lacks.
        fraction: Share of the training subjects to draw, in (0, 1].
        seed: Seed of the draw.
        superset: Draw the subjects of `labelled` and others instead, see `superset_of`.
        labelled: Cases whose labels the fold trains on.

    Raises:
        ValueError: `pattern` finds no subject in a name, or there are too few subjects for `superset`.
    """
    subjects = subjects_by_case(stored, cases, pattern)
    out = held_out(validation, cases, pattern)
    allowed = {subjects[case] for case in pretraining_cases(subjects, out)}
    if superset is not None:
        own = set(subjects_by_case(labelled, cases, pattern).values())
        drawn = superset_of(own, allowed, superset, seed)
        return Sides(subjects, out, drawn, seed=seed, superset=superset)
    return Sides(subjects, out, share_of(allowed, fraction, seed), fraction, seed)


def check_stored(subjects: Mapping[str, str], cases: Mapping[str, Case], store: Path) -> None:
    """Refuse a slice store with unknown cases or test subjects.

    Args:
        subjects: Subject of each stored case.
        cases: Rows of `cases.csv`; none for a dataset without that file.
        store: Folder of the slice store.

    Raises:
        ValueError: Names the cases or subjects, and what to do.
    """
    unknown = sorted(subjects.keys() - cases.keys()) if cases else []
    if unknown:
        raise ValueError(
            f"{store}: {unknown[0]} is not in cases.csv ({count_of(len(unknown), 'such case')}): "
            "run nnunet-ssp prepare again."
        )
    leaked = shown_subjects(set(subjects.values()) & test_subjects(cases), cases)
    if leaked:
        raise ValueError(
            f"{store}: test subject {', '.join(leaked)} must not be in the slice store. Delete that folder and run "
            "nnunet-ssp prepare again."
        )


def members_in_words(
    chosen: Sides,
    n_slices: Mapping[str, int],
    cases: Mapping[str, Case],
    fold: int | str,
    store: Path,
) -> list[str]:
    """Return lines that say who is in a pretraining and who is not.

    Args:
        chosen: The sides of the fold.
        n_slices: Number of slices of each stored case.
        cases: Rows of `cases.csv`.
        fold: Number of the fold, or `all`.
        store: Folder of the slice store.
    """

    def counts(names: Collection[str]) -> str:
        subjects = {chosen.subjects[name] for name in names}
        slices = sum(n_slices[name] for name in names)
        return f"{count_of(len(subjects), 'subject')}, {count_of(len(names), 'frame')}, {count_of(slices, 'slice')}"

    def named(subjects: Collection[str], none: str) -> str:
        shown = shown_subjects(subjects, cases)[:SHOWN]
        return ", ".join([*shown, *(["..."] if len(subjects) > SHOWN else [])]) or none

    train, val = chosen.train, chosen.val
    lines = [f"Slice store {store}: {counts(list(chosen.subjects))}"]
    allowed = len(set(chosen.subjects.values()) - chosen.held_out)
    if len(chosen.drawn) < allowed:
        what = f"data_fraction={chosen.fraction}"
        if chosen.superset is not None:
            what = f"data_superset={chosen.superset:g}"
        lines.append(
            f"{what}: {len(chosen.drawn)} of {allowed} training subjects, drawn with "
            f"seed={chosen.seed}"
        )
    lines += [f"Fold {fold} trains on {counts(train)}"]
    if cases:
        labelled = {case.subject_key for case in cases.values() if case.labelled}
        present = {chosen.subjects[case] for case in train}
        for kind, group in (("with", present & labelled), ("without", present - labelled)):
            lines.append(
                f"  {count_of(len(group), 'subject')} {kind} labelled frames: {named(group, 'none')}"
            )
    held = {chosen.subjects[case] for case in val}
    return [
        *lines,
        f"  left out for validation: {named(held, 'nobody')}"
        + (f" ({counts(val)})" if val else ""),
        f"  test subjects, never in the store: {named(test_subjects(cases), 'none known')}",
    ]
