"""Which pretraining and fine-tuning to take: the one rule of README, docs/choosing.md and all printed next steps.

It follows what was measured (`training/measured.csv`) and, where that ends, de Mooij et al. 2024, Table 1.
"""

from __future__ import annotations

from dataclasses import dataclass

FEW = 10  # labelled subjects of the fold's training side, up to which pretraining was measured to gain
MANY = 50  # above it, de Mooij et al. see no gain
MOVEMENT = "contrast=0"  # of dense pretraining: movement alone, its better half as measured
# As measured: 25,200 slices, however many there are. By default every epoch shows each slice once.
MOVEMENT_SETTINGS = f"{MOVEMENT} iterations_per_epoch=50 num_epochs=42"
# As measured, too; 500 steps, a third, gain more over as many from scratch, but end lower.
FEW_SETTINGS = "recipe=few num_epochs=75 iterations_per_epoch=20 val_iterations_per_epoch=10"
WHERE = "docs/choosing.md"


@dataclass(frozen=True)
class Recommended:
    """A pretraining, and the fine-tuning that follows it."""

    trainer: str
    # Of `nnUNet_ssp_settings`, empty for the defaults
    settings: str
    finetuning: str
    # One line for the user
    reason: str


def recommended(n_labelled: int, n_unlabelled: int, frames: bool = True) -> Recommended:
    """Return what to train with so many labels.

    Args:
        n_labelled: Subjects whose labels the fold trains on; 0 where labels come later or are in another dataset.
        n_unlabelled: Images without labels.
        frames: Whether some subject has several frames, between which movement is seen.

    >>> recommended(5, 300).trainer, recommended(5, 300).settings
    ('nnUNetTrainerDensePretrain', 'contrast=0 iterations_per_epoch=50 num_epochs=42')
    >>> recommended(5, 300).finetuning == recommended(5, 300, frames=False).finetuning == FEW_SETTINGS
    True
    >>> recommended(5, 300, frames=False).trainer, recommended(5, 300, frames=False).settings
    ('nnUNetTrainerMIMPretrain', '')
    >>> recommended(11, 300)
    Recommended(trainer='nnUNetTrainerMIMPretrain', settings='', finetuning='', reason='')
    """
    few = n_labelled <= FEW
    dense = few and frames
    trainer = "nnUNetTrainerDensePretrain" if dense else "nnUNetTrainerMIMPretrain"
    settings = MOVEMENT_SETTINGS if dense else ""
    return Recommended(
        trainer, settings, finetuning_settings(n_labelled), _reason(n_labelled, n_unlabelled, dense)
    )


def finetuning_settings(n_labelled: int) -> str:
    """Return the settings to fine-tune with; empty for nnU-Net's, also where there are no labels to count."""
    return FEW_SETTINGS if 0 < n_labelled <= FEW else ""


def _reason(n_labelled: int, n_unlabelled: int, dense: bool) -> str:
    if n_labelled > MANY:
        return (
            f"With more than {MANY} labelled subjects no gain of pretraining is known: train the control, "
            f"nnUNetTrainerScratch, too ({WHERE})."
        )
    if not n_labelled or n_labelled > FEW:
        return ""
    subjects = "1 labelled subject" if n_labelled == 1 else f"{n_labelled} labelled subjects"
    gained = "telling what moves gained most" if dense else "MIM gained"
    said = f"{subjects} to train on: with so few, {gained} where we measured it ({WHERE})."
    if not n_unlabelled:
        said += " There are no unlabelled images, with which it was measured: expect less."
    return said
