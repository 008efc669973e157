from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, inv_ornt_aff

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import Case, read_cases
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.conversion import convert as conversion
from nnunet_ssp.dataset_conversion import acdc, cine
from nnunet_ssp.dataset_conversion.cine_files import refuse_public
from nnunet_ssp.preparation.raw import check_subjects, list_jobs, read_dataset_json
from tests.dicom_files import FOUR_CHAMBER, edit, series
from tests.nifti_headers import save_with

convert = partial(cine.convert, keep_ids=True)  # pseudonyms: test_pseudonyms.py
SHAPE = (6, 5, 3, 12)  # columns, rows, slices, frames
ED, ES = 0, 4
# Slices run from base to apex: to the left, to the front and to the feet.
AFFINE = np.array([[1, 0.5, -4, 9], [1, -0.5, 4, 8], [0, -1, -4, 7], [0, 0, 0, 1.0]])


def frames(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16)


def drawn(*labelled: int) -> np.ndarray:
    """A mask with all three classes, smaller in each further frame."""
    mask = np.zeros(SHAPE, np.uint8)
    for number, frame in enumerate(labelled):
        mask[: 3 - number, :3, :, frame] = [[[1], [2], [3]]]
    return mask


def save(voxels: np.ndarray, file: Path, affine: np.ndarray = AFFINE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype), file)
    return file


@pytest.fixture
def root(raw: Path) -> Path:
    (raw.parent / "own").mkdir()
    return raw.parent / "own"


def log(target: Path) -> dict[str, dict[str, object]]:
    return json.loads((target / "convert.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def cases_of(target: Path) -> dict[str, Case]:
    return read_cases(target / "cases.csv")


def cine_in(target: Path, subject: str, folder: str = "imagesUn") -> np.ndarray:
    files = sorted(
        target.glob(f"{folder}/{subject}_frame*_0000.nii.gz"), key=lambda file: file.name
    )
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(file)).T for file in files]
    return np.stack(arrays, axis=-1)


# -- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        "S1.nii.gz",
        "S1.nii",
        "S1_sa.nii.gz",
        "S1/S1.nii.gz",
        "S1/S1_sa.nii.gz",
        "S1/sa.nii.gz",
        "S1/what ever.nii.gz",
        "S1/exam/cine 4D.nii",
    ],
)
def test_a_4d_file(root: Path, file: str):
    save(frames(), root / file)
    target = convert(root, 120)
    assert target.name == "Dataset120_Cine"
    assert np.array_equal(cine_in(target, "S1"), frames())
    case = cases_of(target)["S1_frame11"]
    assert (case.source, case.frame, case.source_frame, case.n_frames) == ("cine", 11, 11, 12)
    assert (case.base, case.vendor, case.phase, case.split) == ("first", "unknown", "", "train")
    assert log(target)["notes"] == log(target)["corrections"] == log(target)["refused"] == {}
    dataset = json.loads((target / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0}
    assert dataset["numTraining"] == 12


@pytest.mark.parametrize("pattern", ["frame{}.nii.gz", "S1_{}_0000.nii", "{}/vol.nii.gz"])
def test_3d_frames_are_in_natural_order(root: Path, pattern: str):
    for t in range(12):
        save(frames()[..., t], root / "S1" / pattern.format(t + 1))
    assert np.array_equal(cine_in(convert(root, 120), "S1"), frames())


def test_flat_frames_of_one_name_are_one_subject(root: Path):
    """As in ACDC: each frame as a subject would put one patient on both sides of a fold."""
    cine = frames()
    for subject, order in (("heart001", range(12)), ("heart002", (9, 10))):
        for frame in order:
            save(cine[..., frame], root / f"{subject}_frame{frame}.nii.gz")
    save(drawn(ED)[..., ED], root / "heart001_frame0_gt.nii.gz")
    target = convert(root, 120)
    np.testing.assert_array_equal(cine_in(target, "heart001"), cine[..., 1:])
    assert names(target / "labelsTr") == ["heart001_frame00.nii.gz"]
    assert {case.subject for case in cases_of(target).values()} == {"heart001", "heart002"}


def test_files_called_as_in_acdc_pass_with_names_for_their_labels(root: Path):
    save(frames(), root / "patient001.nii.gz")
    save(drawn(ED)[..., ED], root / "patient001_frame01_gt.nii.gz")
    refuse_public(root, names_own_labels=True)
    with pytest.raises(ValueError, match="name its labels: --label-names LVBP LVM RV"):
        convert(root, 120)
    words = ["convert", "cine", "-i", str(root), "-d", "120", "-np", "1", "--label-names"]
    assert main([*words, "LVBP", "LVM", "RV"]) == 0  # given, though they are the default's


@pytest.mark.parametrize("file", ["p1_{}.nii.gz", "{}.nii.gz", "p{}_sax.nii.gz"])
def test_flat_frames_that_may_be_of_one_subject_are_refused(root: Path, file: str):
    save(frames(), root / "whole7.nii.gz")
    save(frames(), root / "whole8.nii.gz")
    for frame in range(3):
        image = save(frames()[..., frame], root / file.format(frame))
        save(drawn(0)[..., 0], root / image.name.replace(".", "_gt.", 1))
    target = convert(root, 120)
    assert {case.subject for case in cases_of(target).values()} == {"whole7", "whole8"}
    (refusal,) = log(target)["refused"].values()
    assert "3 files of one frame each" in str(refusal) and "a folder for each" in str(refusal)


@pytest.mark.parametrize("file", ["p1_{}.nii.gz", "p1_frame{:02d}.nii.gz", "{}.nii.gz"])
def test_flat_frames_with_a_gap_are_refused_with_the_two_ways_out(root: Path, file: str):
    save(frames(), root / "whole.nii.gz")
    for number, frame in enumerate((0, 1, 4)):
        save(frames()[..., number], root / file.format(frame))
    (refusal,) = log(convert(root, 120))["refused"].values()
    said = str(refusal)
    assert "rames of one" in said and "a folder for each" in said
    if "_frame" in file:
        assert "a frame is missing before p1_frame04.nii.gz, whose number 4 follows 1" in said
        # The first way out.
        (root / "p1_frame04.nii.gz").rename(root / "p1_frame02.nii.gz")
        target = convert(root, 120, overwrite=True)
        assert {case.subject for case in cases_of(target).values()} == {"p1", "whole"}


def test_a_file_beside_folders_of_subjects_is_spoken_of(root: Path):
    for subject in ("s1", "s2"):
        save(frames(), root / subject / f"{subject}.nii.gz")
    save(frames(), root / "atlas.nii.gz")
    assert "beside 2 folders of subjects" in str(log(convert(root, 120))["notes"]["atlas"])


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("training/patient001/Info.cfg", "acdc -i ROOT -d 120"),
        ("database/training/patient001/Info.cfg", "acdc -i ROOT/database -d 120"),
        ("testing/patient001_frame01_gt.nii.gz", "acdc -i ROOT -d 120"),
        ("testing/mine/patient001/Info.cfg", "acdc, takes a folder"),
        ("patient001/Info.cfg", "acdc, takes a folder with training/ or testing/"),
        ("patient001/patient001_frame01_gt.nii.gz", "acdc, takes a folder with training/"),
        ("patient001_frame01_gt.nii.gz", "acdc, takes a folder with training/ or testing/"),
        ("211230_M&Ms_Dataset_information_diagnosis_opendataset.csv", "mnms -i ROOT -d 120"),
        ("dataset_information.csv", "mnms2 -i ROOT -d 120"),
    ],
)
def test_a_public_set_is_left_to_its_converter(root: Path, file: str, words: str):
    """ACDC's label 1 is the right ventricle, and each of the sets has test subjects."""
    save(frames(), root / "s1.nii.gz")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).touch()
    with pytest.raises(ValueError, match="is laid out as ") as refused:
        convert(root, 120)
    assert f"nnunet-ssp convert {words.replace('ROOT', str(root))}" in str(refused.value)


