from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_ssp.conversion.dicom.headers import patient_id
from nnunet_ssp.conversion.dicom.short_axis import (
    MIN_FRAMES,
    choose_short_axis,
    read_short_axis,
)
from nnunet_ssp.conversion.geometry import base_of_stack
from tests.dicom_files import (
    FOUR_CHAMBER,
    FRAMES,
    GAP,
    NORMAL,
    ORIGIN,
    ROW,
    SHORT_AXIS,
    SPACING,
    edit,
    enhanced,
    file_of,
    read,
    save,
    series,
    write,
)


def test_files_in_any_order_become_a_stack(tmp_path: Path):
    voxels = series(tmp_path)
    stack = read(tmp_path)
    assert stack.voxels.dtype == np.uint16
    assert np.array_equal(stack.voxels, voxels)
    assert (stack.vendor, stack.scanner, stack.field_strength) == ("Maker", "Model", "1.5")
    assert stack.notes == []
    assert base_of_stack(stack.affine) == "first"


def test_the_affine_is_dicoms_with_two_axes_turned(tmp_path: Path):
    series(tmp_path)
    affine = read(tmp_path).affine
    steps = np.stack([ROW * SPACING[1], np.cross(NORMAL, ROW) * SPACING[0], NORMAL * GAP])
    flip = np.array([-1, -1, 1])
    assert np.allclose(affine[:3, :3], (steps * flip).T, atol=1e-5)
    assert np.allclose(affine[:3, 3], ORIGIN * flip, atol=1e-5)
    # An independent reader agrees on where the first slice is.
    image = sitk.ReadImage(str(file_of(tmp_path, 0, 0)))
    corner = image.TransformIndexToPhysicalPoint((4, 5, 0))
    assert np.allclose((affine @ [4, 5, 0, 1])[:3], corner * flip, atol=1e-4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    turn=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    n_slices=st.integers(3, 6),
    backwards=st.booleans(),
)
def test_any_oblique_stack_keeps_its_places(
    tmp_path_factory: pytest.TempPathFactory, turn, n_slices: int, backwards: bool
):
    folder = tmp_path_factory.mktemp("stack")
    cross = np.cross(np.eye(3), turn)
    rotation = np.linalg.solve(np.eye(3) + cross / 2, np.eye(3) - cross / 2)  # Cayley's
    directions = (np.reshape(SHORT_AXIS, (2, 3)) @ rotation.T).ravel()
    places = range(n_slices)[:: -1 if backwards else 1]
    voxels = series(folder, places, directions=directions)
    stack = read(folder)
    assert np.array_equal(stack.voxels, voxels[:, :, :: -1 if backwards else 1])
    normal = np.cross(directions[:3], directions[3:])
    for z in range(n_slices):
        expected = (ORIGIN + z * GAP * normal) * [-1, -1, 1]
        assert np.allclose((stack.affine @ [0, 0, z, 1])[:3], expected, atol=1e-3)


def test_a_series_for_each_slice(tmp_path: Path):
    slices = [series(tmp_path, [z], uid=f"1.2.{z}", number=z) for z in (2, 0, 3, 1)]
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, np.concatenate([slices[i] for i in (1, 3, 0, 2)], axis=2))
    assert stack.notes == []


# -- the choice of the stack -----------------------------------------------------------------------


def test_without_a_short_axis_the_series_are_listed(tmp_path: Path):
    series(tmp_path, [0], directions=FOUR_CHAMBER)
    series(tmp_path, [0, 1], directions=(1, 0, 0, 0, 1, 0), uid="1.5", number=5)
    with pytest.raises(
        ValueError,
        match=rf"{tmp_path.name}: no short-axis cine, which has 3 or more parallel slices of 10 or .*"
        r"1 slice x 10 frames: long axis; .* 2 slices x 10 frames: too few slices",
    ):
        read(tmp_path)


def test_an_axial_stack_alone_is_taken_with_a_doubt(tmp_path: Path):
    axial = series(tmp_path, range(6), directions=(1, 0, 0, 0, 1, 0))
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, axial)
    assert "55 degrees off the usual axis of the heart" in stack.notes[0]
    short_axis = series(tmp_path, range(4), uid="1.9", number=9)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, short_axis)
    assert stack.notes == ["left out 1 series of 6 slices x 10 frames: another plane"]


def test_of_two_stacks_the_larger_then_the_later_is_taken(tmp_path: Path):
    turn = np.radians(8)
    directions = (*ROW, *(np.cos(turn) * np.cross(NORMAL, ROW) + np.sin(turn) * NORMAL))
    series(tmp_path, directions=directions, time="110000", uid="1.1", number=1)
    larger = series(tmp_path, range(5), uid="1.2", number=2)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, larger)
    assert stack.notes == ["left out 1 series of 4 slices x 10 frames: another plane"]
    later = series(tmp_path, range(5), directions=directions, time="120000", uid="1.3", number=3)
    assert np.array_equal(read(tmp_path).voxels, later)


