"""Fine-tuning with another optimiser than nnU-Net's: learning rates, decay towards the start, interruptions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
from torch import Tensor

from nnunet_ssp.network import in_encoder, is_alias, is_output_layer
from tests.saved import final, load

FINETUNE, SCRATCH = "nnUNetTrainerFinetune", "nnUNetTrainerScratch"
FROZEN, WARMUP = "nnUNetTrainerFinetuneFrozen", "nnUNetTrainerFinetuneWarmup"
STEP = "iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no"
ALL = "optimizer=adamw initial_lr=0.001 weight_decay=0.01 encoder_lr_factor=0.5 l2_sp=0.1"

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def rates_of_groups(trainer: Any) -> list[list[float]]:
    """The learning rate of each group in each epoch, from nnU-Net's own call of the scheduler."""
    rates = []
    for epoch in range(trainer.num_epochs):
        trainer.lr_scheduler.step(epoch)
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    return rates


# -- by default ------------------------------------------------------------------------------------


def test_every_step_is_nnunets(runs, same_batches):
    """Against nnU-Net's trainer from the same weights: equal to the last bit with its own modules."""
    ours = runs.run(SCRATCH, f"{STEP} num_epochs=3 fused_norm=no")
    plans = {**ours.my_init_kwargs["plans"], "continue_training": False}  # which nnU-Net takes out
    stock = nnunet.nnUNetTrainer(**{**ours.my_init_kwargs, "plans": plans})
    torch.manual_seed(0)
    stock.initialize()
    stock.num_epochs = 3
    stock.optimizer, stock.lr_scheduler = stock.configure_optimizers()
    batch = next(ours.dataloader_train)
    for epoch in range(3):
        stock.network.train()
        stock.lr_scheduler.step(epoch)
        stock.train_step(batch)
    found = ours.network.state_dict()
    assert all(torch.equal(t, found[key]) for key, t in stock.network.state_dict().items())
    assert (
        ours.optimizer.state_dict()["param_groups"] == stock.optimizer.state_dict()["param_groups"]
    )
    assert "ssp_start" not in final(ours)


def test_a_checkpoint_from_before_these_settings_goes_on(runs):
    stopped = runs.interrupt(SCRATCH, f"{STEP} num_epochs=2")
    file = Path(stopped.output_folder) / "checkpoint_latest.pth"
    content = load(file)
    for name in ("optimizer", "weight_decay", "encoder_lr_factor", "l2_sp", "warmup_epochs"):
        del content["ssp"]["settings"][name]
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"--c must go on .* optimizer: sgd -> adamw"):
        runs.make(SCRATCH, f"{STEP} num_epochs=2 optimizer=adamw", resume=True)
    assert runs.run(SCRATCH, f"{STEP} num_epochs=2", resume=True).current_epoch == 2


# -- learning rates --------------------------------------------------------------------------------


def test_rates_of_the_groups(runs, pretrained):
    settings = "num_epochs=4 initial_lr=0.01 encoder_lr_factor=0.1"
    plain = runs.make(SCRATCH, "num_epochs=4 initial_lr=0.01")
    plain.initialize()
    nnunets = [rate for (rate,) in rates_of_groups(plain)]
    assert nnunets[0] == 0.01
    found = rates_of_groups(runs.make(FINETUNE, settings, weights=pretrained))
    assert [decoder for decoder, _ in found] == nnunets
    assert [encoder for _, encoder in found] == pytest.approx([0.1 * r for r in nnunets])


def test_rates_of_a_warmup(runs):
    trainer = runs.make(SCRATCH, "num_epochs=6 initial_lr=0.03 warmup_epochs=2")
    trainer.initialize()
    after = runs.make(SCRATCH, "num_epochs=4 initial_lr=0.03")
    after.initialize()
    assert rates_of_groups(trainer)[:2] == [[pytest.approx(0.01)], [pytest.approx(0.02)]]
    assert rates_of_groups(trainer)[2:] == rates_of_groups(after)


def test_rates_of_the_groups_in_stages(runs, pretrained):
    settings = "num_epochs=6 warmup_decoder_epochs=2 warmup_all_epochs=1"
    plain = rates_of_groups(runs.make(WARMUP, settings, weights=pretrained))
    found = runs.make(WARMUP, f"{settings} encoder_lr_factor=0.1", weights=pretrained)
    assert rates_of_groups(found) == [[rate, pytest.approx(0.1 * rate)] for (rate,) in plain]


# -- decay towards the pretrained weights ----------------------------------------------------------


