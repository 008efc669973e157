from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import HTJ2KLossless, JPEGLosslessSV1, RLELossless

from nnunet_ssp.dicom import patient_id, read_headers
from nnunet_ssp.short_axis import ShortAxis, read_short_axis
from tests.dicom_files import (
    enhanced,
    file_of,
    header,
    save,
    series,
)


def read(folder: Path) -> ShortAxis:
    return read_short_axis(sorted(f for f in folder.rglob("*") if f.is_file()), folder)


def test_files_that_are_no_images_are_named(tmp_path: Path):
    series(tmp_path)
    image = file_of(tmp_path, 0, 0)
    (tmp_path / "README.txt").write_text("read me")
    (tmp_path / "empty").write_bytes(b"")
    for name, uid in (
        ("DICOMDIR", "1.2.840.10008.1.3.10"),
        ("SR", "1.2.840.10008.5.1.4.1.1.88.11"),
    ):
        save(tmp_path / name, header(SOPClassUID=uid))
    (tmp_path / "half.dcm").write_bytes(image.read_bytes()[:400])
    assert read(tmp_path).notes == [
        "2 files without an image, the first DICOMDIR",
        "2 files not DICOM, the first README.txt",
        "1 file with a damaged header, the first half.dcm",
    ]
    with pytest.raises(ValueError, match=r"here: no DICOM image here\. .* 1 file not DICOM"):
        read_short_axis([tmp_path / "empty"], tmp_path / "here")


@pytest.mark.parametrize("function", [patient_id, lambda file: read_headers([file])])
def test_what_the_system_cannot_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function
):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pydicom, "dcmread", fail)
    with pytest.raises(ValueError, match=r"one\.dcm: cannot be read \(Input/output error\)"):
        function(tmp_path / "one.dcm")


def test_copies_of_files_are_used_once(tmp_path: Path):
    voxels = series(tmp_path)
    for file in list(tmp_path.iterdir())[:7]:
        shutil.copy(file, tmp_path / f"{file.name} (copy).dcm")
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == ["7 images are there twice; used once"]


def test_truncated_pixels_are_named(tmp_path: Path):
    series(tmp_path)
    bad = file_of(tmp_path, 1, 2)
    bad.write_bytes(bad.read_bytes()[:-21])
    with pytest.raises(ValueError, match=f"{bad.name}: the pixels cannot be read"):
        read(tmp_path)


def test_rescale_slopes_are_applied(tmp_path: Path):
    voxels = series(tmp_path, RescaleSlope=2.5, RescaleIntercept=-3)
    stack = read(tmp_path)
    assert stack.voxels.dtype == np.float32
    assert np.array_equal(stack.voxels, voxels * np.float32(2.5) - 3)


def compress(folder: Path, slope: float = 1) -> None:
    """Replace the pixels by JPEG lossless ones as GDCM writes them."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(folder.parent / "compressed.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        writer.Execute(sitk.GetImageFromArray(dataset.pixel_array))
        compressed = pydicom.dcmread(writer.GetFileName())
        dataset.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
        assert dataset.file_meta.TransferSyntaxUID == JPEGLosslessSV1
        dataset["PixelData"] = compressed["PixelData"]
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0
        save(file, dataset)


@pytest.mark.parametrize("slope", [1, 0.5])
def test_jpeg_needs_no_further_package(tmp_path: Path, slope: float):
    voxels = series(tmp_path / "in", [0, 1, 2])
    compress(tmp_path / "in", slope)
    stack = read(tmp_path / "in")
    assert np.array_equal(stack.voxels, voxels * slope)
    assert stack.voxels.dtype == (np.uint16 if slope == 1 else np.float32)


def test_truncated_jpeg_is_named(tmp_path: Path):
    series(tmp_path / "in", [0, 1, 2])
    compress(tmp_path / "in")
    bad = sorted((tmp_path / "in").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{bad.name}: the pixels cannot be read"):
        read(tmp_path / "in")


def test_run_length_encoding(tmp_path: Path):
    voxels = series(tmp_path, [0, 1, 2])
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        save(file, dataset)
    assert np.array_equal(read(tmp_path).voxels, voxels)


def test_a_missing_package_is_named(tmp_path: Path):
    if get_decoder(HTJ2KLossless).is_available:
        pytest.skip("a package for HTJ2K is installed")
    series(tmp_path, [0, 1, 2])
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
        dataset.PixelData = encapsulate([b"\0" * 60])
        dataset["PixelData"].is_undefined_length = True
        save(file, dataset)
    with pytest.raises(
        ValueError, match=r"the pixels .* JPEG 2000 .*, install .*pylibjpeg-openjpeg"
    ):
        read(tmp_path)


def test_an_enhanced_file_holds_many_images(tmp_path: Path):
    voxels = enhanced(tmp_path / "one.dcm")
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.voxels.dtype == np.uint16
    assert stack.notes == []


def test_each_frame_of_an_enhanced_file_has_its_slope(tmp_path: Path):
    voxels = enhanced(tmp_path / "one.dcm", slopes=[1, 0.25, 3.5])
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.voxels.dtype == np.float32


def test_formally_invalid_values_are_taken_as_they_are(tmp_path: Path):
    voxels = series(
        tmp_path,
        uid="anonymous series",
        StudyInstanceUID="2.00.study",
        SOPInstanceUID="same for all",
        MagneticFieldStrength=15000,
        PatientBirthDate="unknown",
    )
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.field_strength == "1.5"


def test_removed_values_are_empty(tmp_path: Path):
    removed = "Manufacturer ManufacturerModelName MagneticFieldStrength PatientID StudyInstanceUID"
    series(tmp_path, **dict.fromkeys(removed.split()))
    stack = read(tmp_path)
    assert (stack.vendor, stack.scanner, stack.field_strength) == ("", "", "")
