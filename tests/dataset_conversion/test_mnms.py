from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.dataset_conversion import mnms
from nnunet_ssp.dataset_conversion.mnms import convert
from tests.cine_trees import AFFINE, ED, ES, cine, cine_of, drawn, save
from tests.cine_trees import MNMS_CSV as CSV
from tests.cine_trees import add_mnms as add
from tests.cine_trees import add_mnms_row as add_row


@pytest.fixture
def root(tmp_path: Path, raw: Path) -> Path:
    (tmp_path / "mnms").mkdir()
    return tmp_path / "mnms"


def official(root: Path) -> Path:
    add(root, "Training/Labeled", "A1", drawn(ED, ES), Pathology="HCM")
    add(root, "Training/Unlabeled", "U1")
    add(root, "Validation", "V1", drawn(ED, ES), VendorName="Philips", Vendor="B", Centre=2)
    add(root, "Testing", "T1", drawn(ED, ES))
    return root


def log(target: Path) -> dict[str, dict[str, object]]:
    return json.loads((target / "convert.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("inside", [".", "OpenDataset"])
def test_the_official_tree(root: Path, inside: str):
    (root / inside).mkdir(exist_ok=True)
    official(root / inside)
    target = convert(root, 114)
    assert target.name == "Dataset114_MNMs"
    assert names(target / "imagesTr") == [
        f"{code}_frame{frame}_0000.nii.gz" for code in ("A1", "V1") for frame in ("00", "02")
    ]
    assert names(target / "labelsTr") == [
        f"{code}_frame{frame}.nii.gz" for code in ("A1", "V1") for frame in ("00", "02")
    ]
    assert names(target / "imagesTs") == ["T1_frame00_0000.nii.gz", "T1_frame02_0000.nii.gz"]
    assert names(target / "labelsTs") == ["T1_frame00.nii.gz", "T1_frame02.nii.gz"]
    assert names(target / "imagesUn") == [
        f"{code}_frame{frame:02d}_0000.nii.gz"
        for code, frames in (("A1", (1, 3)), ("U1", range(4)), ("V1", (1, 3)))
        for frame in frames
    ]
    cases = read_cases(target / "cases.csv")
    case = cases["V1_frame02"]
    assert (case.phase, case.base, case.vendor, case.centre) == ("ES", "first", "Philips", "2")
    assert (case.frame, case.source_frame, case.n_frames, case.source) == (2, 2, 4, "mm1")
    assert cases["A1_frame01"].phase == ""
    assert cases["A1_frame01"].pathology == "HCM"
    assert cases["T1_frame00"].split == "test"
    assert len(read_splits(target / "splits_final.json")) == 2
    dataset = json.loads((target / "dataset.json").read_text())
    assert dataset["numTraining"] == 4
    assert dataset["labels"] == {"background": 0, "LVBP": 1, "LVM": 2, "RV": 3}
    assert log(target)["notes"] == log(target)["corrections"] == log(target)["refused"] == {}


def test_voxels_and_slice_order_are_those_of_the_source(root: Path):
    target = convert(official(root), 114)
    source = cine_of("A1")
    for frame, folder in ((0, "imagesTr"), (1, "imagesUn"), (2, "imagesTr")):
        image = nibabel.load(target / folder / f"A1_frame{frame:02d}_0000.nii.gz")
        assert image.get_data_dtype() == np.int16
        assert np.array_equal(np.asanyarray(image.dataobj), source[..., frame])
    label = sitk.ReadImage(target / "labelsTr" / "A1_frame02.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(label).T, drawn(ED, ES)[..., ES])
    assert label.GetPixelID() == sitk.sitkUInt8


def test_the_flattened_tree(root: Path, tmp_path: Path):
    for code in ("A1", "B1", "C1"):
        add(root, "dataset", code, drawn(ED, ES))
    assert {case.split for case in read_cases(convert(root, 114) / "cases.csv").values()} == {
        "train"
    }
    (tmp_path / "test.txt").write_text("B1 \n\nA1\n")
    target = convert(root, 115, name="Paper", test=tmp_path / "test.txt")
    assert target.name == "Dataset115_Paper"
    cases = read_cases(target / "cases.csv").values()
    assert {case.subject for case in cases if case.split == "test"} == {"A1", "B1"}
    assert len(cases) == 8
    assert log(target)["options"] == {"test": ["A1", "B1"]}


def test_a_list_of_test_subjects_replaces_the_division(root: Path, tmp_path: Path):
    (tmp_path / "test.txt").write_text("A1")
    cases = read_cases(convert(official(root), 114, test=tmp_path / "test.txt") / "cases.csv")
    assert {case.subject for case in cases.values() if case.split == "test"} == {"A1"}


def test_a_list_with_unknown_codes_is_refused(root: Path, tmp_path: Path):
    (tmp_path / "test.txt").write_text("A1\nZ9\n")
    with pytest.raises(ValueError, match=r"test\.txt: no subject is called Z9"):
        convert(official(root), 114, test=tmp_path / "test.txt")
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        convert(root, 114, test=tmp_path / "none.txt")


# -- what stops everything -------------------------------------------------------------------------


def test_missing_folders_are_named(root: Path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        convert(root / "nowhere", 114)
    with pytest.raises(FileNotFoundError, match=r"mnms: must hold one of M&Ms' folders \(Training"):
        convert(root, 114)


def test_the_csv_must_be_one_and_complete(root: Path):
    official(root)
    text = (root / CSV).read_text()
    (root / CSV).write_text(text.replace("Centre", "Center").replace("ES", "E-S"))
    with pytest.raises(ValueError, match=r"opendataset\.csv: column Centre, ES is missing"):
        convert(root, 114)
    (root / "old_Information.csv").write_text(text)
    with pytest.raises(ValueError, match=r"mnms: must hold one CSV .* not 211230.*, old_Inform"):
        convert(root, 114)
    (root / CSV).unlink()
    (root / "old_Information.csv").unlink()
    with pytest.raises(FileNotFoundError, match="mnms: no CSV with `information`"):
        convert(root, 114)


def test_a_csv_without_any_files_is_an_error(root: Path):
    (root / "Testing").mkdir()
    add_row(root, "A1")
    with pytest.raises(FileNotFoundError, match=r"(?s)no subject could be used.*row 2: .* A1"):
        convert(root, 114)
    assert names(root.parent / "raw") == []


def test_a_taken_id_is_refused(root: Path):
    (root.parent / "results" / "Dataset114_Other").mkdir()
    with pytest.raises(FileExistsError, match="Dataset114_Other: dataset id 114 is taken"):
        convert(official(root), 114)


def test_a_finished_dataset_is_refused_and_overwritten_on_demand(root: Path):
    convert(official(root), 114)
    with pytest.raises(FileExistsError, match="a finished dataset; --overwrite"):
        convert(root, 114)
    convert(root, 114, overwrite=True)


@pytest.mark.parametrize("workers", [0, -2])
def test_the_number_of_processes_is_checked(root: Path, workers: int):
    with pytest.raises(ValueError, match=rf"`workers` \(={workers}\) must be at least 1"):
        convert(official(root), 114, workers=workers)


# -- what refuses one subject ----------------------------------------------------------------------


def mask_of(file: Path) -> Path:
    return file.with_name(file.name.replace("_sa", "_sa_gt"))


def nan_image(image: Path) -> None:
    voxels = cine().astype(np.float32)
    voxels[1, 1, 1, 1] = np.nan
    save(voxels, image)


def constant_frame(image: Path) -> None:
    voxels = cine()
    voxels[..., 3] = 7
    save(voxels, image)


def half_a_file(image: Path) -> None:
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])


REFUSED = {
    "3D image": (
        lambda image: save(cine()[..., 0], image),
        r"B1_sa.nii.gz: shape \(=\(6, 5, 3\)\) must have 4 axes",
    ),
    "NaN": (nan_image, "B1_sa.nii.gz: holds NaN"),
    "constant": (lambda image: save(0 * cine(), image), "B1_sa.nii.gz: all frames constant"),
    "constant frame": (constant_frame, "B1_sa.nii.gz: frame 3 constant"),
    "truncated image": (half_a_file, "B1_sa.nii.gz: not a complete NIfTI"),
    "truncated mask": (
        lambda image: half_a_file(mask_of(image)),
        "B1_sa_gt.nii.gz: not a complete",
    ),
    "no image": (lambda image: image.unlink(), "B1_sa.nii.gz: the file is missing"),
    "mask shape": (
        lambda image: save(drawn(ED, ES)[1:], mask_of(image)),
        r"B1_sa_gt.nii.gz: shape \(=\(5, 5, 3, 4\)\) must be that of the image \(=\(6, 5, 3, 4\)\)",
    ),
    "3D mask": (lambda image: save(drawn(ED)[..., 0], mask_of(image)), "must be that of the image"),
    "mask values": (
        lambda image: save(2 * drawn(ED, ES), mask_of(image)),
        r"B1_sa_gt.nii.gz: mask values \(=4, 6\) must be among \[0, 1, 2, 3\]",
    ),
    "mask between values": (
        lambda image: save(drawn(ED, ES) * np.float32(0.7), mask_of(image)),
        "B1_sa_gt.nii.gz: mask values must be whole numbers",
    ),
    "flat affine": (
        lambda image: save(cine(), image, np.diag([1.0, 1, 1e-30, 1])),
        "B1_sa.nii.gz: the affine must have three axes",
    ),
    "duplicate folder": (
        lambda image: save(cine(), image.parents[3] / "Validation/B1/B1_sa.nii.gz"),
        "mnms: a code must be unique, not in Training/Labeled and Validation",
    ),
    "duplicate row": (
        lambda image: add_row(image.parents[3], "B1 "),
        r"\.csv: a code must be unique, not in rows 6 and 7",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_bad_subject_is_refused_and_the_others_converted(
    root: Path, fault: str, capsys: pytest.CaptureFixture[str]
):
    official(root)
    damage, message = REFUSED[fault]
    damage(add(root, "Training/Labeled", "B1", drawn(ED, ES)))
    target = convert(root, 114)
    reasons = log(target)["refused"]
    assert list(reasons) == ["B1"]
    with pytest.raises(ValueError, match=message):
        raise ValueError(reasons["B1"])
    output = capsys.readouterr().out
    assert re.search(message, output[output.index("B1: ") :])
    assert str(root) in output and str(root) not in (target / "convert.json").read_text()
    assert {case.subject for case in read_cases(target / "cases.csv").values()} == {
        "A1",
        "T1",
        "U1",
        "V1",
    }
    assert not list(target.rglob("B1*"))
    assert not (target / ".ssp-tmp").exists()


def test_rows_without_files_are_refused(root: Path):
    official(root)
    add_row(root, "Z9")
    refused = log(convert(root, 114))["refused"]
    assert refused == {"Z9": f"{CSV}, row 6: there is no folder Z9."}


def test_a_code_in_another_case_is_connected_with_its_folder(root: Path):
    official(root)
    text = (root / CSV).read_text()
    (root / CSV).write_bytes(text.replace("A1", "a1").replace(",", ";").encode("utf-16"))
    done = log(convert(root, 114))
    assert done["refused"]["a1"].endswith("there is no folder a1, but A1, which differs in case.")
    assert done["notes"] == {"A1": ["not in the CSV; vendor and centre unknown"]}


def test_test_subjects_need_labels(root: Path):
    official(root)
    add(root, "Testing", "T2")
    refused = log(convert(root, 114))["refused"]["T2"]
    assert "T2_sa_gt.nii.gz: there is no mask; a test subject must have labels." in refused
    done = log(convert(root, 115, test_frames="all"))
    assert done["refused"] == {}
    assert done["notes"]["T2"] == [
        "there is no mask: for prediction only, in imagesTs without labelsTs"
    ]


# -- what is converted with a word -----------------------------------------------------------------


def test_files_without_a_row_are_converted(root: Path):
    official(root)
    lines = (root / CSV).read_text().splitlines(keepends=True)
    (root / CSV).write_text("".join(line for line in lines if "V1" not in line))
    target = convert(root, 114)
    assert log(target)["notes"]["V1"] == [
        "not in the CSV; vendor and centre unknown",
    ]
    case = read_cases(target / "cases.csv")["V1_frame02"]
    assert (case.vendor, case.centre, case.phase) == ("unknown", "", "ES")
    assert "V1" not in log(target)["corrections"]


def test_the_mask_decides_what_is_labelled(root: Path):
    add(root, "Training/Labeled", "A1")
    add(root, "Training/Labeled", "A2", drawn())
    add(root, "Training/Unlabeled", "U1", drawn(ED, ES))
    add(root, "Training/Unlabeled", "U2", drawn())
    target = convert(root, 114)
    assert log(target)["notes"] == {
        "A1": ["there is no mask: converted as unlabelled"],
        "A2": ["the mask is empty: converted as unlabelled"],
        "U1": ["has labels although in Training/Unlabeled: converted as labelled"],
        "U2": ["the mask is empty: converted as unlabelled"],
    }
    assert names(target / "labelsTr") == ["U1_frame00.nii.gz", "U1_frame02.nii.gz"]
    assert len(names(target / "imagesUn")) == 14
    assert read_splits(target / "splits_final.json") == []


@pytest.mark.parametrize("wrong", [9, -1, "x", "", "nan", "1.5", 3])
def test_a_wrong_phase_of_a_labelled_subject_is_corrected(root: Path, wrong: object):
    add(root, "Training/Labeled", "A1", drawn(ED, ES), ES=wrong)
    text = "empty" if wrong in ("", "nan") else wrong
    target = convert(root, 114)
    assert log(target)["corrections"] == {
        "A1": [f"CSV has ED 0 and ES {text}, labels at 0 and 2: ED is 0, ES is 2"]
    }
    cases = read_cases(target / "cases.csv").values()
    assert [case.phase for case in cases] == ["ED", "", "ES", ""]


def test_a_phase_out_of_range_of_an_unlabelled_subject_is_noted(root: Path):
    add(root, "Training/Unlabeled", "U1", ED=0, ES=4)
    add(root, "Training/Unlabeled", "U2", ED="nan", ES="", VendorName="NaN")
    target = convert(root, 114)
    assert log(target)["notes"] == {"U1": ["CSV: ES (=4) is not within 0 to 3; not used"]}
    assert log(target)["corrections"] == {}
    assert read_cases(target / "cases.csv")["U2_frame00"].vendor == "unknown"


def test_axes_are_made_orthogonal(root: Path, capsys: pytest.CaptureFixture[str]):
    image = add(root, "Validation", "A1", drawn(ED, ES))
    sheared = AFFINE.copy()
    sheared[0, 0] = 1.05
    save(cine(), image, sheared)
    save(drawn(ED, ES), mask_of(image), sheared)
    target = convert(root, 114)
    assert "axes not orthogonal, turned by up to" in str(log(target)["corrections"]["A1"])
    assert log(target)["notes"] == {}
    for file in target.rglob("*.nii.gz"):
        sitk.ReadImage(file)
    assert capsys.readouterr().out.splitlines()[2].split()[-2:] == ["1", "0"]


def test_a_turned_stack_is_put_upright(root: Path):
    image = add(root, "Validation", "A1", drawn(ED, ES))
    straight = convert(root, 114)
    for file in (image, mask_of(image)):
        stored = nibabel.load(file)
        save(np.moveaxis(np.asanyarray(stored.dataobj), 2, 1), file, stored.affine[:, [0, 2, 1, 3]])
    turned = convert(root, 115)
    assert "slices were on the file's second axis" in str(log(turned)["corrections"]["A1"])
    for file in straight.rglob("*.nii.gz"):
        # The axes go round in a ring, so columns and rows are exchanged here.
        before, after = (nibabel.load(f) for f in (file, turned / file.relative_to(straight)))
        assert np.array_equal(
            np.asanyarray(before.dataobj).swapaxes(0, 1), np.asanyarray(after.dataobj)
        )
        assert np.allclose(before.affine[:, [1, 0, 2, 3]], after.affine)
    cases = [read_cases(target / "cases.csv") for target in (straight, turned)]
    assert cases[0] == cases[1]


@pytest.mark.parametrize("both", [False, True])
def test_unpacked_files(root: Path, both: bool):
    image = add(root, "Training/Labeled", "A1", drawn(ED, ES))
    for file in (image, mask_of(image)):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        if not both:
            file.unlink()
    for dry_run in (True, False):
        target = convert(root, 114, dry_run=dry_run)
    assert len(list((target / "labelsTr").iterdir())) == 2
    said = ["left out A1_sa.nii and 1 more: .nii.gz is there, too"]
    assert log(target)["notes"].get("A1", []) == (said if both else [])


def test_masks_of_other_types_and_geometry_are_converted(root: Path):
    image = add(root, "Validation", "A1", drawn(ED, ES).astype(np.float64) + 1e-5)
    save(drawn(ED, ES).astype(np.float64) + 1e-5, mask_of(image), np.eye(4))
    target = convert(root, 114)
    label = sitk.ReadImage(target / "labelsTr" / "A1_frame00.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(label).T, drawn(ED, ES)[..., ED])
    assert log(target)["notes"]["A1"] == [
        "affines of image and mask differ; their voxels are taken to match"
    ]


def test_a_single_frame_and_a_single_slice_are_a_cine(root: Path):
    image = add(root, "Validation", "A1", ED=0, ES=0)
    save(cine()[:, :, :1, :1], image)
    save(drawn(0)[:, :, :1, :1], mask_of(image))
    target = convert(root, 114)
    assert sitk.ReadImage(target / "imagesTr" / "A1_frame00_0000.nii.gz").GetSize() == (6, 5, 1)
    assert log(target)["notes"]["A1"] == ["only frame 0 holds labels, taken as ED"]


def test_labels_alone_for_testing(root: Path):
    add(root, "Testing", "T1", drawn(ED, ES))
    target = convert(root, 114)
    dataset = json.loads((target / "dataset.json").read_text())
    assert dataset["numTraining"] == 0
    assert len(dataset["labels"]) == 4


# -- from the command line, and real data ----------------------------------------------------------


def by_path(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, mnms.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_file_runs_by_its_path(root: Path, tmp_path: Path):
    official(root)
    done = by_path("-i", root, "-d", 114, "-np", 2)
    assert done.returncode == 0, done.stderr
    assert "Next: nnunet-ssp prepare 114" in done.stdout
    assert "Converting: 100%" in done.stderr
    again = by_path("-i", root, "-d", 114)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert "Traceback" not in again.stderr


def test_real_cine(root: Path, real_data: Path):
    source = real_data / "sunnybrook_mnms"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    target = convert(source, 114, workers=2)
    cases = read_cases(target / "cases.csv")
    training = [case for case in cases.values() if case.split == "train"]
    assert len({case.subject for case in training}) == 4
    assert len(training) == 80
    counts = {folder: len(names(target / folder)) for folder in ("imagesTr", "imagesTs")}
    assert counts == {"imagesTr": 6, "imagesTs": 2}
    assert len(names(target / "imagesUn")) == 74
    assert sum(case.labelled for case in training) == 6
    assert [case.case for case in cases.values() if case.split == "test"] == [
        "SCD0000501_frame08",
        "SCD0000501_frame18",
    ]
    assert len(read_splits(target / "splits_final.json")) == 3
    assert log(target)["corrections"] == log(target)["notes"] == log(target)["refused"] == {}
    # In all five the affine puts the apex first; the growing LV of the labelled four agrees.
    assert {case.base for case in cases.values()} == {"last"}

    slices = 0
    for subject in sorted({case.subject for case in cases.values()}):
        (image,) = source.rglob(f"{subject}_sa.nii.gz")
        voxels = np.asanyarray(nibabel.load(image).dataobj)
        for case in cases.values():
            if case.subject != subject:
                continue
            folder = ("Tr" if case.split == "train" else "Ts") if case.labelled else "Un"
            read = sitk.ReadImage(target / f"images{folder}" / f"{case.case}_0000.nii.gz")
            array = sitk.GetArrayFromImage(read).T
            assert array.dtype == voxels.dtype
            assert np.array_equal(array, voxels[..., case.frame])
            slices += array.shape[2] * (case.split == "train")
            if case.labelled:
                label = sitk.ReadImage(target / f"labels{folder}" / f"{case.case}.nii.gz")
                areas = (sitk.GetArrayFromImage(label) == 1).sum(axis=(1, 2))
                drawn_slices = np.flatnonzero(areas)
                assert np.corrcoef(drawn_slices, areas[drawn_slices])[0, 1] > 0
    assert slices == 920
