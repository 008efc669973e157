"""The workflow with commands of a second in place of trainings; `test_command.py` has the real ones."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from nnunet_ssp.study.command import PROFILES
from nnunet_ssp.study.job import SIGNALS, PassedOn
from nnunet_ssp.study.runs import Job, Kind
from nnunet_ssp.study.workflow import WORKFLOW, unfinished, write_workflow
from tests.holders import held

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="Snakemake needs Python 3.11"
)

COUNT = "open('count', 'a').write(NAME + ' '); "


def job(kind: Kind, name: str, needs: Sequence[Job] = (), code: str = "", resumed: str = "") -> Job:
    """A command that counts itself, and makes its file after `code`."""
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
    """A model from scratch, and one from a pretraining, each predicted and evaluated."""
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


def test_every_command_once_and_in_order(tmp_path):
    jobs = small()
    status, said = run(tmp_path, jobs)
    assert status == 0, said
    assert records(tmp_path) == {job.record for job in jobs}
    ran = counted(tmp_path)
    assert sorted(ran) == sorted(f"{j.kind}:{j.title}" for j in jobs)
    for after in jobs:
        for before in jobs:
            if before.record in after.needs:
                assert ran.index(f"{before.kind}:{before.title}") < ran.index(
                    f"{after.kind}:{after.title}"
                )
    assert "[7/7]" in said
    assert "trained in" in said
    record = json.loads((tmp_path / jobs[1].record).read_text())
    assert record["command"].startswith("WHO=baseline/all/seed0 python -c")
    assert record["key"] == jobs[1].key
    # Again: there is nothing to do.
    assert unfinished(jobs, tmp_path, forget=True) == []
    status, _ = run(tmp_path, jobs)
    assert (status, counted(tmp_path)) == (0, ran)


def test_only_what_changed_runs_again(tmp_path):
    jobs = small()
    run(tmp_path, jobs)
    before = counted(tmp_path)
    jobs[3] = job("evaluate", "baseline/all/seed0", [jobs[2]], code="time.sleep(0); ")
    assert unfinished(jobs, tmp_path, forget=True) == [jobs[3]]
    run(tmp_path, jobs)
    assert counted(tmp_path) == [*before, "evaluate:baseline/all/seed0"]
    # A prediction that changed takes its evaluation with it.
    jobs[2] = job("predict", "baseline/all/seed0", [jobs[1]], code="time.sleep(0); ")
    run(tmp_path, unfinished(jobs, tmp_path, forget=True) and jobs)
    assert counted(tmp_path)[-2:] == ["predict:baseline/all/seed0", "evaluate:baseline/all/seed0"]
    assert len(counted(tmp_path)) == 7 + 1 + 2


def test_a_failure_does_not_stop_the_others(tmp_path):
    jobs = small(pretraining="raise SystemExit('no weights today'); ")
    status, said = run(tmp_path, jobs)
    assert status == 1
    assert "FAILED: MIM/seed0: pretrain" in said
    assert "no weights today" in said
    assert "Log: pretraining/MIM/seed0/pretrain.log" in said
    assert {job.title for job in jobs if (tmp_path / job.record).is_file()} == {
        "baseline/all/seed0"
    }
    assert len(unfinished(jobs, tmp_path, forget=True)) == 4
    # Mended, the same call makes the rest.
    jobs = small()
    status, _ = run(tmp_path, unfinished(jobs, tmp_path, forget=True) and jobs)
    assert status == 0
    assert counted(tmp_path).count("finetune:baseline/all/seed0") == 1


def test_a_command_that_makes_nothing_has_failed(tmp_path):
    made = job("pretrain", "MIM/seed0", code="raise SystemExit; ")
    status, said = run(tmp_path, [made])
    assert status == 1
    assert "pretraining/MIM/seed0/pretrain.txt is missing" in said


def test_what_an_orphan_has_finished_is_not_done_again(tmp_path):
    """Snakemake takes for incomplete what ran when it was killed; the record says that it is done."""
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


def test_how_old_files_are_says_nothing(tmp_path):
    """A copied study has records in any order of time, and nothing of Snakemake's."""
    jobs = small()
    run(tmp_path, jobs)
    before = counted(tmp_path)
    for age, one in enumerate(jobs):
        os.utime(tmp_path / one.record, (1e9 - age, 1e9 - age))
    shutil.rmtree(tmp_path / ".snakemake")
    (tmp_path / jobs[-1].record).unlink()
    status, said = run(tmp_path, unfinished(jobs, tmp_path, forget=True) and jobs)
    assert status == 0, said
    assert counted(tmp_path) == [*before, "evaluate:MIM/all/seed0"]


