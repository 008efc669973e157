from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
    DatasetFingerprintExtractor,
)

from nnunet_ssp.dataset_conversion import mnms
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.preparation import fingerprints
from nnunet_ssp.preparation.command import prepare
from tests.preparation.conftest import (
    index,
    names,
    noise,
    plain_dataset,
    quicken_fingerprint,
    write_image,
)


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
    assert (
        "Next: nnUNet_ssp_settings='contrast=0 iterations_per_epoch=50 num_epochs=42' "
        "nnUNetv2_train 902 2d all -tr nnUNetTrainerDensePretrain" in capsys.readouterr().out
    )


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

    def counted(cases: list[fingerprints.CaseDescription]) -> dict[str, Any]:
        drawn.append(sum(len(case.intensities[0]) for case in cases))
        return fingerprint(cases)

    monkeypatch.setattr(fingerprints, "fingerprint_of", counted)
    monkeypatch.setattr(fingerprints, "SAMPLES", 100)
    prepare(905, workers=1)
    assert drawn == [100]


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
        ValueError, match=rf"(?s)1 labelled case must be corrected first.*{message}"
    ):
        prepare(901, workers=1)
    assert not plans.exists() and preprocessed == []
