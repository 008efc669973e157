"""Training whose result is the moving average: what is averaged, validated, exported and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_ssp.schedules import average_momentum
from nnunet_ssp.training import finetuning
from tests.saved import final

FINETUNE, SCRATCH = "nnUNetTrainerFinetuneAveraged", "nnUNetTrainerScratchAveraged"
STEPS = "iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def weights(network: Any) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {key for key, tensor in one.items() if not torch.equal(tensor, other[key])}


def after_each_step(trainer: Any) -> list[dict[str, Tensor]]:
    """The trained weights now and, once it has run, after each step."""
    states = [weights(trainer.network_module)]
    follow = trainer._follow

    def keep(momentum: float) -> None:
        if momentum < 1:  # 1 stands for the end of an epoch
            states.append(weights(trainer.network_module))
        follow(momentum)

    trainer._follow = keep
    return states


def test_the_average_in_closed_form(runs, pretrained, log):
    run = runs.make(FINETUNE, f"{STEPS} num_epochs=2 average_momentum=0.15", weights=pretrained)
    states = after_each_step(run)
    run.run_training()
    assert len(states) == 5
    expected = {k: t.double() for k, t in states[0].items()}
    for step, state in enumerate(states[1:]):
        momentum = average_momentum(step, 0.15)
        assert momentum == (0.1 if step == 0 else 0.15)
        for key, tensor in expected.items():
            expected[key] = momentum * tensor + (1 - momentum) * state[key].double()
    content = final(run)
    for key, tensor in content["network_weights"].items():
        assert torch.allclose(tensor.double(), expected[key], atol=1e-6), key
    assert not changed(content["ssp_trained_weights"], states[-1])
    assert changed(content["ssp_trained_weights"], content["network_weights"])
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["ssp"]["exported"] == "average"
    assert "moving average of the weights is validated and exported" in log(run)


def test_training_itself_is_the_plain_trainers(runs):
    """Averaging only looks on, and an average of the last step alone is the plain training's result."""
    plain = runs.run("nnUNetTrainerScratch", f"{STEPS} num_epochs=2")
    run = runs.run(SCRATCH, f"{STEPS} num_epochs=2")
    assert not changed(final(run)["ssp_trained_weights"], final(plain)["network_weights"])
    curves = [final(t)["logging"] for t in (run, plain)]
    assert curves[0]["train_losses"] == curves[1]["train_losses"]
    assert curves[0]["val_losses"] != curves[1]["val_losses"]

    shutil.rmtree(run.output_folder)
    last = runs.run(SCRATCH, f"{STEPS} num_epochs=2 average_momentum=0")
    assert not changed(final(last)["network_weights"], final(plain)["network_weights"])
    assert final(last)["logging"]["val_losses"] == curves[1]["val_losses"]


def test_the_average_is_validated(runs, monkeypatch):
    run = runs.make(SCRATCH, f"{STEPS} num_epochs=1 average_momentum=0.5")
    seen = []
    step = run.validation_step

    def look(batch: Any) -> Any:
        before = weights(run.network_module), weights(run.exported())
        hook = run.network_module.register_forward_pre_hook(
            lambda *_: seen.append(weights(run.network_module))
        )
        output = step(batch)
        hook.remove()
        assert not changed(seen[-1], before[1]) and changed(seen[-1], before[0])
        assert not changed(weights(run.network_module), before[0])
        assert not changed(weights(run.exported()), before[1])
        return output

    run.validation_step = look
    run.run_training()
    assert len(seen) == 1


def test_weights_come_back_when_the_validation_fails(runs):
    run = runs.run(SCRATCH, f"{STEPS} num_epochs=1")
    before = weights(run.network_module)
    with pytest.raises(KeyError):
        run.validation_step({})
    assert not changed(weights(run.network_module), before)


def test_interrupted_runs_continue_exactly(runs, pretrained, monkeypatch):
    monkeypatch.setattr("nnunet_ssp.training.base.SECONDS_BETWEEN_SAVES", -1)
    settings = f"{STEPS} num_epochs=3"
    expected = final(whole := runs.run(FINETUNE, settings, weights=pretrained))
    shutil.rmtree(whole.output_folder)
    stopped = runs.interrupt(FINETUNE, settings, 2, weights=pretrained)
    rest = runs.make(FINETUNE, settings, resume=True)
    assert not changed(weights(rest.network_module), weights(stopped.network_module))
    assert not changed(weights(rest.exported()), weights(stopped.exported()))
    rest.run_training()
    found = final(rest)
    for entry in ("network_weights", "ssp_trained_weights"):
        assert not changed(found[entry], expected[entry]), entry
    for curve in ("train_losses", "val_losses"):
        assert found["logging"][curve] == expected["logging"][curve]


def test_statistics_restored_after_a_skipped_step_reach_the_average(runs, own_copy):
    """A last step that is not finite leaves statistics that are not, until the guard restores them."""
    plans = json.loads((own_copy / "tiny.json").read_text())
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"
    plans["plans_name"] = "tinybn"
    (own_copy / "tinybn.json").write_text(json.dumps(plans))
    run = runs.make(SCRATCH, f"{STEPS} num_epochs=1", plans="tinybn")
    step = run.train_step

    def lose_the_last(batch: Any) -> Any:
        if len(run.outputs) == 1:
            batch["data"].fill_(float("nan"))
        return step(batch)

    run.train_step = lose_the_last
    run.run_training()
    found = final(run)["network_weights"]
    assert all(tensor.isfinite().all() for tensor in found.values())
    statistics = {k: t for k, t in found.items() if "running" in k}
    assert statistics and all(
        torch.equal(t, run.network_module.state_dict()[k]) for k, t in statistics.items()
    )


def test_prediction_is_nnunets_own(runs, pretrained, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    run = runs.run(FINETUNE, f"{STEPS} num_epochs=1", weights=pretrained)
    monkeypatch.delenv("nnUNet_extTrainer")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(run.output_folder_base, (0,))
    assert not changed(dict(predictor.network.state_dict()), weights(run.exported()))


def test_the_final_validation_is_the_averages(runs, monkeypatch):
    """Also when it is all that is asked for."""
    validated: list[dict[str, Tensor]] = []
    monkeypatch.setattr(
        finetuning,
        "validate_here",
        lambda trainer, _: validated.append(weights(trainer.network_module)),
    )
    run = runs.run(SCRATCH, f"{STEPS} num_epochs=1".replace("final_validation=no", ""))
    run.perform_actual_validation()
    again = runs.make(SCRATCH)
    monkeypatch.setattr("sys.argv", ["nnUNetv2_train", "--val"])
    again.load_checkpoint(str(Path(run.output_folder) / "checkpoint_final.pth"))
    again.perform_actual_validation()
    assert len(validated) == 2
    for found in validated:
        assert not changed(found, final(run)["network_weights"])
    assert not changed(weights(again.network_module), final(run)["ssp_trained_weights"])


def test_momentum_out_of_range(runs):
    with pytest.raises(ValueError, match=r"`average_momentum` \(=1.0\) must lie in \[0, 1\)"):
        runs.make(SCRATCH, "average_momentum=1")
