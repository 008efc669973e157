"""The momentum teacher: a frozen copy of a network that follows it as a moving average."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Momentum(nn.Module):
    """A copy of a network that is never trained by gradients, only by `update`.

    It is a module like any other: it moves with `.to` and is saved in the state dict. Distributed training leaves its
    parameters alone, because none asks for a gradient.

    Statistics of normalisation layers are buffers, and buffers start as copies too. In training mode the copy goes on
    with statistics of its own, as in DINO's and BYOL's code. In evaluation mode it could not, so `update` copies the
    network's.

    Args:
        network: The network to copy.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(network)
        for parameter in self.copy.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, momentum: float) -> None:
        """Move towards the network: `copy = momentum * copy + (1 - momentum) * network`.

        Args:
            network: The one that was copied.
            momentum: In [0, 1]; 1 keeps the copy, 0 replaces it.

        Raises:
            ValueError: `momentum` lies outside [0, 1].
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"`momentum` (={momentum}) must lie in [0, 1].")
        for mine, new in zip(self.copy.parameters(), network.parameters(), strict=True):
            mine.lerp_(new, 1 - momentum)
        if not self.training:
            for own, theirs in zip(self.copy.buffers(), network.buffers(), strict=True):
                own.copy_(theirs)

    def forward(self, *inputs: Any) -> Any:
        """Run the copy, without a gradient."""
        with torch.no_grad():
            return self.copy(*inputs)
