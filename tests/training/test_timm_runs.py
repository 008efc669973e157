"""Every trainer on plans with an encoder of timm: one step each, forward, backward and optimiser."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path

import pytest
import timm
import torch

from nnunet_ssp.methods.dino import local_size
from nnunet_ssp.timm_unet import DECODER, TimmUNet, strides_of, timm_features
from tests.saved import final
from tests.training.test_imagenet import MODEL, PLANS, SHORT

NAMES = sorted(file.name.removesuffix(".py") for file in files("nnunet_ssp.trainers").iterdir())
PRETRAINING = [name for name in NAMES if name.endswith("Pretrain")]
FINETUNING = [name for name in NAMES if "Finetune" in name]
SCRATCH = [name for name in NAMES if "Scratch" in name]
HEADS = {
    "SimCLR": "head_width=16",
    "PCL": "head_width=16",
    "DINO": "head_width=16 head_bottleneck=8 out_dim=32 local_crops=2",
    "BYOL": "head_width=16 head_out=8 predictor_width=16",
}
STEP = "num_epochs=1 iterations_per_epoch=1 batch_size=4 probe=no"
# timm begins each block's last norm with 0, so that nothing before it has a gradient in the first step.
FIRST, DEEP = "encoder.model.conv1.0.weight", "encoder.model.layer4.0.bn2.weight"
LOADED = "encoder.model.layer4.0.conv1.weight"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_pictures")]


@pytest.fixture(autouse=True)
def planned(own_copy: Path) -> None:
    """Plans `tiny` with the network that `TimmPlanner` gives them."""
    content = json.loads((own_copy / "tiny.json").read_text())
    configuration = content["configurations"]["2d"]
    configuration |= {"patch_size": [64, 64], "batch_size": 2}
    configuration["architecture"] = {
        "network_class_name": f"{TimmUNet.__module__}.{TimmUNet.__name__}",
        "arch_kwargs": {
            "model": MODEL,
            "strides": [[stride] * 2 for stride in strides_of(timm_features(MODEL, 1))],
            "decoder_features": list(DECODER),
            "n_conv_per_stage_decoder": 2,
        },
        "_kw_requires_import": [],
    }
    content["plans_name"] = PLANS
    (own_copy / f"{PLANS}.json").write_text(json.dumps(content))


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def test_every_trainer_is_here():
    assert len(PRETRAINING) == 9 and len(FINETUNING) == len(SCRATCH) + 1 == 8


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_step_of_pretraining(runs, name):
    method = name.removeprefix("nnUNetTrainer").removesuffix("Pretrain")
    # The last map of this patch is 2 x 2, of which half is a single pixel.
    local = "local_ratio=0.75" if method == "DINO" else ""
    trainer = runs.make(name, f"{STEP} {HEADS.get(method, '')} {local}", plans=PLANS)
    trainer.initialize()
    before = weights_of(trainer.method.network)
    trainer.run_training()
    assert math.isfinite(trainer.logger.local_logger.my_fantastic_logging["train_losses"][-1])
    after = trainer.method.network.state_dict()
    moved = [key for key in (FIRST, DEEP) if not torch.equal(before[key], after[key])]
    assert moved == [FIRST, DEEP]
    assert not any(torch.isnan(tensor).any() for tensor in after.values())
    assert final(trainer)["network_weights"][DEEP].dtype == torch.float32


def test_the_smallest_patch_of_dino(runs):
    with pytest.raises(ValueError, match=r"patch 64 x 64 with stride 32 x 32 it leaves 1 x 1"):
        runs.run("nnUNetTrainerDINOPretrain", f"{STEP} {HEADS['DINO']}", plans=PLANS)
    assert local_size((96, 96), (32, 32), 0.5) == (64, 64)


@pytest.mark.parametrize("name", [*FINETUNING, *SCRATCH])
def test_a_step_of_fine_tuning(runs, name, tmp_path):
    weights = None
    torch.manual_seed(3)
    made = timm.create_model(MODEL, pretrained=False).state_dict()
    if name in FINETUNING:
        torch.save(made, tmp_path / "imagenet.pth")
        weights = f"timm:{tmp_path / 'imagenet.pth'}"
    settings = f"{SHORT} adapt=yes" if weights else SHORT
    trainer = runs.make(name, settings, plans=PLANS, weights=weights)
    if weights is None:
        trainer.initialize()
    before = weights_of(trainer.network_module)
    if weights is not None:
        assert torch.equal(before[LOADED], made[LOADED.removeprefix("encoder.model.")])
    trainer.run_training()
    after = trainer.network_module.state_dict()
    assert math.isfinite(trainer.logger.local_logger.my_fantastic_logging["train_losses"][-1])
    assert not torch.equal(before["decoder.stages.0.0.weight"], after["decoder.stages.0.0.weight"])
    assert not torch.equal(before[DEEP], after[DEEP])
