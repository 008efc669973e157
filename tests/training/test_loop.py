"""Signals to a training, a full disk, a folder that vanishes: what is saved, and how the run goes on."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssp.files import saving
from tests.training.conftest import DATASET

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

MIM, DINO = "nnUNetTrainerMIMPretrain", "nnUNetTrainerDINOPretrain"
SCRATCH, FINETUNE = "nnUNetTrainerScratch", "nnUNetTrainerFinetune"
THREE = "num_epochs=3 iterations_per_epoch=2"
PRETRAIN = f"{THREE} batch_size=4"
TUNE = f"{THREE} val_iterations_per_epoch=1 final_validation=no"
SMALL_DINO = " head_width=16 head_bottleneck=8 out_dim=16 local_crops=1 freeze_prototypes=1"


def load(trainer: Any, name: str) -> dict[str, Any]:
    file = Path(trainer.output_folder) / f"checkpoint_{name}.pth"
    return torch.load(file, map_location="cpu", weights_only=True)


def signal_at(trainer: Any, number: int, call: int, method: str = "train_step") -> None:
    """Send this process a signal during a call of a method, counted from 0 over all epochs."""
    own, calls = getattr(trainer, method), iter(range(1000))

    def signalled(*arguments: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return own(*arguments)

    setattr(trainer, method, signalled)


def assert_same(one: Any, other: Any, path: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}.{number}")
    else:
        assert one == other or one != one, path


def same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    """To the last bit, but for the clock and what is drawn for the file alone."""
    skipped = ("epoch_start_timestamps", "epoch_end_timestamps", "images_per_second")
    for checkpoint in (one, other):
        for name in skipped:
            checkpoint["logging"].pop(name, None)
        weights = checkpoint["network_weights"]
        drawn = [k for k in weights if ".seg_layers." in k and weights[k].dtype == torch.float16]
        for key in drawn:
            del weights[key]
    assert one.keys() == other.keys()
    for key in one:
        assert_same(one[key], other[key], key)


@pytest.mark.parametrize(
    ("name", "method", "call", "epoch", "steps"),
    [
        (MIM, "train_step", 0, 0, 1),
        (MIM, "train_step", 3, 1, 2),  # the epoch's last: saved before its validation
        (MIM, "validation_step", 5, 1, 2),
        (MIM, "on_epoch_end", 0, 1, 0),
        (DINO, "train_step", 2, 1, 1),
    ],
)
def test_a_pretraining_goes_on_from_any_step(runs, log, name, method, call, epoch, steps):
    settings = PRETRAIN + (SMALL_DINO if name == DINO else " skip_dropout=0.3")
    whole = runs.run(name, settings)
    expected = load(whole, "final")
    shutil.rmtree(whole.output_folder)

    before = signal.getsignal(signal.SIGTERM)
    stopped = runs.make(name, settings)
    signal_at(stopped, signal.SIGTERM, call, method)
    with pytest.raises(SystemExit) as ended:
        stopped.run_training()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    latest = Path(stopped.output_folder) / "checkpoint_latest.pth"
    (line,) = [line for line in log(stopped).splitlines() if "SIGTERM: " in line]
    said = f"{latest} holds the training after step {steps} of 2 of epoch {epoch}; go on with: "
    assert line.strip().endswith(
        f"{said}nnUNetv2_train 901 2d 0 -p tiny -tr {name} -device cpu --c"
    )
    assert load(stopped, "latest")["current_epoch"] == epoch

    resumed = runs.make(name, settings, resume=True)
    assert (resumed.current_epoch, len(resumed.outputs)) == (epoch, steps)
    resumed.run_training()
    same_run(load(resumed, "final"), expected)


def test_a_warning_saves_and_the_training_goes_on(runs, log):
    trainer = runs.make(MIM, PRETRAIN)
    signal_at(trainer, signal.SIGUSR1, 4)
    seen = []
    keep = trainer.keep
    trainer.keep = lambda: seen.append(said := keep()) or said
    trainer.run_training()
    assert len(seen) == 1 and "after step 1 of 2 of epoch 2" in seen[0]
    assert "; training goes on." in log(trainer)
    assert load(trainer, "final")["current_epoch"] == 3


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("trainer", [FINETUNE, "nnUNetTrainerFinetuneFrozen"])
def test_a_fine_tuning_keeps_its_last_epoch_and_goes_on_bit_for_bit(runs, pretrained, log, trainer):
    settings = TUNE + (" frozen_epochs=1" if "Frozen" in trainer else "")
    whole = runs.run(trainer, settings, weights=pretrained)
    expected = load(whole, "final")
    shutil.rmtree(whole.output_folder)

    stopped = runs.make(trainer, settings, weights=pretrained)
    signal_at(stopped, signal.SIGINT, 5)  # in the last epoch; on disk is the first
    with pytest.raises(SystemExit) as ended:
        stopped.run_training()
    assert ended.value.code == 130
    assert "checkpoint_latest.pth holds the training after epoch 1; go on with:" in log(stopped)
    latest = load(stopped, "latest")
    assert latest["current_epoch"] == 2
    assert {len(curve) for curve in latest["logging"].values()} == {2}
    resumed = runs.make(trainer, settings, resume=True)
    resumed.run_training()
    same_run(load(resumed, "final"), expected)


def test_a_fine_tuning_without_a_finished_epoch_has_nothing_to_save(runs, log):
    trainer = runs.make(SCRATCH, TUNE)
    signal_at(trainer, signal.SIGTERM, 1)
    with pytest.raises(SystemExit, match="143"):
        trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth"))
    assert "no epoch was finished, so nothing is saved; start again with the same" in log(trainer)


@pytest.mark.slow
@pytest.mark.heavy
def test_a_run_that_began_before_goes_on_with_its_random_numbers(runs):
    """Its checkpoint has no number of the streams: seeded once when a process starts, not in each epoch."""
    runs.interrupt(SCRATCH, TUNE)
    seeded = []
    for old in (False, True):
        trainer = runs.make(SCRATCH, TUNE)
        file = Path(trainer.output_folder) / "checkpoint_latest.pth"
        content = torch.load(file, weights_only=True)
        if old:
            del content["ssp_streams"], content["ssp_skipped"]
            torch.save(content, file)
        trainer = runs.make(SCRATCH, TUNE, resume=True)
        own = trainer._seed_epoch
        epochs: list[int] = []
        trainer._seed_epoch = lambda t=trainer, o=own, e=epochs: e.append(t.current_epoch) or o()
        trainer.run_training()
        seeded.append(epochs)
        assert load(trainer, "final")["ssp_streams"] == (1 if old else 2)
        torch.save(content, file)
        (Path(trainer.output_folder) / "checkpoint_final.pth").unlink()
    assert seeded == [[1, 1, 2], [1]]


# -- disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_a_full_disk_leaves_the_last_checkpoint(runs, monkeypatch, trainer):
    made = runs.make(trainer, PRETRAIN if trainer == MIM else TUNE)
    write = saving._Written.write

    def full(stream: Any, data: Any) -> int:
        if made.current_epoch == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(stream, data)

    monkeypatch.setattr(saving._Written, "write", full)
    rule = r"checkpoint_\w+\.pth: no space left; last good checkpoint .*checkpoint_\w+\.pth; continue with --c: nnUNet"
    with pytest.raises(SystemExit, match=rule) as ended:
        made.run_training()
    assert isinstance(ended.value, RuntimeError)
    names = sorted(file.name for file in Path(made.output_folder).glob("*.pth"))
    assert names == ["checkpoint_best.pth", "checkpoint_latest.pth"]
    assert all(load(made, name)["network_weights"] for name in ("best", "latest"))


@pytest.mark.parametrize("trainer", [MIM, SCRATCH])
def test_a_results_folder_that_vanishes_stops_the_training(runs, trainer):
    made = runs.make(trainer, PRETRAIN if trainer == MIM else TUNE)
    end = made.on_epoch_end

    def vanish() -> None:
        end()
        shutil.rmtree(made.output_folder)

    made.on_epoch_end = vanish
    with pytest.raises(
        SystemExit, match=r"fold_0 no longer exists, so this training cannot be saved"
    ):
        made.run_training()
    assert not Path(made.output_folder).exists()


# -- runs that are refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainer", "settings", "options"),
    [
        (MIM, "num_epochs=1_0", {}),
        (MIM, "subject_pattern=( batch_size=4", {}),
        (MIM, PRETRAIN, {"configuration": "3d_fullres"}),
        (MIM, "batch_size=81", {}),
        (MIM, PRETRAIN, {"fold": 9}),
        (SCRATCH, TUNE, {"fold": 9}),
        (FINETUNE, TUNE, {}),
    ],
)
def test_a_refused_run_leaves_no_folder(runs, tmp_path, trainer, settings, options):
    with pytest.raises(ValueError, match=r"must|got no weights"):
        runs.run(trainer, settings, **options)
    assert list((tmp_path / "results").iterdir()) == []


def test_a_refused_run_leaves_the_results_of_others(runs, tmp_path):
    folder = tmp_path / "results" / "Dataset901_Phantom" / f"{MIM}__tiny__2d" / "fold_9"
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"fold \(=9\) must be"):
        runs.run(MIM, PRETRAIN, fold=9)
    assert (folder / "notes.txt").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_first_step_of_a_run_that_goes_on(runs, number):
    """The file keeps what the steps before have left, the method's sums over the epoch too."""
    settings = PRETRAIN + SMALL_DINO
    expected = load(runs.run(DINO, settings), "final")
    shutil.rmtree(Path(os.environ["nnUNet_results"]) / DATASET)
    stopped = runs.make(DINO, settings)
    signal_at(stopped, signal.SIGTERM, 0, "train_step")
    with pytest.raises(SystemExit):
        stopped.run_training()
    before = load(stopped, "latest")["ssp_state"]["epoch"]

    resumed = runs.make(DINO, settings, resume=True)
    signal_at(resumed, number, 0, "log_settings")
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit):
            resumed.run_training()
        assert_same(load(resumed, "latest")["ssp_state"]["epoch"], before, "epoch")
        resumed = runs.make(DINO, settings, resume=True)
    resumed.run_training()
    same_run(load(resumed, "final"), expected)


def test_a_signal_after_a_skipped_step_saves(runs):
    settings = PRETRAIN.replace("iterations_per_epoch=2", "iterations_per_epoch=4")
    trainer = runs.make(MIM, settings)
    own, count = trainer.train_step, iter(range(100))

    def step(batch: Any) -> Any:
        number = next(count)
        if number == 1:
            batch.slices = torch.full_like(batch.slices, math.nan)
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(batch)

    trainer.train_step = step
    with pytest.raises(SystemExit) as ended:
        trainer.run_training()
    assert ended.value.code == 143
    assert load(trainer, "latest")["ssp_state"]["epoch"]["skipped"] == [1]
    resumed = runs.make(MIM, settings, resume=True)
    resumed.run_training()
    assert all(map(math.isfinite, load(resumed, "final")["logging"]["train_losses"]))
