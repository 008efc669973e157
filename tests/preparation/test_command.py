from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssp.cohort.cases import case_files, read_cases
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.files import lock
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.launch import device_flag
from nnunet_ssp.preparation import command, preprocessing
from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.preparation.raw import CaseJob
from nnunet_ssp.slices import store as slices
from tests.holders import held
from tests.preparation.conftest import (
    DATASET,
    contents,
    everything,
    index,
    names,
    set_folders,
)

# -- what is made ----------------------------------------------------------------------------------


def test_the_prepared_folder(raw: Path, target: Path):
    cases = read_cases(raw / "cases.csv")
    training = [c for c in cases.values() if c.split == "train"]
    labelled = [c.case for c in training if c.labelled]
    assert len(training) == 12 and len(labelled) == 6
    assert names(target / "nnUNetPlans_2d") == sorted(
        f"{case}{end}" for case in labelled for end in ("_seg.b2nd", ".pkl", ".b2nd")
    )
    assert names(target / "gt_segmentations") == sorted(f"{case}.nii.gz" for case in labelled)
    assert sorted(index(target)) == sorted(c.case for c in training)
    assert names(target / "nnUNetPlans_2d_slices") == sorted(
        ["index.json", *(f"{c.case}.npy" for c in training)]
    )
    for table in ("cases.csv", "folds.csv", "splits_final.json", "dataset.json"):
        assert (target / table).read_bytes() == (raw / table).read_bytes()
    assert not (target / ".ssp-tmp").exists()


def test_a_second_run_does_nothing_again(
    target: Path, preprocessed: list[str], capsys: pytest.CaptureFixture[str]
):
    def data() -> dict[str, tuple[int, bytes]]:
        """Read all files but the small ones that every run writes."""
        small = (
            "plans",
            "cases.csv",
            "folds.csv",
            "splits",
            "dataset.json",
            "index.json",
            "Plans.json",
        )
        return {
            n: v
            for n, v in contents(target).items()
            if not n.endswith(small[-1]) and not any(s in n for s in small[:-1])
        }

    before = data()
    assert any(name.endswith(".b2nd") for name in before) and "dataset_fingerprint.json" in before
    prepare("901", workers=1)
    assert data() == before
    assert preprocessed == []
    output = capsys.readouterr().out
    assert "12 of 12 cases are up to date" in output
    assert "Slice store: 12 frames (6 labelled), 36 slices in" in output
    assert output.endswith(
        "measured it (docs/choosing.md).\n"
        "Next: nnUNet_ssp_settings='contrast=0 iterations_per_epoch=50 num_epochs=42' "
        "nnUNetv2_train 901 2d 0 "
        f"-tr nnUNetTrainerDensePretrain{device_flag()}\n"
    )


def test_a_test_subject_among_the_training_images(raw: Path, target: Path, capsys):
    cases = read_cases(raw / "cases.csv").values()
    tested = next(case for case in cases if case.split == "test")
    twin = next(case for case in cases if case.split == "train" and case.labelled)
    shutil.copy(case_files(raw, twin)[0], case_files(raw, tested)[0])
    prepare(901, workers=1)
    said = capsys.readouterr().out
    assert (
        f"WARNING: {twin.subject} and {tested.subject} have 1 image with the same voxels: one patient under two "
        f"names? {tested.subject} is a test subject: a leak. " in said
    )
    assert said.count("with the same voxels") == 1
    assert "with the same voxels" in said[said.index("Slice store") : said.index("Next: ")]


def test_nnunet_does_not_chatter(base: Path, capfd: pytest.CaptureFixture[str]):
    prepare(901, overwrite_plans_name="quiet", workers=1)
    printed = capfd.readouterr().out.splitlines()
    hint = ["Without a GPU, as here, nnU-Net's usual plans train for days. Small ones"]
    assert [line.split(":")[0].split(" /")[0] for line in printed] == [
        "quiet 2d",
        "Slice store",
        "Prepared",
        *(hint if device_flag() else []),
        "2 labelled subjects to train on",
        "Next",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plans_name": "../x"}, r"`-p` \(=\.\./x\) must be one plain name"),
        ({"overwrite_plans_name": "../x"}, r"`-overwrite_plans_name` .* must be one plain name"),
        ({"overwrite_plans_name": "dataset"}, "-overwrite_plans_name .* must be none of dataset"),
        ({"overwrite_plans_name": "a__b"}, "-overwrite_plans_name .* must not hold __"),
        ({"planner": "../x"}, r"`-pl` .* must be one plain name"),
    ],
)
def test_names_on_the_command_line_stay_in_the_folder(
    base: Path, options: dict[str, Any], message: str
):
    before = everything(base)
    with pytest.raises(ValueError, match=message):
        prepare(901, workers=1, **options)
    assert everything(base) == before


def change_fold(raw: Path) -> None:
    splits = read_splits(raw / "splits_final.json")
    splits[0], splits[1] = splits[1], splits[0]
    write_json(raw / "splits_final.json", splits)


