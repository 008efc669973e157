from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.conversion.phases import LABELS
from nnunet_ssp.dataset_conversion.mnms2 import convert, list_tasks, subject_number
from tests.cine_trees import (
    AFFINE,
    ED,
    ES,
    MNMS2_COLUMNS,
    SHAPE,
    add_mnms2,
    add_mnms2_row,
    cine,
    drawn,
    save,
)
from tests.cine_trees import MNMS2_CSV as CSV


@pytest.fixture
def root(tmp_path: Path, raw: Path) -> Path:
    (tmp_path / "MnM2").mkdir()
    return tmp_path / "MnM2"


def log(target: Path) -> dict[str, dict[str, object]]:
    return json.loads((target / "convert.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def part(file: Path, name: str) -> Path:
    """Another file of the same subject: `ED`, `ED_gt`, ..."""
    return file.with_name(file.name.replace("CINE", name))


@pytest.mark.parametrize("inside", [False, True])
def test_the_official_tree(root: Path, inside: bool):
    add_mnms2(root, 1, DISEASE="HCM", VENDOR="GE MEDICAL SYSTEMS", SCANNER="Signa", FIELD="3.0")
    add_mnms2(root, 161)
    add_mnms2(root, 201, VENDOR="Philips Medical Systems")
    target = convert(root.parent if inside else root, 117)
    assert target.name == "Dataset117_MNMs2"
    assert names(target / "imagesTr") == [
        f"{code}_frame{frame}_0000.nii.gz" for code in ("001", "161") for frame in ("00", "02")
    ]
    assert names(target / "labelsTs") == ["201_frame00.nii.gz", "201_frame02.nii.gz"]
    assert len(names(target / "imagesUn")) == 4
    cases = read_cases(target / "cases.csv")
    case = cases["001_frame02"]
    assert (case.subject, case.source, case.phase, case.base) == ("001", "mm2", "ES", "first")
    assert (case.vendor, case.centre, case.scanner, case.field) == ("GE", "", "Signa", "3.0")
    assert (case.pathology, case.n_frames, case.source_frame) == ("HCM", 4, 2)
    assert cases["161_frame00"].vendor == "Siemens"
    assert (cases["201_frame00"].vendor, cases["201_frame00"].split) == ("Philips", "test")
    dataset = json.loads((target / "dataset.json").read_text())
    assert (dataset["numTraining"], dataset["labels"]) == (4, LABELS)
    assert log(target)["notes"] == log(target)["corrections"] == log(target)["refused"] == {}


def test_voxels_and_masks_are_those_of_the_source(root: Path):
    add_mnms2(root, 1)
    target = convert(root, 117)
    for frame, folder in ((0, "imagesTr"), (1, "imagesUn"), (2, "imagesTr"), (3, "imagesUn")):
        image = nibabel.load(target / folder / f"001_frame{frame:02d}_0000.nii.gz")
        assert np.array_equal(np.asanyarray(image.dataobj), cine(1)[..., frame])
    for frame in (ED, ES):
        label = sitk.ReadImage(target / "labelsTr" / f"001_frame{frame:02d}.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(label).T, drawn(ED, ES)[..., frame])


def test_long_axis_files_are_left_out(root: Path):
    add_mnms2(root, 1)
    (task,), _ = list_tasks(root)
    assert not [file for file in task.files if "_LA_" in file.name]
    assert len(list(convert(root, 117).rglob("*_frame*_0000.nii.gz"))) == SHAPE[3]


def test_a_list_of_test_subjects_replaces_the_division(root: Path, tmp_path: Path):
    add_mnms2(root, 1)
    add_mnms2(root, 201)
    (tmp_path / "test.txt").write_text("001\n")
    cases = read_cases(convert(root, 117, test=tmp_path / "test.txt") / "cases.csv")
    assert {case.subject for case in cases.values() if case.split == "test"} == {"001"}


# -- which frames are ED and ES --------------------------------------------------------------------


def test_phases_are_looked_up_in_the_cine(root: Path):
    file = add_mnms2(root, 1)
    for phase, frame in (("ED", 3), ("ES", 1)):
        save(cine(1)[..., frame], part(file, phase))
    cases = read_cases(convert(root, 117) / "cases.csv").values()
    assert [case.phase for case in cases] == ["", "ES", "", "ED"]


def test_a_frame_of_the_same_sum_is_not_the_frame(root: Path):
    file = add_mnms2(root, 1)
    add_mnms2(root, 2)
    mixed = np.sort(cine(1)[..., ES].ravel()).reshape(SHAPE[:3])
    save(mixed, part(file, "ES"))
    reason = log(convert(root, 117))["refused"]["001"]
    assert "001_SA_ES.nii.gz: must be a frame of 001_SA_CINE.nii.gz, but its voxels" in str(reason)


def test_a_frame_stored_with_another_type_and_scale_is_found(root: Path):
    file = add_mnms2(root, 1)
    scaled = nibabel.Nifti1Image(cine(1)[..., ES] * 1.0, AFFINE)
    scaled.set_data_dtype(np.int16)
    nibabel.save(scaled, part(file, "ES"))
    assert nibabel.load(part(file, "ES")).dataobj.slope != 1
    cases = read_cases(convert(root, 117) / "cases.csv")
    assert cases["001_frame02"].phase == "ES"


def test_exchanged_phases_are_corrected(root: Path):
    file = add_mnms2(root, 1)
    for phase, frame in (("ED", ES), ("ES", ED)):
        save(cine(1)[..., frame], part(file, phase))
        save(drawn(ED, ES)[..., frame], part(file, f"{phase}_gt"))
    target = convert(root, 117)
    assert read_cases(target / "cases.csv")["001_frame00"].phase == "ED"
    assert log(target)["corrections"]["001"] == [
        "the files' naming has ED 2 and ES 0, labels at 0 and 2: ED is 0, ES is 2"
    ]


def test_masks_that_are_not_there_or_empty_are_noted(root: Path):
    part(add_mnms2(root, 1), "ES_gt").unlink()
    save(drawn()[..., 0], part(add_mnms2(root, 2), "ED_gt"))
    both = add_mnms2(root, 3)
    part(both, "ED_gt").unlink()
    save(drawn()[..., 0], part(both, "ES_gt"))
    target = convert(root, 117)
    assert log(target)["notes"] == {
        "001": ["there is no mask of ES", "only frame 0 holds labels, taken as ED"],
        "002": ["the mask of ED is empty", "only frame 2 holds labels, taken as ES"],
        "003": [
            "there is no mask of ED",
            "the mask of ES is empty",
            "no labels: converted as unlabelled",
        ],
    }
    cases = read_cases(target / "cases.csv")
    assert {name: case.phase for name, case in cases.items() if case.phase} == {
        "001_frame00": "ED",
        "002_frame02": "ES",
    }


def test_test_subjects_need_labels(root: Path):
    file = add_mnms2(root, 201)
    add_mnms2(root, 1)
    for phase in ("ED", "ES"):
        part(file, f"{phase}_gt").unlink()
    refused = log(convert(root, 117))["refused"]
    assert "201: no labels; a test subject must have labels." in refused["201"]


# -- geometry --------------------------------------------------------------------------------------


def test_the_spacing_is_that_of_the_affine(root: Path):
    file = add_mnms2(root, 1)
    image = nibabel.load(file)
    image = nibabel.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
    image.header.set_zooms((1, 1, 1, 1))
    image.header.set_sform(AFFINE, code=1)
    nibabel.save(image, file)
    assert nibabel.load(file).header.get_zooms()[:3] == (1, 1, 1)
    target = convert(root, 117)
    said = ["the spacing is that of the sform; pixdim has unit scales"]
    assert log(target)["corrections"] == {"001": said}
    written = sitk.ReadImage(target / "imagesTr" / "001_frame00_0000.nii.gz")
    assert written.GetSpacing() == pytest.approx(np.linalg.norm(AFFINE[:3, :3], axis=0))
    header = nibabel.load(target / "imagesUn" / "001_frame01_0000.nii.gz").header
    assert header["dim"].tolist() == [3, 6, 5, 3, 1, 1, 1, 1]


def test_unpacked_turned_files_with_a_fourth_axis_of_one(root: Path):
    file = add_mnms2(root, 1)
    straight = convert(root, 117)
    for packed in file.parent.glob("*_SA_*.nii.gz"):
        stored = nibabel.load(packed)
        turned = np.moveaxis(np.asanyarray(stored.dataobj), 2, 0)
        turned = turned if turned.ndim == 4 else turned[..., None]
        save(turned, packed.with_suffix(""), stored.affine[:, [2, 0, 1, 3]])
        packed.unlink()
    target = convert(root, 118)
    assert "slices were on the file's first axis" in str(log(target)["corrections"]["001"])
    written = list(straight.rglob("*.nii.gz"))
    assert len(written) == 6
    for file in written:
        before, after = (nibabel.load(f) for f in (file, target / file.relative_to(straight)))
        assert np.array_equal(np.asanyarray(before.dataobj), np.asanyarray(after.dataobj))
        assert np.allclose(before.affine, after.affine)
    assert (straight / "cases.csv").read_bytes() == (target / "cases.csv").read_bytes()


def test_the_affine_tells_the_base_and_slices_stay_in_order(root: Path):
    file = add_mnms2(root, 1)
    add_mnms2(root, 2)
    turned = AFFINE.copy()
    turned[:3, 2] *= -1
    save(cine(1), file, turned)
    target = convert(root, 117)
    cases = read_cases(target / "cases.csv")
    assert (cases["001_frame00"].base, cases["002_frame00"].base) == ("last", "first")
    image = sitk.ReadImage(target / "imagesTr" / "001_frame00_0000.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(image).T, cine(1)[..., 0])


def test_axes_are_made_orthogonal(root: Path):
    file = add_mnms2(root, 1)
    sheared = AFFINE.copy()
    sheared[0, 0] = 1.05
    save(cine(1), file, sheared)
    target = convert(root, 117)
    assert "axes not orthogonal, turned by up to" in str(log(target)["corrections"]["001"])
    assert log(target)["notes"]["001"] == [
        "affines of image and mask differ; their voxels are taken to match"
    ]
    sitk.ReadImage(target / "imagesTr" / "001_frame00_0000.nii.gz")


def test_masks_stored_as_floating_point_are_rounded(root: Path):
    file = add_mnms2(root, 1)
    save(drawn(ED, ES)[..., ED].astype(np.float32) + 1e-5, part(file, "ED_gt"))
    label = sitk.ReadImage(convert(root, 117) / "labelsTr" / "001_frame00.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(label).T, drawn(ED, ES)[..., ED])


def test_a_single_slice_and_a_single_frame_are_a_cine(root: Path):
    file = add_mnms2(root, 1)
    save(cine(1)[:, :, :1, :1], file)
    save(cine(1)[:, :, :1, 0], part(file, "ED"))
    save(drawn(0)[:, :, :1, 0], part(file, "ED_gt"))
    part(file, "ES_gt").unlink()
    target = convert(root, 117)
    assert sitk.ReadImage(target / "imagesTr" / "001_frame00_0000.nii.gz").GetSize() == (6, 5, 1)


# -- the CSV ---------------------------------------------------------------------------------------


def test_a_million_empty_rows_are_nothing(root: Path):
    add_mnms2(root, 1)
    add_mnms2_row(root, 2)
    with open(root / CSV, "a") as stream:
        stream.write(",,,,\n" * 500_000 + "\n" * 500_000)
    tasks, refused = list_tasks(root)
    assert [task.subject for task in tasks] == ["001"]
    assert refused == {"002": f"{root / CSV}, row 3: there is no folder 002."}


@pytest.mark.parametrize("text", ["1", "001", "1.0", " 1 "])
def test_numbers_are_what_folders_are_called(root: Path, text: str):
    add_mnms2(root, 1)
    (root / CSV).write_text(",".join(MNMS2_COLUMNS) + f"\n{text},TRI,SIEMENS,Avanto,nan\n")
    (task,), refused = list_tasks(root)
    assert (task.subject, task.disease, task.field, task.in_csv) == ("001", "TRI", "", True)
    assert refused == {}


def test_numbers():
    assert [subject_number(text) for text in ("7", "007", "7.0", "360", "x", "-3", "1.5")] == [
        *("007", "007", "007", "360", "x", "-3", "1.5")
    ]


def test_other_vendors_keep_their_names(root: Path):
    add_mnms2(root, 1, VENDOR="Siemens")
    add_mnms2(root, 2, VENDOR="TOSHIBA")
    add_mnms2(root, 3, VENDOR="")
    tasks, _ = list_tasks(root)
    assert [task.vendor for task in tasks] == ["Siemens", "TOSHIBA", "unknown"]


def test_rows_and_folders_that_do_not_fit(root: Path):
    add_mnms2(root, 1)
    add_mnms2_row(root, "1.0")
    add_mnms2_row(root, "12b")
    add_mnms2(root, 3)
    save(cine(), root / "dataset" / "3" / "3_SA_CINE.nii.gz")
    save(cine(4), root / "dataset" / "004" / "004_SA_CINE.nii.gz")
    (root / "dataset" / "results").mkdir()
    add_mnms2(root, 5)
    target = convert(root, 117)
    assert log(target)["refused"] == {
        "001": f"{CSV}: a code must be unique, not in rows 2 and 3.",
        "003": f"{root.name}: a code must be unique, not in 003 and 3.",
        "12b": f"{CSV}, row 4: the subject (=12b) must be a number.",
        "results": "dataset/results: the subject (=results) must be a number.",
    }
    assert log(target)["notes"]["004"][0] == "not in the CSV; disease, vendor and scanner unknown"
    case = read_cases(target / "cases.csv")["004_frame00"]
    assert (case.vendor, case.pathology, case.phase) == ("unknown", "", "")


# -- errors ----------------------------------------------------------------------------------------


def test_folders_without_the_data_set(root: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        convert(tmp_path / "nowhere", 117)
    with pytest.raises(FileNotFoundError, match="MnM2: must hold `dataset`"):
        convert(root, 117)
    (root / "dataset").mkdir()
    with pytest.raises(FileNotFoundError, match="MnM2: no CSV with `information`"):
        convert(root, 117)
    (root / CSV).write_text("SUBJECT_CODE,DISEASE,VENDOR\n")
    with pytest.raises(ValueError, match=r"information\.csv: column SCANNER, FIELD is missing"):
        convert(root, 117)
    (root / CSV).write_text("")
    with pytest.raises(ValueError, match=r"information\.csv: the table is empty"):
        convert(root, 117)
    (root / CSV).unlink()
    add_mnms2_row(root, 1)
    with pytest.raises(FileNotFoundError, match=r"(?s)no subject could be used.*no folder 001"):
        convert(root, 117)


def half_a_file(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def nan(file: Path) -> None:
    voxels = cine(1).astype(np.float32)
    voxels[1, 1, 1, 1] = np.nan
    save(voxels, file)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no cine": (lambda f: f.unlink(), "001_SA_CINE.nii.gz: the file is missing"),
    "3D cine": (lambda f: save(cine()[..., 0], f), r"CINE.nii.gz: shape .* must have 4 axes"),
    "NaN": (nan, "CINE.nii.gz: holds NaN"),
    "constant": (lambda f: save(0 * cine(), f), "CINE.nii.gz: all frames constant"),
    "truncated cine": (half_a_file, "CINE.nii.gz: not a complete NIfTI"),
    "truncated frame": (lambda f: half_a_file(part(f, "ED")), "SA_ED.nii.gz: not a complete"),
    "truncated mask": (lambda f: half_a_file(part(f, "ED_gt")), "ED_gt.nii.gz: not a complete"),
    "no frame": (lambda f: part(f, "ES").unlink(), "SA_ES.nii.gz: the file is missing"),
    "frame shape": (
        lambda f: save(cine(1)[1:, ..., ED], part(f, "ED")),
        r"SA_ED.nii.gz: shape \(=\(5, 5, 3\)\) must be that of a frame \(=\(6, 5, 3\)\)",
    ),
    "mask shape": (
        lambda f: save(drawn(ED)[1:, ..., ED], part(f, "ED_gt")),
        r"ED_gt.nii.gz: shape \(=\(5, 5, 3\)\) must be that of a frame \(=\(6, 5, 3\)\)",
    ),
    "mask values": (
        lambda f: save(2 * drawn(ED)[..., ED], part(f, "ED_gt")),
        r"ED_gt.nii.gz: mask values \(=4, 6\) must be among \[0, 1, 2, 3\]",
    ),
    "mask between values": (
        lambda f: save(drawn(ED)[..., ED] * np.float32(0.7), part(f, "ED_gt")),
        "ED_gt.nii.gz: mask values must be whole numbers",
    ),
    "one frame for both": (
        lambda f: save(cine(1)[..., ED], part(f, "ES")),
        "SA_ES.nii.gz: must not be the same frame of the cine as ED",
    ),
    "flat affine": (
        lambda f: save(cine(1), f, np.diag([1.0, 1, 1e-30, 1])),
        "CINE.nii.gz: the affine must have three axes",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_bad_subject_is_refused_and_the_others_converted(root: Path, fault: str):
    damage, message = REFUSED[fault]
    damage(add_mnms2(root, 1))
    add_mnms2(root, 2)
    target = convert(root, 117)
    reasons = log(target)["refused"]
    assert list(reasons) == ["001"]
    with pytest.raises(ValueError, match=message):
        raise ValueError(reasons["001"])
    assert {case.subject for case in read_cases(target / "cases.csv").values()} == {"002"}
    assert not list(target.rglob("001*"))
