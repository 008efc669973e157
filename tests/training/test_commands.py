"""Each trainer once through nnU-Net's own commands, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

STEPS = "num_epochs=2 iterations_per_epoch=3 batch_size=4"
FEW = "num_epochs=1 iterations_per_epoch=2 val_iterations_per_epoch=1"


@pytest.fixture
def train(command: Callable[..., str]) -> Callable[..., str]:
    def run(trainer: str, settings: str, *flags: object, fold: int | str = 0) -> str:
        words = ("nnUNetv2_train", 901, "2d", fold, "-p", "tiny", "-tr", trainer, "-device", "cpu")
        return command(*words, *flags, nnUNet_ssp_settings=settings)

    return run


@pytest.fixture
def without_us(tmp_path: Path) -> Path:
    """A folder that makes this package impossible to import."""
    package = tmp_path / "block" / "nnunet_ssp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('nnunet_ssp is not installed here')")
    return package.parent


def test_pretrain_finetune_predict(
    prepared, preprocessed, tmp_path, without_us, monkeypatch, train, command
):
    said = train("nnUNetTrainerMIMPretrain", STEPS)
    weights = said.split("-pretrained_weights ")[-1].split()[0]
    assert Path(weights).name == "checkpoint_final.pth"

    said = train("nnUNetTrainerFinetune", FEW, "-pretrained_weights", weights)
    assert "encoder 32 tensors, decoder 30, fresh 6" in said
    assert "Mean Validation Dice" in said
    train("nnUNetTrainerScratch", FEW + " final_validation=no")

    monkeypatch.delenv("nnUNet_extTrainer")
    images = prepared / "raw" / "Dataset901_Phantom" / "imagesTs"
    words = ["nnUNetv2_predict", "-d", 901, "-c", "2d", "-f", 0, "-p", "tiny", "-device", "cpu"]
    words += ["-tr", "nnUNetTrainerFinetune", "-i", images, "-o", tmp_path / "out"]
    words += ["-npp", 1, "-nps", 1]
    command(*words, PYTHONPATH=str(without_us))
    predicted = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert len(predicted) == 2
    for file in predicted:
        mask = nibabel.load(file)
        image = nibabel.load(images / file.name.replace(".nii.gz", "_0000.nii.gz"))
        assert mask.shape == image.shape
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        ("nnUNetTrainerSimCLRPretrain", "initial_lr=0.02"),
        pytest.param(
            "nnUNetTrainerPCLPretrain", "initial_lr=0.02 threshold=0.3", marks=pytest.mark.heavy
        ),
        pytest.param(
            "nnUNetTrainerDINOPretrain",
            "head_width=64 head_bottleneck=32 out_dim=128",
            marks=pytest.mark.heavy,
        ),
        pytest.param(
            "nnUNetTrainerBYOLPretrain",
            "head_width=64 predictor_width=64 head_out=32",
            marks=pytest.mark.heavy,
        ),
    ],
)
def test_encoder_methods(prepared, preprocessed, tmp_path, train, command, trainer, settings):
    said = train(trainer, f"num_epochs=2 iterations_per_epoch=4 batch_size=8 {settings}")
    assert said.count(": alignment: train") == 2
    weights = said.split("-pretrained_weights ")[-1].split()[0]
    few = FEW + " final_validation=no " + settings.split()[-1]  # of another trainer: ignored
    said = train("nnUNetTrainerFinetune", few, "-pretrained_weights", weights)
    assert "encoder 32 tensors, decoder 0, fresh 36" in said
    assert "Settings of other trainers, ignored here" in said or "initial_lr" in few
    if "SimCLR" in trainer:  # all four files are of one kind
        images = prepared / "raw" / "Dataset901_Phantom" / "imagesTs"
        words = ["nnUNetv2_predict", "-d", 901, "-c", "2d", "-f", 0, "-p", "tiny", "-device", "cpu"]
        words += ["-tr", "nnUNetTrainerFinetune", "-i", images, "-o", tmp_path / "out"]
        command(*words, "-npp", 1, "-nps", 1)
        assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_teacher_of_unlabelled_slices(
    prepared, preprocessed, tmp_path, without_us, monkeypatch, train, command, pretrained
):
    """From a pretraining to a prediction without us; the validation is the average's, too."""
    trainer = "nnUNetTrainerFinetuneSemi"
    said = train(trainer, FEW, "-pretrained_weights", pretrained)
    assert "moving average of the weights is validated and exported" in said
    assert "the teacher is sure of" in said
    dice = [line.split()[-1] for line in said.splitlines() if "Mean Validation Dice" in line]
    again = train(trainer, FEW, "--val")
    assert dice and f"Mean Validation Dice:  {dice[0]}" in again

    monkeypatch.delenv("nnUNet_extTrainer")
    images = prepared / "raw" / "Dataset901_Phantom" / "imagesTs"
    words = ["nnUNetv2_predict", "-d", 901, "-c", "2d", "-f", 0, "-p", "tiny", "-device", "cpu"]
    words += ["-tr", trainer, "-i", images, "-o", tmp_path / "out", "-npp", 1, "-nps", 1]
    command(*words, PYTHONPATH=str(without_us))
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_stock_trainer_takes_the_file(preprocessed, pretrained):
    """nnU-Net's own trainers read the pretrained file; stopped before they train a thousand epochs."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = json.loads((preprocessed / "tiny.json").read_text()) | {"continue_training": False}
    dataset = json.loads((preprocessed / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "2d", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(pretrained))
    weights = torch.load(pretrained, weights_only=True)["network_weights"]
    key = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(trainer.network.state_dict()[key], weights[key])


def test_interrupted_command_continues(preprocessed, train):
    train("nnUNetTrainerMIMPretrain", STEPS)
    said = train("nnUNetTrainerMIMPretrain", STEPS, "--c")  # finished: nothing left to do
    assert "Epoch 1" not in said
    assert "Pretraining done" in said


def test_a_forgotten_flag_is_an_error_in_words(preprocessed, train):
    with pytest.raises(AssertionError, match="nnUNetTrainerFinetune got no weights"):
        train("nnUNetTrainerFinetune", FEW)
