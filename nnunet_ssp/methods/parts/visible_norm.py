"""Instance normalisation that looks at visible pixels only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssp.methods.parts.losses import pooled


class VisibleNorm:
    """Makes the InstanceNorm layers of an encoder take their statistics from visible pixels only.

    Otherwise three hidden quarters of an image set the mean and variance of the rest, and pretraining sees other
    statistics than fine-tuning on whole images does. At coarse stages a pixel counts by its visible share.

    Args:
        encoder: Module whose InstanceNorm layers change.

    Attributes:
        visible: (B, 1, X, Y) float in [0, 1], set before each pass. None leaves the layers as they are.

    Raises:
        ValueError: The encoder has no InstanceNorm layer.
    """

    def __init__(self, encoder: Any) -> None:
        self.visible: Tensor | None = None
        layers = [m for m in encoder.modules() if isinstance(m, nn.InstanceNorm2d)]
        if not layers:
            raise ValueError(
                "`visible_statistics` (=yes) must have InstanceNorm layers in the planned encoder; "
                "these plans use another normalisation."
            )
        for layer in layers:
            layer.register_forward_hook(self._normalise)

    def _normalise(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if self.visible is None:
            return None
        assert isinstance(layer, nn.InstanceNorm2d)
        x = inputs[0].float()
        weight = pooled(self.visible, x)
        weight = weight / weight.sum((2, 3), keepdim=True).clamp_min(1e-6)
        mean = (x * weight).sum((2, 3), keepdim=True)
        variance = ((x - mean).square() * weight).sum((2, 3), keepdim=True)
        x = (x - mean) * torch.rsqrt(variance + layer.eps)
        if layer.affine:
            x = x * layer.weight[:, None, None] + layer.bias[:, None, None]
        return x.to(output.dtype)
