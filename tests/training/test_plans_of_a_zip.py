"""A shared pretraining's plans for data of somebody else, by commands: export, prepare --plans-from ZIP, training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.slices.drawing import SliceStore
from tests.natural_images import write_tree
from tests.own_folders import use_own_folders
from tests.saved import load

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
FEW = "num_epochs=1 iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"


def test_own_data_under_the_plans_of_a_zip(
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = load(pretrained)["init_args"]["plans"]
    shared = tmp_path / "heart.zip"
    assert main(["export", str(pretrained), "-o", str(tmp_path / "heart")]) == 0
    (tmp_path / "here").mkdir()
    use_own_folders(monkeypatch, tmp_path / "here", command, processes=1)
    counts = {"labelled": 5, "unlabelled": 0, "testing": 1}
    source = write_mnms(tmp_path / "source", **counts, seed=7, matrix=64, frames=2, slices=4)
    assert main(["convert", "mnms", "-i", str(source), "-d", "120", "--name", "Own"]) == 0
    capsys.readouterr()
    assert main(["prepare", "120", "--plans-from", str(shared)]) == 0
    planned = theirs["configurations"]["2d"]
    spacing = " x ".join(f"{side:.4g}" for side in planned["spacing"])
    said = capsys.readouterr().out
    assert f"Plans heart of heart.zip, 2d: images are resampled to {spacing} mm" in said
    folder = tmp_path / "here" / "preprocessed" / "Dataset120_Own"
    ours = json.loads((folder / "heart.json").read_text())
    for key in ("patch_size", "spacing", "architecture", "batch_size", "normalization_schemes"):
        assert ours["configurations"]["2d"][key] == planned[key]
    assert (ours["dataset_name"], ours["plans_name"]) == ("Dataset120_Own", "heart")
    assert len(SliceStore(folder / "heart_2d_slices")) == 5 * 2 * 4

    # The weights of the zip fit without any adapting.
    words = ("nnUNetv2_train", 120, "2d", 0, "-p", "heart", "-tr", "nnUNetTrainerFinetune")
    command(*words, "-device", "cpu", "-pretrained_weights", shared, nnUNet_ssp_settings=FEW)
    results = tmp_path / "here" / "results" / "Dataset120_Own"
    (model,) = results.glob("nnUNetTrainerFinetune__heart__2d/fold_0/checkpoint_final.pth")
    (link,) = load(model)["ssp"]["chain"]
    assert (link["method"], link["counts"]) == ("MIM", load(pretrained)["ssp"]["counts"])

    # Natural images under them, too, whose pixels count as pixels.
    assert main(["convert", "images", "-i", str(write_tree(tmp_path / "p", 3)), "-d", "150"]) == 0
    assert main(["prepare", "150", "--plans-from", str(shared), "-np", "1"]) == 0
    natural = json.loads((folder.parent / "Dataset150_Images" / "heart.json").read_text())
    assert natural["configurations"]["2d"]["patch_size"] == planned["patch_size"]
    assert natural["configurations"]["2d"]["spacing"] == [1.0, 1.0]
