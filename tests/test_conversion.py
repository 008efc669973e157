from __future__ import annotations

import errno
import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp import conversion
from nnunet_ssp.cases import Case, case_name, read_cases, read_splits
from nnunet_ssp.conversion import (
    Cine,
    Task,
    base_of_stack,
    check_cine,
    clean_affine,
    convert_subjects,
    integer_labels,
    read_nifti,
    write_nifti,
)

FILE = Path("x.nii.gz")
LABELS = {"background": 0, "LV": 1, "RV": 2}


@dataclass(frozen=True)
class ToyTask(Task):
    labelled: bool = True
    broken: bool = False


def read_toy(task: ToyTask) -> Cine:
    """Three frames, of which the first is labelled."""
    if task.broken:
        raise ValueError(f"{task.subject}.raw: broken.")
    phases = {0: "ED"} if task.labelled else {}
    cases = [
        Case(
            case=case_name(task.subject, frame),
            subject=task.subject,
            source="toy",
            source_frame=frame + 1,
            split=task.split,
            frame=frame,
            n_frames=3,
            phase=phases.get(frame, ""),
            base="first",
            vendor="GE",
            centre="",
            scanner="",
            field="",
            pathology="",
        )
        for frame in range(3)
        if task.split == "train" or frame in phases
    ]
    frames = {frame: np.full((4, 5, 2), 10 + frame, np.int16) for frame in range(3)}
    labels = {0: np.ones((4, 5, 2), np.uint8)} if task.labelled else {}
    return Cine(frames, labels, np.diag([1.5, 1.5, 8, 1]), cases, notes=["a note"])


@pytest.fixture(autouse=True)
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path / "raw"


def tasks(*subjects: str, **changes: bool) -> list[ToyTask]:
    return [ToyTask(subject, "train", (), **changes) for subject in subjects]


run = functools.partial(
    convert_subjects,
    read=read_toy,
    converter="toy",
    source=Path("input"),
    dataset_id=901,
    name="Toy",
    labels=LABELS,
    description="toy",
    options={"test": None},
    refused={},
    workers=1,
)


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files; those of convert.json may mention the run."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "convert.json"
    }


def test_the_folder_of_a_conversion(raw: Path, capsys: pytest.CaptureFixture[str]):
    target = run(
        [*tasks("A", "B"), ToyTask("T", "test", ()), *tasks("U", labelled=False)],
        refused={"X": "no image."},
    )
    assert target == raw / "Dataset901_Toy"
    images = {f: sorted(p.name for p in (target / f).iterdir()) for f in conversion.IMAGE_FOLDERS}
    assert images == {
        "imagesTr": ["A_frame00_0000.nii.gz", "B_frame00_0000.nii.gz"],
        "imagesTs": ["T_frame00_0000.nii.gz"],
        "imagesUn": [
            f"{subject}_frame{frame:02d}_0000.nii.gz"
            for subject in "ABU"
            for frame in ((0, 1, 2) if subject == "U" else (1, 2))
        ],
    }
    assert [p.name for p in (target / "labelsTs").iterdir()] == ["T_frame00.nii.gz"]
    assert not (target / ".ssp-tmp").exists()
    assert len(read_cases(target / "cases.csv")) == 10
    assert len(read_splits(target / "splits_final.json")) == 2
    dataset = json.loads((target / "dataset.json").read_text())
    assert dataset["numTraining"] == 2
    assert dataset["labels"] == LABELS
    assert "dataset" not in dataset
    log = json.loads((target / "convert.json").read_text())
    assert log["refused"] == {"X": "no image."}
    assert log["notes"] == {subject: ["a note"] for subject in "ABTU"}

    output = capsys.readouterr().out
    assert [line.split() for line in output.splitlines()[2:5]] == [
        ["train", "3", "9", "2", "7", "0", "0"],
        ["test", "1", "1", "1", "0", "0", "0"],
        ["all", "4", "10", "3", "7", "0", "1"],
    ]
    assert "Cross-validation by subject: 2 folds" in output
    assert "A, B, T, U: a note" in output
    assert "REFUSED, not converted:\n  X: no image." in output
    assert "nnunet-ssp prepare 901" in output


