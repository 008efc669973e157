"""Start of all trials, made once: a phantom, converted, prepared with a narrow network, pretrained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from nnunet_ssp.phantom import write_mnms
from tests.soak import jobs
from tests.soak.jobs import FEATURES, JOBS, MIM, NAME, Ended, Job, Site, program


def must(words: list[str], environment: dict[str, str], log: Path) -> Ended:
    """Run a command that must succeed.

    Raises:
        RuntimeError: The command failed.
    """
    ended = jobs.run(program(words), environment, log)
    if ended.status != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {ended.status}:\n{ended.said}")
    return ended


def make_base(work: Path) -> Path:
    """Make the folders that jobs need, see `jobs.FOLDERS`."""
    base = work / "base"
    if (base / "done").is_file():
        return base
    shutil.rmtree(base, ignore_errors=True)
    site = Site(base)
    base.mkdir(parents=True)
    for name in ("raw", "preprocessed", "results"):
        site.path(name).mkdir()
    counts = {"labelled": 4, "unlabelled": 2, "testing": 1}
    write_mnms(site.path("source"), **counts, seed=1, matrix=48, frames=4, slices=4)
    for name in ("convert", "prepare"):
        must(JOBS[name].command(site), site.environment(), base / "log")
    folder = site.path("preprocessed", NAME)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = FEATURES[: arguments["n_stages"]]
    (folder / "tiny.json").write_text(json.dumps({**plans, "plans_name": "tiny"}))
    job = JOBS["pretraining"]
    must(job.command(site), job.environment(site), base / "log")
    site.path("pretrained").mkdir()
    shutil.move(site.fold(MIM) / "checkpoint_final.pth", site.path("pretrained"))
    shutil.copytree(site.path("raw", NAME, "labelsTs"), site.path("predictions"))
    shutil.rmtree(site.path("results"))
    (base / "done").touch()
    return base


def reference(job: Job, base: Path, work: Path) -> dict[str, object]:
    """Return a job's uninterrupted run: `result`, `seconds`, `changes` of files, `bytes` of its folders.

    The run is kept in a file, so that a resumed soak does not repeat it.
    """
    kept = work / f"reference-{job.name}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    root = work / f"reference-{job.name}"
    shutil.rmtree(root, ignore_errors=True)
    site = Site(root).take(base, job.needs)
    before = size(root)
    count = work / "count"
    words = counted(job.command(site), 0, site, count)
    ended = jobs.run(words, job.environment(site), work / f"reference-{job.name}.log", limit=1200)
    if ended.status != 0:
        raise RuntimeError(f"{job.name} ended with {ended.status}:\n{ended.said}")
    found: dict[str, object] = {
        "result": job.result(site),
        "seconds": ended.seconds,
        "changes": int(count.read_text()),
        "bytes": [before, size(root)],
    }
    kept.write_text(json.dumps(found))
    shutil.rmtree(root)
    return found


def counted(words: list[str], number: int, site: Site, count: Path) -> list[str]:
    """Return the command with its changes of files counted, and killed at one of them."""
    import sys

    killer = [sys.executable, "-m", "tests.soak.killed", str(number), str(site.root), str(count)]
    return [*killer, *words]


def size(folder: Path) -> int:
    """Return the total size of all files in bytes."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())


def with_settings(job: Job, settings: str) -> Job:
    return replace(job, settings=settings)
