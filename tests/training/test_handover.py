"""Shared pretrainings as `-pretrained_weights`: nnU-Net's own loader gets what a checkpoint would give it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from nnunet_ssp.cli import main
from nnunet_ssp.files import saving
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.bundles import ON_A_HUB, WEIGHTS, read_shared
from nnunet_ssp.recommended import FEW_SETTINGS
from nnunet_ssp.sharing.export import export_checkpoint
from nnunet_ssp.training.handover import hand_over_shared, loading_frame
from tests.files.test_bundles import rewritten, with_plans
from tests.training.conftest import DATASET

pytestmark = pytest.mark.slow


@pytest.fixture
def shared(pretrained: Path, tmp_path: Path) -> Path:
    return export_checkpoint(pretrained, tmp_path / "heart")


def test_the_network_is_that_of_the_checkpoint(runs, pretrained, shared, log, capsys) -> None:
    want = runs.make("nnUNetTrainerFinetune", weights=pretrained).network.state_dict()
    trainer = runs.make("nnUNetTrainerFinetune", weights=shared)
    got = trainer.network.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    assert f"Loading pretrained weights from file  {shared}" in capsys.readouterr().out
    assert f"Loaded {shared}: encoder 32 tensors, decoder 30, fresh 6" in log(trainer)
    assert trainer.record()["weights_from"] == "heart.zip"
    assert trainer.record()["pretraining"]["method"] == "MIM"


def test_the_zip_is_read_once(runs, shared, monkeypatch) -> None:
    read = []
    monkeypatch.setattr(
        "nnunet_ssp.files.checkpoints.read_shared", lambda f: read.append(f) or read_shared(f)
    )
    monkeypatch.setattr("nnunet_ssp.files.bundles.read_shared", read.append)
    for trainer in ("nnUNetTrainerFinetune", "nnUNetTrainerMIMPretrain"):
        runs.make(trainer, weights=shared)
    assert read == [shared] * 2


def test_weights_alone(runs, pretrained, tmp_path, log) -> None:
    folder = export_checkpoint(pretrained, tmp_path / "hub", hub=True)
    file = shutil.copy(folder / ON_A_HUB[WEIGHTS], tmp_path)
    trainer = runs.make("nnUNetTrainerFinetuneFrozen", weights=file)
    assert "Loaded" in log(trainer) and "the file holds no plans" in log(trainer)


def test_other_normalisation_is_refused(runs, shared) -> None:
    file = rewritten(shared, with_plans(normalization_schemes=["NoNormalization"]))
    with pytest.raises(ValueError, match=r"normalisation: pretrained with .*NoNormalization"):
        runs.make("nnUNetTrainerFinetune", weights=file)


def test_other_spacing_is_refused(runs, shared) -> None:
    file = rewritten(shared, with_plans(spacing=[9.0, 9.0]))
    with pytest.raises(ValueError, match=r"spacing: pretrained with \[9\.0, 9\.0\]"):
        runs.make("nnUNetTrainerFinetune", weights=file)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"spacing": [9.0, 9.0]}, r"spacing: pretrained with \[9\.0, 9\.0\]"),
        ({"normalization_schemes": ["NoNormalization"]}, "normalisation: pretrained with"),
    ],
)
def test_adapt_takes_both_and_notes_it(runs, shared, log, change, note) -> None:
    file = rewritten(shared, with_plans(**change))
    trainer = runs.make("nnUNetTrainerFinetune", "adapt=yes", weights=file)
    assert re.search(note, log(trainer)) and "encoder 32 tensors" in log(trainer)


def test_other_channels_are_adapted_and_refused_otherwise(runs, shared, own_copy, log) -> None:
    """Both channels get half of the file's one: two equal images give what one gave."""
    content = json.loads((own_copy / "dataset.json").read_text())
    write_json(own_copy / "dataset.json", content | {"channel_names": {"0": "a", "1": "b"}})
    plans = json.loads((own_copy / "tiny.json").read_text())
    for key in ("normalization_schemes", "use_mask_for_norm"):
        plans["configurations"]["2d"][key] *= 2
    write_json(own_copy / "tiny.json", plans)
    misfit = "channels: pretrained with 1 input channel, these plans have 2"
    with pytest.raises(ValueError, match=misfit):
        runs.make("nnUNetTrainerFinetune", weights=shared)
    trainer = runs.make("nnUNetTrainerFinetune", "adapt=yes", weights=shared)
    name = "encoder.stages.0.0.convs.0.conv.weight"
    first = read_shared(shared)["network_weights"][name]
    assert torch.equal(
        trainer.network_module.state_dict()[name], torch.cat([first / 2, first / 2], 1)
    )
    assert f"adapt=yes: {misfit}" in log(trainer)
    assert "1 input channels taken in turn for 2, times 1/2" in log(trainer)


