"""Pixels of MR images in DICOM files of any transfer syntax, as MONOCHROME2."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)

from nnunet_ssp.conversion.dicom.headers import Array, Image
from nnunet_ssp.conversion.dicom.opening import open_dicom, tolerant
from nnunet_ssp.conversion.dicom.values import numbers_of, value_of

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read_pixels(images: Iterable[Image]) -> dict[Image, Array]:
    """Read the pixels of images.

    Returns:
        Arrays `(rows, columns)`, large values bright: integers as stored, or float32 where a rescale slope applies.

    Raises:
        ValueError: A file is truncated or damaged, or its format needs a further package.
    """
    by_file: dict[Path, list[Image]] = {}
    for image in images:
        by_file.setdefault(image.file, []).append(image)
    return {
        image: pixels
        for file, its_images in by_file.items()
        for image, pixels in _read_file(file, its_images).items()
    }


def _read_file(file: Path, images: Sequence[Image]) -> dict[Image, Array]:
    """Read the images of one file.

    pydicom reads everything that is not compressed. For JPEG it needs further packages; without
    them GDCM decodes, which is a part of SimpleITK.
    """
    hint = ""
    try:
        with tolerant():
            module = _pixel_module(open_dicom(file), images[0])
            decoder = get_decoder(module.file_meta.TransferSyntaxUID)
            _check_length(module)
            if decoder.is_available:
                stored = pixel_array(module)
            else:
                # pydicom names modules: "gdcm - requires gdcm>=3.0.10"
                needs = [text.partition("requires ")[2] for text in decoder.missing_dependencies]
                packages = " or ".join(needs).replace("gdcm>", "python-gdcm>")
                hint = f" To read {decoder.UID.name}, install {packages}."
                stored = _decode_with_gdcm(module)
        frames = stored.reshape(-1, *images[0].shape)
        chosen = [frames[image.frame or 0] for image in images]
    except Exception as error:  # damaged pixels raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: the pixels cannot be read ({reason}).{hint}") from error
    rescaled = {}
    for image, frame in zip(images, chosen, strict=True):
        if image.inverted:
            frame = _inverted(frame, int(module.BitsStored))
        if (image.slope, image.intercept) != (1, 0):
            frame = (frame * image.slope + image.intercept).astype(np.float32)
        rescaled[image] = frame
    return rescaled


def _pixel_module(dataset: Dataset, image: Image) -> Dataset:
    """Return the elements that a decoder needs, and no others.

    Decoders treat the others differently: GDCM inverts MONOCHROME1 (wrongly where signed values have
    less than 16 bits) and rescales all frames alike; pydicom does neither.
    """

    def number(keyword: str, default: int) -> int:
        found = numbers_of(value_of(dataset, keyword), 1)
        return int(found[0]) if found else default

    meta = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta else None
    if syntax is None:
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian
        if not implicit:
            syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    module = Dataset()
    module.file_meta = FileMetaDataset()
    module.file_meta.TransferSyntaxUID = UID(str(syntax).strip(" \0"))
    module.Rows, module.Columns = image.shape
    module.SamplesPerPixel = 1
    module.PhotometricInterpretation = "MONOCHROME2"
    module.NumberOfFrames = max(number("NumberOfFrames", 1), 1)
    keyword = next((keyword for keyword in _PIXELS if keyword in dataset), None)
    if keyword is None:
        raise ValueError("there are none")
    module[keyword] = dataset[keyword]
    bits = number("BitsAllocated", 16)
    module.BitsAllocated = bits
    module.BitsStored = number("BitsStored", bits)
    module.HighBit = number("HighBit", module.BitsStored - 1)
    module.PixelRepresentation = number("PixelRepresentation", 0)
    return module


def _check_length(module: Dataset) -> None:
    """Refuse stored values that end too early, as in an unfinished copy."""
    if module.file_meta.TransferSyntaxUID.is_compressed:
        return
    keyword = next(keyword for keyword in _PIXELS if keyword in module)
    needed = module.Rows * module.Columns * module.NumberOfFrames * module.BitsAllocated // 8
    there = len(module[keyword].value)
    if there < needed:
        raise ValueError(f"{there} of {needed} bytes are there: copy the file again")


def _decode_with_gdcm(module: Dataset) -> Array:
    """Return the values as stored, `(frames, rows, columns)`."""
    import SimpleITK as sitk

    kind = MRImageStorage
    if module.NumberOfFrames > 1:
        kind = (
            MultiFrameGrayscaleByteSecondaryCaptureImageStorage
            if module.BitsAllocated == 8
            else MultiFrameGrayscaleWordSecondaryCaptureImageStorage
        )
    module.SOPClassUID = module.file_meta.MediaStorageSOPClassUID = kind
    module.SOPInstanceUID = module.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.dcm"
        module.save_as(file, enforce_file_format=True)
        array: Array = sitk.GetArrayFromImage(sitk.ReadImage(str(file), imageIO="GDCMImageIO"))
    return array


def _inverted(stored: Array, bits: int) -> Array:
    """Swap large and small values within the range that the bits allow, as PS3.3 C.7.6.3.1.2 defines MONOCHROME1."""
    if stored.dtype.kind == "f":
        return -stored
    if stored.dtype.kind == "i":
        return np.invert(stored)  # -1 - value
    most: Any = stored.dtype.type(min(2**bits - 1, np.iinfo(stored.dtype).max))
    if stored.max() > most:
        most = stored.dtype.type(np.iinfo(stored.dtype).max)
    inverted: Array = most - stored
    return inverted