def test_old_weights_are_never_taken_for_new(tmp_path):
    """When a pretraining is done again, what was trained from it is put away, not continued."""
    jobs = small()
    run(tmp_path, jobs)
    weights = tmp_path / jobs[4].results / "checkpoint_final.pth"
    weights.parent.mkdir()
    weights.touch()
    (tmp_path / jobs[0].record).unlink()
    assert jobs[4].title == "MIM/all/seed0"
    assert unfinished(jobs, tmp_path) == [jobs[0], *jobs[4:]]
    assert weights.is_file()
    unfinished(jobs, tmp_path, forget=True)
    assert not weights.is_file()
    assert weights.parent.with_name("results-outdated").is_dir()
    assert not (tmp_path / jobs[4].record).is_file()
    assert (tmp_path / jobs[1].record).is_file()


def test_an_interrupted_training_does_not_go_on_from_old_weights(tmp_path):
    """It has no record, but its pretraining is done again."""
    jobs = small()
    run(tmp_path, jobs[:4])
    weights = tmp_path / jobs[4].results / "checkpoint_latest.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    unfinished(jobs, tmp_path, forget=True)
    assert weights.is_file()
    (tmp_path / jobs[0].record).unlink()
    unfinished(jobs, tmp_path, forget=True)
    assert not weights.is_file()


def test_what_cannot_be_put_away_keeps_its_record(tmp_path, monkeypatch):
    """Else the next call would take the old results for an interrupted command's."""
    (made,) = jobs = [job("finetune", "MIM/all/seed0")]
    run(tmp_path, jobs)
    (tmp_path / made.results).mkdir()
    changed = [job("finetune", "MIM/all/seed0", code="time.sleep(0); ")]

    def rename(self, target):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(Path, "rename", rename)
        unfinished(changed, tmp_path, forget=True)
    assert (tmp_path / made.record).is_file()
    assert unfinished(changed, tmp_path, forget=True) == changed
    assert not (tmp_path / made.record).is_file()
    assert not (tmp_path / made.results).is_dir()


def test_results_are_not_put_away_below_a_running_command(tmp_path):
    jobs = small()
    run(tmp_path, jobs)
    (tmp_path / jobs[0].record).unlink()
    with (
        held((tmp_path / jobs[4].record).parent),
        pytest.raises(RuntimeError, match=r"MIM/all/seed0 is in use by `.*process \d+"),
    ):
        unfinished(jobs, tmp_path, forget=True)
    assert (tmp_path / jobs[4].record).is_file()


def test_jobs_have_the_folders_of_who_submits_them(tmp_path, monkeypatch):
    """Not every cluster hands the environment on."""
    monkeypatch.setenv("nnUNet_raw", "/data/raw")
    (made,) = jobs = [
        job("pretrain", "MIM/seed0", code="import os; print(os.environ['nnUNet_raw']); ")
    ]
    write_workflow(jobs, tmp_path)
    monkeypatch.delenv("nnUNet_raw")
    process = start(tmp_path)
    assert process.communicate(timeout=300) and process.returncode == 0
    assert "\n/data/raw\n" in (tmp_path / made.log).read_text()


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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "of another command"}'])
def test_a_damaged_record_is_none(tmp_path, content):
    (made,) = jobs = [job("pretrain", "MIM/seed0")]
    (tmp_path / made.record).parent.mkdir(parents=True)
    (tmp_path / made.record).write_text(content)
    assert unfinished(jobs, tmp_path, forget=True) == jobs
    assert run(tmp_path, jobs)[0] == 0
    assert unfinished(jobs, tmp_path) == []


