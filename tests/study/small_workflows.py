"""Workflows with commands of a second in place of trainings, and their runs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from nnunet_ssp.study.jobs import Job, Kind
from nnunet_ssp.study.workflow import WORKFLOW, write_workflow

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="Snakemake needs Python 3.11"
)


COUNT = "open('count', 'a').write(NAME + ' '); "


def job(kind: Kind, name: str, needs: Sequence[Job] = (), code: str = "", resumed: str = "") -> Job:
    """Make a command that counts itself, and makes its file after `code`."""
    folder = f"pretraining/{name}" if kind == "pretrain" else f"runs/{name}"
    makes = f"{folder}/{kind}.txt"

    def command(code: str) -> tuple[str, ...]:
        count = COUNT.replace("NAME", repr(f"{kind}:{name}"))
        return ("python", "-c", f"import time; {count}{code}open({makes!r}, 'w').close()")

    return Job(
        kind=kind,
        record=f"{folder}/{'train' if kind in ('pretrain', 'finetune') else kind}.json",
        needs=tuple(before.record for before in needs),
        title=name,
        variables={"WHO": name},
        command=command(code),
        makes=makes,
        log=f"{folder}/{kind}.log",
        results=f"{folder}/{'results' if kind in ('pretrain', 'finetune') else kind}",
        key=f"{kind} {name} {code}",
        resumed=command(resumed) if resumed else None,
        latest=f"{folder}/latest.txt" if resumed else None,
    )


def small(pretraining: str = "", training: str = "") -> list[Job]:
    """List the commands of a model from scratch and one from a pretraining, each predicted and evaluated."""
    before = job("pretrain", "MIM/seed0", code=pretraining)
    jobs = [before]
    for name, needs in (("baseline/all/seed0", []), ("MIM/all/seed0", [before])):
        train = job("finetune", name, needs, training)
        predict = job("predict", name, [train])
        jobs += [train, predict, job("evaluate", name, [predict])]
    return jobs


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from nnunet_ssp.study.workflow import run_workflow; "
        "profile = [Path(sys.argv[i + 1]) for i, word in enumerate(sys.argv) if word == '--profile'] or [None]; "
        "sys.exit(not run_workflow(Path(sys.argv[1]), 1, profile[0], sys.argv[2:]))"
    )
    command = [sys.executable, "-c", code, str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(folder: Path, jobs: Sequence[Job], *more: str) -> tuple[int, str]:
    write_workflow(jobs, folder)
    process = start(folder, *more)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def counted(folder: Path) -> list[str]:
    return (folder / "count").read_text().split()


def records(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*.json")} - {WORKFLOW}


def wait_for(file: Path) -> None:
    end = time.monotonic() + 120
    while not file.is_file():
        assert time.monotonic() < end, f"{file} did not come"
        time.sleep(0.05)


def kill_alone(process: subprocess.Popen[str]) -> None:
    """Kill a study with SIGKILL; its commands go on."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