def test_frames_are_what_nnunet_reads():
    target = run(tasks("A"))
    image = sitk.ReadImage(target / "imagesTr/A_frame00_0000.nii.gz")
    assert image.GetPixelID() == sitk.sitkInt16
    assert image.GetSize() == (4, 5, 2)
    assert image.GetSpacing() == pytest.approx((1.5, 1.5, 8))
    assert set(sitk.GetArrayFromImage(image).flat) == {10}
    label = sitk.ReadImage(target / "labelsTr/A_frame00.nii.gz")
    assert label.GetPixelID() == sitk.sitkUInt8
    header = nibabel.load(target / "imagesUn/A_frame01_0000.nii.gz").header
    assert header["dim"].tolist() == [3, 4, 5, 2, 1, 1, 1, 1]
    assert header["pixdim"][1:5].tolist() == pytest.approx([1.5, 1.5, 8, 1])


def test_without_labels_the_unlabelled_frames_are_the_training_set():
    target = run(tasks("A", "B", labelled=False))
    dataset = json.loads((target / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0}
    assert dataset["numTraining"] == 6 == len(dataset["dataset"])
    assert dataset["dataset"]["A_frame02"]["images"] == ["imagesUn/A_frame02_0000.nii.gz"]
    assert read_splits(target / "splits_final.json") == []
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    listed = get_filenames_of_train_images_and_targets(str(target))
    assert all(Path(case["images"][0]).is_file() for case in listed.values())


def test_refused_subjects_leave_the_others(raw: Path, capsys: pytest.CaptureFixture[str]):
    target = run([*tasks("A"), *tasks("B", broken=True)])
    assert "  B: B.raw: broken." in capsys.readouterr().out
    assert {case.subject for case in read_cases(target / "cases.csv").values()} == {"A"}


def test_no_usable_subject_is_an_error_and_leaves_nothing(raw: Path):
    with pytest.raises(ValueError, match=r"(?s)input: no subject could be converted.*B: B.raw: br"):
        run(tasks("B", broken=True))
    assert list(raw.iterdir()) == []


def test_many_different_reasons_are_cut_short(capsys: pytest.CaptureFixture[str]):
    run(tasks("A"), refused={f"X{number}": f"reason {number}." for number in range(30)})
    output = capsys.readouterr().out
    assert "X19: reason 19." in output
    assert "X20" not in output
    assert "... and 10 more, see convert.json" in output


def test_a_finished_dataset_needs_overwrite(raw: Path):
    target = run(tasks("A", "B"))
    with pytest.raises(FileExistsError, match=r"a finished dataset; --overwrite"):
        run(tasks("A"))
    run(tasks("A"), overwrite=True)
    assert not list(target.rglob("B_frame*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_ours_is_never_touched(raw: Path, overwrite: bool):
    (raw / "Dataset901_Toy").mkdir()
    (raw / "Dataset901_Toy" / "dataset.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"holds no convert.json, so it is not ours"):
        run(tasks("A"), overwrite=overwrite)
    assert files(raw) == {"Dataset901_Toy/dataset.json": b"{}"}


def test_an_empty_folder_is_used(raw: Path):
    (raw / "Dataset901_Toy").mkdir()
    assert (run(tasks("A")) / "dataset.json").is_file()


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the disk be full from the given image on."""
    count = iter(range(1000))

    def write(file: Path, *arguments: object) -> None:
        if next(count) >= number:
            file.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        write_nifti(file, *arguments)

    monkeypatch.setattr(conversion, "write_nifti", write)


def test_a_full_disk_stops_and_a_second_run_finishes(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with monkeypatch.context() as patch:
        fail_at(patch, 6)  # four files a subject: in the middle of the second
        with pytest.raises(RuntimeError, match=r"No space left.*run the same command again"):
            run(tasks("A", "B", "C"))
    target = raw / "Dataset901_Toy"
    assert not (target / "dataset.json").exists()
    assert {file.name[0] for file in target.rglob("*.nii.gz")} == {"A"}
    done = {name: content for name, content in files(target).items() if name.endswith(".nii.gz")}
    stamps = {name: (target / name).stat().st_mtime_ns for name in done}

    run(tasks("A", "B", "C"))
    assert "Continuing the conversion" in capsys.readouterr().out
    assert stamps == {name: (target / name).stat().st_mtime_ns for name in done}
    assert files(target) == files(run(tasks("A", "B", "C"), dataset_id=902))


def test_only_the_same_input_and_options_continue(raw: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        fail_at(patch, 6)
        with pytest.raises(RuntimeError, match="writing failed"):
            run(tasks("A", "B"))
    with pytest.raises(FileExistsError, match=r"an unfinished conversion with another `input`"):
        run(tasks("A", "B"), source=Path("elsewhere"))
    with pytest.raises(FileExistsError, match=r"another `options` .*now .*A"):
        run(tasks("A", "B"), options={"test": ["A"]})
    run(tasks("A"), options={"test": ["A"]}, overwrite=True)


def test_what_changed_since_the_interruption_is_converted_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "a.raw"
    source.write_text("1")
    mine = [ToyTask("A", "train", (source,)), *tasks("B")]
    with monkeypatch.context() as patch:
        fail_at(patch, 6)
        with pytest.raises(RuntimeError, match="writing failed"):
            run(mine)
    source.write_text("22")
    read = []
    run(mine, read=lambda task: read.append(task.subject) or read_toy(task))
    assert read == ["A", "B"]


def test_frames_of_a_subject_that_is_now_refused_are_removed(
    raw: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        fail_at(patch, 6)
        with pytest.raises(RuntimeError, match="writing failed"):
            run(tasks("A", "B"))
    target = run([*tasks("A", broken=True), *tasks("B")])
    assert not list(target.rglob("A_frame*"))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """This file under a name that other processes can import."""
    (tmp_path / "toy_conversion.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_conversion", raising=False)
    return importlib.import_module("toy_conversion")


def test_processes_give_the_same_as_one(toy: ModuleType):
    one = run(tasks("A", "B", "C"))
    two = toy.run(toy.tasks("A", "B", "C"), dataset_id=902, workers=2)
    assert files(one) == files(two)


def die(task: ToyTask) -> Cine:
    os._exit(1)


def test_a_dead_worker_is_explained(toy: ModuleType):
    with pytest.raises(RuntimeError, match=r"a worker process died.*-np.*continues"):
        toy.run(toy.tasks("A", "B"), read=toy.die, workers=2)


KILLED = """
import os, signal
from toy_conversion import run, tasks
count = iter(range(1000))
replace = os.replace
def killed(*arguments):
    if next(count) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)
os.replace = killed
run(tasks("A", "B"))
"""


@pytest.mark.parametrize("number", [2, 7, 13])  # among the first frames, the second, the tables
def test_a_killed_run_is_finished_by_a_second(
    toy: ModuleType, raw: Path, tmp_path: Path, number: int
):
    script = KILLED.format(number=number)
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    target = raw / "Dataset901_Toy"
    assert not (target / "dataset.json").exists()
    for file in target.glob("*/*.nii.gz"):
        sitk.ReadImage(file)
    # The other process resolved the same relative input against its own folder.
    run(tasks("A", "B"), source=tmp_path / "input")
    assert files(target) == files(run(tasks("A", "B"), dataset_id=902))


def test_prepared_and_trained_folders_are_spoken_of(raw: Path, capsys: pytest.CaptureFixture[str]):
    run(tasks("A", "B"))
    prepared = raw.parent / "preprocessed" / "Dataset901_Toy"
    results = raw.parent / "results" / "Dataset901_Toy"
    shutil.copytree(raw / "Dataset901_Toy", prepared)
    (results / "Trainer__plans__2d" / "fold_1").mkdir(parents=True)
    target = run(tasks("A", "B", "C"), overwrite=True)
    output = capsys.readouterr().out
    assert f"WARNING: {prepared} was prepared from an earlier conversion" in output
    assert "run nnunet-ssp prepare again" in output
    assert f"WARNING: fold 1 is not the one that {results} was trained on" in output
    for table in ("cases.csv", "folds.csv", "splits_final.json"):
        assert (prepared / table).read_bytes() == (target / table).read_bytes()


# --- reading, checking and writing ------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "uint16", "int64", "float32", "float64"])
def test_voxels_survive_the_file(tmp_path: Path, dtype: str):
    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    source, copy = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4), dtype=voxels.dtype), source)
    read, affine = read_nifti(source)
    assert read.dtype == (np.float32 if "f" in dtype else np.dtype(dtype).newbyteorder("="))
    write_nifti(copy, read, affine)
    assert sitk.GetArrayFromImage(sitk.ReadImage(copy)).T.tolist() == voxels.tolist()


def test_scaled_integers_become_their_real_values(tmp_path: Path):
    image = nibabel.Nifti1Image(np.array([[[0.0, 0.5, 100.0]]]), np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    voxels, _ = read_nifti(tmp_path / "a.nii.gz")
    assert voxels.dtype == np.float32
    assert voxels.ravel().tolist() == pytest.approx([0, 0.5, 100], abs=0.01)


def test_broken_files_are_named(tmp_path: Path):
    file = tmp_path / "a.nii.gz"
    with pytest.raises(ValueError, match=r"a\.nii\.gz: the file is missing"):
        read_nifti(file)
    voxels = np.random.default_rng(0).integers(0, 999, (20, 20, 5, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"no gzip at all" * 50):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.nii\.gz: not a complete NIfTI file"):
            read_nifti(file)
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.complex64), np.eye(4)), file)
    with pytest.raises(ValueError, match=r"voxels \(=complex64\) must be integers or real"):
        read_nifti(file)


def test_what_is_no_cine_is_refused():
    voxels = np.arange(2 * 2 * 2 * 3, dtype=np.float32).reshape(2, 2, 2, 3)
    check_cine(voxels, FILE)
    with pytest.raises(ValueError, match=r"x.nii.gz: shape \(=\(2, 2, 2\)\) must have 4 axes"):
        check_cine(voxels[..., 0], FILE)
    with pytest.raises(ValueError, match=r"x.nii.gz: frame 1 constant"):
        check_cine(np.where(np.arange(3) == 1, 7, voxels), FILE)
    with pytest.raises(ValueError, match=r"x.nii.gz: all frames constant"):
        check_cine(np.zeros((2, 2, 2, 3)), FILE)
    voxels[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"x.nii.gz: holds NaN or infinite values"):
        check_cine(voxels, FILE)


def test_masks_become_integers():
    mask = integer_labels(np.array([0.0, 1.0004, 2.9996]), FILE, range(4))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [0, 1, 3]
    for bad in (0.5, np.nan):
        with pytest.raises(ValueError, match=r"x.nii.gz: mask values must be whole numbers"):
            integer_labels(np.array([0, bad]), FILE, range(4))
    with pytest.raises(ValueError, match=r"mask values \(=-1, 4\) must be among \[0, 1, 2, 3\]"):
        integer_labels(np.array([0, 4, -1]), FILE, range(4))


rotations = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)


def affine_of(quaternion: tuple[float, ...], spacing: tuple[float, ...], flip: int) -> np.ndarray:
    a, b, c, d = np.array(quaternion) / np.linalg.norm(quaternion)
    affine = np.eye(4)
    affine[:3, :3] = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
    ]
    affine[:3, :3] *= np.array(spacing) * [1, 1, flip]
    affine[:3, 3] = [10, -20, 30]
    return affine


@given(
    rotations,
    st.tuples(*[st.floats(0.5, 10)] * 3),
    st.sampled_from([1, -1]),
    st.lists(st.floats(-0.05, 0.05), min_size=9, max_size=9),
)
def test_clean_affines_are_orthogonal_and_near(quaternion, spacing, flip, noise):
    affine = affine_of(quaternion, spacing, flip)
    assert clean_affine(affine, FILE)[0] == pytest.approx(affine, abs=1e-6)
    sheared = affine.copy()
    sheared[:3, :3] *= 1 + np.reshape(noise, (3, 3))
    clean, turned = clean_affine(sheared, FILE)
    norms = np.linalg.norm(sheared[:3, :3], axis=0)
    assert clean[:3, :3].T @ clean[:3, :3] == pytest.approx(np.diag(norms**2), abs=1e-6)
    assert np.sign(np.linalg.det(clean)) == flip
    assert clean[:3, 3].tolist() == [10, -20, 30]
    assert turned < 5


def test_simpleitk_reads_what_it_refused(tmp_path: Path):
    affine = np.diag([1.5, 1.5, 8, 1])
    affine[1, 0] = 0.02
    file = tmp_path / "a.nii.gz"
    image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.int16), affine)
    image.set_qform(None, code=0)
    nibabel.save(image, file)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(file)
    voxels, read = read_nifti(file)
    clean, turned = clean_affine(read, file)
    assert 0.1 < turned < 1
    write_nifti(file, voxels, clean)
    assert sitk.ReadImage(file).GetSpacing() == pytest.approx((1.5, 1.5, 8), abs=1e-3)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_an_affine_that_spans_nothing_is_refused(value: float):
    with pytest.raises(ValueError, match=r"x.nii.gz: the affine must have three axes"):
        clean_affine(np.diag([1.0, 1.0, value, 1.0]), FILE)


@pytest.mark.parametrize(
    ("normal", "base"),
    [
        ((-1, 1, -1), "first"),  # towards left, front and feet: from base to apex
        ((-0.5, 0.6, -0.7), "first"),
        ((1, -1, 1), "last"),
        ((0.73, -0.67, 0.2), "last"),  # as in a real, rather horizontal heart
        ((0, 0, 1), "unknown"),  # nominal, like ACDC's
        ((0, 0, -1), "unknown"),
        ((1, 1, 0), "unknown"),
    ],
)
def test_the_affine_tells_the_base(normal: tuple[float, ...], base: str):
    affine = np.diag([1.5, 1.5, 1, 1])
    affine[:3, 2] = 8 * np.array(normal)
    assert base_of_stack(affine) == base