# -- what makes a stack incomplete -----------------------------------------------------------------


def test_an_image_without_position_is_refused(tmp_path: Path):
    series(tmp_path)
    bad = file_of(tmp_path, 1, 2)
    for tags in ({"ImagePositionPatient": None}, {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}):
        edit(bad, **tags)
        with pytest.raises(ValueError, match=f"{bad.name} has no slice position"):
            read(tmp_path)


def test_several_patients_are_refused(tmp_path: Path):
    series(tmp_path)
    edit(file_of(tmp_path, 0, 0), PatientID="P2")
    with pytest.raises(ValueError, match="must hold the images of one patient, not of 2"):
        read(tmp_path)
    assert patient_id(file_of(tmp_path, 0, 0)) == "P2"
    (tmp_path / "text").write_text("")
    assert patient_id(tmp_path / "text") is None


# -- the heart and the plane -----------------------------------------------------------------------

# The normal of a short axis that points to the right, LPS+.
TO_THE_RIGHT = np.array([-1, -1, -1]) / np.sqrt(3)
ITS_ROW = np.array([1, -1, 0]) / np.sqrt(2)
DEXTROCARDIA = (*ITS_ROW, *np.cross(TO_THE_RIGHT, ITS_ROW))
ITS_FOUR_CHAMBER = (*TO_THE_RIGHT, *ITS_ROW)
ITS_TWO_CHAMBER = (*TO_THE_RIGHT, *np.cross(TO_THE_RIGHT, ITS_ROW))
AXIAL = (1, 0, 0, 0, 1, 0)
UNUSUAL = "71 degrees off the usual axis of the heart: make sure that this is the short axis"


def test_a_heart_that_points_to_the_right(tmp_path: Path):
    voxels = series(tmp_path, directions=DEXTROCARDIA)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == [f"the slices' normal is {UNUSUAL}"]


def test_long_axes_tell_the_short_axis_of_an_unusual_heart(tmp_path: Path):
    voxels = series(tmp_path, range(5), directions=DEXTROCARDIA)
    series(tmp_path, [0], directions=ITS_FOUR_CHAMBER, uid="1.5", number=5)
    series(tmp_path, [0], directions=ITS_TWO_CHAMBER, uid="1.6", number=6)
    series(tmp_path, range(12), directions=AXIAL, uid="1.7", number=7)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert set(stack.notes) == {
        "left out 2 series of 1 slice x 10 frames: long axis",
        "left out 1 series of 12 slices x 10 frames: another plane",
        f"the slices' normal is {UNUSUAL}",
    }


def test_two_stacks_that_cannot_be_told_apart_are_refused(tmp_path: Path):
    voxels = series(tmp_path / "a", range(5), directions=DEXTROCARDIA)
    series(tmp_path / "b", range(5), directions=ITS_FOUR_CHAMBER, uid="1.5", number=5)
    with pytest.raises(
        ValueError,
        match=r"two cines may be the short axis: \(series 5, 5 slices x 10 frames, b/1\.5_0\) and "
        r"\(series 4, 5 slices x 10 frames, a/1\.2\.3\.4_0\)\. Choose with --series",
    ):
        read(tmp_path)
    chosen = read_short_axis(sorted((tmp_path / "a").iterdir()), tmp_path, chosen=True)
    assert np.array_equal(chosen.voxels, voxels)


HORIZONTAL = (0, 1, 0, 0, 0, 1)  # the short axis of a heart that lies flat, 55 degrees off


@pytest.mark.parametrize("directions", [DEXTROCARDIA, HORIZONTAL])
def test_a_larger_stack_along_the_body_is_not_taken_for_an_unusual_short_axis(
    tmp_path: Path, directions
):
    voxels = series(tmp_path, range(6), directions=directions)
    series(tmp_path, range(13), directions=AXIAL, uid="1.7", number=7)
    with pytest.raises(ValueError, match=r"two cines may be the short axis: .*series 7, 13 slices"):
        read(tmp_path)
    row, column = np.reshape(directions, (2, 3))
    normal = np.cross(row, column)
    for number, turn in ((5, 0.5), (6, 1.6)):  # long axes
        across = np.cos(turn) * row + np.sin(turn) * column
        series(tmp_path, [0], directions=(*normal, *across), uid=f"1.{number}", number=number)
    assert np.array_equal(read(tmp_path).voxels, voxels)


