"""Scored cases whose subjects the model was trained on, and references that are no longer the dataset's.

The folds are those of `splits_final.json`. Fold `all` is trained on every labelled case that is not of the test.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunet_ssp.cohort.cases import Case, subject_of
from nnunet_ssp.cohort.outdated import COPIES, changed_masks
from nnunet_ssp.console import count_of, some
from nnunet_ssp.evaluation.files import Pair, References
from nnunet_ssp.evaluation.for_new_patients import PRINTED, folds_by_model, model_of
from nnunet_ssp.evaluation.provenance import is_validation, read_provenance
from nnunet_ssp.nnunet import results_here

NOTHING_NEW = "their Dice says nothing about new patients"
# nnU-Net's folder of the validations of all folds, which may hold another one with their postprocessing
CROSS_VALIDATION = re.compile(r"crossval_results_folds_\d")


def outdated_notes(pairs: Sequence[Pair], prepared: Path, ending: str) -> list[str]:
    """Warn of references that changed in `labelsTr` since `prepare` copied them: the copies are what is scored against.

    Args:
        pairs: What is scored.
        prepared: The dataset's folder in nnUNet_preprocessed.
        ending: Of the masks.
    """
    scored = {pair.case for pair in pairs if pair.reference.parent == prepared / COPIES}
    if not scored or not (changed := scored & {*changed_masks(prepared.name, prepared, ending)}):
        return []
    return [
        f"WARNING: {count_of(len(changed), 'reference')} changed in labelsTr after nnunet-ssp prepare "
        f"({some(changed, 3)}): scored here against the earlier, in {COPIES}. Run nnunet-ssp prepare "
        "again as before, and train again."
    ]


def training_notes(
    models: Mapping[str, Sequence[Path]],
    pairs: Sequence[Pair],
    references: References,
    cases: Mapping[str, Case],
    pattern: str | None = None,
) -> list[str]:
    """Say which scored cases are of subjects that a model was trained on.

    It is a warning where the model's fold is known, or where every fold that may have predicted was trained on them;
    a note where some of these folds were. Nothing is known of a model of another dataset.

    Args:
        models: Folders of predictions of each model, absolute.
        pairs: The label maps that are scored.
        references: The dataset's own, with its folds.
        cases: Rows of `cases.csv`; none for a dataset without that file.
        pattern: Finds the subject in the name of a case that `cases` lacks.
    """
    notes = []
    for name, folders in models.items():
        for folder in folders:
            scored = {p.case for p in pairs if p.model == name and p.prediction.parent == folder}
            scored -= references.test.keys()
            origin = read_provenance(folder).model or references.dataset
            if not scored or origin != references.dataset:
                continue
            if any(CROSS_VALIDATION.match(part) for part in folder.parts[-2:]):
                continue  # nnU-Net joined the validations there
            folds, told = _folds_behind(folder, scored, references, alone=len(models) == 1)
            seen = {fold: _seen(scored, fold, references, cases, pattern) for fold in folds}
            # By name: the page, which is shared, has no paths.
            who = name if len(folders) == 1 else f"{name}, {folder.name}"
            total = sum(p.model == name and p.prediction.parent == folder for p in pairs)
            notes += _in_words(who, total, seen, told)
    return list(dict.fromkeys(notes))


def _folds_behind(
    folder: Path, scored: Collection[str], references: References, alone: bool
) -> tuple[list[str], str]:
    """Return the folds of which one, or several, made predictions, and what tells so; empty if the folder does.

    The whole validation side of a fold may be a copy of its validation, which was trained elsewhere.
    """
    if is_validation(folder):
        return [folder.parent.name.removeprefix("fold_")], ""
    if named := PRINTED.fullmatch(folder.name):
        return [named[1]], ""
    results = results_here()
    trained = folds_by_model(results / references.dataset)
    known = model_of(folder, references.dataset, trained, alone)
    held = [known[1]] if known is not None and known[1] else []
    if not held:
        held = [*set().union(*(trained.values() if known is None else [trained[known[0]]]))]
    if held:
        copied = [str(n) for n, fold in enumerate(references.folds) if {*fold["val"]} == {*scored}]
        return sorted({*held, *copied}, key=lambda fold: (len(fold), fold)), "trained here"
    return [str(number) for number in range(len(references.folds))], "of splits_final.json"


def _seen(
    scored: Collection[str],
    fold: str,
    references: References,
    cases: Mapping[str, Case],
    pattern: str | None,
) -> set[str]:
    """Return the scored cases of subjects that a fold was trained on."""
    trained: Collection[str] = references.training.keys() - references.test.keys()
    if fold.isdecimal():  # without a file nothing tells who is in nnU-Net's own folds
        number = int(fold)
        trained = references.folds[number]["train"] if number < len(references.folds) else ()
    subjects = {_subject(case, cases, pattern) for case in trained}
    return {case for case in scored if _subject(case, cases, pattern) in subjects}


def _subject(case: str, cases: Mapping[str, Case], pattern: str | None) -> str:
    try:
        return subject_of(case, cases, pattern)
    except ValueError:  # a training case of another kind of name
        return case


def _in_words(who: str, total: int, seen: Mapping[str, set[str]], told: str) -> list[str]:
    """Return the sentence on one folder, as a list of none or one.

    Args:
        who: The model, or its folder.
        total: Number of its scored cases.
        seen: Scored cases of training subjects, by fold.
        told: What tells that these are the folds; empty where the folder does.
    """
    sure: set[str] = set.intersection(*seen.values()) if seen else set()
    if sure:
        are = f"{len(sure)} of {total} cases are of training subjects of"
        if len(seen) == 1:
            where = f", the only one {told}" if told else ""
            return [f"WARNING: {who}: {are} fold {next(iter(seen))}{where}: {NOTHING_NEW}."]
        return [f"WARNING: {who}: {are} every fold {told} ({some([*seen])}): {NOTHING_NEW}."]
    if some_seen := [fold for fold, own in seen.items() if own]:
        n = len(set().union(*seen.values()))
        folds = f"fold {some_seen[0]}" if len(some_seen) == 1 else f"folds {some(some_seen)}"
        return [
            f"{who}: the folder does not tell which fold predicted. {n} of {total} cases are of training subjects of "
            f"{folds} ({told}): if one of these took part, {NOTHING_NEW}."
        ]
    return []
