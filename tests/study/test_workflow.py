"""The workflow with commands of a second in place of trainings; `test_command.py` has the real ones."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from nnunet_ssp.study.command import PROFILES
from nnunet_ssp.study.job import SIGNALS
from nnunet_ssp.study.workflow import unfinished, write_workflow
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


def test_a_pretraining_that_goes_on_from_another_waits_for_it(tmp_path):
    before = job("pretrain", "generalist/seed0")
    after = job("pretrain", "specialist/seed0", [before])
    jobs = [after, before, job("finetune", "model/all/seed0", [after])]
    status, said = run(tmp_path, jobs)
    assert status == 0, said
    assert counted(tmp_path) == [
        "pretrain:generalist/seed0",
        "pretrain:specialist/seed0",
        "finetune:model/all/seed0",
    ]


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
    """Trainings from a pretraining that runs again are put away, not continued."""
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
    """The training has no record, but its pretraining runs again."""
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
    """Otherwise the next call would mistake the old results for those of an interrupted command."""
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
    """Not every cluster passes the environment on."""
    monkeypatch.setenv("nnUNet_raw", "/data/raw")
    (made,) = jobs = [
        job("pretrain", "MIM/seed0", code="import os; print(os.environ['nnUNet_raw']); ")
    ]
    write_workflow(jobs, tmp_path)
    monkeypatch.delenv("nnUNet_raw")
    process = start(tmp_path)
    assert process.communicate(timeout=300) and process.returncode == 0
    assert "\n/data/raw\n" in (tmp_path / made.log).read_text()


def test_a_kill_loses_at_most_the_running_command(tmp_path):
    """After `kill -9` of everything, finished commands stay, and the running one goes on from its last checkpoint."""
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
    """After `kill -9` of the study alone its command goes on, and the next study takes its results."""
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
    """A warning reaches the command. After an end it has saved, no other has begun, and all processes are gone."""
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


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ({"gpu": 4}, "4 1 8"),
        ({"nodes": 2, "gpu": 8, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}, "8 2 8"),
    ],
)
def test_a_profile_asks_for_gpus_and_machines(tmp_path, asked, numbers):
    """As the comments of the shipped profile say; other jobs stay as they are."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    text = (PROFILES / "slurm" / "config.yaml").read_text()
    for name, value in asked.items():
        assert f"    # {name}: {value}" in text
    content = yaml.safe_load(text)
    content["set-resources"]["pretrain"] |= asked
    profile = tmp_path / "mine"
    profile.mkdir()
    (profile / "config.yaml").write_text(yaml.safe_dump(content))
    more = ("--dry-run", "--printshellcmds", "--profile", str(profile), "--cores", "64")
    status, said = run(tmp_path, small(), *more)
    assert status == 0, said
    assert said.count(f"pretraining/MIM/seed0/train.json {numbers} -- ") == 1
    assert said.count("/train.json 1 1 12 -- ") == 2


@pytest.mark.slow
@pytest.mark.heavy
def test_with_an_executor_of_a_cluster(tmp_path):
    """Submitted jobs, here to a shell, read the workflow again and run as on this machine."""
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
