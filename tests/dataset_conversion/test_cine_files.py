from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.dataset_conversion.cine import look, make_tasks
from nnunet_ssp.dataset_conversion.cine_files import (
    Found,
    find_cines,
    find_masks,
    holds_one_slice,
    keep_series,
    stem_of,
    with_shared_patients,
)
from nnunet_ssp.files.nifti import write_nifti
from tests.dicom_files import series


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def find(root: Path, masks: str = "masks", by_patient_id: bool = False) -> dict[str, Found]:
    found = find_cines(root, root / masks, by_patient_id, 1)
    assert len({entry.name for entry in found}) == len(found)
    return {entry.name: entry for entry in found}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.b.NII", "a.b"),
        ("a.nii.gz.bak", ""),
        (".nii", ""),
        ("a.dcm", ""),
        ("a", ""),
    ],
)
def test_nifti_is_known_by_its_ending(name: str, stem: str):
    assert stem_of(Path("x") / name) == stem


def test_subjects_are_files_and_folders_but_not_masks(tmp_path: Path):
    touch(
        tmp_path / "A_sa.nii.gz",
        tmp_path / "A_gt.nii.gz",
        tmp_path / "B" / "sa.nii.gz",
        tmp_path / "B" / "B_frame00_gt.nii.gz",
        tmp_path / "C" / "C_gt.nii.gz",  # masks alone
        tmp_path / "masks" / "D_gt.nii.gz",
        tmp_path / ".hidden" / "sa.nii.gz",
    )
    found = find(tmp_path)
    assert found.keys() == {"A", "B"}
    assert found["A"].images == (tmp_path / "A_sa.nii.gz",)
    assert found["B"].images == (tmp_path / "B" / "sa.nii.gz",)


def test_an_empty_folder_is_a_subject_without_images(tmp_path: Path):
    (tmp_path / "A").mkdir()
    assert find(tmp_path)["A"] == Found("A", tmp_path / "A", (), "no file in it.")


def test_frames_are_in_order_of_their_numbers(tmp_path: Path):
    files = [tmp_path / "A" / f"frame{number}.nii.gz" for number in (10, 9, 100)]
    touch(*files)
    assert find(tmp_path)["A"].images == (files[1], files[0], files[2])


def test_phases_of_philips_are_in_order_of_time(tmp_path: Path):
    files = [tmp_path / "A" / f"cine{time}.nii.gz" for time in ("", "_t40", "_t80", "_t120")]
    touch(*files)
    assert find(tmp_path)["A"].images == tuple(files)


def test_files_that_make_no_cine_are_named(tmp_path: Path):
    touch(tmp_path / "A" / "one.nii.gz", tmp_path / "A" / "two.nii.gz")
    found = find(tmp_path)["A"]
    assert found.images == ()
    assert "must hold one 4D file called A or A_sa or sa" in found.note
    assert "not one.nii.gz and two.nii.gz" in found.note


def test_other_images_are_named(tmp_path: Path):
    touch(tmp_path / "A.nrrd", tmp_path / "notes.txt")
    assert find(tmp_path) == {
        "A.nrrd": Found(
            "A.nrrd", tmp_path / "A.nrrd", (), "neither NIfTI nor DICOM; save it as .nii.gz."
        )
    }


def test_patients_of_a_flat_folder_are_apart(tmp_path: Path):
    series(tmp_path, [0], prefix="a", PatientID="P1")
    assert find(tmp_path).keys() == {tmp_path.name}
    series(tmp_path, [0], prefix="b", uid="1.5", PatientID="P2")
    found = find(tmp_path)
    assert found.keys() == {"P1", "P2"}
    assert all(entry.by_id and len(entry.images) == 10 for entry in found.values())


def test_visits_of_one_patient_share_it(tmp_path: Path):
    for name, patient in (("a", "P1"), ("b", "P1"), ("c", "P2")):
        series(tmp_path / name, [0], PatientID=patient)
    found = find_cines(tmp_path, tmp_path / "masks", False, 1)
    assert with_shared_patients(found, tmp_path) == {"a", "b"}
    by_id = find(tmp_path, by_patient_id=True)
    assert {name: len(entry.images) for name, entry in by_id.items()} == {"P1": 20, "P2": 10}


