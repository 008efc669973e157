"""MR images in DICOM files: their headers, in any order and of any quality, and their pixels.

An image is a file, or a frame of an enhanced file. Formally invalid values, as de-identification leaves them, are
taken as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, pixel_array

Array = npt.NDArray[Any]

NO_POSITION = "no slice position"

_HEADER = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "PatientID",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "MagneticFieldStrength",
    "ImageType",
    "ComplexImageComponent",
    "ScanningSequence",
    "SequenceVariant",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "TriggerTime",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, eq=False)
class Image:
    """One 2D image: a file, or a frame of an enhanced one."""

    file: Path
    frame: int | None  # within an enhanced file
    uid: str
    study: str
    series: tuple[str, str]
    patient: str
    number: float | None  # InstanceNumber, or the frame
    acquired: str  # date and time; as text they sort by time
    trigger: float | None  # ms after the R wave
    position: tuple[float, ...]  # mm, LPS+, of the first pixel
    directions: tuple[float, ...]  # along a row, along a column
    spacing: tuple[float, ...]  # mm, between rows, between columns
    shape: tuple[int, int]  # rows, columns
    sequence: str
    slope: float
    intercept: float
    scanner: tuple[str, str, str]
    problem: str  # why it cannot be part of a stack, or empty

    @cached_property
    def axes(self) -> Array:
        """Rows: unit vectors along a row, along a column, and across the image; LPS+."""
        along = np.reshape(self.directions, (2, 3)).astype(float)
        return np.vstack([along, np.cross(*along)])


def read_headers(files: Iterable[Path]) -> tuple[list[Image], list[str]]:
    """Read the headers of all images among the files.

    Returns:
        The images, each once, and notes on the files that are none.

    Raises:
        ValueError: The system cannot read a file.
    """
    images = []
    unusable: dict[str, list[Path]] = {}
    for file in files:
        try:
            found = _read_images(file)
        except OSError as error:
            raise _unreadable(file, error) from error
        except pydicom.errors.InvalidDicomError:
            unusable.setdefault("not DICOM", []).append(file)
        except Exception:  # what a damaged header raises depends on the place of the damage
            unusable.setdefault("with a damaged header", []).append(file)
        else:
            images += found
            if not found:
                unusable.setdefault("without an image", []).append(file)
    # The same image under two names; de-identified files may all have the same UID.
    unique = {
        (i.uid, i.series, i.number, i.frame, i.position, i.trigger, i.acquired): i for i in images
    }
    notes = [
        f"{count_of(len(paths), 'file')} {what}, the first {paths[0].name}"
        for what, paths in unusable.items()
    ]
    if copies := len(images) - len(unique):
        notes.append(f"{copies} images are there twice; used once")
    return list(unique.values()), notes


def patient_id(file: Path) -> str | None:
    """The PatientID of a DICOM image, which may be empty; None for any other file.

    Raises:
        ValueError: The system cannot read the file.
    """
    try:
        images = _read_images(file)
    except OSError as error:
        raise _unreadable(file, error) from error
    except Exception:  # see read_headers
        return None
    return images[0].patient if images else None


def _unreadable(file: Path, error: OSError) -> ValueError:
    """Of the permissions, the disk or the network: no fault of the file."""
    return ValueError(f"{file}: cannot be read ({error.strerror or error}).")


@contextmanager
def _tolerant() -> Iterator[None]:
    """Take formally invalid values, such as the UIDs of de-identified files, as they are."""
    with pydicom.config.disable_value_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield


def _read_images(file: Path) -> list[Image]:
    """The images of a file by their headers: one, or each of an enhanced file, or none."""
    with _tolerant():
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*_HEADER])
        if not dataset.get("Rows") or not dataset.get("Columns"):
            kind = dataset.get("SOPClassUID")
            if kind is None or "Image Storage" in kind.name:
                raise EOFError(f"{file}: the header ends too early.")
            return []  # a report, a presentation state, a DICOMDIR
        shared = dataset.get("SharedFunctionalGroupsSequence") or []
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
        n_frames = int(dataset.get("NumberOfFrames") or 1)
        images = []
        for frame in range(n_frames):
            groups = [*per_frame[frame : frame + 1], *shared]
            # An enhanced file spreads an image's header over the items of nested sequences.
            items = [e.value[0] for group in groups for e in group if e.VR == "SQ" and e.value]
            images.append(_read_image(file, None if n_frames == 1 else frame, [*items, dataset]))
    return images


def _read_image(file: Path, frame: int | None, datasets: Sequence[Dataset]) -> Image:
    """Read an image's header from the first of the datasets that has a value."""

    def values(*keywords: str) -> list[Any]:
        for keyword in keywords:
            for dataset in datasets:
                try:
                    found = dataset.get(keyword)
                except Exception:  # text that is no number, ...: as good as no value
                    continue
                if found is not None and found != "":
                    return [found] if isinstance(found, str | int | float) else [*found]
        return []

    def text(*keywords: str) -> str:
        return " ".join(map(str, values(*keywords))).strip()

    def numbers(keyword: str, count: int) -> tuple[float, ...]:
        found = tuple(map(float, values(keyword)))
        return found if len(found) == count and np.isfinite(found).all() else ()

    def number(*keywords: str) -> float | None:
        return next((found[0] for keyword in keywords if (found := numbers(keyword, 1))), None)

    position = numbers("ImagePositionPatient", 3)
    directions = numbers("ImageOrientationPatient", 6)
    spacing = numbers("PixelSpacing", 2)
    kinds = {*values("ImageType"), *values("FrameType"), *values("ComplexImageComponent")}
    problem = ""
    if text("Modality") not in ("MR", ""):
        problem = "not MR"
    elif number("SamplesPerPixel") not in (1, None):
        problem = "in colour"
    elif kinds & _NO_MAGNITUDE:
        problem = "not magnitude images"
    elif not position or not _orthonormal(directions):
        problem = NO_POSITION
    elif not spacing or min(spacing) <= 0:
        problem = "no pixel spacing"
    slope = number("RescaleSlope")
    strength = number("MagneticFieldStrength") or 0.0
    strength = strength / 10_000 if strength > 100 else strength  # in old files gauss
    return Image(
        file=file,
        frame=frame,
        uid=text("SOPInstanceUID"),
        study=text("StudyInstanceUID"),
        series=(text("SeriesInstanceUID"), text("SeriesNumber")),
        patient=text("PatientID"),
        number=number("InstanceNumber") if frame is None else frame,
        acquired=text("FrameAcquisitionDateTime", "AcquisitionDateTime")
        or text("AcquisitionDate") + text("AcquisitionTime"),
        trigger=number("NominalCardiacTriggerDelayTime", "TriggerTime"),
        position=position,
        directions=directions,
        spacing=spacing,
        shape=(int(values("Rows")[0]), int(values("Columns")[0])),
        sequence=f"{text('ScanningSequence')} {text('SequenceVariant')}",
        slope=1.0 if slope is None else slope,
        intercept=number("RescaleIntercept") or 0.0,
        scanner=(
            text("Manufacturer"),
            text("ManufacturerModelName"),
            f"{strength:g}" if strength else "",
        ),
        problem=problem,
    )