def test_frames_named_after_trigger_times(root: Path):
    for t in range(12):
        save(frames()[..., t], root / "S1" / f"t{round(46.4 * t)}.nii.gz")
    assert np.array_equal(cine_in(convert(root, 120), "S1"), frames())


def test_other_views_beside_a_named_file_are_left_out(root: Path):
    save(frames(), root / "S1" / "sa.nii.gz")
    save(frames()[:, :, :1], root / "S1" / "la_4ch.nii.gz")
    assert log(convert(root, 120))["notes"] == {"S1": ["left out la_4ch.nii.gz"]}


def test_dicom_beside_nifti_is_spoken_of(root: Path):
    save(frames(), root / "S1" / "sa.nii.gz")
    (root / "S1" / "notes.txt").write_text("no DICOM")
    series(root / "S1" / "DICOM", [0], prefix="x")
    (note,) = log(convert(root, 120))["notes"]["S1"]
    assert note == "left out 10 DICOM files, the first x0"


def test_a_folder_of_dicom_files(root: Path, capsys: pytest.CaptureFixture[str]):
    voxels = series(root / "S1" / "DICOM" / "1")
    series(root / "S1" / "DICOM" / "2", [0], directions=FOUR_CHAMBER, uid="1.1", number=1)
    target = convert(root, 120)
    assert np.array_equal(cine_in(target, "S1"), voxels)
    case = cases_of(target)["S1_frame00"]
    assert (case.vendor, case.scanner, case.field, case.base) == ("Maker", "Model", "1.5", "first")
    note = "left out 1 series of 1 slice x 10 frames: long axis"
    assert log(target)["notes"] == {"S1": [note]}
    assert f"S1: {note}" in capsys.readouterr().out


def test_kinds_may_be_mixed(root: Path):
    series(root / "D1")
    save(frames(), root / "N1.nii.gz")
    save(frames(1), root / "N2" / "sa.nii.gz")
    (root / ".DS_Store").write_bytes(b"\0")
    cases = cases_of(convert(root, 120))
    assert {case.subject for case in cases.values()} == {"D1", "N1", "N2"}


def test_nothing_of_the_patient_gets_out(root: Path, capsys: pytest.CaptureFixture[str]):
    series(root / "S1", SeriesDescription="Secret description", StudyID="Secret")
    convert(root, 120, dry_run=True)
    target = convert(root, 120)
    said = capsys.readouterr().out
    found = "DICOM of 1 subject (1 PatientID): 1 study, 1 series, 40 images"
    assert said.count(found) == 2 and said.count("  scanner: Maker Model, 1.5 T (1 subject)") == 2
    assert not any(word in said for word in ("Secret", "19010203", "P1", "20200101"))
    for file in target.rglob("*"):
        if file.suffix in (".csv", ".json"):
            text = file.read_text()
            assert not any(word in text for word in ("Secret", "19010203", "P1", "20200101"))
    header = nibabel.load(target / "imagesUn" / "S1_frame00_0000.nii.gz").header
    assert header["descrip"] == header["db_name"] == b""
    assert not header.extensions


# -- subjects by PatientID -------------------------------------------------------------------------


def two_patients(folder: Path) -> list[np.ndarray]:
    first = series(folder, prefix="a", PatientID="Smith^John 7")
    second = series(folder, range(5), prefix="b", uid="1.5", number=5, PatientID="B2")
    return [first, second]


def test_a_flat_folder_of_several_patients(root: Path):
    voxels = two_patients(root)
    (root / "DICOMDIR").write_bytes(b"")
    target = convert(root, 120, workers=2)
    assert np.array_equal(cine_in(target, "Smith-John-7"), voxels[0])
    assert np.array_equal(cine_in(target, "B2"), voxels[1])
    note = ["named after its PatientID"]
    assert log(target)["notes"] == {"B2": note, "Smith-John-7": note}


def test_a_flat_folder_of_one_patient_has_the_folders_name(root: Path):
    voxels = series(root)
    target = convert(root, 120)
    assert np.array_equal(cine_in(target, "own"), voxels)
    assert log(target)["notes"] == {}


def test_patients_in_one_subfolder(root: Path):
    voxels = two_patients(root / "export")
    with pytest.raises(ValueError, match="export: must hold the images of one patient, not of 2"):
        convert(root, 120)
    target = convert(root, 120, by_patient_id=True)
    assert np.array_equal(cine_in(target, "B2"), voxels[1])
    assert len({case.subject for case in cases_of(target).values()}) == 2


def test_a_patient_without_id_is_refused_among_others(root: Path):
    two_patients(root)
    series(root, prefix="c", uid="1.6", number=6, PatientID="")
    assert log(convert(root, 120))["refused"] == {
        "?": f"{root.name}: no name to call the subject by."
    }


@pytest.mark.parametrize("dry_run", [False, True])
def test_two_visits_of_a_patient_are_spoken_of(
    root: Path, dry_run: bool, capsys: pytest.CaptureFixture[str]
):
    for number, name in enumerate(("fu1", "fu2", "other")):
        series(root / name, PatientID="Other" if name == "other" else "Secret", number=number + 1)
    convert(root, 120, dry_run=dry_run)
    output = capsys.readouterr().out
    assert (
        "\nWARNING: fu1, fu2 have the same PatientID: one subject? use --by-patient-id\n" in output
    )
    assert "Secret" not in output


