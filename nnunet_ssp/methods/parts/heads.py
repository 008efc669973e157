"""Heads that turn pooled features into embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Standardise(nn.Module):
    """Subtract the mean of the batch and divide by its standard deviation, per feature; no parameters, no memory.

    The mean over a map that was just instance-normalised is nearly the same for every image. So the pooled features of
    nnU-Net's networks point one way and differ by a few percent. The papers' networks have BatchNorm and no such
    problem. The layer always uses the batch at hand, in evaluation too.

    Args:
        eps: Added to the variance; `nn.BatchNorm1d`'s.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Standardise features (N, F)."""
        variance, mean = torch.var_mean(x, 0, correction=0)
        return (x - mean) * torch.rsqrt(variance + self.eps)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Stack linear layers with ReLU between them: `mlp([512] * 4)` is de Mooij et al.'s projection head.

    Args:
        widths: Widths of the input, of each hidden layer and of the output.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batchnorm_mlp(widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Stack linear layers with BatchNorm and an activation between them, biases kept: the heads of DINO and BYOL.

    BatchNorm takes the statistics of the batch at hand, in evaluation too. Otherwise the validation loss of a head that
    nobody uses afterwards would lag behind its training.

    Args:
        widths: Widths of the input, of each hidden layer and of the output.
        activation: `nn.GELU` in DINO, `nn.ReLU` in BYOL.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.Linear(inputs, outputs),
            nn.BatchNorm1d(outputs, track_running_stats=False),
            activation(),
        ]
    return nn.Sequential(*layers[:-2])


class DINOHead(nn.Module):
    """DINO's projection head: three layers, a normalised bottleneck, and scores of prototypes.

    The last layer has normalised weights, one direction per prototype (weight normalisation with its gain fixed at 1).
    Source: Caron et al., "Emerging properties in self-supervised vision transformers", appendix C. Widths and
    initialisation are those of de Mooij et al.'s code.

    Args:
        width: Width of the features.
        hidden: Width of the two hidden layers.
        bottleneck: Width before the last layer.
        out_dim: Number of prototypes.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, out_dim: int) -> None:
        super().__init__()
        self.mlp = batchnorm_mlp([width, hidden, hidden, bottleneck], nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, a=-2, b=2)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(nn.Linear(bottleneck, out_dim, bias=False).weight.detach())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, width) to the bottleneck (N, bottleneck), and to its cosines with the prototypes (N, out_dim)."""
        x = F.normalize(self.mlp(x), dim=1)
        return x, F.linear(x, F.normalize(self.prototypes, dim=1))
