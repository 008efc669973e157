from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import nnunetv2.utilities.utils
import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
    DatasetFingerprintExtractor,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.dataset_conversion import mnms
from nnunet_ssp.files import lock
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.preparation import command as preparation
from nnunet_ssp.preparation import fingerprints, planning, preprocessing, raw_checks
from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.preparation.raw import Job
from nnunet_ssp.slices import store as slices
from tests.holders import held

DATASET = "Dataset901_Phantom"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def set_folders(patch: pytest.MonkeyPatch, base: Path) -> None:
    for name in FOLDERS:
        (base / name).mkdir(exist_ok=True)
        patch.setenv(name, str(base / name))


def quicken_fingerprint(patch: pytest.MonkeyPatch, voxels: int = 10**5) -> list[int]:
    """Draw fewer than nnU-Net's 1e8 voxels; returns the list of the fingerprints made, by their cases."""
    made: list[int] = []
    real = fingerprints.fingerprint_of

    def counted(cases: Sequence[fingerprints.Described]) -> dict[str, Any]:
        made.append(len(cases))
        return real(cases)

    patch.setattr(fingerprints, "LABELLED_SAMPLES", voxels)
    patch.setattr(fingerprints, "fingerprint_of", counted)
    return made


@pytest.fixture(scope="module", autouse=True)
def listing_in_threads() -> Iterator[None]:
    """nnU-Net forks twelve processes to list a folder, up to three times per run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnunetv2.utilities.utils, "Pool", ThreadPool)
        yield


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in M&Ms' layout (`source`), converted and prepared: 3 labelled subjects, 1 unlabelled, 1 test."""
    base = tmp_path_factory.mktemp("preparation")
    counts = {"labelled": 3, "unlabelled": 1, "testing": 1}
    write_mnms(base / "source", **counts, matrix=48, frames=3, slices=3)
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, base)
        quicken_fingerprint(patch)
        mnms.convert(base / "source", 901, "Phantom", workers=1)
        prepare(901, workers=1)
    return base


@pytest.fixture
def base(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change; times of modification are those of the original."""
    for name in FOLDERS:
        shutil.copytree(phantom / name, tmp_path / name)
    set_folders(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def raw(base: Path) -> Path:
    return base / "nnUNet_raw" / DATASET


@pytest.fixture
def target(base: Path) -> Path:
    return base / "nnUNet_preprocessed" / DATASET


@pytest.fixture
def extractions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lists the cases of the fingerprints made, made quick."""
    return quicken_fingerprint(monkeypatch)


@pytest.fixture
def preprocessed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lists the cases that are preprocessed, in order."""
    cases: list[str] = []
    real = preprocessing.preprocess_case

    def spy(job: Job, **options: Any) -> slices.StoredCase | str:
        cases.append(job.case)
        return real(job, **options)

    monkeypatch.setattr(preprocessing, "preprocess_case", spy)
    return cases


def names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(file.name for file in folder.glob(pattern))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes()) for f in files}


def index(target: Path, identifier: str = "nnUNetPlans_2d") -> dict[str, slices.StoredCase]:
    return slices.read_index(target / f"{identifier}_slices")[1]


def write_image(file: Path, voxels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 8, 1])), file)


def noise(seed: int, shape: tuple[int, int, int] = (40, 36, 3)) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def plain_dataset(
    base: Path, name: str, channels: int = 1, labelled: int = 2, unlabelled: int = 2
) -> Path:
    """A dataset of nnU-Net's own making, without our tables; labels in a corner."""
    raw = base / "nnUNet_raw" / name
    for number in range(labelled + unlabelled):
        part = "Tr" if number < labelled else "Un"
        for channel in range(channels):
            file = raw / f"images{part}" / f"a.b_{number}_{channel:04d}.nii.gz"
            write_image(file, noise(10 * number + channel))
        if number < labelled:
            mask = np.zeros((40, 36, 3), np.uint8)
            mask[:9, :9] = 1
            write_image(raw / "labelsTr" / f"a.b_{number}.nii.gz", mask)
    content = {
        "channel_names": {str(c): "cineMRI" for c in range(channels)},
        "labels": {"background": 0, "heart": 1},
        "numTraining": labelled,
        "file_ending": ".nii.gz",
    }
    write_json(raw / "dataset.json", content)
    return raw


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's three folders, empty."""
    set_folders(monkeypatch, tmp_path)
    return tmp_path


# -- what is made --------------------------------------------------------------------------------


def test_the_prepared_folder(raw: Path, target: Path):
    cases = read_cases(raw / "cases.csv")
    training = [c for c in cases.values() if c.split == "train"]
    labelled = [c.case for c in training if c.labelled]
    assert len(training) == 12 and len(labelled) == 6
    assert names(target / "nnUNetPlans_2d") == sorted(
        f"{case}{end}" for case in labelled for end in ("_seg.b2nd", ".pkl", ".b2nd")
    )
    assert names(target / "gt_segmentations") == sorted(f"{case}.nii.gz" for case in labelled)
    assert sorted(index(target)) == sorted(c.case for c in training)
    assert names(target / "nnUNetPlans_2d_slices") == sorted(
        ["index.json", *(f"{c.case}.npy" for c in training)]
    )
    for table in ("cases.csv", "folds.csv", "splits_final.json", "dataset.json"):
        assert (target / table).read_bytes() == (raw / table).read_bytes()
    assert not (target / ".ssp-tmp").exists()


def test_labelled_and_unlabelled_slices_are_nnunets_own_preprocessing(target: Path, raw: Path):
    store = slices.SliceStore(target / "nnUNetPlans_2d_slices")
    for number, name in enumerate(store.names):
        stored = store.array(number)
        file = target / "nnUNetPlans_2d" / f"{name}.b2nd"
        if file.exists():
            data = blosc2.open(str(file), mode="r")[:]
            np.testing.assert_array_equal(stored, data.swapaxes(0, 1).astype(np.float16))
        assert stored.shape[:2] == (3, 1)
        assert abs(float(stored.astype(np.float32).mean())) < 0.01  # z-scored per case
    unlabelled = [
        name for name in store.names if (raw / "imagesUn" / f"{name}_0000.nii.gz").exists()
    ]
    assert len(unlabelled) == 6


def test_a_second_run_does_nothing_again(
    target: Path, preprocessed: list[str], capsys: pytest.CaptureFixture[str]
):
    def data() -> dict[str, tuple[int, bytes]]:
        """Without the small files that are always written."""
        small = (
            "plans",
            "cases.csv",
            "folds.csv",
            "splits",
            "dataset.json",
            "index.json",
            "Plans.json",
        )
        return {
            n: v
            for n, v in contents(target).items()
            if not n.endswith(small[-1]) and not any(s in n for s in small[:-1])
        }

    before = data()
    assert any(name.endswith(".b2nd") for name in before) and "dataset_fingerprint.json" in before
    prepare("901", workers=1)
    assert data() == before
    assert preprocessed == []
    output = capsys.readouterr().out
    assert "12 of 12 cases are up to date" in output
    assert "Slice store: 12 frames (6 labelled), 36 slices in" in output
    assert output.endswith("Next: nnUNetv2_train 901 2d 0 -tr nnUNetTrainerMIMPretrain\n")


def test_nnunet_does_not_chatter(base: Path, capfd: pytest.CaptureFixture[str]):
    prepare(901, overwrite_plans_name="quiet", workers=1)
    printed = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0].split(" /")[0] for line in printed] == [
        "quiet 2d",
        "Slice store",
        "Prepared",
        "Next",
    ]


