"""What every pretraining method is: settings, and a module from a batch of slices to a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.settings import PretrainingSettings

C = TypeVar("C", bound=PretrainingSettings)


@dataclass
class Batch:
    """Slices of one step, and everything random about them.

    Attributes:
        slices: (B, C, X, Y) on the device, each slice in the top left corner, 0 beyond its size.
        sizes: (B, 2) rows and columns of each slice, on the device.
        drawn: what the method's ``draw`` returned for these B slices, on the host.
    """

    slices: Tensor
    sizes: Tensor
    drawn: dict[str, Any]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, rows: slice) -> Batch:
        """The same for some of the slices; entries of ``drawn`` without rows are kept whole."""
        drawn = {k: v if isinstance(v, int | float) else v[rows] for k, v in self.drawn.items()}
        return Batch(self.slices[rows], self.sizes[rows], drawn)


class Method(nn.Module):
    """A pretraining method around nnU-Net's planned network.

    A subclass reads top to bottom: heads, ``draw``, ``forward``, ``after_step``. It knows torch and a network with
    ``.encoder`` and ``.decoder``, and no nnU-Net.

    Attributes:
        settings_class: the method's settings.
        transfers: which part of the network it trains and hands on.
        reconstructs: whether the decoder's output layers shall have one channel per input channel. They are the
            method's own; a segmentation gets fresh ones.
        curves: keys of the diagnostics that ``summarise`` returns, one value per epoch.
        paper: what to cite.
    """

    settings_class: ClassVar[type[PretrainingSettings]]
    transfers: ClassVar[Literal["encoder", "encoder+decoder"]]
    reconstructs: ClassVar[bool] = False
    curves: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str]

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.patch_size = patch_size
        self.channels = channels

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw everything random about a batch, on the host.

        Args:
            rng: source of randomness, seeded by run and step.
            sizes: (B, 2) rows and columns of each slice of the global batch.

        Returns:
            Entries with B rows (sliced when the batch is split over ranks or chunks) or single numbers.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``"loss"`` with a gradient, and detached scalars that ``summarise`` knows."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step with the progress of the run in (0, 1]; teachers move here."""

    @staticmethod
    def summarise(sums: dict[str, float]) -> dict[str, float]:
        """Turn the epoch's sums of ``forward``'s diagnostics into one value per name in ``curves``."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What a resumed run needs besides the network: heads, teachers, centres."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back ``extra_state()``."""

    def panels(self, batch: Batch) -> dict[str, Tensor] | None:
        """Images (B, C, X, Y) by title to look at, for methods that make some."""
        return None
