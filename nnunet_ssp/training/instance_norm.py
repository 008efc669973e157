"""InstanceNorm of maps in either memory layout, alone or in one operation with LeakyReLU.

PyTorch's group norm with one channel a group is the same function and faster on a CPU. It rounds the weight's gradient
more coarsely where a channel's mean outweighs its deviation: in float32 by 3e-5 of itself at 100 to 1. It wants a
channel's pixels side by side. Where an image's channels lie side by side (channels last), the operations here
stay in that layout: BatchNorm image by image on a CPU, sums over pixels elsewhere.

nnU-Net's blocks keep two maps of each layer for the backward pass: what InstanceNorm got, and what LeakyReLU made of
it, which the next convolution keeps, too. Both functions can be inverted, so the first map can be computed from the
second (in-place activated BatchNorm, Rota Bulò et al., CVPR 2018, https://arxiv.org/abs/1712.02616, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# A map is inverted only where |bias| is at most so many times |weight|, by which the inversion magnifies rounding: an
# error of 2**-6 of a standard deviation in bfloat16, of 2**-14 in float32.
MOST = {torch.bfloat16: 8, torch.float32: 2**10, torch.float64: 2**10}
LEAST = 1e-6  # |weight|; its square and its inverse stay far from the ends of every type
PIXELS = (2, 3)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel of (B, C, X, Y) lie side by side; both layouts of one channel do not count."""
    return x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)


def instance_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float | None
) -> Tensor:
    """Normalise each channel of each image of (B, C, X, Y), and apply LeakyReLU if there is a slope.

    The result has the memory layout of `x`.
    """
    if slope is None and not is_channels_last(x):
        return functional.group_norm(x, x.shape[1], weight, bias, eps)
    result: Tensor = _InstanceNorm.apply(x, weight, bias, eps, slope)
    return result


class _InstanceNorm(torch.autograd.Function):
    """InstanceNorm and LeakyReLU, which keeps the result, or the input where that is inexact."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float | None
    ) -> Tensor:
        x = x if is_channels_last(x) else x.contiguous()
        y, mean, rstd = _normalised(x, weight, bias, eps)
        if slope is not None:
            functional.leaky_relu_(y, slope)
        inverts = slope is not None and _can_invert(weight, bias, x.dtype)
        kept = (None, None) if inverts else (x, mean)
        # Without LeakyReLU the result is not needed.
        ctx.save_for_backward(None if slope is None else y, weight, bias, rstd, *kept)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias, rstd, x, mean = ctx.saved_tensors
        like = x if y is None else y
        last = is_channels_last(like)
        grad = grad.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
        if y is not None:
            grad = torch.ops.aten.leaky_relu_backward(grad, y, ctx.slope, True)
        # The norm's input, or in its place its output weight * x̂ + bias: then the gradient of x̂ is that of an input
        # with mean `bias` and deviation `weight`, and the chain rule adds weight * rstd.
        factor = weight.expand_as(rstd)
        if x is None:
            x, mean, rstd, factor = (
                functional.leaky_relu(y, 1 / ctx.slope),
                bias.expand_as(rstd),
                (1 / weight).expand_as(rstd),
                factor.square() * rstd,
            )
        statistics = [t.to(rstd.dtype).contiguous() for t in (mean, rstd, factor)]
        of_x, of_weight, of_bias = _gradients(grad, x, *statistics)
        return of_x, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None


def _normalised(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised map in the layout of x, mean and inverse deviation (B, C)."""
    n, c, *sides = x.shape
    if not is_channels_last(x):
        y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, sides[0] * sides[1], c, eps)
        return y, mean.view(n, c), rstd.view(n, c)
    if _is_on_cpu(x):
        y = torch.empty_like(x)
        found = [
            torch.native_batch_norm(image, weight, bias, None, None, True, 0.0, eps)
            for image in x.split(1)
        ]
        for result, image in zip(y.split(1), found, strict=True):
            result.copy_(image[0])
        return y, torch.stack([f[1] for f in found]), torch.stack([f[2] for f in found])
    variance, mean = torch.var_mean(x.to(weight.dtype), PIXELS, correction=0)
    rstd = torch.rsqrt(variance + eps)
    scale = weight * rstd
    y = torch.addcmul(_of_maps(bias - mean * scale), x, _of_maps(scale)).to(x.dtype)
    return y, mean, rstd


def _gradients(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the input, and of weight and bias (C,).

    Args:
        grad: Of the normalised map; contiguous as `x` is.
        x: What was normalised.
        mean: (B, C), with the others in one type.
        rstd: Inverse deviations (B, C).
        factor: What each normalised map was multiplied with (B, C).
    """
    n, c, *sides = x.shape
    if not is_channels_last(x):
        # As one image of B * C channels, so that each channel of each image has a factor of its own.
        one = (1, n * c, sides[0] * sides[1])
        of_x, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
            grad.view(one),
            x.view(one),
            mean.view(1, -1),
            rstd.view(1, -1),
            factor.view(-1),
            *(1, one[1], one[2], one[1]),
            [True, True, True],
        )
        return of_x.view_as(x), of_weight.view(n, c).sum(0), of_bias.view(n, c).sum(0)
    if _is_on_cpu(x):
        found = [
            torch.ops.aten.native_batch_norm_backward(
                *(g, image, f, None, None, m, r, True, 0.0, [True, True, True])
            )
            for g, image, f, m, r in zip(grad.split(1), x.split(1), factor, mean, rstd, strict=True)
        ]
        of_x = torch.empty_like(x)
        for result, image in zip(of_x.split(1), found, strict=True):
            result.copy_(image[0])
        return of_x, sum(f[1] for f in found), sum(f[2] for f in found)
    normal = (x - _of_maps(mean)) * _of_maps(rstd)
    of_bias, of_weight = grad.to(mean.dtype).sum(PIXELS), (grad * normal).sum(PIXELS)
    pixels = sides[0] * sides[1]
    centred = grad - _of_maps(of_bias / pixels) - normal * _of_maps(of_weight / pixels)
    of_x = (centred * _of_maps(factor * rstd)).to(x.dtype)
    return of_x, of_weight.sum(0), of_bias.sum(0)


def _is_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _of_maps(values: Tensor) -> Tensor:
    return values[:, :, None, None]


def _can_invert(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> bool:
    """Whether the result tells the input exactly enough; another device than the CPU would be waited for to tell."""
    if not _is_on_cpu(weight):
        return False
    size = weight.abs()
    return bool(((size >= LEAST) & (bias.abs() <= MOST.get(dtype, 0) * size)).all())