def test_workers_give_the_same_as_one_process(base: Path, target: Path):
    prepare(901, overwrite_plans_name="two", workers=2)
    one, two = (slices.SliceStore(target / f"{p}_2d_slices") for p in ("nnUNetPlans", "two"))
    assert one.names == two.names
    for number in range(len(one.names)):
        np.testing.assert_array_equal(one.array(number), two.array(number))


def test_two_plans_do_not_disturb_each_other(target: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(target / "nnUNetPlans_2d") | contents(target / "nnUNetPlans_2d_slices")
    plans = (target / "nnUNetPlans.json").read_bytes()
    small = {"gpu_memory_target": 0.002, "overwrite_plans_name": "small", "workers": 1}
    with pytest.raises(ValueError, match=r"small 2d: patch 24 x 20.*must be at least 32 x 32"):
        prepare(901, **small)
    prepare(901, **small, any_plane=True)
    assert "Next: nnUNetv2_train 901 2d 0 -p small -tr" in capsys.readouterr().out
    assert (
        contents(target / "nnUNetPlans_2d") | contents(target / "nnUNetPlans_2d_slices") == before
    )
    assert (target / "nnUNetPlans.json").read_bytes() == plans
    small = json.loads((target / "small.json").read_text())["configurations"]["2d"]
    stock = json.loads(plans)["configurations"]["2d"]
    assert np.prod(small["patch_size"]) < np.prod(stock["patch_size"])
    assert sorted(index(target, "small_2d")) == sorted(index(target))


def test_the_residual_encoder_planner(target: Path, capsys: pytest.CaptureFixture[str]):
    prepare(901, planner="nnUNetPlannerResEncM", workers=1)
    content = json.loads((target / "nnUNetResEncUNetMPlans.json").read_text())
    assert "ResidualEncoderUNet" in json.dumps(content["configurations"]["2d"]["architecture"])
    output = capsys.readouterr().out
    # nnU-Net gives these plans the data folder of the default ones.
    assert "12 of 12 cases are up to date" in output
    assert "-p nnUNetResEncUNetMPlans -tr" in output


def test_planning_without_weights_gives_the_same_plans(base: Path, target: Path):
    planner = planning.find_planner("ExperimentPlanner")
    planning.plan(901, planner, 0.02, "meta")
    with contextlib.redirect_stdout(io.StringIO()):
        planner(901, gpu_memory_target_in_gb=0.02, plans_name="real").plan_experiment()
    meta, real = ((target / f"{name}.json").read_text() for name in ("meta", "real"))
    assert meta.replace("meta", "real") == real


def test_existing_plans_are_taken_as_they_are(target: Path, preprocessed: list[str]):
    content = json.loads((target / "nnUNetPlans.json").read_text())
    content["plans_name"] = "mine"
    content["configurations"]["2d"]["spacing"] = [3.0, 3.0]
    content["configurations"]["2d"]["data_identifier"] = "mine_2d"
    content["configurations"]["large_batch"] = {"inherits_from": "2d", "batch_size": 40}
    write_json(target / "mine.json", content)
    before = (target / "mine.json").read_bytes()
    prepare(901, ("2d", "large_batch"), plans_name="mine", workers=1)
    assert (target / "mine.json").read_bytes() == before
    assert len(preprocessed) == 12  # both configurations share their data
    fine, coarse = index(target, "mine_2d"), index(target)
    assert all(fine[case].shape[2] > coarse[case].shape[2] for case in coarse)


def test_three_dimensional_configurations_store_no_slices(
    target: Path, preprocessed: list[str], capsys: pytest.CaptureFixture[str]
):
    prepare(901, ["3d_fullres"], plans_name="nnUNetPlans", workers=1)
    assert sorted(preprocessed) == sorted(
        {n.split(".")[0] for n in names(target / "gt_segmentations")}
    )
    assert len(names(target / "nnUNetPlans_3d_fullres", "*.pkl")) == 6
    assert names(target / "nnUNetPlans_3d_fullres_slices") == ["index.json"]
    output = capsys.readouterr().out
    assert "Slice store" not in output and "Next:" not in output
    prepare(901, ["3d_fullres"], plans_name="nnUNetPlans", workers=1)
    assert len(preprocessed) == 6
    assert "6 of 6 cases are up to date" in capsys.readouterr().out


# -- datasets of other kinds ---------------------------------------------------------------------


def test_a_dataset_without_any_label(
    phantom: Path, folders: Path, capsys: pytest.CaptureFixture[str]
):
    source = folders / "source" / "Training"
    shutil.copytree(phantom / "source" / "Training" / "Unlabeled", source / "Unlabeled")
    table = next((phantom / "source").glob("*.csv"))
    shutil.copy(table, source.parent)
    raw = mnms.convert(source.parent, 902, "NoLabels", workers=1)
    assert not (raw / "imagesTr").exists()
    target = prepare(902, workers=1)
    assert len(index(target)) == 3
    assert not (target / "nnUNetPlans_2d").exists() and not (target / "gt_segmentations").exists()
    assert "Next: nnUNetv2_train 902 2d all -tr nnUNetTrainerMIMPretrain" in capsys.readouterr().out


def test_the_fingerprint_without_labels_is_nnunets_with_the_foreground_labelled(
    folders: Path, monkeypatch: pytest.MonkeyPatch
):
    raw = plain_dataset(folders, "Dataset905_Unlabelled", channels=2, labelled=3, unlabelled=0)
    for number in range(3):
        image = noise(number)
        image[:8] = image[:, -5:] = image[20, 20] = 0  # a border to crop, and a hole
        write_image(raw / "imagesTr" / f"a.b_{number}_0000.nii.gz", image)
        write_image(raw / "imagesTr" / f"a.b_{number}_0001.nii.gz", 2 * image)
        write_image(raw / "labelsTr" / f"a.b_{number}.nii.gz", (image != 0).astype(np.uint8))
    quicken_fingerprint(monkeypatch, 3 * 10_000)
    fingerprint = prepare(905, workers=1) / "dataset_fingerprint.json"
    with_labels = json.loads(fingerprint.read_text())

    shutil.rmtree(raw / "labelsTr")
    content = json.loads((raw / "dataset.json").read_text())
    write_json(raw / "dataset.json", content | {"labels": {"background": 0}})
    prepare(905, workers=1)
    without = json.loads(fingerprint.read_text())
    assert without == with_labels
    assert without["median_relative_size_after_cropping"] == pytest.approx(32 * 31 / (40 * 36))


def test_the_fingerprint_without_labels_takes_no_more_memory_for_more_cases(
    folders: Path, monkeypatch: pytest.MonkeyPatch
):
    raw = plain_dataset(folders, "Dataset905_Unlabelled", labelled=4, unlabelled=0)
    shutil.rmtree(raw / "labelsTr")
    content = json.loads((raw / "dataset.json").read_text())
    write_json(raw / "dataset.json", content | {"labels": {"background": 0}})
    drawn: list[int] = []
    fingerprint = fingerprints.fingerprint_of

    def counted(cases: list[fingerprints.Described]) -> dict[str, Any]:
        drawn.append(sum(len(case.intensities[0]) for case in cases))
        return fingerprint(cases)

    monkeypatch.setattr(fingerprints, "fingerprint_of", counted)
    monkeypatch.setattr(fingerprints, "SAMPLES", 100)
    prepare(905, workers=1)
    assert drawn == [100]


def test_a_plain_nnunet_dataset_of_two_channels(
    folders: Path, extractions: list[int], capsys: pytest.CaptureFixture[str]
):
    plain_dataset(folders, "Dataset903_Plain", channels=2)
    target = prepare("Dataset903_Plain", workers=1)
    assert {name: entry.shape for name, entry in index(target).items()} == {
        f"a.b_{number}": (3, 2, 36, 40) for number in range(4)
    }
    assert names(target / "gt_segmentations") == ["a.b_0.nii.gz", "a.b_1.nii.gz"]
    assert not (target / "cases.csv").exists() and not (target / "splits_final.json").exists()
    # nnU-Net cannot draw five folds of two cases.
    assert "Next: nnUNetv2_train 903 2d all -tr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folds", "labelled", "first"),
    [(None, 5, "0"), (None, 4, "all"), (None, 0, "all"), (2, 2, "0"), (0, 5, "all")],
)
def test_the_fold_to_begin_with(tmp_path: Path, folds: int | None, labelled: int, first: str):
    file = tmp_path / "splits_final.json"
    if folds is not None:
        write_json(file, [{"train": ["a"], "val": ["b"]}] * folds)
    assert preparation._first_fold(file, labelled) == first


