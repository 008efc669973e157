"""Folds from a file that lists subjects, the form in which other projects publish theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.cohort.folds import Fold, make_fold
from nnunet_ssp.cohort.membership import subjects_of
from nnunet_ssp.cohort.published import development_split, development_subjects
from nnunet_ssp.console import count_of, some
from nnunet_ssp.files.yaml_files import read_yaml

SIDES = ("test", "train", "valid")


def read_split_file(file: str | Path) -> dict[str, set[str]]:
    """Read a split in the form of de Mooij et al.: a YAML file of ids by side (`test`, `train`, `valid`) and source.

    Returns:
        Subject keys of each side in the file: all three sides, or `test` alone.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has another form, or a subject is on two sides.
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
                    f"{file}: {some(both)} must not be in both `{other}` and `{side}`."
                )
    return sides


def fold_from_file(file: str | Path, cases: Mapping[str, Case]) -> tuple[Fold, list[str]]:
    """Return the fold that a published split file describes, named after the file.

    If the file has `test` alone, the published procedure divides all other subjects. Sources that the dataset lacks are
    left out.

    Returns:
        The fold, and notes for the user about it.

    Raises:
        ValueError: The file names unknown subjects, or its test subjects differ from the dataset's so that they leak.
    """
    sides = read_split_file(file)
    split = {case.subject_key: case.split for case in cases.values()}
    if leaked := sorted(s for s in sides["test"] if split.get(s) == "train"):
        raise ValueError(
            f"{file}: test subject {some(leaked)} must be a test subject of the dataset too, else pretraining "
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
            f"{file}: {count_of(len(absent), 'subject')} of {missing} left out, the dataset has none of them."
        )
    if unknown := sorted(named - absent - split.keys()):
        raise ValueError(f"{file}: {some(unknown)} must be in cases.csv.")
    if tests := sorted(s for s in named - absent if split[s] == "test"):
        raise ValueError(f"{file}: {some(tests)} must not be a test subject of the dataset.")
    fold = make_fold(
        Path(file).stem, sides["train"], sides["valid"], cases, f"file {Path(file).name}"
    )
    if not (fold.train and fold.val):
        raise ValueError(f"{file}: no labelled frame of its training or validation subjects here.")
    if bare := sorted(named - absent - subjects_of((*fold.train, *fold.val), cases)):
        notes.append(f"{file}: without labelled frames, so in no fold: {some(bare)}")
    return fold, notes
