"""Kills (SIGKILL to the process group) at a change of a file or after some seconds, then the same command again."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.soak import jobs
from tests.soak.base import counted, reference
from tests.soak.jobs import JOBS, Job, Site, differences, program
from tests.soak.journal import LOST, SURVIVED, Result, Trial

KILLS = 20
KILLED = ("convert", "prepare", "pretraining", "fine-tuning")


def trials(base: Path, work: Path, seed: int) -> Iterator[Trial]:
    for name in KILLED:
        for number in range(KILLS):
            yield Trial(f"kill {name}", number, partial(kill, JOBS[name], number, base, work, seed))
    studies = work / "study"
    for number in range(KILLS):
        yield Trial("kill study", number, partial(kill_study, number, studies, base, work, seed))


def kill(job: Job, number: int, base: Path, work: Path, seed: int) -> Result:
    """Kill a job once, continue it, and compare with the uninterrupted run."""
    wanted: dict[str, Any] = reference(job, base, work)
    rng = random.Random(f"{seed} {job.name} {number}")
    root = work / "site"
    shutil.rmtree(root, ignore_errors=True)
    site = Site(root).take(base, job.needs)
    log = work / "killed.log"
    if number % 2 == 0:
        event = rng.randint(1, wanted["changes"])
        how = f"at change {event} of {wanted['changes']}"
        words = counted(job.command(site), event, site, work / "count")
        ended = jobs.run(words, job.environment(site), log)
    else:
        after = rng.uniform(0.2, 0.95) * wanted["seconds"]
        how = f"after {after:.1f} of {wanted['seconds']:.1f} s"
        ended = jobs.run(program(job.command(site)), job.environment(site), log, after)
    finished = times(job, site)
    # A run that was done before the kill has nothing to go on with.
    done = ended.status == 0
    if not done and (rest := go_on(job, site, work)):
        return Result(LOST, f"the next run ended with {rest.status}", f"killed {how}\n{rest.said}")
    if wrong := differences(job.result(site), wanted["result"]):
        return Result(LOST, wrong, f"killed {how}")
    if left := half_written(root):
        return Result(LOST, f"half-written files stay: {left[0]}", f"killed {how}")
    return Result(SURVIVED, repeated(job, site, finished), f"killed {how}{', too late' * done}")


def go_on(job: Job, site: Site, work: Path) -> jobs.Ended | None:
    """Run the command that continues; return how it ended unless it succeeded."""
    ended = jobs.run(program(job.command(site)), job.environment(site), work / "rest.log")
    if ended.status == 1 and "--overwrite" in ended.output and job.name == "convert":
        return None  # a finished conversion, which the kill came too late for
    return ended if ended.status != 0 or not ended.in_words else None


def kill_study(number: int, root: Path, base: Path, work: Path, seed: int) -> Result:
    """Kill a study that earlier trials may have begun; after the last kill it runs to its end."""
    job = JOBS["study"]
    wanted: dict[str, Any] = reference(job, base, work)
    rng = random.Random(f"{seed} study {number}")
    site = Site(root)
    if not root.is_dir():
        site.take(base, job.needs)
    after = rng.uniform(0.15, 0.6) * wanted["seconds"]
    words, environment = program(job.command(site)), job.environment(site)
    ended = jobs.run(words, environment, work / "killed.log", after)
    if ended.status >= 0 and ended.status != 0:
        said = ended.said
        shutil.rmtree(root)
        return Result(LOST, f"it ended with {ended.status} by itself", said)
    if ended.status != 0 and number < KILLS - 1:
        return Result(SURVIVED, "", f"killed after {after:.0f} s, goes on in the next trial")
    rest = None if ended.status == 0 else go_on(job, site, work)
    wrong = differences(job.result(site), wanted["result"])
    shutil.rmtree(root)
    if rest or wrong:
        return Result(LOST, wrong or "it did not go on", rest.said if rest else "")
    return Result(SURVIVED, "", "ran to its end, equal to the uninterrupted one")


def times(job: Job, site: Site) -> dict[str, int]:
    """Return the finished files and the times at which they were written."""
    if not job.finished:
        return {}
    files = (f for f in site.root.glob(job.finished) if f.is_file())
    return {str(f.relative_to(site.root)): f.stat().st_mtime_ns for f in files}


def repeated(job: Job, site: Site, before: dict[str, int]) -> str:
    """Return in words how much finished work was done twice; empty for none."""
    if job.finished:
        after = times(job, site)
        n = sum(after.get(name) != written for name, written in before.items())
    else:
        planned = int(re.search(r"num_epochs=(\d+)", job.settings)[1])  # type: ignore[index]
        logs = site.path("results").rglob("training_log_*.txt")
        begun = sum(len(re.findall(r": Epoch \d+\s", log.read_text())) for log in logs)
        n = max(0, begun - planned)
    return f"{n} {job.unit}{'s' * (n != 1)} done twice" if n else ""


def half_written(root: Path) -> list[str]:
    """Return the temporary files that a finished job left."""
    return [str(f.relative_to(root)) for f in root.rglob("*.ssp-tmp*")]