def test_other_files_in_imagesun_are_no_cases(raw: Path, target: Path, preprocessed: list[str]):
    for name in ("._x_0000.nii.gz", "notes.txt", "x_0000.npy", "x.nii.gz"):
        (raw / "imagesUn" / name).write_text("not an image")
    prepare(901, workers=1)
    assert preprocessed == []


def test_nnunets_former_name_of_the_channels(folders: Path, extractions: list[int]):
    raw = plain_dataset(folders, "Dataset906_Old")
    content = json.loads((raw / "dataset.json").read_text())
    content["modality"] = content.pop("channel_names")
    write_json(raw / "dataset.json", content)
    assert len(index(prepare(906, workers=1))) == 4


def test_a_raw_dataset_that_names_its_own_files(folders: Path, extractions: list[int]):
    raw = plain_dataset(folders, "Dataset904_Listed", labelled=1, unlabelled=0)
    (raw / "labelsTr" / "a.b_0.nii.gz").rename(raw / "somewhere.nii.gz")
    content = json.loads((raw / "dataset.json").read_text())
    entry = {"images": ["imagesTr/a.b_0_0000.nii.gz"], "label": "somewhere.nii.gz"}
    write_json(raw / "dataset.json", content | {"dataset": {"mine": entry}})
    target = prepare(904, workers=1)
    assert list(index(target)) == ["mine"]
    assert names(target / "gt_segmentations") == ["mine.nii.gz"]


def test_the_fingerprint_is_that_of_nnunets_own_extractor(
    folders: Path, monkeypatch: pytest.MonkeyPatch
):
    raw = plain_dataset(folders, "Dataset907_Same", channels=2, labelled=3)
    write_image(raw / "labelsTr" / "a.b_2.nii.gz", np.zeros((40, 36, 3), np.uint8))  # no foreground
    quicken_fingerprint(monkeypatch, 3000)
    fingerprint = prepare(907, workers=1) / "dataset_fingerprint.json"
    ours = json.loads(fingerprint.read_text())
    extractor = DatasetFingerprintExtractor(raw.name, 1)
    extractor.num_foreground_voxels_for_intensitystats = 3000
    with contextlib.redirect_stdout(io.StringIO()):
        extractor.run(overwrite_existing=True)
    assert json.loads(fingerprint.read_text()) == ours


# -- what is refused or said before anything is planned -------------------------------------------


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, "0.996"), (np.int16, "1.00001526")])
def test_masks_that_nnunet_would_lose_a_class_of(
    folders: Path, preprocessed: list[str], dtype: type, value: str
):
    raw = plain_dataset(folders, "Dataset908_Scaled")
    content = json.loads((raw / "dataset.json").read_text())
    content["labels"] = {"background": 0, "one": 1, "two": 2}
    write_json(raw / "dataset.json", content)
    header = nibabel.Nifti1Image(np.zeros((40, 36, 3), dtype), np.eye(4)).header
    for file in (raw / "labelsTr").iterdir():
        voxels = np.zeros((40, 36, 3))
        voxels[:9, :9], voxels[20:25] = 1, 2
        affine = nibabel.load(file).affine
        nibabel.save(nibabel.Nifti1Image(voxels, affine, header), file)
    with pytest.raises(
        ValueError, match=rf"(?s)2 labelled case.*whole numbers, not {value}.*uint8"
    ):
        prepare(908, workers=1)
    target = folders / "nnUNet_preprocessed" / raw.name
    assert preprocessed == [] and not (target / "nnUNetPlans.json").exists()
    assert not (target / "gt_segmentations").exists()


