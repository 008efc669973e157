from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunet_ssp.study.data import Data
from nnunet_ssp.study.jobs import Job, study_jobs
from nnunet_ssp.study.runs import Run
from nnunet_ssp.study.spec import Study
from tests.study.test_runs import planned

pytestmark = pytest.mark.usefixtures("nnunet_folders")


def commands(
    study: Study, pretrainings: list[Run], trainings: list[Run], data: Data
) -> dict[str, Job]:
    jobs = study_jobs(study, (pretrainings, trainings), data, "cpu")
    return {f"{job.kind} {job.title}": job for job in jobs}


def test_commands_are_those_of_a_user(tmp_path, data):
    study, pretrainings, trainings = planned(
        tmp_path, data, predict="--disable_tta", evaluation="--lv LV", dataset=114
    )
    jobs = commands(study, pretrainings, trainings, data)
    assert len(jobs) == 1 + 4 * 3
    (pretraining,) = pretrainings
    fold = f"{pretraining.folder}/results/Dataset114_Small/nnUNetTrainerMIMPretrain__nnUNetPlans__2d/fold_0"
    job = jobs["pretrain MIM, pretraining on 5-fold-0, seed 0"]
    assert shlex.join(job.command) == (
        "nnUNetv2_train 114 2d 0 -p nnUNetPlans -tr nnUNetTrainerMIMPretrain -device cpu"
    )
    assert job.makes == f"{fold}/checkpoint_final.pth"
    run = next(run for run in trainings if (run.name, run.seed) == ("MIM", 1))
    train = jobs["finetune MIM, all, seed 1"]
    assert shlex.join(train.command) == (
        "nnUNetv2_train 114 2d 0 -p nnUNetPlans -tr nnUNetTrainerFinetune -device cpu "
        f"-pretrained_weights {fold}/checkpoint_final.pth"
    )
    # nnU-Net takes no weights when it continues.
    assert train.resumed is not None
    assert shlex.join(train.resumed).endswith("-device cpu --c")
    assert train.needs == (f"{pretraining.folder}/train.json",)
    assert dict(train.variables) == {
        "nnUNet_results": f"{run.folder}/results",
        "nnUNet_ssp_settings": "final_validation=no seed=1 precision=fp32",
    }
    predict = jobs["predict MIM, all, seed 1"]
    images = data.dataset.raw / "imagesTs"
    assert shlex.join(predict.command) == (
        "nnUNetv2_predict -d 114 -c 2d -f 0 -p nnUNetPlans -tr nnUNetTrainerFinetune "
        f"-i {images} -o {run.folder}/predictions --disable_tta -device cpu"
    )
    evaluate = jobs["evaluate MIM, all, seed 1"]
    assert evaluate.needs == (predict.record,)
    assert shlex.join(evaluate.command) == (
        f"nnunet-ssp evaluate 114 MIM={run.folder}/predictions -o {run.folder}/evaluation --lv LV"
    )


def test_a_study_that_chooses_predicts_the_validation_subjects(tmp_path, data):
    study, pretrainings, trainings = planned(
        tmp_path, data, predict="--disable_tta", evaluate="choosing"
    )
    jobs = commands(study, pretrainings, trainings, data)
    run = next(run for run in trainings if (run.name, run.seed) == ("MIM", 1))
    images = data.validation_images("5-fold-0")
    assert shlex.join(jobs["predict MIM, all, seed 1"].command) == (
        "nnUNetv2_predict -d 114 -c 2d -f 0 -p nnUNetPlans -tr nnUNetTrainerFinetune "
        f"-i {images} -o {run.folder}/predictions --disable_tta -device cpu"
    )
    # The trainings are those of a study on the test subjects.
    _, *others = planned(tmp_path, data)
    assert [pretrainings, trainings] == others


def test_environment_of_all_commands(tmp_path, data):
    study, pretrainings, trainings = planned(tmp_path, data, environment={"nnUNet_n_proc_DA": 0})
    jobs = study_jobs(study, (pretrainings, trainings), data, "cpu")
    assert {job.variables["nnUNet_n_proc_DA"] for job in jobs} == {"0"}
    assert jobs[0].line.startswith("nnUNet_n_proc_DA=0 nnUNet_results=pretraining/MIM/seed0-")


def test_inpainting_hands_on_its_best_weights(tmp_path, data):
    part = {"CR": {"trainer": "ContextRestoration", "fold": "all"}}
    models = {"CR": {"trainer": "Finetune", "pretraining": "CR"}}
    found = planned(tmp_path, data, pretraining=part, models=models)
    job = commands(*found, data)["finetune CR, all, seed 0"]
    assert job.command[-1].endswith("fold_0/checkpoint_best.pth")


def test_evaluation_on_the_validation_subjects(tmp_path, data):
    found = planned(tmp_path, data, evaluate="validation")
    jobs = commands(*found, data)
    assert not [name for name in jobs if name.startswith("predict")]
    evaluate = jobs["evaluate baseline, all, seed 0"]
    train = jobs["finetune baseline, all, seed 0"]
    assert evaluate.needs == (train.record,)
    assert evaluate.command[3].endswith("__2d/fold_0/validation")
    assert "final_validation=yes" in train.variables["nnUNet_ssp_settings"]
    shared = {"finetuning": {"final_validation": False}}
    found = planned(tmp_path, data, evaluate="validation", settings=shared)
    train = commands(*found, data)["finetune baseline, all, seed 0"]
    assert "final_validation=yes" in train.variables["nnUNet_ssp_settings"]


def keys(folder: Path, data: Data, device: str = "cpu", **changes: Any) -> list[str]:
    study, pretrainings, trainings = planned(folder, data, **changes)
    return [job.key for job in study_jobs(study, (pretrainings, trainings), data, device)]


def test_a_key_is_not_where_and_how_fast_a_command_runs(tmp_path, data):
    before = keys(tmp_path, data)
    assert len(set(before)) == len(before)
    assert keys(tmp_path, data, device="cuda") == before
    assert keys(tmp_path, data, environment={"nnUNet_n_proc_DA": 0}) == before
    elsewhere = replace(data, dataset=replace(data.dataset, raw=tmp_path / "moved"))
    assert keys(tmp_path, elsewhere) == before
    # Other test cases are other predictions, and so are other arguments.
    cases = dict(data.dataset.cases)
    del cases[data.test_cases[0]]
    fewer = replace(data, dataset=replace(data.dataset, cases=cases))
    other = keys(tmp_path, fewer)
    assert sum(a != b for a, b in zip(before, other, strict=True)) == 8
    # What cases.csv says of them is in the evaluation alone.
    cases = dict(data.dataset.cases)
    cases[data.test_cases[0]] = replace(cases[data.test_cases[0]], vendor="GE")
    corrected = replace(data, dataset=replace(data.dataset, cases=cases))
    other = keys(tmp_path, corrected)
    assert sum(a != b for a, b in zip(before, other, strict=True)) == 4
    other = keys(tmp_path, data, evaluation="--spacing-unknown")
    assert sum(a != b for a, b in zip(before, other, strict=True)) == 4
    other = keys(tmp_path, data, predict="--disable_tta")
    assert sum(a != b for a, b in zip(before, other, strict=True)) == 8
