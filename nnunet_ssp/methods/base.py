"""What every pretraining method is: settings, and a module from a batch of slices to a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.methods.parts.chunks import Chunks
from nnunet_ssp.methods.parts.views import Views, apply_views
from nnunet_ssp.schedules import warmup_cosine
from nnunet_ssp.settings import PretrainingSettings
from nnunet_ssp.slices.store import SliceStore


@dataclass
class Batch:
    """Slices of one step, and everything random about them.

    Attributes:
        slices: (B, C, X, Y) on the device, each slice in the top left corner, 0 beyond its size; or (B, 2, C, X, Y)
            where the second view of an image is made from another frame of the same slice.
        sizes: (B, 2) rows and columns of each slice, on the device; or (B, 2, 2).
        drawn: what the method's ``draw`` returned for these B slices, on the host.
        positions: (B, 2) int64 on the host: the slice's number in its stack, counted from the base, and the number
            of slices of that stack.
        total: slices of the global batch that these are a rank's share of; 0 for all of them.
    """

    slices: Tensor
    sizes: Tensor
    drawn: dict[str, Any]
    positions: Tensor
    total: int = 0

    def __post_init__(self) -> None:
        self.total = self.total or len(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def share(self, rows: slice) -> Batch:
        """The part of a global batch that one rank works on; single numbers in ``drawn`` are kept."""
        drawn = {k: v if isinstance(v, int | float) else v[rows] for k, v in self.drawn.items()}
        return Batch(
            self.slices[rows], self.sizes[rows], drawn, self.positions[rows], total=self.total
        )

    def pinned(self) -> Batch:
        """What is on the host in page-locked memory, from where copies to CUDA wait for nothing."""
        drawn = {name: _pinned(entry) for name, entry in self.drawn.items()}
        return replace(
            self, sizes=_pinned(self.sizes), drawn=drawn, positions=_pinned(self.positions)
        )


def _pinned(entry: Any) -> Any:
    if isinstance(entry, Views):
        return Views(**{name: column.pin_memory() for name, column in vars(entry).items()})
    return entry.pin_memory() if isinstance(entry, Tensor) else entry


class Method(nn.Module, ABC):
    """A pretraining method around nnU-Net's planned network.

    A subclass reads top to bottom: heads, ``examine``, ``draw``, ``forward``, ``after_step``. It knows torch, the
    slice store and a network with ``.encoder`` and ``.decoder``, and no nnU-Net.

    Attributes:
        settings_class: the method's settings.
        transfers: which part of the network it trains and hands on.
        reconstructs: whether the decoder's output layers shall have one channel per input channel. They are the
            method's own; a segmentation gets fresh ones.
        curves: keys of the diagnostics that ``summarise`` returns, one value per epoch.
        train_curves: those that ``end_epoch`` returns.
        val_curves: those that only the validation's batches have.
        references: for some curves a value to compare with, and what it means.
        smallest_batch: slices that a batch must have at least.
        half_precision: the one that suits it on CUDA.
        checkpoint: the file to fine-tune from.
        paper: what to cite.
    """

    settings_class: ClassVar[type[PretrainingSettings]]
    transfers: ClassVar[Literal["encoder", "encoder+decoder"]]
    reconstructs: ClassVar[bool] = False
    curves: ClassVar[tuple[str, ...]] = ()
    train_curves: ClassVar[tuple[str, ...]] = ()
    val_curves: ClassVar[tuple[str, ...]] = ()
    references: ClassVar[dict[str, tuple[float, str]]] = {}
    smallest_batch: ClassVar[int] = 1
    half_precision: ClassVar[Literal["bf16", "fp16"]] = "bf16"
    second_frames: bool = (
        False  # whether the second view of an image may be made from another frame
    )
    checkpoint: ClassVar[str] = "checkpoint_final.pth"
    paper: ClassVar[str]

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.patch_size = patch_size
        self.channels = channels
        self.chunks = Chunks(settings.chunk_size, network)

    def examine(self, store: SliceStore) -> list[str]:
        """Look at the slices to train on, before the first step.

        Returns:
            What the user should know about them, for the log.

        Raises:
            ValueError: the method cannot work with them.
        """
        return []

    @abstractmethod
    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw everything random about a batch, on the host.

        Args:
            rng: source of randomness, seeded by run and step.
            sizes: (B, 2) rows and columns of each slice of the global batch; (B, 2, 2) with a second frame each.

        Returns:
            Entries with B rows (sliced when the batch is split over ranks) or single numbers.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``"loss"`` with a gradient, and detached scalars that ``summarise`` knows."""

    def make_views(
        self, slices: Tensor, sizes: Tensor, views: Views, patch_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """`apply_views` in float32 and without a gradient, whatever the precision of the network."""
        with torch.no_grad(), torch.autocast(slices.device.type, enabled=False):
            return apply_views(slices, sizes, views, patch_size)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains, in its own form."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate of a step, counted from 0: de Mooij et al.'s cosine by epoch."""
        s = self.settings
        epoch = step // steps_per_epoch
        return float(s.initial_lr * warmup_cosine(epoch, s.num_epochs, s.warmup))

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch, counted from 0."""

    def after_backward(self) -> None:
        """Called when the gradients are there, before the optimiser uses them."""

    def after_step(self, step: int, total: int) -> None:
        """Called after the optimiser's step number ``step``, counted from 0, of ``total``; teachers move here."""

    def end_epoch(self) -> dict[str, float]:
        """Called after the last step of an epoch: one value per name in ``train_curves``."""
        return {}

    @staticmethod
    def summarise(sums: dict[str, float]) -> dict[str, float]:
        """Turn the epoch's sums of ``forward``'s diagnostics into one value per name in ``curves``."""
        return {}

    def warnings(self, curves: dict[str, float]) -> list[str]:
        """What the epoch's curves, named ``train_...`` and ``val_...``, give reason to warn of, in words."""
        return []

    def compiled(self) -> list[nn.Module]:
        """The parts worth compiling."""
        network: Any = self.network
        return [network.encoder, network.decoder]

    def exported(self) -> nn.Module:
        """The planned network as it goes into the file."""
        return self.network

    def handed_on(self) -> nn.Module:
        """The encoder that goes into the file."""
        network: Any = self.network
        encoder: nn.Module = network.encoder
        return encoder

    def extra_state(self) -> dict[str, Any]:
        """What a resumed run needs besides the network: heads, teachers, centres."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("network.")}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back ``extra_state()``.

        Raises:
            ValueError: it is another method's, or of other settings.
        """
        try:
            missing, unexpected = self.load_state_dict(state, strict=False)
        except RuntimeError as error:  # other shapes
            raise ValueError(f"The checkpoint's state does not fit the method: {error}") from error
        wrong = [k for k in missing if not k.startswith("network.")] + unexpected
        if wrong:
            raise ValueError(f"The checkpoint's state does not fit the method: {wrong[0]}.")

    def panels(self, batch: Batch) -> dict[str, Tensor] | None:
        """Images (B, C, ...) by title to look at."""
        return None
