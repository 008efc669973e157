"""The split of the study `acdc-few`: ACDC's patients by their number, the same share of every block of twenty.

ACDC is ordered by disease: each twenty of patients 001 to 100 have one. A split by number would test on diseases that
no training saw. Of each block the first 13 are trained on, the next 3 validate and choose, the last 4 report.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np

from nnunet_ssp.cohort.cases import NAMES, Case
from nnunet_ssp.cohort.folds import Fold, make_fold, subset_name
from nnunet_ssp.cohort.membership import training_cases
from nnunet_ssp.console import some

Side = Literal["train", "choose", "report"]

FEW = "few"  # name of the fold
SOURCE = "acdc"
BLOCK = 20  # patients of one disease
TRAINED, CHOSEN_ON = 13, 3  # first patients of a block, and those after them
LAST = 100  # patients above are ACDC's own test set
SIZES = (2, 5, 10)  # labelled patients
SEEDS = (0, 1, 2, 3, 4)


def number_of(subject: str) -> int:
    """Return the number of a patient, 7 for `patient007`.

    Raises:
        ValueError: It is no name of ACDC's.
    """
    match = re.fullmatch(r"patient(\d{3})", subject)
    if match is None:
        raise ValueError(
            f"{subject}: the split `few` is made for ACDC, whose patients are patient001 to patient150."
        )
    return int(match[1])


def side_of(subject: str) -> Side:
    """Return the side on which a patient is.

    >>> [side_of(f"patient{n:03d}") for n in (13, 14, 17, 21, 101)]
    ['train', 'choose', 'report', 'train', 'report']
    """
    number = number_of(subject)
    place = (number - 1) % BLOCK
    if number > LAST or place >= TRAINED + CHOSEN_ON:
        return "report"
    return "train" if place < TRAINED else "choose"


def draw_evenly(subjects: Collection[str], seed: int) -> list[str]:
    """Order patients so that each beginning of the list holds equally many of every block, as far as it can.

    Blocks come in a shuffled order, one patient of each in turn. A smaller subset is part of a larger one.

    Args:
        subjects: Patients.
        seed: The same seed and patients give the same order.
    """
    stream = np.random.RandomState(seed)
    blocks: dict[int, list[str]] = {}
    for subject in sorted(subjects):
        blocks.setdefault((number_of(subject) - 1) // BLOCK, []).append(subject)
    order = list(blocks)
    stream.shuffle(order)
    for members in blocks.values():
        stream.shuffle(members)
    longest = max(map(len, blocks.values()), default=0)
    return [blocks[b][turn] for turn in range(longest) for b in order if turn < len(blocks[b])]


def few_folds(cases: Mapping[str, Case]) -> list[Fold]:
    """Make the fold `few` and its label subsets, `few-nr2-seed0` and so on.

    Pretrain on `few`: it draws from all but the choosing and the report patients. The subsets validate on the same
    choosing patients. Subsets as large as the training side are left out.

    Raises:
        ValueError: Subjects are not ACDC's, a report patient is no test subject, or a side is empty.
    """
    labelled = {case.subject for case in cases.values() if case.trainable}
    if other := sorted({case.source for case in cases.values()} - {SOURCE}):
        named = ", ".join(NAMES.get(source, source) for source in other)
        raise ValueError(
            f"the split `few` is made for ACDC, by its patients' numbers; this dataset is of {named}. Label subsets of "
            "any dataset: --subsets 10 5 2."
        )
    sides: dict[Side, list[str]] = {"train": [], "choose": [], "report": []}
    for subject in sorted({cases[name].subject for name in training_cases(cases)}):
        sides[side_of(subject)].append(subject)
    if sides["report"]:
        raise ValueError(
            f"{some(sides['report'])} must be test subjects, else pretraining sees them: convert again with "
            "nnunet-ssp convert acdc --few."
        )
    train = [subject for subject in sides["train"] if subject in labelled]
    choose = [subject for subject in sides["choose"] if subject in labelled]
    if not (train and choose):
        raise ValueError(
            "the split `few` must have labelled patients to train on and to choose on."
        )

    def fold(name: str, chosen: Collection[str], source: str) -> Fold:
        return make_fold(name, _keys(chosen), _keys(choose), cases, source)

    found = [fold(FEW, train, "split of acdc-few, by block of twenty")]
    for n in (size for size in SIZES if size < len(train)):
        for seed in SEEDS:
            name = subset_name(FEW, n, seed, "subjects")
            source = f"{n} subjects of {FEW}, blocks in turn, seed {seed}"
            found.append(fold(name, draw_evenly(train, seed)[:n], source))
    return found


def _keys(subjects: Collection[str]) -> list[str]:
    return [f"{SOURCE}-{subject}" for subject in subjects]
