"""A run: outputs, refusals, interruptions, and folders of other models."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.phantom import PhantomSubject
from nnunet_ssp.predict import command
from nnunet_ssp.predict.command import Procedure, run
from nnunet_ssp.predict.inputs import find_studies
from nnunet_ssp.predict.kept import KeptFrames
from nnunet_ssp.predict.measure import Choices
from nnunet_ssp.predict.model import Wanted, results_folder
from nnunet_ssp.predict.results import Output
from nnunet_ssp.signals import ENDS
from tests.predict.conftest import save

LABELS = Labels({n: (v,) for v, n in enumerate(("LV", "MYO", "RV"), 1)}, structures={
    n: n for n in ("LV", "MYO", "RV")})  # fmt: skip


class TrueMasks:
    """Gives the phantom's true masks instead of a network's."""

    def __init__(self, subject: PhantomSubject) -> None:
        self.subject = subject
        self.segmented = 0

    def segment(self, voxels: np.ndarray, affine: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        self.segmented += 1
        for image in np.moveaxis(voxels, -1, 0):
            t = next(t for t in range(3) if np.array_equal(image, self.subject.image[..., t]))
            yield self.subject.labels[..., t].copy(), float(t or "nan")


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def inputs(subject: PhantomSubject, tmp_path: Path) -> Path:
    for name in ("one", "two"):
        save(subject.image, tmp_path / "in" / f"{name}.nii.gz", subject.affine)
    return tmp_path / "in"


@pytest.fixture
def go(subject: PhantomSubject, inputs: Path, tmp_path: Path) -> Callable[..., tuple[int, dict]]:
    """Run with true masks; returns how many were segmented, and the refused."""

    def start(
        overwrite: bool = False, model: str = "m", typed: Path = inputs, **options: object
    ) -> tuple[int, dict]:
        masks = TrueMasks(subject)
        job = replace(Procedure(LABELS, lambda: masks), **options)
        (tmp_path / "out").mkdir(exist_ok=True)
        tasks, refused = find_studies([typed], False, (), 1)
        output = Output(tmp_path / "out")
        refused = run(tasks, refused, output, job, {"digest": model}, overwrite)
        return masks.segmented, refused

    return start


def test_a_run_with_true_masks_gives_true_metrics(go, subject, tmp_path) -> None:
    assert go() == (2, {})
    out = tmp_path / "out"
    for name in ("one", "two"):
        mask, image = nibabel.load(out / f"{name}_seg.nii.gz"), tmp_path / "in" / f"{name}.nii.gz"
        np.testing.assert_array_equal(np.asarray(mask.dataobj), subject.labels)
        np.testing.assert_array_equal(mask.affine, nibabel.load(image).affine)
    rows = table(out / "volumes.csv")
    assert [row["subject"] for row in rows] == ["one", "two"]
    assert (int(rows[0]["ed_frame"]), int(rows[0]["es_frame"])) == (subject.ed, subject.es)
    voxel = abs(np.linalg.det(subject.affine[:3, :3])) / 1000
    expected = (subject.labels[..., subject.ed] == 1).sum() * voxel
    assert float(rows[0]["lv_edv_ml"]) == pytest.approx(expected, rel=1e-5)
    assert rows[0]["heart_rate"] == rows[0]["refused"] == ""
    assert float(rows[0]["disagreement_percent"]) == 1.5
    frames = table(out / "phases.csv")
    assert len(frames) == 2 * subject.image.shape[3]
    assert [row["phase"] for row in frames[:3]].count("ED") == 1
    assert frames[0]["disagreement_percent"] == ""


def test_a_second_run_does_what_is_missing(go, inputs, subject, tmp_path) -> None:
    go()
    before = (tmp_path / "out" / "volumes.csv").read_bytes()
    assert go() == (0, {})
    assert (tmp_path / "out" / "volumes.csv").read_bytes() == before
    (tmp_path / "out" / "one_seg.nii.gz").unlink()
    assert go()[0] == 1
    os.utime(inputs / "two.nii.gz", (1, 1))  # another image
    assert go()[0] == 1
    (tmp_path / "out" / "two_seg.json").write_text("{")
    save(subject.image, inputs / "three.nii.gz", subject.affine)
    assert go()[0] == 2
    assert len(table(tmp_path / "out" / "volumes.csv")) == 3


def test_the_same_images_by_another_path_are_not_segmented_again(go, inputs, monkeypatch) -> None:
    go()
    monkeypatch.chdir(inputs.parent)
    (inputs.parent / "link").symlink_to(inputs)
    for typed in (Path(inputs.name), Path("link"), Path("link", "..", inputs.name)):
        assert go(typed=typed) == (0, {})


def test_records_of_paths_as_they_were_typed_still_count(go, inputs, tmp_path, monkeypatch) -> None:
    """As records were written before; a file with another time is another image."""
    go()
    monkeypatch.chdir(inputs.parent)
    for file in (tmp_path / "out").glob("*_seg.json"):
        record = json.loads(file.read_text())
        record["stamp"][0] = str(Path(record["stamp"][0]).relative_to(inputs.parent))
        file.write_text(json.dumps(record))
    assert go() == (0, {})
    os.utime(inputs / "two.nii.gz", (1, 1))
    assert go()[0] == 1


def test_an_image_that_changes_after_it_was_read_is_done_again(go, inputs, subject) -> None:
    """While one subject is segmented, the next one is read."""

    class Segments(TrueMasks):
        def segment(self, voxels: np.ndarray, affine: np.ndarray) -> Iterator:
            for result in super().segment(voxels, affine):
                yield result
                os.utime(inputs / "two.nii.gz", (1, 1))

    masks = Segments(subject)
    go(load=lambda: masks)
    assert masks.segmented == 2
    assert go() == (1, {})
    assert go() == (0, {})


def test_a_second_run_prints_the_volumes_of_finished_subjects(go, inputs, capsys) -> None:
    go()
    first = [line for line in capsys.readouterr().out.splitlines() if ": EDV " in line]
    assert [line.partition(":")[0] for line in first] == ["one", "two"]
    go()
    said = capsys.readouterr().out
    assert said.startswith("\n".join(["2 subjects done before:", *first]))
    os.utime(inputs / "one.nii.gz", (1, 1))  # another image, which is segmented again
    go()
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["1 subject done before:", first[1], first[0]]


def test_other_choices_measure_again_without_the_network(go, tmp_path) -> None:
    go()
    assert go(choices=Choices((0, 2))) == (0, {})
    rows = table(tmp_path / "out" / "volumes.csv")
    assert (rows[0]["ed_frame"], rows[0]["es_frame"]) == ("0", "2")
    assert float(rows[0]["disagreement_percent"]) == 1.5


def test_a_corrupt_file_is_refused_and_the_others_go_on(go, inputs, tmp_path) -> None:
    go()
    (inputs / "one.nii.gz").write_bytes((inputs / "one.nii.gz").read_bytes()[:-400])
    segmented, refused = go()
    assert segmented == 0
    assert list(refused) == ["one"] and "not a complete NIfTI file" in refused["one"]
    rows = table(tmp_path / "out" / "volumes.csv")
    assert [(row["subject"], bool(row["refused"])) for row in rows] == [("two", 0), ("one", 1)]
    assert not (tmp_path / "out" / "one_seg.nii.gz").exists()  # it is of another image


def test_the_folder_of_another_model_is_refused(go, tmp_path) -> None:
    go()
    with pytest.raises(FileExistsError, match="made by another model"):
        go(model="other")
    assert go(model="other", overwrite=True)[0] == 2
    (tmp_path / "out" / "predict.json").unlink()
    with pytest.raises(FileExistsError, match=r"holds one_seg\.html, and no predict\.json"):
        go()


def test_nothing_of_another_model_is_left(go, inputs, tmp_path) -> None:
    """Also of a subject that is no longer asked for, and that a kill has left without its record."""
    go()
    (tmp_path / "out" / "two_seg.json").unlink()
    for file in inputs.iterdir():
        file.rename(inputs / f"new_{file.name}")
    (inputs / "new_two.nii.gz").write_bytes(b"no image")
    assert list(go(model="other", overwrite=True)[1]) == ["new_two"]
    found = sorted(f.name for f in (tmp_path / "out").iterdir() if f.name[0] != ".")
    ours = [f"new_one_seg.{ending}" for ending in ("html", "json", "nii.gz")]
    assert found == [*ours, "phases.csv", "predict.json", "report.html", "volumes.csv"]


@pytest.fixture
def stopped(subject, inputs, tmp_path, monkeypatch):
    """Stop a run by a signal before it comes to a frame; returns what is segmented from then on."""

    def start(number: int, frame: int, again: str) -> list[int]:
        segmented, left = [], iter(range(frame))

        class Segments(TrueMasks):
            def segment(self, voxels: np.ndarray, affine: np.ndarray) -> Iterator:
                for t, result in enumerate(super().segment(voxels, affine)):
                    if left is not None and next(left, None) is None:
                        os.kill(os.getpid(), number)
                    segmented.append(t + subject.image.shape[3] - voxels.shape[3])
                    yield result

        job = Procedure(LABELS, lambda: Segments(subject), again=again)
        (tmp_path / "out").mkdir()
        tasks, refused = find_studies([inputs], False, (), 1)
        with pytest.raises(SystemExit) as ended:
            run(tasks, refused, Output(tmp_path / "out"), job, {"digest": "m"})
        assert ended.value.code == 128 + number
        assert segmented == [0, 1, 2, 0, 1][:frame]
        left = None
        segmented.clear()
        run(tasks, refused, Output(tmp_path / "out"), job, {"digest": "m"})
        return segmented

    return start


@pytest.mark.parametrize("number", ENDS)
def test_a_stopped_run_goes_on_at_the_next_frame(stopped, go, subject, tmp_path, capsys, number):
    """It says what is done, keeps that, and ends as one that was not stopped."""
    again = "nnunet-ssp predict -i 'my in' -o out"
    assert stopped(number, 5, again) == [2]
    out, err = capsys.readouterr()
    name = signal.Signals(number).name
    assert f"{name}: stopped. Done: 1 of 2 subjects, and 2 of 3 frames of two. What" in out
    assert f"report.html. To go on with the rest:\n{again}\n" in out
    assert "To segment: 6 frames of 2 subjects\n" in err
    assert "To segment: 3 frames of 1 subject; 2 frames done before\n" in err
    found = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir() if f.is_file()}
    assert not (tmp_path / "out" / ".frames").exists()
    (tmp_path / "out").rename(tmp_path / "stopped")
    assert go() == (2, {})
    files = [f for f in (tmp_path / "out").iterdir() if f.is_file()]
    assert {f.name for f in files} == set(found)
    assert [f.name for f in files if f.read_bytes() != found[f.name]] == []


def test_a_run_that_is_stopped_has_a_report_of_what_is_done(
    go, subject, inputs, tmp_path, capsys
) -> None:
    def stop(voxels: np.ndarray, affine: np.ndarray) -> Iterator:
        os.kill(os.getpid(), signal.SIGINT)
        yield

    os.utime(inputs / "one.nii.gz", (1, 1))
    go()
    os.utime(inputs / "one.nii.gz", (2, 2))  # another image: its old results are not done
    masks = TrueMasks(subject)
    masks.segment = stop
    with pytest.raises(SystemExit):
        go(load=lambda: masks)
    assert "Done: 1 of 2 subjects, and 0 of 3 frames of one." in capsys.readouterr().out
    assert [row["subject"] for row in table(tmp_path / "out" / "volumes.csv")] == ["two"]
    assert "one_seg.html" not in (tmp_path / "out" / "report.html").read_text()


def test_a_full_disk_takes_nothing_from_what_a_signal_says(stopped, monkeypatch, capsys) -> None:
    real = command._write_tables
    left = iter([OSError(28, "No space left on device")])

    def write(*words: object) -> None:
        for error in left:
            raise error
        real(*words)

    monkeypatch.setattr(command, "_write_tables", write)
    assert stopped(signal.SIGTERM, 5, "again") == [2]
    assert "SIGTERM: stopped. Done: 1 of 2 subjects" in capsys.readouterr().out


@pytest.mark.parametrize("below", ["", "new"])
def test_a_file_in_place_of_the_output_is_said_at_once(tmp_path, capsys, below: str) -> None:
    file = tmp_path / "file"
    file.touch()
    words = ["predict", "-i", tmp_path / "nothing", "-m", tmp_path, "-device", "cpu"]
    assert main([*map(str, words), "-o", str(file / below)]) == 1
    assert capsys.readouterr().err.endswith(f"error: {file}: not a directory.\n")


def test_a_damaged_frame_is_made_again(stopped, subject, tmp_path, monkeypatch) -> None:
    real = KeptFrames.open

    def damage(frames: KeptFrames) -> None:
        real(frames)
        for file in frames.folder.glob("frame_0000.npz"):
            file.write_bytes(file.read_bytes()[:40])

    monkeypatch.setattr(KeptFrames, "open", damage)
    assert len(stopped(signal.SIGTERM, 5, "")) == 2  # the first of two, and the last
    mask = np.asarray(nibabel.load(tmp_path / "out" / "two_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, subject.labels)


def test_the_command_that_goes_on_is_the_one_that_was_typed(
    make_model, inputs, tmp_path, capsys, monkeypatch, one_thread
) -> None:
    """A network's frames are those of a run that was not stopped."""
    model = make_model(tmp_path / "my model")
    words = ["predict", "-i", inputs / "one.nii.gz", "-m", model, "-device", "cpu", "-o"]
    real = KeptFrames.write

    def write(kept: KeptFrames, number: int, labels: np.ndarray, doubt: float) -> None:
        real(kept, number, labels, doubt)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(KeptFrames, "write", write)
        main([*map(str, words), str(tmp_path / "my out")])
    said = capsys.readouterr().out
    assert "1 of 3 frames of one" in said or "2 of 3 frames of one" in said
    line = said.splitlines()[-1]
    assert line.startswith("nnunet-ssp predict -i ") and f"'{tmp_path / 'my out'}'" in line
    assert main(shlex.split(line)[1:]) == 0
    assert "To segment: 3 frames of 1 subject; 2 frames done before" in capsys.readouterr().err
    assert main([*map(str, words), str(tmp_path / "whole")]) == 0
    for name in ("one_seg.json", "volumes.csv", "phases.csv"):
        stopped, whole = ((tmp_path / folder / name).read_text() for folder in ("my out", "whole"))
        assert stopped == whole
    masks = [nibabel.load(tmp_path / f / "one_seg.nii.gz").dataobj for f in ("my out", "whole")]
    np.testing.assert_array_equal(*map(np.asarray, masks))


