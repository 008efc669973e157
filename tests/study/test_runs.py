from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunet_ssp.launch import with_trainers
from nnunet_ssp.study import runs
from nnunet_ssp.study.data import Data
from nnunet_ssp.study.jobs import study_jobs
from nnunet_ssp.study.runs import Run, only, slug, study_runs
from nnunet_ssp.study.spec import Study, read_study
from tests.study.conftest import BATCH, SLICES_OF_A_CASE
from tests.study.test_spec import SMALLEST, write

pytestmark = pytest.mark.usefixtures("nnunet_folders")


def planned(folder: Path, data: Data | None, **changes: Any) -> tuple[Study, list[Run], list[Run]]:
    study = read_study(write(folder, **{"folds": {"all": "5-fold-0"}, **changes}))
    return study, *study_runs(study, data)


def test_the_runs_of_some_models(tmp_path, data):
    _, *runs = planned(tmp_path, data)
    assert only((runs[0], runs[1]), None) == (runs[0], runs[1])
    pretrainings, trainings = only((runs[0], runs[1]), ["baseline"])
    assert pretrainings == [] and {run.name for run in trainings} == {"baseline"}
    pretrainings, trainings = only((runs[0], runs[1]), ["MIM"])
    assert pretrainings == runs[0] and {run.name for run in trainings} == {"MIM"}


def folders(folder: Path, data: Data | None, **changes: Any) -> set[str]:
    _, pretrainings, trainings = planned(folder, data, **changes)
    return {run.folder for run in (*pretrainings, *trainings)}


def test_what_changed_is_another_run(tmp_path, data):
    before = folders(tmp_path, data)
    assert len(before) == 5
    assert folders(tmp_path, data, title="Another", about="words") == before
    longer = {"finetuning": {"num_epochs": 7}}
    of_pretraining = {folder for folder in before if folder.startswith("pretraining/")}
    assert folders(tmp_path, data, settings=longer) & before == of_pretraining
    # Another pretraining is another fine-tuning, too, but the same baseline.
    longer = {"pretraining": {"num_epochs": 7}}
    assert {f.split("/")[1] for f in folders(tmp_path, data, settings=longer) & before} == {
        "baseline"
    }
    assert len(folders(tmp_path, data, seeds=[0, 2]) & before) == 3
    configuration = {**data.configuration, "patch_size": [32, 32]}
    assert not folders(tmp_path, replace(data, configuration=configuration)) & before
    (fold,) = data.dataset.folds
    # A pretraining takes every frame of everyone, so only the validation side matters to it.
    other = replace(data.dataset, folds=[replace(fold, train=fold.train[1:])])
    assert folders(tmp_path, replace(data, dataset=other)) & before == of_pretraining
    other = replace(data.dataset, folds=[replace(fold, val=fold.val[1:])])
    assert not folders(tmp_path, replace(data, dataset=other)) & before


def test_a_pretraining_on_other_images_is_another(tmp_path, data):
    """More unlabelled subjects change what a pretraining sees, and a teacher labels, but no fold."""
    models = {**SMALLEST["models"], "semi": {"trainer": "ScratchSemi"}}
    _, (before,), trainings = planned(tmp_path, data, models=models)
    stored = {**data.stored, "S90_frame00": data.stored["S11_frame00"]}
    case = replace(data.dataset.cases["S11_frame00"], case="S90_frame00", subject="S90")
    more = replace(
        data, dataset=replace(data.dataset, cases={**data.dataset.cases, case.case: case})
    )
    more.__dict__["stored"] = stored
    _, (after,), others = planned(tmp_path, more, models=models)
    assert before.folder != after.folder
    same = {run.folder for run in trainings} & {run.folder for run in others}
    assert same == {run.folder for run in trainings if run.name == "baseline"}


def test_what_two_labels_call_one_fold_is_pretrained_once(tmp_path, data):
    part = {"MIM": {"trainer": "MIM", "fold": "5-fold-0"}}
    _, (by_name,), _ = planned(tmp_path, data, pretraining=part)
    _, (by_label,), _ = planned(tmp_path, data)
    assert by_name.folder == by_label.folder


def steps(run: Run) -> int:
    return int(dict(word.split("=") for word in run.settings.split())["iterations_per_epoch"])


