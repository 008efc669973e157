"""`nnunet-ssp folds --check`: whether a training subject is also a validation or test subject.

The check by name covers the folds and the slice stores. The check by image finds one heart under two names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_ssp.cohort.cases import Case, case_files, names_of_subjects, shown_subjects
from nnunet_ssp.cohort.different import Different, declared, lines_on_pairs
from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.cohort.lookalikes import SAME, UNSEEN, fingerprint, look_alikes
from nnunet_ssp.cohort.membership import held_out, is_trainable, subjects_of, test_subjects
from nnunet_ssp.cohort.plain_datasets import PlainCase, read_plain_cases, read_stack
from nnunet_ssp.cohort.repeats import continuing_names, shared_prefixes
from nnunet_ssp.cohort.splits import read_copy, read_splits
from nnunet_ssp.console import count_of
from nnunet_ssp.files.contents import NAMES, check, read_json
from nnunet_ssp.parallel import number_of_workers, process

CASES = "cases.csv"  # the list of cases that messages name


def report_plain(
    raw: Path,
    prepared: Path,
    pattern: str | None,
    folds: Sequence[Fold],
    different: Different = (),
) -> bool:
    """Print every check of a dataset without `cases.csv`; only a pattern can tell its subjects.

    Args:
        raw: The dataset's folder in nnUNet_raw.
        prepared: Its folder in nnUNet_preprocessed, which need not exist.
        pattern: Regular expression that finds the subject in a case's name; None takes each case as a subject.
        folds: Every fold.
        different: Pairs of subjects that are different people, though they look alike.

    Returns:
        Whether there is a leak, or the copies of the folds differ.
    """
    cases = read_plain_cases(raw, pattern)
    found = report(raw, prepared, cases, folds, "imagesTr", different, pattern)
    for number, fold in enumerate(folds if pattern is None else ()):
        repeats = continuing_names(fold.train, fold.val)
        if repeats:
            print(
                f"note    fold {number}: numbers continue across its sides, as in {' and '.join(repeats[0])} "
                f"({count_of(len(repeats), 'such pair')}): possible repeats of one subject, not certain"
            )
        if prefixes := shared_prefixes(fold.train, fold.val):
            such = count_of(len(prefixes), "such prefix", "such prefixes")
            print(f"note    fold {number}: {prefixes[0]} begins names on both sides ({such})")
    if pattern is None:
        print(
            "--      each case was taken as a subject; --subject-pattern REGEX finds the subject in a name"
        )
    return found


def report(
    raw: Path,
    prepared: Path,
    cases: Mapping[str, Case],
    folds: Sequence[Fold],
    table: str = CASES,
    different: Different = (),
    pattern: str | None = None,
) -> bool:
    """Print every check and its findings.

    Args:
        raw: The dataset's folder in nnUNet_raw; without it no images are compared.
        prepared: Its folder in nnUNet_preprocessed, which need not exist.
        cases: Every case.
        folds: Every fold.
        table: Name of the list of cases, for messages.
        different: Pairs of subjects that are different people, though they look alike.
        pattern: Regular expression that found the subjects, where one was given.

    Returns:
        Whether there is a leak, or the copies of the folds differ.

    Raises:
        ValueError: No subject has a name of `different`.
    """
    names = names_of_subjects(cases)
    apart = declared(different, names.values())
    in_folds = list(leaks_in_folds(folds, cases, table))
    _print(f"{count_of(len(folds), 'fold')}: no subject on two sides, none of the test", in_folds)

    stores = sorted(prepared.glob("*_slices/index.json"))
    in_stores = [line for index in stores for line in leaks_in_store(index, cases, table)]
    if stores:
        _print(f"{count_of(len(stores), 'slice store')}: no test subject", in_stores)
    else:
        print(f"--      no slice store in {prepared} yet")

    file, copy = (folder / "splits_final.json" for folder in (raw, prepared))
    unequal = []
    if file.is_file() and copy.is_file():
        if read_splits(file) != read_copy(prepared):
            unequal = [f"{copy} differs from {file}: run nnunet-ssp prepare"]
        _print("nnUNet_raw and nnUNet_preprocessed have the same folds", unequal, "DIFFER")
    elif file.is_file() or copy.is_file():
        where = prepared if file.is_file() else raw
        print(f"--      no folds in {where} to compare with")

    images = _representatives(raw, cases)
    workers = number_of_workers()
    prints = process(_fingerprint, list(images.values()), workers, "Comparing images", "subject")
    found = look_alikes(dict(zip(images, prints, strict=True)))
    pairs = [pair for pair in found if {names[pair[0]], names[pair[1]]} not in apart]
    alike = list(_judge(pairs, cases, folds))
    missing = len({case.subject_key for case in cases.values()}) - len(images)
    leaks = [line for line, leak in alike if leak]
    if images:
        _print(f"{count_of(len(images), 'subject')}: none looks like one on another side", leaks)
        print(f"--      {UNSEEN}")
    print("".join(f"note    {line}\n" for line, leak in alike if not leak), end="")
    for first, second, likeness in found:
        if {names[first], names[second]} in apart:
            said = f"{names[first]} and {names[second]} (similarity {likeness:.2f})"
            print(f"note    {said}: different people, as --different says")
    # Leaks first: they are what has to be settled.
    judged = sorted(zip(pairs, alike, strict=True), key=lambda one: not one[1][1])
    shown = [((names[a], images[a]), (names[b], images[b])) for (a, b, _), _ in judged]
    for line in lines_on_pairs(shown, raw.name, pattern, different):
        print(f"--      {line}")
    if missing:
        print(f"--      {count_of(missing, 'subject')} without an image in {raw} to compare")
    return bool(in_folds or in_stores or unequal or leaks)


def _print(what: str, problems: Sequence[str], kind: str = "LEAK") -> None:
    print("\n".join(f"{kind:7} {line}" for line in problems) or f"ok      {what}")


def leaks_in_folds(
    folds: Sequence[Fold], cases: Mapping[str, Case], table: str = CASES
) -> Iterator[str]:
    """Yield what is wrong with folds: subjects on two sides, test subjects, unlabelled or unknown cases."""
    for number, fold in enumerate(folds):
        names = {*fold.train, *fold.val}
        for name in sorted(names - cases.keys()):
            yield f"fold {number}: {name} is not in {table}"
        known = names & cases.keys()
        for name in sorted(known):
            if not is_trainable(cases[name]):
                why = (
                    "is unlabelled" if cases[name].split == "train" else "belongs to a test subject"
                )
                yield f"fold {number}: {name} {why}"
        train, val = (subjects_of(known & {*side}, cases) for side in (fold.train, fold.val))
        for subject in shown_subjects(train & val, cases):
            yield f"fold {number}: {subject} is in both train and val"


def leaks_in_store(index: Path, cases: Mapping[str, Case], table: str = CASES) -> Iterator[str]:
    """Yield the cases of a slice store that belong to test subjects or are unknown.

    Args:
        index: The store's `index.json`.
        cases: Every case.
        table: Name of the list of cases, for messages.
    """
    tests = test_subjects(cases)
    content = read_json(index, dict)
    check(content, {"cases": NAMES}, str(index), ("cases",))
    for name in sorted(content["cases"]):
        if name not in cases:
            yield f"{index}: {name} is not in {table}"
        elif cases[name].subject_key in tests:
            yield f"{index}: {name} belongs to a test subject"


# -- the same heart under two names ----------------------------------------------------------------


def _representatives(raw: Path, cases: Mapping[str, Case]) -> dict[str, Path]:
    """Return one image of each subject: end-diastole, else its first frame."""
    found: dict[str, Path] = {}
    for case in sorted(cases.values(), key=lambda case: (case.phase != "ED", case.frame)):
        if case.subject_key not in found:
            image = case.image if isinstance(case, PlainCase) else case_files(raw, case)[0]
            if image.is_file():
                found[case.subject_key] = image
    return dict(sorted(found.items()))


def _fingerprint(image: Path) -> NDArray[np.float32]:
    voxels, spacing = read_stack(image)
    return fingerprint(voxels, [float(edge) for edge in spacing])


def _judge(
    pairs: Sequence[tuple[str, str, float]], cases: Mapping[str, Case], folds: Sequence[Fold]
) -> Iterator[tuple[str, bool]]:
    """Yield each pair of look-alikes in words, and whether it is a leak: one is held out, the other trained on.

    Pretraining uses every subject except those of the test and of the fold's validation.
    """
    tests = test_subjects(cases)
    excluded = [held_out(cases.keys() & {*fold.val}, cases) for fold in folds]
    for first, second, similarity in pairs:
        surely = similarity >= SAME
        kind = "look like one heart" if surely else "resemble each other, look at them"
        one, other = (shown_subjects([key], cases)[0] for key in (first, second))
        text = f"{one} and {other} {kind} (similarity {similarity:.2f})"
        apart = [n for n, val in enumerate(excluded) if (first in val) != (second in val)]
        if (first in tests) != (second in tests):
            yield f"{text}: {one if first in tests else other} is a test subject", surely
        elif apart:
            yield f"{text}: on two sides of fold {', '.join(map(str, apart))}", surely
        elif not folds and first not in tests:
            yield (
                f"{text}: there are no folds yet, and nnU-Net's own may put them on two sides",
                False,
            )
        else:
            yield f"{text}: on the same side everywhere", False
