from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from nnunet_ssp.conversion.dicom.acquisitions import SliceRun, find_runs
from nnunet_ssp.conversion.dicom.headers import read_headers
from nnunet_ssp.conversion.dicom.short_axis import (
    read_short_axis,
)
from nnunet_ssp.conversion.dicom.volumes import (
    affine_of,
    angle_between,
    angle_to_heart,
    find_stacks,
    gap_in,
    places_of,
)
from tests.dicom_files import (
    FOUR_CHAMBER,
    FRAMES,
    GAP,
    SHORT_AXIS,
    SPACING,
    edit,
    read,
    remove,
    series,
)


@pytest.mark.parametrize("later", [{"time": "110000"}, {"time": "101500"}])
def test_of_a_repeated_breath_hold_the_later_is_kept(tmp_path: Path, later: dict[str, str]):
    voxels = series(tmp_path)
    again = series(tmp_path, [1, 2], uid="1.2.3.5", number=5, **later)
    voxels[:, :, 1:3] = again
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == ["2 slices acquired again: the last run is used"]


def test_an_incomplete_repetition_is_left_out(tmp_path: Path):
    voxels = series(tmp_path)
    series(tmp_path, [1], frames=FRAMES + 3, uid="1.2.3.5", number=5, time="110000")
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == [
        "left out 1 series of 1 slice x 13 frames: parallel to the short axis, 13 frames, not 10"
    ]


def test_a_repetition_within_the_series(tmp_path: Path):
    series(tmp_path, prefix="a")
    again = series(tmp_path, prefix="b", number=5, time="110000", SeriesNumber=4)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, again)
    assert stack.notes == ["4 slices acquired again: the last run is used"]


def test_a_repetition_at_other_places_does_not_mix(tmp_path: Path):
    voxels = series(tmp_path, range(6))
    series(tmp_path, [0.4, 1.4], uid="1.2.3.5", number=5, time="110000")
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == [
        "left out 1 series of 2 slices x 10 frames: parallel to the short axis, at other places"
    ]


def test_too_few_frames_within_the_stack_are_refused(tmp_path: Path):
    series(tmp_path, range(5), frames=FRAMES + 1)
    remove(tmp_path, FRAMES + 1, {2: {3, 4}})
    with pytest.raises(
        ValueError,
        match=r"slices 2 and 3 are 16\.0 mm apart\. The slice between \(.*1\.2\.3\.4_\d+\) has 9 "
        "frames, not 11",
    ):
        read(tmp_path)


WHOLE_VOLUMES: dict[str, tuple[dict[int, set[int]], set[int], str]] = {
    "the last file": ({4: {12}}, {12}, "1 of 13 frames left out (13): not in slice 5"),
    "half of the slices": (
        {3: {12}, 4: {12}, 5: {12}},
        {12},
        "1 of 13 frames left out (13): not in slices 4, 5, 6",
    ),
    "the first frames": (
        {0: {0, 1}, 5: {0}},
        {0, 1},
        "2 of 13 frames left out (1, 2): not in slices 1, 6",
    ),
    "each slice another": (
        {0: {3}, 1: {4}, 2: {5}, 3: {3}, 4: {4}, 5: {5}},
        {3, 4, 5},
        "3 of 13 frames left out (4, 5, 6): not in slices 1, 2, 3, 4, 5, 6",
    ),
    "but one slice": (
        {z: {7} for z in range(1, 6)},
        {7},
        "1 of 13 frames left out (8): not in slices 2, 3, 4, 5, 6",
    ),
}


@pytest.mark.parametrize("clock", ["trigger", "temporal", "number"])
@pytest.mark.parametrize("case", WHOLE_VOLUMES)
def test_the_most_voxels_of_whole_volumes_are_kept(tmp_path: Path, case: str, clock: str):
    missing, lost, warning = WHOLE_VOLUMES[case]
    voxels = series(
        tmp_path, range(6), frames=13, **({} if clock == "trigger" else {"TriggerTime": None})
    )
    remove(tmp_path, 13, missing)
    if clock == "temporal":
        for file in tmp_path.iterdir():
            number = int(pydicom.dcmread(file).InstanceNumber) - 1
            edit(file, TemporalPositionIdentifier=number % 13 + 1, InstanceNumber=7)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels[..., [t for t in range(13) if t not in lost]])
    assert stack.warnings == [warning]
    assert not [note for note in stack.notes if "left out" in note]


