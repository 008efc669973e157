"""Losses, gradients and weights that are not finite: a few steps are skipped, then the training ends in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssp.training.finite import first_not_finite

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

MIM, SCRATCH = "nnUNetTrainerMIMPretrain", "nnUNetTrainerScratch"
FINETUNE = "nnUNetTrainerFinetune"
PRETRAIN = "num_epochs=2 iterations_per_epoch=5 batch_size=4"
TUNE = "num_epochs=2 iterations_per_epoch=5 val_iterations_per_epoch=2 final_validation=no"


def checkpoints(trainer: Any) -> dict[str, dict[str, Any]]:
    files = Path(trainer.output_folder).glob("*.pth")
    return {file.stem: torch.load(file, weights_only=True) for file in files}


def lose(trainer: Any, steps: set[int]) -> None:
    """Put NaN into the batches of some steps, counted over all epochs."""
    own, count = trainer.train_step, iter(range(1000))

    def step(batch: Any) -> Any:
        if next(count) in steps:
            if isinstance(batch, dict):
                batch["data"][0, 0, 0, 0] = math.nan
            else:
                batch.slices = torch.full_like(batch.slices, math.nan)
        return own(batch)

    trainer.train_step = step


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_a_few_lost_batches_are_skipped_and_counted(runs, log, trainer):
    made = runs.make(trainer, PRETRAIN if trainer == MIM else TUNE)
    lose(made, {1, 7, 8})
    made.run_training()
    said = log(made)
    assert said.count("WARNING: loss or gradient is not finite, skipped step ") == 3
    (line,) = [line for line in said.splitlines() if "skipped step 8 (epoch 1)" in line]
    assert "_frame0" in line and line.strip().endswith("; 2 in a row, 3 of 9 steps in all.")
    final = checkpoints(made)["checkpoint_final"]
    assert final["ssp_skipped"] == {"in_a_row": 0, "total": 3, "steps": 10}
    assert first_not_finite(final) is None
    assert all(math.isfinite(loss) for loss in final["logging"]["train_losses"])


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_many_lost_batches_end_the_training(runs, trainer):
    made = runs.make(trainer, PRETRAIN if trainer == MIM else TUNE)
    lose(made, {3, *range(5, 10)})
    rule = (
        r"loss or gradient is not finite in step 9 \(epoch 1\) with a batch of \w+_frame\d\d.*; 5 in a row, 6 of 10 "
        r"steps in all.*Settings: num_epochs=2 .*last good checkpoint .*checkpoint_\w+\.pth; continue with --c"
    )
    with pytest.raises(RuntimeError, match=rule) as ended:
        made.run_training()
    assert isinstance(ended.value, SystemExit) and ended.value.code not in (0, None)
    found = checkpoints(made)
    assert "checkpoint_final" not in found
    assert all(first_not_finite(content) is None for content in found.values())


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_an_epoch_without_a_finite_step_ends_the_training(runs, trainer):
    settings = (PRETRAIN if trainer == MIM else TUNE).replace("epoch=5", "epoch=1", 1)
    made = runs.make(trainer, settings)
    lose(made, {1})
    with pytest.raises(
        RuntimeError, match=r"no step of epoch 1 had .* with a batch of \w+_frame.*last good"
    ):
        made.run_training()


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
@pytest.mark.parametrize("lr", ["1e6", "1e30"])
def test_a_learning_rate_that_is_far_too_high(runs, trainer, lr):
    """Today's fine-tuning ended with exit status 0 and a checkpoint full of NaN."""
    settings = PRETRAIN if trainer == MIM else TUNE
    made = runs.make(trainer, f"{settings} initial_lr={lr}")
    with pytest.raises(RuntimeError, match=r"Training stopped: .*initial_lr=1(e\+30|000000)"):
        made.run_training()
    assert all(first_not_finite(content) is None for content in checkpoints(made).values())


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_a_checkpoint_that_is_not_finite_is_not_written(runs, trainer):
    """Found also where no loss shows it."""
    made = runs.make(trainer, PRETRAIN if trainer == MIM else TUNE)
    end = made.on_validation_epoch_end

    def poison(outputs: Any) -> None:
        end(outputs)
        with torch.no_grad():
            next(made.network_module.parameters()).view(-1)[0] = math.inf

    made.on_validation_epoch_end = poison
    with pytest.raises(
        RuntimeError, match=r"network_weights\..* is not finite after step 4 \(epoch 0\)"
    ):
        made.run_training()
    assert checkpoints(made) == {}


def test_weights_that_are_not_finite_start_no_training(runs, pretrained, tmp_path):
    content = torch.load(pretrained, weights_only=True)
    key = "encoder.stages.0.0.convs.0.conv.weight"
    content["network_weights"][key].view(-1)[0] = math.nan
    torch.save(content, tmp_path / "lost.pth")
    with pytest.raises(ValueError, match=r"finite|NaN"):
        runs.run(FINETUNE, TUNE, weights=tmp_path / "lost.pth")


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_lost_validation_batches_are_left_out(runs, log, trainer):
    made = runs.make(trainer, PRETRAIN if trainer == MIM else TUNE)
    step, count = made.validation_step, iter(range(100))

    def lose_first(batch: Any) -> Any:
        output = step(batch)
        if next(count) == 0:
            output["loss"] = output["loss"] * math.nan
        return output

    made.validation_step = lose_first
    made.run_training()
    assert "WARNING: the loss of 1 of " in log(made)
    losses = checkpoints(made)["checkpoint_final"]["logging"]["val_losses"]
    assert all(math.isfinite(loss) for loss in losses)