def test_changed_folds_are_taken_over(raw: Path, target: Path):
    change_fold(raw)
    prepare(901, workers=1)
    assert read_splits(target / "splits_final.json") == read_splits(raw / "splits_final.json")


def test_a_damaged_copy_of_the_folds_is_made_anew(raw: Path, target: Path):
    copy = target / "splits_final.json"
    for content in (b"", copy.read_bytes()[:40], b"\xff"):
        copy.write_bytes(content)
        prepare(901, workers=1)
        assert copy.read_bytes() == (raw / "splits_final.json").read_bytes()


def test_changed_folds_with_results_need_overwrite(base: Path, raw: Path, target: Path):
    before = (target / "splits_final.json").read_bytes()
    change_fold(raw)
    for fold in (1, 2):
        folder = base / "nnUNet_results" / DATASET / "T__nnUNetPlans__2d" / f"fold_{fold}"
        folder.mkdir(parents=True)
    with pytest.raises(
        FileExistsError, match=r"fold 1 differs from the one that results.*--overwrite"
    ):
        prepare(901, workers=1)
    assert (target / "splits_final.json").read_bytes() == before
    prepare(901, workers=1, overwrite=True)
    assert read_splits(target / "splits_final.json") == read_splits(raw / "splits_final.json")


# -- interruptions ---------------------------------------------------------------------------------


