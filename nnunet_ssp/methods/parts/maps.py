"""Features of single points: the decoder's maps of every resolution, and their values at given places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def decoder_maps(decoder: Any, skips: Sequence[Tensor]) -> list[Tensor]:
    """Return the map that each of the decoder's stages makes, from which its output layer would read.

    Args:
        decoder: Of a planned U-Net (`UNetDecoder` of dynamic-network-architectures).
        skips: (N, C, X, Y) each, what the encoder returns, finest first.

    Returns:
        (N, C, X, Y) each, finest first.
    """
    maps: list[Tensor] = []
    x = skips[-1]
    for up, stage, skip in zip(decoder.transpconvs, decoder.stages, skips[-2::-1], strict=True):
        x = stage(torch.cat([up(x), skip], 1))
        maps.insert(0, x)
    return maps


def at_points(x: Tensor, points: Tensor) -> Tensor:
    """Interpolate a map linearly at some points of each image; the map may be coarser than the image.

    Args:
        x: (N, C, X, Y).
        points: (N, P, 2) row and column as shares of the image, -1 at its first edge and 1 at its last.

    Returns:
        (N, P, C).

    >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> at_points(x, torch.tensor([[[-0.5, 0.5], [0.0, 0.0]]]))[0, :, 0].tolist()
    [2.0, 2.5]
    """
    grid = points.flip(-1)[:, :, None]  # torch counts columns first
    return F.grid_sample(x, grid, align_corners=False)[..., 0].transpose(1, 2)