def test_epochs_are_passes_over_the_labelled_slices(tmp_path, data, monkeypatch):
    found = planned(tmp_path, data, match="epochs")
    n = len(data.fold("5-fold-0")[1].train) * SLICES_OF_A_CASE
    assert {steps(run) for run in found[2]} == {n // BATCH}
    # Where a number is given it is that of the largest fold, and the others have steps in proportion.
    (fold,) = data.dataset.folds
    few = replace(fold, name="few", train=fold.train[: len(fold.train) // 4])
    data = replace(data, dataset=replace(data.dataset, folds=[fold, few]))
    settings = {"finetuning": {"iterations_per_epoch": 40}}
    folds = {"all": "5-fold-0", "few": "few"}
    found = planned(tmp_path, data, match="epochs", settings=settings, folds=folds)
    assert {(run.label, steps(run)) for run in found[2]} == {("all", 40), ("few", 10)}
    # Filled in for a name it is text.
    for text, (most, least) in {"40": (40, 10), "None": (n // BATCH, n // BATCH // 4)}.items():
        settings = {"finetuning": {"iterations_per_epoch": text}}
        found = planned(tmp_path, data, match="epochs", settings=settings, folds=folds)
        assert {(run.label, steps(run)) for run in found[2]} == {("all", most), ("few", least)}
    settings = {"finetuning": {"iterations_per_epoch": 40}}
    with pytest.raises(ValueError, match=r"iterations_per_epoch"):
        wrong = {"finetuning": {"iterations_per_epoch": "many"}}
        planned(tmp_path, data, match="epochs", settings=wrong, folds=folds)
    found = planned(tmp_path, data, match="steps", settings=settings, folds=folds)
    assert {steps(run) for run in found[2]} == {40}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"models": {"m": {"trainer": "Fine"}}},
            r"models\.m\.trainer: nnU-Net finds no trainer nnUNetTrainerFine",
        ),
        (
            {"models": {"m": {"trainer": "Finetune"}}},
            r"trainer \(=Finetune\) must be a trainer from scratch",
        ),
        (
            {"models": {"m": {"trainer": "Scratch", "pretraining": "MIM"}}},
            r"models\.m\.trainer \(=Scratch\) must be a fine-tuning trainer",
        ),
        (
            {"models": {"m": {"trainer": "Scratch", "settings": {"num_epoch": 3}}}},
            r"models\.m\.settings: nnUNetTrainerScratch has no setting num_epoch",
        ),
        (
            {"models": {"m": {"trainer": "Scratch", "settings": {"recipe": "deep"}}}},
            r"models\.m\.settings: nnUNetTrainerScratch has no setting recipe=deep",
        ),
        (
            {"models": {"m": {"trainer": "Scratch", "settings": {"recipe": "fwe"}}}},
            r"models\.m\.settings: .*`recipe` \(=fwe\) must be nnunet or few",
        ),
        (
            {
                "pretraining": {
                    "MIM": {"trainer": "MIM", "fold": "all", "settings": {"mask_ratio": 2}}
                }
            },
            r"pretraining\.MIM\.settings: .*`mask_ratio` \(=2",
        ),
        (
            {"models": {"a b": {"trainer": "Scratch"}, "a-b": {"trainer": "Scratch"}}},
            "give models other names",
        ),
        ({"folds": {"all": "5-fold-9"}}, "must have a fold called 5-fold-9"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, data, changes, message):
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, data, **changes)


def test_a_fold_of_each_seed_is_not_one_to_pretrain_on(tmp_path):
    part = {"MIM": {"trainer": "MIM", "fold": "5"}}
    with pytest.raises(ValueError, match="must be one fold, not one for each seed"):
        planned(tmp_path, None, pretraining=part, folds={"5": "5-fold-0-nr5-seed{seed}"})


def test_without_data_the_runs_are_the_same(tmp_path, data):
    def names(found: tuple[Study, list[Run], list[Run]]) -> list[str]:
        return [run.title for run in (*found[1], *found[2])]

    assert names(planned(tmp_path, None)) == names(planned(tmp_path, data))


def test_our_trainers_need_no_search(tmp_path, monkeypatch):
    """nnU-Net's search imports all of its own trainers; a folder that a user puts before ours is searched first."""
    searched: list[str] = []

    def search(name: str) -> type:
        searched.append(name)
        return int

    monkeypatch.setattr(runs, "recursive_find_trainer_class_by_name", search)
    monkeypatch.setattr(runs, "_find_trainer", runs._find_trainer.__wrapped__)
    name = "nnUNetTrainerScratch"
    monkeypatch.setenv("nnUNet_extTrainer", with_trainers())
    found = runs.find_trainer(name)
    assert (found.__name__, found.needs_weights, searched) == (name, False, [])
    assert runs.find_trainer("nnUNetTrainer") is runs.find_trainer("../nnUNetTrainerScratch") is int
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), with_trainers()]))
    assert runs.find_trainer(name) is int
    assert searched == ["nnUNetTrainer", "../nnUNetTrainerScratch", name]


