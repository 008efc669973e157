"""How folds are made: the published split and its label subsets, subsets of any size, restrictions, split files.

Pure functions of the cases and a seed. A fold lists cases, as nnU-Net's `splits_final.json` does, but is always made
of whole subjects. The published lists of subjects are not in here, only the procedure that makes them (de Mooij et al.
2024, arXiv 2409.18100, and their code) and the checksums by which they are known.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.files.yaml_files import read_yaml

PAPER = "de Mooij et al. 2024"
VALIDATION_SHARE = 0.2  # of the development subjects; their config's `valid_partition`
VALIDATION_SEED = 0
SUBSET_SIZES = (50, 25, 15, 10)  # subjects; their Table 1
SUBSET_SEEDS = (0, 1, 2)
VENDOR_GROUPS = {"A_B": ("Siemens", "Philips"), "C_D": ("GE", "Canon")}  # M&Ms' letters
SOURCES = ("mm1", "mm2")  # M&Ms and M&Ms-2 in `cases.csv`
UNITS = ("subjects", "slices")  # that the size of a label subset may count

# Number of subjects, and the first digits of the checksum, of each published list.
PUBLISHED = {
    "development": (370, "0282a107f4c514a2"),
    "train": (296, "b20744b6ba1a7e5e"),
    "valid": (74, "fa76c6617302ad65"),
    "test": (140, "384c90a4cd02aa8f"),
    "train A_B": (204, "cbfa3fe1f2066efc"),
    "valid A_B": (52, "cd2707ae483fad00"),
    "train C_D": (92, "9cc4be7db6269815"),
    "valid C_D": (22, "6d57c2fda25d7aab"),
    "nr50-seed0": (50, "388f1f5f16088e8b"),
    "nr50-seed1": (50, "371217155f07b4e9"),
    "nr50-seed2": (50, "1d22fd20e061d020"),
    "nr25-seed0": (25, "e095e52977356a99"),
    "nr25-seed1": (25, "96778b9439764cd2"),
    "nr25-seed2": (25, "65c906666d946a80"),
    "nr15-seed0": (15, "4b04c8bff85f45a6"),
    "nr15-seed1": (15, "fa4af314552e047a"),
    "nr15-seed2": (15, "dcf0f3b177c6123f"),
    "nr10-seed0": (10, "b13399c83d8eedcf"),
    "nr10-seed1": (10, "fba46ec1057b5683"),
    "nr10-seed2": (10, "08a2089040f746b6"),
}


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


def checksum(subjects: Iterable[str]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the sorted subject keys, one a line."""
    return hashlib.sha256("\n".join(sorted(subjects)).encode()).hexdigest()[:16]


def is_published(name: str, subjects: Iterable[str]) -> bool:
    """Whether these are the subjects of a published list."""
    return checksum(subjects) == PUBLISHED[name][1]


def is_from(vendor: str, wanted: Iterable[str]) -> bool:
    """Whether a vendor is one of those wanted: `GE` is also `GE MEDICAL SYSTEMS`, and SIEMENS is Siemens."""
    return any(vendor.casefold().startswith(name.casefold()) for name in wanted)


# -- the published folds -------------------------------------------------------------------------


def development_subjects(cases: Mapping[str, Case]) -> dict[str, str]:
    """The subjects that the published procedure divides, with their vendors.

    Where the dataset holds exactly the published ones, these, also such without labels; otherwise every subject with
    a labelled frame that is not for the test.
    """
    development = [case for case in cases.values() if case.split == "train"]
    published = {case.subject_key: case.vendor for case in development if case.source in SOURCES}
    if is_published("development", published):
        return published
    return {case.subject_key: case.vendor for case in development if case.labelled}


def test_subjects(cases: Mapping[str, Case]) -> list[str]:
    """The test subjects, sorted; where there are published ones, only those of the published sources."""
    tests = [case for case in cases.values() if case.split == "test"]
    published = {case.subject_key for case in tests if case.source in SOURCES}
    return sorted(published or {case.subject_key for case in tests})


