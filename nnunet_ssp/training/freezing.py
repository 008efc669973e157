"""Parameters of a network that hold still for a while, by name: nnU-Net's decoder holds the encoder, too."""

from __future__ import annotations

from collections.abc import Set

from torch import nn

RUNNING_STATISTICS = ("running_mean", "running_var")


def freeze(network: nn.Module, keys: Set[str]) -> None:
    """Train every parameter but those named.

    A parameter that several modules hold is named once (`nn.Module.named_parameters`). Without a gradient it stays as
    it is to the last bit: optimisers leave it out, and so does their weight decay and momentum.

    Args:
        network: any network; must not be wrapped in DDP, which has to be built anew afterwards.
        keys: names of its state dict that shall not change; none trains everything.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in keys)
        if name in keys:
            parameter.grad = None


def hold_statistics(network: nn.Module, keys: Set[str]) -> None:
    """Put the normalisation layers whose running statistics are named into inference mode.

    To be called after every ``network.train()``: that wakes them up.

    Args:
        network: any network.
        keys: names of its state dict that shall not change.
    """
    for name, module in network.named_modules():
        if any(f"{name}.{statistic}" in keys for statistic in RUNNING_STATISTICS):
            module.eval()