def test_mask_values_are_checked_again_when_the_labels_change(
    raw: Path, target: Path, extractions: list[int]
):
    content = json.loads((raw / "dataset.json").read_text())
    labels = content["labels"]
    content["labels"] = {name: value for name, value in labels.items() if value < 3}
    write_json(raw / "dataset.json", content)
    for options in ({}, {"plans_name": "nnUNetPlans"}):
        with pytest.raises(ValueError, match=r"mask values \(=3\) must be among \[0, 1, 2\]"):
            prepare(901, workers=1, **options)
    content["labels"] = {"background": 0, "LV": [1, 2], "RV": 2, "ignore": 3}
    content["regions_class_order"] = [1, 2]
    write_json(raw / "dataset.json", content)
    prepare(901, workers=1)
    assert extractions == [6]
    prepare(901, workers=1)
    assert extractions == [6]  # the files that were found right are not read again


def test_a_mask_on_another_grid_is_said(
    folders: Path, extractions: list[int], capsys: pytest.CaptureFixture[str]
):
    raw = plain_dataset(folders, "Dataset909_Moved")
    file = raw / "labelsTr" / "a.b_1.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([1.5, 1.5, 9, 1])), file)
    prepare(909, workers=1)
    output = capsys.readouterr().out
    assert "WARNING: masks lie elsewhere than their images:" in output
    assert (
        "a.b_1.nii.gz: spacing (=(9, 1.5, 1.5)) must be that of the image (=(8, 1.5, 1.5))"
        in output
    )
    assert "a.b_0.nii.gz" not in output


@pytest.mark.parametrize("part", ["imagesTr", "imagesUn"])
def test_a_spacing_in_another_unit(folders: Path, extractions: list[int], part: str):
    raw = plain_dataset(folders, "Dataset910_Metres", labelled=3, unlabelled=3)
    file = raw / part / names(raw / part)[1]
    affine = np.diag([1500, 1500, 8000, 1])
    nibabel.save(nibabel.Nifti1Image(noise(1), affine), file)
    if part == "imagesTr":
        mask = raw / "labelsTr" / file.name.replace("_0000", "")
        nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(mask).dataobj), affine), mask)
    message = rf"(?s)1 .*case.*{file.name}: spacing \(=8000 x 1500 x 1500 mm\).*factor of 1000 is"
    with pytest.raises(ValueError, match=message):
        prepare(910, workers=1)


def test_single_slices_thinner_than_their_pixels(
    folders: Path, extractions: list[int], capsys: pytest.CaptureFixture[str]
):
    """nnU-Net plans for lines of pixels: the axis with the largest spacing is one of the image's own."""
    raw = plain_dataset(folders, "Dataset911_Joined")
    for file in raw.glob("*/*.nii.gz"):
        voxels = np.asarray(nibabel.load(file).dataobj)[..., :1]
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 1, 1])), file)
    with pytest.raises(ValueError, match=r"would see lines one pixel thick.*--any-plane"):
        prepare(911, workers=1)
    prepare(911, workers=1, any_plane=True)
    assert "one pixel thick, across the slices" in capsys.readouterr().out


def test_a_cine_in_the_training_images(folders: Path):
    raw = plain_dataset(folders, "Dataset912_Cine")
    for file in (raw / "imagesTr").iterdir():
        write_image(file, np.stack([noise(n) for n in range(5)], -1))
    message = r"(?s)2 labelled case.*holds 5 volumes, but dataset.json names 1 channel"
    with pytest.raises(ValueError, match=message):
        prepare(912, workers=1)


def test_a_dataset_without_a_labelled_voxel(folders: Path):
    raw = plain_dataset(folders, "Dataset913_Empty")
    for file in (raw / "labelsTr").iterdir():
        write_image(file, np.zeros((40, 36, 3), np.uint8))
    with pytest.raises(ValueError, match=r"no mask has a labelled voxel, so nnU-Net cannot plan"):
        prepare(913, workers=1)


# -- what has changed since ----------------------------------------------------------------------


def test_only_changed_cases_are_prepared_again(
    raw: Path, target: Path, preprocessed: list[str], extractions: list[int]
):
    labelled = names(raw / "labelsTr")
    unlabelled = names(raw / "imagesUn")
    mask, image = raw / "labelsTr" / labelled[0], raw / "imagesUn" / unlabelled[0]
    os.utime(mask, (1, 1))  # older than before, as from a backup
    loaded = nibabel.load(image)
    write_image(image, np.asarray(loaded.dataobj)[:, :-2].copy())
    prepare(901, workers=1)
    changed = [labelled[0].removesuffix(".nii.gz"), unlabelled[0].removesuffix("_0000.nii.gz")]
    assert preprocessed == changed
    assert extractions == [6]
    assert (target / "gt_segmentations" / labelled[0]).stat().st_mtime == 1
    prepare(901, workers=1)
    assert preprocessed == changed and extractions == [6]


def test_cases_that_are_gone_leave_nothing(raw: Path, target: Path, extractions: list[int]):
    labelled = names(raw / "labelsTr")[0].removesuffix(".nii.gz")
    unlabelled = names(raw / "imagesUn")[0].removesuffix("_0000.nii.gz")
    for file in raw.glob(f"*/{labelled}*"):
        file.unlink()
    (raw / "imagesUn" / f"{unlabelled}_0000.nii.gz").unlink()
    prepare(901, workers=1)
    gone = (labelled, unlabelled)
    assert not [f for f in target.rglob("*") if f.name.startswith(gone)]
    assert len(index(target)) == 10 and not index(target).keys() & set(gone)
    assert extractions == [5]  # it is not of the same cases


def test_preparing_after_another_conversion(
    phantom: Path, raw: Path, target: Path, preprocessed: list[str], extractions: list[int]
):
    """One subject fewer, another division: nothing of the earlier conversion stays."""
    source = raw.parent / "source"
    shutil.copytree(phantom / "source", source)
    removed = sorted((source / "Training" / "Labeled").iterdir())[0]
    shutil.rmtree(removed)
    mnms.convert(source, 901, "Phantom", overwrite=True, workers=1)
    assert len(read_splits(target / "splits_final.json")) == 2
    prepare(901, workers=1)
    assert extractions == [4]
    assert sorted(preprocessed) == sorted(index(target)) and len(preprocessed) == 9
    assert not [f for f in target.rglob("*") if f.name.startswith(removed.name)]
    assert removed.name not in (target / "cases.csv").read_text()