def test_without_a_gpu_the_faster_way_is_named_once(
    make_model, inputs, subject, tmp_path, capsys, one_thread
) -> None:
    for file in inputs.iterdir():
        save(subject.image[..., :1], file, subject.affine)
    model = make_model(tmp_path / "nnUNetTrainer__tiny__2d")
    words = ["predict", "-i", inputs, "-m", model, "-device", "cpu", "-o", tmp_path / "out"]
    assert main([*map(str, words)]) == 0
    said = capsys.readouterr().err
    assert said.count("each frame is segmented 4 times, as it is and mirrored. --disable_tta") == 1
    assert said.index("To segment: 2 frames of 2 subjects") < said.index("--disable_tta")
    words[-1] = tmp_path / "faster"
    assert main([*map(str, words), "--disable_tta"]) == 0
    assert "mirrored" not in capsys.readouterr().err


def test_a_full_disk_says_how_to_go_on(go, inputs, subject, tmp_path, monkeypatch) -> None:
    real = command.write_mask

    def write(file: Path, *rest: object) -> None:
        if file.name.startswith("two"):
            raise OSError(28, "No space left on device", str(file))
        real(file, *rest)

    monkeypatch.setattr(command, "write_mask", write)
    doing = command._failures_in_words(tmp_path / "out")
    with pytest.raises(RuntimeError, match="again: it continues where it stopped"), doing:
        go()
    monkeypatch.undo()
    assert go() == (0, {})  # its frames were kept


