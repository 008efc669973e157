from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import Case, case_name, read_cases
from nnunet_ssp.cohort.splits import FOLD_SOURCE, read_splits, write_splits
from nnunet_ssp.conversion import convert as conversion
from nnunet_ssp.conversion.convert import convert_subjects
from nnunet_ssp.conversion.record import NewDataset
from nnunet_ssp.conversion.subjects import Cine, Task
from nnunet_ssp.conversion.summary import Remarks
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.nifti import write_nifti

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


TOY = NewDataset(
    dataset_id=901,
    name="Toy",
    labels=LABELS,
    description="toy",
    converter="toy",
    source=Path("input"),
    options={"test": None},
)


def run(subjects: Sequence[Task], **changes: Any) -> Path:
    """Convert toy subjects; changes are arguments of `convert_subjects` or fields of the dataset or of the remarks."""
    fields = {f.name for f in dataclasses.fields(NewDataset)} & changes.keys()
    new = replace(TOY, **{name: changes.pop(name) for name in fields})
    kinds = {"remarks": "general", "remark": "of_splits", "prefixes": "prefixes"}
    said = {kind: changes.pop(name) for name, kind in kinds.items() if name in changes}
    changes["remarks"] = Remarks(**said)
    arguments = {"read": read_toy, "refused": {}, "workers": 1, **changes}
    return convert_subjects(subjects, new=new, **arguments)


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files; those of convert.json may mention the run."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "convert.json"
    }


def test_what_a_killed_writer_left_is_removed(raw: Path):
    for overwrite in (False, True):
        target = run(tasks("A", "B"), overwrite=overwrite)
        (target / ".ssp-tmp-1-together").mkdir()
        (target / ".ssp-tmp-1-together" / "file").touch()
    assert not list(run(tasks("A", "B"), overwrite=True).glob(".ssp-tmp*"))


