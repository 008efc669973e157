"""Files in nnssl's layout are read, and ours carry the entries by which nnU-Net's development head knows one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ssp.training import transfer
from nnunet_ssp.training.inspection import inspect
from nnunet_ssp.training.interchange import CITATIONS, PLAN, is_nnssl, weights_of
from tests.training.test_inspection import CONFIGURATION

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def in_3d(value: Any) -> Any:
    """The arguments of the 3D network of the same widths."""
    if isinstance(value, dict):
        return {key: in_3d(part) for key, part in value.items()}
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return [value[0], *value]
    if isinstance(value, list):
        return [in_3d(part) for part in value]
    return value.replace("2d", "3d") if isinstance(value, str) else value


def nnssl_file(file: Path, architecture: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Write a checkpoint as nnssl saves a CNN pretrained in 3D, at 1 mm; return its weights."""
    arguments = dict(architecture["arch_kwargs"])
    sides = ("kernel_sizes", "strides")
    arguments |= {key: in_3d(arguments[key]) for key in (*sides, "conv_op", "norm_op")}
    arguments["n_blocks_per_stage"] = arguments.pop(
        "n_conv_per_stage", arguments.get("n_blocks_per_stage")
    )
    imported = architecture["_kw_requires_import"]
    torch.manual_seed(0)
    network = get_network_from_plans(RESIDUAL, arguments, imported, 1, 1, deep_supervision=False)
    plan = {
        "architecture_plans": {
            "arch_class_name": "ResEncL",
            "arch_kwargs": None,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": {
            "dataset_name": "Dataset745_OpenMind",
            "plans_name": "nnsslPlans",
            "configurations": {
                "onemmiso": {
                    "spacing": [1, 1, 1],
                    "patch_size": [160, 160, 160],
                    "normalization_schemes": ["ZScoreNormalization"],
                    "use_mask_for_norm": False,
                }
            },
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [160, 160, 160],
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
        **changes,
    }
    weights = network.state_dict()
    content = {"network_weights": weights, CITATIONS: [], PLAN: plan, "trainer_name": "BaseMAE"}
    torch.save(content, file)
    return weights


def test_a_3d_cnn_of_nnssl_fills_the_planned_network(runs, preprocessed, tmp_path, log):
    plans = json.loads((preprocessed / "tinyres.json").read_text())
    file = tmp_path / "nnssl.pth"
    theirs = nnssl_file(file, plans["configurations"]["2d"]["architecture"])
    with pytest.raises(ValueError, match=r"dimension: pretrained in 3D.*spacing: pretrained with"):
        runs.make("nnUNetTrainerFinetune", plans="tinyres", weights=file)
    trainer = runs.make("nnUNetTrainerFinetune", "adapt=yes", plans="tinyres", weights=file)
    key = "encoder.stages.1.blocks.0.conv1.conv.weight"
    ours = trainer.network_module.state_dict()
    assert torch.equal(ours[key], theirs[key].sum(2))
    text = log(trainer)
    assert "a checkpoint of nnssl: ResEncL, pretrained at a spacing of [1, 1, 1] mm" in text
    assert "100% of the encoder's parameters come from the file" in text


def test_inspect_says_what_it_is(tmp_path, capsys):
    file = tmp_path / "nnssl.pth"
    nnssl_file(file, CONFIGURATION["architecture"])
    assert inspect(file) == 0
    said = capsys.readouterr().out
    assert "a checkpoint of nnssl: ResEncL, pretrained at a spacing of [1, 1, 1] mm" in said


def test_weights_within_another_network_are_found(tmp_path):
    content = {
        "network_weights": {
            "net.encoder.stages.0.weight": torch.ones(1),
            "head.weight": torch.ones(1),
        },
        PLAN: {
            "architecture_plans": {"arch_class_name": "ResEncL"},
            "pretrain_plan": {"configurations": {"noresample": {"spacing": None}}},
            "pretrain_num_input_channels": 1,
            "key_to_encoder": "net.encoder.stages",
        },
    }
    assert list(weights_of(content, tmp_path)) == ["encoder.stages.0.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture_plans": {"arch_class_name": "PrimusM"}, "key_to_encoder": "eva"},
            "the network PrimusM, whose encoder is eva: only its convolutional networks",
        ),
        ({"key_to_encoder": 3}, r"`key_to_encoder` \(=3\) must be text"),
        ({"pretrain_plan": {"configurations": {}}}, "`pretrain_plan` .* must be names, with"),
    ],
)
def test_what_cannot_fit_is_refused_in_words(tmp_path, changes, message):
    file = tmp_path / "nnssl.pth"
    nnssl_file(file, CONFIGURATION["architecture"], **changes)
    with pytest.raises(ValueError, match=message):
        transfer.read(file)


def test_our_files_are_known_as_nnssls(pretrained):
    content = torch.load(pretrained, weights_only=True)
    assert not is_nnssl(content) and "MIM" in content["ssp"]["method"]
    # As nnU-Net's development head reads them.
    plan = content[PLAN]
    assert plan["architecture_plans"]["arch_class_name"] == "PlainConvUNet"
    assert plan["key_to_encoder"] == "encoder.stages" and plan["key_to_lpe"] is None
    for key in plan["keys_to_in_proj"]:
        assert f"{key}.weight" in content["network_weights"]
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert configuration["patch_size"] == plan["recommended_downstream_patchsize"]
    assert "dataset_name" not in plan["pretrain_plan"]
    assert content[CITATIONS] == content["ssp"]["papers"]
    arguments = plan["architecture_plans"]
    network = get_network_from_plans(
        f"dynamic_network_architectures.architectures.unet.{arguments['arch_class_name']}",
        arguments["arch_kwargs"],
        arguments["arch_kwargs_requiring_import"],
        plan["pretrain_num_input_channels"],
        4,
        deep_supervision=True,
    )
    own = {key: tensor.shape for key, tensor in network.state_dict().items()}
    theirs = content["network_weights"]
    assert all(theirs[key].shape == shape for key, shape in own.items() if ".seg_" not in key)
