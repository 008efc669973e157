from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.preparation import planning
from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.preparation.planning import Size
from tests.preparation.conftest import (
    contents,
    everything,
    index,
)


def test_two_plans_do_not_disturb_each_other(target: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(target / "nnUNetPlans_2d") | contents(target / "nnUNetPlans_2d_slices")
    plans = (target / "nnUNetPlans.json").read_bytes()
    small = {"gpu_memory_target": 0.002, "overwrite_plans_name": "small", "workers": 1}
    with pytest.raises(ValueError, match=r"small 2d: patch 24 x 20.*must be at least 32 x 32"):
        prepare(901, **small)
    prepare(901, **small, any_plane=True)
    assert "num_epochs=42' nnUNetv2_train 901 2d 0 -p small -tr" in capsys.readouterr().out
    assert (
        contents(target / "nnUNetPlans_2d") | contents(target / "nnUNetPlans_2d_slices") == before
    )
    assert (target / "nnUNetPlans.json").read_bytes() == plans
    small = json.loads((target / "small.json").read_text())["configurations"]["2d"]
    stock = json.loads(plans)["configurations"]["2d"]
    assert np.prod(small["patch_size"]) < np.prod(stock["patch_size"])
    assert sorted(index(target, "small_2d")) == sorted(index(target))


def test_the_residual_encoder_planner(target: Path, capsys: pytest.CaptureFixture[str]):
    prepare(901, planner="nnUNetPlannerResEncM", workers=1)
    content = json.loads((target / "nnUNetResEncUNetMPlans.json").read_text())
    assert "ResidualEncoderUNet" in json.dumps(content["configurations"]["2d"]["architecture"])
    output = capsys.readouterr().out
    # nnU-Net gives these plans the data folder of the default ones.
    assert "12 of 12 cases are up to date" in output
    assert "-p nnUNetResEncUNetMPlans -tr" in output


def test_planning_without_weights_gives_the_same_plans(base: Path, target: Path):
    planner = planning.find_planner("ExperimentPlanner")
    planning.plan(901, planner, 0.02, "meta")
    with contextlib.redirect_stdout(io.StringIO()):
        planner(901, gpu_memory_target_in_gb=0.02, plans_name="real").plan_experiment()
    meta, real = ((target / f"{name}.json").read_text() for name in ("meta", "real"))
    assert meta.replace("meta", "real") == real


def test_existing_plans_are_taken_as_they_are(target: Path, preprocessed: list[str]):
    content = json.loads((target / "nnUNetPlans.json").read_text())
    content["plans_name"] = "mine"
    content["configurations"]["2d"]["spacing"] = [3.0, 3.0]
    content["configurations"]["2d"]["data_identifier"] = "mine_2d"
    content["configurations"]["large_batch"] = {"inherits_from": "2d", "batch_size": 40}
    write_json(target / "mine.json", content)
    before = (target / "mine.json").read_bytes()
    prepare(901, ("2d", "large_batch"), plans_name="mine", workers=1)
    assert (target / "mine.json").read_bytes() == before
    assert len(preprocessed) == 12  # both configurations share their data
    fine, coarse = index(target, "mine_2d"), index(target)
    assert all(fine[case].shape[2] > coarse[case].shape[2] for case in coarse)


@pytest.mark.parametrize("name", ["../../outside", "..", "/elsewhere/outside", "a/b", ".x"])
def test_plans_that_lead_elsewhere_are_refused(base: Path, target: Path, name: str):
    """Without this check files beside nnU-Net's folders could be written and deleted."""
    (base / "outside").mkdir()
    (base / "outside" / "mine.b2nd").touch()
    content = json.loads((target / "nnUNetPlans.json").read_text())
    content["configurations"]["2d"]["data_identifier"] = name
    write_json(target / "evil.json", {**content, "plans_name": "evil"})
    before = everything(base)
    with pytest.raises(
        ValueError, match=r"evil\.json, configuration 2d: `data_identifier` .* plain"
    ):
        prepare(901, plans_name="evil", workers=1)
    assert {k: v for k, v in everything(base).items() if k in before} == before
    assert not (base / "outside_slices").exists()


def test_plans_under_another_name_than_their_own_are_refused(target: Path):
    shutil.copy(target / "nnUNetPlans.json", target / "copy.json")
    with pytest.raises(
        ValueError, match=r"copy\.json: `plans_name` \(=nnUNetPlans\) must be that of"
    ):
        prepare(901, plans_name="copy", workers=1)


def test_a_failing_planner_says_what_it_said(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: Any, **__: Any) -> None:
        print("the planner's words")
        raise RuntimeError("the planner's error")

    monkeypatch.setattr(planning, "plan_experiment_dataset", fail)
    with pytest.raises(RuntimeError, match="the planner's error"):
        prepare(901, workers=1)
    assert "the planner's words" in capsys.readouterr().err


def test_plans_of_a_given_size(target: Path):
    planning.plan(901, planning.find_planner("ExperimentPlanner"), None, "stock")
    prepare(901, size=Size((64, 32), 0.5, 5), overwrite_plans_name="half", workers=1)
    stock, half = (json.loads((target / f"{name}.json").read_text()) for name in ("stock", "half"))
    assert half["plans_name"] == "half"
    assert half["experiment_planner_used"] == "SizedExperimentPlanner"
    own, planned = half["configurations"]["2d"], stock["configurations"]["2d"]
    assert (own["patch_size"], own["batch_size"]) == ([64, 32], 5)
    features = own["architecture"]["arch_kwargs"]["features_per_stage"]
    assert features == [min(16 * 2**stage, 256) for stage in range(len(features))]
    same = ("spacing", "median_image_size_in_voxels", "normalization_schemes", "batch_dice")
    assert {key: own[key] for key in same} == {key: planned[key] for key in same}
    assert half["configurations"]["3d_fullres"] == {
        **stock["configurations"]["3d_fullres"],
        "data_identifier": "half_3d_fullres",
    }
    assert sorted(index(target, "half_2d")) == sorted(index(target))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": Size(patch=(64, 64))}, "must come with -overwrite_plans_name NAME"),
        (
            {"size": Size(width=0.5), "plans_name": "nnUNetPlans"},
            "must come with -overwrite_plans_name",
        ),
        (
            {"size": Size(patch=(0, 64)), "overwrite_plans_name": "p"},
            r"`--patch` \(=0 64\) must be above 0",
        ),
        (
            {"size": Size(width=0.0), "overwrite_plans_name": "p"},
            r"`--width` \(=0.0\) must be above 0",
        ),
        (
            {"size": Size(batch=1), "overwrite_plans_name": "p"},
            r"`--batch` \(=1\) must be at least 2",
        ),
        (
            {"size": Size(patch=(50, 64)), "overwrite_plans_name": "p"},
            r"`--patch` \(=50 64\) must be a size that nnU-Net can pool.*the next is \d+ 64",
        ),
    ],
)
def test_sizes_that_no_plans_have(target: Path, options: dict[str, Any], message: str):
    before = everything(target)
    with pytest.raises(ValueError, match=message):
        prepare(901, workers=1, **options)
    assert everything(target).keys() == before.keys()
