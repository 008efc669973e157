"""Encoders of timm: files of other projects, the cache, and all trainings and nnU-Net's commands with such plans."""

from __future__ import annotations

import json
import math
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from torch import nn

from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.training import imagenet
from nnunet_ssp.training.imagenet import PREFIXES, cached_weights, loaded, read_encoder, read_state
from tests.saved import final, load

MODEL, PLANS = "test_resnet", "nnUNetTimm_test_resnet_Plans"
FINETUNE = "nnUNetTrainerFinetune"
PRETRAIN = "num_epochs=1 iterations_per_epoch=1 batch_size=4"
FEW_STEPS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerFewSteps(nnUNetTrainer):
    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, %d, 1
        super().initialize()
"""
SHORT = "num_epochs=1 iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no"

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A whole model's weights, as a test of ImageNet has them."""
    torch.manual_seed(3)
    made = timm.create_model(MODEL, pretrained=False)
    return {key: tensor.clone() for key, tensor in made.state_dict().items()}


@pytest.fixture
def file(state, tmp_path) -> Path:
    torch.save(state, tmp_path / "imagenet.pth")
    return tmp_path / "imagenet.pth"


def configuration(model: str = MODEL) -> dict[str, Any]:
    return {
        "architecture": {
            "network_class_name": "nnunet_ssp.timm_unet.TimmUNet",
            "arch_kwargs": {"model": model},
        }
    }


def equal(found: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(t, state[k.removeprefix("encoder.model.")]) for k, t in found.items())


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("holder", [None, "state_dict"])
def test_files_of_other_projects(state, tmp_path, prefix, holder):
    content: Any = {f"{prefix}{k}": t for k, t in state.items() if not k.startswith("fc.")}
    content |= {"queue": torch.zeros(3)} | {f"other.{k}": t + 1 for k, t in state.items()}
    torch.save({holder: content, "epoch": 3} if holder else content, tmp_path / "theirs.pth")
    found = read_encoder(str(tmp_path / "theirs.pth"), configuration(), "P")
    assert equal(found.weights, state)
    assert found.encoder_alone and found.ssp == {"trainer": f"timm:{MODEL}"}


def test_the_teacher_counts_where_a_file_has_both(state, tmp_path):
    content = {f"backbone.{k}": t + 1 for k, t in state.items()}
    content |= {f"momentum_backbone.{k}": t for k, t in state.items()}
    torch.save({"state_dict": content}, tmp_path / "byol.ckpt")
    assert equal(read_encoder(str(tmp_path / "byol.ckpt"), configuration(), "P").weights, state)


class Encoder(nn.Module):
    """An encoder with a projector, as in BYOL-PyTorch and PyTorch-BYOL."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*list(resnet.children())[:-1])
        self.projetion = nn.Sequential(nn.Linear(512, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


class Pair(nn.Module):
    """Two networks by the names of a project, and a head."""

    def __init__(self, **networks: nn.Module) -> None:
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)
        self.predictor = nn.Linear(4, 4)


class Wrapped(nn.Module):
    """`DataParallel` by its names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def resnet(seed: int, model: str = MODEL) -> nn.Module:
    """A ResNet, whose children stand in the order of torchvision's: conv1, bn1, relu, maxpool, layer1, ..."""
    torch.manual_seed(seed)
    made = timm.create_model(model, pretrained=False)
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
    return made


def trunk(network: nn.Module) -> nn.Sequential:
    return nn.Sequential(*list(network.children())[:-1])


def moco(network: nn.Module, head: nn.Module) -> nn.Module:
    network.fc = head
    return network


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))


