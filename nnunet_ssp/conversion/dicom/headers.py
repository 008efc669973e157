"""Headers of MR images in DICOM files, in any order and of any quality.

An image is a file, or a frame of an enhanced file. Formally invalid values, which de-identification leaves, are taken
as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from nnunet_ssp.console import count_of
from nnunet_ssp.conversion.dicom.opening import open_dicom, tolerant
from nnunet_ssp.conversion.dicom.values import (
    brief,
    day_of,
    numbers_of,
    seconds_of,
    texts_of,
    value_of,
)

Array = npt.NDArray[Any]

NO_POSITION = "no slice position"
# mm; other sizes of pixels, and places farther away in the scanner, come from a wrong unit or from damage.
PIXEL_SIZES = (0.1, 25.0)
FARTHEST = 1e4
SLOPES = (1e-6, 1e6)
INTERVALS = (200.0, 3000.0)  # ms; 300 to 20 beats per minute

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
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "ContentTime",
    "TriggerTime",
    "HeartRate",
    "NominalInterval",
    "TemporalPositionIdentifier",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "NumberOfFrames",
    "RescaleSlope",
    "RescaleIntercept",
    "DimensionIndexSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

# Attributes that order the frames of a slice, to which DimensionIndexSequence may point.
_TIMES = {
    tag_for_keyword(keyword)
    for keyword in (
        "TemporalPositionIndex",
        "TemporalPositionTimeOffset",
        "TemporalPositionIdentifier",
        "NominalCardiacTriggerDelayTime",
        "ActualCardiacTriggerDelayTime",
        "NominalPercentageOfCardiacPhase",
        "TriggerTime",
        "FrameReferenceDateTime",
        "FrameAcquisitionDateTime",
    )
}


@dataclass(frozen=True, eq=False)
class Image:
    """One 2D image: a file, or a frame of an enhanced one."""

    file: Path
    # Within an enhanced file
    frame: int | None
    uid: str
    study: str
    series: tuple[str, str]
    patient: str
    # InstanceNumber, and after it the frame
    number: float | None
    # As text, of the acquisition or else of the study
    day: str
    # s, of the acquisition; continues over midnight where the header has the date
    when: float | None
    # ms after the R wave
    trigger: float | None
    # ms from one R wave to the next
    interval: float | None
    # Number of the phase
    temporal: float | None
    # s, when the image was made
    content: float | None
    # The DimensionIndexValues of a frame
    dimensions: tuple[str, ...]
    # mm, LPS+, of the first pixel
    position: tuple[float, ...]
    # Along a row, along a column
    directions: tuple[float, ...]
    # mm, between rows, between columns
    spacing: tuple[float, ...]
    # mm, from slice to slice where the header has it
    thickness: float | None
    # (rows, columns)
    shape: tuple[int, int]
    sequence: str
    slope: float
    intercept: float
    # MONOCHROME1: large stored values are dark
    inverted: bool
    scanner: tuple[str, str, str]
    # Why it cannot be part of a stack, or empty
    problem: str
    # The problem is a fault of the header, not the kind of the image
    faulty: bool
    # Times and numbers that are there and cannot be read
    unread: tuple[str, ...]

    @cached_property
    def axes(self) -> Array:
        """Unit vectors, one a row: along a row, along a column, and across the image; LPS+."""
        along = np.reshape(self.directions, (2, 3)).astype(float)
        return np.vstack([along, np.cross(*along)])


def read_headers(files: Iterable[Path]) -> tuple[list[Image], list[str]]:
    """Read the headers of all images among the files.

    Returns:
        The images, and notes on files without an image and on unreadable values.

    Raises:
        ValueError: The system cannot read a file.
    """
    images = []
    unusable: dict[str, list[Path]] = {}
    for file in files:
        try:
            found = _images_of(file)
        except OSError as error:
            raise _unreadable(file, error) from error
        except pydicom.errors.InvalidDicomError:
            unusable.setdefault("not DICOM", []).append(file)
        except Exception:  # damaged headers raise anything
            unusable.setdefault("with a damaged header", []).append(file)
        else:
            images += found
            if not found:
                unusable.setdefault("without an image", []).append(file)
    notes = [
        f"{count_of(len(paths), 'file')} {what}, the first {paths[0].name}"
        for what, paths in unusable.items()
    ]
    unread = Counter(text for image in images for text in image.unread)
    notes += [f"{text}, in {count_of(number, 'image')}" for text, number in unread.most_common(5)]
    return images, notes


def patient_id(file: Path) -> str | None:
    """Return the PatientID of a DICOM image, which may be empty; None for any other file.

    Raises:
        ValueError: The system cannot read the file.
    """
    found = first_image(file)
    return found.patient if found else None


def first_image(file: Path) -> Image | None:
    """Return the first image of a file; None for a file that holds none.

    Raises:
        ValueError: The system cannot read the file.
    """
    try:
        images = _images_of(file)
    except OSError as error:
        raise _unreadable(file, error) from error
    except Exception:  # see read_headers
        return None
    return images[0] if images else None


def _unreadable(file: Path, error: OSError) -> ValueError:
    """Return the error for permissions, disk or network, which are no fault of the file."""
    return ValueError(f"{file}: cannot be read ({error.strerror or error}).")


# -- images ----------------------------------------------------------------------------------------


def _images_of(file: Path) -> list[Image]:
    """Return the images of a file by their headers: one, each of an enhanced file, or none."""
    with tolerant():
        dataset = open_dicom(file, stop_before_pixels=True, specific_tags=[*_HEADER])
        shape = [numbers_of(value_of(dataset, side), 1) for side in ("Rows", "Columns")]
        if not all(shape) or min(shape) < (1,):
            kind = value_of(dataset, "SOPClassUID")
            if kind is None and not dataset.preamble:
                raise pydicom.errors.InvalidDicomError
            if kind is None or "Image Storage" in getattr(kind, "name", ""):
                raise EOFError(f"{file}: the header ends too early.")
            return []  # a report, a presentation state, a DICOMDIR
        shared = value_of(dataset, "SharedFunctionalGroupsSequence") or []
        per_frame = value_of(dataset, "PerFrameFunctionalGroupsSequence") or []
        declared = numbers_of(value_of(dataset, "NumberOfFrames"), 1)
        n_frames = max(int(declared[0]), 1) if declared else 1
        most = len(per_frame) or _most_frames(dataset, file, int(shape[0][0] * shape[1][0]))
        problem = ""
        if n_frames > most:
            problem = f"NumberOfFrames (={n_frames}), but at most {most} in the file"
            n_frames = 1
        temporal = _temporal_dimension(dataset)
        images = []
        for frame in range(n_frames):
            groups = [*per_frame[frame : frame + 1], *shared]
            # An enhanced file spreads an image's header over the items of nested sequences.
            items = [e.value[0] for group in groups for e in _elements(group) if e.value]
            number = None if n_frames == 1 else frame
            header = _Header([*items, dataset])
            images.append(_make_image(file, number, header, temporal, problem))
    return images


def _most_frames(dataset: Dataset, file: Path, pixels: int) -> int:
    """Return the largest number of frames of this size that the file can hold."""
    size = file.stat().st_size
    syntax = dataset.file_meta.get("TransferSyntaxUID") if "file_meta" in vars(dataset) else None
    if syntax is not None and syntax.is_compressed:
        return max(size // 16, 1)  # an item header and the least that a decoder needs
    bits = numbers_of(value_of(dataset, "BitsAllocated"), 1) or (8.0,)
    return max(int(8 * size // (pixels * max(bits[0], 1))), 1)


def _elements(group: Dataset) -> Iterator[Any]:
    """Yield the sequences of a functional group."""
    for tag in list(group.keys()):
        try:
            element = group[tag]
        except Exception:  # see value_of
            continue
        if element.VR == "SQ":
            yield element


def _temporal_dimension(dataset: Dataset) -> int | None:
    """Return the place of time among the DimensionIndexValues of an enhanced file."""
    for number, item in enumerate(value_of(dataset, "DimensionIndexSequence") or []):
        if value_of(item, "DimensionIndexPointer") in _TIMES:
            return number
    return None


class _Header:
    """The header of one image, spread over datasets; the first that has a value counts."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = datasets
        self.unread: dict[str, str] = {}  # by keyword, in words

    def values(self, keyword: str) -> Iterator[Any]:
        found = (value_of(dataset, keyword) for dataset in self.datasets)
        return (value for value in found if value is not None)

    def texts(self, keyword: str) -> list[str]:
        return next(([*filter(None, texts_of(value))] for value in self.values(keyword)), [])

    def text(self, *keywords: str) -> str:
        found = (" ".join(self.texts(keyword)).strip() for keyword in keywords)
        return next(filter(None, found), "")

    def numbers(self, keyword: str, count: int) -> tuple[float, ...]:
        wanted = "a number" if count == 1 else f"{count} numbers"
        for value in self.values(keyword):
            if found := numbers_of(value, count):
                self.unread.pop(keyword, None)
                return found
            if "".join(texts_of(value)):
                self.unread.setdefault(keyword, f"{keyword} (={brief(value)}) is not {wanted}")
        return ()

    def number(self, *keywords: str) -> float | None:
        found = (self.numbers(keyword, 1) for keyword in keywords)
        return next((number[0] for number in found if number), None)