def test_the_series_of_the_user_are_kept(tmp_path: Path):
    series(tmp_path / "A" / "4", [0], uid="1.4", number=4)
    series(tmp_path / "A" / "5", [0, 1], uid="1.5", number=5)
    touch(tmp_path / "B" / "sa.nii.gz")
    found = find_cines(tmp_path, tmp_path / "masks", False, 1)
    kept = {entry.name: entry for entry in keep_series(found, ["4"], 1)}
    assert kept["B"] in found
    assert {file.parent.name for file in kept["A"].images} == {"4"}
    assert kept["A"].chosen and "without 20 files of others" in kept["A"].note


def images(root: Path, **frames: int) -> None:
    for stem, number in frames.items():
        shape = (6, 5, 4, number) if number > 1 else (6, 5, 4)
        write_nifti(root / f"{stem}.nii.gz", np.ones(shape, np.int16), np.eye(4))


@pytest.mark.parametrize(
    "patient",
    [
        {"p1_4d": 3, "p1_frame01": 1, "p1_frame12": 1},
        {"p1_4d": 3, "p1_frame01": 1},
        {"p1": 3, "p1_frame01": 1, "p1_frame12": 1},
        {"p1_frame01": 1, "p1_frame02": 3},
        {"p1_frame01": 3, "p1_frame02": 3},
    ],
)
def test_a_cine_beside_its_frames_is_no_second_subject(tmp_path: Path, patient: dict[str, int]):
    """As in ACDC's folders put into one: the patient would be on both sides of a fold."""
    images(tmp_path, **patient, p10_4d=3, p2_frame01=1, p2_frame02=1)
    found = {f.name: f for f in find_cines(tmp_path, tmp_path, False, 1, one_frame=False)}
    assert {name: len(f.images) for name, f in found.items()} == {"p1": 0, "p10_4d": 1, "p2": 2}
    first = next(stem for stem, number in patient.items() if number > 1)
    assert f"more than one frame in {first}.nii.gz" in found["p1"].note
    assert "4D file alone, called p1.nii.gz" in found["p1"].note


def test_a_damaged_frame_is_a_frame(tmp_path: Path):
    images(tmp_path, p1_frame01=1, p1_frame03=1)
    pointer = tmp_path / "p1_frame02.nii.gz"
    pointer.write_text("version https://git-lfs.github.com/spec/v1")
    (found,) = find_cines(tmp_path, tmp_path, False, 1, one_frame=False)
    assert found.name == "p1" and len(found.images) == 3 and found.images[1] == pointer
    tasks, _ = make_tasks([found], tmp_path, {})
    refusal = look(tasks[0]).refused
    assert "p1_frame02.nii.gz" in refusal and "run git lfs pull" in refusal


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 5, 1, 3), True),
        ((1, 6, 5, 3), True),
        ((6, 5, 4, 3), False),
        ((6, 5, 1), False),
        ((6, 1, 1, 3), False),
    ],
)
def test_files_of_one_slice(tmp_path: Path, shape: tuple[int, ...], expected: bool):
    file = tmp_path / "a.nii.gz"
    write_nifti(file, np.ones(shape, np.int16), np.eye(4))
    assert holds_one_slice(file) is expected


def test_a_damaged_file_holds_no_slice(tmp_path: Path):
    (tmp_path / "a.nii.gz").write_bytes(b"no header")
    assert not holds_one_slice(tmp_path / "a.nii.gz")


def test_masks_are_found_by_folder_and_by_name(tmp_path: Path):
    mine = [tmp_path / "A" / "x_gt.nii.gz", tmp_path / "A" / "deep" / "y_frame03_gt.nii.gz"]
    named = [tmp_path / "B_sa_gt.nii.gz", tmp_path / "B_frame00_gt.nii.gz"]
    touch(*mine, *named, tmp_path / "A" / "sa.nii.gz", tmp_path / "C.nii.gz")
    found = {subject: {*files} for subject, files in find_masks(tmp_path).items()}
    assert found == {"A": {*mine}, "B": {*named}}
