"""Settings of the trainers, from `nnUNet_ssp_settings`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.malformed import datasets
from tests.malformed.checkpoints import trainer
from tests.malformed.entry import Entry

PRETRAIN, FINETUNE = "nnUNetTrainerMIMPretrain", "nnUNetTrainerScratch"
# Trainer, settings, what the message must hold.
REFUSED: dict[str, tuple[str, str, str]] = {
    "a word": (PRETRAIN, "fast", "fast.*name=value"),
    "no value": (PRETRAIN, "num_epochs=", "num_epochs.*name=value"),
    "no name": (PRETRAIN, "=5", "=5.*name=value"),
    "a name that there is not": (PRETRAIN, "epochs=5", "epochs.*Valid here"),
    "a name twice": (PRETRAIN, "seed=1 seed=2", "seed.*twice"),
    "a text for a number": (PRETRAIN, "num_epochs=many", "num_epochs.*integer"),
    "a fraction for a number": (PRETRAIN, "num_epochs=2.5", "num_epochs.*integer"),
    "a number with an underscore": (PRETRAIN, "num_epochs=1_0", "num_epochs.*integer"),
    "a fraction with an underscore": (PRETRAIN, "initial_lr=0.0_1", "initial_lr.*number"),
    "digits of another script": (PRETRAIN, "num_epochs=\u0665", "num_epochs.*integer"),
    "a fraction in digits of another script": (
        PRETRAIN,
        "initial_lr=0.\u0661",
        "initial_lr.*number",
    ),
    "5,000 digits": (PRETRAIN, "num_epochs=" + "9" * 5000, "num_epochs"),
    "no epochs": (PRETRAIN, "num_epochs=0", "num_epochs.*at least 1"),
    "a learning rate of NaN": (PRETRAIN, "initial_lr=nan", "initial_lr.*number"),
    "an infinite learning rate": (PRETRAIN, "initial_lr=1e999", "initial_lr.*number"),
    "a negative learning rate": (PRETRAIN, "initial_lr=-1", "initial_lr.*positive"),
    "a seed of 2**40": (PRETRAIN, "seed=1099511627776", "seed.*2"),
    "neither yes nor no": (PRETRAIN, "nesterov=maybe", "nesterov.*yes or no"),
    "an optimiser that there is not": (PRETRAIN, "optimizer=magic", "optimizer.*sgd"),
    "a share above 1": (PRETRAIN, "data_fraction=1.5", "data_fraction.*lie in"),
    "a mask that covers all": (PRETRAIN, "mask_ratio=1.5", "mask_ratio"),
    "fine-tuning: a text for a number": (FINETUNE, "num_epochs=x", "num_epochs.*integer"),
    "fine-tuning: no steps": (
        FINETUNE,
        "iterations_per_epoch=0",
        "iterations_per_epoch.*at least 1",
    ),
    "fine-tuning: a name that there is not": (FINETUNE, "colour=red", "colour.*Valid here"),
}


def of_settings(name: str, text: str) -> Callable[[Path], Callable[[], object]]:
    def make(root: Path) -> Callable[[], object]:
        datasets.prepared(root)
        os.environ["nnUNet_ssp_settings"] = text

        def start() -> None:
            trainer(name, continue_training=False).initialize()

        return start

    return make


def entries() -> Iterator[Entry]:
    for name, (trainer_name, text, says) in REFUSED.items():
        make = of_settings(trainer_name, text)
        # A refused run leaves no folder.
        yield Entry(f"settings: {name}", make, f"error:.*{says}")
    for pattern, rule in (
        ("(", "regular expression"),
        ("(.+)(", "regular expression"),
    ):
        make = of_settings(PRETRAIN, f"subject_pattern={pattern}")
        yield Entry(
            f"settings: the subject pattern {pattern}", _started(make), f"subject_pattern.*({rule})"
        )


def _started(
    make: Callable[[Path], Callable[[], object]],
) -> Callable[[Path], Callable[[], object]]:
    """Start a training, which looks at the cases."""

    def both(root: Path) -> Callable[[], object]:
        make(root)

        def start() -> None:
            made = trainer(PRETRAIN, continue_training=False)
            made.initialize()
            made.do_split()

        return start

    return both


ENTRIES = tuple(entries())
