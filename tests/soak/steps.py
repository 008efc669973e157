"""Runs of 2,000 training steps that sample the memory of the process and its children."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from tests.soak import jobs
from tests.soak.base import with_settings
from tests.soak.jobs import JOBS, Site, program
from tests.soak.journal import LOST, SURVIVED, Result, Trial

LENGTHS = {
    "pretraining": "num_epochs=20 iterations_per_epoch=100 batch_size=4",
    "fine-tuning": "num_epochs=20 iterations_per_epoch=100 val_iterations_per_epoch=5 "
    "final_validation=no",
}
GROWTH_MB = 50  # of the last three quarters
LIMIT = 900  # s


def trials(base: Path, work: Path) -> Iterator[Trial]:
    for name in LENGTHS:
        yield Trial(f"2,000 steps of {name}", 0, partial(train, name, base, work))


def train(name: str, base: Path, work: Path) -> Result:
    """Train, and compare the memory after a quarter of the time with that at the end."""
    job = with_settings(JOBS[name], LENGTHS[name])
    root = work / "site"
    shutil.rmtree(root, ignore_errors=True)
    site = Site(root).take(base, job.needs)
    log = work / "steps.log"
    process = jobs.start(program(job.command(site)), job.environment(site), log)
    samples: list[float] = []
    until = time.monotonic() + LIMIT
    try:
        while process.poll() is None and time.monotonic() < until:
            if "Epoch 2" in log.read_text(errors="replace"):
                samples.append(resident_mb(process))
            time.sleep(0.5)
        if process.poll() is None:
            return Result(LOST, f"it took longer than {LIMIT} s", log.read_text()[-500:])
    finally:
        jobs.end(process)
    if process.returncode != 0 or len(samples) < 8:
        return Result(LOST, f"it ended with {process.returncode}", log.read_text()[-1500:])
    quarter = len(samples) // 4
    early = sorted(samples[quarter : 2 * quarter])[quarter // 2]
    late = sorted(samples[-quarter - 1 : -1])[quarter // 2]  # not the last, when it ends
    said = f"{early:.0f} MB after a quarter, {late:.0f} MB at the end"
    if late - early > GROWTH_MB:
        return Result(LOST, said, f"{samples[::10]}")
    return Result(SURVIVED, "", said)


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    """Return the resident memory of a process and all its children, in MB."""
    total = 0
    try:
        parent = psutil.Process(process.pid)
        for one in [parent, *parent.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.Error:
        pass
    return total / 1e6
