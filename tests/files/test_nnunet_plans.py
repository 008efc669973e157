from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssp.files.nnunet import check_plans, read_plans
from nnunet_ssp.nnunet import quiet
from nnunet_ssp.preparation.planning import find_planner
from tests.malformed.datasets import plans

PLANNERS = (
    *("ExperimentPlanner", "ResEncUNetPlanner", "nnUNetPlannerResEncM"),
    *("nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"),
)


def arch(content: dict[str, Any]) -> Any:
    return content["configurations"]["2d"]["architecture"]


@pytest.mark.parametrize("planner", PLANNERS)
def test_plans_of_all_planners_are_taken(tmp_path: Path, monkeypatch, planner: str):
    """3D ones, too, with a low resolution and its cascade."""
    name = "Dataset907_Planned"
    for place in ("raw", "preprocessed"):
        (tmp_path / place / name).mkdir(parents=True)
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}}
    about |= {"numTraining": 2, "file_ending": ".nii.gz"}
    statistics = dict.fromkeys(
        ("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0
    )
    fingerprint = {
        "spacings": [[1.0, 0.8, 0.8]] * 2,
        "shapes_after_crop": [[900, 900, 900]] * 2,
        "foreground_intensity_properties_per_channel": {"0": statistics},
        "median_relative_size_after_cropping": 1.0,
    }
    for place, file, content in (
        ("raw", "dataset.json", about),
        ("preprocessed", "dataset_fingerprint.json", fingerprint),
    ):
        (tmp_path / place / name / file).write_text(json.dumps(content))
    for case in ("a", "b"):
        for part in (f"imagesTr/{case}_0000", f"labelsTr/{case}"):
            file = tmp_path / "raw" / name / f"{part}.nii.gz"
            file.parent.mkdir(exist_ok=True)
            file.touch()
    for place in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{place}", str(tmp_path / place))
    module = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner"
    monkeypatch.setattr(
        f"{module}.determine_reader_writer_from_dataset_json",
        lambda *_, **__: type("SimpleITKIO", (), {}),
    )
    with quiet(), torch.device("meta"):
        _, made = plan_experiment_dataset(907, find_planner(planner), None, "DefaultPreprocessor")
    planned = read_plans(tmp_path / "preprocessed" / name / f"{made}.json")
    assert {"2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"} <= {*planned["configurations"]}


def former(**change: Any) -> dict[str, Any]:
    """Plans as nnU-Net wrote them before version 2.3."""
    content = plans()
    configuration = content["configurations"]["2d"]
    del configuration["architecture"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [2, 2],
        "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2]],
        "conv_kernel_sizes": [[3, 3]] * 3,
        "unet_max_num_features": 512,
        **change,
    }
    return content


@pytest.mark.filterwarnings("ignore:Detected old nnU-Net plans")
@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_plans_of_earlier_versions_are_taken(network: str):
    content = former(UNet_class_name=network)
    check_plans(content, "P.json")
    # As the trainers' nnU-Net hands them on, under a name of an earlier version.
    converted = PlansManager(content).get_configuration("2d").configuration
    check_plans({**content, "configurations": {"2d": converted}}, "P.json")


def test_keys_that_nnunet_does_not_read_may_be_there():
    content = plans()
    name = arch(content)["network_class_name"]
    content["configurations"]["2d"]["network_arch_class_name"] = name
    check_plans(content, "P.json")


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("UNet_class_name", "torch.hub.load", "PlainConvUNet or ResidualEncoderUNet"),
        ("n_conv_per_stage_encoder", [10**6, 2, 2], "a list of whole numbers from 1 to 64"),
        ("n_conv_per_stage_encoder", [2] * 17, "at most 16"),
        ("n_conv_per_stage_decoder", 7, "a list"),
        ("UNet_base_num_features", 10**9, "a whole number from 1 to 4096"),
        ("pool_op_kernel_sizes", None, "a whole number"),
    ],
)
def test_earlier_plans_of_wrong_content_are_refused(key: str, value: Any, rule: str):
    with pytest.raises(
        ValueError, match=rf"P\.json, configuration 2d: `{key}` .* must be .*{rule}"
    ):
        check_plans(former(**{key: value}), "P.json")
    missing = former()
    del missing["configurations"]["2d"][key]
    with pytest.raises(ValueError, match=f"{key}|architecture" if "class" in key else key):
        check_plans(missing, "P.json")
        assert key == "UNet_class_name"  # neither form: `configuration_of` says so where it matters
        raise ValueError("architecture")


