"""Killed ranks: when one of two (gloo, CPU) is killed, the other soon ends with a message.

Run as a module, this file is one rank.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.soak import jobs
from tests.soak.jobs import NAME, Site
from tests.soak.journal import LOST, SURVIVED, Result, Trial

SECONDS = 30  # for the others to end
TIMES = 4
SCRATCH = "nnUNetTrainerScratch"


def trials(base: Path, work: Path) -> Iterator[Trial]:
    for number in range(TIMES):
        yield Trial("a killed rank", number, partial(kill_rank, number, base, work))


def kill_rank(number: int, base: Path, work: Path) -> Result:
    """Kill rank 0 or 1 of a training after its first epoch."""
    victim, root = number % 2, work / "site"
    shutil.rmtree(root, ignore_errors=True)
    site = Site(root).take(base, ("preprocessed",))
    settings = "num_epochs=1000 iterations_per_epoch=4 val_iterations_per_epoch=1"
    environment = site.environment(nnUNet_ssp_settings=settings, GLOO_SOCKET_IFNAME="lo")
    logs = [work / f"rank{rank}.log" for rank in range(2)]
    command = [sys.executable, "-m", "tests.soak.ranks", "--meet", str(root / "meet"), "--rank"]
    running = [jobs.start([*command, str(rank)], environment, logs[rank]) for rank in range(2)]
    try:
        until = time.monotonic() + 300
        while "Epoch 1" not in logs[0].read_text(errors="replace"):
            if time.monotonic() > until or any(process.poll() is not None for process in running):
                return Result(LOST, "the ranks never trained", logs[0].read_text()[-1500:])
            time.sleep(0.1)
        time.sleep(0.3 * number)
        running[victim].send_signal(signal.SIGKILL)
        begun = time.monotonic()
        try:
            status = running[1 - victim].wait(SECONDS)
        except subprocess.TimeoutExpired:
            text = logs[1 - victim].read_text(errors="replace")
            return Result(LOST, f"the other rank did not end within {SECONDS} s", text[-1500:])
        seconds = time.monotonic() - begun
    finally:
        for process in running:
            jobs.end(process)
    text = logs[1 - victim].read_text(errors="replace")
    faults = ["ended with 0"] if status == 0 else []
    faults += ["a traceback"] if "Traceback (most recent call last)" in text else []
    if not (site.fold(SCRATCH) / "checkpoint_latest.pth").is_file():
        faults.append("no checkpoint")
    if faults:
        return Result(LOST, "; ".join(faults), text[-1500:])
    return Result(SURVIVED, "", f"ended after {seconds:.0f} s: {text.strip().splitlines()[-1]}")


def one_rank(rank: int, meet: str) -> None:
    """Train as one of two ranks on the CPU; nnU-Net would use a GPU."""
    import torch
    import torch.distributed as dist
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    sys.argv = ["nnUNetv2_train"]
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    nnunet.DDP = lambda module, device_ids: DistributedDataParallel(module)
    folder = Path(os.environ["nnUNet_preprocessed"]) / NAME
    plans = json.loads((folder / "tiny.json").read_text()) | {"continue_training": False}
    dataset_json = json.loads((folder / "dataset.json").read_text())
    trainer = recursive_find_trainer_class_by_name(SCRATCH)
    made = trainer(plans, "2d", 0, dataset_json, torch.device("cpu"))
    made.device, made.grad_scaler = torch.device("cpu"), None
    made.initialize()
    from nnunet_ssp.console import run_command

    status = run_command(made.run_training)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # gloo's threads abort a process that ends in another way


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--meet", required=True)
    given = parser.parse_args()
    one_rank(given.rank, given.meet)