def _make_image(
    file: Path, frame: int | None, header: _Header, temporal: int | None, problem: str
) -> Image:
    text, number, numbers = header.text, header.number, header.numbers
    position = numbers("ImagePositionPatient", 3)
    directions = numbers("ImageOrientationPatient", 6)
    spacing = numbers("PixelSpacing", 2)
    slope, intercept = number("RescaleSlope"), number("RescaleIntercept")
    slope = 1.0 if slope is None else slope
    faults = [problem] if problem else []
    faults += [header.unread[keyword] for keyword in _ESSENTIAL if keyword in header.unread]
    if not position or not _orthonormal(directions):
        faults.append(NO_POSITION)
    elif max(map(abs, position)) > FARTHEST:
        faults.append(f"ImagePositionPatient (={brief(position)}), no place in a scanner")
    elif not spacing:
        faults.append("no pixel spacing")
    elif not PIXEL_SIZES[0] <= min(spacing) <= max(spacing) <= PIXEL_SIZES[1]:
        faults.append(f"PixelSpacing (={brief(spacing)}), in mm no image of a heart")
    if not SLOPES[0] <= abs(slope) <= SLOPES[1]:
        faults.append(f"RescaleSlope (={slope:g}), no usable number")
    kind = _other_kind(header)
    strength = number("MagneticFieldStrength") or 0.0
    strength = strength / 10_000 if strength > 100 else strength  # in old files gauss
    instance = number("InstanceNumber")
    if frame is not None:
        instance = (instance or 0) * 1e6 + frame
    day, when = _acquired(header)
    return Image(
        file=file,
        frame=frame,
        uid=text("SOPInstanceUID"),
        study=text("StudyInstanceUID"),
        series=(text("SeriesInstanceUID"), text("SeriesNumber")),
        patient=text("PatientID"),
        number=instance,
        day=day,
        when=when,
        trigger=number(
            "NominalCardiacTriggerDelayTime", "TriggerTime", "ActualCardiacTriggerDelayTime"
        ),
        interval=_interval(header),
        temporal=_phase(header, temporal),
        content=seconds_of(text("ContentTime")),
        dimensions=tuple(header.texts("DimensionIndexValues")),
        position=position,
        directions=directions,
        spacing=spacing,
        thickness=number("SpacingBetweenSlices", "SliceThickness"),
        shape=(int(numbers("Rows", 1)[0]), int(numbers("Columns", 1)[0])),
        sequence=f"{text('ScanningSequence')} {text('SequenceVariant')}",
        slope=slope,
        intercept=intercept or 0.0,
        inverted=text("PhotometricInterpretation").upper() == "MONOCHROME1",
        scanner=(
            text("Manufacturer"),
            text("ManufacturerModelName"),
            f"{strength:g}" if strength else "",
        ),
        problem=kind or next(iter(faults), ""),
        faulty=not kind and bool(faults),
        unread=tuple(why for keyword, why in header.unread.items() if keyword not in _ESSENTIAL),
    )