def test_a_missing_permission_is_no_missing_space(tmp_path) -> None:
    doing = command._failures_in_words(tmp_path)
    with pytest.raises(RuntimeError, match="You may not write there: choose a folder"), doing:
        raise PermissionError(13, "Permission denied", str(tmp_path))


def test_one_frame_has_no_ef_and_says_so(go, inputs, subject, tmp_path) -> None:
    for file in inputs.iterdir():
        save(subject.image[..., :1], file, subject.affine)
    assert go()[1] == {}
    row = table(tmp_path / "out" / "volumes.csv")[0]
    assert row["lv_ef_percent"] == row["es_frame"] == "" != row["lv_edv_ml"]
    assert "one frame only" in row["notes"]


def test_the_command_from_images_to_tables(
    make_model, inputs, subject, tmp_path, capsys, one_thread
) -> None:
    """With a network of random weights, and one refused subject among the others."""
    (inputs / "bad.nii.gz").write_bytes(b"no image")
    (inputs / "none").mkdir()
    model = make_model(tmp_path / "nnUNetTrainer__tiny__2d", folds=(0, 1))
    words = ["predict", "-i", inputs, "-m", model, "-o", tmp_path / "out", "-device", "cpu"]
    assert main([*map(str, words), "--disable_tta"]) == 1
    said, progress = capsys.readouterr()
    assert "Segmenting" in progress and "/3 [" in progress  # frames
    # What takes long is said before it begins, the first at once
    beginnings = (
        "Loading PyTorch and nnU-Net",
        f"Looking for cines in {inputs}",
        "Reading the model",
    )
    places = [progress.index(text) for text in (*beginnings, "Segmenting")]
    assert places == sorted(places) and places[0] == 0
    assert said.count("fold 0, 1") == 1  # loaded once
    assert "bad: refused." in said and "none: refused." in said
    assert "2 subjects refused, see volumes.csv" in said
    rows = table(tmp_path / "out" / "volumes.csv")
    assert [row["subject"] for row in rows] == ["one", "two", "none", "bad"]
    first, second = (
        json.loads((tmp_path / "out" / f"{n}_seg.json").read_text()) for n in ("one", "two")
    )
    assert first["frames"] == second["frames"]
    assert main([*map(str, words)]) == 1
    assert "made by another model, or with other folds, mirroring" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob(".ssp-*"))


