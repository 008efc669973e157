"""Mixins that replace nnU-Net's augmentation: de Mooij et al.'s (https://arxiv.org/abs/2409.18100), or none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import (
    nnUNetTrainerNoDA as NoAugmentation,
)
from torch import Tensor

from nnunet_ssp.console import shape_in_words
from nnunet_ssp.methods.parts.views import ViewSettings

__all__ = ["CineAugmentation", "NoAugmentation"]

STRENGTH = ViewSettings()  # de Mooij et al.'s, as in the views of pretraining
FULL_TURN = (-math.pi, math.pi)
KERNEL = 4  # pixels along each axis that bicubic interpolation combines into one


class Shift(ImageOnlyTransform):
    """Add a number to each channel, uniform in [-`largest`, `largest`]."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        shape = (len(data_dict["image"]), 1, 1)
        return {"shift": torch.from_numpy(np.random.uniform(-self.largest, self.largest, shape))}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return img + params["shift"].to(img.dtype)


def loaded_size(patch_size: tuple[int, int]) -> tuple[list[int], list[float]]:
    """Return how much of a slice to load for a patch that is rotated, scaled and translated.

    Returns:
        Rows and columns to load, and the largest translation along both, in pixels.
    """
    movement = [STRENGTH.translation * side for side in patch_size]
    diagonal = STRENGTH.scale[1] * math.hypot(*patch_size) + KERNEL
    return [math.ceil(diagonal + 2 * m) for m in movement], movement


class CineAugmentation(nnUNetTrainer):
    """De Mooij et al.'s augmentation, from their code, in place of nnU-Net's; `views.ViewSettings` has its strength.

    Every patch is rotated by any angle, scaled by 0.7-1.4, translated and flipped. Brightness, shift and gamma always
    change; noise and blur have probability 0.2. The brightness factor is the one they intend, 0.6-1.5.

    Two things differ from their code. nnU-Net's sampler places the patch, with its share of foreground; their patches
    are centred on the heart's mask. The translation is in pixels of the slice; theirs is scaled and rotated with the
    patch.
    """

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:
        """Load enough of a slice for every patch."""
        _, dummy_2d, _, mirror = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        patch_size = self.configuration_manager.patch_size
        if len(patch_size) != 2:
            raise ValueError(
                f"configuration (={self.configuration_name}) must be 2D: {type(self).__name__} has the augmentation "
                f"of a 2D paper, this patch is {shape_in_words(patch_size)}."
            )
        return FULL_TURN, dummy_2d, loaded_size(patch_size)[0], mirror

    @staticmethod
    def get_training_transforms(
        patch_size: Any,
        rotation_for_DA: Any,
        deep_supervision_scales: Any,
        mirror_axes: Any,
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: list[bool] | None = None,
        is_cascaded: bool = False,
        foreground_labels: Any = None,
        regions: Any = None,
        ignore_label: int | None = None,
    ) -> BasicTransform:
        """Return the paper's random transforms, followed by those of nnU-Net's validation."""
        loaded, movement = loaded_size(patch_size)
        s = STRENGTH
        transforms = [
            SpatialTransform(
                patch_size,
                patch_center_dist_from_border=[
                    side / 2 - m for side, m in zip(loaded, movement, strict=True)
                ],
                random_crop=True,
                p_rotation=1,
                rotation=rotation_for_DA,
                p_scaling=1,
                scaling=s.scale,
                p_synchronize_scaling_across_axes=1,
                mode_image="bicubic",
                mode_seg="nearest",
                border_mode_seg="constant",
                padding_value_seg=-1,
            ),
            MirrorTransform(allowed_axes=mirror_axes),
            RandomTransform(GaussianNoiseTransform(s.noise_sigma), apply_probability=s.noise),
            RandomTransform(GaussianBlurTransform(s.blur_sigma), apply_probability=s.blur),
            MultiplicativeBrightnessTransform(s.brightness, synchronize_channels=False),
            Shift(s.shift),
            GammaTransform(
                s.gamma,
                p_invert_image=0,
                synchronize_channels=False,
                p_per_channel=1,
                p_retain_stats=0,
            ),
        ]
        masked = [channel for channel, use in enumerate(use_mask_for_norm or []) if use]
        if masked:
            transforms.append(
                MaskImageTransform(apply_to_channels=masked, channel_idx_in_seg=0, set_outside_to=0)
            )
        rest = nnUNetTrainer.get_validation_transforms(
            deep_supervision_scales, is_cascaded, foreground_labels, regions, ignore_label
        )
        return ComposeTransforms([*transforms, *rest.transforms])
