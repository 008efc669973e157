from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ssp.files import saving
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.tensors import write_tensors
from nnunet_ssp.training import transfer
from nnunet_ssp.training.evidence import gain_in_words
from nnunet_ssp.training.inspection import inspect

DATASET = "Dataset907_Planned"
CONFIGURATION = {
    "data_identifier": "nnUNetPlans_2d",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 4,
    "patch_size": [32, 32],
    "median_image_size_in_voxels": [40.0, 40.0],
    "spacing": [1.5, 1.5],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3]] * 3,
            "strides": [[1, 1], [2, 2], [2, 2]],
            "n_conv_per_stage": [2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}
SSP = {  # what a pretraining writes, see training/base.py and training/pretraining.py
    "trainer": "nnUNetTrainerMIMPretrain",
    "method": "MIM",
    "transfers": "encoder+decoder",
    "settings": {"num_epochs": 3, "mask_ratio": 0.6, "nesterov": True, "early_stopping": None},
    "weights_from": "scratch",
    "versions": {"nnunet_ssp": "0.1", "nnunetv2": "2.8.1", "torch": "2.9"},
    "subjects": ["mm1-A", "mm1-B"],
    "counts": {"subjects": 2, "frames": 40, "slices": 480},
    "papers": ["Somebody et al., A paper, 2024."],
}
Change = Callable[[dict[str, Any]], None]


def nothing(_: dict[str, Any]) -> None:
    """Leave the plans as they are."""


def make_plans(change: Change = nothing) -> dict[str, Any]:
    configuration = json.loads(json.dumps(CONFIGURATION))
    change(configuration)
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "configurations": {"2d": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
    }


def make_network(configuration: dict[str, Any], channels: int = 1) -> nn.Module:
    architecture = configuration["architecture"]
    network: nn.Module = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        channels,
        2,
        deep_supervision=False,
    )
    return network


