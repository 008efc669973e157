"""A cine has the same voxels at the same places, however a console or an archive stored it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from nnunet_ssp.conversion.dicom.short_axis import read_short_axis
from tests.dicom_files import (
    COLUMNS,
    GAP,
    NORMAL,
    ORIGIN,
    ROWS,
    SHORT_AXIS,
    SPACING,
    edit,
    nested,
    write,
)


@dataclass
class Storage:
    """Form in which a cine of (Z, T) images is stored."""

    n_slices: int
    n_frames: int
    seed: int
    # Content of one file: all, slice or phase; empty for classic files.
    enhanced: str
    clock: str
    # Level that has UIDs of its own.
    uids: str
    # Kind of these UIDs.
    which: str
    apex_first: bool
    preamble: bool
    syntax: str
    inverted: bool
    signed: bool
    bits: int
    slope: float
    spelling: str
    copies: int


def storages() -> st.SearchStrategy[Storage]:
    return st.builds(
        Storage,
        n_slices=st.integers(3, 5),
        n_frames=st.integers(10, 13),
        seed=st.integers(0, 2**16),
        enhanced=st.sampled_from(["", "", "all", "slice", "phase"]),
        clock=st.sampled_from(
            ["trigger", "temporal", "dimension", "acquired", "number", "content"]
        ),
        uids=st.sampled_from(["stack", "slice", "frame", "file"]),
        which=st.sampled_from(["study", "series", "both"]),
        apex_first=st.booleans(),
        preamble=st.booleans(),
        syntax=st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless]),
        inverted=st.booleans(),
        signed=st.booleans(),
        bits=st.sampled_from([12, 16]),
        slope=st.sampled_from([1.0, 0.25]),
        spelling=st.sampled_from(["", "UT", "comma", "brackets", "bytes", "blanks"]),
        copies=st.sampled_from([0, 0, 3]),
    )


def times(how: Storage, z: int, t: int) -> dict[str, Any]:
    """The tags that order the frames, and others that do not."""
    number = z * how.n_frames + t + 1
    wrong = 500 - number  # numbers against the order of time
    tags: dict[str, Any] = {
        "AcquisitionDate": "20200101",
        "AcquisitionTime": f"1015{z:02d}",
        "InstanceNumber": wrong,
        "TriggerTime": None,
        "ContentTime": None,
    }
    if how.clock == "trigger":
        tags["TriggerTime"] = round(12.5 + 40 * t, 1)
    elif how.clock in ("temporal", "dimension"):
        tags["TemporalPositionIdentifier"] = t + 1
    elif how.clock == "acquired":
        tags["AcquisitionTime"] = f"1015{z:02d}.{30 * t:03d}"
    elif how.clock == "number":
        tags["InstanceNumber"] = number
    else:
        tags |= {"InstanceNumber": None, "ContentTime": f"1020{z:02d}.{30 * t:03d}"}
    return tags


def uids(how: Storage, z: int, t: int) -> dict[str, Any]:
    own = {"stack": "", "slice": f".{z}", "frame": f".{t}", "file": f".{z}.{t}"}[how.uids]
    study = f"1.2{own}" if how.which in ("study", "both") else "1.2"
    series = f"1.3{own}" if how.which in ("series", "both") else "1.3"
    return {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SeriesNumber": 4}


def stored(how: Storage, voxels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Stored values and tags that mean these voxels."""
    values = voxels.astype(np.int64)
    if how.signed:
        values = -1 - values if how.inverted else values
    elif how.inverted:
        values = 2**how.bits - 1 - values
    tags = {
        "BitsStored": how.bits,
        "HighBit": how.bits - 1,
        "PixelRepresentation": int(how.signed),
        "PhotometricInterpretation": "MONOCHROME1" if how.inverted else "MONOCHROME2",
        "RescaleSlope": how.slope,
        "RescaleIntercept": 0,
    }
    return values & (2**how.bits - 1), tags


def spelled(how: Storage, values: list[float]) -> str:
    texts = [f"{value:.6f}" for value in values]
    if how.spelling == "comma":
        texts = [text.replace(".", ",") for text in texts]
    joined = {"blanks": " \\ ", "brackets": ", "}.get(how.spelling, "\\").join(texts)
    return f"[{joined}]" if how.spelling == "brackets" else f"{joined} " * bool(joined)


def spell(file: Path, how: Storage) -> None:
    """Write the spacing in the way of somebody's converter."""
    dataset = pydicom.dcmread(file)
    values = [float(value) for value in dataset.PixelSpacing]
    del dataset.PixelSpacing
    text = spelled(how, values)
    if how.spelling == "bytes":
        dataset.add_new(0x00280030, "OB", text.encode() + b" " * (len(text) % 2))
    else:
        dataset.add_new(0x00280030, "UT", text)
    dataset.save_as(file)


def classic(folder: Path, how: Storage, voxels: np.ndarray) -> list[Path]:
    files = []
    values, pixel_tags = stored(how, voxels)
    names = np.random.default_rng(how.seed).permutation(how.n_slices * how.n_frames)
    for number, (z, t) in enumerate(np.ndindex(how.n_slices, how.n_frames)):
        file = folder / f"im{names[number]:04d}"
        position = [round(v, 6) for v in ORIGIN + z * GAP * NORMAL]
        tags = {"ImagePositionPatient": position, "PixelSpacing": list(SPACING)}
        tags["ImageOrientationPatient"] = [round(v, 8) for v in SHORT_AXIS]
        tags |= times(how, z, t) | uids(how, z, t) | pixel_tags
        files.append(write(file, values[z, t], **tags))
    return files


