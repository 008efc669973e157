"""Experiment planners of this package: networks of the papers where nnU-Net's planners have their own.

`nnunet-ssp prepare -pl NAME` finds them. nnU-Net's own commands look for planners in nnU-Net's package alone; they take
the plans that these write.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)

from nnunet_ssp.launch import NNUNET_PLANS
from nnunet_ssp.timm_unet import DECODER, TimmUNet, strides_of, timm_features

NORMS = {2: "torch.nn.modules.batchnorm.BatchNorm2d", 3: "torch.nn.modules.batchnorm.BatchNorm3d"}
TIMM = "timm:"  # before the name of a model, in place of a planner's
LARGEST_STRIDE = 4  # between two maps of an encoder, as in ConvNeXt and Swin


class _OnDefaultData(ExperimentPlanner):
    """A planner that changes the network alone, so that its plans share the data of nnU-Net's default ones."""

    default_name: ClassVar[str]

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Any = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name or self.default_name,
            overwrite_target_spacing,
            suppress_transpose,
        )

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return the name of the folder of the preprocessed data."""
        shared = configuration_name in ("2d", "3d_fullres")
        return f"{NNUNET_PLANS if shared else self.plans_identifier}_{configuration_name}"


class BatchNormPlanner(_OnDefaultData):
    """Plan nnU-Net's network with BatchNorm for InstanceNorm, as de Mooij et al. (Dominic et al. have GroupNorm)."""

    default_name = "nnUNetBatchNormPlans"

    def get_plans_for_configuration(self, spacing: Any, *others: Any) -> dict[str, Any]:
        """Plan one configuration."""
        planned = dict(super().get_plans_for_configuration(spacing, *others))
        planned["architecture"]["arch_kwargs"]["norm_op"] = NORMS[len(spacing)]
        return planned


class TimmPlanner(_OnDefaultData):
    """Plan a U-Net with an encoder of timm for 2D; by default ResNet-50, as Kalapos and Gyires-Tóth.

    The patch is nnU-Net's, enlarged until the encoder's strides divide it. The batch size follows from its memory.
    """

    model: ClassVar[str] = "resnet50"
    default_name = "nnUNetResNet50Plans"

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        cache: dict[str, Any],
    ) -> dict[str, Any]:
        """Plan one configuration; those in 3D have nnU-Net's network."""
        given = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, cache)
        planned = dict(super().get_plans_for_configuration(*given))
        if len(spacing) != 2:
            return planned
        channels = len(self.dataset_json.get("channel_names", self.dataset_json.get("modality")))
        strides = [[stride] * 2 for stride in fine_strides(self.model, channels)]
        divisor = int(np.prod([stride for stride, _ in strides]))
        patch = [int(-(-side // divisor) * divisor) for side in planned["patch_size"]]
        values: dict[str, Any] = {
            "model": self.model,
            "strides": strides,
            "decoder_features": list(DECODER),
            "n_conv_per_stage_decoder": 2,
        }
        network = TimmUNet(channels, len(self.dataset_json["labels"]), **values)
        try:
            estimate = network.compute_conv_feature_map_size(patch)
        except Exception as error:  # models that take one size of images only
            raise ValueError(
                f"timm (={self.model}) must take images of {patch[0]} x {patch[1]} pixels: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
        share = self.UNet_vram_target_GB / self.UNet_reference_val_corresp_GB
        fitting = self.UNet_reference_val_2d * share / estimate
        covered = approximate_n_voxels_dataset * self.max_dataset_covered / np.prod(patch)
        batch = min(round(fitting * self.UNet_reference_val_corresp_bs_2d), round(covered))
        planned["patch_size"] = np.array(patch)
        planned["batch_size"] = max(batch, self.UNet_min_batch_size)
        planned["architecture"] = {
            "network_class_name": f"{TimmUNet.__module__}.{TimmUNet.__name__}",
            "arch_kwargs": values,
            "_kw_requires_import": (),
        }
        return planned


def fine_strides(model: str, channels: int) -> list[int]:
    """Return how much smaller each map of a model of timm is than the one before, see `strides_of`.

    Raises:
        ValueError: A step is so large that a U-Net has no fine skip connection, as in ViT.
    """
    strides = strides_of(timm_features(model, channels))
    if max(strides) > LARGEST_STRIDE:
        raise ValueError(
            f"timm (={model}) must have feature maps that shrink by {LARGEST_STRIDE} at most from one to the next, for "
            f"the fine skip connections of a U-Net; its strides are {', '.join(map(str, strides))}. Take one such as "
            "resnet50, convnext_tiny or swin_tiny_patch4_window7_224."
        )
    return strides


PLANNERS: dict[str, type[Any]] = {cls.__name__: cls for cls in (BatchNormPlanner, TimmPlanner)}


def own_planner(name: str) -> type[Any] | None:
    """Return the planner of this package of a name, or of `timm:MODEL`; None for others.

    Raises:
        ValueError: timm has no such model, it has no feature maps, or none that are fine enough.
    """
    if not name.startswith(TIMM):
        return PLANNERS.get(name)
    model = name.removeprefix(TIMM)
    fine_strides(model, 1)
    words = re.sub(r"[^A-Za-z0-9]+", "_", model)
    parts = {"model": model, "default_name": f"nnUNetTimm_{words}_Plans"}
    return type("TimmPlanner", (TimmPlanner,), parts)