def test_changed_plans_or_labels_prepare_everything_again(
    raw: Path, target: Path, preprocessed: list[str], capsys: pytest.CaptureFixture[str]
):
    content = json.loads((raw / "dataset.json").read_text())
    content["labels"] = {"background": 0, "LV": [1, 2], "RV": 3}
    content["regions_class_order"] = [1, 2]
    write_json(raw / "dataset.json", content)
    prepare(901, plans_name="nnUNetPlans", workers=1)
    assert "The plans or labels have changed" in capsys.readouterr().out
    assert len(preprocessed) == 12
    properties = pickle.loads(next((target / "nnUNetPlans_2d").glob("*.pkl")).read_bytes())
    assert set(properties["class_locations"]) == {(1, 2), 3}


def test_what_is_not_valid_is_gone_before_the_work(
    raw: Path, target: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run killed now must not leave cases of other plans for nnU-Net to train on."""
    content = json.loads((target / "nnUNetPlans.json").read_text())
    content["configurations"]["2d"]["spacing"] = [3.0, 3.0]
    write_json(target / "nnUNetPlans.json", content)

    def killed(*_: Any) -> Iterator[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocessing, "process", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(901, plans_name="nnUNetPlans", workers=1)
    assert names(target / "nnUNetPlans_2d") == []
    assert names(target / "nnUNetPlans_2d_slices") == ["index.json"]
    assert index(target) == {}


@pytest.mark.parametrize("lost", ["nnUNetPlans_2d_slices/{}.npy", "nnUNetPlans_2d/{}.b2nd"])
def test_a_lost_file_is_made_again(raw: Path, target: Path, preprocessed: list[str], lost: str):
    case = names(raw / "labelsTr")[0].removesuffix(".nii.gz")
    (target / lost.format(case)).unlink()
    prepare(901, workers=1)
    assert preprocessed == [case]
    assert (target / lost.format(case)).is_file()


def test_a_damaged_index_is_made_again(target: Path, preprocessed: list[str]):
    (target / "nnUNetPlans_2d_slices" / "index.json").write_text("{")
    prepare(901, workers=1)
    assert len(preprocessed) == 12


def everything(base: Path) -> dict[str, bytes]:
    return {str(f.relative_to(base)): f.read_bytes() for f in base.rglob("*") if f.is_file()}


@pytest.mark.parametrize("name", ["../../outside", "..", "/tmp/outside", "a/b", ".x"])
def test_plans_that_lead_elsewhere_are_refused(base: Path, target: Path, name: str):
    """Files beside nnU-Net's folders were written and deleted, see issue 14."""
    (base / "outside").mkdir()
    (base / "outside" / "mine.b2nd").touch()
    content = json.loads((target / "nnUNetPlans.json").read_text())
    content["configurations"]["2d"]["data_identifier"] = name
    write_json(target / "evil.json", {**content, "plans_name": "evil"})
    before = everything(base)
    with pytest.raises(
        ValueError, match=r"evil\.json, configuration 2d: `data_identifier` .* plain"
    ):
        prepare(901, plans_name="evil", workers=1)
    assert {k: v for k, v in everything(base).items() if k in before} == before
    assert not (base / "outside_slices").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plans_name": "../x"}, r"`-p` \(=\.\./x\) must be one plain name"),
        ({"overwrite_plans_name": "../x"}, r"`-overwrite_plans_name` .* must be one plain name"),
        ({"planner": "../x"}, r"`-pl` .* must be one plain name"),
    ],
)
def test_names_on_the_command_line_stay_in_the_folder(
    base: Path, options: dict[str, Any], message: str
):
    before = everything(base)
    with pytest.raises(ValueError, match=message):
        prepare(901, workers=1, **options)
    assert everything(base) == before


def test_plans_under_another_name_than_their_own_are_refused(target: Path):
    shutil.copy(target / "nnUNetPlans.json", target / "copy.json")
    with pytest.raises(
        ValueError, match=r"copy\.json: `plans_name` \(=nnUNetPlans\) must be that of"
    ):
        prepare(901, plans_name="copy", workers=1)


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "..\\outside"])
def test_a_case_of_dataset_json_that_leads_elsewhere_is_refused(base: Path, raw: Path, name: str):
    content = json.loads((raw / "dataset.json").read_text())
    image, label = names(raw / "imagesTr")[0], names(raw / "labelsTr")[0]
    listed = {"images": [f"imagesTr/{image}"], "label": f"labelsTr/{label}"}
    write_json(raw / "dataset.json", {**content, "dataset": {name: listed}})
    before = everything(base)
    with pytest.raises(
        ValueError, match=r"dataset\.json, `dataset`: `case` .* must be one plain name"
    ):
        prepare(901, workers=1)
    assert everything(base) == before


def test_a_file_ending_that_leads_elsewhere_is_refused(base: Path, raw: Path):
    content = json.loads((raw / "dataset.json").read_text())
    write_json(raw / "dataset.json", {**content, "file_ending": "/../../../x"})
    before = everything(base)
    with pytest.raises(ValueError, match=r"`file_ending` .* must be an ending, as \.nii\.gz"):
        prepare(901, workers=1)
    assert everything(base) == before


def test_files_of_others_stay_and_are_named(
    raw: Path, target: Path, capsys: pytest.CaptureFixture[str]
):
    """Whatever a plans file calls the folder, only files of this dataset's cases are removed from it."""
    mine = ["nnUNetPlans_2d/notes.txt", "nnUNetPlans_2d/other.b2nd", "nnUNetPlans_2d/model.pkl"]
    mine += ["nnUNetPlans_2d_slices/other.npy", "gt_segmentations/other.nii.gz"]
    for name in mine:
        (target / name).write_text("mine")
    gone = names(raw / "labelsTr")[0].removesuffix(".nii.gz")
    for file in raw.glob(f"*/{gone}*"):
        file.unlink()
    prepare(901, plans_name="nnUNetPlans", workers=1)
    assert all((target / name).read_text() == "mine" for name in mine)
    assert not list(target.glob(f"*/{gone}*"))
    assert "holds 1 case(s) that are not of this dataset, e.g. other" in capsys.readouterr().out


def change_fold(raw: Path) -> None:
    splits = read_splits(raw / "splits_final.json")
    splits[0], splits[1] = splits[1], splits[0]
    write_json(raw / "splits_final.json", splits)


def test_changed_folds_are_taken_over(raw: Path, target: Path):
    change_fold(raw)
    prepare(901, workers=1)
    assert read_splits(target / "splits_final.json") == read_splits(raw / "splits_final.json")


