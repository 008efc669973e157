"""Fine-tuning in two stages: what holds still, when it wakes up, and how an interrupted run goes on."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssp.network import in_encoder, is_output_layer
from nnunet_ssp.training.transfer import pretrained_weights
from tests.ranks import on_ranks
from tests.saved import final, load

FROZEN, WARMUP = "nnUNetTrainerFinetuneFrozen", "nnUNetTrainerFinetuneWarmup"
SCRATCH_FROZEN, SCRATCH_WARMUP = "nnUNetTrainerScratchFrozen", "nnUNetTrainerScratchWarmup"
STEP = "iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def weights(trainer: Any) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in trainer.network_module.state_dict().items()}


def after_each_epoch(trainer: Any) -> list[dict[str, Tensor]]:
    """The weights now and, once it has run, after each epoch."""
    states = [weights(trainer)]
    validation_start = trainer.on_validation_epoch_start

    def keep() -> None:
        states.append(weights(trainer))
        validation_start()

    trainer.on_validation_epoch_start = keep
    return states


def with_losses(trainer: Any, losses: Iterable[float]) -> Any:
    """Make these the validation losses of the epochs."""
    losses, validation_end = list(losses), trainer.on_validation_epoch_end

    def replace(outputs: Any) -> None:
        validation_end(outputs)
        curves = trainer.logger.local_logger.my_fantastic_logging
        curves["val_losses"][-1] = losses[trainer.current_epoch]

    trainer.on_validation_epoch_end = replace
    return trainer


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {key for key, tensor in one.items() if not torch.equal(tensor, other[key])}


def rates(trainer: Any) -> list[float]:
    return trainer.logger.local_logger.my_fantastic_logging["lrs"]


# -- what holds still ------------------------------------------------------------------------------


@pytest.fixture
def batch_norm_file(runs, own_copy, tmp_path):
    """Plans `tinybn`, and a file of a network with batch normalisation: all of it, or its encoder alone."""
    plans = json.loads((own_copy / "tiny.json").read_text())
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"
    plans["plans_name"] = "tinybn"
    (own_copy / "tinybn.json").write_text(json.dumps(plans))

    def make(holds: str) -> Path:
        trainer = runs.run("nnUNetTrainerScratch", f"{STEP} num_epochs=1", plans="tinybn")
        content = final(trainer)
        if holds == "encoder":
            content["network_weights"] = pretrained_weights(trainer.network, "encoder", 4)
        torch.save(content, tmp_path / f"{holds}.pth")
        return tmp_path / f"{holds}.pth"

    return make


@pytest.mark.parametrize(
    ("trainer", "stages", "holds", "still"),
    [
        (FROZEN, "frozen_epochs=2", "all", lambda key: not is_output_layer(key)),
        (FROZEN, "frozen_epochs=2", "encoder", in_encoder),
        (FROZEN, "frozen_epochs=2 transfer=encoder", "all", in_encoder),
        (WARMUP, "warmup_decoder_epochs=2 warmup_all_epochs=1", "all", in_encoder),
    ],
)
def test_what_was_loaded_holds_still_and_then_trains(
    runs, batch_norm_file, log, trainer, stages, holds, still
):
    """To the last bit, with weight decay, momentum and running statistics."""
    file = batch_norm_file(holds)
    run = runs.make(trainer, f"{STEP} num_epochs=4 {stages}", weights=file, plans="tinybn")
    loaded, source = weights(run), load(file)["network_weights"]
    states = after_each_epoch(run)
    run.run_training()
    held = {key for key in loaded if still(key)}
    assert run.held == held
    assert any(key.endswith(STATISTICS) for key in held)
    assert all(torch.equal(loaded[key], source[key]) for key in held)
    # nnU-Net's lowest output has no weight in the loss, and some biases stand before a normalisation.
    trains = {k for k, t in loaded.items() if t.ndim > 1 and "seg_layers.0" not in k}
    trains |= {k for k in loaded if k.endswith(STATISTICS)}
    for before, after in itertools.pairwise(states[:3]):
        moved = changed(before, after)
        assert not moved & held
        assert trains - held <= moved
    for before, after in itertools.pairwise(states[2:]):
        assert trains <= changed(before, after)
    count = len([k for k, _ in run.network.named_parameters() if k in held])
    said = log(run)
    assert f"{count} of 68 parameter tensors are frozen" in said
    assert said.index("The second stage begins with epoch 2.") < said.index("0 of 68 parameter")


def test_an_encoder_alone_is_enough_with_a_note(runs, batch_norm_file, log):
    file = batch_norm_file("encoder")
    for trainer in (FROZEN, WARMUP, "nnUNetTrainerFinetune"):
        run = runs.make(trainer, STEP, weights=file, plans="tinybn")
        assert "note: the file holds a pretrained encoder and no decoder" in log(run)


@pytest.mark.parametrize(
    ("control", "trainer", "stages"),
    [
        (SCRATCH_FROZEN, FROZEN, "frozen_epochs=2"),
        (SCRATCH_WARMUP, WARMUP, "warmup_decoder_epochs=2 warmup_all_epochs=1"),
    ],
)
def test_the_control_has_the_rates_and_nothing_holds_still(
    runs, pretrained, log, control, trainer, stages
):
    settings = f"{STEP} num_epochs=4 {stages}"
    tuned = runs.run(trainer, settings, weights=pretrained)
    run = runs.make(control, settings)
    run.initialize()
    states = after_each_epoch(run)
    run.run_training()
    assert rates(run) == rates(tuned) and len(set(rates(run))) > 1
    for before, after in itertools.pairwise(states):
        moved = changed(before, after)
        assert all(k in moved for k, t in before.items() if t.ndim > 1 and "layers.0" not in k)
    assert "tensors are frozen" not in log(run)
    assert run.record()["weights_from"] == "scratch"
    with pytest.raises(ValueError, match="trains from scratch and takes no -pretrained_weights"):
        runs.make(control, settings, weights=pretrained)


@pytest.mark.parametrize("trainer", [FROZEN, WARMUP])
def test_a_run_of_one_epoch_trains_everything(runs, pretrained, log, trainer):
    run = runs.make(trainer, f"{STEP} num_epochs=1", weights=pretrained)
    before, after = after_each_epoch(run), weights
    run.run_training()
    moved = changed(before[0], after(run))
    assert all(k in moved for k, t in before[0].items() if t.ndim > 1 and "layers.0" not in k)
    assert "The second stage begins with epoch 0." in log(run)
    assert ": 62 of" not in log(run)
    assert rates(run) == [run.initial_lr]


# -- when the first stage ends ---------------------------------------------------------------------

AUTO = f"{STEP} num_epochs=10 frozen_patience=2"


@pytest.mark.parametrize("trainer", [FROZEN, SCRATCH_FROZEN])
def test_the_second_stage_starts_from_the_best_weights(runs, pretrained, log, trainer):
    """The first ends two epochs after the best; early stopping counts in the second stage alone."""
    file = pretrained if trainer == FROZEN else None
    run = runs.make(trainer, AUTO + " early_stopping=1", weights=file)
    if not run.was_initialized:
        run.initialize()
    with_losses(run, [3, 2, 2.5, 2, 9, 8, 8, 8, 8, 8])
    states = after_each_epoch(run)
    at_start: dict[int, Any] = {}
    epoch_start = run.on_train_epoch_start

    def keep() -> None:
        epoch_start()
        at_start[run.current_epoch] = weights(run), len(run.optimizer.state)

    run.on_train_epoch_start = keep
    run.run_training()
    assert run.second_stage == 4
    assert run.current_epoch == 7, "9 counts as a new best, 8 as a better one, and 8 again does not"
    now, momenta = at_start[4]
    assert not changed(now, states[2]), "the weights after epoch 1"
    assert changed(now, states[4])
    assert momenta == 0, "a training of its own"
    assert rates(run)[3:5] == [0.01, 0.005]
    assert "It starts from the weights with the best validation loss, 2.0000." in log(run)


def test_a_loss_that_always_falls_ends_with_half_of_the_run(runs, pretrained):
    run = with_losses(runs.make(FROZEN, AUTO, weights=pretrained), range(20, 10, -1))
    states = after_each_epoch(run)
    run.run_training()
    assert run.second_stage == 5
    last = {k for k in changed(states[4], states[5])}
    assert last and all(is_output_layer(key) for key in last)


def test_losses_that_are_no_numbers_leave_the_weights(runs, pretrained, log):
    run = with_losses(runs.make(FROZEN, AUTO, weights=pretrained), [float("nan")] * 10)
    run.run_training()
    assert run.second_stage == 2
    assert "It starts from the weights" not in log(run)


# -- interruptions ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("trainer", "settings", "second_stage"),
    [
        (FROZEN, "num_epochs=8 frozen_patience=1", 3),  # the best weights are those after epoch 1
        (WARMUP, "num_epochs=5 warmup_decoder_epochs=2 warmup_all_epochs=1", 2),
    ],
)
def test_interrupted_runs_continue_exactly(
    runs, pretrained, same_batches, monkeypatch, trainer, settings, second_stage
):
    """In the first stage, between the two, and in the second."""
    monkeypatch.setattr("nnunet_ssp.training.base.SECONDS_BETWEEN_SAVES", -1)
    make, losses = runs.make, [5, 4, 6, 6, 5, 5, 4, 3]
    monkeypatch.setattr(runs, "make", lambda *a, **o: with_losses(make(*a, **o), losses))
    settings = f"{STEP} {settings}"
    whole = runs.run(trainer, settings, weights=pretrained)
    assert whole.second_stage == second_stage
    expected = final(whole)

    for epochs in (second_stage - 1, second_stage, second_stage + 1):
        shutil.rmtree(whole.output_folder)
        stopped = runs.interrupt(trainer, settings, epochs, weights=pretrained)
        saved = load(Path(stopped.output_folder) / "checkpoint_latest.pth")["ssp_stage"]
        in_first = epochs <= second_stage
        assert saved["second_stage"] == (None if in_first else second_stage)
        assert bool(saved.get("best")) == (in_first and trainer == FROZEN)

        rest = runs.make(trainer, settings, resume=True)
        assert rest.current_epoch == epochs
        assert not changed(weights(rest), weights(stopped))
        rest.run_training()
        found = final(rest)
        assert rates(rest) == rates(whole)
        for curve in ("train_losses", "mean_fg_dice"):
            assert found["logging"][curve] == expected["logging"][curve], (epochs, curve)
        assert not changed(found["network_weights"], expected["network_weights"]), epochs
        for entry in ("ssp_early_stopping", "ssp_stage"):
            assert found[entry] == expected[entry]
        momenta = [c["optimizer_state"]["state"] for c in (found, expected)]
        assert momenta[0].keys() == momenta[1].keys() and momenta[0]
        for key, state in momenta[0].items():
            assert torch.equal(state["momentum_buffer"], momenta[1][key]["momentum_buffer"])


@pytest.mark.parametrize(
    ("trainer", "stages", "other", "difference"),
    [
        (FROZEN, "frozen_epochs=1", "frozen_epochs=2", "frozen_epochs: 1 -> 2"),
        (FROZEN, "", "frozen_lr=0.1", r"frozen_lr: 0\.01 -> 0\.1"),
        (WARMUP, "", "warmup_all_epochs=0", "warmup_all_epochs: auto -> 0"),
    ],
)
def test_other_stages_are_refused_on_resume(runs, pretrained, trainer, stages, other, difference):
    runs.interrupt(trainer, f"{STEP} num_epochs=4 {stages}", weights=pretrained)
    with pytest.raises(ValueError, match=f"--c must go on .*differ: {difference}"):
        runs.make(trainer, f"{STEP} num_epochs=4 {other}", resume=True)


def test_a_finished_run_has_nothing_left_to_do(runs, pretrained):
    """With --c it trains nothing more; with --val it needs no settings."""
    settings = f"{STEP} num_epochs=2 frozen_epochs=1"
    done = final(runs.run(FROZEN, settings, weights=pretrained))
    again = runs.run(FROZEN, settings, resume=True)
    assert again.second_stage == 1
    assert not changed(final(again)["network_weights"], done["network_weights"])
    assert final(again)["current_epoch"] == done["current_epoch"]

    validates = runs.make(FROZEN)
    runs.monkeypatch.setattr("sys.argv", ["nnUNetv2_train", "--val"])
    validates.load_checkpoint(str(Path(again.output_folder) / "checkpoint_final.pth"))
    assert not changed(weights(validates), done["network_weights"])


def test_prediction_is_nnunets_own(runs, pretrained, monkeypatch):
    """The checkpoint asks for no trainer of ours."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    run = runs.run(FROZEN, f"{STEP} num_epochs=2 frozen_epochs=1", weights=pretrained)
    monkeypatch.delenv("nnUNet_extTrainer")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(run.output_folder_base, (0,))
    image = torch.randn(1, 2, 40, 44)
    found = predictor.predict_logits_from_preprocessed_data(image)
    assert found.shape == (4, 2, 40, 44) and found.isfinite().all()
    assert not changed(dict(predictor.network.state_dict()), weights(run))