def pack(folder: Path, file: Path) -> Path:
    """Pack a model as `nnUNetv2_export_model_to_zip` does."""
    with zipfile.ZipFile(file, "w") as archive:
        for entry in sorted(f for f in folder.rglob("*") if f.is_file()):
            archive.write(entry, Path("Dataset903_Tiny", folder.name, entry.relative_to(folder)))
    return file


def test_an_exported_zip_predicts_as_its_folder(make_model, inputs, tmp_path, one_thread) -> None:
    model = make_model(tmp_path / "nnUNetTrainer__tiny__2d")
    (tmp_path / "out" / ".ssp-tmp-model-left").mkdir(parents=True)  # by a run that was killed
    words = ["predict", "-i", inputs, "-device", "cpu", "--disable_tta", "-o", tmp_path / "out"]
    zipped = pack(model, tmp_path / "model.zip")
    assert main([*map(str, words), "-m", str(zipped)]) == 0
    assert not list((tmp_path / "out").glob(".ssp-*"))
    volumes = (tmp_path / "out" / "volumes.csv").read_text()
    # The same model: nothing is done again
    assert main([*map(str, words), "-m", str(model)]) == 0
    assert (tmp_path / "out" / "volumes.csv").read_text() == volumes
    words[-1] = tmp_path / "other"
    assert main([*map(str, words), "-m", str(model)]) == 0
    assert (tmp_path / "other" / "volumes.csv").read_text() == volumes


