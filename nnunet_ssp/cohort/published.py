"""The published split of de Mooij et al. 2024 (https://arxiv.org/abs/2409.18100) and the subsets of its Table 1.

The lists of subjects are not here, only the procedure of their code and checksums that identify them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from nnunet_ssp.cohort.cases import NAMES, Case
from nnunet_ssp.cohort.folds import Fold, draw_subjects, is_from, make_fold
from nnunet_ssp.cohort.membership import is_trainable, shuffled, subjects_of, test_subjects
from nnunet_ssp.console import count_of

PAPER = "de Mooij et al. 2024"
VALIDATION_SHARE = 0.2  # of the development subjects; their config's `valid_partition`
VALIDATION_SEED = 0
SUBSET_SIZES = (50, 25, 15, 10)  # subjects; their Table 1
SUBSET_SEEDS = (0, 1, 2)
# By the letters that M&Ms gives the vendors.
VENDOR_GROUPS = {"A_B": ("Siemens", "Philips"), "C_D": ("GE", "Canon")}
SOURCES = ("mm1", "mm2")  # M&Ms and M&Ms-2 in `cases.csv`

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


def checksum(subjects: Iterable[str]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the sorted subject keys, one per line."""
    return hashlib.sha256("\n".join(sorted(subjects)).encode()).hexdigest()[:16]


def is_published(name: str, subjects: Iterable[str]) -> bool:
    """Whether these are the subjects of a published list."""
    return checksum(subjects) == PUBLISHED[name][1]


def development_subjects(cases: Mapping[str, Case]) -> dict[str, str]:
    """Return the subjects that the published procedure divides, with their vendors.

    If the dataset holds exactly the published ones, it is these, with or without labels. Otherwise it is every subject
    with a labelled frame that is not for the test.
    """
    development = [case for case in cases.values() if case.split == "train"]
    published = {case.subject_key: case.vendor for case in development if case.source in SOURCES}
    if is_published("development", published):
        return published
    return {case.subject_key: case.vendor for case in development if case.labelled}


def published_test_subjects(cases: Mapping[str, Case]) -> list[str]:
    """Return the sorted test subjects; only those of the published sources, if there are any."""
    tests = test_subjects(cases)
    sources = {case.subject_key: case.source for case in cases.values()}
    return sorted({key for key in tests if sources[key] in SOURCES} or tests)


def development_split(subjects: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide subjects into training and validation by the published procedure.

    Returns:
        Training and validation subjects, each sorted.
    """
    order = shuffled(subjects, VALIDATION_SEED)
    n_valid = round(VALIDATION_SHARE * len(order))
    return sorted(order[n_valid:]), sorted(order[:n_valid])


def published_lists(subjects: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the lists that the published procedure makes of the development subjects.

    Args:
        subjects: Vendor of each development subject.

    Returns:
        Sorted subjects by the names of `PUBLISHED`, without `test` and without subsets larger than the training list.
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


# Training list, validation list and phase of each published fold by name.
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
    """Make the folds of de Mooij et al., or those that their procedure makes of another dataset.

    Subsets keep the whole validation side. Folds of one phase hold only that phase on both sides, and folds of vendors
    only subjects of those vendors.

    Returns:
        The folds, and notes for the user about them.

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
        raise ValueError(
            f"{count_of(len(subjects), 'subject')}: too few for training and validation."
        )
    if left_out:
        listed = ", ".join(dict.fromkeys(left_out))
        notes.append(f"Left out, as there are too few subjects: {listed}")
    development = {c.subject_key: c.source for c in cases.values() if c.split == "train"}
    others = Counter(source for key, source in development.items() if key not in subjects)
    if is_published("development", subjects):
        notes += [
            f"{count_of(n, 'subject')} of {NAMES.get(source, source)} in no fold; pretraining takes all of them in."
            for source, n in sorted(others.items())
        ]
    labelled = subjects_of((name for name in cases if is_trainable(cases[name])), cases)
    bare = [subject for subject in lists["valid"] if subject not in labelled]
    if bare:
        notes.append(
            f"{count_of(len(bare), 'validation subject')} without a labelled frame, so in no fold but seen by "
            f"pretraining: {', '.join(bare)}"
        )
    return found, notes