def test_an_interrupted_run_keeps_no_patient_id(root: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("fu1", "fu2"):
        series(root / name, PatientID="Secret")
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_cases", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(root, 120)
    target = root.parent / "raw" / "Dataset120_Cine"
    records = [file.read_text() for file in target.rglob("fu*.json")]
    assert len(records) == 2 and "Secret" not in "".join(records)
    assert "fu1, fu2 have the same PatientID" in str(log(convert(root, 120))["remarks"])


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_for_each_series_of_one_patient(root: Path):
    for z in range(4):
        series(root / f"series{z}", [z], uid=f"1.2.{z}", number=z)
    hint = "Perhaps the folders are series of one patient: --by-patient-id."
    with pytest.raises(ValueError, match=rf"series3: no short-axis cine.* {hint} The first:"):
        convert(root, 120)
    target = convert(root, 120, by_patient_id=True)
    assert {case.subject for case in cases_of(target).values()} == {"own"}
    series(root / "series9", [9], uid="1.2.9", PatientID="P9")
    refused = log(convert(root, 121, by_patient_id=True))["refused"]
    assert list(refused) == ["P9"] and hint not in str(refused)


# -- the series that the user names ----------------------------------------------------------------


def two_stacks(folder: Path) -> list[np.ndarray]:
    """Two stacks that cannot be told apart: neither lies across the usual heart."""
    normal = np.array([-1, -1, -1]) / np.sqrt(3)
    row = np.array([1, -1, 0]) / np.sqrt(2)
    first = series(folder / "Cine SAX", directions=(*row, *np.cross(normal, row)))
    second = series(folder / "other", directions=FOUR_CHAMBER, uid="1.5", number=14)
    return [first, second]


@pytest.mark.parametrize(
    ("value", "number"), [("4", 0), ("14", 1), ("1.5", 1), ("cine sax", 0), ("oth", 1)]
)
def test_the_user_names_the_series(root: Path, value: str, number: int):
    voxels = two_stacks(root / "S1")
    series(root / "S2", uid="1.7", number=7, PatientID="P7")
    refused = log(convert(root, 119))["refused"]
    assert "two cines may be the short axis" in refused["S1"] and "--series" in refused["S1"]
    target = convert(root, 120, series=[value])
    assert np.array_equal(cine_in(target, "S1"), voxels[number])
    assert log(target)["notes"]["S1"][0] == "the series of --series, without 40 files of others"
    assert log(target)["options"]["series"] == [value]
    assert "S2" not in log(target)["notes"]
    assert (
        "options" in log(target)
        and "series" not in log(root.parent / "raw/Dataset119_Cine")["options"]
    )


def test_a_series_in_several_parts(root: Path):
    voxels = [series(root / "S1", [z], uid=f"1.2.{z}", number=z + 1) for z in range(4)]
    target = convert(root, 120, series=["2", "3", "4"])
    assert np.array_equal(cine_in(target, "S1"), np.concatenate(voxels[1:], axis=2))


def test_a_series_that_nobody_has(root: Path):
    two_stacks(root / "S1")
    with pytest.raises(
        ValueError, match=r"`series` \(=1\) is no DICOM series of any subject; .* are 4, 14"
    ):
        convert(root, 120, series=["4", "1"])


# -- names -----------------------------------------------------------------------------------------


def test_names_become_file_names(root: Path):
    save(frames(), root / "Fälle 1&2.nii.gz")
    target = convert(root, 120)
    assert len(names(target / "imagesUn")) == 12
    assert names(target / "imagesUn")[0] == "F-lle-1-2_frame00_0000.nii.gz"
    assert "renamed: - replaces characters" in str(log(target)["notes"]["F-lle-1-2"])


def test_names_beyond_a_file_systems_limit_are_refused(root: Path):
    series(root, prefix="a", PatientID="P" * 300)
    series(root, prefix="b", uid="1.5", number=5, PatientID="B2")
    target = convert(root, 120)
    (name, reason), *_ = log(target)["refused"].items()
    assert name == "P" * 40 + "..."
    assert "the subject's name has 300 characters; 200 are the most" in reason
    assert {case.subject for case in cases_of(target).values()} == {"B2"}


def test_names_must_be_unique(root: Path):
    for name in ("A 1", "A-1", "B_sa", "B", "C"):
        save(frames(), root / f"{name}.nii.gz")
    target = convert(root, 120)
    assert log(target)["refused"] == {
        name: f"{root.name}: more than one subject is called {name}." for name in ("A-1", "B")
    }
    assert {case.subject for case in cases_of(target).values()} == {"C"}


# -- files as people have them ---------------------------------------------------------------------


def test_frames_and_masks_with_a_fourth_axis_of_one(root: Path):
    for t in range(12):
        save(frames()[..., t : t + 1], root / "S1" / f"vol{t:04}.nii.gz")
    save(frames(), root / "S2.nii.gz")
    for frame in (ED, ES):
        save(drawn(ED, ES)[..., frame : frame + 1], root / f"S2_frame{frame:02}_gt.nii.gz")
    target = convert(root, 120)
    assert np.array_equal(cine_in(target, "S1"), frames())
    assert names(target / "labelsTr") == ["S2_frame00.nii.gz", "S2_frame04.nii.gz"]
    assert log(target)["notes"] == log(target)["refused"] == {}


def philips(folder: Path, name: str, mask: bool = False) -> None:
    """The phases as dcm2niix names them."""
    for t in range(12):
        save(frames()[..., t], folder / f"{name}{f'_t{37 * t}' if t else ''}.nii")
    if mask:
        save(drawn(2)[..., 2], folder / f"{name}_t74_gt.nii.gz")


@pytest.mark.parametrize("name", ["cine_5", "S1", "3_sa"])
def test_phases_of_philips(root: Path, name: str):
    philips(root / "S1", name, mask=True)
    target = convert(root, 120)
    assert np.array_equal(cine_in(target, "S1", "images*"), frames())
    assert names(target / "labelsTr") == ["S1_frame02.nii.gz"]
    save(
        drawn(1, 3), root / "S1" / f"{name}_gt.nii.gz"
    )  # 4D, though called as that of the first phase
    (root / "S1" / f"{name}_t74_gt.nii.gz").unlink()
    assert names(convert(root, 121) / "labelsTr") == ["S1_frame01.nii.gz", "S1_frame03.nii.gz"]


def test_phases_that_do_not_belong_together_are_refused(root: Path):
    for subject in ("two", "other", "none"):
        philips(root / subject, "cine")
    (root / "two" / "cine_t37.nii").rename(root / "two" / "cine_t0.nii")
    (root / "other" / "cine_t37.nii").rename(root / "other" / "rest_t37.nii")
    (root / "none" / "cine.nii").rename(root / "none" / "rest.nii")
    message = r"none: must hold one 4D file .*, or 3D frames"
    with pytest.raises(FileNotFoundError, match=message) as error:
        convert(root, 120)
    assert str(error.value).count("or 3D frames whose names differ only in numbers") == 3


@pytest.mark.parametrize("names_", [["sax_1", "sax_2", "sax_4"], ["sax", "saxa", "saxb"]])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_file_for_each_slice(
    root: Path, names_: list[str], dry_run: bool, capsys: pytest.CaptureFixture[str]
):
    for z, name in enumerate(names_):
        affine = AFFINE.copy()
        affine[:3, 3] += z * AFFINE[:3, 2]
        save(frames()[:, :, z : z + 1], root / "S1" / f"{name}.nii.gz", affine)
    save(drawn(ED), root / "S1_gt.nii.gz")
    target = convert(root, 120, dry_run=dry_run)
    output = capsys.readouterr().out
    assert "S1: one stack of 3 slices, each in a file of its own" in output
    if dry_run:
        assert output.splitlines()[2].split() == ["train", "1", "1", "0", "12", "0"]
        return
    assert np.array_equal(cine_in(target, "S1", "images*"), frames())
    assert names(target / "labelsTr") == ["S1_frame00.nii.gz"]
    save(drawn(ED)[:, :, :1], root / "S1_gt.nii.gz")
    with pytest.raises(ValueError, match=r"S1_gt\.nii\.gz: must be a mask of the whole stack"):
        convert(root, 121)


def test_unpacked_copies_are_left_out(root: Path):
    for ending in (".nii", ".nii.gz"):
        save(frames(), root / f"S1{ending}")
        save(drawn(ED), root / f"S1_gt{ending}")
        for t in range(12):
            save(frames()[..., t], root / "S2" / f"{t}{ending}")
    target = convert(root, 120)
    assert np.array_equal(cine_in(target, "S2"), frames())
    assert log(target)["refused"] == {}
    assert log(target)["notes"] == {
        "S1": [
            "left out S1.nii and 1 more: .nii.gz is there, too",
            "only frame 0 holds labels, taken as ED",
        ],
        "S2": ["left out 0.nii and 11 more: .nii.gz is there, too"],
    }


# -- headers as people have them -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["4D", "3D"])
@pytest.mark.parametrize("degrees", [0, 35, 60])
def test_a_stack_turned_to_the_bodys_axes_is_put_upright(root: Path, kind: str, degrees: int):
    """As MONAI's Orientation, TorchIO's ToCanonical and nibabel's as_closest_canonical do."""
    normal = np.array([-0.60, 0.55, -0.58]) / np.linalg.norm([-0.60, 0.55, -0.58])
    up = np.array([0, 0, 1.0]) - normal * normal[2]
    up /= np.linalg.norm(up)
    row = np.cos(np.radians(degrees)) * up + np.sin(np.radians(degrees)) * np.cross(normal, up)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([row * 1.4, np.cross(normal, row) * 1.4, normal * 8])
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(frames(), affine))
    mask = nibabel.as_closest_canonical(nibabel.Nifti1Image(drawn(ED, ES), affine))
    if kind == "4D":
        nibabel.save(image, root / "S1.nii.gz")
        nibabel.save(mask, root / "S1_gt.nii.gz")
    else:
        for t in range(12):
            save(np.asarray(image.dataobj)[..., t], root / "S1" / f"{t}.nii", image.affine)
        for t in (ED, ES):
            save(np.asarray(mask.dataobj)[..., t], root / "S1" / f"{t}_gt.nii", mask.affine)
    target = convert(root, 120)
    axis = image.shape.index(3)
    said = (
        []
        if axis == 2
        else [f"slices were on the file's {('first', 'second')[axis]} axis, now on the third"]
    )
    assert log(target)["corrections"].get("S1", []) == said
    assert {case.base for case in cases_of(target).values()} == {
        "first"
        if np.sign(
            normal @ nibabel.load(target / "imagesUn" / "S1_frame01_0000.nii.gz").affine[:3, 2]
        )
        > 0
        else "last"
    }
    for frame in (ED, ES):
        written = nibabel.load(target / "imagesTr" / f"S1_frame{frame:02}_0000.nii.gz")
        assert written.shape[2] == 3
        assert np.sign(np.linalg.det(written.affine)) == np.sign(np.linalg.det(image.affine))
        label = nibabel.load(target / "labelsTr" / f"S1_frame{frame:02}.nii.gz")
        for index in np.ndindex(SHAPE[:3]):
            there = np.linalg.inv(written.affine) @ affine @ (*index, 1)
            there = tuple(np.rint(there[:3]).astype(int))
            assert written.dataobj[there] == frames()[(*index, frame)]
            assert label.dataobj[there] == drawn(ED, ES)[(*index, frame)]