@pytest.mark.parametrize("n_slices", [1, 2])
def test_few_slices_across_the_usual_heart(tmp_path: Path, n_slices: int):
    voxels = series(tmp_path, range(n_slices), SliceThickness=7.0)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.warnings == [f"only {n_slices} slice{'s' * (n_slices > 1)}"]
    spacing = 7.0 if n_slices == 1 else GAP
    assert np.allclose(np.linalg.norm(stack.affine[:3, :3], axis=0), [*SPACING[::-1], spacing])
    series(tmp_path, [0], directions=FOUR_CHAMBER, uid="1.5", number=5)
    assert np.array_equal(read(tmp_path).voxels, voxels)


@pytest.mark.parametrize("directions", [FOUR_CHAMBER, AXIAL])
def test_few_slices_in_a_plane_that_says_nothing(tmp_path: Path, directions):
    voxels = series(tmp_path, [0, 1], directions=directions)
    with pytest.raises(ValueError, match="no short-axis cine"):
        read(tmp_path)
    chosen = read_short_axis(sorted(tmp_path.iterdir()), tmp_path, chosen=True)
    assert np.array_equal(chosen.voxels, voxels)


def test_a_single_slice_needs_its_thickness(tmp_path: Path):
    series(tmp_path, [0])
    with pytest.raises(ValueError, match="no SliceThickness, which a single slice needs"):
        read(tmp_path)


def test_two_single_slices_across_the_heart_are_refused(tmp_path: Path):
    turn = np.radians(25)
    directions = (*ROW, *(np.cos(turn) * np.cross(NORMAL, ROW) + np.sin(turn) * NORMAL))
    series(tmp_path, [0], SliceThickness=8)
    series(tmp_path, [0], directions=directions, uid="1.5", number=5, SliceThickness=8)
    with pytest.raises(ValueError, match="no short-axis cine"):
        read(tmp_path)


# -- the order of frames ---------------------------------------------------------------------------


def test_without_trigger_times_the_acquisition_time_counts(tmp_path: Path):
    voxels = series(tmp_path, TriggerTime=None)
    for file in tmp_path.iterdir():
        number = pydicom.dcmread(file).InstanceNumber
        edit(file, AcquisitionTime=f"{101500 + number // 100}.{number % 100:02}", InstanceNumber=7)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == [
        "frames in the order of AcquisitionTime: there are no distinct TriggerTimes"
    ]


def test_one_trigger_time_of_two_frames_is_no_repetition(tmp_path: Path):
    voxels = series(tmp_path, frames=FRAMES + 2)
    (wrong,) = [f for f in tmp_path.iterdir() if pydicom.dcmread(f).InstanceNumber == 17]
    edit(wrong, TriggerTime=12.5 + 40 * 3)  # of the frame before
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == [
        "frames in the order of InstanceNumber: there are no distinct TriggerTimes or AcquisitionTimes"
    ]


@pytest.mark.parametrize("tags", [{"TriggerTime": None}, {"TriggerTime": 0}])
def test_without_any_time_the_instance_number_counts(tmp_path: Path, tags: dict[str, object]):
    voxels = series(tmp_path, **tags)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert "InstanceNumber" in stack.notes[0]


def test_without_any_number_the_content_time_counts(tmp_path: Path):
    voxels = series(tmp_path, TriggerTime=None)
    for file in tmp_path.iterdir():
        number = int(pydicom.dcmread(file).InstanceNumber)
        edit(file, ContentTime=f"1015{number // 100:02}.{number % 100:02}", InstanceNumber=None)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert "in the order of ContentTime" in stack.notes[0]


def test_the_temporal_position_counts_before_the_instance_number(tmp_path: Path):
    voxels = series(tmp_path, TriggerTime=None)
    for file in tmp_path.iterdir():
        number = int(pydicom.dcmread(file).InstanceNumber)
        position = (number - 1) % FRAMES + 1
        edit(file, TemporalPositionIdentifier=position, InstanceNumber=500 - number)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert "in the order of their temporal position" in stack.notes[0]


def test_frames_that_nothing_orders_are_refused(tmp_path: Path):
    series(tmp_path, TriggerTime=None, InstanceNumber=1)
    with pytest.raises(ValueError, match="frames without distinct times or numbers"):
        read(tmp_path)


@pytest.mark.parametrize("in_one_file", [False, True])
def test_numbers_that_mix_slices_and_phases_tell_no_order(tmp_path: Path, in_one_file: bool):
    if in_one_file:
        file = tmp_path / "enhanced.dcm"
        enhanced(file)  # in no order
        dataset = pydicom.dcmread(file)
        for group in dataset.PerFrameFunctionalGroupsSequence:
            del group.CardiacSynchronizationSequence
        save(file, dataset)
    else:
        series(tmp_path, TriggerTime=None)
        for file in tmp_path.iterdir():
            edit(file, InstanceNumber=int(pydicom.dcmread(file).InstanceNumber) * 17 % 41)
    with pytest.raises(ValueError, match=r"neither slice by slice nor phase by phase; see .* and "):
        read(tmp_path)


