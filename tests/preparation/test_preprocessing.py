from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np
import pytest
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
    DatasetFingerprintExtractor,
)
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_ssp import parallel
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.dataset_conversion import mnms
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.preparation import packing, preprocessing
from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.preparation.raw import CaseJob
from nnunet_ssp.preparation.raw_checks import Rules
from nnunet_ssp.slices import store as slices
from nnunet_ssp.slices.drawing import SliceStore
from tests.preparation.conftest import (
    index,
    names,
    write_image,
)


def test_labelled_and_unlabelled_slices_are_nnunets_own_preprocessing(target: Path, raw: Path):
    store = SliceStore(target / "nnUNetPlans_2d_slices")
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


def test_unlabelled_slices_are_those_of_a_mask_that_is_resampled(
    target: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
):
    plans = json.loads((target / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"]["spacing"] = [1.0, 1.3]
    write_json(target / "nnUNetPlans.json", plans)
    without, resampled = target / "without", target / "resampled"
    content = json.loads((raw / "dataset.json").read_text())
    job = CaseJob("a", (str(next((raw / "imagesUn").iterdir())),), None)
    rules = Rules(plans["image_reader_writer"], 1, (0, 1, 2, 3))
    for folder in (without, resampled):
        if folder == resampled:
            monkeypatch.setattr(packing, "WithoutMask", ConfigurationManager)
        file = target / "nnUNetPlans.json"
        done = preprocessing.preprocess_case(job, folder, file, "2d", content, rules)
        assert not isinstance(done, str), done
    (one,), (two,) = (list(f.glob("*_slices/*.npy")) for f in (without, resampled))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.heavy
def test_workers_give_the_same_as_one_process(
    base: Path, target: Path, extractions: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Bit by bit: in processes that one asks for, in none, and from the second case on."""
    before = (target / "dataset_fingerprint.json").read_bytes()

    def prepared(name: str, workers: int | None) -> None:
        (target / "dataset_fingerprint.sha256").unlink()
        prepare(901, overwrite_plans_name=name, workers=workers)
        assert (target / "dataset_fingerprint.json").read_bytes() == before
        one, other = (SliceStore(target / f"{p}_2d_slices") for p in ("nnUNetPlans", name))
        assert one.names == other.names
        for number in range(len(one.names)):
            assert one.array(number).tobytes() == other.array(number).tobytes()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no process is needed")

    prepared("two", 2)
    monkeypatch.setenv("nnUNet_def_n_proc", "2")
    with monkeypatch.context() as context:
        context.setattr(parallel, "ProcessPoolExecutor", refuse)
        prepared("none", None)
    monkeypatch.setattr(parallel, "_workers_pay", lambda took, done, *_: done == 1)
    prepared("later", None)


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
    """With one subject fewer and another division, nothing of the earlier conversion stays."""
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
    """A run that is killed here must not leave cases of other plans for nnU-Net to train on."""
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
    assert "holds 1 case not of this dataset, e.g. other" in capsys.readouterr().out


def test_a_full_disk_is_told_from_a_bad_case(base: Path, target: Path):
    """A limit on file sizes stands in for a full disk; blosc2 raises an OSError for neither."""
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
        ValueError, match=rf"(?s)1 case not.*all others are done.*{file.name}.*{message}"
    ):
        prepare(901, workers=1)
    case = file.name.removesuffix("_0000.nii.gz")
    assert len(index(target)) == 11 and case not in index(target)
    assert not (target / "nnUNetPlans_2d_slices" / f"{case}.npy").exists()
    assert len(names(target / "nnUNetPlans_2d")) == 18
    file.write_bytes(good)
    prepare(901, workers=1)
    assert len(index(target)) == 12


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


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("ending", [".npy", ".b2nd", "_seg.b2nd", ".pkl"])
def test_a_damaged_file_of_the_store_is_made_anew(base, target, preprocessed, ending, old):
    """This also holds for an index of an earlier version without sizes."""
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
    SliceStore(store).read(np.arange(4))
    prepare(901, workers=1)
    assert preprocessed == [case]


def test_the_index_tells_which_cases_are_missing_and_why(raw, target, capsys):
    images = sorted((raw / "imagesUn").glob("*.nii.gz"))
    gone, broken = (image.name.removesuffix("_0000.nii.gz") for image in images[:2])
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:100])
    with pytest.raises(ValueError, match=r"1 case not preprocessed"):
        prepare(901, workers=1)
    assert (
        f"names cases that have no image, so no training sees them: {gone}"
        in capsys.readouterr().out
    )
    missing = slices.read_missing(target / "nnUNetPlans_2d_slices")
    assert missing.keys() == {gone, broken}
    assert missing[gone] == "there is no image of it" and "not a complete" in missing[broken]
