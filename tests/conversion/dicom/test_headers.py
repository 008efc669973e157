from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import tag_for_keyword

from nnunet_ssp.conversion.dicom.headers import patient_id, read_headers
from nnunet_ssp.conversion.dicom.short_axis import read_short_axis
from tests.dicom_files import (
    GAP,
    NORMAL,
    ORIGIN,
    SHORT_AXIS,
    SPACING,
    enhanced,
    file_of,
    header,
    nested,
    read,
    save,
    series,
    set_tags,
    write,
)


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
    with pytest.raises(
        ValueError, match=r"here: no NIfTI or DICOM image here\. .* 1 file not DICOM"
    ):
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
    assert stack.notes == ["7 images occur twice; used once"]


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


# -- files as consoles and archives write them -----------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"RescaleSlope": 1e30}, r"RescaleSlope \(=1e\+30\), no usable number"),
        ({"RescaleSlope": 0}, r"RescaleSlope \(=0\), no usable number"),
        ({"RescaleSlope": "nan"}, r"RescaleSlope \(=nan\) is not a number"),
        ({"PixelSpacing": [0, 0]}, r"PixelSpacing \(=0\\0\), in mm no image of a heart"),
        ({"PixelSpacing": [1500, 1250]}, r"PixelSpacing \(=1500\\1250\), in mm no image of a h"),
        ({"PixelSpacing": "wide"}, r"PixelSpacing \(=wide\) is not 2 numbers"),
        ({"PixelSpacing": None}, "no pixel spacing"),
        ({"ImagePositionPatient": [1e30, 0, 0]}, r"ImagePositionPatient \(=1e\+30\\0\\0\), no pl"),
        ({"NumberOfFrames": 10**9}, r"NumberOfFrames \(=1000000000\), but at most \d+ in the f"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "in colour"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(tmp_path: Path, tags: dict[str, object], reason: str):
    series(tmp_path, [0, 1, 2])
    for file in tmp_path.iterdir():
        change(file, tags)
    with pytest.raises(ValueError, match=f"left out 1 series of 30 images: {reason}"):
        read(tmp_path)


def change(file: Path, tags: dict[str, object]) -> None:
    """Set values; texts get the VR of a text, whatever the tag's own is."""
    dataset = pydicom.dcmread(file)
    for keyword, value in tags.items():
        if isinstance(value, str) and keyword != "PhotometricInterpretation":
            tag = tag_for_keyword(keyword)
            dataset.pop(keyword, None)
            dataset.add_new(tag, "LO", value)
        else:
            set_tags(dataset, **{keyword: value})
    save(file, dataset)


def test_one_value_that_cannot_be_used_refuses_the_stack(tmp_path: Path):
    series(tmp_path)
    bad = file_of(tmp_path, 1, 2)
    change(bad, {"RescaleSlope": "steep"})
    with pytest.raises(
        ValueError, match=rf"{bad.name}: RescaleSlope \(=steep\) is not a number, unlike others"
    ):
        read(tmp_path)


def test_a_time_that_cannot_be_read_is_named(tmp_path: Path):
    voxels = series(tmp_path)
    for file in tmp_path.iterdir():
        change(file, {"TriggerTime": "early"})
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes[0] == "TriggerTime (=early) is not a number, in 40 images"


# -- the order of enhanced frames ------------------------------------------------------------------


def enhanced_by_index(
    file: Path,
    pointers: list[int],
    index: Callable[[int, int], list[int]],
    order: Sequence[int] | None = None,
    **content: Callable[[int], float],
) -> np.ndarray:
    """Write an enhanced file without trigger delays; return the voxels `(X, Y, Z, T)`."""
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 900, (3, 10, 6, 5)).astype(np.uint16)
    groups, pixels = [], []
    for number in rng.permutation(30) if order is None else order:
        z, t = divmod(int(number), 10)
        values = {keyword: value(t) for keyword, value in content.items()}
        groups.append(
            nested(
                PlanePositionSequence={
                    "ImagePositionPatient": [round(v, 6) for v in ORIGIN + z * GAP * NORMAL]
                },
                FrameContentSequence={"DimensionIndexValues": index(z, t), **values},
            )
        )
        pixels.append(stored[z, t])
    dimensions = [pydicom.Dataset() for _ in pointers]
    for dimension, pointer in zip(dimensions, pointers, strict=True):
        dimension.DimensionIndexPointer = pointer
    shared = nested(
        PlaneOrientationSequence={"ImageOrientationPatient": [round(v, 8) for v in SHORT_AXIS]},
        PixelMeasuresSequence={"PixelSpacing": list(SPACING)},
    )
    write(
        file,
        np.stack(pixels),
        SOPClassUID=pydicom.uid.EnhancedMRImageStorage,
        NumberOfFrames=30,
        DimensionIndexSequence=dimensions,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
    )
    return stored.transpose(3, 2, 0, 1)


IN_STACK, TEMPORAL, TRIGGER, PRIVATE = 0x00209057, 0x00209128, 0x00209153, 0x20051001


@pytest.mark.parametrize("pointer", [TEMPORAL, TRIGGER])
@pytest.mark.parametrize("time_first", [False, True])
def test_the_dimension_of_time_orders_frames(tmp_path: Path, pointer: int, time_first: bool):
    pointers = [pointer, IN_STACK] if time_first else [IN_STACK, pointer]
    voxels = enhanced_by_index(
        tmp_path / "one.dcm",
        pointers,
        lambda z, t: [t + 1, z + 1] if time_first else [z + 1, t + 1],
    )
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert "in the order of their temporal position" in stack.notes[0]


def test_the_temporal_position_index_comes_before_the_dimension(tmp_path: Path):
    voxels = enhanced_by_index(
        tmp_path / "one.dcm",
        [IN_STACK, TEMPORAL],
        lambda z, t: [z + 1, 10 - t],
        TemporalPositionIndex=lambda t: t + 1,
    )
    assert np.array_equal(read(tmp_path).voxels, voxels)


def test_frames_against_a_dimension_that_may_be_time_are_refused(tmp_path: Path):
    file = tmp_path / "one.dcm"
    voxels = enhanced_by_index(file, [IN_STACK, PRIVATE], lambda z, t: [z + 1, t + 1], range(30))
    assert np.array_equal(read(tmp_path).voxels, voxels)
    enhanced_by_index(file, [IN_STACK, PRIVATE], lambda z, t: [z + 1, t + 1], range(29, -1, -1))
    with pytest.raises(ValueError, match="frames without distinct times or numbers"):
        read(tmp_path)
