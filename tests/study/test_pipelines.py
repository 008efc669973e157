"""Pretrainings that go on from others, on other datasets, and files in their place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nnunet_ssp.slices.store import StoredCase, store_folder, write_index
from nnunet_ssp.study.command import STUDIES
from nnunet_ssp.study.examination import only_chosen
from nnunet_ssp.study.jobs import study_jobs
from nnunet_ssp.study.preparing import missing_files, missing_folds
from nnunet_ssp.study.runs import only, study_runs
from nnunet_ssp.study.spec import Study, read_study

PRETRAINING = {
    "file": {"file": "supervised.pth"},
    "generalist": {"trainer": "BYOL", "dataset": 150, "fold": "all"},
    "specialist": {"trainer": "BYOL", "fold": "all labels"},
    "hierarchical": {
        "trainer": "BYOL",
        "fold": "all labels",
        "pretraining": "generalist",
        "settings": {"adapt": True},
    },
}


def study(**pretraining: object) -> Study:
    parts = PRETRAINING | pretraining
    models = {
        f"{name} model": {"trainer": "FinetuneEncoder", "pretraining": name} for name in PRETRAINING
    }
    return Study.model_validate(
        {
            "title": "Pipelines",
            "folds": {"all labels": "5-fold-0"},
            "seeds": [0],
            "pretraining": parts,
            "models": {"scratch": {"trainer": "Scratch"}, **models},
            "tables": [{"title": "T", "rows": "models", "columns": "folds"}],
        }
    )


@pytest.fixture
def natural(data) -> Path:
    """Natural images beside the dataset of `data`, prepared under its plans; returns their folder."""
    folder = data.dataset.prepared.parent / "Dataset150_Images"
    folder.mkdir()
    plans = json.loads((data.dataset.prepared / "nnUNetPlans.json").read_text())
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    entries = {f"image{n}": StoredCase((1, 3, 9, 9), 0, 1) for n in range(5)}
    write_index(store_folder(folder, "nnUNetPlans_2d"), {}, entries)
    return folder


def commands(data) -> dict[str, tuple[str, ...]]:
    chained = study()
    runs = study_runs(chained, data)
    jobs = study_jobs(chained, runs, data, "cpu")
    return {job.title.partition(",")[0]: job.command for job in jobs if "train" in job.command[0]}


def test_the_four_pipelines_are_commands_of_nnunet(data, natural: Path):
    found = commands(data)
    assert found["generalist"][1:4] == ("150", "2d", "all")
    assert found["specialist"][1:4] == ("114", "2d", "0")
    assert "-pretrained_weights" not in found["specialist"]
    (weights,) = found["hierarchical"][-1:]
    assert weights.startswith("pretraining/generalist/seed0-")
    assert (
        "/results/Dataset150_Images/nnUNetTrainerBYOLPretrain__nnUNetPlans__2d/fold_all/" in weights
    )
    assert found["file model"][-2:] == ("-pretrained_weights", "supervised.pth")
    assert "file" not in found
    assert found["hierarchical model"][-1].startswith("pretraining/hierarchical/")


def test_jobs_wait_for_the_training_before(data, natural: Path):
    chained = study()
    jobs = study_jobs(chained, study_runs(chained, data), data, "cpu")
    needs = {job.title.partition(",")[0]: job.needs for job in jobs if "train" in job.command[0]}
    assert needs["generalist"] == needs["file model"] == ()
    assert [need.split("/")[1] for need in needs["hierarchical"]] == ["generalist"]
    assert [need.split("/")[1] for need in needs["hierarchical model"]] == ["hierarchical"]


def test_a_changed_link_changes_every_folder_behind_it(data, natural: Path):
    def folders(chained: Study) -> dict[str, str]:
        return {run.name: run.folder for part in study_runs(chained, data) for run in part}

    before = folders(study())
    generalist = {**PRETRAINING["generalist"], "settings": {"num_epochs": 3}}
    after = folders(study(generalist=generalist))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"generalist", "generalist model", "hierarchical", "hierarchical model"}
    write_index(
        store_folder(natural, "nnUNetPlans_2d"), {}, {"other": StoredCase((1, 3, 9, 9), 0, 1)}
    )
    data._sources.clear()
    assert folders(study())["hierarchical model"] != before["hierarchical model"]


def test_a_replaced_file_of_weights_changes_its_runs(data, natural: Path, tmp_path: Path):
    file = tmp_path / "supervised.pth"

    def folders() -> dict[str, str]:
        runs = study_runs(study(), data, tmp_path)
        return {run.name: run.folder for part in runs for run in part}

    file.write_bytes(b"first weights" * 100_000)
    before, changed = folders(), file.stat()
    assert folders() == before
    file.write_bytes(b"other weights" * 100_000)
    os.utime(file, ns=(changed.st_atime_ns, changed.st_mtime_ns))  # as long, and as old
    after = folders()
    assert [name for name in before if before[name] != after[name]] == ["file model"]


def test_a_missing_file_of_weights_is_named(data, natural: Path, tmp_path: Path):
    runs = study_runs(study(), data, tmp_path)
    (said,) = missing_files(runs[1], tmp_path)
    assert said.startswith(f"{tmp_path / 'supervised.pth'} is missing: the pretraining file is")
    assert missing_files(only(runs, ["specialist model"])[1], tmp_path) == []
    # A shared pretraining as a folder, an encoder of timm, and timm's own cache.
    for name, place in (("shared", "shared/card.json"), ("timm:a.pth", "a.pth"), ("timm:", "")):
        if place:
            (tmp_path / place).parent.mkdir(exist_ok=True)
            (tmp_path / place).write_text("content")
        part = study(file={"file": name})
        runs = study_runs(part, data, tmp_path)
        assert missing_files(runs[1], tmp_path) == []
        (model,) = (run for run in runs[1] if run.name == "file model")
        assert model.start(data) == name
        assert bool(model.weights.digest) == bool(place)


def test_chosen_models_keep_all_that_they_come_from(data, natural: Path):
    chained = study()
    runs = study_runs(chained, data)
    assert [run.name for run in only(runs, ["hierarchical model"])[0]] == [
        "generalist",
        "hierarchical",
    ]
    reduced, kept = only_chosen(chained, runs, ["hierarchical model", "scratch"])
    assert list(reduced.pretraining) == ["generalist", "hierarchical"]
    assert [run.name for run in kept[0]] == ["generalist", "hierarchical"]
    assert missing_folds(chained, data) == []


def test_without_the_other_dataset_it_says_how_to_prepare_it(data):
    with pytest.raises(FileNotFoundError, match=r"no dataset 150 here"):
        study_runs(study(), data)
    (data.dataset.prepared.parent / "Dataset150_Images").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nnunet-ssp prepare 150 --plans-from 114"):
        study_runs(study(), data)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"file": "a/b.pth"}, "`file` .* must be one plain name"),
        ({"file": "a.pth", "trainer": "BYOL"}, r"file \(=a.pth\) must not come with trainer"),
        ({"trainer": "BYOL"}, "must have trainer and fold, or file"),
        ({"trainer": "BYOL", "dataset": 150, "fold": "0"}, "must be all on another dataset"),
        ({"trainer": "BYOL", "fold": "all labels", "pretraining": "x"}, "one of pretraining"),
        (
            {"trainer": "BYOL", "fold": "all labels", "pretraining": "hierarchical"},
            "must not go in a circle: .*generalist",
        ),
    ],
)
def test_chains_that_cannot_be_are_refused(part, message):
    with pytest.raises(ValueError, match=message):
        study(generalist=part)


def test_the_studies_of_the_papers_have_them(nnunet_folders):
    found = read_study(STUDIES / "kalapos.yaml", "pipelines")
    pretrainings, trainings = study_runs(found, None)
    names = {run.name for run in trainings}
    assert names == {
        *("from scratch", "generalist, supervised", "generalist, self-supervised"),
        *("specialist", "hierarchical"),
    }
    hierarchical = next(run for run in trainings if run.name == "hierarchical")
    assert [run.name for run in hierarchical.origin] == [
        "natural images, BYOL",
        "natural images, then cine",
    ]
    assert {run.dataset for run in pretrainings} == {"", "150"}
    # The same four on their network.
    theirs = read_study(STUDIES / "kalapos.yaml", "resnet50")
    assert (theirs.plans, theirs.prepare) == ("nnUNetResNet50Plans", "-pl TimmPlanner")
    assert theirs.pretraining["ImageNet, supervised"].file == "timm:supervised.pth"
    assert {run.name for run in study_runs(theirs, None)[1]} == names
    # Figure 8, benefit against epochs of pretraining, comes from the snapshots of one run.
    curve = study_runs(read_study(STUDIES / "kalapos.yaml"), None)[1]
    points = {run.name: run for run in curve if run.name.startswith("BYOL, epochs: ")}
    assert {run.snapshot for run in points.values()} == {1, 2, 3, 4, 5, 10, 15, 20, 25}
    assert len({run.weights for run in points.values()}) == 1
    found = read_study(STUDIES / "dominic.yaml")
    words = [run.settings for run in study_runs(found, None)[0] if "superset" in run.name]
    assert [text.partition("data_superset=")[2].split()[0] for text in words] == [
        "1.0",
        "1.5",
        "2.0",
    ]
