"""Full and read-only disks: a small tmpfs in place of the site. This needs root and the right to mount."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.soak import jobs
from tests.soak.base import reference
from tests.soak.jobs import JOBS, Job, Site, differences, program
from tests.soak.journal import LOST, NOT_TRIED, SURVIVED, Result, Trial
from tests.soak.kills import half_written

JOBS_ON_DISKS = ("convert", "prepare", "pretraining", "fine-tuning", "evaluate", "folds")
ROOMS = (0.15, 0.5, 0.85)  # of what the job needs
BLOCKS = 1 << 18  # bytes that a file system of files needs besides


def trials(base: Path, work: Path) -> Iterator[Trial]:
    for name in JOBS_ON_DISKS:
        for number, room in enumerate(ROOMS if name != "folds" else ROOMS[:1]):
            yield Trial(f"full disk, {name}", number, partial(full, JOBS[name], room, base, work))
        yield Trial(f"read-only disk, {name}", 0, partial(read_only, JOBS[name], base, work))


@contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes at a folder.

    Raises:
        PermissionError: It cannot be mounted here; says why.
    """
    unmount(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        reason = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        reason = str(error)
    if reason:
        raise PermissionError(f"no tmpfs can be mounted here ({reason})")
    try:
        yield
    finally:
        unmount(folder)


def unmount(folder: Path) -> None:
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def remount(folder: Path, options: str) -> None:
    command = ["mount", "-o", f"remount,{options}", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def full(job: Job, room: float, base: Path, work: Path) -> Result:
    """Run out of space, then continue with enough of it."""
    wanted: dict[str, Any] = reference(job, base, work)
    before, after = wanted["bytes"]
    with_files = sum(
        -(-f.stat().st_size // 4096) * 4096 for n in job.needs for f in (base / n).rglob("*")
    )
    size = with_files + BLOCKS // 4 + int(room * (after - before))
    return _on_disk(job, base, work, wanted, size, "", r"no space left")


def read_only(job: Job, base: Path, work: Path) -> Result:
    """Run on a read-only disk, then continue on a writable one."""
    wanted: dict[str, Any] = reference(job, base, work)
    return _on_disk(
        job, base, work, wanted, 1 << 30, "ro", r"read-only|cannot be written|no writing"
    )


def _on_disk(
    job: Job, base: Path, work: Path, wanted: dict[str, Any], size: int, options: str, says: str
) -> Result:
    import re

    folder = work / "disk"
    try:
        with disk(folder, 1 << 30):
            site = Site(folder).take(base, job.needs)
            words = program(job.command(site))
            remount(folder, options or f"size={size}")
            ended = jobs.run(words, job.environment(site), work / "disk.log")
            remount(folder, "rw" if options else f"size={1 << 30}")
            if ended.status == 0 and not options:
                return Result(SURVIVED, "", "there was room enough")
            faults = []
            if ended.status <= 0:
                faults.append(f"ended with {ended.status}")
            if not re.search(says, ended.output, re.IGNORECASE):
                faults.append("does not say why")
            if not ended.in_words:
                faults.append("a traceback")
            rest = jobs.run(program(job.command(site)), job.environment(site), work / "rest.log")
            if rest.status != 0:
                faults.append(f"the next run ended with {rest.status}")
            elif wrong := differences(job.result(site), wanted["result"]):
                faults.append(wrong)
            elif left := half_written(folder):
                faults.append(f"half-written files stay: {left[0]}")
            if faults:
                return Result(LOST, "; ".join(faults), f"{ended.said}\n----\n{rest.said}")
            return Result(SURVIVED, "", ended.said[-300:])
    except PermissionError as error:
        return Result(NOT_TRIED, str(error))
