from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.dicom_files import FRAMES, edit, file_of, read, save, series, set_tags, write


def place_of(file: Path) -> tuple[int, int]:
    """Slice and frame of a file of `series`."""
    z, t = divmod(int(pydicom.dcmread(file).InstanceNumber) - 1, FRAMES)
    return z, t


# -- UIDs are hints --------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["slice", "frame", "file"])
@pytest.mark.parametrize("which", ["Study", "Series", "Study Series"])
def test_uids_of_their_own(tmp_path: Path, own: str, which: str):
    voxels = series(tmp_path)
    for file in tmp_path.iterdir():
        z, t = place_of(file)
        uid = {"slice": f"9.{z}", "frame": f"9.{t}", "file": f"9.{z}.{t}"}[own]
        edit(file, **{f"{name}InstanceUID": uid for name in which.split()})
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    notes = {"slice": 4, "frame": FRAMES, "file": 4 * FRAMES}
    text = f"images of {notes[own]} StudyInstanceUIDs that complete each other, taken as one stack"
    assert stack.notes == ([text] if "Study" in which else [])


def test_halves_of_a_slices_frames_in_two_series(tmp_path: Path):
    voxels = series(tmp_path, frames=2 * FRAMES)
    for file in tmp_path.iterdir():
        t = (int(pydicom.dcmread(file).InstanceNumber) - 1) % (2 * FRAMES)
        edit(file, SeriesInstanceUID=f"7.{t // FRAMES}", SeriesNumber=t // FRAMES)
    assert np.array_equal(read(tmp_path).voxels, voxels)


def test_slices_in_two_studies_of_one_day(tmp_path: Path):
    series(tmp_path, [0, 1, 2], StudyInstanceUID="1")
    series(tmp_path, [3, 4, 5, 6], uid="1.9", StudyInstanceUID="2")
    assert read(tmp_path).voxels.shape[2:] == (7, FRAMES)
    for file in tmp_path.glob("1.9*"):
        edit(file, AcquisitionDate="20200202")
    stack = read(tmp_path)
    assert stack.voxels.shape[2:] == (4, FRAMES)
    assert "left out 1 series of 3 slices x 10 frames: another study" in stack.notes


def test_stills_of_one_place_are_no_cine(tmp_path: Path):
    """Late enhancement, one image for each of twelve inversion times, minutes apart."""
    voxels = series(tmp_path)
    for number in range(12):
        time = f"11{number:02}00"
        series(tmp_path, [1], 1, uid=f"5.{number}", number=20 + number, time=time, TriggerTime=600)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == ["left out 12 series of 1 slice x 1 frame: fewer than 10 frames"]


# -- twice -----------------------------------------------------------------------------------------


def test_an_image_under_two_uids_is_used_once(tmp_path: Path):
    voxels = series(tmp_path)
    for file in sorted(tmp_path.iterdir())[:17]:
        dataset = pydicom.dcmread(file)
        number = dataset.InstanceNumber + 100
        set_tags(dataset, SOPInstanceUID="5.5", SeriesInstanceUID="5.6", InstanceNumber=number)
        save(tmp_path / f"{file.name}c", dataset)
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert stack.notes == ["17 images occur twice; used once"]


def test_a_few_copies_in_a_series_of_their_own_tear_no_hole(tmp_path: Path):
    """Without trigger times the series tells the breath-hold, and a copy may come first by its name."""
    voxels = series(tmp_path)
    for file in tmp_path.iterdir():
        z, t = place_of(file)
        edit(file, TriggerTime=None, AcquisitionTime=f"1015{z:02}.{30 * t:03}")
    for t in range(3):
        copy = Path(shutil.copy(file_of(tmp_path, 1, t), tmp_path / f"0copy{t}"))
        edit(copy, SOPInstanceUID=f"5.5.{t}", SeriesInstanceUID="5.6")
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, voxels)
    assert "3 images occur twice; used once" in stack.notes


def test_a_damaged_copy_does_no_harm(tmp_path: Path):
    voxels = series(tmp_path)
    file = file_of(tmp_path, 1, 2)
    for name in ("1", "z"):
        copy = Path(shutil.copy(file, tmp_path / name))
        copy.write_bytes(copy.read_bytes()[:-21])
    assert np.array_equal(read(tmp_path).voxels, voxels)


def test_other_pixels_of_one_slice_and_phase_are_refused(tmp_path: Path):
    series(tmp_path, prefix="a")
    series(tmp_path, prefix="b", number=5, SeriesNumber=4)
    with pytest.raises(
        ValueError, match=r"/a\d+ and .*/b\d+ show the same slice and phase with different pixels"
    ):
        read(tmp_path)


def test_two_series_of_one_number_and_time_are_refused(tmp_path: Path):
    series(tmp_path, prefix="a")
    series(tmp_path, [1], prefix="b", uid="9.9", number=5, SeriesNumber=4)
    with pytest.raises(ValueError, match="the same slice and phase with different pixels"):
        read(tmp_path)


def test_one_phase_too_many_is_refused(tmp_path: Path):
    series(tmp_path)
    dataset = pydicom.dcmread(file_of(tmp_path, 1, 2))
    dataset.PixelData = bytes(len(dataset.PixelData))
    set_tags(dataset, InstanceNumber=900)
    save(tmp_path / "again", dataset)
    with pytest.raises(ValueError, match="again show the same slice and phase with different pix"):
        read(tmp_path)


