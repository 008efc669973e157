"""ED and ES of one patient in two folders or files are one subject, on one side of every fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.dataset_conversion.cine import list_tasks
from nnunet_ssp.files.nifti import read_nifti, write_nifti
from nnunet_ssp.nnunet import dataset_folder
from tests.dicom_files import series

AFFINE = np.diag([1.5, 1.25, 8, 1])
SHAPE = (8, 7, 4)


def image(seed: int, *frames: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, (*SHAPE, *frames)).astype(np.int16)


def mask(size: int) -> np.ndarray:
    """A larger ventricle for a larger size, in a ring of myocardium."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[: size + 2, : size + 2, 1:3] = 2
    drawn[1 : size + 1, 1 : size + 1, 1:3] = 1
    return drawn


def save(file: Path, voxels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(file, voxels, AFFINE)


def patient(root: Path, ed: str, es: str, seed: int, ed_size: int = 4, es_size: int = 2) -> None:
    """Image and mask of ED and ES, each named by a pattern whose end is the file's."""
    for name, number, size in ((ed, 0, ed_size), (es, 1, es_size)):
        save(root / name.format(""), image(10 * seed + number))
        save(root / name.format("_gt"), mask(size))


def converted(raw: Path, root: Path, *more: str) -> Path:
    assert main(["convert", "cine", "-i", str(root), "-d", "170", "--keep-ids", *more]) == 0
    return dataset_folder(raw, 170)


LAYOUTS = {
    "folders": ("{0}_ED/{0}_ED{{}}.nii.gz", "{0}_ES/{0}_ES{{}}.nii.gz"),
    "folders of equal files": ("{0}_ED/sa{{}}.nii.gz", "{0}_ES/sa{{}}.nii.gz"),
    "words": ("{0}-end-diastole/a{{}}.nii.gz", "{0}-end-systole/b{{}}.nii.gz"),
    "phase first": ("dia_{0}/i{{}}.nii", "sys_{0}/i{{}}.nii"),
    "numbers": ("{0}_frame01/i{{}}.nii.gz", "{0}_frame12/i{{}}.nii.gz"),
    "flat": ("{0}_ED{{}}.nii.gz", "{0}_ES{{}}.nii.gz"),
    "short axis": ("{0}_ED_sa{{}}.nii.gz", "{0}_ES_sa{{}}.nii.gz"),
    "one folder": ("{0}/{0}_ED{{}}.nii.gz", "{0}/{0}_ES{{}}.nii.gz"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_phases_of_a_patient_are_one_subject(
    raw: Path, tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "own"
    for seed, name in enumerate(("alice1", "alice2", "bob")):
        patient(root, *(pattern.format(name) for pattern in LAYOUTS[layout]), seed=seed)
    assert main(["convert", "cine", "-i", str(root), "-d", "170", "--dry-run"]) == 0
    assert "train: alice1, alice2, bob\n" in capsys.readouterr().out
    target = converted(raw, root)
    cases = read_cases(target / "cases.csv")
    assert {case: row.phase for case, row in cases.items()} == {
        f"{name}_frame{frame:02}": phase
        for name in ("alice1", "alice2", "bob")
        for frame, phase in enumerate(("ED", "ES"))
    }
    for seed, name in enumerate(("alice1", "alice2", "bob")):
        for frame, size in enumerate((4, 2)):
            voxels, _ = read_nifti(target / f"imagesTr/{name}_frame{frame:02}_0000.nii.gz")
            labels, _ = read_nifti(target / f"labelsTr/{name}_frame{frame:02}.nii.gz")
            assert np.array_equal(voxels, image(10 * seed + frame))
            assert np.array_equal(labels, mask(size))
    for fold in read_splits(target / "splits_final.json"):
        assert not {name[:-8] for name in fold["train"]} & {name[:-8] for name in fold["val"]}


def test_masks_in_a_folder_of_their_own(raw: Path, tmp_path: Path):
    for number, phase in enumerate(("ED", "ES")):
        save(tmp_path / f"own/bob_{phase}/heart.nii.gz", image(number))
        save(tmp_path / f"own/zoe_{phase}/heart.nii.gz", image(5 + number))
        save(tmp_path / f"masks/bob_{phase}_gt.nii.gz", mask(4 - 2 * number))
    target = converted(raw, tmp_path / "own", "--labels", str(tmp_path / "masks"))
    assert sorted(file.name for file in (target / "labelsTr").iterdir()) == [
        "bob_frame00.nii.gz",
        "bob_frame01.nii.gz",
    ]


@pytest.mark.parametrize("labelled", [(1,), (2,), (1, 2)])
def test_masks_with_the_number_of_their_folder_are_its(
    raw: Path, tmp_path: Path, labelled: tuple[int, ...]
):
    """The first of them has another place in time than its number."""
    for number in (1, 2):
        save(tmp_path / f"own/bob_frame{number:02}/i.nii.gz", image(number))
    for number in labelled:
        folder = tmp_path / f"own/bob_frame{number:02}"
        save(folder / f"bob_frame{number:02}_gt.nii.gz", mask(5 - number))
    target = converted(raw, tmp_path / "own")
    for number in labelled:
        labels, _ = read_nifti(target / f"labelsTr/bob_frame{number - 1:02}.nii.gz")
        assert np.array_equal(labels, mask(5 - number))
    assert len([*(target / "labelsTr").iterdir()]) == len(labelled)


def test_the_phase_of_a_single_frame_is_that_of_its_name(raw: Path, tmp_path: Path):
    save(tmp_path / "own/bob_ES/i.nii.gz", image(1)[..., None])
    save(tmp_path / "own/bob_ES/i_gt.nii.gz", mask(2))
    target = converted(raw, tmp_path / "own")
    assert read_cases(target / "cases.csv")["bob_ES_frame00"].phase == "ES"


def test_masks_that_contradict_the_names(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    patient(tmp_path / "own", "bob_ED/i{}.nii", "bob_ES/i{}.nii", 0, ed_size=2, es_size=4)
    cases = read_cases(converted(raw, tmp_path / "own") / "cases.csv")
    assert [cases[f"bob_frame0{frame}"].phase for frame in (0, 1)] == ["ES", "ED"]
    assert (
        "the name has ED 0 and ES 1, labels at 0 and 1: ED is 1, ES is 0" in capsys.readouterr().out
    )


def two_cines(root: Path) -> None:
    save(root / "bob_ED/i.nii.gz", image(1, 3))
    save(root / "bob_ES/i.nii.gz", image(2, 3))


def a_cine_beside_a_phase(root: Path) -> None:
    save(root / "bob/i.nii.gz", image(1, 3))
    save(root / "bob_ED/i.nii.gz", image(2))


def flat_cines(root: Path) -> None:
    save(root / "bob_ED.nii.gz", image(1, 3))
    save(root / "bob_ES.nii.gz", image(2, 3))


def dicom(root: Path) -> None:
    series(root / "bob_ED")
    series(root / "bob_ES", uid="1.2.3.5", number=5)


def numbered_files_of_one_phase(root: Path) -> None:
    for number in range(3):
        save(root / f"bob_ES_{number}.nii.gz", image(number)[..., None])


def a_folder_for_each_phase(root: Path) -> None:
    for number in range(4):
        save(root / "ED" / f"p{number}.nii.gz", image(number))
        save(root / "ES" / f"p{number}.nii.gz", image(number + 4))


def test_files_of_one_phase_that_differ_in_a_number_may_be_frames(tmp_path: Path):
    """`ES` may be a country, or `es` a word; only both phases of a name tell that they are a patient's."""
    for number in range(3):
        save(tmp_path / f"ES_cine1_{number}.nii.gz", image(number))
        save(tmp_path / f"bob{number}_ED.nii.gz", image(3 + number))
        save(tmp_path / f"ES{number}.nii.gz", image(6 + number, 3))
    tasks, refused = list_tasks(tmp_path)
    assert [task.subject for task in tasks] == ["ES0", "ES1", "ES2"]
    assert refused.keys() == {"ES_cine1_0", "bob0_ED"}
    for why in refused.values():
        assert "frames of one subject, or several subjects?" in why


@pytest.mark.parametrize(
    "layout",
    [
        two_cines,
        a_cine_beside_a_phase,
        flat_cines,
        dicom,
        numbered_files_of_one_phase,
        a_folder_for_each_phase,
    ],
)
def test_what_cannot_be_joined_is_refused(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout
):
    layout(tmp_path / "own")
    save(tmp_path / "own/zoe.nii.gz", image(9, 3))
    for more in (["--dry-run"], []):
        line = ["convert", "cine", "-i", str(tmp_path / "own"), "-d", "170", "--keep-ids", *more]
        assert main(line) == 1
        said = capsys.readouterr().out
        assert "one patient as several subjects?" in said or "frames of one subject, or" in said
    cases = read_cases(dataset_folder(raw, 170) / "cases.csv")
    assert {case.subject for case in cases.values()} == {"zoe"}