def test_a_damaged_copy_of_the_folds_is_made_anew(raw: Path, target: Path):
    copy = target / "splits_final.json"
    for content in (b"", copy.read_bytes()[:40], b"\xff"):
        copy.write_bytes(content)
        prepare(901, workers=1)
        assert copy.read_bytes() == (raw / "splits_final.json").read_bytes()


def test_changed_folds_with_results_need_overwrite(base: Path, raw: Path, target: Path):
    before = (target / "splits_final.json").read_bytes()
    change_fold(raw)
    for fold in (1, 2):
        folder = base / "nnUNet_results" / DATASET / "T__nnUNetPlans__2d" / f"fold_{fold}"
        folder.mkdir(parents=True)
    with pytest.raises(
        FileExistsError, match=r"fold 1 differs from the one that results.*--overwrite"
    ):
        prepare(901, workers=1)
    assert (target / "splits_final.json").read_bytes() == before
    prepare(901, workers=1, overwrite=True)
    assert read_splits(target / "splits_final.json") == read_splits(raw / "splits_final.json")


# -- interruptions -------------------------------------------------------------------------------


def test_a_killed_run_is_finished_by_a_second(
    base: Path, target: Path, preprocessed: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The index has what was done up to its last writing; the cases after it are prepared again."""
    spy = preprocessing.preprocess_case

    class Killed(BaseException):
        pass

    def die_at_eight(job: Job, **options: Any) -> slices.StoredCase | str:
        if len(preprocessed) == 7:
            monkeypatch.setattr(slices, "write_index", lambda *_: None)  # nothing after the kill
            raise Killed
        return spy(job, **options)

    monkeypatch.setattr(preprocessing, "SECONDS_BETWEEN_INDEXES", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(preprocessing, "preprocess_case", die_at_eight)
        prepare(901, overwrite_plans_name="new", workers=1)
    monkeypatch.undo()
    set_folders(monkeypatch, base)
    assert len(index(target, "new_2d")) == 7

    done = contents(target / "new_2d")
    prepare(901, overwrite_plans_name="new", workers=1)
    assert len(index(target, "new_2d")) == 12
    assert len(done) == 18 and contents(target / "new_2d") == done  # the labelled ones came first
    assert not (target / ".ssp-tmp").exists()


def test_a_damaged_record_of_the_fingerprint_is_made_anew(target: Path):
    record = target / "dataset_fingerprint.sha256"
    before = record.read_bytes()
    for content in (b"", b"\xff\xfe", before[:9]):
        record.write_bytes(content)
        prepare(901, plans_name="nnUNetPlans", workers=1)
        assert record.read_bytes() == before


def test_what_a_killed_writer_left_is_removed(target: Path):
    (target / ".ssp-tmp-1-together").mkdir()
    for name in (".ssp-tmp-1-together/metrics.csv", ".ssp-tmp-1-cases.csv"):
        (target / name).touch()
    prepare(901, plans_name="nnUNetPlans", workers=1)
    assert not list(target.glob(".ssp-tmp*"))


def test_a_full_disk_is_told_from_a_bad_case(base: Path, target: Path):
    """A limit on the size of files stands in for the disk: blosc2 raises no OSError for either."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = next((target / "nnUNetPlans_2d").glob("*0.b2nd")).stat().st_size - 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(limit, 6000), hard))
    try:
        with pytest.raises(
            RuntimeError, match=r"writing failed \(.*too large.*run the same command again"
        ):
            prepare(901, overwrite_plans_name="full", workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    prepare(901, overwrite_plans_name="full", workers=1)
    assert len(index(target, "full_2d")) == 12


def test_a_dead_worker_is_explained(base: Path, monkeypatch: pytest.MonkeyPatch):
    def died(*_: Any) -> Iterator[str]:
        raise BrokenProcessPool

    monkeypatch.setattr(preprocessing, "process", died)
    with pytest.raises(
        RuntimeError, match=r"a worker process died.*-np.*continues where it stopped"
    ):
        prepare(901, workers=1)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_text("no image"), r"not a complete NIfTI file"),
        (lambda file: file.write_bytes(file.read_bytes()[:3000]), r"not a complete NIfTI file"),
        (
            lambda file: write_image(file, np.full((9, 9, 3), np.nan, np.float32)),
            r"holds NaN or infinite values",
        ),
        (lambda file: write_image(file, np.full((9, 9, 3), 7.0)), r"all voxels are equal"),
        (lambda file: write_image(file, np.ones((9, 9, 3, 4))), r"holds 4 volumes, but dataset"),
    ],
    ids=["damaged", "truncated", "nan", "constant", "cine"],
)
def test_a_bad_unlabelled_image_is_named_and_all_others_are_done(
    raw: Path, target: Path, spoil: Callable[[Path], None], message: str
):
    file = raw / "imagesUn" / names(raw / "imagesUn")[0]
    good = file.read_bytes()
    spoil(file)
    shutil.rmtree(target / "nnUNetPlans_2d_slices")
    with pytest.raises(
        ValueError, match=rf"(?s)1 case\(s\) could not.*all others are done.*{file.name}.*{message}"
    ):
        prepare(901, workers=1)
    case = file.name.removesuffix("_0000.nii.gz")
    assert len(index(target)) == 11 and case not in index(target)
    assert not (target / "nnUNetPlans_2d_slices" / f"{case}.npy").exists()
    assert len(names(target / "nnUNetPlans_2d")) == 18
    file.write_bytes(good)
    prepare(901, workers=1)
    assert len(index(target)) == 12


def test_long_lists_of_bad_cases_are_cut(folders: Path):
    listed = raw_checks.listed([str(n) for n in range(25)]).splitlines()
    assert len(listed) == 21 and listed[-1] == "  ... and 5 more"


def shorten(file: Path) -> None:
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), file)


@pytest.mark.parametrize(
    ("folder", "spoil", "message"),
    [
        ("labelsTr", shorten, r"labelsTr/.*shape \(=.*\) must be that of the image \(="),
        (
            "imagesTr",
            lambda file: file.write_text("no image"),
            r"imagesTr/.*not a complete NIfTI file",
        ),
    ],
    ids=["shapes", "damaged"],
)
def test_a_bad_labelled_case_is_named_before_anything_is_planned(
    raw: Path,
    target: Path,
    preprocessed: list[str],
    folder: str,
    spoil: Callable[[Path], None],
    message: str,
):
    spoil(raw / folder / names(raw / folder)[-1])
    plans = target / "nnUNetPlans.json"
    plans.unlink()
    with pytest.raises(
        ValueError, match=rf"(?s)1 labelled case\(s\) must be mended first.*{message}"
    ):
        prepare(901, workers=1)
    assert not plans.exists() and preprocessed == []


