from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunet_ssp.study.data import Data
from nnunet_ssp.study.runs import Job, Run, only, slug, study_jobs, study_runs
from nnunet_ssp.study.spec import Study, read_study
from tests.study.conftest import BATCH, SLICES_OF_A_CASE
from tests.study.test_spec import SMALLEST, write

pytestmark = pytest.mark.usefixtures("nnunet_folders")


def planned(folder: Path, data: Data | None, **changes: Any) -> tuple[Study, list[Run], list[Run]]:
    study = read_study(write(folder, **{"folds": {"all": "5-fold-0"}, **changes}))
    return study, *study_runs(study, data)


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


def test_the_runs_of_some_models(tmp_path, data):
    _, *runs = planned(tmp_path, data)
    assert only((runs[0], runs[1]), None) == (runs[0], runs[1])
    pretrainings, trainings = only((runs[0], runs[1]), ["baseline"])
    assert pretrainings == [] and {run.name for run in trainings} == {"baseline"}
    pretrainings, trainings = only((runs[0], runs[1]), ["MIM"])
    assert pretrainings == runs[0] and {run.name for run in trainings} == {"MIM"}


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
    job = commands(study, pretrainings, trainings, data)[f"finetune {early.title}"]
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