# -- several processes -----------------------------------------------------------------------------


def train_on_a_rank(folder: str, weights_file: str) -> dict[str, Any]:
    """Run the trainer on a part of the batch; nnU-Net's own way would put it on a GPU."""
    os.environ["nnUNet_ssp_settings"] = f"{STEP} num_epochs=3 frozen_epochs=1"
    nnunet.DDP = lambda module, device_ids: DistributedDataParallel(module)
    MetaLogger.plot_progress_png = lambda *_: None
    plans = json.loads(Path(folder, "tiny.json").read_text()) | {"continue_training": False}
    dataset = json.loads(Path(folder, "dataset.json").read_text())
    run: Any = recursive_find_trainer_class_by_name(FROZEN)(
        plans, "2d", 0, dataset, torch.device("cpu")
    )
    run.device, run.grad_scaler = torch.device("cpu"), None
    sys.argv = ["nnUNetv2_train", "-pretrained_weights", weights_file]
    run.initialize()
    loaded = load(Path(weights_file))["network_weights"]
    own = run.network_module.state_dict()
    run.network_module.load_state_dict(
        {key: own[key] if is_output_layer(key) else loaded[key] for key in own}
    )
    wrappers = [run.network]
    states = after_each_epoch(run)
    gradients = []
    epoch_end = run.on_train_epoch_end

    def look(outputs: Any) -> None:
        wrappers.append(run.network)
        gradients.append(
            {
                k: p.grad.clone()
                for k, p in run.network_module.named_parameters()
                if p.grad is not None
            }
        )
        epoch_end(outputs)

    run.on_train_epoch_end = look
    run.run_training()
    return {
        "states": states,
        "gradients": gradients,
        "held": set(run.held),
        "batch": run.batch_size,
        "new wrappers": [a is not b for a, b in itertools.pairwise(wrappers)],
        "data": float(next(run.dataloader_train)["data"].sum()),
    }


def test_two_processes(runs, preprocessed, pretrained, tmp_path):
    """Unfreezing wraps the network anew: gradients of all tensors flow, and are the same on every rank."""
    one, two = on_ranks(train_on_a_rank, 2, tmp_path, str(preprocessed), str(pretrained))
    assert one["data"] != two["data"], "each draws its own part of the batch"
    assert one["batch"] == two["batch"] == 1
    for rank in (one, two):
        states, held = rank["states"], rank["held"]
        assert not changed(states[0], states[1]) & held
        assert rank["new wrappers"] == [True, True, False]
        assert all(is_output_layer(key) for key in rank["gradients"][0])
        for gradient in rank["gradients"][1:]:
            assert len(gradient) == 68
        for before, after in itertools.pairwise(states[1:]):
            moved = changed(before, after)
            assert all(k in moved for k, t in before.items() if t.ndim > 1 and "layers.0" not in k)
    for first, second in zip(one["gradients"], two["gradients"], strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    for first, second in zip(one["states"], two["states"], strict=True):
        assert not changed(first, second)
