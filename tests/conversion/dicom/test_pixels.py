from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from nnunet_ssp.conversion.dicom.headers import read_headers
from nnunet_ssp.conversion.dicom.pixels import read_pixels
from tests.dicom_files import (
    file_of,
    header,
    read,
    save,
    series,
)

SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLosslessSV1,  # which GDCM reads, where pydicom cannot
]


def jpeg_frames(stored: np.ndarray, folder: Path) -> list[bytes]:
    """Each frame as GDCM compresses it."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(folder / "compressed.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    frames = []
    for frame in stored:
        writer.Execute(sitk.GetImageFromArray(frame[None]))
        dataset = pydicom.dcmread(writer.GetFileName())
        frames.append(next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)))
    return frames


def write(file: Path, stored: np.ndarray, syntax: UID, bits: int, **tags: object) -> None:
    """Write frames of signed or unsigned integers whose low bits are stored."""
    dataset = header(BitsStored=bits, HighBit=bits - 1, **tags)
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.Rows, dataset.Columns = stored.shape[1:]
    dataset.NumberOfFrames = len(stored)
    if len(stored) > 1:
        dataset.SOPClassUID = EnhancedMRImageStorage
    low = stored.view(np.uint16) & np.uint16(2**bits - 1)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == JPEGLosslessSV1:
        dataset.PixelData = encapsulate(jpeg_frames(low, file.parent))
        dataset["PixelData"].is_undefined_length = True
    else:
        dataset.PixelData = low.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    if syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(RLELossless, generate_instance_uid=False)
    if syntax == ExplicitVRBigEndian:
        pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=False)
    else:
        save(file, dataset)


def pixels(file: Path) -> np.ndarray:
    images, _ = read_headers([file])
    return np.stack(list(read_pixels(images).values()))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("n_frames", [1, 3])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
def test_monochrome1_is_inverted_once(
    tmp_path: Path, syntax: UID, n_frames: int, signed: bool, bits: int
):
    values = np.random.default_rng(0).integers(0, 4000, (n_frames, 6, 5))
    stored = (values - 2000).astype(np.int16) if signed else values.astype(np.uint16)
    inverted = -1 - stored if signed else np.uint16(2**bits - 1) - stored
    for photometric, written in (("MONOCHROME2", stored), ("MONOCHROME1", inverted)):
        write(tmp_path / photometric, written, syntax, bits, PhotometricInterpretation=photometric)
        read = pixels(tmp_path / photometric)
        assert read.dtype == stored.dtype
        assert np.array_equal(read, stored)


def test_the_rescale_slope_comes_after_the_inversion(tmp_path: Path):
    stored = np.arange(30, dtype=np.uint16).reshape(1, 6, 5)
    tags = {"RescaleSlope": 2, "RescaleIntercept": -5, "PhotometricInterpretation": "MONOCHROME1"}
    write(tmp_path / "a", stored, JPEGLosslessSV1, 16, **tags)
    assert np.array_equal(pixels(tmp_path / "a"), 2.0 * (65535 - stored.astype(int)) - 5)


def test_unused_bits_are_no_values(tmp_path: Path):
    """Old consoles keep an overlay in the bits above those stored."""
    stored = np.arange(30, dtype=np.uint16).reshape(1, 6, 5)
    write(tmp_path / "a", stored, ExplicitVRLittleEndian, 12)
    dataset = pydicom.dcmread(tmp_path / "a")
    dataset.PixelData = (stored | 0x8000).tobytes()
    save(tmp_path / "a", dataset)
    assert np.array_equal(pixels(tmp_path / "a"), stored)


def test_an_image_without_pixels(tmp_path: Path):
    save(tmp_path / "a", header(Rows=6, Columns=5))
    with pytest.raises(ValueError, match=r"a: the pixels cannot be read \(there are none\)"):
        pixels(tmp_path / "a")


def test_sizes_with_another_vr(tmp_path: Path):
    stored = np.arange(30, dtype=np.uint16).reshape(1, 6, 5)
    write(tmp_path / "a", stored, ExplicitVRLittleEndian, 16)
    dataset = pydicom.dcmread(tmp_path / "a")
    for keyword, text in (("Rows", "6"), ("Columns", "5 "), ("BitsAllocated", "16")):
        tag = dataset[keyword].tag
        del dataset[keyword]
        dataset.add_new(tag, "LO", text)
    save(tmp_path / "a", dataset)
    assert np.array_equal(pixels(tmp_path / "a"), stored)


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
