"""InstanceNorm as a group norm, alone or in one operation with LeakyReLU that keeps its result alone.

PyTorch's group norm with one channel a group is the same function and faster on a CPU. It rounds the weight's gradient
more coarsely where a channel's mean outweighs its deviation: in float32 by 3e-5 of itself at 100 to 1.

nnU-Net's blocks keep two maps of each layer for the backward pass: what InstanceNorm got, and what LeakyReLU made of
it, which the next convolution keeps, too. Both functions can be inverted, so the first map can be computed from the
second (in-place activated BatchNorm, Rota Bulò et al., CVPR 2018, https://arxiv.org/abs/1712.02616, section 3).

The classes of the network's own modules change, and nothing else: parameters, names and results stay.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ssp.console import count_of

# A map is inverted only where |bias| is at most so many times |weight|, by which the inversion magnifies rounding: an
# error of 2**-6 of a standard deviation in bfloat16, of 2**-14 in float32.
MOST = {torch.bfloat16: 8, torch.float32: 2**10, torch.float64: 2**10}
LEAST = 1e-6  # |weight|; its square and its inverse stay far from the ends of every type


class _NormThenLeakyReLU(torch.autograd.Function):
    """LeakyReLU of the InstanceNorm of (B, C, X, Y), which keeps the result, or the input where that is inexact."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
    ) -> Tensor:
        x = x.contiguous()
        n, c = x.shape[:2]
        y, mean, rstd = torch.native_group_norm(
            x, weight, bias, n, c, x.shape[2] * x.shape[3], c, eps
        )
        functional.leaky_relu_(y, slope)
        kept = (None, None) if _can_invert(weight, bias, x.dtype) else (x, mean)
        ctx.save_for_backward(y, weight, bias, rstd, *kept)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias, rstd, x, mean = ctx.saved_tensors
        n, c = y.shape[:2]
        grad = torch.ops.aten.leaky_relu_backward(grad.contiguous(), y, ctx.slope, True)
        # The norm's input, or in its place its output weight * x̂ + bias: then the gradient of x̂ is that of an input
        # with mean `bias` and deviation `weight`, and the chain rule adds weight * rstd.
        factor = weight.expand(n, c)
        if x is None:
            x, mean, rstd, factor = (
                functional.leaky_relu(y, 1 / ctx.slope),
                bias.expand(n, c),
                (1 / weight).expand(n, c),
                factor.square() * rstd.view(n, c),
            )
        # As one image of B * C channels, so that each channel of each image has a factor of its own.
        one = (1, n * c, y.shape[2] * y.shape[3])
        flat = [t.reshape(1, n * c).to(rstd.dtype) for t in (mean, rstd)]
        of_x, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
            grad.view(one),
            x.view(one),
            *flat,
            factor.reshape(-1),
            *(1, one[1], one[2], one[1]),
            [True, True, True],
        )
        return of_x.view_as(y), of_weight.view(n, c).sum(0), of_bias.view(n, c).sum(0), None, None


def _can_invert(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> bool:
    size = weight.abs()
    return bool(((size >= LEAST) & (bias.abs() <= MOST.get(dtype, 0) * size)).all())


class FusedNorm(nn.InstanceNorm2d):
    """InstanceNorm as a group norm; with a `slope` followed by LeakyReLU.

    Attributes:
        slope: Of LeakyReLU for negative values; None for none.
    """

    slope: float | None

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised, and with a slope activated, map (B, C, X, Y).

        Raises:
            ValueError: Maps of one pixel, whose deviation is 0, in training.
        """
        if self.training and input.shape[2:].numel() == 1:
            raise ValueError(
                f"InstanceNorm needs more than one pixel in training, got {input.shape}."
            )
        if self.slope is None:
            return functional.group_norm(input, self.num_features, self.weight, self.bias, self.eps)
        fused: Tensor = _NormThenLeakyReLU.apply(
            input, self.weight, self.bias, self.eps, self.slope
        )
        return fused


class Fused(nn.LeakyReLU):
    """A LeakyReLU that its norm has done already."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return input


def fuse(network: nn.Module, joined: bool) -> str:
    """Let a network on a CPU compute its InstanceNorms as `FusedNorm`.

    Left as they are: norms without parameters or with running statistics, and those with hooks, which see the map
    between norm and LeakyReLU.

    Args:
        network: Any module; its modules change their classes, not their parameters.
        joined: Compute a LeakyReLU that follows a norm together with it.

    Returns:
        What was changed, in words; nothing where there was nothing to do.
    """
    norms = [module for module in network.modules() if _fusible(module)]
    slopes: dict[nn.Module, float] = {}
    for norm, activation in _pairs(network) if joined else ():
        slopes[norm] = activation.negative_slope
        activation.__class__ = Fused
    for norm in norms:
        norm.__class__, norm.slope = FusedNorm, slopes.get(norm)  # type: ignore[assignment]
    together = f", {len(slopes)} of them together with LeakyReLU" if joined else ""
    said = f"{count_of(len(norms), 'InstanceNorm')} computed as group norm{together}"
    return f"fused_norm: {said}; the results are the same up to rounding." if norms else ""


def _pairs(network: nn.Module) -> list[tuple[nn.Module, nn.LeakyReLU]]:
    """Return each norm with the LeakyReLU that always follows it, and nothing else."""
    blocks = [block for block in network.modules() if isinstance(block, nn.Sequential)]
    neighbours = [pair for block in blocks for pair in pairwise([None, *block, None])]
    before = Counter(follower for _, follower in neighbours)
    behind = Counter(leader for leader, _ in neighbours)
    return [
        (norm, activation)
        for norm, activation in neighbours
        if _fusible(norm)
        and type(activation) is nn.LeakyReLU
        and activation.negative_slope > 0
        and not _watched(activation)
        and behind[norm] == before[activation] == 1
    ]


def _fusible(module: nn.Module | None) -> bool:
    return (
        type(module) is nn.InstanceNorm2d
        and module.affine
        and not module.track_running_stats
        and not _watched(module)
    )


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