def enhanced(folder: Path, how: Storage, voxels: np.ndarray) -> list[Path]:
    values, pixel_tags = stored(how, voxels)
    rng = np.random.default_rng(how.seed)
    every = [(z, t) for z in range(how.n_slices) for t in range(how.n_frames)]
    contents = {
        "all": [every],
        "slice": [[(z, t) for t in range(how.n_frames)] for z in range(how.n_slices)],
        "phase": [[(z, t) for z in range(how.n_slices)] for t in range(how.n_frames)],
    }[how.enhanced]
    files = []
    for number, frames in enumerate(contents):
        frames = [frames[i] for i in rng.permutation(len(frames))]
        groups = []
        for z, t in frames:
            groups.append(
                nested(
                    PlanePositionSequence={
                        "ImagePositionPatient": [round(v, 6) for v in ORIGIN + z * GAP * NORMAL]
                    },
                    FrameContentSequence={"DimensionIndexValues": [1, z + 1, t + 1]}
                    | ({"TemporalPositionIndex": t + 1} if how.clock == "temporal" else {}),
                    **(
                        {
                            "CardiacSynchronizationSequence": {
                                "NominalCardiacTriggerDelayTime": 40.0 * t
                            }
                        }
                        if how.clock == "trigger"
                        else {}
                    ),
                )
            )
        dimensions = []
        for pointer in (0x00209056, 0x00209057, 0x00209128):
            dimension = pydicom.Dataset()
            dimension.DimensionIndexPointer = pointer
            dimensions.append(dimension)
        shared = nested(
            PlaneOrientationSequence={"ImageOrientationPatient": [round(v, 8) for v in SHORT_AXIS]},
            PixelMeasuresSequence={"PixelSpacing": list(SPACING)},
            PixelValueTransformationSequence={"RescaleSlope": how.slope, "RescaleIntercept": 0},
        )
        z, t = frames[0] if how.enhanced != "all" else (0, 0)
        tags = uids(how, z, t) | pixel_tags | {"RescaleSlope": None, "RescaleIntercept": None}
        file = folder / f"en{rng.integers(1000):03d}-{number}"
        write(
            file,
            np.stack([values[z, t] for z, t in frames]),
            SOPClassUID=pydicom.uid.EnhancedMRImageStorage,
            NumberOfFrames=len(frames),
            InstanceNumber=number + 1,
            AcquisitionDateTime="20200101101500",
            DimensionIndexSequence=dimensions,
            SharedFunctionalGroupsSequence=[shared],
            PerFrameFunctionalGroupsSequence=groups,
            **tags,
        )
        files.append(file)
    return files


def pack(file: Path, how: Storage) -> None:
    """Write the file in its transfer syntax, with or without preamble."""
    dataset = pydicom.dcmread(file)
    if how.syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(file)
    elif how.preamble:
        dataset.file_meta.TransferSyntaxUID = how.syntax
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    else:
        implicit = how.syntax == ImplicitVRLittleEndian
        del dataset.file_meta
        dataset.preamble = None
        pydicom.dcmwrite(
            file, dataset, enforce_file_format=False, implicit_vr=implicit, little_endian=True
        )


def possible(how: Storage) -> bool:
    """Whether the header tells the order of frames and which belong together."""
    if how.enhanced:
        return how.clock in ("trigger", "temporal", "dimension")
    # Without phases, only one series says that images of one time are one breath-hold.
    return how.clock in ("trigger", "temporal", "dimension") or how.uids in ("stack", "slice")


@settings(max_examples=8, deadline=None, suppress_health_check=[*HealthCheck])
@given(how=storages())
def test_some_storages_are_the_same_cine(tmp_path_factory: pytest.TempPathFactory, how: Storage):
    check_storage(tmp_path_factory, how)


@pytest.mark.slow
@pytest.mark.heavy
@settings(max_examples=50, deadline=None, suppress_health_check=[*HealthCheck])
@given(how=storages())
def test_any_storage_is_the_same_cine(tmp_path_factory: pytest.TempPathFactory, how: Storage):
    check_storage(tmp_path_factory, how)


def check_storage(tmp_path_factory: pytest.TempPathFactory, how: Storage) -> None:
    if not possible(how):
        return
    if how.enhanced == "phase" and how.clock == "dimension":
        how.clock = "trigger"
    folder = tmp_path_factory.mktemp("any")
    shape = (how.n_slices, how.n_frames, ROWS, COLUMNS)
    voxels = np.random.default_rng(how.seed).integers(0, 900, shape)
    files = (enhanced if how.enhanced else classic)(folder, how, voxels)
    if how.spelling and not how.enhanced:
        for file in files:
            spell(file, how)
    for file in files:
        pack(file, how)
    for number, file in enumerate(files[: how.copies]):
        copy = folder / f"copy{number}"
        copy.write_bytes(file.read_bytes())
        if how.preamble and how.syntax != RLELossless:
            edit(copy, SOPInstanceUID="7.7", SeriesInstanceUID="7.8")
    stack = read_short_axis(sorted(folder.iterdir()), folder)
    expected = np.transpose(voxels, (3, 2, 0, 1)) * how.slope
    assert np.array_equal(stack.voxels, expected), how
    assert np.allclose(np.linalg.norm(stack.affine[:3, :3], axis=0), [*SPACING[::-1], GAP])
    assert np.allclose(stack.affine[:3, 3], ORIGIN * [-1, -1, 1], atol=1e-4)
    assert ("MONOCHROME1" in str(stack.notes)) == how.inverted