@cache
def files_of_projects() -> dict[str, Any]:
    """Content of each project's file, as its classes write it; the first network is the one that counts."""
    counts, other = resnet(1), resnet(2)
    byol = Pair(online_network=Encoder(other), target_network=Encoder(counts)).state_dict()
    alone = Pair(online_network=Encoder(counts)).state_dict()
    sthalles = {
        "online_network_state_dict": Encoder(other).state_dict(),
        "target_network_state_dict": Encoder(counts).state_dict(),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    }
    lightly = Pair(backbone=trunk(other), backbone_momentum=trunk(counts))
    learner = Pair(net=other, online_encoder=Pair(net=other), target_encoder=Pair(net=counts))
    queries = moco(resnet(1), nn.Linear(512, 8)), moco(resnet(2), nn.Linear(512, 8))
    deep = moco(resnet(1), mlp()), moco(resnet(2), mlp())
    v1 = Pair(encoder_q=queries[0], encoder_k=queries[1])
    v1.register_buffer("queue", torch.zeros(8, 16))
    v2 = Pair(encoder_q=deep[0], encoder_k=deep[1])
    v3 = Pair(base_encoder=deep[0], momentum_encoder=deep[1])
    renamed = {f"block{i}.w": t for i, t in enumerate(trunk(counts).state_dict().values())}
    return {
        "yaox12": {"config": {"stage": "train"}, "epoch": 3, "model": byol},
        "yaox12, DDP": {"model": Wrapped(_of(byol)).state_dict()},
        "yaox12, online alone": {"model": alone},
        "yaox12, converted": {"online_backbone": trunk(counts).state_dict()},
        "yaox12, converted, other names": {"online_backbone": renamed},
        "sthalles": sthalles,
        "sthalles, online": {"online_network_state_dict": Encoder(counts).state_dict()},
        "sthalles, encoder": {"encoder_state_dict": Encoder(counts).encoder.state_dict()},
        "sthalles, bare": Encoder(counts).state_dict(),
        "lightly": {"state_dict": lightly.state_dict()},
        "lightly, DDP": Wrapped(Pair(backbone=trunk(counts))).state_dict(),
        "lightly, wrapped inside": Pair(backbone=Wrapped(trunk(counts))).state_dict(),
        "lucidrains": learner.state_dict(),
        "MoCo v1": {"arch": "resnet18", "state_dict": Wrapped(v1).state_dict()},
        "MoCo v2": {"arch": "resnet18", "state_dict": Wrapped(v2).state_dict()},
        "MoCo v3": {"arch": "resnet18", "state_dict": Wrapped(v3).state_dict()},
        "MoCo v3, momentum": Wrapped(Pair(momentum_encoder=deep[0])).state_dict(),
        "DINO": {"student": Pair(backbone=other).state_dict(), "teacher": _dino(counts)},
        "compiled": {f"_orig_mod.{key}": t for key, t in counts.state_dict().items()},
    }


def _of(state: dict[str, torch.Tensor]) -> nn.Module:
    made = Pair(online_network=Encoder(resnet(3)), target_network=Encoder(resnet(4)))
    made.load_state_dict(state)
    return made


def _dino(network: nn.Module) -> dict[str, torch.Tensor]:
    return Pair(backbone=network, head=nn.Linear(512, 8)).state_dict()


@pytest.mark.parametrize("project", files_of_projects())
def test_networks_by_the_classes_of_their_projects(tmp_path, project):
    torch.save(files_of_projects()[project], tmp_path / "theirs.pth.tar")
    found = read_encoder(str(tmp_path / "theirs.pth.tar"), configuration(), "P").weights
    assert equal(found, resnet(1).state_dict())
    wanted = timm.create_model(MODEL, pretrained=False, features_only=True).state_dict()
    assert {key.removeprefix("encoder.model.") for key in found} == set(wanted)


def test_the_children_of_a_resnet_18(tmp_path):
    network = resnet(1, "resnet18")
    torch.save(trunk(network).state_dict(), tmp_path / "r")
    assert {"0.weight", "1.running_mean", "7.1.bn2.bias"} <= set(trunk(network).state_dict())
    found = read_encoder(str(tmp_path / "r"), configuration("resnet18"), "P").weights
    assert len(found) == 120 and equal(found, network.state_dict())
    with pytest.raises(ValueError, match=r"is not a test_resnet of timm: "):
        read_encoder(str(tmp_path / "r"), configuration(), "P")


