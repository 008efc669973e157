from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from nnunet_ssp.conversion.dicom.acquisitions import SliceRun, find_runs
from nnunet_ssp.conversion.dicom.headers import Image, read_headers
from nnunet_ssp.conversion.dicom.left_out import (
    difference_from_stack,
    left_out,
    lost_slices,
    name_lost,
)
from nnunet_ssp.conversion.dicom.short_axis import (
    read_short_axis,
)
from tests.dicom_files import (
    FOUR_CHAMBER,
    FRAMES,
    TWO_CHAMBER,
    edit,
    read,
    remove,
    series,
)


def test_other_views_are_left_out_by_geometry(tmp_path: Path):
    voxels = series(tmp_path)
    series(tmp_path, [0], directions=FOUR_CHAMBER, uid="1.1", number=1)
    series(tmp_path, [0], directions=TWO_CHAMBER, uid="1.2", number=2)
    series(tmp_path, range(5), directions=FOUR_CHAMBER, uid="1.3", number=3)
    series(tmp_path, range(3), frames=1, directions=np.eye(3)[:2].ravel(), uid="1.5", number=5)
    series(tmp_path, range(8), frames=1, uid="1.6", number=6)  # late enhancement
    series(tmp_path, range(8), uid="1.7", number=7, ImageType=["ORIGINAL", "PRIMARY", "P"])
    series(tmp_path, range(8), uid="1.8", number=8, Modality="CT")
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == [
        "left out 2 series of 1 slice x 10 frames: long axis",
        "left out 1 series of 3 slices x 1 frame: fewer than 10 frames",
        "left out 1 series of 5 slices x 10 frames: long axis",
        "left out 1 series of 8 slices x 1 frame: fewer than 10 frames",
        "left out 1 series of 80 images: not MR",
        "left out 1 series of 80 images: not magnitude images",
    ]


def test_of_two_studies_one_is_taken(tmp_path: Path):
    """Patient and exam, as hospitals export them: which one was taken is said, and how to take the other."""
    for name in ("baseline", "followup"):
        (tmp_path / name).mkdir()
    series(tmp_path / "baseline")
    changed = {"AcquisitionDate": "20200202", "StudyInstanceUID": "9"}
    later = series(tmp_path / "followup", uid="1.5", number=1, **changed)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, later)
    assert stack.notes == [
        "left out 1 series of 4 slices x 10 frames: another study",
        "several exams: taken is folder followup, left out folder baseline; --series takes another",
    ]


def test_tagging_at_the_same_places_is_no_repetition(tmp_path: Path):
    voxels = series(tmp_path, ScanningSequence="GR", SequenceVariant="SS")
    series(tmp_path, [0, 1, 2], uid="9.9", number=9, ScanningSequence="GR", SequenceVariant="SP")
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert "another sequence" in stack.notes[0]


@pytest.mark.parametrize(
    ("tags", "shape", "what"),
    [
        ({}, (8, 6), "matrix 8 x 6, not 6 x 5"),
        ({"PixelSpacing": [1.6, 1.6]}, (6, 5), "another pixel spacing"),
        ({"SequenceVariant": "SP"}, (6, 5), "another sequence"),
    ],
)
def test_slices_of_another_kind(tmp_path: Path, tags: dict[str, object], shape, what: str):
    voxels = series(tmp_path, range(4))
    series(tmp_path, [4], uid="1.5", number=5, shape=shape, **tags)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert what in stack.notes[0]
    series(tmp_path, [5, 6, 7], uid="1.6", number=6)
    with pytest.raises(
        ValueError, match=rf"slices 4 and 5 .* The slice between \(.*1\.5_\d+\) has {what}"
    ):
        read(tmp_path)


def test_a_series_without_position_is_left_out(tmp_path: Path):
    voxels = series(tmp_path)
    series(tmp_path, uid="1.5", number=5, ImagePositionPatient=None)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == ["left out 1 series of 40 images: no slice position"]


def test_perfusion_is_no_cine(tmp_path: Path):
    """Frames of one trigger delay, a heartbeat apart."""
    series(tmp_path, range(3), TriggerTime=120)
    for file in tmp_path.iterdir():
        t = (int(pydicom.dcmread(file).InstanceNumber) - 1) % FRAMES
        edit(file, AcquisitionTime=f"1015{0.8 * t:09.6f}")
    with pytest.raises(ValueError, match=r"no short-axis cine.* frames 0\.8 s apart, as in perfus"):
        read(tmp_path)
    chosen = read_short_axis(sorted(tmp_path.iterdir()), tmp_path, chosen=True)
    assert chosen.warnings == ["frames 0.8 s apart: perfusion, or another series that is no cine"]
    voxels = series(tmp_path / "cine", uid="1.5", number=5)
    assert np.array_equal(read(tmp_path).voxels, voxels)


def test_slices_lost_at_both_ends_are_named(tmp_path: Path):
    voxels = series(tmp_path, range(7), frames=13)
    remove(tmp_path, 13, {0: set(range(5)), 6: set(range(4))})
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels[:, :, 1:6])
    assert stack.warnings == ["2 of 7 slices left out (1, 7): 8 or 9 frames in each, not 13"]


def runs_of(folder: Path) -> tuple[list[Image], list[SliceRun]]:
    images, _ = read_headers(sorted(folder.iterdir()))
    return images, find_runs(images)


def test_a_run_of_the_stacks_kind_does_not_differ(tmp_path: Path):
    series(tmp_path, [0, 1])
    _, (first, second) = runs_of(tmp_path)
    assert difference_from_stack(second, first) == ""


def test_without_a_stack_all_series_are_listed(tmp_path: Path):
    series(tmp_path, [0], directions=FOUR_CHAMBER, uid="1.1", number=1)
    series(tmp_path, [0, 1], uid="1.2", number=2)
    series(tmp_path, [0], frames=3, uid="1.3", number=3)
    lines, reasons = left_out(*runs_of(tmp_path), [], chosen=False)
    assert reasons == {"long axis": 1, "fewer than 10 frames": 1, "too few slices": 1}
    assert lines == [
        "left out 1 series of 1 slice x 10 frames: long axis",
        "left out 1 series of 1 slice x 3 frames: fewer than 10 frames",
        "left out 1 series of 2 slices x 10 frames: too few slices",
    ]


def test_nothing_is_lost_between_the_ends_of_a_stack(tmp_path: Path):
    series(tmp_path, range(5), frames=13)
    remove(tmp_path, 13, {4: {12}})
    _, runs = runs_of(tmp_path)
    stack = sorted((run for run in runs if len(run.images) == 13), key=lambda run: run.slice)
    lost = lost_slices(runs, stack)
    assert lost.keys() == {4}
    assert name_lost(lost, stack) == ["1 of 5 slices left out (5): one frame is missing"]
    assert lost_slices(runs, stack[:1]) == {}
    assert name_lost({}, stack) == []