# Phase contrast (flow) has the slices and frames of a cine, but no anatomy.
_NO_MAGNITUDE = {
    "P",
    "PHASE",
    "PHASE MAP",
    "VELOCITY",
    "VELOCITY MAP",
    "R",
    "REAL",
    "I",
    "IMAGINARY",
}


def _orthonormal(directions: Sequence[float]) -> bool:
    """Whether these are two unit vectors at right angles, to the precision of header texts."""
    if not directions:
        return False
    along = np.reshape(directions, (2, 3))
    return bool(np.allclose(along @ along.T, np.eye(2), atol=0.01))


# --- pixels -----------------------------------------------------------------------------------


def read_pixels(images: Iterable[Image]) -> dict[Image, Array]:
    """Read images.

    Returns:
        Arrays `(rows, columns)`: integers as stored, or float32 where a rescale slope applies.

    Raises:
        ValueError: A file is truncated, damaged, or in a format that needs a further package.
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

    pydicom reads everything that is not compressed, frame by frame also in enhanced files. For
    JPEG it needs further packages; without them GDCM, which comes within SimpleITK, reads single
    images, but rescales all frames of an enhanced file alike.
    """
    hint = ""
    try:
        with _tolerant():
            dataset = pydicom.dcmread(file)
            decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
            if not decoder.is_available:
                # pydicom names modules: "gdcm - requires gdcm>=3.0.10"
                needs = [text.partition("requires ")[2] for text in decoder.missing_dependencies]
                packages = " or ".join(needs).replace("gdcm>", "python-gdcm>")
                hint = f" To read {decoder.UID.name}, install {packages}."
                if images[0].frame is None:
                    return {images[0]: _read_with_gdcm(file)}
                raise RuntimeError("no decoder")
            stored = pixel_array(dataset)
    except Exception as error:  # what damaged pixels raise depends on their format
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: the pixels cannot be read ({reason}).{hint}") from error
    rescaled = {}
    for image in images:
        frame = stored if image.frame is None else stored[image.frame]
        if (image.slope, image.intercept) != (1, 0):
            frame = (frame * image.slope + image.intercept).astype(np.float32)
        rescaled[image] = frame
    return rescaled


def _read_with_gdcm(file: Path) -> Array:
    """An image, already rescaled."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(sitk.ReadImage(str(file), imageIO="GDCMImageIO"))[0]
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def count_of(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" + "s" * (number != 1)