@pytest.mark.parametrize(
    "name",
    [
        "torch.hub.load",
        "os.system",
        "evil.unet.PlainConvUNet",
        "dynamic_network_architectures.architectures.unet.torch.hub.load",
        "dynamic_network_architectures.architectures.unet.test_submodules_loadable",
        "dynamic_network_architectures.architectures.unet.nn.Sequential",
        "dynamic_network_architectures.architectures.unet.Nobody",
        "dynamic_network_architectures.architectures.nobody.Union",
        "dynamic_network_architectures.architectures.unet.BasicBlockD\n",
        "PlainConvUNet",
    ],
)
def test_only_networks_are_called(name: str):
    content = plans()
    arch(content)["network_class_name"] = name
    said = r"P\.json, configuration 2d, `architecture`: `network_class_name` .* must be a network of .*--trust"
    with pytest.raises(ValueError, match=said):
        check_plans(content, "P.json")
    check_plans(content, "P.json", trust=True)


@pytest.mark.parametrize("key", ["conv_op", "norm_op", "dropout_op", "nonlin", "block"])
@pytest.mark.parametrize(
    "name",
    [
        "torch.hub.load",
        "evil.Conv2d",
        "torch.nn.functional.relu",
        "torch.nn.modules.conv.torch.hub.load",
        "torch.nn.modules.module.torch.jit.ScriptModule",
        "torch.nn",
        "torchxnn.LeakyReLU",
        7,
        float("nan"),
    ],
)
def test_only_layers_are_called(key: str, name: Any):
    content = plans()
    arch(content)["arch_kwargs"][key] = name
    arch(content)["_kw_requires_import"] = [key]
    said = (
        rf"P\.json, .*`arch_kwargs`: `{key}` .* must be a layer of torch\.nn, or null\. .*--trust"
    )
    with pytest.raises(ValueError, match=said):
        check_plans(content, "P.json")
    for right in (None, "torch.nn.LeakyReLU", "torch.nn.modules.conv.Conv3d"):
        arch(content)["arch_kwargs"][key] = right
        check_plans(content, "P.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_stages", 0),
        ("n_stages", 10**6),
        ("n_stages", True),
        ("features_per_stage", [4, 10**9, 8]),
        ("features_per_stage", [4.5, 8, 8]),
        ("kernel_sizes", None),
        ("kernel_sizes", [[3, 3]] * 17),
        ("strides", [[1, 1], [2, 0], [2, 2]]),
        ("n_conv_per_stage", "x"),
        ("n_conv_per_stage", [10**6, 1, 1]),
        ("n_blocks_per_stage", [65, 1, 1]),
        ("n_conv_per_stage_decoder", {"a": 1}),
        ("conv_bias", "yes"),
        ("norm_op_kwargs", [1]),
    ],
)
def test_values_of_networks_keep_their_limits(key: str, value: Any):
    content = plans()
    arch(content)["arch_kwargs"][key] = value
    with pytest.raises(ValueError, match=rf"P\.json, .*`(arch_kwargs|{key})` .* must be"):
        check_plans(content, "P.json")


@pytest.mark.parametrize("key", ["network_class_name", "arch_kwargs", "_kw_requires_import"])
def test_an_architecture_is_whole(key: str):
    content = plans()
    del arch(content)[key]
    with pytest.raises(ValueError, match=rf"`architecture`: `{key}` is missing"):
        check_plans(content, "P.json")
    content = plans()
    arch(content)["arch_kwargs"] |= {"depth": [{"of": 10**6}]}
    with pytest.raises(ValueError, match=r"`arch_kwargs` .* numbers are at most 4096"):
        check_plans(content, "P.json")
