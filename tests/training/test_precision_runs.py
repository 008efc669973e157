"""Runs in bfloat16 and float32 on a CPU, and what an interrupted run goes on in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from nnunet_ssp.training import layout, precision, trials
from tests.saved import final
from tests.training.automatic import MIM, SCRATCH, SHORT, forget, goes_on_exactly, losses

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture
def trial(monkeypatch):
    """Sets what the trial finds, on a processor with bfloat16 where the tiny network counts as large."""
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    monkeypatch.setattr(trials, "FEWEST_PARAMETERS", 0)
    monkeypatch.setattr(layout, "layout_gain", lambda *_: 1.0)
    return lambda gain: monkeypatch.setattr(precision, "bf16_gain", lambda *_: gain)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_the_loss_follows_that_of_float32(runs, same_batches, trainer):
    """50 steps from one seed, in epochs of 5; the mean of three epochs differs by less than 2 percent."""
    settings = SHORT[trainer].replace("iterations_per_epoch=2", "iterations_per_epoch=5", 1)
    ways = {
        "fp32": "precision=fp32 fused_norm=no memory_format=contiguous",
        "bf16": "precision=bf16",
        "all": "precision=bf16 fused_norm=yes memory_format=channels_last",
    }
    curves = {}
    for name, how in ways.items():
        run = runs.run(trainer, f"{settings} num_epochs=10 {how}")
        assert final(run)["ssp"]["precision"] == how[10:14]
        curves[name] = losses(run).unfold(0, 3, 1).mean(1)
        shutil.rmtree(run.output_folder)
    for name in ("bf16", "all"):
        assert not torch.equal(curves["fp32"], curves[name])
        assert ((curves[name] - curves["fp32"]) / curves["fp32"]).abs().max() < 0.02, name
    assert curves["fp32"][-1] < curves["fp32"][0]


def test_a_processor_without_bfloat16_falls_back(runs, log, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    run = runs.run(MIM, f"{SHORT[MIM]} num_epochs=1")
    said = "precision=auto computes in fp32: this processor has no instructions for bfloat16."
    assert log(run).count(said) == 1
    assert final(run)["ssp"]["precision"] == "fp32"


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_norms_are_computed_as_asked(runs, log, same_batches, trainer):
    """Each way gives the same losses up to rounding, and a checkpoint of the same names."""
    curves, names = {}, {}
    for how in ("no", "auto", "yes"):
        run = runs.run(trainer, f"{SHORT[trainer]} num_epochs=2 precision=fp32 fused_norm={how}")
        said = log(run)
        assert ("computed as group norm" in said) == (how != "no")
        assert ("of them together with LeakyReLU" in said) == (how == "yes")
        curves[how], names[how] = losses(run), list(final(run)["network_weights"])
        shutil.rmtree(run.output_folder)
    assert names["no"] == names["auto"] == names["yes"]
    for how in ("auto", "yes"):
        torch.testing.assert_close(curves[how], curves["no"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_the_gain_decides_and_the_log_says_so(runs, trial, log, trainer):
    for gain, name in ((1.8, "bf16"), (1.1, "fp32")):
        trial(gain)
        run = runs.run(trainer, f"{SHORT[trainer]} num_epochs=1")
        assert f"precision=auto computes in {name}: a step of the planned network" in log(run)
        assert final(run)["ssp"]["precision"] == name
        assert (
            json.loads((Path(run.output_folder) / "settings.json").read_text())["precision"] == name
        )
        shutil.rmtree(run.output_folder)


def test_a_method_for_which_bfloat16_is_too_coarse(runs, monkeypatch, log):
    monkeypatch.setattr(precision, "choose_on_cpu", lambda *_: pytest.fail("no trial is needed"))
    run = runs.run("nnUNetTrainerSimCLRPretrain", f"{SHORT[MIM]} num_epochs=1")
    assert "precision=auto computes in fp32: bfloat16 is too coarse for this method." in log(run)


def test_nnunets_own_step_in_float32(runs, monkeypatch):
    run = runs.run(SCRATCH, f"{SHORT[SCRATCH]} num_epochs=1")
    monkeypatch.setattr("nnunet_ssp.training.finetuning.InPrecision", None)
    run.train_step(next(run.dataloader_train))
    run.use_precision(torch.bfloat16)
    with pytest.raises(TypeError):
        run.train_step(next(run.dataloader_train))


def test_a_failed_step_leaves_the_network(runs):
    run = runs.make(SCRATCH, f"{SHORT[SCRATCH]} precision=bf16")
    run.initialize()
    network = run.network
    with pytest.raises(RuntimeError):
        run.train_step({"data": torch.zeros(1), "target": torch.zeros(1)})
    assert run.network is network


# -- interruptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
@pytest.mark.parametrize(("first", "later", "name"), [(1.8, 0.5, "bf16"), (0.5, 1.8, "fp32")])
def test_a_run_goes_on_as_it_began(
    runs, trial, same_batches, monkeypatch, log, trainer, first, later, name
):
    monkeypatch.setattr("nnunet_ssp.training.base.SECONDS_BETWEEN_SAVES", -1)
    settings = f"{SHORT[trainer]} num_epochs=2"
    rest, whole = goes_on_exactly(runs, trainer, settings, trial, first, later)
    assert f"precision=auto computes in {name}: the run began in {name}." in log(rest)
    assert final(rest)["ssp"]["precision"] == whole["ssp"]["precision"] == name


def test_a_checkpoint_without_its_precision_was_float32(runs, trial, monkeypatch):
    monkeypatch.setattr("nnunet_ssp.training.base.SECONDS_BETWEEN_SAVES", -1)
    settings = f"{SHORT[SCRATCH]} num_epochs=2"
    forget(runs.interrupt(SCRATCH, settings), "precision")
    trial(1.8)
    assert final(runs.run(SCRATCH, settings, resume=True))["ssp"]["precision"] == "fp32"


def test_a_precision_that_is_named_later(runs, trial):
    settings = f"{SHORT[SCRATCH]} num_epochs=2"
    trial(1.8)
    runs.interrupt(SCRATCH, settings)
    with pytest.raises(ValueError, match=r"--c must go on .* precision: auto -> fp32"):
        runs.make(SCRATCH, f"{settings} precision=fp32", resume=True)
    rest = runs.run(SCRATCH, f"{settings} precision=bf16", resume=True)
    assert final(rest)["ssp"]["precision"] == "bf16"