def kill_alone(process: subprocess.Popen[str]) -> None:
    """`kill -9` of a study; its commands go on."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def wait_for(file: Path) -> None:
    end = time.monotonic() + 120
    while not file.is_file():
        assert time.monotonic() < end, f"{file} did not come"
        time.sleep(0.05)


def test_a_kill_loses_at_most_the_running_command(tmp_path):
    """`kill -9` of everything in the middle: what is done stays, what ran goes on from its last checkpoint."""
    code = "open('runs/baseline/all/seed0/latest.txt', 'w').close(); time.sleep(600); "
    jobs = small()
    jobs[1] = job(
        "finetune", "baseline/all/seed0", code=code, resumed="open('resumed', 'w').close(); "
    )
    write_workflow(jobs, tmp_path)
    command = start(tmp_path)
    wait_for(tmp_path / "runs/baseline/all/seed0/latest.txt")
    before = records(tmp_path)
    _kill_all(command)
    assert records(tmp_path) == before
    status, said = run(tmp_path, unfinished(jobs, tmp_path, forget=True) and jobs)
    assert status == 0, said
    assert (tmp_path / "resumed").is_file()
    ran = counted(tmp_path)
    assert ran.count("finetune:baseline/all/seed0") == 2
    assert all(ran.count(f"{j.kind}:{j.title}") == 1 for j in jobs if j is not jobs[1])


def _kill_all(process: subprocess.Popen[str]) -> None:
    import psutil

    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in reversed(everyone):
        one.kill()
    psutil.wait_procs(everyone, 10)
    process.communicate()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks are those of POSIX")
def test_a_command_that_outlives_its_study_is_waited_for(tmp_path):
    """`kill -9` of the study alone: its command goes on, and the next study takes what it makes."""
    code = "import os; open('begun', 'w').close(); exists = lambda: os.path.exists('go'); "
    code += "[time.sleep(0.1) for _ in iter(exists, True)]; "
    jobs = [job("pretrain", "MIM/seed0", code=code)]
    write_workflow(jobs, tmp_path)
    first = start(tmp_path)
    wait_for(tmp_path / "begun")
    kill_alone(first)
    second = start(tmp_path)
    said = ""
    assert second.stdout is not None
    while "waits for another process" not in said:
        line = second.stdout.readline()
        assert line, said
        said += line
    (tmp_path / "go").touch()
    rest, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said + rest
    assert counted(tmp_path) == ["pretrain:MIM/seed0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals are those of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_of_a_study_reach_its_commands(tmp_path, number):
    """A warning goes to the command; after an end it has saved, no other has begun, and all are gone."""
    code = (
        "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: open('warned', 'w').close()); "
        "signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w').close(), sys.exit(143))); "
        "open('begun', 'w').close(); [time.sleep(0.1) for _ in range(6000)]; "
    )
    jobs = small(pretraining=code, training=code)
    write_workflow(jobs, tmp_path)
    study = start(tmp_path)
    wait_for(tmp_path / "begun")
    study.send_signal(signal.SIGUSR1)
    wait_for(tmp_path / "warned")
    study.send_signal(number)
    said, _ = study.communicate(timeout=120)
    assert study.returncode == 128 + number, said
    assert "the running commands were asked to save and to end; the same command goes on" in said
    assert (tmp_path / "saved").is_file() and len(counted(tmp_path)) == 1
    assert records(tmp_path) == set() and not (tmp_path / SIGNALS).exists()


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="groups of processes are those of POSIX")
def test_a_command_whose_job_is_killed_ends_with_it(tmp_path):
    """Else two would work in one folder."""
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


def test_the_cluster_profile_plans_the_same_jobs(tmp_path):
    """Snakemake's dry run with the shipped profile: threads, memory and minutes of each rule."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    jobs = small()
    # A dry run believes that the jobs are for this machine, and gives them no more threads than it has cores.
    status, said = run(
        tmp_path, jobs, "--dry-run", "--profile", str(PROFILES / "slurm"), "--cores", "64"
    )
    assert status == 0, said
    assert said.count("runtime=2880") == 3  # one pretraining, two fine-tunings
    assert said.count("threads: 12") == 2
    assert said.count("gpu=1") == 5
    assert not records(tmp_path)


def test_with_an_executor_of_a_cluster(tmp_path):
    """Jobs that are submitted, here to a shell, read the workflow again and run as on this machine."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    jobs = small()[1:4]
    status, said = run(
        tmp_path,
        jobs,
        *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "bash"),
        *("--jobs", "1", "--latency-wait", "5", "--seconds-between-status-checks", "1"),
    )
    assert status == 0, said
    assert records(tmp_path) == {job.record for job in jobs}
