"""Context prediction and context restoration as nnU-Net trainers; what every method does is in test_pretraining."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssp.network import is_output_layer
from tests.gradients import corrupted_views

TASKS = {"ContextPrediction": False, "ContextRestoration": True, "Inpainting": True}
SHORT = "num_epochs=2 iterations_per_epoch=2 batch_size=4"

pytestmark = pytest.mark.usefixtures("one_thread")
every_task = pytest.mark.parametrize("task", TASKS)


def trainer_of(task: str) -> str:
    return f"nnUNetTrainer{task}Pretrain"


@every_task
def test_the_papers_optimiser_and_settings(runs, log, task):
    trainer = runs.make(trainer_of(task))
    trainer.on_train_start()
    trainer.dataloader_train.close()
    (group,) = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.Adam
    assert (group["betas"], group["weight_decay"]) == ((0.99, 0.995), 0)
    assert (trainer.autocast_dtype, trainer.num_epochs) == (None, 500)
    text = log(trainer)
    for line in (
        "area = 0.25",
        "mask_patch = auto",
        "sampling = poisson",
        "masks = bank",
        "loss_region = image",
        "lr_schedule = staircase",
        "early_stopping = 4",
        "momentum = 0.9  (not used by this optimizer)",
        "coarse_heads = no",
        "visible_statistics = no",
    ):
        assert f"  {line}\n" in text, line
    layouts = trainer.method.layouts
    assert layouts.pairs == TASKS[task]
    # A quarter of 48 x 48 px is 9 squares; pairs need an even number that covers at least as much.
    assert (layouts.side, layouts.number) == (8, 10 if TASKS[task] else 9)


def test_the_figure_of_the_papers_table(runs, log):
    """By hand from the validation's own batches."""
    trainer = runs.run(trainer_of("Inpainting"), SHORT)
    text, folder = log(trainer), Path(trainer.output_folder)
    assert text.count("l2 norm: train ") == 2
    rows = list(csv.DictReader((folder / "monitor.csv").read_text().splitlines()))
    norms = [[float(row[f"{side}_l2_norm"]) for side in ("train", "val")] for row in rows]
    assert np.isfinite(norms).all()
    _, batches = trainer.get_dataloaders()  # those of the run have ended with it
    trainer.on_validation_epoch_start()
    found = []
    with torch.no_grad():
        for _ in range(trainer.num_val_iterations_per_epoch):
            target, corrupted, _, inside = corrupted_views(trainer.method, next(batches))
            squares = ((trainer.method.network(corrupted) - target) * inside).double().square()
            found += squares.sum((1, 2, 3)).sqrt().tolist()
    assert len(found) == 16
    assert norms[-1][1] == pytest.approx(np.mean(found), rel=1e-4)


@pytest.mark.parametrize(
    ("task", "plans"), [("ContextPrediction", "tiny"), ("ContextRestoration", "tinyres")]
)
def test_every_setting_at_once(runs, log, task, plans):
    settings = (
        f"{SHORT} recipe=deep skip_dropout=0.3 visible_statistics=yes sampling=uniform masks=fresh area=0.4 "
        "loss_region=corrupted augment=yes warmup_epochs=1"
    )
    trainer = runs.run(trainer_of(task), settings, plans=plans)
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert "early_stopping = none" in log(trainer)
    change = {k: v[-1] for k, v in trainer.logger.get_checkpoint().items() if "change" in k}
    assert len(change) > 5 and all(value > 0 for value in change.values()), change


def test_early_stopping_ends_a_run_and_the_best_weights_go_on(runs, log):
    """The paper's patience of 4: the first epoch improves on infinity, the next four do not."""
    name = trainer_of("Inpainting")
    settings = "iterations_per_epoch=1 batch_size=4 early_stopping_delta=100"
    trainer = runs.run(name, settings)
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    assert trainer.current_epoch == 5
    assert "Early stopping after epoch 4: the validation loss has not improved" in log(trainer)
    assert {p.name for p in folder.glob("*.pth")} == {"checkpoint_best.pth", "checkpoint_final.pth"}
    best = folder / "checkpoint_best.pth"
    assert f"-pretrained_weights {best}" in log(trainer)
    # The last epoch is shown and judged, although 500 were allowed; so are the first ones.
    pictures = sorted(file.stem for file in (folder / "reconstructions").iterdir())
    assert pictures == ["epoch_000", "epoch_005"]
    assert "at most" in log(trainer)

    losses = trainer.logger.get_checkpoint()["val_losses"]
    checkpoint = torch.load(best, weights_only=True)
    assert checkpoint["current_epoch"] == np.argmin(losses) + 1
    tuned = runs.make("nnUNetTrainerFinetune", weights=best)
    state = tuned.network.state_dict()
    trained = [k for k in state if not is_output_layer(k)]
    assert trained
    for key in trained:  # encoder and decoder, all but the last layer
        assert torch.equal(state[key], checkpoint["network_weights"][key]), key


def test_what_the_user_is_told_of_the_squares(runs, log):
    settings = "num_epochs=1 iterations_per_epoch=1 batch_size=4 lr_schedule=cosine"
    text = log(runs.run(trainer_of("Inpainting"), settings))
    assert "mask_patch is 8 px here." in text
    assert "WARNING: early_stopping=4 may end the run long before its cosine does" in text


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("ContextPrediction", "mask_patch=49", r"`mask_patch` \(=49\) must not exceed the shorter"),
        ("ContextRestoration", "mask_patch=25", r"`mask_patch` \(=25\) must leave place for two"),
        (
            "Inpainting",
            "mask_patch=24",
            r"`area` must not ask for 2 squares of 24 px .* smaller `mask_patch`",
        ),
        ("Inpainting", "area=0.6", r"must not ask for 22 squares of 8 px .*Largest area here: 0\."),
        ("ContextPrediction", "area=1", r"`area` \(=1\.0\) must lie in \(0, 1\)"),
        ("ContextPrediction", "sampling=grid", r"`sampling` \(=grid\) must be poisson or uniform"),
        ("ContextPrediction", "masks=few", r"`masks` \(=few\) must be bank or fresh"),
        ("Inpainting", "warmup_epochs=3", r"`warmup_epochs` \(=3\) must be 0 for lr_schedule=st"),
    ],
)
def test_unsuitable_settings_are_refused_before_anything_runs(runs, task, settings, message):
    with pytest.raises(ValueError, match=message):
        runs.make(trainer_of(task), settings).initialize()
