"""The contract of a pretraining method: settings, and a module that turns a batch of slices into a loss."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
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
from nnunet_ssp.slices.drawing import SliceStore


@dataclass
class Batch:
    """Slices of one training step, and everything random about them.

    Attributes:
        slices: (B, C, X, Y) on the device. Each slice lies in the top left corner, with 0 beyond its size.
            (B, 2, C, X, Y) where the second view of an image shows another frame of the same slice.
        sizes: (B, 2), or (B, 2, 2), rows and columns of each slice, on the device.
        drawn: Entries with B rows, or single numbers, on the host: what the method's `draw` returned.
        positions: (B, 2) int64 on the host: number of the slice in its stack, counted from the base, and number of
            slices in that stack.
        total: Slices in the global batch of which these are one rank's share. 0 means all of them.
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
        """Return one rank's rows of a global batch; single numbers in `drawn` are kept."""
        drawn = {k: v if isinstance(v, int | float) else v[rows] for k, v in self.drawn.items()}
        return Batch(
            self.slices[rows], self.sizes[rows], drawn, self.positions[rows], total=self.total
        )

    def pinned(self) -> Batch:
        """Return the batch with its host tensors in page-locked memory, so that copies to CUDA need not wait."""
        drawn = {name: _pinned(entry) for name, entry in self.drawn.items()}
        return replace(
            self, sizes=_pinned(self.sizes), drawn=drawn, positions=_pinned(self.positions)
        )


def _pinned(entry: Any) -> Any:
    if isinstance(entry, Views):
        return Views(**{name: column.pin_memory() for name, column in vars(entry).items()})
    return entry.pin_memory() if isinstance(entry, Tensor) else entry


@dataclass(frozen=True)
class Pictures:
    """Place and time of the images that `Method.panels` returns.

    Attributes:
        file: Path below the results' folder; `{epoch}` stands for the finished epochs.
        title: Words above the images; `{slices}` stands for the kind of slices, `{epochs}` for the finished epochs.
        change: Whether training changes the images. Those that it does not change are drawn once, before it.
        caption: Words below the images.
        own_scale: Column whose grey scale it and those behind it have; the others have that of `target`, else of the
            first column.
    """

    file: str = "views.png"
    title: str = "{slices} slices as the encoder sees them"
    change: bool = False
    caption: str = ""
    own_scale: str = ""


class Method(nn.Module, ABC):
    """A pretraining method around nnU-Net's planned network.

    A subclass reads top to bottom: heads, `examine`, `draw`, `forward`, `after_step`. It knows torch, the slice store
    and a network with `.encoder` and `.decoder`. It does not know nnU-Net.

    Attributes:
        settings_class: Settings of the method.
        transfers: Part of the network that the method trains and exports.
        reconstructs: Whether the decoder's output layers have one channel per input channel. They belong to the
            method; a segmentation network gets fresh ones.
        curves: Keys of the metrics that `summarise` returns, one value per epoch.
        train_curves: Keys of the metrics that `end_epoch` returns.
        val_curves: Keys of the metrics that only validation batches have.
        references: Value to compare a curve with, and its meaning, by curve.
        smallest_batch: Smallest number of slices in a batch.
        half_precision: Precision that `precision=auto` chooses on CUDA.
        second_frames: Whether a slice comes with a second frame of it.
        second_frames_by: Setting that asks for second frames.
        other_frames: Whether the second frame is never the first one, where a slice has several.
        checkpoint: File to fine-tune from.
        pictures: Where and when `panels` are drawn.
        paper: Publication to cite.
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
    second_frames: bool = False
    second_frames_by: ClassVar[str] = "pairs"
    other_frames: ClassVar[bool] = False
    checkpoint: ClassVar[str] = "checkpoint_final.pth"
    pictures: ClassVar[Pictures] = Pictures()
    paper: ClassVar[str]
    # (B, 2) row and column that the next batch's crops lie about, NaN for none; set before `draw` with crops=mask.
    centres: NDArray[np.float64] | None = None

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
        """Look at the training slices before the first step.

        Returns:
            Notes on them for the log.

        Raises:
            ValueError: The method cannot work with them.
        """
        return []

    @abstractmethod
    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw everything random about a batch, on the host.

        Args:
            rng: Source of randomness, seeded by run and step.
            sizes: (B, 2) rows and columns of each slice in the global batch; (B, 2, 2) with a second frame each.

        Returns:
            Entries with B rows, which are sliced when ranks share the batch, or single numbers.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `"loss"` with a gradient, and the detached scalars that `summarise` takes."""

    def make_views(
        self, slices: Tensor, sizes: Tensor, views: Views, patch_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Apply views in float32 and without a gradient, whatever the precision of the network."""
        with torch.no_grad(), torch.autocast(slices.device.type, enabled=False):
            return apply_views(slices, sizes, views, patch_size)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trained parameters in the optimiser's own form."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the rate of a step, counted from 0: de Mooij et al.'s cosine by epoch."""
        s = self.settings
        epoch = step // steps_per_epoch
        return float(s.initial_lr * warmup_cosine(epoch, s.num_epochs, s.warmup))

    def start_epoch(self, epoch: int) -> None:
        """Prepare for the first step of an epoch, counted from 0."""

    def after_backward(self) -> None:
        """Change the gradients before the optimiser uses them."""

    def after_step(self, step: int, total: int) -> None:
        """Follow the optimiser's step number `step`, counted from 0, of `total`; teachers move here."""

    def end_epoch(self) -> dict[str, float]:
        """Return one value per name in `train_curves`, after the last step of an epoch."""
        return {}

    @classmethod
    def summarise(cls, sums: dict[str, float]) -> dict[str, float]:
        """Turn the epoch's means of what `forward` returned into one value per name in `curves`."""
        return {}

    def warnings(
        self, curves: dict[str, float], change: Mapping[str, float] | None = None
    ) -> list[str]:
        """Say in words what the epoch gives reason to warn of.

        Args:
            curves: Value of each curve, named `train_...` and `val_...`.
            change: How far each stage of the network has turned since initialisation, in [0, 1].
        """
        return []

    def panels(self, batch: Batch) -> dict[str, Tensor] | None:
        """Return images (B, C, ...) to look at, by title; None for a method without any."""
        return None

    def compiled(self) -> list[nn.Module]:
        """Return the parts worth compiling."""
        network: Any = self.network
        return [network.encoder, network.decoder]

    def handed_on(self) -> nn.Module:
        """Return the encoder to fine-tune from."""
        network: Any = self.network
        encoder: nn.Module = network.encoder
        return encoder

    def exported(self) -> nn.Module:
        """Return the planned network with the encoder to fine-tune from."""
        network: Any = self.network
        encoder = self.handed_on()
        if encoder is not network.encoder:
            network = copy.deepcopy(network)
            network.encoder.load_state_dict(encoder.state_dict())
        exported: nn.Module = network
        return exported

    def extra_state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the exported network: heads, teachers, centres."""
        network: Any = self.network
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("network.")}
        if self.handed_on() is not network.encoder:  # the file has another one in its place
            own = network.encoder.state_dict()
            state.update({f"network.encoder.{k}": v for k, v in own.items()})
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore `extra_state()`.

        Raises:
            ValueError: The state is another method's, or of other settings.
        """
        try:
            missing, unexpected = self.load_state_dict(state, strict=False)
        except RuntimeError as error:  # other shapes
            raise ValueError(f"The checkpoint's state does not fit the method: {error}") from error
        wrong = [k for k in missing if not k.startswith("network.")] + unexpected
        if wrong:
            raise ValueError(f"The checkpoint's state does not fit the method: {wrong[0]}.")
