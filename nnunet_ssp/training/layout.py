"""Memory layout of the maps in a network, and which one `memory_format=auto` takes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssp.training import trials
from nnunet_ssp.training.fused import FusedNorm, fuse

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
LEAST_GAIN = 1.05  # of channels last, for `auto` to take it
IMAGES = {"cpu": 4, "cuda": 32}  # in a step of the trial, at most


def use_channels_last(network: nn.Module) -> list[Any]:
    """Let the 2D convolutions of a network compute with the channels of a pixel side by side.

    Their inputs change, and with them all that follows. Parameters stay as they are, and so do the optimiser's state
    and checkpoints.

    Returns:
        Handles whose `remove` takes that back.
    """
    return [
        module.register_forward_pre_hook(_to_channels_last)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]


def _to_channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    x, *others = inputs
    # Maps of one channel count as both layouts, but their strides decide for the convolution.
    return None if x.stride(1) == 1 else (x.to(memory_format=torch.channels_last), *others)


def choose_layout(
    network: nn.Module,
    shape: Sequence[int],
    device: torch.device,
    autocast: Callable[[], torch.autocast],
    joined: bool | None,
) -> tuple[str, str]:
    """Choose what `memory_format=auto` takes: channels last if a trial shows the gain.

    Args:
        network: The planned network; on a CPU with the norms that it trains with.
        shape: Images in a step, channels and sides of the patch.
        device: Device of the network.
        autocast: Makes the context of a forward pass.
        joined: How `fuse` treats norms with channels last; None leaves them as they are.

    Returns:
        The layout, and the reason in words.
    """
    images, *patch = shape
    if device.type not in IMAGES:
        return CONTIGUOUS, f"the device is {device.type}"
    if len(patch) != 3 or sum(p.numel() for p in network.parameters()) < trials.FEWEST_PARAMETERS:
        return CONTIGUOUS, "only 2D networks of the usual size are timed in channels_last"
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in network.modules()):
        return CONTIGUOUS, "dropout would fall on other pixels in channels_last"
    other = network
    if joined is not None and device.type != "cpu":
        other = copy.deepcopy(network)
        fuse(other, joined)
    if any(isinstance(m, nn.InstanceNorm2d) and type(m) is not FusedNorm for m in other.modules()):
        return CONTIGUOUS, "nnU-Net's own InstanceNorm wants contiguous maps"
    begun = time.perf_counter()
    gain = layout_gain(network, other, (min(images, IMAGES[device.type]), *patch), device, autocast)
    said = (
        f"a step takes {trials.times(gain)} times as long in contiguous as in channels_last, timed in "
        f"{time.perf_counter() - begun:.1f} s"
    )
    if gain < LEAST_GAIN:
        return CONTIGUOUS, f"{said}, which is less than {LEAST_GAIN}"
    return CHANNELS_LAST, said


def layout_gain(
    network: nn.Module,
    other: nn.Module,
    shape: Sequence[int],
    device: torch.device,
    autocast: Callable[[], torch.autocast],
) -> float:
    """Time a step of `network`, and one of `other` with channels last; return the ratio of the shortest times.

    Args:
        network: The planned network.
        other: The same, or a copy of it.
        shape: Of its input.
        device: Device of the networks.
        autocast: Makes the context of a forward pass.
    """

    @contextmanager
    def last() -> Iterator[None]:
        handles = use_channels_last(other)
        try:
            with autocast():
                yield
        finally:
            for handle in handles:
                handle.remove()

    image = torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(device)
    ways = {CONTIGUOUS: (network, autocast), CHANNELS_LAST: (other, last)}
    took = trials.shortest_times(image, ways)
    return took[CONTIGUOUS] / took[CHANNELS_LAST]