def test_numbers_may_go_through_the_slices_of_each_breath_hold_by_turns(tmp_path: Path):
    voxels = series(tmp_path, TriggerTime=None)
    for file in tmp_path.iterdir():
        z, t = divmod(int(pydicom.dcmread(file).InstanceNumber) - 1, FRAMES)
        edit(file, InstanceNumber=1 + z // 2 * 2 * FRAMES + 2 * t + z % 2)
    assert np.array_equal(read(tmp_path).voxels, voxels)


# -- all together ----------------------------------------------------------------------------------


def test_damage_outside_the_short_axis_does_no_harm(tmp_path: Path):
    voxels = series(tmp_path)
    series(tmp_path / "LA", [0], directions=FOUR_CHAMBER, uid="1.5", number=5)
    for file in (tmp_path / "LA").iterdir():
        file.write_bytes(file.read_bytes()[:-21])
    assert np.array_equal(read(tmp_path).voxels, voxels)


def test_frames_without_position_are_no_stack(tmp_path: Path):
    write(tmp_path / "movie.dcm", np.ones((30, 6, 5)), NumberOfFrames=30)
    with pytest.raises(ValueError, match="1 series of 30 images: no slice position"):
        read(tmp_path)


def test_nothing_but_the_scanner_is_handed_on(tmp_path: Path):
    series(tmp_path)
    stack = read(tmp_path)
    # `images` is for DICOM Segmentations alone, `inventory` counts
    unshared = ("voxels", "affine", "images", "inventory")
    texts = [getattr(stack, f.name) for f in fields(stack) if f.name not in unshared]
    assert texts == ["Maker", "Model", "1.5", stack.patient, [], [], None, 0.04]
    assert re.fullmatch("[0-9a-f]{10}", stack.patient)


@pytest.mark.parametrize(
    ("tags", "rate"),
    [
        ({"HeartRate": 75}, 75),
        ({"HeartRate": 75, "NominalInterval": 1000}, 60),
        ({"NominalInterval": 0}, None),
        ({"NominalInterval": 9e6}, None),
    ],
)
def test_the_heart_rate_is_told_where_the_header_tells(tmp_path: Path, tags: dict, rate: object):
    series(tmp_path, **tags)
    stack = read(tmp_path)
    assert stack.heart_rate == rate
    assert stack.notes == []


def test_the_digest_tells_patients_apart(tmp_path: Path):
    digests = []
    for number, patient in enumerate(("P1", "P1", "P2", "")):
        series(tmp_path / str(number), PatientID=patient)
        digests.append(read(tmp_path / str(number)).patient)
    assert digests[0] == digests[1] != digests[2]
    assert digests[3] == ""


def test_the_choice_needs_no_pixels(tmp_path: Path):
    series(tmp_path)
    files = sorted(tmp_path.iterdir())
    for file in files:
        file.write_bytes(file.read_bytes()[:-21])
    choice = choose_short_axis(files, tmp_path)
    assert (len(choice.runs), choice.n_frames) == (4, FRAMES)


def test_the_fewest_frames_of_a_cine_are_enough(tmp_path: Path):
    series(tmp_path, frames=MIN_FRAMES - 1)
    with pytest.raises(ValueError, match="no short-axis cine"):
        read(tmp_path)


def test_slices_shifted_in_their_plane_are_noted(tmp_path: Path):
    series(tmp_path)
    for frame in range(FRAMES):
        file = file_of(tmp_path, 2, frame)
        position = ORIGIN + 2 * GAP * NORMAL + 7 * ROW
        edit(file, ImagePositionPatient=[round(v, 6) for v in position])
    assert read(tmp_path).notes == [
        "slices shifted against each other by up to 7 mm in their plane"
    ]


def test_real_dicom_equals_the_nifti_of_the_subject(real_data: Path):
    folder = real_data / "sunnybrook_dicom" / "SCD0000301"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    stack = read(folder)
    (file,) = (real_data / "sunnybrook_mnms").rglob("SCD0000301_sa.nii.gz")
    image = nibabel.load(file)
    assert np.array_equal(stack.voxels, np.asanyarray(image.dataobj))
    assert stack.voxels.dtype == image.get_data_dtype()
    assert np.allclose(stack.affine, image.affine, atol=1e-3)
    assert (stack.vendor, stack.scanner, stack.field_strength) == (
        "GE MEDICAL SYSTEMS",
        "SIGNA HDx",
        "1.5",
    )
    assert stack.notes == []