def test_frames_of_another_phase_are_no_volume(tmp_path: Path):
    """A slice whose frames begin one frame duration later shares all but one phase with the others."""
    voxels = series(tmp_path, range(4), frames=13)
    for file in tmp_path.iterdir():
        z, t = divmod(int(pydicom.dcmread(file).InstanceNumber) - 1, 13)
        if z == 2:
            edit(file, TriggerTime=12.5 + 40 * (t + 1))
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels[:, :, 2], voxels[:, :, 2, :-1])
    assert np.array_equal(stack.voxels[:, :, 3], voxels[:, :, 3, 1:])
    for file in tmp_path.iterdir():
        z, t = divmod(int(pydicom.dcmread(file).InstanceNumber) - 1, 13)
        if z == 2:
            edit(file, TriggerTime=12.5 + 40 * (t + 9))
    with pytest.raises(ValueError, match="of different phases: of 13 all slices share only 4, and"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"share only 4, .* the hint\.$"):
        read_short_axis(list(tmp_path.iterdir()), tmp_path, "the hint.")


def test_heart_rates_may_differ_from_slice_to_slice(tmp_path: Path):
    voxels = series(tmp_path)
    for file in tmp_path.iterdir():
        z, t = divmod(int(pydicom.dcmread(file).InstanceNumber) - 1, FRAMES)
        edit(file, TriggerTime=round((12.5 + 40 * t) * (1 + 0.1 * z), 1))
    assert np.array_equal(read(tmp_path).voxels, voxels)


def test_a_missing_slice_is_refused(tmp_path: Path):
    series(tmp_path, [0, 1, 2, 4, 5])
    with pytest.raises(ValueError, match=r"evenly spaced, 8\.0 mm .* slices 3 and 4 are 16\.0 mm"):
        read(tmp_path)


def row_of(folder: Path, places: list[float]) -> list[SliceRun]:
    """Return the runs of one series with slices at these places, in order."""
    series(folder, places)
    images, _ = read_headers(sorted(folder.iterdir()))
    return sorted(find_runs(images), key=lambda run: run.slice)


def test_places_are_distances_from_the_first_slice(tmp_path: Path):
    row = row_of(tmp_path, [0, 1, 2.5, 3.5])
    np.testing.assert_allclose(places_of(row), GAP * np.array([0, 1, 2.5, 3.5]), atol=1e-3)
    assert gap_in(row) == 2
    assert gap_in(row[:2]) == gap_in(row[:1]) == 0


def test_distances_may_differ_by_a_tenth(tmp_path: Path):
    assert gap_in(row_of(tmp_path / "even", [0, 1, 2.09, 3.09])) == 0
    assert gap_in(row_of(tmp_path / "uneven", [0, 1, 2.11, 3.11])) == 2


def test_the_affine_leads_to_positions_in_ras(tmp_path: Path):
    row = row_of(tmp_path, [0, 1, 2])
    affine = affine_of(row)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [*SPACING[::-1], GAP])
    for z, run in enumerate(row):
        expected = np.array(run.images[0].position) * [-1, -1, 1]
        np.testing.assert_allclose((affine @ [0, 0, z, 1])[:3], expected, atol=1e-3)


def test_angles_have_no_sign(tmp_path: Path):
    short = row_of(tmp_path / "short", [0])[0]
    turned = tmp_path / "turned"
    series(turned, [0], directions=(*SHORT_AXIS[3:], *SHORT_AXIS[:3]))  # the normal backwards
    series(turned, [0], directions=FOUR_CHAMBER, uid="1.9", number=9)
    images, _ = read_headers(sorted(turned.iterdir()))
    angles = sorted(angle_between(short, run) for run in find_runs(images))
    np.testing.assert_allclose(angles, [0, 90], atol=0.1)
    assert sorted(round(angle_to_heart(run)) for run in find_runs(images))[0] == round(
        angle_to_heart(short)
    )


def test_two_stacks_in_two_planes_are_found(tmp_path: Path):
    series(tmp_path)
    series(tmp_path, [0, 1], directions=FOUR_CHAMBER, uid="1.9", number=9)
    images, _ = read_headers(sorted(tmp_path.iterdir()))
    stacks, planes = find_stacks(images, chosen=False)
    assert sorted(stack.voxels for stack in stacks) == [2 * FRAMES, 4 * FRAMES]
    assert sorted(map(len, planes)) == [2, 4]
    assert {stack.name.split(",")[0] for stack in stacks} == {"series 4", "series 9"}