@pytest.mark.parametrize("model", ["resnet50", "convnext_atto"])
def test_names_of_features_and_of_the_whole_model_agree(model, tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model(model, pretrained=False).state_dict()
    found = loaded(model, whole, tmp_path)
    by_name = {imagenet._flat(k): t for k, t in whole.items()}
    assert found
    for key, tensor in found.items():
        assert torch.equal(tensor, by_name[imagenet._flat(key.removeprefix("encoder.model."))])


def test_a_file_of_another_model(state, tmp_path, file):
    with pytest.raises(ValueError, match=r"imagenet\.pth is not a resnet18 of timm: .* missing or"):
        read_encoder(str(file), configuration("resnet18"), "P")
    torch.save({k: t for k, t in state.items() if "layer2" not in k}, file)
    with pytest.raises(ValueError, match=r"tensors of the encoder are missing .*layer2"):
        read_encoder(str(file), configuration(), "P")
    torch.save({"epoch": 3}, file)
    with pytest.raises(ValueError, match=r"must hold tensors by name"):
        read_state(file)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist: -pretrained_weights"):
        read_encoder(str(tmp_path / "gone.pth"), configuration(), "P")
    plain = {"architecture": {"network_class_name": "PlainConvUNet"}}
    with pytest.raises(ValueError, match=r"-pl TimmPlanner; nnUNetPlans has another network"):
        read_encoder(str(file), plain, "nnUNetPlans")


def test_the_cache_of_timm(state, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    with pytest.raises(
        FileNotFoundError, match=r"cache has no pretrained weights of resnet50 .*timm:FILE"
    ):
        cached_weights("resnet50")
    name = Path(timm.get_pretrained_cfg("resnet50").url).name
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "torch" / "checkpoints" / name)
    assert cached_weights("resnet50").name == name
    hub = huggingface_hub.constants
    repo = timm.get_pretrained_cfg(MODEL).hf_hub_id.replace("/", "--")
    place = tmp_path / f"models--{repo}"
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", _cache_in(tmp_path), raising=True
    )
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    from safetensors.torch import save_file

    save_file(state, place / "snapshots" / "abc" / "model.safetensors")
    assert str(tmp_path) == hub.HF_HUB_CACHE
    assert equal(read_encoder("", configuration(), "P").weights, state)


def _cache_in(folder: Path) -> Any:
    real = huggingface_hub.file_download.try_to_load_from_cache
    return lambda repo, name: real(repo, name, cache_dir=folder)


# -- with nnU-Net ----------------------------------------------------------------------------------


@pytest.fixture
def planned(own_copy) -> Path:
    prepare(901, planner=f"timm:{MODEL}", gpu_memory_target=0.1, workers=1)
    return own_copy


@pytest.mark.slow
@pytest.mark.heavy
def test_plans_with_an_encoder_of_timm(planned, runs, log, file, state, command, tmp_path):
    """Pretraining and fine-tuning from a file, then nnU-Net's own training and prediction."""
    plans = json.loads((planned / f"{PLANS}.json").read_text())["configurations"]["2d"]
    assert plans["patch_size"] == [64, 64] and plans["data_identifier"] == "nnUNetPlans_2d"
    assert plans["architecture"]["arch_kwargs"]["strides"][1:] == [[2, 2]] * 5
    given = {"plans": PLANS, "weights": f"timm:{file}"}
    with pytest.raises(ValueError, match=r"channels: pretrained with 3 input channels, .* 1"):
        runs.make("nnUNetTrainerMIMPretrain", PRETRAIN, **given)
    first = "conv1.0.weight"
    for trainer in ("nnUNetTrainerBYOLPretrain", FINETUNE):
        settings = SHORT if trainer == FINETUNE else f"{PRETRAIN} predictor_width=16"
        made = runs.make(trainer, f"{settings} adapt=yes", **given)
        method = getattr(made, "method", None)
        own = (made.network_module if method is None else method.network).state_dict()
        # On a grey image the network gives what the file's gives on that image three times over.
        torch.testing.assert_close(own[f"encoder.model.{first}"], state[first].sum(1, keepdim=True))
        deep = "layer4.0.conv1.weight"
        assert torch.equal(own[f"encoder.model.{deep}"], state[deep])
    assert "3 input channels summed" in log(made)
    assert made.network_module.decoder.deep_supervision
    made.run_training()
    assert final(made)["ssp"]["chain"] == [{"trainer": f"timm:{MODEL}"}]

    for trainer in ("SimCLR", "Dense", "MIM"):
        run = runs.run(f"nnUNetTrainer{trainer}Pretrain", PRETRAIN, plans=PLANS)
        saved = load(Path(run.output_folder) / "checkpoint_final.pth")
        tuned = runs.make(
            FINETUNE, SHORT, plans=PLANS, weights=Path(run.output_folder) / "checkpoint_final.pth"
        )
        key = "encoder.model.layer4.0.conv1.weight"
        assert torch.equal(tuned.network_module.state_dict()[key], saved["network_weights"][key])
        assert "change encoder 6" in run.logger.local_logger.my_fantastic_logging

    # nnU-Net's own trainer but for the number of steps.
    (tmp_path / "ext").mkdir()
    (tmp_path / "ext" / "nnUNetTrainerFewSteps.py").write_text(FEW_STEPS % 2)
    ours = {"nnUNet_extTrainer": str(tmp_path / "ext")}
    which = ("-p", PLANS, "-tr", "nnUNetTrainerFewSteps", "-device", "cpu")
    command("nnUNetv2_train", "901", "2d", "0", *which, **ours)
    images = Path(os.environ["nnUNet_raw"]) / planned.name / "imagesTs"
    every_image_is_predicted(command, images, tmp_path / "predicted", *which, "-f", "0", **ours)

    # The same for a model that was fine-tuned from the file, by command; it predicts without our trainers.
    which = ("-p", PLANS, "-tr", FINETUNE, "-device", "cpu")
    given = ("-pretrained_weights", f"timm:{file}")
    settings = f"{SHORT} adapt=yes"
    said = command("nnUNetv2_train", "901", "2d", "1", *which, *given, nnUNet_ssp_settings=settings)
    assert "3 input channels summed" in said
    alone = {"nnUNet_extTrainer": ""}
    every_image_is_predicted(command, images, tmp_path / "tuned", *which, "-f", "1", **alone)