def test_a_network_that_cannot_be_built_is_no_fault_of_the_subjects(
    make_model, inputs, tmp_path, capsys
) -> None:
    model = make_model(tmp_path / "model", checkpoint={"trainer_name": "nnUNetTrainerNobodyHas"})
    words = ["predict", "-i", inputs, "-m", model, "-o", tmp_path / "out", "-device", "cpu"]
    assert main([*map(str, words)]) == 1
    said = capsys.readouterr()
    assert "nnU-Net cannot build the network" in said.err and "refused" not in said.out
    assert not (tmp_path / "out" / "volumes.csv").exists()


def test_one_model_must_be_named(inputs, tmp_path, capsys, monkeypatch) -> None:
    """The options that name the trained ones are shown; a pretraining segments nothing."""
    words = ["predict", "-i", str(inputs), "-o", str(tmp_path / "out")]
    monkeypatch.delenv("nnUNet_results", raising=False)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "either `-m` (its folder or zip) or `-d` (its dataset) must name the model" in said
    assert "in nnUNet_results are: none" in said
    results = tmp_path / "my results"
    monkeypatch.setenv("nnUNet_results", str(results))
    for trainer in ("nnUNetTrainerMIMPretrain", "nnUNetTrainerFinetune", "nnUNetTrainerScratch"):
        folder = results / "Dataset007_Heart" / f"{trainer}__my plans__2d"
        folder.mkdir(parents=True)
        (folder / "plans.json").touch()
    assert main(words) == 1
    said = capsys.readouterr().err
    assert (
        "in nnUNet_results are: -d 7 -tr nnUNetTrainerFinetune -p 'my plans' -c 2d; "
        "-d 7 -tr nnUNetTrainerScratch -p 'my plans' -c 2d." in said
    )
    assert main([*words, "-d", "7"]) == 1
    said = capsys.readouterr().err
    assert "-tr nnUNetTrainerFinetune -p 'my plans' -c 2d names the first" in said
    assert "Pretrain" not in said
    first = results_folder("7", Wanted(*("nnUNetTrainerFinetune", "my plans", "2d")))
    assert first.name == "nnUNetTrainerFinetune__my plans__2d"
    assert not (tmp_path / "out").exists()


def test_ed_and_es_are_two_frames(inputs, tmp_path, capsys) -> None:
    words = ["predict", "-i", inputs, "-m", tmp_path / "m", "-o", tmp_path / "out"]
    assert main([*map(str, words), "--frames", "2", "2"]) == 1
    assert "`--frames` (=2 2) must be two frames, ED and ES" in capsys.readouterr().err
