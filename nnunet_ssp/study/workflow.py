"""A study's commands as a Snakemake workflow: which are done, which must run, and the run of Snakemake."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.lock import locked
from nnunet_ssp.heartbeat import paused
from nnunet_ssp.launch import TRAINERS_VARIABLE
from nnunet_ssp.nnunet import NNUNET_FOLDERS
from nnunet_ssp.signals import ENDS, SAVES, woken_by_signals
from nnunet_ssp.study.job import SIGNALS
from nnunet_ssp.study.record import read_record

if TYPE_CHECKING:
    from nnunet_ssp.study.jobs import Job

SNAKEFILE = Path(__file__).parent / "Snakefile"
WORKFLOW = "workflow.json"
INHERITED = (*NNUNET_FOLDERS, TRAINERS_VARIABLE)


def unfinished(planned: Sequence[Job], output: Path, forget: bool = False) -> list[Job]:
    """List the commands that must run: without a record, with that of another command, or after such a command.

    Args:
        planned: All commands, each after those that it needs.
        output: The study's folder.
        forget: Delete outdated records, and put away the results of outdated trainings, so that they cannot pass for
            new ones.

    Raises:
        RuntimeError: A command whose results are outdated is still running.
    """
    todo: dict[str, Job] = {}
    for job in planned:
        record = output / job.record
        done = read_record(record).get("key") == job.key
        if job.kind == "evaluate":
            done = done and (output / job.makes).is_file()
        outdated = any(before in todo for before in job.needs)
        if done and not outdated:
            continue
        todo[job.record] = job
        # Also remove what an interrupted command left, if a command before it runs again.
        if forget and (record.is_file() or (outdated and record.parent.is_dir())):
            with locked(record.parent):  # not while a command that outlived its study works there
                _put_away(output / job.results)
                # The record goes last: after an interruption the next call repeats this.
                record.unlink(missing_ok=True)
    return list(todo.values())


def _put_away(results: Path) -> None:
    old = results.with_name(f"{results.name}-outdated")
    if results.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        results.rename(old)


def write_workflow(planned: Sequence[Job], output: Path) -> None:
    """Write the file that the Snakefile and its jobs read."""
    needed = {record for job in planned for record in job.needs}
    content = {
        job.record: {**asdict(job), "line": job.line, "last": job.record not in needed}
        for job in planned
    }
    # Not every cluster gives its jobs the environment of the user who submits them.
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    write_json(output / WORKFLOW, {"jobs": content, "environment": environment})


def run_workflow(output: Path, jobs: int, profile: Path | None, more: Sequence[str]) -> bool:
    """Run the workflow in this process, so that a kill ends both.

    Args:
        output: The study's folder, with the workflow.
        jobs: Jobs at a time on this machine.
        profile: Folder of a Snakemake profile, for other machines.
        more: More arguments for Snakemake.

    Returns:
        Whether every job succeeded.
    """
    from snakemake.cli import main

    arguments = ["--snakefile", str(SNAKEFILE), "--directory", str(output)]
    arguments += ["--config", f"workflow={WORKFLOW}", "--keep-going"]
    # The user's own defaults are for other workflows. Our own lock, unlike Snakemake's, goes with this process.
    arguments += ["--workflow-profile", "none", "--nolock"]
    # Commands that outlived a killed study have finished what Snakemake believes incomplete.
    shutil.rmtree(output / ".snakemake" / "incomplete", ignore_errors=True)
    if profile is not None:
        arguments += ["--profile", str(profile)]
    else:
        # Our own lines report progress; Snakemake's are in .snakemake/log.
        arguments += ["--cores", str(jobs), "--jobs", str(jobs), "--resources", f"gpu={jobs}"]
        arguments += ["--quiet", "all"]
        os.environ.pop("SNAKEMAKE_PROFILE", None)
    before = Path.cwd()
    try:
        with passing_on_signals(output / SIGNALS) as received, paused():  # the jobs speak
            main([*arguments, "--rerun-triggers=mtime", *more])
    except SystemExit as end:
        if received:
            name = signal.Signals(received[0]).name
            print(
                f"{name}: the running commands were asked to save and to end; the same command goes on"
            )
            raise SystemExit(128 + received[0]) from None
        return end.code in (0, None)
    finally:
        os.chdir(before)
    return True


@contextmanager
def passing_on_signals(file: Path) -> Iterator[list[int]]:
    """Write the signals that this process receives to a file for its jobs, which have process groups of their own.

    After SIGTERM Snakemake starts no new job, and waits for the running ones.

    Yields:
        The received signals that ask the study to end.
    """
    received: list[int] = []

    def pass_on(number: int) -> None:
        if number in ENDS:
            received.append(number)
        elif number != SAVES:
            return
        with open(file, "a", encoding="ascii") as stream:
            stream.write(f"{number}\n")

    file.unlink(missing_ok=True)
    with ExitStack() as stack:
        stack.callback(file.unlink, missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            if SAVES is not None:
                stack.callback(signal.signal, SAVES, signal.getsignal(SAVES))
                signal.signal(SAVES, lambda *_: None)
            stack.enter_context(woken_by_signals(pass_on))
        yield received