def test_a_failure_of_nnunet_is_shown_in_words(raw: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("what nnU-Net says")

    monkeypatch.setattr(DatasetFingerprintExtractor, "analyze_case", fail)
    file = raw / "labelsTr" / names(raw / "labelsTr")[0]
    os.utime(file)
    case = file.name.removesuffix(".nii.gz")
    message = rf"{case}_0000.nii.gz: nnU-Net cannot analyse it \(IndexError: what nnU-Net says\)"
    with pytest.raises(ValueError, match=message):
        prepare(901, workers=1)


def test_a_failing_planner_says_what_it_said(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: Any, **__: Any) -> None:
        print("the planner's words")
        raise RuntimeError("the planner's error")

    monkeypatch.setattr(planning, "plan_experiment_dataset", fail)
    with pytest.raises(RuntimeError, match="the planner's error"):
        prepare(901, workers=1)
    assert "the planner's words" in capsys.readouterr().err


def drop_channel(raw: Path) -> None:
    (raw / "imagesUn" / "a.b_2_0001.nii.gz").unlink()


def drop_label(raw: Path) -> None:
    (raw / "labelsTr" / "a.b_1.nii.gz").unlink()


def drop_all_labels(raw: Path) -> None:
    shutil.rmtree(raw / "labelsTr")


def drop_images(raw: Path) -> None:
    shutil.rmtree(raw / "imagesTr")


def twice(raw: Path) -> None:
    for channel in range(2):
        name = f"a.b_0_{channel:04d}.nii.gz"
        shutil.copy(raw / "imagesTr" / name, raw / "imagesUn" / name)


def drop_key(raw: Path) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    del content["numTraining"]
    write_json(raw / "dataset.json", content)


def break_json(raw: Path) -> None:
    (raw / "dataset.json").write_text("{")


def drop_json(raw: Path) -> None:
    (raw / "dataset.json").unlink()


def unfinished(raw: Path) -> None:
    drop_json(raw)
    (raw / "convert.json").touch()


def unreadable(raw: Path) -> None:
    (raw / "imagesTr" / "a.b_0_0000.nii.gz").write_text("no image")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (drop_channel, ValueError, r"case a.b_2 has 1 channel\(s\), but other cases have 2"),
        (
            drop_label,
            FileNotFoundError,
            r"labelsTr/a.b_1.nii.gz is missing: every image of imagesTr",
        ),
        (drop_all_labels, FileNotFoundError, r"a.b_0.nii.gz is missing: every image of imagesTr"),
        (drop_images, ValueError, r"no image in imagesTr, and dataset.json lists none in imagesUn"),
        (twice, ValueError, r"case a.b_0 must not be in both imagesTr and imagesUn"),
        (drop_key, ValueError, r"dataset.json: `numTraining` is missing"),
        (break_json, ValueError, r"dataset.json: not a JSON file"),
        (drop_json, FileNotFoundError, r"dataset.json is missing: nnU-Net needs it"),
        (
            unfinished,
            FileNotFoundError,
            r"the conversion is unfinished, run nnunet-ssp convert again",
        ),
        (unreadable, ValueError, r"a.b_0_0000.nii.gz: none of nnU-Net's readers can read it"),
    ],
)
def test_a_wrong_dataset_is_refused(
    folders: Path, spoil: Callable[[Path], None], error: type[Exception], message: str
):
    raw = plain_dataset(folders, "Dataset905_Wrong", channels=2)
    spoil(raw)
    with pytest.raises(error, match=message):
        prepare(905, workers=1)


def rewrite_cases(raw: Path, change: Callable[[dict[str, str]], dict[str, str] | None]) -> None:
    with open(raw / "cases.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    changed = [row for row in map(change, rows) if row is not None]
    with open(raw / "cases.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(changed)


def test_a_test_subject_never_enters_the_slice_store(raw: Path):
    subject = names(raw / "imagesUn")[0].split("_")[0]
    rewrite_cases(raw, lambda row: row | ({"split": "test"} if row["subject"] == subject else {}))
    with pytest.raises(
        ValueError, match=rf"imagesUn/{subject}.*: test subject {subject} must be in imagesTs only"
    ):
        prepare(901, workers=1)


def test_every_case_must_be_in_the_table(raw: Path):
    case = names(raw / "imagesUn")[0].removesuffix("_0000.nii.gz")
    rewrite_cases(raw, lambda row: None if row["case"] == case else row)
    with pytest.raises(ValueError, match=rf"cases.csv: there is no row for case {case}"):
        prepare(901, workers=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, ValueError, r"`workers` \(=0\) must be at least 1"),
        ({"planner": "Nobody"}, ValueError, r"`planner` \(=Nobody\) must be one of nnU-Net's"),
        (
            {"configurations": ["2d", "4d"]},
            ValueError,
            r"`configuration` \(=4d\) must be one that .*nnUNetPlans.json has: 2d, 3d_fullres",
        ),
        ({"plans_name": "none"}, FileNotFoundError, r"none.json is missing: leave out -p"),
        (
            {"plans_name": "nnUNetPlans", "gpu_memory_target": 1.0},
            ValueError,
            r"-p nnUNetPlans takes existing plans.*options of a planner",
        ),
        ({"gpu_memory_target": 0.0}, ValueError, r"`gpu_memory_target` \(=0.0\) must be above 0"),
    ],
)
def test_impossible_options_are_refused(
    base: Path,
    preprocessed: list[str],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
):
    with pytest.raises(error, match=message):
        prepare(901, **({"workers": 1} | options))
    assert preprocessed == []


def test_a_dataset_that_is_not_there(base: Path):
    with pytest.raises(FileNotFoundError, match="no dataset 333 here; found Dataset901_Phantom"):
        prepare(333)


# -- against nnU-Net's own commands --------------------------------------------------------------


def run_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    return done


