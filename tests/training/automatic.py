"""Short runs in which `auto` decides how to compute, and how they must go on once it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.saved import final, load

MIM, SCRATCH = "nnUNetTrainerMIMPretrain", "nnUNetTrainerScratch"
SHORT = {
    MIM: "iterations_per_epoch=2 batch_size=4",
    SCRATCH: "iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no",
}


def losses(trainer: Any) -> torch.Tensor:
    """The training's loss of every epoch."""
    return torch.tensor(trainer.logger.local_logger.my_fantastic_logging["train_losses"])


def goes_on_exactly(
    runs: Any,
    trainer: str,
    settings: str,
    trial: Callable[[float], None],
    first: float,
    later: float,
) -> tuple[Any, dict[str, Any]]:
    """Compare a run with one that is interrupted and resumed where its trial would find another gain.

    Returns:
        The resumed run, whose weights are those of the whole one bit by bit, and the whole one's last checkpoint.
    """
    trial(first)
    whole = runs.run(trainer, settings)
    expected = final(whole)
    shutil.rmtree(whole.output_folder)
    runs.interrupt(trainer, settings)
    trial(later)
    rest = runs.run(trainer, settings, resume=True)
    found = final(rest)["network_weights"]
    for key, tensor in expected["network_weights"].items():
        assert torch.equal(found[key], tensor), key
    return rest, expected


def forget(stopped: Any, setting: str) -> None:
    """Make an interrupted run's checkpoint one of a version that did not know a setting."""
    file = Path(stopped.output_folder) / "checkpoint_latest.pth"
    content = load(file)
    del content["ssp"][setting], content["ssp"]["settings"][setting]
    torch.save(content, file)