@pytest.mark.parametrize("own_uids", [False, True])
def test_the_later_of_two_breath_holds(tmp_path: Path, own_uids: bool):
    series(tmp_path, prefix="a")
    again = series(tmp_path, prefix="b", number=5, time="101700", SeriesNumber=4)
    for number, file in enumerate(sorted(tmp_path.iterdir())):
        if own_uids:
            edit(file, SeriesInstanceUID=f"4.{number}")
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, again)
    assert stack.notes == ["4 slices acquired again: the last run is used"]


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [0.4, 1.4, 2.4, 3.4]])
def test_two_days_in_one_study_do_not_mix(tmp_path: Path, places: list[float]):
    series(tmp_path, [0, 1, 2])
    later = series(tmp_path, places, uid="1.9", number=9, AcquisitionDate="20200303")
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, later)
    assert stack.notes == [
        "left out 1 series of 3 slices x 10 frames: another day",
        "several exams: taken is series 9, left out series 4; --series takes another",
    ]


def test_a_breath_hold_after_midnight(tmp_path: Path):
    first = series(tmp_path, [0, 1], time="235900")
    second = series(
        tmp_path, [2, 3], uid="1.9", number=9, time="000100", AcquisitionDate="20200102"
    )
    stack = read(tmp_path)
    assert np.array_equal(stack.voxels, np.concatenate([first, second], axis=2))
    assert stack.notes == ["images of 2 days that complete each other, taken as one stack"]


def test_a_series_with_a_second_image_per_phase_does_not_hang(tmp_path: Path):
    """Three hundred images at one place, of one phase."""
    for number in range(300):
        write(
            tmp_path / str(number),
            np.full((6, 5), number),
            ImagePositionPatient=[0, 0, 0],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1],
            TriggerTime=10,
            InstanceNumber=1,
        )
    with pytest.raises(ValueError, match="frames without distinct times or numbers"):
        read(tmp_path)


# -- frames that are missing -----------------------------------------------------------------------


def without(folder: Path, missing: dict[int, int], frames: int = 13, **times: object) -> Path:
    """A series in which each slice lacks one frame; `times` are functions of slice and frame, or values."""
    series(folder, frames=frames, TriggerTime=None)
    for file in sorted(folder.iterdir()):
        z, t = divmod(int(pydicom.dcmread(file).InstanceNumber) - 1, frames)
        if missing.get(z) == t:
            file.unlink()
            continue
        edit(file, **{k: v(z, t) if callable(v) else v for k, v in times.items()})
    return folder


@pytest.mark.parametrize(
    "times",
    [
        {"AcquisitionTime": lambda z, t: f"1015{z:02d}.{30 * t:03d}"},
        {"InstanceNumber": lambda z, t: 4 * t + z + 1},
        {"InstanceNumber": lambda z, t: t + 1},
        {"TemporalPositionIdentifier": lambda z, t: t + 1},
    ],
    ids=["time", "numbers across slices", "numbers that restart", "phases"],
)
def test_slices_that_lack_different_frames_are_not_mixed(tmp_path: Path, times: dict[str, object]):
    folder = without(tmp_path / "a", {0: 3, 1: 7, 2: 3, 3: 7}, **times)
    whole = without(tmp_path / "b", {}, **times)
    kept = [t for t in range(13) if t not in (3, 7)]
    stack = read(folder)
    assert np.array_equal(stack.voxels, read(whole).voxels[..., kept])
    assert stack.warnings == ["2 of 13 frames left out (4, 8): not in slices 1, 2, 3, 4"]
    # All slices lack the same frame: its place is nobody's.
    stack = read(without(tmp_path / "c", dict.fromkeys(range(4), 5), **times))
    assert stack.voxels.shape[3] == 12
    assert stack.warnings == []


def test_numbers_that_restart_tell_of_a_first_frame_that_is_missing(tmp_path: Path):
    restart = {"InstanceNumber": lambda z, t: t + 1}
    stack = read(without(tmp_path / "a", {0: 0, 1: 12, 2: 12, 3: 12}, **restart))
    whole = read(without(tmp_path / "b", {}, **restart))
    assert np.array_equal(stack.voxels, whole.voxels[..., 1:12])


@pytest.mark.parametrize("spread", [0.0, 9.0])
def test_times_that_are_not_even_tell_of_no_missing_frame(tmp_path: Path, spread: float):
    """Times that are rounded, or those of the reconstruction, still order the frames."""
    jitter = np.random.default_rng(0).uniform(-spread, spread, (4, 13))
    time = {"AcquisitionTime": lambda z, t: f"1015{z:02d}.{int(30 * t + 10 + jitter[z, t]):03d}"}
    assert read(without(tmp_path, {}, **time)).voxels.shape[3] == 13


def test_a_date_and_time_with_separators(tmp_path: Path):
    """The later of two breath-holds on one day is taken, however the time is written."""
    first = series(tmp_path, prefix="a", AcquisitionDateTime="2020-01-01 10:20:00.5+01:00")
    series(tmp_path, uid="1.9", number=5, prefix="b", AcquisitionDateTime="2020-01-01T10:15:00")
    assert np.array_equal(read(tmp_path).voxels, first)
    for file in tmp_path.glob("b*"):
        edit(file, AcquisitionDateTime="2020-01-02T09:15:00", StudyInstanceUID=None)
    assert not np.array_equal(read(tmp_path).voxels, first)