def every_image_is_predicted(command, images: Path, to: Path, *which: str, **environment: str):
    """Run nnU-Net's own prediction of dataset 901; each image has its mask."""
    where = ("-i", images, "-o", to, "-npp", "1", "-nps", "1", "--disable_tta")
    command("nnUNetv2_predict", "-d", "901", "-c", "2d", *which, *where, **environment)
    wanted = {file.name.replace("_0000", "") for file in images.glob("*.nii.gz")}
    assert wanted == {file.name for file in to.glob("*.nii.gz")} != set()


@pytest.mark.slow
@pytest.mark.heavy
def test_resnet_50_with_nothing_but_nnunet_s_own(own_copy, command, tmp_path):
    """Stock trainer and commands, without our folder of trainers, on plans that our planner wrote."""
    prepare(901, planner="TimmPlanner", gpu_memory_target=0.1, workers=1)
    plans = json.loads((own_copy / "nnUNetResNet50Plans.json").read_text())["configurations"]["2d"]
    assert plans["architecture"]["arch_kwargs"]["model"] == "resnet50"
    # nnU-Net's own trainer but for the number of steps.
    (tmp_path / "ext").mkdir()
    (tmp_path / "ext" / "nnUNetTrainerFewSteps.py").write_text(FEW_STEPS % 60)
    which = ("-p", "nnUNetResNet50Plans", "-tr", "nnUNetTrainerFewSteps", "-device", "cpu")
    stock = {"nnUNet_extTrainer": str(tmp_path / "ext"), "PYTHONPATH": ""}
    command("nnUNetv2_train", "901", "2d", "0", *which, **stock)
    images = Path(os.environ["nnUNet_raw"]) / own_copy.name / "imagesTs"
    every_image_is_predicted(command, images, tmp_path / "predicted", *which, "-f", "0", **stock)
    # Whether 60 steps without a seed find the heart is chance. They learn: a network that knows nothing has a
    # cross-entropy of ln 4 and hardly a Dice.
    results = Path(os.environ["nnUNet_results"]) / own_copy.name
    (log,) = results.glob("*/fold_0/training_log_*.txt")
    (loss,) = re.findall(r"train_loss (\S+)", log.read_text())
    assert float(loss) < 0.7 * math.log(4)
    (summary,) = results.glob("*/fold_0/validation/summary.json")
    scored = json.loads(summary.read_text())["metric_per_case"]
    splits = json.loads((own_copy / "splits_final.json").read_text())
    assert {Path(case["prediction_file"]).name for case in scored} == {
        f"{case}.nii.gz" for case in splits[0]["val"]
    }