def test_masks_of_tools_that_read_the_header_otherwise(root: Path):
    """ITK-SNAP, Slicer and nnU-Net read it as SimpleITK, others as nibabel."""
    turned = np.array([[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1.0]]) @ AFFINE
    for name, codes in (("none", (0, 0)), ("two", (2, 1)), ("one", (1, 1))):
        save_with(
            root / f"{name}.nii.gz",
            frames(),
            sform=turned,
            qform=AFFINE,
            sform_code=codes[0],
            qform_code=codes[1],
        )
        (root / f"{name}2.nii.gz").write_bytes((root / f"{name}.nii.gz").read_bytes())
        image = sitk.ReadImage(root / f"{name}.nii.gz")
        mask = sitk.GetImageFromArray(np.ascontiguousarray(drawn(ED, ES).T), isVector=False)
        mask.CopyInformation(image)
        sitk.WriteImage(mask, root / f"{name}_gt.nii.gz")
        save(
            drawn(ED, ES), root / f"{name}2_gt.nii.gz", nibabel.load(root / f"{name}.nii.gz").affine
        )
    target = convert(root, 120)
    assert log(target)["refused"] == log(target)["corrections"] == {}
    for name in ("none", "two", "one", "none2", "two2", "one2"):
        label = sitk.ReadImage(target / "labelsTr" / f"{name}_frame00.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(label).T, drawn(ED, ES)[..., ED])


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_a_header_says_amiss_is_in_the_summary(
    root: Path, dry_run: bool, capsys: pytest.CaptureFixture[str]
):
    save_with(root / "S1.nii.gz", frames(), sform=AFFINE, sform_code=1, unit="meter")
    save_with(root / "S2.nii.gz", frames(), sform=AFFINE, sform_code=1, pixdim=(1, 1, 1))
    save_with(root / "S3.nii.gz", frames(), sform=np.eye(4), sform_code=1)
    convert(root, 120, dry_run=dry_run)
    output = capsys.readouterr().out
    assert "S1: the header declares metres, but its numbers are mm" in output
    assert "S2: the spacing is that of the sform; pixdim has unit scales" in output
    assert "S3: the affine is the identity" in output


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["S1.nii.gz", "S1/sa.nii.gz"])
@pytest.mark.parametrize(
    "mask", ["S1_gt.nii.gz", "S1_sa_gt.nii", "S1/S1_gt.nii.gz", "S1/any_gt.nii.gz"]
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_4d_mask(root: Path, image: str, mask: str, apart: bool):
    save(frames(), root / image)
    labels = root.parent / "labels" if apart else root
    save(drawn(ED, ES), labels / mask)
    save(frames(1), root / "S2.nii.gz")
    target = convert(root, 120, labels=labels if apart else None)
    assert names(target / "labelsTr") == ["S1_frame00.nii.gz", "S1_frame04.nii.gz"]
    assert len(names(target / "imagesUn")) == 10 + 12
    for frame, phase in ((ED, "ED"), (ES, "ES")):
        assert cases_of(target)[f"S1_frame{frame:02}"].phase == phase
        label = sitk.ReadImage(target / "labelsTr" / f"S1_frame{frame:02}.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(label).T, drawn(ED, ES)[..., frame])
    assert log(target)["notes"] == log(target)["corrections"] == log(target)["refused"] == {}


def test_a_mask_for_each_labelled_frame(root: Path):
    save(frames(), root / "S1.nii.gz")
    for frame in (ED, ES):
        save(drawn(ED, ES)[..., frame], root / f"S1_frame{frame:02}_gt.nii.gz")
    for t in range(12):
        save(frames()[..., t], root / "S2" / f"patient2_frame{t + 1:02}.nii.gz")
    save(drawn(3)[..., 3], root / "S2" / "patient2_frame04_gt.nii.gz")
    target = convert(root, 120)
    assert names(target / "labelsTr") == [
        "S1_frame00.nii.gz",
        "S1_frame04.nii.gz",
        "S2_frame03.nii.gz",
    ]
    assert log(target)["notes"] == {"S2": ["only frame 3 holds labels, taken as ED"]}
    assert len(read_splits(target / "splits_final.json")) == 2


@pytest.mark.parametrize("apart", [False, True])
def test_masks_of_frames_in_folders_of_their_own(root: Path, apart: bool):
    labels = root.parent / "labels" if apart else root
    for t in range(12):
        save(frames()[..., t], root / "S1" / f"{t + 1}" / "vol.nii.gz")
        save(frames()[..., t], root / "S2" / f"{t + 1}" / "vol.nii.gz")
    save(drawn(5)[..., 5], labels / "S1" / "6" / "vol_gt.nii.gz")
    save(drawn(5)[..., 5], labels / "S2" / "vol_gt.nii.gz")
    target = convert(root, 120, labels=labels if apart else None)
    assert names(target / "labelsTr") == ["S1_frame05.nii.gz"]
    file = "vol_gt.nii.gz" if apart else "S2/vol_gt.nii.gz"  # of files elsewhere the last name
    assert log(target)["refused"] == {
        "S2": f"{file}: must be in a folder called as its image's: 12 images have this name."
    }


@pytest.mark.parametrize(
    ("image", "mask", "frame"),
    [
        ("S1_frame{}", "S1_frame06_gt", 5),  # filled up with zeros
        ("S1_frame{}", "S1_frame6_gt", 5),
        ("frame_{:03}", "S1_frame06_gt", 5),
        ("S1_{:03}", "S1_frame06_gt", 6),  # no number of a frame: counted from 00
        ("frame{:02}_0000", "S1_frame06_gt", 5),
        ("S1_frame{:02}", "S1_frame00_gt", None),
    ],
)
def test_masks_count_as_the_names_of_the_frames(
    root: Path, image: str, mask: str, frame: int | None
):
    for t in range(12):
        save(frames()[..., t], root / "S1" / f"{image.format(t + 1)}.nii.gz")
    save(drawn(5)[..., 5], root / "S1" / f"{mask}.nii.gz")
    save(frames(), root / "S2.nii.gz")
    target = convert(root, 120)
    if frame is None:
        assert (
            f"{mask}.nii.gz: there must be one image of frame 00." in log(target)["refused"]["S1"]
        )
    else:
        assert names(target / "labelsTr") == [f"S1_frame{frame:02}.nii.gz"]


@pytest.mark.parametrize("image", ["S1_SA.nii.gz", "S1/S1_SA.nii.gz", "S1/SA.nii.gz"])
def test_sa_may_be_in_capitals(root: Path, image: str):
    save(frames(), root / image)
    save(drawn(ED, ES), root / image.replace(".nii", "_gt.nii"))
    if "/" in image:
        save(frames(1), root / "S1" / "S1_LA.nii.gz")
    target = convert(root, 120)
    assert names(target / "labelsTr") == ["S1_frame00.nii.gz", "S1_frame04.nii.gz"]
    assert log(target)["refused"] == {}


def test_masks_are_turned_to_the_image(root: Path):
    voxels = series(root / "S1")
    mask = np.zeros((*voxels.shape[:3], 10), np.uint8)
    mask[1:3, 2:5, 1, 0] = 2
    mask[0, 1, 3, 6] = 1
    affine = nibabel.load(
        convert(root, 119) / "imagesUn" / "S1_frame00_0000.nii.gz"
    ).affine  # of the stack
    turn = np.array([[1, -1], [0, 1], [2, -1]])  # rows first, two axes backwards
    turned = apply_orientation(mask, turn)
    save(turned, root / "S1_gt.nii.gz", affine @ inv_ornt_aff(turn, mask.shape[:3]))
    target = convert(root, 120)
    assert log(target)["corrections"] == {"S1": ["axes of the masks turned to those of the image"]}
    for frame in (0, 6):
        label = sitk.ReadImage(target / "labelsTr" / f"S1_frame{frame:02}.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(label).T, mask[..., frame])
        image = sitk.ReadImage(target / "imagesTr" / f"S1_frame{frame:02}_0000.nii.gz")
        assert np.allclose(image.GetDirection(), label.GetDirection())


def test_other_label_names(root: Path):
    save(frames(), root / "S1.nii.gz")
    mask = np.zeros(SHAPE, np.uint8)
    mask[:2, :, :, ED], mask[2:, :, :, ED] = 1, 2  # wall, ventricle
    mask[:4, :, :, ES], mask[5:, :, :, ES] = 1, 2
    save(mask, root / "S1_gt.nii.gz")
    target = convert(root, 120, label_names=["wall", "lv"])
    dataset = json.loads((target / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "wall": 1, "lv": 2}
    assert [c.frame for c in cases_of(target).values() if c.phase == "ED"] == [ED]


@pytest.mark.parametrize("wrong", [[], ["LV", "LV"], ["background", "LV"]])
def test_label_names_are_checked(root: Path, wrong: list[str]):
    save(frames(), root / "S1.nii.gz")
    with pytest.raises(ValueError, match=r"`label_names` \(=.*\) must be unique names"):
        convert(root, 120, label_names=wrong)


def three_subjects(root: Path) -> Path:
    """Write S1 with labels, S2 and S3 without; returns a list of S1 and S2 as test subjects."""
    for name in ("S1", "S2", "S3"):
        save(frames(), root / f"{name}.nii.gz")
    save(drawn(ED, ES), root / "S1_gt.nii.gz")
    (root.parent / "test.txt").write_text("S1\nS2\n")
    return root.parent / "test.txt"


def test_test_subjects_without_labels_are_for_prediction(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    target = convert(root, 120, test=three_subjects(root))
    ours = [f"S1_frame{frame:02d}" for frame in (ED, ES)]
    expected = [*ours, *(f"S2_frame{frame:02d}" for frame in range(SHAPE[3]))]
    assert names(target / "imagesTs") == [f"{case}_0000.nii.gz" for case in expected]
    assert names(target / "labelsTs") == [f"{case}.nii.gz" for case in ours]
    assert {name[:2] for name in names(target / "imagesUn")} == {"S3"}
    assert np.array_equal(cine_in(target, "S2", "imagesTs"), frames())
    assert log(target)["options"]["test"] == ["S1", "S2"]
    assert log(target)["refused"] == {}
    said = "S2: there is no mask: for prediction only, in imagesTs without labelsTs"
    assert said in capsys.readouterr().out
    convert(root, 121, test=root.parent / "test.txt", dry_run=True)
    looked = capsys.readouterr().out
    assert said in looked and "Only the labelled frames of test subjects" in looked


@pytest.mark.parametrize("several", [False, True])
def test_all_frames_of_test_subjects(root: Path, several: bool, capsys: pytest.CaptureFixture[str]):
    test, options = three_subjects(root), {"test_frames": "all"}
    if several:
        save(frames(), root.parent / "more" / "N1.nii.gz")
        test.write_text("cine-S1\ncine-S2\n")
        options["add"] = [f"cine:{root.parent / 'more'}"]
    convert(root, 120, test=test, dry_run=True, **options)
    assert "Only the labelled frames of test subjects" not in capsys.readouterr().out
    target = convert(root, 120, test=test, **options)
    cases = [case for case in cases_of(target).values() if case.split == "test"]
    assert [(case.subject, case.frame) for case in cases if case.labelled] == [
        ("S1", ED),
        ("S1", ES),
    ]
    assert len(cases) == len(names(target / "imagesTs")) == 2 * SHAPE[3]
    assert len(names(target / "labelsTs")) == 2
    assert log(target)["options"]["test_frames"] == "all"
    # None of them enters the slice store
    content = read_dataset_json(target)
    jobs = list_jobs(target, content)
    check_subjects(target, jobs)
    assert {job.case for job in jobs}.isdisjoint(case.case for case in cases)
    assert len(jobs) == SHAPE[3] * (2 if several else 1)


def test_the_choice_of_test_frames_is_checked(root: Path):
    test = three_subjects(root)
    assert "test_frames" not in log(convert(root, 120, test=test))["options"]
    with pytest.raises(ValueError, match=r"`test_frames` \(=some\) must be one of labelled, all"):
        convert(root, 121, test=test, test_frames="some")


def test_the_list_of_test_subjects_is_checked(root: Path):
    three_subjects(root)
    (root.parent / "test.txt").write_text("S9")
    with pytest.raises(ValueError, match=r"test\.txt: no subject is called S9\. .*--dry-run and"):
        convert(root, 121, test=root.parent / "test.txt")
    with pytest.raises(
        FileNotFoundError, match=r"none\.txt: no such file\. --test takes a text file"
    ):
        convert(root, 121, test="none.txt")


def test_an_image_of_another_format_is_named(root: Path):
    save(frames(), root / "B1.nii.gz")
    (root / "B1.nrrd").write_bytes(b"NRRD0004")
    (root / "readme.txt").write_text("own data")
    refused = log(convert(root, 121))["refused"]
    assert refused == {"B1.nrrd": "B1.nrrd: neither NIfTI nor DICOM; save it as .nii.gz."}


def test_a_folder_of_masks_must_hold_some(root: Path):
    save(frames(), root / "S1.nii.gz")
    save(drawn(ED), root.parent / "masks" / "S1.nii.gz")
    save(drawn(ED), root.parent / "masks" / "S2_gt.nii.gz")
    with pytest.raises(
        FileNotFoundError,
        match=r"masks: no masks here of 1 subject\. Their names end in _gt.* "
        r"nothing: S1\.nii\.gz \(call it S1_gt\.nii\.gz\), S2_gt\.nii\.gz\.$",
    ):
        convert(root, 121, labels=root.parent / "masks")


@pytest.mark.parametrize("dry_run", [False, True])
def test_files_among_the_masks_that_are_used_for_nothing_are_named(
    root: Path, dry_run: bool, capsys: pytest.CaptureFixture[str]
):
    masks = root.parent / "masks"
    for number in (1, 2, 3):
        save(frames(number), root / f"patient{number}.nii.gz")
    save(drawn(ED, ES), masks / "patient1_gt.nii.gz")
    save(drawn(ED, ES), masks / "Patient2_seg.nii.gz")
    save(drawn(ED, ES), masks / "pateint3_gt.nii.gz")
    target = convert(root, 121, labels=masks, dry_run=dry_run)
    said = capsys.readouterr().out
    assert (
        f"WARNING: 1 file in {masks} is used for nothing, as the names are not those of masks: "
        "Patient2_seg.nii.gz (call it patient2_gt.nii.gz). Their names end in _gt: <subject>_gt"
    ) in said
    assert "no subject is called pateint3. Perhaps patient3" in said
    if dry_run:
        assert "\nwithout masks: patient2, patient3\n" in said
    else:
        assert "Patient2_seg" not in (target / "convert.json").read_text()


@pytest.mark.parametrize("dry_run", [False, True])
def test_without_any_mask_the_last_lines_say_how_masks_are_given(
    root: Path, dry_run: bool, capsys: pytest.CaptureFixture[str]
):
    save(frames(), root / "S1" / "S1.nii.gz")
    save(drawn(ED), root / "S1" / "S1_seg.nii.gz")
    convert(root, 121, dry_run=dry_run)
    said = capsys.readouterr().out
    last = said[said.index("\nNothing is labelled: there is no mask beside the images") :]
    again = ", with --overwrite: this deletes the converted dataset, never your files"
    assert f"the same command with --labels FOLDER{again * (not dry_run)}. Their names" in last
    assert len(last.splitlines()) <= 7
    if not dry_run:  # which reads no names of files
        assert "left out S1_seg.nii.gz; a mask of S1.nii.gz is called S1_gt.nii.gz" in said


@pytest.mark.parametrize("several", [False, True])
def test_a_dry_run_refuses_a_mask_of_a_frame_that_is_not_there(
    root: Path, several: bool, capsys: pytest.CaptureFixture[str]
):
    save(frames(1), root / "A.nii.gz")
    for t in range(12):
        if several:
            save(frames()[..., t], root / "S1" / f"frame{t + 1:02}.nii.gz")
    if not several:
        save(frames(), root / "S1.nii.gz")
    save(drawn(ED)[..., ED], root / "S1_frame13_gt.nii.gz")
    convert(root, 121, dry_run=True)
    wrong = (
        "there must be one image of frame 13" if several else "frame (=13) must be within 0 to 11"
    )
    assert f"S1: {root}/S1_frame13_gt.nii.gz: {wrong}." in capsys.readouterr().out


# -- what refuses one subject ----------------------------------------------------------------------


def frames_but(root: Path, left_out: int) -> None:
    for t in set(range(12)) - {left_out}:
        save(frames()[..., t], root / "B1" / f"frame{t:02}.nii.gz")


def frames_with(root: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    save(frames()[..., 0], root / "B1" / "frame0.nii.gz")
    save(voxels, root / "B1" / "frame1.nii.gz", affine)


def masked(root: Path, mask: np.ndarray, name: str = "B1_gt", affine: np.ndarray = AFFINE) -> None:
    save(frames(), root / "B1.nii.gz")
    save(mask, root / f"{name}.nii.gz", affine)


def truncated_dicom(root: Path) -> None:
    series(root / "B1")
    for file in (root / "B1").iterdir():
        file.write_bytes(file.read_bytes()[:-9])


def two_masks(root: Path) -> None:
    masked(root, drawn(ED))
    masked(root, drawn(ED)[..., ED], "B1_frame00_gt")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "3D image": (
        lambda root: save(frames()[..., 0], root / "B1.nii.gz"),
        r"B1.nii.gz: shape \(=\(6, 5, 3\)\) must have 4 axes.*belong in a folder of its name; masks end in _gt",
    ),
    "mask among the images": (
        lambda root: save(
            85 * np.eye(4, dtype=np.uint8)[:, :, None, None] * [1, 3], root / "B1.nii"
        ),
        r"B1\.nii: has only the values 0, 85, 255: this is a mask, no image\. Names of masks end in _gt",
    ),
    "mask of two frames": (
        lambda root: save(drawn(0, 7), root / "B1.nii"),
        r"B1\.nii: has only the values 0, 1, 2, 3: this is a mask",
    ),
    "constant frame": (
        lambda root: save(frames() * (np.arange(frames().shape[3]) != 1), root / "B1.nii"),
        r"B1\.nii: frame 1 constant, there is no image",
    ),
    "black": (
        lambda root: save(frames() * 0, root / "B1.nii"),
        r"B1\.nii: all frames constant, there is no image",
    ),
    "frames of masks": (
        lambda root: [save(drawn(*range(12))[..., t], root / "B1" / f"{t}.nii.gz") for t in (0, 1)],
        r"B1: has only the values 0, 1, 2, 3: this is a mask, no image\. Names of masks end in _gt",
    ),
    "empty folder": (lambda root: (root / "B1").mkdir(), "B1: no file in it"),
    "no DICOM": (
        lambda root: save(frames(), root / "B1" / "a.nii.gz").rename(root / "B1" / "a.txt"),
        r"B1: no NIfTI or DICOM image here\. There: 1 file not DICOM, the first a\.txt",
    ),
    "truncated DICOM": (
        truncated_dicom,
        r"B1/1\.2\.3\.4_\d+: the pixels cannot be read \(\d+ of \d+ bytes are there: copy",
    ),
    "long axis": (
        lambda root: series(root / "B1", [0], directions=FOUR_CHAMBER),
        "B1: no short-axis cine",
    ),
    "missing frame": (
        lambda root: frames_but(root, 7),
        r"B1: a frame is missing before frame08\.nii\.gz",
    ),
    "two kinds of files": (
        lambda root: [save(frames(), root / "B1" / f"{n}.nii.gz") for n in ("rest", "stress")],
        "B1: must hold one 4D file called B1 or B1_sa or sa, or 3D frames .* not rest.* and stress",
    ),
    "frames of other size": (
        lambda root: frames_with(root, frames()[1:, ..., 0]),
        r"frame1.nii.gz: shape \(=\(5, 5, 3\)\) must have 3 axes and be that of frame0.nii.gz",
    ),
    "4D frames": (
        lambda root: frames_with(root, frames()),
        r"frame1.nii.gz: shape \(=\(6, 5, 3, 12\)\) must have 3 axes",
    ),
    "frames of other places": (
        lambda root: frames_with(root, frames()[..., 1], AFFINE + np.eye(4)),
        r"frame1.nii.gz: the affine must be that of frame0.nii.gz",
    ),
    "mask shape": (
        lambda root: masked(root, drawn(ED)[..., :7]),
        r"B1_gt.nii.gz: shape \(=\(6, 5, 3, 7\)\) must be that of the image \(=\(6, 5, 3, 12\)\)",
    ),
    "mask of which frame": (
        lambda root: masked(root, drawn(ED)[..., ED]),
        r"must be that of the image .*A mask of one frame is called B1_frame<TT>_gt\.nii\.gz",
    ),
    "mask place": (
        lambda root: masked(root, drawn(ED), affine=AFFINE + np.eye(4)[:, [1, 2, 3, 0]]),
        "B1_gt.nii.gz: the mask must lie where the image is, but its corners are .* mm off",
    ),
    "2D mask": (
        lambda root: masked(root, drawn(ED)[:, :, 0, 0]),
        "B1_gt.nii.gz: must be a 3D or 4D mask with the affine of its image",
    ),
    "mask frame": (
        lambda root: masked(root, drawn(ED)[..., ED], "B1_frame13_gt"),
        r"B1_frame13_gt.nii.gz: frame \(=13\) must be within 0 to 11",
    ),
    "mask values": (
        lambda root: masked(root, 2 * drawn(ED)),
        r"B1_gt.nii.gz: mask values \(=4, 6\) must be among \[0, 1, 2, 3\]",
    ),
    "damaged file": (
        lambda root: save(frames(), root / "B1.nii.gz").write_bytes(
            (root / "B1.nii.gz").read_bytes()[:-6]
        ),
        "B1.nii.gz: not a complete NIfTI file",
    ),
    "two masks": (two_masks, "B1_gt.nii.gz: frame 0 has another mask already"),
    "mask alone": (
        lambda root: save(drawn(ED), root / "B1_gt.nii.gz"),
        "B1_gt.nii.gz: a mask without an image",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_bad_subject_is_refused_and_the_others_converted(root: Path, fault: str):
    damage, message = REFUSED[fault]
    damage(root)
    save(frames(), root / "A1.nii.gz")
    target = convert(root, 120)
    reasons = log(target)["refused"]
    assert list(reasons) == ["B1"]
    with pytest.raises(ValueError, match=message):
        raise ValueError(reasons["B1"])
    assert {case.subject for case in cases_of(target).values()} == {"A1"}
    assert not list(target.rglob("B1*"))


def test_masks_count_the_frames_of_all_files(root: Path):
    """Without a frame in the middle the numbers in the masks' names would be those of other frames."""
    series(root / "S1", frames=12)
    series(root / "S2", frames=12, PatientID="P2")
    for subject, frame in (("S1", 5), ("S2", 12)):
        (file,) = [f for f in (root / subject).iterdir() if number_of(f) == frame]
        file.unlink()
    empty = nibabel.load(convert(root, 119) / "imagesUn" / "S1_frame00_0000.nii.gz")
    mask = np.zeros(empty.shape, np.uint8)
    mask[1:3, 1:3, 1] = [[1, 2], [3, 1]]
    for subject in ("S1", "S2"):
        save(mask, root / f"{subject}_frame07_gt.nii.gz", empty.affine)
    target = convert(root, 120)
    assert "S1: 1 of 12 frames left out (5): not in slice 1. Frames are numbered anew" in str(
        log(target)["refused"]["S1"]
    )
    assert names(target / "labelsTr") == ["S2_frame07.nii.gz"]


def number_of(file: Path) -> int:
    return int(pydicom.dcmread(file).InstanceNumber)


@pytest.mark.parametrize("dicom", [False, True])
def test_few_slices_are_a_warning(root: Path, dicom: bool):
    if dicom:
        series(root / "S1", [0, 1])
    else:
        save(frames()[:, :, :2], root / "S1.nii.gz")
    assert log(convert(root, 120))["warnings"] == {"S1": ["only 2 slices"]}


def test_monochrome1_and_uids_of_their_own(root: Path):
    voxels = series(root / "S1", PhotometricInterpretation="MONOCHROME1")
    for file in (root / "S1").iterdir():
        number = number_of(file)
        edit(file, StudyInstanceUID=f"1.2.{number}", SeriesInstanceUID=f"1.3.{number}")
    target = convert(root, 120)
    assert np.array_equal(cine_in(target, "S1"), 65535 - voxels.astype(int))
    assert log(target)["notes"]["S1"] == [
        "MONOCHROME1, whose large values are dark, converted to MONOCHROME2",
        "images of 40 StudyInstanceUIDs that complete each other, taken as one stack",
    ]


def test_empty_masks_are_no_labels(root: Path):
    masked(root, drawn())
    target = convert(root, 120)
    assert log(target)["notes"] == {"B1": ["the masks are empty: converted as unlabelled"]}
    assert len(names(target / "imagesUn")) == 12


def test_sheared_axes_are_corrected(root: Path):
    sheared = AFFINE.copy()
    sheared[:3, 0] += 0.01 * sheared[:3, 1]
    save(frames(), root / "S1.nii.gz", sheared)
    target = convert(root, 120)
    assert "axes not orthogonal" in str(log(target)["corrections"]["S1"])
    sitk.ReadImage(target / "imagesUn" / "S1_frame00_0000.nii.gz")


# -- what stops everything -------------------------------------------------------------------------


def test_missing_folders_are_named(root: Path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        convert(root / "nowhere", 120)
    with pytest.raises(FileNotFoundError, match="own: must hold NIfTI files, DICOM files or"):
        convert(root, 120)
    save(frames(), root / "S1_gt.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"own: holds masks alone \(S1_gt\.nii\.gz\); give"):
        convert(root, 120)
    (root / "S1_gt.nii.gz").rename(root / "S1.nii.gz")
    with pytest.raises(FileNotFoundError, match="labels: no such folder"):
        convert(root, 120, labels=root / "labels")
    (root / "labels").mkdir()
    with pytest.raises(FileNotFoundError, match=r"labels: no masks here of 1 .*folder is empty"):
        convert(root, 120, labels=root / "labels")
    (root / "labels").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no masks here of 1 .* It holds images alone"):
        convert(root, 120, labels=root)
    target = convert(root, 120)
    assert log(target)["refused"] == {}


def test_a_dry_run_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]):
    series(root / "D1")
    save(frames(), root / "N1.nii.gz")
    save(drawn(ED), root / "N1_gt.nii.gz")
    target = convert(root, 120, dry_run=True)
    assert names(root.parent / "raw") == []
    assert target == root.parent / "raw" / "Dataset120_Cine"
    assert "Dataset120_Cine" in capsys.readouterr().out


@pytest.mark.parametrize("others", [False, True])
def test_a_dry_run_chooses_the_stack(root: Path, others: bool, capsys: pytest.CaptureFixture[str]):
    series(root / "D1" / "a")
    series(root / "D1" / "b", [0], directions=FOUR_CHAMBER, uid="1.1", number=1, PatientID="P1")
    series(root / "D2", [0], directions=FOUR_CHAMBER, PatientID="P2")
    series(root / "D3", range(5), frames=11, PatientID="P3")
    (last,) = [f for f in (root / "D3").iterdir() if pydicom.dcmread(f).InstanceNumber == 55]
    last.unlink()
    prefix = "cine-" if others else ""
    if others:
        save(frames(), root.parent / "more" / "N1.nii.gz")
    convert(root, 120, dry_run=True, add=[f"cine:{root.parent / 'more'}"] if others else [])
    output = capsys.readouterr().out
    assert output.splitlines()[2].split() == (
        ["train", "3", "0", "3", "32", "1"] if others else ["train", "2", "0", "2", "20", "1"]
    )
    found = "DICOM of 2 subjects (2 PatientIDs): 2 studies, 3 series, 104 images\n"
    assert found in output and "  left out: 1 series (long axis)\n" in output
    assert f"  {prefix}D1: short axis of 4 slices x 10 frames\n" in output
    assert f"  {prefix}D1: left out 1 series of 1 slice x 10 frames: long axis\n" in output
    assert f"  {prefix}D2: {root / 'D2'}: no short-axis cine" in output
    assert f"WARNING:\n  {prefix}D3: 1 of 11 frames left out (11): not in slice 5\n" in output


def test_own_cine_beside_another_data_set(root: Path):
    image = root.parent / "acdc" / "training" / "patient001" / "patient001_frame01.nii.gz"
    save(frames()[..., 0], image)
    save(drawn(0)[..., 0], image.with_name("patient001_frame01_gt.nii.gz"))
    (image.parent / "Info.cfg").write_text("ED: 1\nES: 3\n")
    voxels = series(root / "D1", Manufacturer="Philips Medical Systems")
    for target in (
        acdc.convert(image.parents[2], 118, add=[f"cine:{root}"], keep_ids=True),
        convert(root, 119, add=[f"acdc:{image.parents[2]}"]),
    ):
        cases = cases_of(target)
        assert {case.subject_key for case in cases.values()} == {"acdc-patient001", "cine-D1"}
        assert np.array_equal(cine_in(target, "cine-D1"), voxels)
        assert cases["cine-D1_frame00"].vendor == "Philips"
    with pytest.raises(ValueError, match=r"LVBP 1, .* must be those of .* \(=background 0, a 1\)"):
        convert(root, 121, add=[f"acdc:{image.parents[2]}"], label_names=["a"])


def test_an_interrupted_conversion_continues(root: Path, monkeypatch: pytest.MonkeyPatch):
    for subject in ("S1", "S2"):
        series(root / subject)
    read, done = cine.read_subject, []

    def stop_at_the_second(task: cine.CineTask) -> cine.Cine:
        if done:
            raise KeyboardInterrupt
        done.append(task.subject)
        return read(task)

    monkeypatch.setattr(cine, "read_subject", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        convert(root, 120)
    again = []
    monkeypatch.setattr(cine, "read_subject", lambda task: again.append(task.subject) or read(task))
    assert len(cases_of(convert(root, 120))) == 20
    assert (done, again) == (["S1"], ["S2"])


def test_a_changed_file_is_read_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    series(root / "S1")
    target = convert(root, 120)
    (target / "dataset.json").unlink()
    edit(next((root / "S1").iterdir()), Manufacturer="Other maker of scanners")
    assert convert(root, 120) == target


# -- from the command line, and real data ----------------------------------------------------------


def test_the_file_runs_by_its_path(root: Path):
    two_patients(root)
    command = [sys.executable, cine.__file__, "-i", root, "-d", "120", "-np", "2"]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Next: nnunet-ssp prepare 120" in done.stdout
    assert "Reading headers: 100%" in done.stderr
    assert "Warning" not in done.stderr


def test_real_dicom(root: Path, real_data: Path):
    if not (real_data / "sunnybrook_dicom").is_dir():
        pytest.skip(f"no {real_data / 'sunnybrook_dicom'}")
    target = convert(real_data / "sunnybrook_dicom", 120)
    cases = cases_of(target)
    assert list(cases) == [f"SCD0000301_frame{t:02}" for t in range(20)]
    assert {(c.base, c.vendor, c.scanner, c.field) for c in cases.values()} == {
        ("last", "GE", "SIGNA HDx", "1.5")
    }
    assert log(target)["notes"] == log(target)["corrections"] == log(target)["refused"] == {}
    (file,) = (real_data / "sunnybrook_mnms").rglob("SCD0000301_sa.nii.gz")
    source = nibabel.load(file)
    assert np.array_equal(cine_in(target, "SCD0000301"), np.asanyarray(source.dataobj))
    written = nibabel.load(target / "imagesUn" / "SCD0000301_frame00_0000.nii.gz")
    assert np.allclose(written.affine, source.affine, atol=1e-3)


def test_real_nifti_with_masks(root: Path, real_data: Path):
    """The masks of M&Ms' layout are beside the images, so its folders are own cine."""
    folder = real_data / "sunnybrook_mnms" / "Training" / "Labeled"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    target = convert(folder, 120, workers=2)
    assert len(names(target / "labelsTr")) == 6
    assert len(names(target / "imagesUn")) == 3 * 20 - 6
    phases = {(c.subject, c.frame): c.phase for c in cases_of(target).values() if c.labelled}
    assert phases[("SCD0000301", 19)] == "ED"
    assert phases[("SCD0000301", 6)] == "ES"
    assert log(target)["corrections"] == log(target)["refused"] == {}
