"""Generalist, specialist, fine-tuning, prediction: natural images first, then cine, by commands as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from nnunet_ssp.cli import main
from nnunet_ssp.phantom import write_mnms
from tests.natural_images import prepare_cine_and_images
from tests.own_folders import use_own_folders

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

STEPS = "num_epochs=1 iterations_per_epoch=2 batch_size=4 chunk_size=none"
HEADS = "head_width=16 predictor_width=16 head_out=8"
FEW = "num_epochs=1 iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"
PLANS = "gen"


@pytest.fixture(scope="module", params=["phantom", "real"])
def home(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    command: Callable[..., str],
) -> Iterator[Path]:
    """Cine (114) with a narrow network, and natural images (150) under its plans; returns nnUNet_raw of the cine."""
    base = tmp_path_factory.mktemp("generalist")
    if request.param == "phantom":
        counts = {"labelled": 5, "unlabelled": 1, "testing": 1}
        source = write_mnms(base / "source", **counts, matrix=48, frames=4, slices=4)
    else:
        source = request.getfixturevalue("real_data") / "sunnybrook_mnms"
    with pytest.MonkeyPatch.context() as patch:
        use_own_folders(patch, base, command, processes=1)
        prepare_cine_and_images(base, source, PLANS)
        yield base / "raw" / "Dataset114_MNMs"


def test_generalist_specialist_finetuning_prediction(
    home: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    def train(dataset: int, fold: int | str, trainer: str, settings: str, *flags: object) -> str:
        what = ("nnUNetv2_train", dataset, "2d", fold, "-p", PLANS, "-tr", trainer)
        return command(*what, "-device", "cpu", *flags, nnUNet_ssp_settings=settings)

    def results(dataset: str, trainer: str, fold: int | str) -> Path:
        folder = home.parents[1] / "results" / dataset / f"{trainer}__{PLANS}__2d" / f"fold_{fold}"
        return folder / "checkpoint_final.pth"

    byol, finetune = "nnUNetTrainerBYOLPretrain", "nnUNetTrainerFinetuneEncoder"
    own = f"{STEPS} {HEADS}"
    # One image has no place in a stack.
    with pytest.raises(Exception, match=r"has a single slice \(9 such cases\)"):
        train(150, "all", "nnUNetTrainerPCLPretrain", STEPS)
    train(150, "all", byol, own)
    general = results("Dataset150_Images", byol, "all")
    ssp = torch.load(general, weights_only=False)["ssp"]
    assert ssp["subjects"] == []
    assert (ssp["counts"]["slices"], len(ssp["images_digest"])) == (9, 64)

    # Three colours for one channel: only with adapt=yes.
    weights = ("-pretrained_weights", general)
    with pytest.raises(Exception, match=r"channels: pretrained with 3 input channels.*adapt=yes"):
        train(114, 0, byol, own, *weights)
    said = train(114, 0, byol, f"{own} adapt=yes", *weights)
    assert "3 input channels summed" in said
    assert "natural images have none in mm, so that pixels count as pixels" in said
    special = results("Dataset114_MNMs", byol, 0)
    assert main(["inspect", str(special)]) == 0

    said = train(114, 0, finetune, FEW, "-pretrained_weights", special)
    assert "1. BYOL: 9 natural images" in said
    assert "2. BYOL: " in said
    model = torch.load(results("Dataset114_MNMs", finetune, 0), weights_only=False)
    first, second = model["ssp"]["chain"]
    assert (first["images_digest"], second["weights_from"]) == (
        ssp["images_digest"],
        "checkpoint_final.pth",
    )

    out = tmp_path / "out"
    words = ("-d", 114, "-c", "2d", "-f", 0, "-p", PLANS, "-tr", finetune, "-device", "cpu")
    images = home / "imagesTs"
    command("nnUNetv2_predict", *words, "-i", images, "-o", out, "-npp", 1, "-nps", 1)
    masks = sorted(out.glob("*.nii.gz"))
    assert len(masks) == len(list(images.glob("*.nii.gz"))) > 0
    for file in masks:
        mask = nibabel.load(file)
        image = nibabel.load(images / file.name.replace(".nii.gz", "_0000.nii.gz"))
        assert mask.shape == image.shape
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2, 3}
    settings = json.loads(
        (results("Dataset114_MNMs", finetune, 0).parent / "settings.json").read_text()
    )
    assert settings["trainer"] == finetune
