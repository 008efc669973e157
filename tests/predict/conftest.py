"""A trained model without training: random weights in the files that nnU-Net would write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from nnunet_ssp.phantom import PhantomSubject, make_subject
from tests.warm import scripts

LABELS = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
LAYERS = {
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "dropout_op": None,
    "nonlin": "torch.nn.LeakyReLU",
}
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
        **LAYERS,
    },
    "_kw_requires_import": list(LAYERS),
}


def plans() -> dict[str, Any]:
    sampled = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "tiny_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [32, 32],
        "spacing": [4.0, 4.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": sampled,
        "resampling_fn_seg": sampled,
        "resampling_fn_probabilities": sampled,
        "resampling_fn_data_kwargs": RESAMPLING | {"order": 3},
        "resampling_fn_seg_kwargs": RESAMPLING | {"is_seg": True},
        "resampling_fn_probabilities_kwargs": RESAMPLING,
        "architecture": ARCHITECTURE,
        "batch_dice": True,
    }
    return {
        "dataset_name": "Dataset903_Tiny",
        "plans_name": "tiny",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": 1.0}},
        "configurations": {"2d": configuration},
    }


def write_model(
    folder: Path,
    folds: Sequence[int | str] = (0,),
    labels: Mapping[str, Any] = LABELS,
    channels: Sequence[str] = ("cineMRI",),
    changed: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    **dataset: Any,
) -> Path:
    """Write a model of random weights.

    Args:
        folder: Where to.
        folds: Each has other weights.
        labels: Of `dataset.json`.
        channels: Of `dataset.json`.
        changed: Values of the configuration that differ.
        checkpoint: Values of the checkpoints that differ.
        dataset: Further values of `dataset.json`.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    content = plans()
    content["configurations"]["2d"] |= changed or {}
    described = {
        "channel_names": {str(n): name for n, name in enumerate(channels)},
        "labels": labels,
        "numTraining": 1,
        "file_ending": ".nii.gz",
        **dataset,
    }
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(described))
    heads = PlansManager(content).get_label_manager(described).num_segmentation_heads
    for number, fold in enumerate(folds):
        torch.manual_seed(number)
        network = get_network_from_plans(
            ARCHITECTURE["network_class_name"],
            ARCHITECTURE["arch_kwargs"],
            ARCHITECTURE["_kw_requires_import"],
            len(channels),
            heads,
            deep_supervision=False,
        )
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            {
                "network_weights": network.state_dict(),
                "init_args": {"configuration": "2d", "plans": content, "dataset_json": described},
                "trainer_name": "nnUNetTrainer",
                "inference_allowed_mirroring_axes": (0, 1),
                **(checkpoint or {}),
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder


@pytest.fixture(scope="session")
def subject() -> PhantomSubject:
    return make_subject(0, seed=1, matrix=48, frames=3, slices=4)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    return write_model


def save(voxels: np.ndarray, file: Path, affine: np.ndarray) -> Path:
    """Write a 4D NIfTI of frames 40 ms apart."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    if voxels.ndim > 3:
        image.header["pixdim"][4] = 0.04
    nibabel.save(image, file)
    return file


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Run a console script of this Python environment and return all it prints.

    nnU-Net takes a thread for each core, and those of a tiny network wait for each other longer than they work.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        with scripts(tmp_path_factory.mktemp("scripts")) as ready:
            yield ready.run
