"""Signals to nnU-Net's own command with our trainers, as a scheduler or a person sends them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

PRETRAIN = "num_epochs=2 iterations_per_epoch=2000 batch_size=4"
TUNE = "num_epochs=1000 iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"


def start(trainer: str, settings: str, log: Path, *more: str) -> subprocess.Popen[Any]:
    program = Path(sys.executable).with_name("nnUNetv2_train")
    words = [program, "901", "2d", "0", "-p", "tiny", "-tr", trainer, "-device", "cpu", *more]
    environment = {**os.environ, "nnUNet_ssp_settings": settings, "nnUNet_n_proc_DA": "2"}
    with open(log, "wb") as stream:
        return subprocess.Popen(
            list(map(str, words)),
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(log: Path, words: str, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 300
    while words not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)


@pytest.mark.parametrize("trainer", ["nnUNetTrainerMIMPretrain", "nnUNetTrainerScratch"])
@pytest.mark.parametrize(
    ("group", "number"),
    [(False, signal.SIGTERM), (True, signal.SIGINT), (True, signal.SIGTERM)],
)
def test_a_training_ends_with_its_workers_and_goes_on(
    preprocessed, tmp_path, trainer, group, number
):
    """The signal goes to the process or, as with Ctrl-C in a terminal, to its group with nnU-Net's workers."""
    log = tmp_path / "log.txt"
    tunes = trainer == "nnUNetTrainerScratch"
    settings = TUNE if tunes else PRETRAIN
    process = start(trainer, settings, log)
    wait_for(log, "Epoch 1" if tunes else "Current learning rate", process)
    time.sleep(1)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= (3 if tunes else 0)
    started = time.monotonic()
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert time.monotonic() - started < 30
    _, alive = psutil.wait_procs(workers, 5)
    assert not alive
    said = log.read_text()
    assert "Traceback" not in said, said[-3000:]
    assert signal.Signals(number).name in said.strip().splitlines()[-1], said[-3000:]
    (line,) = re.findall(rf"{signal.Signals(number).name}: .*; go on with: (.*)", said)
    kept = "nnUNet_ssp_settings=final_validation=no " if "final_validation=no" in settings else ""
    assert line.startswith(f"{kept}nnUNetv2_train 901 2d 0")
    (file,) = tmp_path.rglob("checkpoint_latest.pth")
    epoch = torch.load(file, weights_only=True)["current_epoch"]
    assert epoch >= (1 if tunes else 0)

    log = tmp_path / "resumed.txt"
    process = start(trainer, settings, log, "--c")
    wait_for(log, f"Epoch {epoch}", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, log.read_text()[-3000:]
