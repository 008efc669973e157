"""Heads that turn pooled features into embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Subtract the mean of the batch and divide by its standard deviation, per feature; no parameters, no memory.

    The mean over a map that was just instance-normalised is nearly the same for every image, so the pooled features
    of nnU-Net's networks point one way and differ by a few percent; the papers' networks have BatchNorm and no such
    problem. It always uses the batch at hand, in evaluation, too.

    Args:
        eps: added to the variance; `nn.BatchNorm1d`'s.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, F) -> (N, F)."""
        variance, mean = torch.var_mean(x, 0, correction=0)
        return (x - mean) * torch.rsqrt(variance + self.eps)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them: ``mlp([512, 512, 512, 512])`` is de Mooij et al.'s projection head.

    Args:
        widths: of the input, of each hidden layer and of the output.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
