"""Runs that compute in another memory layout: what they say, what they save, what they go on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from nnunet_ssp.training import layout, trials
from tests.saved import final
from tests.training.automatic import MIM, SCRATCH, forget, goes_on_exactly, losses
from tests.training.automatic import SHORT as IN_AUTO

SHORT = {trainer: f"{settings} precision=fp32" for trainer, settings in IN_AUTO.items()}

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture
def trial(monkeypatch):
    """Sets what the trial finds; the tiny network counts as large."""
    monkeypatch.setattr(trials, "FEWEST_PARAMETERS", 0)
    return lambda gain: monkeypatch.setattr(layout, "layout_gain", lambda *_: gain)


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_the_gain_decides_and_the_log_says_so(runs, trial, log, same_batches, trainer):
    """Both layouts give the same losses up to rounding, and checkpoints that nobody can tell apart."""
    curves, saved = {}, {}
    for gain, name in ((1.5, "channels_last"), (0.9, "contiguous")):
        trial(gain)
        run = runs.run(trainer, f"{SHORT[trainer]} num_epochs=2")
        said = f"memory_format=auto computes in {name}: a step takes {gain:.2f} times as long"
        assert log(run).count(said) == 1
        hooks = [m for m in run.network.modules() if m._forward_pre_hooks]
        assert bool(hooks) == (name == "channels_last")
        content = final(run)
        assert content["ssp"]["memory_format"] == name
        settings = json.loads((Path(run.output_folder) / "settings.json").read_text())
        assert settings["memory_format"] == name
        curves[name], saved[name] = losses(run), content["network_weights"]
        shutil.rmtree(run.output_folder)
    torch.testing.assert_close(*curves.values(), rtol=1e-3, atol=0)
    last, first = saved["channels_last"], saved["contiguous"]
    assert list(last) == list(first)
    assert all(last[k].stride() == first[k].stride() for k in first)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SimCLR", "PCL", "BYOL", "DINO", "Dense", "Inpainting"])
def test_every_method_computes_the_same_with_channels_last(runs, same_batches, name):
    """With a small rate, because a step would magnify rounding."""
    curves = []
    for how in ("contiguous", "channels_last"):
        settings = "iterations_per_epoch=2 batch_size=4 precision=fp32 probe=no initial_lr=1e-4"
        run = runs.run(
            f"nnUNetTrainer{name}Pretrain", f"{settings} num_epochs=1 memory_format={how}"
        )
        curves.append(losses(run))
        shutil.rmtree(run.output_folder)
    torch.testing.assert_close(*curves, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("first", "later"), [(1.8, 0.5), (0.5, 1.8)])
def test_a_run_goes_on_as_it_began(runs, trial, same_batches, monkeypatch, log, first, later):
    monkeypatch.setattr("nnunet_ssp.training.base.SECONDS_BETWEEN_SAVES", -1)
    name = "channels_last" if first > 1 else "contiguous"
    rest, whole = goes_on_exactly(runs, MIM, f"{SHORT[MIM]} num_epochs=2", trial, first, later)
    assert f"memory_format=auto computes in {name}: the run began in {name}." in log(rest)
    assert final(rest)["ssp"]["memory_format"] == whole["ssp"]["memory_format"] == name


def test_a_layout_that_is_named_later(runs, trial):
    settings = f"{SHORT[SCRATCH]} num_epochs=2"
    trial(1.8)
    runs.interrupt(SCRATCH, settings)
    with pytest.raises(ValueError, match=r"--c must go on .* memory_format: auto -> contiguous"):
        runs.make(SCRATCH, f"{settings} memory_format=contiguous", resume=True)
    rest = runs.run(SCRATCH, f"{settings} memory_format=channels_last", resume=True)
    assert final(rest)["ssp"]["memory_format"] == "channels_last"


def test_a_checkpoint_without_its_layout_was_contiguous(runs, trial, monkeypatch):
    monkeypatch.setattr("nnunet_ssp.training.base.SECONDS_BETWEEN_SAVES", -1)
    settings = f"{SHORT[SCRATCH]} num_epochs=2"
    forget(runs.interrupt(SCRATCH, settings), "memory_format")
    trial(1.8)
    rest = runs.run(SCRATCH, settings, resume=True)
    assert final(rest)["ssp"]["memory_format"] == "contiguous"


def test_a_compiler_chooses_by_itself(runs, trial, log, monkeypatch):
    trial(1.8)
    run = runs.make(MIM, SHORT[MIM])
    monkeypatch.setattr(run, "_do_i_compile", lambda: True)
    run.initialize = lambda: None
    run._settle_layout(torch.nn.Conv2d(1, 1, 1))
    assert "computes in contiguous: torch.compile chooses the layout inside." in log(run)


def test_a_network_without_2d_convolutions_is_told(runs, log, monkeypatch):
    run = runs.make(MIM, f"{SHORT[MIM]} memory_format=channels_last")
    run.network = torch.nn.Conv3d(1, 1, 1)
    run.settle_computing(run.network)
    assert "memory_format=channels_last has no effect: this network has no 2D" in log(run)