def test_images_are_on_the_disk_before_the_record_says_so(raw: Path, monkeypatch):
    done: list[str] = []
    flush, replace_file = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        flush(descriptor)

    def rename(a: Path, b: Path) -> None:
        done.append(f"rename {Path(b).name}")
        replace_file(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    run(tasks("A"))
    order = ["flush A_frame00_0000.nii.gz", "rename A_frame00_0000.nii.gz", "flush imagesTr"]
    assert [done.index(step) for step in order] == sorted(map(done.index, order))
    assert done.index("flush imagesTr") < done.index("rename A.json")


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
    assert [line.split() for line in output.splitlines()[2:6]] == [
        ["train", "3", "9", "2", "7", "0", "0"],
        ["test", "1", "1", "1", "0", "0", "0"],
        ["unread", "0", "0", "0", "0", "0", "1"],
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


def test_remarks_and_the_counts_of_each_source_are_shown(capsys: pytest.CaptureFixture[str]):
    mine = [*tasks("x-A", "x-B", "y-A"), ToyTask("y-T", "test", ())]
    target = run(mine, refused={"y-Z": "no image."}, remarks=["so it is"], prefixes=["x", "y"])
    output = capsys.readouterr().out
    assert [line.split() for line in output.splitlines()[6:10]] == [
        ["x", "train", "2", "6", "2", "4", "0", "0"],
        ["y", "train", "1", "3", "1", "2", "0", "0"],
        ["y", "test", "1", "1", "1", "0", "0", "0"],
        ["y", "unread", "0", "0", "0", "0", "0", "1"],
    ]
    assert "\nso it is\n" in output
    assert json.loads((target / "convert.json").read_text())["remarks"] == ["so it is"]


def test_long_lists_of_subjects_are_cut_short(capsys: pytest.CaptureFixture[str]):
    run(tasks(*(f"S{number:02d}" for number in range(12))))
    assert "  S00, S01, S02, S03, S04, S05, S06, S07, S08, S09, ... (12 in all): a note" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["done", "writing"])
def test_subjects_may_be_called_as_our_folders(name: str):
    assert len(read_cases(run(tasks(name, "B")) / "cases.csv")) == 6


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


def test_what_an_overwriting_run_replaces_is_named(raw: Path, capsys: pytest.CaptureFixture[str]):
    run(tasks("A", "B"))
    with pytest.raises(FileExistsError, match=r"made from another folder with 2 subjects \(A, B\)"):
        run(tasks("C"), source=Path("elsewhere"))
    capsys.readouterr()
    run(tasks("C"), source=Path("elsewhere"), overwrite=True, dry_run=True)
    warning = "WARNING: It is made from another folder with 2 subjects (A, B): --overwrite would"
    assert warning in capsys.readouterr().out
    run(tasks("C"), source=Path("elsewhere"), overwrite=True)
    replaced = "Replacing Dataset901_Toy, made from another folder with 2 subjects (A, B)\n"
    assert replaced in capsys.readouterr().out
    run(tasks("A"), source=Path("elsewhere"), overwrite=True)
    assert "Replacing" not in capsys.readouterr().out


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
    with pytest.raises(
        FileExistsError, match=r"unfinished conversion with other settings: another folder -i\."
    ):
        run(tasks("A", "B"), source=Path("elsewhere"))
    with pytest.raises(FileExistsError, match=r"settings: without --test, now with it\. To go on"):
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


def test_deleted_folds_are_named_also_after_an_interruption(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    target = run(tasks("A", "B"))
    splits = read_splits(target / "splits_final.json")
    cases = read_cases(target / "cases.csv")
    sources = [FOLD_SOURCE] * 2 + ["1 subject of 2-fold-0, seed 0"]
    write_splits(target, [*splits, splits[0]], cases, ["2-fold-0", "2-fold-1", "few"], sources)
    with monkeypatch.context() as patch:
        fail_at(patch, 1)
        with pytest.raises(RuntimeError, match="writing failed"):
            run(tasks("A", "B"), overwrite=True)
    run(tasks("A", "B"))
    said = capsys.readouterr().out
    assert (
        "WARNING: deleted with the earlier conversion: fold 2 (few: 1 subject of 2-fold-0, seed 0). "
        "To append them again: nnunet-ssp folds 901 (see --help)."
    ) in said
    line = said.partition("To append them again: ")[2].partition(" (")[0]
    assert main(shlex.split(line)[1:]) == 0
    assert "2-fold-0" in capsys.readouterr().out
    run(tasks("A", "B"), overwrite=True)
    assert "deleted with" not in capsys.readouterr().out


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


# -- a dry run -------------------------------------------------------------------------------------


def nifti_task(folder: Path, subject: str, split: str = "train", mask: bool = True) -> ToyTask:
    """A 4D image of four frames and its mask."""
    voxels = np.random.default_rng(0).integers(0, 99, (3, 2, 2, 4)).astype(np.int16)
    files = (folder / f"{subject}.nii.gz", folder / f"{subject}_gt.nii.gz")
    for file in files[: 1 + mask]:
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)
    return ToyTask(subject, split, files)


def test_a_dry_run_counts_and_writes_nothing(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mine = [nifti_task(tmp_path, "A"), nifti_task(tmp_path, "B", mask=False)]
    mine += [nifti_task(tmp_path, "T", "test"), nifti_task(tmp_path, "V", "test", mask=False)]
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    target = run(mine, refused={"X": "no image."}, dry_run=True, remarks=["so it is"])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    assert target == raw / "Dataset901_Toy"
    output = capsys.readouterr().out
    assert [line.split() for line in output.splitlines()[1:6]] == [
        ["subjects", "with", "masks", "without", "frames", "refused"],
        ["train", "2", "1", "1", "8", "0"],
        ["test", "1", "1", "0", "4", "1"],
        ["unread", "0", "0", "0", "0", "1"],
        ["all", "3", "2", "1", "12", "2"],
    ]
    assert "\nso it is\n" in output
    assert "\ntrain: A, B\n" in output and "\ntest: T\n" in output
    assert "  X: no image." in output
    assert f"  V: {tmp_path}: there is no mask; a test subject must have labels." in output
    assert output.endswith(f"Dry run: nothing was written. The dataset would be {target}\n")


def test_a_dry_run_shows_every_reason(capsys: pytest.CaptureFixture[str]):
    run(
        tasks("A"),
        refused={f"X{number}": f"reason {number}." for number in range(30)},
        dry_run=True,
    )
    assert "  X29: reason 29." in capsys.readouterr().out


def test_a_dry_run_sees_what_the_headers_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    broken, other = nifti_task(tmp_path, "A"), nifti_task(tmp_path, "B")
    broken.files[1].write_bytes(b"no gzip")
    voxels = np.zeros((3, 2, 3), np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), other.files[1])
    run([broken, other, nifti_task(tmp_path, "C")], dry_run=True)
    output = capsys.readouterr().out
    assert "  A: " in output and "A_gt.nii.gz: not a complete NIfTI file" in output
    assert "B_gt.nii.gz: shape (=(3, 2, 3)) must be that of B.nii.gz (=(" in output
    assert "\ntrain: C\n" in output


def test_a_dry_run_counts_3d_frames_and_knows_nothing_of_other_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = [tmp_path / f"{name}.nii.gz" for name in ("f0", "f1", "f0_gt")]
    for file in files:
        nibabel.save(nibabel.Nifti1Image(np.ones((3, 2, 2), np.uint8), np.eye(4)), file)
    dicom = tmp_path / "1.dcm"
    dicom.write_bytes(b"DICM")
    run([ToyTask("A", "train", tuple(files)), ToyTask("B", "train", (dicom,))], dry_run=True)
    assert capsys.readouterr().out.splitlines()[2].split() == ["train", "2", "1", "1", "2", "0"]


def test_a_dry_run_finds_the_folder_taken(raw: Path, capsys: pytest.CaptureFixture[str]):
    target = run(tasks("A"))
    before = files(target)
    for overwrite in (False, True):
        run(tasks("A", "B"), dry_run=True, overwrite=overwrite)
        output = capsys.readouterr().out
        assert (
            "That folder holds a finished dataset: choose another id to keep it, or --over"
            in output
        )
    assert files(target) == before
    with pytest.raises(FileExistsError, match="dataset id 901 is taken"):
        run(tasks("A"), dry_run=True, name="Other")


# -- the rows of cases.csv -------------------------------------------------------------------------


def test_a_dry_run_may_find_nothing_to_convert(capsys: pytest.CaptureFixture[str]):
    run([], refused={"B10": "b.", "B9": "a."}, dry_run=True)
    output = capsys.readouterr().out
    assert output.endswith("Dry run: nothing was written, and no subject could be converted.\n")
    assert output.index("B9: a.") < output.index("B10: b.") and "test subjects" not in output


def test_overwriting_a_conversion_leaves_what_is_not_of_it(tmp_path):
    target, elsewhere = tmp_path / "Dataset901_Toy", tmp_path / "elsewhere"
    gone = ["imagesTr/A_frame00_0000.nii.gz", "labelsTr/A_frame00.nii.gz", "cases.csv"]
    gone += ["dataset.json", ".ssp-tmp/done/A.json", "folds.csv"]
    kept = ["notes.txt", "imagesTr/mine.nii.gz", "imagesTr/A_frame00.json", "mine/A_frame00.nii.gz"]
    for name in (*gone, *kept):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).touch()
    elsewhere.mkdir()
    (elsewhere / "A_frame00_0000.nii.gz").touch()
    (target / "imagesUn").symlink_to(elsewhere)
    write_json(target / "convert.json", {})
    conversion._empty(target, [])
    left = {str(f.relative_to(target)) for f in target.rglob("*") if f.is_file()}
    assert left == {*kept, "convert.json"}
    assert not (target / "imagesUn").exists() and not (target / "labelsTr").exists()
    assert [f.name for f in elsewhere.iterdir()] == ["A_frame00_0000.nii.gz"]


def read_alike(task: ToyTask) -> Cine:
    """The toy with a frame that changes from voxel to voxel; of A and T it is the same, in another type."""
    cine = read_toy(task)
    step = {"A": 1, "T": 1, "B": 2}[task.subject]
    voxels = step * np.arange(40).reshape(4, 5, 2)
    kind = np.float32 if task.subject == "T" else np.int16
    return replace(cine, frames={frame: voxels.astype(kind) for frame in cine.frames})


def test_equal_images_of_two_subjects_are_a_warning(raw: Path, capsys):
    """Also where the conversion goes on; equal frames of one subject are none."""
    subjects = [*tasks("A", "B"), ToyTask("T", "test", ())]
    target = run(subjects, read=read_alike)
    warning = (
        "WARNING: A and T have 1 image with the same voxels: one patient under two names? T is"
    )
    said = capsys.readouterr().out
    assert said.count("with the same voxels") == said.count(warning) == 1
    record = json.loads((target / "convert.json").read_text())
    assert record["remarks"][-1].startswith(warning) and "sums" not in record
    run(subjects[:2], read=read_alike, overwrite=True)
    assert "with the same voxels" not in capsys.readouterr().out
