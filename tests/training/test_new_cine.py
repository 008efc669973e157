"""A model that nnU-Net's own command trained, and `nnunet-ssp predict` with it: from images to volumes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from nnunet_ssp.conversion.dicom.opening import tolerant

pytestmark = pytest.mark.slow

# As many as the narrow network needs to find some of the heart
STEPS = "num_epochs=1 iterations_per_epoch=150 val_iterations_per_epoch=1 "
STEPS += "optimizer=adamw initial_lr=0.01"
MODEL = ("-d", 901, "-tr", "nnUNetTrainerScratch", "-p", "tiny", "-c", "2d", "-f", 0)
MODEL += ("-device", "cpu", "--disable_tta")


@pytest.fixture(scope="module")
def trained(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory, command: Callable[..., str]
) -> Iterator[Callable[..., str]]:
    """Runs commands where the model is."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed"):
            patch.setenv(f"nnUNet_{name}", str(prepared / name))
        patch.setenv("nnUNet_results", str(results))
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setenv("nnUNet_compile", "f")
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        patch.setenv("nnUNet_extTrainer", command("nnunet-ssp", "env").strip().partition("=")[2])
        words = ("nnUNetv2_train", 901, "2d", 0, "-p", "tiny", "-tr", "nnUNetTrainerScratch")
        command(*words, "-device", "cpu", nnUNet_ssp_settings=STEPS)
        yield command


def volumes(folder: Path) -> dict[str, str]:
    with open(folder / "volumes.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    return row


def test_phantom_cine_to_volumes(trained, prepared, tmp_path) -> None:
    (cine,) = (prepared / "source" / "Testing").rglob("*_sa.nii.gz")
    out, frames = tmp_path / "out", prepared / "raw" / "Dataset901_Phantom" / "imagesTs"
    trained("nnunet-ssp", "predict", "-i", cine, "-o", out, *MODEL)
    words = ("-i", frames, "-o", tmp_path / "stock", *MODEL, "-npp", 1, "-nps", 1)
    trained("nnUNetv2_predict", *words)
    subject = volumes(out)["subject"]
    mask = nibabel.load(out / f"{subject}_seg.nii.gz")
    image = nibabel.load(cine)
    assert mask.shape == image.shape
    np.testing.assert_array_equal(mask.affine, image.affine)
    # On the frames that are in the dataset the labels are those of nnU-Net's own command.
    stock = sorted((tmp_path / "stock").glob("*.nii.gz"))
    assert len(stock) == 2
    for file in stock:
        t = int(file.name.removesuffix(".nii.gz").rpartition("_frame")[2])
        theirs = np.asarray(nibabel.load(file).dataobj)
        np.testing.assert_array_equal(np.asarray(mask.dataobj)[..., t], theirs)
    assert np.asarray(mask.dataobj).any()
    # The same from a zip that nnU-Net's own command makes.
    zipped = tmp_path / "model.zip"
    trained("nnUNetv2_export_model_to_zip", *MODEL[:-3], "-o", zipped)
    words = ("-i", cine, "-m", zipped, "-o", tmp_path / "again", *MODEL[-3:])
    trained("nnunet-ssp", "predict", *words)
    again = nibabel.load(tmp_path / "again" / f"{subject}_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(mask.dataobj))
    assert float(volumes(out)["rv_edv_ml"]) > 0


@pytest.mark.filterwarnings(
    "ignore:Invalid value for VR UI"
)  # as the de-identified files have them
def test_real_dicom_to_volumes_and_objects(trained, real_data, tmp_path) -> None:
    """A place in a DICOM image is the same place in the mask, and has the same label in the DICOM Segmentation."""
    hd = pytest.importorskip("highdicom", reason="needs the extra `dicom`")
    out, source = tmp_path / "out", real_data / "sunnybrook_dicom"
    trained("nnunet-ssp", "predict", "-i", source, "-o", out, "--dicom-seg", *MODEL)
    row = volumes(out)
    assert (row["subject"], row["n_frames"], row["n_slices"]) == ("SCD0000301", "20", "10")
    assert row["heart_rate"] == "65.0054"  # NominalInterval 923 ms
    mask = sitk.ReadImage(str(out / "SCD0000301_seg.nii.gz"))
    assert mask.GetSize() == (256, 256, 10, 20)
    files = sorted((out / "SCD0000301_seg_dicom").iterdir())
    assert len(files) == 20
    headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in source.rglob("*.dcm")]
    images = {header.SOPInstanceUID: header for header in headers}
    rng = np.random.default_rng(0)
    for t in (0, 7, 19):
        with tolerant():
            found = hd.seg.segread(files[t])
        uids = [item.ReferencedSOPInstanceUID for item in found.SourceImageSequence]
        pixels = found.get_pixels_by_source_instance(
            uids, combine_segments=True, assert_missing_frames_are_empty=True
        )
        frame = mask[..., t]
        for z, uid in enumerate(uids):
            header = images[uid]
            along, down = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
            between_rows, between_columns = map(float, header.PixelSpacing)
            heart = rng.permutation(np.argwhere(pixels[z]))[:10]
            for row_, column in [*heart.tolist(), *rng.integers(0, 256, (5, 2)).tolist()]:
                place = np.array(header.ImagePositionPatient, float)  # LPS
                place += column * between_columns * along + row_ * between_rows * down
                index = frame.TransformPhysicalPointToIndex(place.tolist())
                assert index == (column, row_, z)
                assert frame[index] == pixels[z, row_, column]