@pytest.mark.slow
def test_plans_and_data_are_those_of_nnunets_own_command(base: Path, target: Path, raw: Path):
    stock = base / "stock"
    configurations = ("-c", "2d", "3d_fullres")
    done = run_command(
        *("nnUNetv2_plan_and_preprocess", "-d", "901", *configurations, "-np", "1", "-npfp", "1"),
        nnUNet_preprocessed=str(stock),
        nnUNet_n_proc_DA="1",
    )
    assert done.returncode == 0, done.stderr
    (target / "dataset_fingerprint.json").unlink()
    prepare(901, ["2d", "3d_fullres"], workers=1)
    files = [file for file in (stock / DATASET).rglob("*") if file.is_file()]
    assert len([file for file in files if file.suffix == ".b2nd"]) == 24
    for file in files:
        own = target / file.relative_to(stock / DATASET)
        if file.suffix == ".json":
            assert json.loads(own.read_text()) == json.loads(file.read_text()), own
        elif file.suffix == ".b2nd":
            a, b = (blosc2.open(str(f), mode="r") for f in (own, file))
            np.testing.assert_array_equal(a[:], b[:])
            assert (a.dtype, a.chunks, a.blocks) == (b.dtype, b.chunks, b.blocks)
        elif file.suffix == ".pkl":
            a, b = (repr(pickle.loads(f.read_bytes())) for f in (own, file))
            assert a == b, own
        else:
            assert own.read_bytes() == file.read_bytes(), own


@pytest.mark.slow
def test_nnunet_trains_and_validates_on_the_prepared_folder_alone(
    base: Path, raw: Path, target: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree(raw)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "f")
    plans, dataset = (
        json.loads((target / f"{name}.json").read_text()) for name in ("nnUNetPlans", "dataset")
    )
    plans["continue_training"] = False
    architecture = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    architecture["features_per_stage"] = [4] * architecture["n_stages"]
    trainer = nnUNetTrainer(plans, "2d", 0, dataset, torch.device("cpu"))
    trainer.num_epochs = trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    validation = read_splits(target / "splits_final.json")[0]["val"]
    assert len(summary["metric_per_case"]) == len(validation)


@pytest.mark.slow
def test_a_run_killed_by_the_system_is_finished_by_a_second(base: Path, target: Path, raw: Path):
    """With worker processes: they end with the killed parent, and the second run keeps what was done."""
    case = names(raw / "imagesUn")[0].removesuffix("_0000.nii.gz")
    for number in range(300):
        shutil.copy(
            raw / "imagesUn" / f"{case}_0000.nii.gz", raw / "imagesUn" / f"x{number}_0000.nii.gz"
        )
    (raw / "cases.csv").unlink()
    script = (
        "from nnunet_ssp.preparation import command as preparation\n"
        "preprocessing.SECONDS_BETWEEN_INDEXES = 0.2\n"
        "if __name__ == '__main__':\n"
        "    preparation.prepare(901, overwrite_plans_name='killed', workers=2)\n"
    )
    (base / "script.py").write_text(script)
    store = target / "killed_2d_slices"
    process = subprocess.Popen([sys.executable, "script.py"], cwd=base, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(names(store, "*.npy")) < 60:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = index(target, "killed_2d")
    assert 0 < len(done) < 312
    before = contents(target / "killed_2d")
    stored = {case: (store / f"{case}.npy").stat().st_mtime_ns for case in done}
    prepare(901, overwrite_plans_name="killed", workers=1)
    assert len(index(target, "killed_2d")) == 312
    assert {case: (store / f"{case}.npy").stat().st_mtime_ns for case in done} == stored
    assert contents(target / "killed_2d").keys() >= before.keys()
    assert not (target / ".ssp-tmp").exists()


# -- nothing lost --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_another_process_in_the_dataset_is_named(base, monkeypatch, place):
    monkeypatch.setattr(lock, "SECONDS_TO_WAIT", 0.0)
    with (
        held(base / place / DATASET) as holder,
        pytest.raises(RuntimeError, match=rf"{DATASET} is in use by .*process {holder.pid} on"),
    ):
        prepare(901, workers=1)
    prepare(901, workers=1)
    assert not (base / place / DATASET / lock.LOCK).exists()


def test_a_refused_run_leaves_no_folder(raw, target):
    shutil.rmtree(target)
    write_json(raw / "splits_final.json", [{"train": [], "val": ["nobody"]}])
    with pytest.raises(ValueError, match="fold 0: `val` names nobody"):
        prepare(901, workers=1)
    assert not target.exists()


@pytest.mark.parametrize("side", ["train", "val"])
def test_folds_that_name_what_is_no_case_are_refused(raw, target, side):
    splits = read_splits(raw / "splits_final.json")
    splits[1][side].append("nobody_frame00")
    write_json(raw / "splits_final.json", splits)
    before = (target / "splits_final.json").read_bytes()
    with pytest.raises(ValueError, match=f"fold 1: `{side}` names nobody_frame00, which must be"):
        prepare(901, workers=1)
    assert (target / "splits_final.json").read_bytes() == before


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("ending", [".npy", ".b2nd", "_seg.b2nd", ".pkl"])
def test_a_damaged_file_of_the_store_is_made_anew(base, target, preprocessed, ending, old):
    """Also where the index is of an earlier version and knows no sizes."""
    folder = target / ("nnUNetPlans_2d_slices" if ending == ".npy" else "nnUNetPlans_2d")
    case = sorted(
        file.name.removesuffix(".pkl") for file in (target / "nnUNetPlans_2d").glob("*.pkl")
    )[1]
    store = target / "nnUNetPlans_2d_slices"
    if old:
        content = json.loads((store / "index.json").read_text())
        del content["missing"]
        for entry in content["cases"].values():
            del entry["stored"]
        (store / "index.json").write_text(json.dumps(content))
    whole = (folder / f"{case}{ending}").read_bytes()
    (folder / f"{case}{ending}").write_bytes(whole[:-9])
    prepare(901, workers=1)
    assert preprocessed == [case]
    assert (folder / f"{case}{ending}").read_bytes() == whole
    assert all(entry.stored for entry in index(target).values())
    slices.SliceStore(store).read(np.arange(4))
    prepare(901, workers=1)
    assert preprocessed == [case]


def test_the_index_tells_which_cases_are_missing_and_why(raw, target, capsys):
    images = sorted((raw / "imagesUn").glob("*.nii.gz"))
    gone, broken = (image.name.removesuffix("_0000.nii.gz") for image in images[:2])
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:100])
    with pytest.raises(ValueError, match=r"1 case\(s\) could not be preprocessed"):
        prepare(901, workers=1)
    assert (
        f"names cases that have no image, so nobody trains on them: {gone}"
        in capsys.readouterr().out
    )
    missing = slices.read_missing(target / "nnUNetPlans_2d_slices")
    assert missing.keys() == {gone, broken}
    assert missing[gone] == "there is no image of it" and "not a complete" in missing[broken]