# Without these an image has no place, or its values have another meaning.
_ESSENTIAL = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
)


# As DICOM writes it, or with the separators of ISO 8601; a time zone may follow.
_DATE_AND_TIME = re.compile(
    r"(?P<day>\d{4}[-./:]?\d\d[-./:]?\d\d)([T ]?(?P<time>\d\d[\d:]*([.,]\d+)?))?", re.ASCII
)


def _acquired(header: _Header) -> tuple[str, float | None]:
    """Return the day of an image as text, and its time in seconds."""
    both = _DATE_AND_TIME.match(header.text("FrameAcquisitionDateTime", "AcquisitionDateTime"))
    day = (both and both["day"]) or header.text("AcquisitionDate")
    seconds = seconds_of((both and both["time"]) or header.text("AcquisitionTime"))
    number = day_of(day)
    when = None
    if number is not None or seconds is not None:
        when = 86400.0 * (number or 0) + (seconds or 0.0)
    return day or header.text("SeriesDate", "StudyDate"), when


def _interval(header: _Header) -> float | None:
    """Return the time from one R wave to the next in ms; None where no heart beats like that."""
    interval = header.number("RRIntervalTimeNominal", "NominalInterval")
    rate = header.number("HeartRate")
    if not interval and rate and rate > 0:
        interval = 60_000 / rate
    for keyword in ("RRIntervalTimeNominal", "NominalInterval", "HeartRate"):
        header.unread.pop(keyword, None)  # no image needs them
    return interval if interval and INTERVALS[0] <= interval <= INTERVALS[1] else None


def _phase(header: _Header, temporal: int | None) -> float | None:
    """Return the number of the phase of a frame or file."""
    index = header.number("TemporalPositionIndex")
    if index is not None:
        return index
    if temporal is not None:
        values = header.texts("DimensionIndexValues")
        if temporal < len(values) and values[temporal].isdecimal():
            return float(values[temporal])
    return header.number("TemporalPositionIdentifier")


def _other_kind(header: _Header) -> str:
    """Say what an image is if it is no magnitude image of MR; empty if it is one."""
    if header.text("Modality") not in ("MR", ""):
        return "not MR"
    colours = header.text("PhotometricInterpretation").upper()
    if header.number("SamplesPerPixel") not in (1, None) or colours not in _GREY:
        return "in colour"
    kinds = ("ImageType", "FrameType", "ComplexImageComponent")
    found = {text for keyword in kinds for text in header.texts(keyword)}
    return "not magnitude images" if found & _NO_MAGNITUDE else ""


_GREY = ("MONOCHROME1", "MONOCHROME2", "")
# Phase contrast (flow) has the slices and frames of a cine, but shows no anatomy.
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
