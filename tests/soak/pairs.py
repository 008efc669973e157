"""Two jobs at once in one folder: either one works and the other names it, or they take turns."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.soak import jobs
from tests.soak.base import reference
from tests.soak.jobs import JOBS, Job, Site, differences, program
from tests.soak.journal import LOST, SURVIVED, Result, Trial

PAIRS = ("convert", "prepare", "folds", "pretraining", "fine-tuning")
TIMES = 3
BUSY = r"works|in use|holds|locked|another|busy"


def trials(base: Path, work: Path, seed: int) -> Iterator[Trial]:
    for name in PAIRS:
        for number in range(TIMES):
            yield Trial(
                f"two at once, {name}", number, partial(both, JOBS[name], number, base, work, seed)
            )


def both(job: Job, number: int, base: Path, work: Path, seed: int) -> Result:
    """Start a job twice; a second training has another seed."""
    wanted: dict[str, Any] = reference(job, base, work)
    rng = random.Random(f"{seed} two {job.name} {number}")
    root = work / "site"
    shutil.rmtree(root, ignore_errors=True)
    site = Site(root).take(base, job.needs)
    second = replace(job, settings=job.settings.replace("seed=1", "seed=2"))
    logs = [work / "one.log", work / "two.log"]
    words = [program(job.command(site)) for _ in range(2)]
    running = [jobs.start(words[0], job.environment(site), logs[0])]
    time.sleep(rng.uniform(0, 0.3) * wanted["seconds"])
    running.append(jobs.start(words[1], second.environment(site), logs[1]))
    try:
        codes = [process.wait(600) for process in running]
    finally:
        for process in running:
            jobs.end(process)
    texts = [log.read_text(errors="replace") for log in logs]
    detail = "\n----\n".join(text[-700:] for text in texts)
    if any("Traceback (most recent call last)" in text for text in texts) and not job.settings:
        return Result(LOST, "a traceback", detail)
    winners = [n for n, code in enumerate(codes) if code == 0]
    losers = [n for n, code in enumerate(codes) if code != 0]
    if not winners:
        return Result(LOST, f"both failed ({codes})", detail)
    if job.settings and len(winners) == 2:
        return Result(LOST, "two trainings in one folder both say they succeeded", detail)
    if losers and not re.search(BUSY, texts[losers[0]]):
        return Result(LOST, "the loser does not say who is there", detail)
    if job.settings and winners == [1]:
        return Result(SURVIVED, "", "the second won; its seed is another")
    if wrong := differences(job.result(site), wanted["result"]):
        return Result(LOST, wrong, detail)
    return Result(SURVIVED, "", f"exit statuses {codes}")
