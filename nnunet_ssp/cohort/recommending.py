"""The command that pretrains on a fold, with the trainer that is recommended for its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.cohort.membership import count_for_advice, is_trainable
from nnunet_ssp.launch import training_command
from nnunet_ssp.recommended import recommended

PAPERS_TRAINER = "nnUNetTrainerMIMPretrain"  # of which de Mooij et al. report the largest gain


class _Dataset(Protocol):
    """The part of `dataset.Dataset` that is needed here."""

    @property
    def prepared(self) -> Path: ...
    @property
    def cases(self) -> Mapping[str, Case]: ...
    @property
    def folds(self) -> Sequence[Fold]: ...


def pretraining_line(
    data: _Dataset, number: int, paper: bool = False, at_most: int | None = None
) -> str:
    """Return the command that pretrains on a fold.

    Args:
        data: The dataset.
        number: Number of the fold.
        paper: Whether it is to be as in the paper whose folds these are.
        at_most: Labelled subjects that the fine-tunings have, if fewer than the fold's.
    """
    if paper:
        return training_command(data.prepared, number, PAPERS_TRAINER)
    labelled = {name for name, case in data.cases.items() if is_trainable(case)}
    sides = [{"train": fold.train, "val": fold.val} for fold in data.folds]
    n_labelled, frames = count_for_advice(number, labelled, sides, data.cases)
    advice = recommended(at_most or n_labelled, len(data.cases) - len(labelled), frames)
    return training_command(data.prepared, number, advice.trainer, settings=advice.settings)