def test_slug():
    assert slug("MIM, no augmentation") == "MIM-no-augmentation"
    assert slug("A+B") == "A+B"
    assert slug("100 %") == "100"
    assert slug("%") == "-"


ONE_RUN = {
    "MIM": {"trainer": "MIM", "fold": "all", "settings": {"num_epochs": 4, "snapshot_epochs": 2}}
}


def from_snapshot(epochs: int) -> dict[str, Any]:
    models = {"MIM": {"trainer": "Finetune", "pretraining": "MIM"}}
    models[f"MIM {epochs}"] = models["MIM"] | {"snapshot": epochs}
    return {"pretraining": ONE_RUN, "models": models, "baseline": "MIM"}


def test_a_model_from_a_snapshot(tmp_path, data):
    study, pretrainings, trainings = planned(tmp_path, data, **from_snapshot(2))
    (pretraining,) = pretrainings
    end, early = (next(r for r in trainings if r.name == name) for name in ("MIM", "MIM 2"))
    assert end.start(data) == f"{pretraining.fold_folder(data)}/checkpoint_final.pth"
    assert early.start(data) == f"{pretraining.fold_folder(data)}/snapshots/epoch_0002.pth"
    jobs = study_jobs(study, (pretrainings, trainings), data, "cpu")
    (job,) = (job for job in jobs if job.title == early.title and job.kind == "finetune")
    assert job.command[-2:] == ("-pretrained_weights", early.start(data))
    # Another snapshot is another run, and a model without one keeps its folder.
    other = planned(tmp_path, data, **from_snapshot(4))[2]
    assert {r.folder for r in other}.isdisjoint({early.folder})
    assert end.folder in {r.folder for r in other}


@pytest.mark.parametrize("epochs", [1, 6])
def test_a_snapshot_that_its_pretraining_does_not_make(tmp_path, epochs):
    rule = rf"models\.MIM {epochs}\.snapshot \(={epochs}\) must be one that MIM makes \(one every 2 of its 4 epochs\)"
    with pytest.raises(ValueError, match=rule):
        planned(tmp_path, None, **from_snapshot(epochs))


def test_a_snapshot_of_a_pretraining_without_any(tmp_path):
    changes = from_snapshot(2) | {"pretraining": {"MIM": {"trainer": "MIM", "fold": "all"}}}
    with pytest.raises(
        ValueError, match=r"must be one that MIM makes \(none: set snapshot_epochs\)"
    ):
        planned(tmp_path, None, **changes)
    models = {"MIM": {"trainer": "Scratch", "snapshot": 2}}
    with pytest.raises(ValueError, match=r"models\.MIM\.snapshot \(=2\) must be of a pretraining"):
        planned(tmp_path, None, models=models, pretraining={}, baseline="MIM")


def test_a_model_with_plans_of_its_own(tmp_path, data):
    """Both lie in one study; the runs with the study's plans stay as they were."""
    before = folders(tmp_path, data)
    plain = data.dataset.prepared / "nnUNetPlans.json"
    plans = json.loads(plain.read_text())
    plans["configurations"]["2d"]["batch_size"] = BATCH + 3
    (data.dataset.prepared / "other.json").write_text(json.dumps(plans))
    pretraining = {
        **SMALLEST["pretraining"],
        "MIM there": {"trainer": "MIM", "fold": "all", "plans": "other"},
    }
    models = {
        **SMALLEST["models"],
        "there": {"trainer": "Finetune", "pretraining": "MIM there", "plans": "other"},
    }
    parts = {"models": models, "pretraining": pretraining, "other_plans": {"other": ""}}
    study, pretrainings, trainings = planned(tmp_path, data, **parts)
    now = {run.folder for run in (*pretrainings, *trainings)}
    assert before < now
    assert {run.name for run in (*pretrainings, *trainings) if run.folder not in before} == {
        "there",
        "MIM there",
    }
    for job in study_jobs(study, (pretrainings, trainings), data, "cpu"):
        if job.kind in ("pretrain", "finetune", "predict"):
            named = job.command[job.command.index("-p") + 1]
            there = "there" in job.title
            assert named == ("other" if there else "nnUNetPlans")
            if job.kind != "predict":
                assert f"__{named}__2d/" in job.makes
            if job.kind == "finetune" and "MIM" in job.title:
                assert f"__{named}__2d/" in job.command[-1]
    assert data.of("other").batch_size == BATCH + 3
    assert data.of("") is data.of("nnUNetPlans") is data
    with pytest.raises(FileNotFoundError, match=r"gone\.json is missing"):
        data.of("gone")