@pytest.mark.heavy
def test_every_trainer_of_ours_that_starts_from_weights_takes_it(runs, shared) -> None:
    names = [file.stem for file in Path(str(files("nnunet_ssp.trainers"))).glob("nnUNet*.py")]
    starting = [name for name in names if "Scratch" not in name]
    assert len(starting) > 15
    want = read_shared(shared)["network_weights"]
    # Convolutions: no method draws them anew.
    body = [k for k, w in want.items() if k.startswith("encoder.") and w.dim() == 4]
    for name in starting:
        trainer = runs.make(name, weights=shared)
        trainer.initialize() if not trainer.was_initialized else None
        network = trainer.method.network if hasattr(trainer, "method") else trainer.network
        got = network.state_dict()
        assert all(torch.equal(got[key], want[key]) for key in body), name


def test_nnunets_own_trainer_takes_what_import_writes(runs, shared, tmp_path) -> None:
    file = tmp_path / "taken.pth"
    assert main(["import", str(shared), "--pth", str(file)]) == 0
    got = runs.make("nnUNetTrainer", weights=file).network.state_dict()
    want = torch.load(file, weights_only=True)["network_weights"]
    body = [key for key in want if ".seg_layers." not in key]
    assert len(body) > 60
    assert all(torch.equal(got[key], want[key].to(got[key].dtype)) for key in body)


@pytest.mark.heavy
def test_nnunets_own_command_trains_from_what_import_writes(
    pretrained, preprocessed, tmp_path, command
) -> None:
    """One epoch of the stock trainer begins from these weights.

    The norm behind a convolution takes the mean away, and with it the bias: its gradient is 0. nnU-Net draws biases as
    0. So 250 steps later the biases are those of the file, but for the weight decay: 250 steps of an effective rate of
    0.01 / (1 - 0.99), times 3e-5, take less than 1 %.
    """
    content = torch.load(pretrained, weights_only=True)
    torch.manual_seed(0)
    is_bias = re.compile(r"(encoder|decoder)\.stages\..*convs\.\d+\.conv\.bias").fullmatch
    biases = {k: t for k, t in content["network_weights"].items() if is_bias(k)}
    assert len(biases) > 12
    for tensor in biases.values():
        tensor.copy_(torch.rand_like(tensor) + 1)
    saving.save(tmp_path / "marked.pth", content)
    shared, file = (
        export_checkpoint(tmp_path / "marked.pth", tmp_path / "x"),
        tmp_path / "taken.pth",
    )
    assert main(["import", str(shared), "--pth", str(file)]) == 0
    words = ("nnUNetv2_train", 901, "2d", 0, "-p", "tiny", "-tr", "nnUNetTrainer_1epoch")
    said = command(*words, "-device", "cpu", "-pretrained_weights", file)
    assert f"Loading pretrained weights from file  {file}" in said
    (final,) = (tmp_path / "results").rglob("checkpoint_final.pth")
    got = torch.load(final, weights_only=False)
    assert got["trainer_name"] == "nnUNetTrainer_1epoch" and got["current_epoch"] == 1
    for key, tensor in biases.items():
        assert torch.allclose(got["network_weights"][key], tensor, rtol=0.02), key


def test_a_damaged_zip_ends_in_words(runs, shared) -> None:
    shared.write_bytes(shared.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not whole, or altered"):
        runs.make("nnUNetTrainerFinetune", weights=shared)


def test_nothing_happens_outside_of_nnunets_loader() -> None:
    assert loading_frame() is None
    hand_over_shared()


def test_from_one_dataset_to_another(
    prepared, preprocessed, shared, tmp_path, monkeypatch, command
) -> None:
    """Exported here, imported into another dataset, prepared by its plans, fine-tuned and predicted."""
    for kind in ("raw", "preprocessed"):
        (tmp_path / kind).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    other = tmp_path / "raw" / "Dataset902_Other"
    shutil.copytree(prepared / "raw" / DATASET, other)
    said = command("nnunet-ssp", "import", shared, "-d", 902)
    lines = [
        shlex.split(line.partition(": ")[2]) for line in said.splitlines() if "nnun" in line.lower()
    ]
    command(*next(words for words in lines if "prepare" in words), "-np", 1)
    recipe, *words = next(words for words in lines if "nnUNetTrainerFinetune" in words)
    assert recipe == f"nnUNet_ssp_settings={FEW_SETTINGS}"
    few = "num_epochs=1 iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"
    said = command(*words, "-device", "cpu", nnUNet_ssp_settings=few)
    assert "encoder 32 tensors, decoder 30, fresh 6" in said
    words = ["nnUNetv2_predict", "-d", 902, "-c", "2d", "-f", 0, "-p", "heart", "-device", "cpu"]
    words += ["-tr", "nnUNetTrainerFinetune", "-i", other / "imagesTs", "-o", tmp_path / "out"]
    command(*words, "-npp", 1, "-nps", 1)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
