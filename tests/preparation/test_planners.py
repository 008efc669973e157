from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_ssp.files.nnunet import read_plans
from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.preparation.planners import (
    BatchNormPlanner,
    TimmPlanner,
    fine_strides,
    own_planner,
)
from nnunet_ssp.preparation.planning import Size, find_planner
from tests.preparation.conftest import index


def test_plans_with_batchnorm_differ_in_nothing_else(target: Path, capsys):
    prepare(901, planner="BatchNormPlanner", workers=1)
    output = capsys.readouterr().out
    assert "12 of 12 cases are up to date" in output and "-p nnUNetBatchNormPlans -tr" in output
    ours, stock = (
        json.loads((target / f"{name}.json").read_text())["configurations"]["2d"]
        for name in ("nnUNetBatchNormPlans", "nnUNetPlans")
    )
    norm = ours["architecture"]["arch_kwargs"].pop("norm_op")
    assert norm == "torch.nn.modules.batchnorm.BatchNorm2d"
    del stock["architecture"]["arch_kwargs"]["norm_op"]
    assert ours == stock


def test_plans_with_resnet_50(target: Path):
    prepare(901, planner="TimmPlanner", workers=1)
    plans = read_plans(target / "nnUNetResNet50Plans.json")  # which refuses unknown networks
    found = plans["configurations"]["2d"]
    assert found["architecture"]["arch_kwargs"]["model"] == "resnet50"
    assert all(side % 32 == 0 for side in found["patch_size"])
    assert found["batch_size"] >= 2
    assert sorted(index(target, found["data_identifier"])) == sorted(index(target))


def test_planners_by_name():
    assert find_planner("BatchNormPlanner") is BatchNormPlanner
    assert find_planner("ExperimentPlanner").__name__ == "ExperimentPlanner"
    other = own_planner("timm:resnet18")
    assert issubclass(other, TimmPlanner)
    assert (other.model, other.default_name) == ("resnet18", "nnUNetTimm_resnet18_Plans")
    with pytest.raises(ValueError, match=r"timm \(=resnet19\) must be one of its models\. Perhaps"):
        find_planner("timm:resnet19")
    with pytest.raises(ValueError, match=r"`--width` \(=0\.5\) must be left out"):
        Size(width=0.5).planner(TimmPlanner)
    with pytest.raises(ValueError, match=r"Perhaps BatchNormPlanner\?"):
        find_planner("BatchnormPlanner")


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "xcit_nano_12_p16_224"])
def test_models_without_fine_maps_are_refused(model):
    with pytest.raises(ValueError, match=rf"timm \(={model}\) must .* strides are 1, 16, 1, 1"):
        own_planner(f"timm:{model}")
    assert fine_strides("test_convnext", 1)[:3] == [1, 4, 2]
