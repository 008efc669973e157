"""The networks' InstanceNorms in the operations of `instance_norm`.

The classes of the network's own modules change, and nothing else: parameters, names and results stay.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from torch import Tensor, nn

from nnunet_ssp.console import count_of
from nnunet_ssp.training.instance_norm import instance_norm

# Of maps; heads have others.
NORMS = (nn.modules.instancenorm._InstanceNorm, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)


class FusedNorm(nn.InstanceNorm2d):
    """InstanceNorm in one operation; with a `slope` followed by LeakyReLU.

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
        return instance_norm(input, self.weight, self.bias, self.eps, self.slope)


class Fused(nn.LeakyReLU):
    """A LeakyReLU that its norm has done already."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return input


def fuse(network: nn.Module, joined: bool) -> str:
    """Let a network compute its InstanceNorms as `FusedNorm`.

    Left as they are: other norms, norms without parameters or with running statistics, and those with hooks, which see
    the map between norm and LeakyReLU.

    Args:
        network: Any module; its modules change their classes, not their parameters.
        joined: Compute a LeakyReLU that follows a norm together with it.

    Returns:
        What was changed and what was left, in words; nothing where there is no norm, or all were changed before.
    """
    norms = [module for module in network.modules() if _fusible(module)]
    slopes: dict[nn.Module, float] = {}
    for norm, activation in _pairs(network) if joined else ():
        slopes[norm] = activation.negative_slope
        activation.__class__ = Fused
    for norm in norms:
        norm.__class__, norm.slope = FusedNorm, slopes.get(norm)  # type: ignore[assignment]
    others = Counter(type(m).__name__ for m in network.modules() if _is_left(m))
    said = []
    if norms:
        together = f", {len(slopes)} of them together with LeakyReLU" if joined else ""
        said.append(f"{count_of(len(norms), 'InstanceNorm')} computed as group norm{together}")
    if others:
        names = ", ".join(f"{number} {name}" for name, number in others.items())
        said.append(f"left as they are: {names}")
    same = "; the results are the same up to rounding" if norms else ""
    return f"fused_norm: {'; '.join(said)}{same}." if said else ""


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


def _is_left(module: nn.Module) -> bool:
    return isinstance(module, NORMS) and not isinstance(module, FusedNorm)


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
