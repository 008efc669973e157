"""Miniature DICOM series for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from nnunet_ssp.conversion.dicom.short_axis import ShortAxis, read_short_axis

ROWS, COLUMNS = 6, 5
SPACING = (1.5, 1.25)  # mm between rows, between columns
GAP = 8.0  # mm between slices
FRAMES = 10

# The normal of the short axis, LPS+, runs along the heart from base to apex; along a row is at right angles to it.
NORMAL = np.array([1, -1, -1]) / np.sqrt(3)
ROW = np.array([1, 1, 0]) / np.sqrt(2)
SHORT_AXIS = (*ROW, *np.cross(NORMAL, ROW))
FOUR_CHAMBER = (*NORMAL, *ROW)
TWO_CHAMBER = (*NORMAL, *np.cross(NORMAL, ROW))
ORIGIN = np.array([-20.0, 30.0, 40.0])


def header(**tags: Any) -> Dataset:
    """An MR image without geometry and pixels."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "MR"
    dataset.PatientName = "Secret^Name"
    dataset.PatientID = "P1"
    dataset.PatientBirthDate = "19010203"
    dataset.StudyInstanceUID = "1.2.3"
    dataset.Manufacturer = "Maker"
    dataset.ManufacturerModelName = "Model"
    dataset.MagneticFieldStrength = 1.5
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    set_tags(dataset, **tags)
    return dataset


def set_tags(dataset: Dataset, **tags: Any) -> None:
    """Set values; None removes one."""
    with pydicom.config.disable_value_validation():
        for keyword, value in tags.items():
            dataset.pop(keyword, None)  # an element keeps the strictness it was made with
            if value is not None:
                setattr(dataset, keyword, value)


def write(file: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """Write an image `(rows, columns)`, or the frames `(frames, rows, columns)` of an enhanced file."""
    dataset = header(**tags)
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.PixelData = pixels.astype("<u2").tobytes()
    return save(file, dataset)


def save(file: Path, dataset: Dataset) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with pydicom.config.disable_value_validation():
        dataset.save_as(file)
    return file


def edit(file: Path, **tags: Any) -> None:
    """Change the header of a file."""
    dataset = pydicom.dcmread(file)
    set_tags(dataset, **tags)
    save(file, dataset)


def series(
    folder: Path,
    places: Sequence[float] = (0, 1, 2, 3),
    frames: int = FRAMES,
    directions: Sequence[float] = SHORT_AXIS,
    uid: str = "1.2.3.4",
    number: int = 4,
    shape: tuple[int, int] = (ROWS, COLUMNS),
    time: str = "101500",
    prefix: str = "",
    **tags: Any,
) -> np.ndarray:
    """Write a series of one image a file, the files' names in no order.

    Args:
        folder: Where to.
        places: Of the slices, in gaps between slices from the origin along the normal.
        frames: Of each slice.
        directions: ImageOrientationPatient.
        uid: SeriesInstanceUID.
        number: SeriesNumber.
        shape: Rows, columns.
        time: AcquisitionTime.
        prefix: Of the names of the files.
        tags: Further values, or None for none.

    Returns:
        The voxels `(X, Y, Z, T)`.
    """
    rng = np.random.default_rng([number, frames, len(places)])
    voxels = rng.integers(0, 900, (len(places), frames, *shape)).astype(np.uint16)
    names = rng.permutation(len(places) * frames).reshape(len(places), frames)
    normal = np.cross(directions[:3], directions[3:])
    for z, place in enumerate(places):
        for t in range(frames):
            values = {
                "SeriesInstanceUID": uid,
                "SeriesNumber": number,
                "AcquisitionDate": "20200101",
                "AcquisitionTime": time,
                "InstanceNumber": z * frames + t + 1,
                "TriggerTime": 12.5 + 40 * t,
                "ImagePositionPatient": [round(v, 6) for v in ORIGIN + place * GAP * normal],
                "ImageOrientationPatient": [round(v, 8) for v in directions],
                "PixelSpacing": list(SPACING),
            }
            name = f"{prefix or uid + '_'}{names[z, t]}"
            write(folder / name, voxels[z, t], **values | tags)
    return voxels.transpose(3, 2, 0, 1)


def enhanced(
    file: Path, n_slices: int = 4, frames: int = FRAMES, slopes: Sequence[float] = (1.0,)
) -> np.ndarray:
    """Write one enhanced file with all slices and frames, in no order; return `(X, Y, Z, T)`."""
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 900, (n_slices, frames, ROWS, COLUMNS)).astype(np.uint16)
    voxels = np.empty(stored.shape)
    groups, pixels = [], []
    for number in rng.permutation(n_slices * frames):
        z, t = divmod(int(number), frames)
        slope = slopes[number % len(slopes)]
        voxels[z, t] = stored[z, t] * slope
        pixels.append(stored[z, t])
        groups.append(
            nested(
                PlanePositionSequence={
                    "ImagePositionPatient": [round(v, 6) for v in ORIGIN + z * GAP * NORMAL]
                },
                CardiacSynchronizationSequence={"NominalCardiacTriggerDelayTime": 40.0 * t},
                PixelValueTransformationSequence={"RescaleSlope": slope, "RescaleIntercept": 0},
                MRImageFrameTypeSequence={"FrameType": ["ORIGINAL", "PRIMARY", "CINE", "NONE"]},
            )
        )
    shared = nested(
        PlaneOrientationSequence={"ImageOrientationPatient": [round(v, 8) for v in SHORT_AXIS]},
        PixelMeasuresSequence={"PixelSpacing": list(SPACING)},
    )
    write(
        file,
        np.stack(pixels),
        SOPClassUID=pydicom.uid.EnhancedMRImageStorage,
        NumberOfFrames=len(pixels),
        SeriesInstanceUID="1.2.3.9",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
    )
    return voxels.transpose(3, 2, 0, 1)


def nested(**sequences: dict[str, Any]) -> Dataset:
    dataset = Dataset()
    for keyword, values in sequences.items():
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        setattr(dataset, keyword, [item])
    return dataset


def file_of(folder: Path, place: int, frame: int) -> Path:
    """The file of a slice and a frame of `series`."""
    number = place * FRAMES + frame + 1
    (found,) = [f for f in folder.iterdir() if pydicom.dcmread(f).InstanceNumber == number]
    return found


def read(folder: Path) -> ShortAxis:
    """Read the short axis from all files below a folder."""
    return read_short_axis(sorted(f for f in folder.rglob("*") if f.is_file()), folder)


def remove(folder: Path, frames: int, missing: dict[int, set[int]]) -> None:
    """Remove frames of slices, both counted from 0."""
    for file in list(folder.iterdir()):
        z, t = divmod(int(pydicom.dcmread(file).InstanceNumber) - 1, frames)
        if t in missing.get(z, ()):
            file.unlink()