def test_there_is_no_start_from_scratch(runs):
    with pytest.raises(ValueError, match=r"`l2_sp` \(=0\.1\) must be 0 for \w+: it draws weights"):
        runs.make(SCRATCH, "l2_sp=0.1").initialize()


def distance(trainer: Any, weights: dict[str, Tensor]) -> float:
    own = trainer.network_module.state_dict()
    keys = [key for key in own if not is_output_layer(key) and not is_alias(key)]
    return sum(float((own[key] - weights[key]).square().sum()) for key in keys) ** 0.5


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize(("optimizer", "strength"), [("sgd", 5), ("adamw", 50)])
def test_loaded_weights_stay_nearer_to_their_start(
    runs, pretrained, same_batches, optimizer, strength
):
    start = load(pretrained)["network_weights"]
    settings = f"{STEP} num_epochs=6 initial_lr=0.01 optimizer={optimizer} l2_sp="
    free = runs.run(FINETUNE, f"{settings}0", weights=pretrained)
    shutil.rmtree(free.output_folder)
    held = runs.run(FINETUNE, f"{settings}{strength}", weights=pretrained)
    assert 0 < distance(held, start) < 0.9 * distance(free, start)


@pytest.mark.parametrize("transfer", ["all", "encoder"])
def test_the_start_of_what_was_loaded(runs, pretrained, transfer):
    trainer = runs.run(
        FINETUNE, f"{STEP} num_epochs=1 l2_sp=0.1 transfer={transfer}", weights=pretrained
    )
    weights, start = load(pretrained)["network_weights"], final(trainer)["ssp_start"]
    named = [name for name, _ in trainer.network.named_parameters()]
    taken = in_encoder if transfer == "encoder" else lambda name: not is_output_layer(name)
    assert start.keys() == {name for name in named if taken(name)}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in start.items())


def test_a_step_that_is_not_finite_moves_nothing(runs, pretrained, same_batches):
    """AdamW's decay, too, must wait for a finite gradient."""
    trainer = runs.make(FINETUNE, f"{STEP} num_epochs=2 {ALL}", weights=pretrained)
    states: list[dict[str, Tensor]] = []
    own_step = trainer.train_step

    def step(batch: Any) -> Any:
        if trainer.current_epoch == 0:
            return own_step(batch)
        states.append({k: v.clone() for k, v in trainer.network.state_dict().items()})
        return own_step({**batch, "data": batch["data"] * float("nan")})

    trainer.train_step = step
    with pytest.raises(SystemExit, match="no step of epoch 1 had a finite loss"):
        trainer.run_training()
    found = trainer.network.state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in states[0].items())


# -- interruptions ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        (FINETUNE, ALL),
        (FINETUNE, "l2_sp=0.1"),
        (SCRATCH, "encoder_lr_factor=0.5 warmup_epochs=2"),
        (FROZEN, f"{ALL} frozen_epochs=1"),
    ],
)
def test_interrupted_runs_continue_exactly(
    runs, pretrained, same_batches, monkeypatch, trainer, settings
):
    monkeypatch.setattr("nnunet_ssp.training.base.SECONDS_BETWEEN_SAVES", -1)
    settings = f"{STEP} num_epochs=4 {settings}"
    weights = None if trainer == SCRATCH else pretrained
    whole = runs.run(trainer, settings, weights=weights)
    expected = final(whole)
    shutil.rmtree(whole.output_folder)
    runs.interrupt(trainer, settings, 2, weights=weights)
    rest = runs.make(trainer, settings, resume=True)
    assert rest.current_epoch == 2
    rest.run_training()
    found = final(rest)
    for name in ("network_weights", "ssp_start"):
        for key, tensor in expected.get(name, {}).items():
            assert torch.equal(found[name][key], tensor), (name, key)
    assert found["logging"]["lrs"] == expected["logging"]["lrs"]
    assert found["optimizer_state"]["param_groups"] == expected["optimizer_state"]["param_groups"]
    for number, state in expected["optimizer_state"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(found["optimizer_state"]["state"][number][name], tensor)


def test_prediction_is_nnunets_own(runs, pretrained, monkeypatch):
    """Neither the groups nor the start hinder nnU-Net's loader."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    run = runs.run(FINETUNE, f"{STEP} num_epochs=1 {ALL}", weights=pretrained)
    monkeypatch.delenv("nnUNet_extTrainer")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(run.output_folder_base, (0,))
    found = predictor.network.state_dict()
    assert all(torch.equal(t, found[key]) for key, t in run.network.state_dict().items())
