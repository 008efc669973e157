from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.conversion.phases import LABELS
from nnunet_ssp.dataset_conversion import acdc
from nnunet_ssp.dataset_conversion.acdc import convert
from tests.cine_trees import ED, ES, add_acdc, cine, drawn, save
from tests.nifti_headers import save_with

NOMINAL = np.diag([1.5, 1.5, 10, 1])


@pytest.fixture
def root(tmp_path: Path, raw: Path) -> Path:
    (tmp_path / "acdc").mkdir()
    return tmp_path / "acdc"


def log(target: Path) -> dict[str, dict[str, object]]:
    return json.loads((target / "convert.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def voxels(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(file)).T


@pytest.mark.parametrize("inside", [".", "database"])
def test_the_official_tree(root: Path, inside: str):
    add_acdc(root / inside, "training", 1)
    add_acdc(root / inside, "testing", 101, Group="RV")
    (root / inside / "training" / "MANDATORY_CITATION.md").write_text("")
    target = convert(root, 118)
    assert target.name == "Dataset118_ACDC"
    assert {f: names(target / f) for f in ("imagesTr", "imagesUn", "labelsTr", "labelsTs")} == {
        "imagesTr": ["patient001_frame00_0000.nii.gz", "patient001_frame02_0000.nii.gz"],
        "imagesUn": ["patient001_frame01_0000.nii.gz", "patient001_frame03_0000.nii.gz"],
        "labelsTr": ["patient001_frame00.nii.gz", "patient001_frame02.nii.gz"],
        "labelsTs": ["patient101_frame00.nii.gz", "patient101_frame02.nii.gz"],
    }
    cases = read_cases(target / "cases.csv")
    case = cases["patient001_frame02"]
    assert (case.frame, case.source_frame, case.n_frames, case.phase) == (2, 3, 4, "ES")
    assert (case.base, case.source, case.pathology, case.split) == ("first", "acdc", "DCM", "train")
    assert (case.vendor, case.centre) == ("Siemens", "Dijon")
    assert (cases["patient101_frame00"].split, cases["patient101_frame00"].pathology) == (
        "test",
        "RV",
    )
    dataset = json.loads((target / "dataset.json").read_text())
    assert (dataset["numTraining"], dataset["labels"]) == (2, LABELS)
    assert log(target)["notes"] == log(target)["corrections"] == log(target)["refused"] == {}


def test_labels_are_mapped_to_the_order_of_mnms_or_kept(root: Path):
    add_acdc(root, "training", 1)
    mapped, kept = convert(root, 118), convert(root, 119, "Kept", keep_labels=True)
    assert json.loads((kept / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "RV": 1,
        "MLV": 2,
        "LVC": 3,
    }
    for frame in (ED, ES):
        name = f"patient001_frame{frame:02d}.nii.gz"
        expected = drawn(ED, ES)[..., frame]
        assert np.array_equal(voxels(mapped / "labelsTr" / name), expected)
        assert np.array_equal(voxels(kept / "labelsTr" / name), (4 - expected) % 4)


def test_label_names_are_those_of_nnunets_own_converters():
    """Read, not imported: one of them raises when used with the release."""
    import nnunetv2

    folder = Path(nnunetv2.__file__).parent / "dataset_conversion"
    for name, labels in (
        ("Dataset027_ACDC", acdc.ACDC_LABELS),
        ("Dataset114_MNMs", LABELS),
    ):
        text = (folder / f"{name}.py").read_text()
        written = json.loads(text.split("labels=", 1)[1].split("}")[0].rstrip(", \n") + "}")
        assert written == labels


def test_voxels_are_those_of_the_source(root: Path):
    add_acdc(root, "training", 1)
    target = convert(root, 118)
    for frame, folder in ((0, "imagesTr"), (1, "imagesUn"), (2, "imagesTr"), (3, "imagesUn")):
        file = target / folder / f"patient001_frame{frame:02d}_0000.nii.gz"
        assert np.array_equal(voxels(file), cine(1)[..., frame])


def test_without_the_4d_image_only_the_labelled_frames_are_converted(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    add_acdc(root, "training", 1, four_d=False, NbFrame=30, Group="unknown")
    target = convert(root, 118)
    cases = read_cases(target / "cases.csv").values()
    assert [(case.frame, case.source_frame, case.n_frames) for case in cases] == [
        (0, 1, 30),
        (2, 3, 30),
    ]
    assert {case.pathology for case in cases} == {""}
    assert not (target / "imagesUn").exists()
    assert np.array_equal(
        voxels(target / "imagesTr/patient001_frame02_0000.nii.gz"), cine(1)[..., ES]
    )
    assert "patient001: no 4D image: only the frames that are there" in capsys.readouterr().out


@pytest.mark.parametrize("n_frames", ["2", "x", ""])
def test_the_number_of_frames_is_never_below_the_last(root: Path, n_frames: str):
    add_acdc(root, "training", 1, four_d=False, NbFrame=n_frames)
    cases = read_cases(convert(root, 118) / "cases.csv").values()
    assert {case.n_frames for case in cases} == {3}


# -- which frames are ED and ES --------------------------------------------------------------------


def test_wrong_phases_are_corrected_in_acdcs_own_numbers(root: Path):
    add_acdc(root, "training", 1, ED=0, ES=2)
    add_acdc(root, "training", 2, ED=3, ES=1)
    (add_acdc(root, "training", 3) / "Info.cfg").unlink()
    target = convert(root, 118)
    said = log(target)["corrections"]
    assert said["patient001"] == ["Info.cfg has ED 0 and ES 2, labels at 1 and 3: ED is 1, ES is 3"]
    assert said["patient002"] == ["Info.cfg has ED 3 and ES 1, labels at 1 and 3: ED is 1, ES is 3"]
    assert log(target)["notes"] == {"patient003": ["no Info.cfg; phases by volume, group unknown"]}
    phases = [case.phase for case in read_cases(target / "cases.csv").values()]
    assert phases == ["ED", "", "ES", ""] * 3


def test_the_volume_is_that_of_acdcs_left_ventricle(root: Path):
    folder = add_acdc(root, "training", 1, ED="", ES="")
    mask = drawn(ED, ES)[..., ES].copy()
    mask[mask == 0] = 3  # much right ventricle at ES
    save(np.array([0, 3, 2, 1], np.uint8)[mask], folder / "patient001_frame03_gt.nii.gz", NOMINAL)
    for keep in (False, True):
        target = convert(root, 118, overwrite=True, keep_labels=keep)
        assert read_cases(target / "cases.csv")["patient001_frame00"].phase == "ED"


def test_a_frame_of_another_number_in_the_4d_image_is_corrected(root: Path):
    folder = add_acdc(root, "training", 1)
    save(cine(1)[..., 3], folder / "patient001_frame03.nii.gz", NOMINAL)
    target = convert(root, 118)
    assert log(target)["corrections"]["patient001"][0] == "frame03 is frame 4 of the 4D image"
    assert "patient001_frame03.nii.gz" in names(target / "labelsTr")


def test_a_frame_that_is_not_in_the_4d_image_replaces_it(root: Path):
    folder = add_acdc(root, "training", 1)
    other = cine(99)[..., 0]
    save(other, folder / "patient001_frame03.nii.gz", NOMINAL)
    target = convert(root, 118)
    assert log(target)["notes"]["patient001"] == [
        "frame03 differs from the 4D image, in which it replaces that frame"
    ]
    assert np.array_equal(voxels(target / "imagesTr/patient001_frame02_0000.nii.gz"), other)


def test_the_4d_image_alone_can_carry_the_masks(root: Path):
    folder = add_acdc(root, "training", 1)
    (folder / "patient001_frame01.nii.gz").unlink()
    (folder / "patient001_frame03.nii.gz").unlink()
    target = convert(root, 118)
    assert len(names(target / "labelsTr")) == 2


@pytest.mark.parametrize("both", [False, True])
def test_unpacked_files_are_read(root: Path, both: bool):
    folder = add_acdc(root, "training", 1)
    for file in folder.glob("*.nii.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        if not both:
            file.unlink()
    target = convert(root, 118)
    assert len(read_cases(target / "cases.csv")) == 4
    said = ["left out patient001_4d.nii and 4 more: .nii.gz is there, too"]
    assert log(target)["notes"] == ({"patient001": said} if both else {})
    assert log(target)["corrections"] == log(target)["refused"] == {}


def test_subjects_without_labels(root: Path):
    for file in add_acdc(root, "training", 1).glob("*_frame*"):
        file.unlink()
    for file in add_acdc(root, "training", 2).glob("*_gt*"):
        save(drawn()[..., 0], file, NOMINAL)
    for file in add_acdc(root, "testing", 101).glob("*_gt*"):
        file.unlink()
    target = convert(root, 118)
    assert log(target)["notes"] == {
        "patient001": ["there is no mask: converted as unlabelled"],
        "patient002": ["the masks are empty: converted as unlabelled"],
    }
    assert log(target)["refused"] == {
        "patient101": "testing/patient101: there is no mask; a test subject must have labels. "
        "With --test-frames all it is for prediction only."
    }
    assert json.loads((target / "dataset.json").read_text())["labels"] == {"background": 0}
    target = convert(root, 119, test_frames="all")
    assert log(target)["refused"] == {}
    said = "there is no mask: for prediction only, in imagesTs without labelsTs"
    assert log(target)["notes"]["patient101"] == [said]
    assert len(list((target / "imagesTs").iterdir())) == drawn().shape[3]
    assert not (target / "labelsTs").exists()


def test_a_list_of_test_subjects_replaces_the_division(root: Path, tmp_path: Path):
    add_acdc(root, "training", 1)
    add_acdc(root, "testing", 101)
    (tmp_path / "test.txt").write_text("patient001\n")
    cases = read_cases(convert(root, 118, test=tmp_path / "test.txt") / "cases.csv")
    assert {case.subject for case in cases.values() if case.split == "test"} == {"patient001"}


def test_the_split_of_acdc_few(root: Path, tmp_path: Path):
    for number in (13, 16, 17, 20):
        add_acdc(root, "training", number)
    add_acdc(root, "testing", 101)
    cases = read_cases(convert(root, 118, few=True) / "cases.csv")
    tests = {case.subject for case in cases.values() if case.split == "test"}
    assert tests == {"patient017", "patient020", "patient101"}
    (tmp_path / "test.txt").write_text("patient013\n")
    with pytest.raises(ValueError, match="--few must not come with --test"):
        convert(root, 119, few=True, test=tmp_path / "test.txt")


def test_geometry(root: Path):
    folder = add_acdc(root, "training", 1)
    sheared = NOMINAL.copy()
    sheared[1, 0] = 0.02
    save(cine(1), folder / "patient001_4d.nii.gz", sheared)
    save(
        drawn(ED)[..., ED].astype(np.float64) + 1e-5,
        folder / "patient001_frame01_gt.nii.gz",
        NOMINAL,
    )
    target = convert(root, 118)
    assert "axes not orthogonal" in str(log(target)["corrections"])
    assert log(target)["notes"]["patient001"] == [
        "affines of image and mask differ; their voxels are taken to match"
    ]
    header = nibabel.load(target / "imagesUn" / "patient001_frame01_0000.nii.gz").header
    assert header["dim"].tolist() == [3, 6, 5, 3, 1, 1, 1, 1]


@pytest.mark.parametrize("four_d", [False, True])
def test_headers_as_distributed(root: Path, four_d: bool):
    """qform and pixdim hold the spacing, the sform has unit scales (nnU-Net's issue 2741)."""
    folder = add_acdc(root, "training", 1, four_d=four_d)
    for file in folder.glob("*.nii.gz"):
        stored = np.asanyarray(nibabel.load(file).dataobj)
        forms = {"qform": np.diag([-1.4, -1.4, 10, 1]), "sform": np.diag([-1.0, -1, 1, 1])}
        save_with(file, stored, **forms, qform_code=1, sform_code=2)
    target = convert(root, 118)
    for file in target.rglob("*.nii.gz"):
        assert sitk.ReadImage(file).GetSpacing() == pytest.approx((1.4, 1.4, 10), abs=1e-6)
        assert nibabel.load(file).affine == pytest.approx(np.diag([-1.4, -1.4, 10, 1]), abs=1e-6)
    assert log(target)["corrections"]["patient001"] == [
        "the spacing is that of pixdim; the sform has unit scales"
    ]


@pytest.mark.parametrize("four_d", [False, True])
def test_turned_files_with_a_fourth_axis_of_one(root: Path, four_d: bool):
    """Slices on the first axis, 3D files as `(X, Y, Z, 1)`."""
    add_acdc(root, "training", 2, four_d=four_d)
    straight = convert(root, 118)
    for file in (root / "training" / "patient002").glob("*.nii.gz"):
        image = nibabel.load(file)
        stored = np.moveaxis(np.asanyarray(image.dataobj), 2, 0)
        affine = image.affine[:, [2, 0, 1, 3]]
        save(stored if stored.ndim == 4 else stored[..., None], file, affine)
    turned = convert(root, 119)
    assert log(turned)["corrections"] == {
        "patient002": ["slices were on the file's first axis, now on the third"]
    }
    written = sorted(straight.rglob("*.nii.gz"))
    assert len(written) == (6 if four_d else 4)
    for file in written:
        before, after = (nibabel.load(f) for f in (file, turned / file.relative_to(straight)))
        assert np.array_equal(np.asanyarray(before.dataobj), np.asanyarray(after.dataobj))
        assert np.allclose(before.affine, after.affine)


def test_a_single_slice_and_a_single_frame_are_a_cine(root: Path):
    folder = add_acdc(root, "training", 1)
    save(cine(1)[:, :, :1, :1], folder / "patient001_4d.nii.gz", NOMINAL)
    save(cine(1)[:, :, :1, 0], folder / "patient001_frame01.nii.gz", NOMINAL)
    save(drawn(0)[:, :, :1, 0], folder / "patient001_frame01_gt.nii.gz", NOMINAL)
    for file in folder.glob("*_frame03*"):
        file.unlink()
    target = convert(root, 118)
    image = sitk.ReadImage(target / "imagesTr" / "patient001_frame00_0000.nii.gz")
    assert image.GetSize() == (6, 5, 1)
    assert read_cases(target / "cases.csv")["patient001_frame00"].n_frames == 1


# -- errors ----------------------------------------------------------------------------------------


def test_folders_without_the_data_set(root: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        convert(tmp_path / "nowhere", 118)
    with pytest.raises(FileNotFoundError, match="acdc: must hold one of ACDC's folders"):
        convert(root, 118)
    (root / "training" / "patient001").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"(?s)no subject could be used.*has neither patie"):
        convert(root, 118)


def half_a_file(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def nan(folder: Path) -> None:
    image = cine(1).astype(np.float32)
    image[1, 1, 1, 1] = np.nan
    save(image, folder / "patient001_4d.nii.gz")


def without_4d(folder: Path) -> Path:
    (folder / "patient001_4d.nii.gz").unlink()
    return folder


F4D, F01, G01, F03 = (
    f"patient001_{name}.nii.gz" for name in ("4d", "frame01", "frame01_gt", "frame03")
)
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "3D cine": (lambda f: save(cine()[..., 0], f / F4D), r"4d.nii.gz: shape .* must have 4 axes"),
    "NaN": (nan, "4d.nii.gz: holds NaN"),
    "truncated cine": (lambda f: half_a_file(f / F4D), "4d.nii.gz: not a complete NIfTI"),
    "truncated frame": (lambda f: half_a_file(f / F01), "frame01.nii.gz: not a complete"),
    "truncated mask": (lambda f: half_a_file(f / G01), "frame01_gt.nii.gz: not a complete"),
    "frame shape": (
        lambda f: save(cine(1)[1:, ..., 0], f / F01),
        r"frame01.nii.gz: shape \(=\(5, 5, 3\)\) must be that of a frame of the 4D image",
    ),
    "frames' shapes": (
        lambda f: save(cine(1)[1:, ..., ES], without_4d(f) / F03),
        r"frame03.nii.gz: shape \(=\(5, 5, 3\)\) must have 3 axes and be that of the other frames",
    ),
    "4D frame": (
        lambda f: save(cine(1), without_4d(f) / F01),
        "frame01.nii.gz: shape .* must have 3 axes",
    ),
    "constant frame": (
        lambda f: save(0 * cine(1)[..., 0], without_4d(f) / F01),
        "frame01.nii.gz: all frames constant",
    ),
    "no frame": (
        lambda f: (without_4d(f) / F01).unlink(),
        "frame01_gt.nii.gz: has no image patient001_frame01.nii.gz",
    ),
    "frame 0": (
        lambda f: (without_4d(f) / F01).rename(f / F01.replace("01.", "00.")),
        "frame00.nii.gz: frames must be counted from 1",
    ),
    "late frame": (
        lambda f: (f / G01).rename(f / G01.replace("frame01", "frame09")),
        "4d.nii.gz: frame09 must be within its frames, 1 to 4",
    ),
    "mask shape": (
        lambda f: save(drawn(ED)[1:, ..., ED], f / G01),
        r"frame01_gt.nii.gz: shape \(=\(5, 5, 3\)\) must be that of the image",
    ),
    "mask values": (
        lambda f: save(2 * drawn(ED)[..., ED], f / G01),
        r"gt.nii.gz: mask values \(=4, 6\) must be among \[0, 1, 2, 3\]",
    ),
    "mask between values": (
        lambda f: save(drawn(ED)[..., ED] * np.float32(0.7), f / G01),
        "gt.nii.gz: mask values must be whole numbers",
    ),
    "one frame for both": (
        lambda f: save(cine(1)[..., ED], f / F03),
        "frame03_gt.nii.gz: must not belong to the same frame as another mask",
    ),
    "in both folders": (
        lambda f: save(cine(1), f.parents[1] / "testing" / "patient001" / F4D),
        "a subject must be in one folder, not in training and testing",
    ),
    "nothing": (
        lambda f: [file.unlink() for file in f.glob("*.gz")],
        "patient001: has neither patient001_4d.nii.gz nor patient001_frame01.nii.gz",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_bad_subject_is_refused_and_the_others_converted(root: Path, fault: str):
    damage, message = REFUSED[fault]
    damage(add_acdc(root, "training", 1))
    add_acdc(root, "training", 2)
    target = convert(root, 118)
    reasons = log(target)["refused"]
    assert list(reasons) == ["patient001"]
    with pytest.raises(ValueError, match=message):
        raise ValueError(reasons["patient001"])
    assert {case.subject for case in read_cases(target / "cases.csv").values()} == {"patient002"}
    assert not list(target.rglob("patient001*"))


def test_the_file_runs_by_its_path(root: Path):
    add_acdc(root, "training", 1)
    add_acdc(root, "training", 2)
    command = [sys.executable, acdc.__file__, "-i", str(root), "-d", "118", "-np", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Next: nnunet-ssp prepare 118" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ") and "Traceback" not in again.stderr


# -- real data -------------------------------------------------------------------------------------


def test_real_acdc(raw: Path, real_data: Path):
    source = real_data / "acdc60"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    target = convert(source, 27, workers=2)
    cases = read_cases(target / "cases.csv")
    assert len(cases) == 120 == len(names(target / "imagesTr")) == len(names(target / "labelsTr"))
    assert not (target / "imagesUn").exists() and not (target / "imagesTs").exists()
    assert len({case.subject for case in cases.values()}) == 60
    assert sum(case.phase == "ED" for case in cases.values()) == 60
    assert {case.base for case in cases.values()} == {"first"}
    assert all(case.source_frame == case.frame + 1 <= case.n_frames for case in cases.values())
    folds = read_splits(target / "splits_final.json")
    assert [len(fold["val"]) for fold in folds] == [24] * 5
    assert log(target)["refused"] == log(target)["corrections"] == {}
    assert {str(note) for note in log(target)["notes"].values()} == {
        "['no 4D image: only the frames that are there as 3D images']"
    }
    shrinking = 0
    for case in list(cases.values())[::7]:
        stem = f"{case.subject}_frame{case.source_frame:02d}"
        folder = source / "training" / case.subject
        image = sitk.ReadImage(target / "imagesTr" / f"{case.case}_0000.nii.gz")
        assert image.GetSpacing() == pytest.approx((1.5, 1.5, 10))
        original = np.asanyarray(nibabel.load(folder / f"{stem}.nii.gz").dataobj)
        assert np.array_equal(sitk.GetArrayFromImage(image).T, original)
        mask = np.asanyarray(nibabel.load(folder / f"{stem}_gt.nii.gz").dataobj)
        label = voxels(target / "labelsTr" / f"{case.case}.nii.gz")
        for ours, theirs in ((1, 3), (2, 2), (3, 1)):
            assert np.array_equal(label == ours, mask == theirs)
        # The left ventricle is enclosed by myocardium and shrinks towards the apex.
        areas = (label == 1).sum(axis=(0, 1))
        drawn_slices = np.flatnonzero(areas)
        shrinking += np.corrcoef(drawn_slices, areas[drawn_slices])[0, 1] < 0
    assert shrinking >= 16  # of 18