def write_checkpoint(
    file: Path, plans: dict[str, Any], transfers: str = "encoder+decoder", **entries: Any
) -> Path:
    channels = len(plans["configurations"]["2d"]["normalization_schemes"])
    network = make_network(plans["configurations"]["2d"], channels)
    checkpoint = {
        "network_weights": transfer.pretrained_weights(network, transfers, 2),
        "init_args": {"plans": plans, "configuration": "2d", "fold": 0},
        "ssp": SSP | {"transfers": transfers},
        **entries,
    }
    saving.save(file, checkpoint)
    return file


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The preprocessed folder of a dataset with small plans."""
    folder = tmp_path / "preprocessed" / DATASET
    write_json(folder / "nnUNetPlans.json", make_plans())
    labels = {"background": 0, "heart": 1}
    write_json(folder / "dataset.json", {"channel_names": {"0": "cineMRI"}, "labels": labels})
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    return folder


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint_final.pth", make_plans())


def test_what_a_pretrained_file_holds(ours: Path, capsys: pytest.CaptureFixture[str]):
    assert inspect(ours) == 0
    size = ours.stat().st_size / 1e6
    # Each convolution and norm: 2 tensors; 3 encoder stages and 2 decoder stages of 2 each, 2 transposed.
    assert capsys.readouterr().out.splitlines() == [
        f"{ours} ({size:.0f} MB)",
        "method: MIM, pretrained on 2 subjects, 40 frames, 480 slices",
        gain_in_words("MIM", {"mask_ratio": 0.6}),
        "trained: encoder 24 tensors, decoder 20; fresh: 0 and the output layers",
        f"plans: {DATASET}, nnUNetPlans 2d",
        "settings: num_epochs=3 mask_ratio=0.6 nesterov=yes early_stopping=none",
        "versions: nnunet_ssp 0.1, nnunetv2 2.8.1, torch 2.9",
        "cite: Somebody et al., A paper, 2024.",
    ]


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (
            ["dataset_name"],
            "plans: nnUNetPlans 2d; shared and stripped files leave out the dataset's name, -d DATASET compares with "
            "one of yours",
        ),
        (
            ["dataset_name", "plans_name"],
            "plans: 2d, without a name in the file; -d DATASET -p PLANS compares it with plans of yours",
        ),
    ],
)
def test_plans_that_the_file_does_not_name(tmp_path: Path, missing, line, capsys):
    plans = {key: value for key, value in make_plans().items() if key not in missing}
    inspect(write_checkpoint(tmp_path / "x.pth", plans))
    said = capsys.readouterr().out
    assert line in said.splitlines() and "unknown" not in said


def test_what_an_encoder_only_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    inspect(write_checkpoint(tmp_path / "x.pth", make_plans(), "encoder"))
    expected = "trained: encoder 24 tensors, decoder 0; fresh: 20 and the output layers"
    assert expected in capsys.readouterr().out


def test_what_a_fine_tuned_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    record = {
        "trainer": "nnUNetTrainerFinetune",
        "weights_from": "/results/pretrained.pth",
        "settings": {"num_epochs": 2},
        "pretraining": {"method": "MIM", "papers": SSP["papers"]},
    }
    inspect(write_checkpoint(tmp_path / "x.pth", make_plans(), ssp=record))
    output = capsys.readouterr().out
    assert "nnUNetTrainerFinetune, started from /results/pretrained.pth" in output
    assert "cite: Somebody et al." in output and "method:" not in output


def write_plain(file: Path) -> Path:
    """As nnU-Net writes it: numpy numbers inside, nothing of ours."""
    plans = make_plans()
    weights = make_network(plans["configurations"]["2d"]).state_dict()
    arguments = {"plans": plans, "configuration": "2d"}
    content = {"network_weights": weights, "init_args": arguments, "_best_ema": np.float64(0.5)}
    torch.save(content, file)
    return file


def test_a_plain_nnunet_checkpoint(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert inspect(write_plain(tmp_path / "plain.pth"), "907") == 0
    output = capsys.readouterr().out
    assert "a plain nnU-Net checkpoint: every tensor counts as trained" in output
    assert "trained: encoder 24 tensors, decoder 20; fresh: 0" in output
    assert "  note: a plain nnU-Net checkpoint, not one of nnunet-ssp" in output
    assert output.endswith("  fits\n")


def test_it_fits_the_plans_it_was_made_with(
    prepared: Path, ours: Path, capsys: pytest.CaptureFixture[str]
):
    assert inspect(ours, "907") == 0
    head, _, comparison = capsys.readouterr().out.partition(
        "\nAgainst dataset 907, nnUNetPlans 2d:\n"
    )
    assert head.startswith(str(ours))
    assert comparison.splitlines() == [
        "  encoder 1    8 pretrained",
        "  encoder 2    8 pretrained",
        "  encoder 3    8 pretrained",
        "  decoder 2    10 pretrained",
        "  decoder 1    10 pretrained",
        "  fits",
    ]


def test_what_other_subjects_gave_is_told_first_of_another_dataset(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    record = SSP | {
        "method": "Dense",
        "settings": {"contrast": 0.0},
        "counts": dict.fromkeys(("subjects", "frames", "slices"), 40),
    }
    for name, dataset, elsewhere in (
        (DATASET, "907", False),
        ("Dataset161_Other", "907", True),
        ("Dataset161_Other", None, None),
    ):
        file = tmp_path / "file.pth"
        write_checkpoint(file, make_plans() | {"dataset_name": name}, ssp=record)
        inspect(file, dataset)
        said = capsys.readouterr().out.splitlines()[2]
        assert said == gain_in_words("Dense", record["settings"], elsewhere=elsewhere)


def test_other_weights_of_the_output_layers_do_not_matter(prepared: Path, ours: Path):
    content = json.loads((prepared / "dataset.json").read_text())
    content["labels"] = {"background": 0, "LV": 1, "RV": 2, "myocardium": 3}
    write_json(prepared / "dataset.json", content)
    assert inspect(ours, DATASET) == 0


def test_patch_batch_and_data_set_may_differ(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plans = make_plans(lambda c: c.update(patch_size=[64, 48], batch_size=9))
    plans["dataset_name"] = "Dataset027_ACDC"
    plans["foreground_intensity_properties_per_channel"] = {"0": {"mean": 2.0}}
    assert inspect(write_checkpoint(tmp_path / "x.pth", plans), DATASET) == 0
    output = capsys.readouterr().out
    for note in (
        "patch size: pretrained [64, 48], here [32, 32]",
        "batch size: pretrained 9, here 4",
        "pretrained on Dataset027_ACDC",
        "intensity statistics of the datasets differ",
    ):
        assert f"  note: {note}\n" in output
    assert output.endswith("  fits\n")


def wider(configuration: dict[str, Any]) -> None:
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]


def deeper(configuration: dict[str, Any]) -> None:
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["n_stages"] = 4
    arguments["features_per_stage"].append(8)
    for name in ("kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder"):
        arguments[name].append(arguments[name][-1])


def residual(configuration: dict[str, Any]) -> None:
    architecture = configuration["architecture"]
    architecture["network_class_name"] = architecture["network_class_name"].replace(
        "PlainConvUNet", "ResidualEncoderUNet"
    )
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (
            lambda c: c.update(spacing=[1.0, 1.0]),
            "spacing: pretrained with [1.0, 1.0], these plans",
        ),
        (
            lambda c: c.update(normalization_schemes=["CTNormalization"]),
            "normalisation: pretrained with ['CTNormalization'], these plans have ['ZScore",
        ),
        (
            lambda c: c.update(normalization_schemes=["ZScoreNormalization"] * 2),
            "channels: pretrained with 2 input channels, these plans have 1",
        ),
        (wider, "architecture: "),
        (deeper, "architecture: "),
        (residual, "architecture: "),
    ],
    ids=["spacing", "normalisation", "channels", "wider", "deeper", "residual"],
)
def test_it_does_not_fit(
    prepared: Path,
    tmp_path: Path,
    change: Change,
    refusal: str,
    capsys: pytest.CaptureFixture[str],
):
    file = write_checkpoint(tmp_path / "other.pth", make_plans(change))
    assert inspect(file, "907") == 1
    output = capsys.readouterr().out
    assert f"  DOES NOT FIT: {refusal}" in output
    assert "  fits" not in output


def test_every_refusal_is_told(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def change(configuration: dict[str, Any]) -> None:
        wider(configuration)
        configuration["spacing"] = [2.0, 2.0]

    assert inspect(write_checkpoint(tmp_path / "x.pth", make_plans(change)), "907") == 1
    output = capsys.readouterr().out
    assert output.count("DOES NOT FIT") == 2
    assert "encoder 3    " in output and "differs" in output


def test_other_plans_and_configurations(
    prepared: Path, ours: Path, capsys: pytest.CaptureFixture[str]
):
    plans = make_plans()
    plans["configurations"]["coarse"] = {"inherits_from": "2d", "spacing": [3.0, 3.0]}
    write_json(prepared / "mine.json", plans)
    assert inspect(ours, "907", "mine") == 0
    assert inspect(ours, "907", "mine", "coarse") == 1
    assert "Against dataset 907, mine coarse:" in capsys.readouterr().out


# -- errors ----------------------------------------------------------------------------------------


def test_there_is_no_such_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nothing.pth does not exist"):
        inspect(tmp_path / "nothing.pth")


@pytest.mark.parametrize("content", [b"", b"something else"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.pth is not a readable checkpoint"):
        inspect(tmp_path / "x.pth")


def test_a_checkpoint_of_something_else(tmp_path: Path):
    torch.save({"state_dict": {}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x.pth is not an nnU-Net checkpoint"):
        inspect(tmp_path / "x.pth")


def test_the_dataset_is_not_there(prepared: Path, ours: Path):
    with pytest.raises(FileNotFoundError, match=rf"no dataset 4 here; found {DATASET}"):
        inspect(ours, "4")


def test_the_plans_are_not_there(prepared: Path, ours: Path):
    (prepared / "nnUNetPlans.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"make it with nnunet-ssp prepare 907 -overwrite_plans_name none$"
    ):
        inspect(ours, "907", "none")


def test_own_plans_come_first(prepared: Path, ours: Path, capsys: pytest.CaptureFixture[str]):
    content = torch.load(ours, weights_only=True)
    content["init_args"]["plans"]["plans_name"] = "small"
    torch.save(content, ours)
    inspect(ours, "907")
    assert "Against dataset 907, nnUNetPlans 2d:" in capsys.readouterr().out
    shutil.copyfile(prepared / "nnUNetPlans.json", prepared / "small.json")
    inspect(ours, "907")
    assert "Against dataset 907, small 2d:" in capsys.readouterr().out


def test_own_plans_are_named_where_others_are_missing(prepared: Path, ours: Path):
    own = r"none.json is missing: use the checkpoint's own plans, which this dataset has, with -p nnUNetPlans"
    with pytest.raises(FileNotFoundError, match=own):
        inspect(ours, "907", "none")


def test_the_configuration_is_not_there(prepared: Path, ours: Path):
    match = r"`configuration` \(=3d_fullres\) must be one that .*nnUNetPlans.json has: 2d"
    with pytest.raises(ValueError, match=match):
        inspect(ours, "907", configuration="3d_fullres")


def test_the_variable_is_not_set(ours: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(RuntimeError, match="nnUNet_preprocessed is not set"):
        inspect(ours, "907")


def test_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with open(tmp_path / "x.safetensors", "wb") as stream:
        write_tensors(stream, {"encoder.stages.0.weight": torch.ones(3)})
    assert inspect(tmp_path / "x.safetensors") == 0
    said = capsys.readouterr().out
    assert "weights alone, without a record: every tensor counts as trained" in said
    assert "trained: encoder 1 tensors, decoder 0" in said