def test_a_killed_run_is_finished_by_a_second(
    base: Path, target: Path, preprocessed: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The index holds the cases done before its last writing; later cases are prepared again."""
    spy = preprocessing.preprocess_case

    class Killed(BaseException):
        pass

    def die_at_eight(job: CaseJob, **options: Any) -> slices.StoredCase | str:
        if len(preprocessed) == 7:
            monkeypatch.setattr(slices, "write_index", lambda *_: None)  # nothing after the kill
            raise Killed
        return spy(job, **options)

    monkeypatch.setattr(preprocessing, "SECONDS_BETWEEN_INDEXES", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(preprocessing, "preprocess_case", die_at_eight)
        prepare(901, overwrite_plans_name="new", workers=1)
    monkeypatch.undo()
    set_folders(monkeypatch, base)
    assert len(index(target, "new_2d")) == 7

    done = contents(target / "new_2d")
    prepare(901, overwrite_plans_name="new", workers=1)
    assert len(index(target, "new_2d")) == 12
    assert len(done) == 18 and contents(target / "new_2d") == done  # the labelled ones came first
    assert not (target / ".ssp-tmp").exists()


def test_a_damaged_record_of_the_fingerprint_is_made_anew(target: Path):
    record = target / "dataset_fingerprint.sha256"
    before = record.read_bytes()
    for content in (b"", before[:9]):
        record.write_bytes(content)
        prepare(901, plans_name="nnUNetPlans", workers=1)
        assert record.read_bytes() == before


def test_what_a_killed_writer_left_is_removed(target: Path):
    (target / ".ssp-tmp-1-together").mkdir()
    for name in (".ssp-tmp-1-together/metrics.csv", ".ssp-tmp-1-cases.csv"):
        (target / name).touch()
    prepare(901, plans_name="nnUNetPlans", workers=1)
    assert not list(target.glob(".ssp-tmp*"))


def test_a_dead_worker_is_explained(base: Path, monkeypatch: pytest.MonkeyPatch):
    def died(*_: Any) -> Iterator[str]:
        raise BrokenProcessPool

    monkeypatch.setattr(preprocessing, "process", died)
    with pytest.raises(
        RuntimeError, match=r"a worker process died.*-np.*continues where it stopped"
    ):
        prepare(901, workers=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, ValueError, r"`workers` \(=0\) must be at least 1"),
        ({"planner": "Nobody"}, ValueError, r"`planner` \(=Nobody\) must be one of nnU-Net's"),
        (
            {"configurations": ["2d", "4d"]},
            ValueError,
            r"`configuration` \(=4d\) must be one that .*nnUNetPlans.json has: 2d, 3d_fullres",
        ),
        ({"plans_name": "none"}, FileNotFoundError, r"none.json is missing: leave out -p"),
        (
            {"plans_name": "nnUNetPlans", "gpu_memory_target": 1.0},
            ValueError,
            r"-p nnUNetPlans takes existing plans.*options of a planner",
        ),
        ({"gpu_memory_target": 0.0}, ValueError, r"`gpu_memory_target` \(=0.0\) must be above 0"),
    ],
)
def test_impossible_options_are_refused(
    base: Path,
    preprocessed: list[str],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
):
    with pytest.raises(error, match=message):
        prepare(901, **({"workers": 1} | options))
    assert preprocessed == []


def test_a_dataset_that_is_not_there(base: Path):
    with pytest.raises(FileNotFoundError, match="no dataset 333 here; found Dataset901_Phantom"):
        prepare(333)


# -- against nnU-Net's own commands ----------------------------------------------------------------


def run_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    return done


@pytest.mark.heavy
@pytest.mark.slow
def test_plans_and_data_are_those_of_nnunets_own_command(base: Path, target: Path, raw: Path):
    stock = base / "stock"
    configurations = ("-c", "2d", "3d_fullres")
    done = run_command(
        *("nnUNetv2_plan_and_preprocess", "-d", "901", *configurations, "-np", "1", "-npfp", "1"),
        nnUNet_preprocessed=str(stock),
        nnUNet_n_proc_DA="1",
    )
    assert done.returncode == 0, done.stderr
    (target / "dataset_fingerprint.json").unlink()
    prepare(901, ["2d", "3d_fullres"], workers=1)
    files = [file for file in (stock / DATASET).rglob("*") if file.is_file()]
    assert len([file for file in files if file.suffix == ".b2nd"]) == 24
    for file in files:
        own = target / file.relative_to(stock / DATASET)
        if file.suffix == ".json":
            assert json.loads(own.read_text()) == json.loads(file.read_text()), own
        elif file.suffix == ".b2nd":
            a, b = (blosc2.open(str(f), mode="r") for f in (own, file))
            np.testing.assert_array_equal(a[:], b[:])
            assert (a.dtype, a.chunks, a.blocks) == (b.dtype, b.chunks, b.blocks)
        elif file.suffix == ".pkl":
            a, b = (repr(pickle.loads(f.read_bytes())) for f in (own, file))
            assert a == b, own
        else:
            assert own.read_bytes() == file.read_bytes(), own


@pytest.mark.slow
def test_nnunet_trains_and_validates_on_the_prepared_folder_alone(
    base: Path, raw: Path, target: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree(raw)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "f")
    plans, dataset = (
        json.loads((target / f"{name}.json").read_text()) for name in ("nnUNetPlans", "dataset")
    )
    plans["continue_training"] = False
    architecture = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    architecture["features_per_stage"] = [4] * architecture["n_stages"]
    trainer = nnUNetTrainer(plans, "2d", 0, dataset, torch.device("cpu"))
    trainer.num_epochs = trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    validation = read_splits(target / "splits_final.json")[0]["val"]
    assert len(summary["metric_per_case"]) == len(validation)


def test_frames_that_may_be_one_subject_are_told_where_no_table_counts_subjects():
    cases = [f"patient{p:03d}_frame{f:02d}" for p in (7, 20, 31) for f in (1, 12)]
    drawn_by_nnunet = command._doubts("0", cases, [])
    own = command._doubts("0", cases, [{"train": cases[:3], "val": cases[3:]}])
    for said in (drawn_by_nnunet, own):
        assert "set subject_pattern=(.+)_frame in nnUNet_ssp_settings" in said[0]
    assert command._doubts("0", cases, [{"train": cases[:4], "val": cases[4:]}]) == []
    assert command._doubts("all", cases, []) == []


@pytest.mark.slow
def test_a_run_killed_by_the_system_is_finished_by_a_second(base: Path, target: Path, raw: Path):
    """Worker processes end with the killed parent, and the second run keeps the finished cases."""
    case = names(raw / "imagesUn")[0].removesuffix("_0000.nii.gz")
    for number in range(300):
        shutil.copy(
            raw / "imagesUn" / f"{case}_0000.nii.gz", raw / "imagesUn" / f"x{number}_0000.nii.gz"
        )
    (raw / "cases.csv").unlink()
    script = (
        "from nnunet_ssp.preparation import preprocessing\n"
        "from nnunet_ssp.preparation.command import prepare\n"
        "preprocessing.SECONDS_BETWEEN_INDEXES = 0.2\n"
        "if __name__ == '__main__':\n"
        "    prepare(901, overwrite_plans_name='killed', workers=2)\n"
    )
    (base / "script.py").write_text(script)
    store = target / "killed_2d_slices"
    process = subprocess.Popen([sys.executable, "script.py"], cwd=base, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(names(store, "*.npy")) < 60:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = index(target, "killed_2d")
    assert 0 < len(done) < 312
    before = contents(target / "killed_2d")
    stored = {case: (store / f"{case}.npy").stat().st_mtime_ns for case in done}
    prepare(901, overwrite_plans_name="killed", workers=1)
    assert len(index(target, "killed_2d")) == 312
    assert {case: (store / f"{case}.npy").stat().st_mtime_ns for case in done} == stored
    assert contents(target / "killed_2d").keys() >= before.keys()
    assert not (target / ".ssp-tmp").exists()


# -- nothing lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_another_process_in_the_dataset_is_named(base, monkeypatch, place):
    monkeypatch.setattr(lock, "SECONDS_TO_WAIT", 0.0)
    with (
        held(base / place / DATASET) as holder,
        pytest.raises(RuntimeError, match=rf"{DATASET} is in use by .*process {holder.pid} on"),
    ):
        prepare(901, workers=1)
    prepare(901, workers=1)
    assert not (base / place / DATASET / lock.LOCK).exists()


def test_a_refused_run_leaves_no_folder(raw, target):
    shutil.rmtree(target)
    write_json(raw / "splits_final.json", [{"train": [], "val": ["nobody"]}])
    with pytest.raises(ValueError, match="fold 0: `val` names nobody"):
        prepare(901, workers=1)
    assert not target.exists()
