from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_ssp.study.job import SIGNALS, PassedOn
from nnunet_ssp.study.jobs import Job
from nnunet_ssp.study.workflow import WORKFLOW, unfinished, write_workflow
from tests.holders import held
from tests.study.small_workflows import (
    counted,
    job,
    kill_alone,
    records,
    run,
    small,
    start,
    wait_for,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="Snakemake needs Python 3.11"
)


def test_a_command_that_makes_nothing_has_failed(tmp_path):
    made = job("pretrain", "MIM/seed0", code="raise SystemExit; ")
    status, said = run(tmp_path, [made])
    assert status == 1
    assert "pretraining/MIM/seed0/pretrain.txt is missing" in said


def test_what_an_orphan_has_finished_is_not_done_again(tmp_path):
    """Snakemake believes incomplete what ran when it was killed; the record states that it is done."""
    jobs = [job("pretrain", "MIM/seed0", code="open('begun', 'w').close(); time.sleep(3); ")]
    jobs.append(job("pretrain", "other/seed0"))
    write_workflow(jobs[:1], tmp_path)
    first = start(tmp_path)
    wait_for(tmp_path / "begun")
    kill_alone(first)
    wait_for(tmp_path / jobs[0].record)
    status, said = run(tmp_path, unfinished(jobs, tmp_path, forget=True) and jobs)
    assert status == 0, said
    assert counted(tmp_path) == ["pretrain:MIM/seed0", "pretrain:other/seed0"]


def test_one_record_may_be_asked_for(tmp_path):
    jobs = small()
    status, said = run(tmp_path, jobs, jobs[2].record)
    assert status == 0, said
    assert records(tmp_path) == {jobs[1].record, jobs[2].record}


def test_a_training_that_only_lacks_its_record_is_not_done_again(tmp_path):
    made = job("finetune", "MIM/all/seed0", resumed="open('resumed', 'w').close(); ")
    (tmp_path / made.makes).parent.mkdir(parents=True)
    (tmp_path / made.makes).touch()
    status, said = run(tmp_path, [made])
    assert status == 0, said
    assert (tmp_path / "resumed").is_file()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="groups of processes are those of POSIX")
def test_a_command_whose_job_is_killed_ends_with_it(tmp_path):
    """Otherwise two commands would work in one folder."""
    import psutil

    (made,) = jobs = [
        job("pretrain", "MIM/seed0", code="open('begun', 'w').close(); time.sleep(600); ")
    ]
    write_workflow(jobs, tmp_path)
    study = start(tmp_path)
    wait_for(tmp_path / "begun")
    everyone = psutil.Process(study.pid).children(recursive=True)
    lines = [(one, one.cmdline()) for one in everyone]
    (command,) = (one for one, line in lines if line[2:] and line[2].startswith("import time; "))
    (runner,) = (one for one, line in lines if line[1:3] == ["-m", "nnunet_ssp.study.job"])
    runner.kill()
    psutil.wait_procs([command], 20)
    assert not command.is_running()
    said, _ = study.communicate(timeout=120)
    assert study.returncode == 1, said
    assert not (tmp_path / made.record).is_file()


@pytest.fixture
def one_job(tmp_path, monkeypatch) -> Job:
    """A pretraining that counts itself, in the study's folder."""
    made = job("pretrain", "MIM/seed0")
    write_workflow([made], tmp_path)
    monkeypatch.chdir(tmp_path)
    return made


def run_job(made: Job) -> subprocess.Popen[str]:
    """The process of a job as Snakemake starts it."""
    words = [sys.executable, "-m", "nnunet_ssp.study.job", WORKFLOW, made.record, "--"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_that_came_while_a_job_started_is_heeded(one_job, tmp_path, number):
    """The study wrote it before the job's first line."""
    (tmp_path / SIGNALS).write_text(f"{signal.SIGUSR1}\n{number}\n")
    process = run_job(one_job)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert not (tmp_path / "count").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals are those of POSIX")
def test_an_end_is_heeded_while_a_job_waits(one_job, tmp_path):
    """Also after a warning, of which the waiting job must not die."""
    folder = (tmp_path / one_job.record).parent
    folder.mkdir(parents=True)
    with held(folder):
        process = run_job(one_job)
        assert process.stdout is not None and "waits for another" in process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        assert process.poll() is None
        (tmp_path / SIGNALS).write_text(f"{signal.SIGTERM}\n")
        process.communicate(timeout=60)
        assert process.returncode == 143
    assert not (tmp_path / "count").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals are those of POSIX")
@pytest.mark.parametrize("kind", ["predict", "evaluate"])
def test_only_trainings_are_warned(tmp_path, monkeypatch, kind):
    """A prediction, though it would count a warning, gets none, whoever was sent it."""
    code = "import signal; signal.signal(signal.SIGUSR1, lambda *_: open('warned', 'w').close()); "
    code += "open('begun', 'w').close(); time.sleep(3); "
    made = job(kind, "baseline/all/seed0", code=code)
    write_workflow([made], tmp_path)
    monkeypatch.chdir(tmp_path)
    process = run_job(made)
    wait_for(tmp_path / "begun")
    process.send_signal(signal.SIGUSR1)
    (tmp_path / SIGNALS).write_text(f"{signal.SIGUSR1}\n")
    process.communicate(timeout=60)
    assert process.returncode == 0 and not (tmp_path / "warned").exists()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_a_training_that_still_imports_does_not_die_of_a_warning(tmp_path, monkeypatch):
    code = "open('begun', 'w').close(); time.sleep(3); "
    made = job("pretrain", "MIM/seed0", code=code)
    write_workflow([made], tmp_path)
    monkeypatch.chdir(tmp_path)
    process = run_job(made)
    wait_for(tmp_path / "begun")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 0 and (tmp_path / made.record).is_file()


def test_a_file_of_signals_that_began_anew_is_read_from_its_start(tmp_path, monkeypatch):
    """As when another study has begun, below which a job of the one before goes on."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        (tmp_path / SIGNALS).write_text(f"{signal.SIGUSR1}\n" * 3)
        signals = PassedOn(saves=True)
        assert signals() is None
        (tmp_path / SIGNALS).write_text(f"{signal.SIGUSR1}\n")
        assert (signals(), signals()) == (signal.SIGUSR1, None)
        (tmp_path / SIGNALS).unlink()
        assert signals() is None
        (tmp_path / SIGNALS).write_text(f"{signal.SIGTERM}\n")
        with pytest.raises(SystemExit, match="143"):
            signals()
    finally:
        signal.signal(signal.SIGUSR1, before)
