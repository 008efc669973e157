"""Signals to a training: SIGTERM and Ctrl-C save and end it, SIGUSR1 only saves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.soak import jobs
from tests.soak.base import reference
from tests.soak.jobs import FINETUNE, JOBS, MIM, Job, Site, differences, program
from tests.soak.journal import LOST, SURVIVED, Result, Trial

SECONDS = 30  # to end
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
TRAINERS = {"pretraining": MIM, "fine-tuning": FINETUNE}


def trials(base: Path, work: Path) -> Iterator[Trial]:
    for name in TRAINERS:
        for number, sent in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)):
            group = f"{sent.name} to {name}"
            yield Trial(group, number, partial(send, JOBS[name], sent, base, work))


def send(job: Job, sent: signal.Signals, base: Path, work: Path) -> Result:
    """Send a signal in the second epoch, continue, and compare with the uninterrupted run."""
    wanted: dict[str, Any] = reference(job, base, work)
    root = work / "site"
    shutil.rmtree(root, ignore_errors=True)
    site = Site(root).take(base, job.needs)
    log = work / "signal.log"
    process = jobs.start(program(job.command(site)), job.environment(site), log)
    try:
        if not _wait_for(log, "Epoch 1", process):
            return Result(LOST, "it never came to its second epoch", log.read_text()[-1500:])
        begun = time.monotonic()
        os.kill(process.pid, sent)
        limit = 300 if sent == signal.SIGUSR1 else SECONDS
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return Result(LOST, f"it did not end within {limit} s", log.read_text()[-1500:])
        seconds = time.monotonic() - begun
    finally:
        jobs.end(process)
    text = log.read_text()
    faults = []
    if status != STATUS.get(sent, 0):
        faults.append(f"exit status {status}, not {STATUS.get(sent, 0)}")
    if "Traceback (most recent call last)" in text:
        faults.append("a traceback")
    if sent in STATUS:
        if not (site.fold(TRAINERS[job.name]) / "checkpoint_latest.pth").is_file():
            faults.append("nothing was saved")
        rest = jobs.run(program(job.command(site)), job.environment(site), work / "rest.log")
        if rest.status != 0:
            faults.append(f"the next run ended with {rest.status}")
            text = rest.said
    if not faults and (wrong := differences(job.result(site), wanted["result"])):
        faults.append(wrong)
    if faults:
        return Result(LOST, "; ".join(faults), text[-1500:])
    return Result(SURVIVED, "", f"ended after {seconds:.0f} s")


def _wait_for(log: Path, text: str, process: subprocess.Popen[bytes], limit: float = 300) -> bool:
    until = time.monotonic() + limit
    while time.monotonic() < until and process.poll() is None:
        if text in log.read_text(errors="replace"):
            return True
        time.sleep(0.05)
    return False
