"""The command for new patients that follows an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_ssp.cli import _parser
from nnunet_ssp.evaluation.for_new_patients import prediction_lines, segments
from nnunet_ssp.launch import predictions_folder

DATASET = "Dataset114_MNMs"
TUNED = "nnUNetTrainerFinetune__small__2d"
SCRATCH = "nnUNetTrainerScratch__small__2d"
BEGIN = "nnunet-ssp predict -i FOLDER -o OUT -d 114"
WORDS = "-tr {} -p small -c 2d"


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make the folder of a finished training."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))

    def make(name: str, fold: str = "0", device: str = "") -> Path:
        folder = tmp_path / "results" / DATASET / name / f"fold_{fold}"
        folder.mkdir(parents=True)
        (folder / "checkpoint_final.pth").touch()
        if device:
            (folder / "debug.json").write_text(json.dumps({"device": device}))
        return folder

    return make


def lines(*places: Path, **structures: str) -> list[str]:
    return prediction_lines(DATASET, {f"m{n}": [p] for n, p in enumerate(places)}, structures)


def test_the_only_model_is_named(train):
    train(TUNED)
    train("nnUNetTrainerMIMPretrain__small__2d")
    (line,) = lines(Path("predictions"))
    assert line == f"For new patients: {BEGIN} {WORDS.format('nnUNetTrainerFinetune')} -f 0"
    asked = _parser().parse_args(line.partition(": ")[2].split()[1:])
    assert (asked.dataset, asked.trainer, asked.plans) == ("114", "nnUNetTrainerFinetune", "small")


def test_the_fold_of_a_folder_of_ones_own_is_not_known(train):
    """nnU-Net writes the folds nowhere; predict would average them, another model than was evaluated."""
    for fold in ("1", "0"):
        train(TUNED, fold)
    (line,) = lines(Path("predictions/Dataset114_MNMs/f1"))
    assert line == (
        "For new patients (the folder does not tell which of the trained folds 0, 1 predicted; without -f FOLD all "
        f"numbered ones are averaged): {BEGIN} {WORDS.format('nnUNetTrainerFinetune')}"
    )


@pytest.mark.parametrize(
    ("devices", "quick"), [(["cpu"], 1), (["cuda:0"], 0), (["cpu", "cuda:0"], 0), (["cpu"] * 2, 1)]
)
def test_what_was_trained_on_a_cpu_predicts_without_mirroring(train, devices: list[str], quick):
    for fold, device in enumerate(devices):
        train(TUNED, str(fold), device)
    (line,) = lines(Path("predictions"))
    assert line.endswith(" --disable_tta") == bool(quick)
    assert _parser().parse_args(line.partition(": ")[2].split()[1:]).mirror != bool(quick)
    (line,) = lines(Path("theirs"), Path("ours"))  # whose is the only one?
    assert line.endswith("-d 114 --disable_tta" if quick else "-d 114")


def test_an_evaluated_fold_tells_its_own_device(train):
    gpu, cpu = train(TUNED, "0", "cuda:0"), train(TUNED, "1", "cpu")
    assert lines(gpu / "validation")[0].endswith(" -f 0")
    assert lines(cpu / "validation")[0].endswith(" -f 1 --disable_tta")
    (gpu / "debug.json").write_text("{")
    assert lines(gpu / "validation")[0].endswith(" -f 0")


def test_a_validation_folder_lies_in_its_model(train):
    train(SCRATCH)
    (line,) = lines(train(TUNED, "1") / "validation")
    assert line.endswith(f"{WORDS.format('nnUNetTrainerFinetune')} -f 1")


def test_folders_are_known_by_the_names_that_finetuning_prints(train):
    for name in (SCRATCH, TUNED):
        train(name, "0")
    places = [Path(f"predictions/nnUNetTrainer{name}_fold_0") for name in ("Finetune", "Scratch")]
    tuned, scratch = lines(*places)
    finetune = WORDS.format("nnUNetTrainerFinetune")
    assert tuned == f"For new patients, with m0: {BEGIN} {finetune} -f 0"
    assert scratch.endswith(f"with m1: {BEGIN} {WORDS.format('nnUNetTrainerScratch')} -f 0")


@pytest.mark.parametrize("configuration", ["small__2d", "nnUNetPlans__3d_fullres"])
def test_the_folder_that_a_training_prints_is_its_own(train, configuration: str):
    for name in (SCRATCH, TUNED, "nnUNetTrainerFinetune__nnUNetPlans__2d"):
        train(name)
    model = f"nnUNetTrainerFinetune__{configuration}"
    train(model, "all")
    plans, _, kind = configuration.partition("__")
    (line,) = lines(Path(predictions_folder(DATASET, model, "all")).absolute())
    assert line.endswith(f"-d 114 -tr nnUNetTrainerFinetune -p {plans} -c {kind} -f all")


def test_no_model_is_taken_for_another_one(train):
    train(TUNED)
    said = f"For new patients, with one of the models that it lists: {BEGIN}"
    assert lines(Path("theirs"), Path("ours")) == [said]  # whose is the only one?
    assert lines(Path("nnUNetTrainerScratch_fold_0")) == [said]


def test_a_model_of_another_dataset_is_named_with_it(train, tmp_path: Path):
    train(TUNED)
    place = tmp_path / "predictions"
    place.mkdir()
    (place / "plans.json").write_text(json.dumps({"dataset_name": "Dataset027_ACDC"}))
    assert lines(place) == []
    there = tmp_path / "results" / "Dataset027_ACDC" / SCRATCH / "fold_0"
    there.mkdir(parents=True)
    (there / "checkpoint_final.pth").touch()
    begin = BEGIN.replace("114", "27")
    assert lines(place, LV="my pool") == [
        f"For new patients: {begin} {WORDS.format('nnUNetTrainerScratch')} -f 0"
    ]


def test_a_model_that_cannot_be_told_is_asked_for(train):
    for name in (SCRATCH, TUNED):
        train(name)
    said = f"For new patients, with one of the models that it lists: {BEGIN}"
    assert lines(Path("predictions")) == [said]
    assert lines(Path("nnUNetTrainerScratch_fold_7")) == [said]  # not trained


def test_classes_that_were_named_are_named_again(train):
    train(TUNED)
    (line,) = lines(Path("x"), LV="my pool", MYO="")
    assert f"{BEGIN} --lv 'my pool' -tr" in line and "--myo" not in line


def test_without_a_model_nothing_is_said(train, tmp_path: Path, monkeypatch):
    (tmp_path / "results" / DATASET / TUNED).mkdir(parents=True)
    assert lines(Path("x")) == []
    monkeypatch.delenv("nnUNet_results")
    assert lines(Path("x")) == []
    assert segments(TUNED) and not segments("nnUNetTrainerMIMPretrain__small__2d")
