"""Freezing of parameters by name: nnU-Net's decoder also holds the encoder, so modules would not do."""

from __future__ import annotations

from collections.abc import Set

from torch import nn

RUNNING_STATISTICS = ("running_mean", "running_var")


def freeze(network: nn.Module, keys: Set[str]) -> None:
    """Train every parameter except those named.

    A parameter that several modules hold is named once (`nn.Module.named_parameters`). Without a gradient it stays the
    same to the last bit: optimisers skip it, and with it weight decay and momentum.

    Args:
        network: Any network without DDP, which has to be built anew afterwards.
        keys: Keys of its state dict that must not change; none trains everything.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in keys)
        if name in keys:
            parameter.grad = None


def hold_statistics(network: nn.Module, keys: Set[str]) -> None:
    """Put the normalisation layers whose running statistics are named into inference mode.

    Call it after every `network.train()`, which undoes it.

    Args:
        network: Any network.
        keys: Keys of its state dict that must not change.
    """
    for name, module in network.named_modules():
        if any(f"{name}.{statistic}" in keys for statistic in RUNNING_STATISTICS):
            module.eval()
