from __future__ import annotations

import importlib.util
import os

import pytest

from nnunet_ssp.study.workflow import unfinished, write_workflow
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
