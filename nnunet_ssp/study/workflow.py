"""A study's commands as a Snakemake workflow: what is done, what is to do, and Snakemake itself."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssp.cases import write_json

if TYPE_CHECKING:
    from nnunet_ssp.study.runs import Job

SNAKEFILE = Path(__file__).parent / "Snakefile"
WORKFLOW = "workflow.json"


def forget_outdated(planned: Sequence[Job], output: Path) -> list[Job]:
    """Delete records of commands that were others, and of what came after them.

    Returns:
        The jobs without a record.
    """
    todo: dict[str, Job] = {}
    for job in planned:
        record = output / job.record
        if record.is_file():
            same = json.loads(record.read_text(encoding="utf-8"))["key"] == job.key
            if same and not any(before in todo for before in job.needs):
                continue
            record.unlink()
        todo[job.record] = job
    return list(todo.values())


def write_workflow(planned: Sequence[Job], output: Path) -> None:
    """Write what the Snakefile and its jobs read."""
    needed = {record for job in planned for record in job.needs}
    content = {
        job.record: {
            "kind": job.kind,
            "title": job.title,
            "needs": list(job.needs),
            "variables": dict(job.variables),
            "command": list(job.command),
            "resumed": None if job.resumed is None else list(job.resumed),
            "latest": job.latest,
            "makes": job.makes,
            "log": job.log,
            "line": job.line,
            "key": job.key,
            "last": job.record not in needed,
        }
        for job in planned
    }
    write_json(output / WORKFLOW, {"jobs": content})


def run_workflow(output: Path, jobs: int, profile: Path | None, more: Sequence[str]) -> bool:
    """Run the workflow in this process, so that a kill ends both.

    Returns:
        Whether every job succeeded.
    """
    from snakemake.cli import main

    where = ["--profile", str(profile)]
    if profile is None:
        # Our own lines tell what happens; Snakemake's are in .snakemake/log.
        where = [
            "--cores",
            str(jobs),
            "--jobs",
            str(jobs),
            "--resources",
            f"gpu={jobs}",
            "--quiet",
            "all",
        ]
    before = Path.cwd()
    try:
        main(
            [
                *("--snakefile", str(SNAKEFILE), "--directory", str(output)),
                *("--config", f"workflow={WORKFLOW}"),
                # Folders tell what changed; our own lock is released when this process dies.
                *("--rerun-triggers", "mtime", "--rerun-incomplete", "--keep-going", "--nolock"),
                *where,
                *more,
            ]
        )
    except SystemExit as end:
        return end.code in (0, None)
    finally:
        os.chdir(before)
    return True