def development_split(subjects: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide subjects into training and validation by the published procedure.

    Returns:
        Training and validation subjects, each sorted.
    """
    order = shuffled(subjects, VALIDATION_SEED)
    n_valid = round(VALIDATION_SHARE * len(order))
    return sorted(order[n_valid:]), sorted(order[:n_valid])


def published_lists(subjects: Mapping[str, str]) -> dict[str, list[str]]:
    """What the published procedure makes of the development subjects.

    Args:
        subjects: Vendor of each.

    Returns:
        Sorted subjects by the names of `PUBLISHED`; without the test, which is no part of it, and without subsets
        that are larger than what there is.
    """
    train, valid = development_split(subjects)
    lists = {"development": sorted(subjects), "train": train, "valid": valid}
    for group, vendors in VENDOR_GROUPS.items():
        for side in ("train", "valid"):
            lists[f"{side} {group}"] = [s for s in lists[side] if is_from(subjects[s], vendors)]
    for size in SUBSET_SIZES:
        for seed in SUBSET_SEEDS:
            if size <= len(train):
                lists[f"nr{size}-seed{seed}"] = draw_subjects(train, size, seed)
    return lists


# Name of each published fold: its training and validation lists, and the phase it is restricted to.
PAPER_FOLDS = {
    "paper": ("train", "valid", ""),
    **{
        f"paper-nr{size}-seed{seed}": (f"nr{size}-seed{seed}", "valid", "")
        for size in SUBSET_SIZES
        for seed in SUBSET_SEEDS
    },
    **{
        f"paper-vendor-{group}": (f"train {group}", f"valid {group}", "") for group in VENDOR_GROUPS
    },
    "paper-ED": ("train", "valid", "ED"),
    "paper-ES": ("train", "valid", "ES"),
}


def paper_folds(cases: Mapping[str, Case]) -> tuple[list[Fold], list[str]]:
    """The folds of de Mooij et al., or what their procedure makes of another dataset.

    Their subsets and the restriction to one phase leave the subjects of the validation as they are; restricted to a
    phase, training and validation hold that phase only; restricted to vendors, subjects of those vendors only.

    Returns:
        The folds, and what the user should know about them.

    Raises:
        ValueError: There are too few subjects to divide.
    """
    subjects = development_subjects(cases)
    lists = published_lists(subjects)
    notes = []
    source = PAPER
    if not is_published("development", subjects):
        source = f"procedure of {PAPER}"
        notes.append(
            f"The {len(subjects)} subjects are not the {PUBLISHED['development'][0]} of {PAPER}: the folds are made "
            "by the same procedure, but are not the published ones."
        )
    found, left_out = [], []
    for name, (train, valid, phase) in PAPER_FOLDS.items():
        fold = make_fold(name, lists.get(train, ()), lists[valid], cases, source, phase)
        if fold.train and fold.val:
            found.append(fold)
        else:
            left_out.append(name.split("-seed")[0])
    if not found:
        raise ValueError(f"{len(subjects)} subject(s) are too few for training and validation.")
    if left_out:
        listed = ", ".join(dict.fromkeys(left_out))
        notes.append(f"Left out, as there are too few subjects: {listed}")
    development = {c.subject_key: c.source for c in cases.values() if c.split == "train"}
    others = Counter(source for key, source in development.items() if key not in subjects)
    if is_published("development", subjects):
        notes += [
            f"{n} subjects of {source} are in no fold; pretraining takes them in."
            for source, n in sorted(others.items())
        ]
    labelled = subjects_of((name for name in cases if is_trainable(cases[name])), cases)
    bare = [subject for subject in lists["valid"] if subject not in labelled]
    if bare:
        notes.append(
            f"{len(bare)} validation subject(s) have no labelled frame, so no fold names them and pretraining sees "
            f"them: {', '.join(bare)}"
        )
    return found, notes


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

SIDES = ("test", "train", "valid")


def read_split_file(file: str | Path) -> dict[str, set[str]]:
    """Read a split as published by de Mooij et al.: YAML, `test`, `train`, `valid` -> source -> ids.

    Returns:
        Subject keys of each side that the file has: all three, or `test` alone.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is no such file, or a subject is on two sides.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: there is no such file.")
    content = read_yaml(file)
    if not isinstance(content, dict) or set(content) not in ({*SIDES}, {"test"}):
        raise ValueError(f"{file}: must have the keys {', '.join(SIDES)}, or test alone.")
    sides: dict[str, set[str]] = {}
    for side, sources in content.items():
        where = f"{file}: `{side}`"
        if not isinstance(sources, dict):
            raise ValueError(f"{where} must map each source (mm1, ...) to a list of subjects.")
        for source, subjects in sources.items():
            # Without quotes YAML reads 001 as the number 1.
            if not isinstance(subjects, list) or not all(isinstance(s, str) for s in subjects):
                raise ValueError(f'{where}, {source}: must be a list of ids in quotes ("001").')
        sides[side] = {f"{source}-{s}" for source, subjects in sources.items() for s in subjects}
    for number, side in enumerate(sides):
        for other in list(sides)[:number]:
            if both := sorted(sides[side] & sides[other]):
                raise ValueError(
                    f"{file}: {_some(both)} must not be in both `{other}` and `{side}`."
                )
    return sides


def fold_from_file(file: str | Path, cases: Mapping[str, Case]) -> tuple[Fold, list[str]]:
    """The fold that a published split file describes, named after the file.

    A file with `test` alone stands for the published procedure on all other subjects. A source that the dataset does
    not have at all is left out.

    Returns:
        The fold, and what the user should know about it.

    Raises:
        ValueError: The file names unknown subjects, or its test differs from the dataset's in a way that leaks.
    """
    sides = read_split_file(file)
    split = {case.subject_key: case.split for case in cases.values()}
    if leaked := sorted(s for s in sides["test"] if split.get(s) == "train"):
        raise ValueError(
            f"{file}: test subject {_some(leaked)} must be a test subject of the dataset too, else pretraining "
            "sees it: convert again with these test subjects."
        )
    if "train" not in sides:
        train, valid = development_split(development_subjects(cases))
        sides |= {"train": set(train), "valid": set(valid)}
    notes = []
    sources = {case.source for case in cases.values()}
    named = sides["train"] | sides["valid"]
    absent = {s for s in named if s.split("-", 1)[0] not in sources}
    if absent:
        missing = ", ".join(sorted({s.split("-", 1)[0] for s in absent}))
        notes.append(
            f"{file}: {len(absent)} subjects of {missing} left out, the dataset has none of them."
        )
    if unknown := sorted(named - absent - split.keys()):
        raise ValueError(f"{file}: {_some(unknown)} must be in cases.csv.")
    if tests := sorted(s for s in named - absent if split[s] == "test"):
        raise ValueError(f"{file}: {_some(tests)} must not be a test subject of the dataset.")
    fold = make_fold(
        Path(file).stem, sides["train"], sides["valid"], cases, f"file {Path(file).name}"
    )
    if not (fold.train and fold.val):
        raise ValueError(f"{file}: no labelled frame of its training or validation subjects here.")
    if bare := sorted(named - absent - subjects_of((*fold.train, *fold.val), cases)):
        notes.append(f"{file}: without labelled frames, so in no fold: {_some(bare)}")
    return fold, notes


def _some(subjects: Sequence[str], limit: int = 10) -> str:
    more = [f"... ({len(subjects)} in all)"] if len(subjects) > limit else []
    return ", ".join([*subjects[:limit], *more])
