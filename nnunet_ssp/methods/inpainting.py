"""Context prediction and context restoration: fill in, or put back, squares of a slice.

Source: Dominic et al., "Improving data-efficiency and robustness of medical imaging segmentation using
inpainting-based self-supervised learning", Bioengineering 2023, 10(2):207, and their published code.

Their loss is the sum of squared errors over the pixels of an image, averaged over batch and channels: rows x columns
times the mean that is taken here. Their norm, the root of the sum, is the curve `l2_norm`, whatever region the loss is
taken on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.console import count_of
from nnunet_ssp.methods.base import Batch
from nnunet_ssp.methods.parts.squares import (
    ATTEMPTS,
    Corners,
    cover,
    exchange,
    number_of_squares,
    poisson_disc,
    turned,
    uniform,
    uniform_pairs,
)
from nnunet_ssp.methods.parts.views import ViewSettings
from nnunet_ssp.methods.reconstruction import Reconstruction, ReconstructionSettings
from nnunet_ssp.schedules import staircase
from nnunet_ssp.settings import require
from nnunet_ssp.slices.drawing import SliceStore

PAPER = (
    "Dominic et al.: Improving data-efficiency and robustness of medical imaging segmentation using "
    "inpainting-based self-supervised learning. Bioengineering 10(2):207 (2023)"
)
CURVES = (*Reconstruction.curves, "l2_norm")
CHECKPOINT = "checkpoint_best.pth"  # the weights that they fine-tune from
BANK = 100  # layouts drawn once, each used in all its rotations
UNCHANGED = ViewSettings(
    rotation=0.0,
    scale=(1.0, 1.0),
    translation=0.0,
    flip=0.0,
    noise=0.0,
    blur=0.0,
    brightness_probability=0.0,
    shift_probability=0.0,
    gamma_probability=0.0,
)


@dataclass(frozen=True)
class InpaintingSettings(ReconstructionSettings):
    """Settings of both methods; the defaults are the paper's, or those of their code's configurations."""

    # At most; early stopping ends a run sooner.
    num_epochs: int = 500
    # Slices; their code.
    batch_size: int = 9
    # Their code.
    optimizer: Literal["sgd", "adam", "adamw", "lars"] = "adam"
    # Their code.
    initial_lr: float = 1e-3
    # Their code.
    beta1: float = 0.99
    # Their code.
    beta2: float = 0.995
    # Their code.
    weight_decay: float = 0.0
    # staircase: times 0.9 every two epochs.
    lr_schedule: Literal["staircase", "cosine"] = "staircase"
    # Their code.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    # Epochs without improvement; their code.
    early_stopping: int | None = 4
    # Theirs is 50 of the sum over a 512 x 512 image.
    early_stopping_delta: float = 50 / 512**2
    # Share of the image that is corrupted.
    area: float = 0.25
    # Number of Poisson-disc squares. least: their area is at least `area`, as in the paper. most: at most, as in their
    # code. The two differ where squares do not fill `area` exactly.
    area_rule: Literal["least", "most"] = "least"
    # poisson: squares apart. uniform: anywhere, they may overlap; at least the area.
    sampling: Literal["poisson", "uniform"] = "poisson"
    # bank: 100 layouts drawn once and rotated by quarters of a turn, as in their code; by halves where the patch is not
    # square. fresh: a new one each time.
    masks: Literal["bank", "fresh"] = "bank"
    # Pixels whose error counts.
    loss_region: Literal["image", "corrupted"] = "image"
    # yes: the views of masked image modelling; the paper has no augmentation.
    augment: bool = False

    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "deep": {
            **ReconstructionSettings.recipes["deep"],
            "num_epochs": 100,
            "lr_schedule": "cosine",
            "beta1": 0.9,
            "beta2": 0.999,
            "early_stopping": None,
        }
    }
    former: ClassVar[dict[str, Any]] = {**ReconstructionSettings.former, "area_rule": "most"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.area < 1, "area", self.area, "lie in (0, 1)")
        warm = self.warmup_epochs
        works = self.lr_schedule == "cosine" or warm == 0
        require(works, "warmup_epochs", warm, "be 0 for lr_schedule=staircase")


class Layouts:
    """Places of the squares in an image: a layout of the bank in any rotation, or a fresh one.

    Args:
        settings: Of the method.
        side: Pixels of a square.
        patch_size: Rows and columns of the image.
        pairs: Whether the squares change places in pairs.

    Attributes:
        number: Poisson-disc squares in an image.
        bank: Layouts that were drawn once.

    Raises:
        ValueError: The squares do not fit into the image, or into `area`.
    """

    def __init__(
        self, settings: InpaintingSettings, side: int, patch_size: tuple[int, int], pairs: bool
    ) -> None:
        self.settings = settings
        self.side = side
        self.patch_size = patch_size
        self.pairs = pairs
        least = settings.area_rule == "least"
        self.number = number_of_squares(settings.area, side, patch_size, pairs, least)
        rng = np.random.default_rng([settings.seed, BANK])
        # Drawn for fresh masks too: an area that cannot be reached is refused before anything runs.
        self.bank = [self._fresh(rng) for _ in range(BANK)]

    @property
    def notes(self) -> list[str]:
        """Say where a patch leads to other squares than the paper's."""
        (rows, columns), s = self.patch_size, self.settings
        size = f"the patch of {rows} x {columns} px"
        share = self.number * self.side**2 / (rows * columns)
        notes = []
        if s.sampling == "poisson" and abs(share - s.area) > 0.001:
            of_side = f"{count_of(self.number, 'square')} of {self.side} px"
            rule = f"area_rule={s.area_rule}"
            notes.append(f"{of_side} cover {share:.1%} of {size}: area={s.area}, {rule}.")
        if s.masks == "bank" and rows != columns:
            notes.append(
                f"{size} is not square: layouts are rotated by half turns alone, in the paper by quarter turns, too."
            )
        return notes

    def draw(self, rng: np.random.Generator, n: int) -> list[Corners]:
        """Draw the squares of n images."""
        return [self._one(rng) for _ in range(n)]

    def covered(self, layouts: list[Corners]) -> Tensor:
        """Return where the squares lie: (n, X, Y) bool, True inside."""
        return torch.from_numpy(np.stack([cover(c, self.side, self.patch_size) for c in layouts]))

    def exchanged(self, rng: np.random.Generator, layouts: list[Corners]) -> Tensor:
        """Return where each pixel comes from when pairs change places: (n, X, Y), see `squares.exchange`.

        Poisson-disc squares are paired afresh at each use, so that one layout of the bank is many corruptions.
        """
        if self.settings.sampling == "poisson":
            layouts = [rng.permutation(corners).reshape(-1, 2, 2) for corners in layouts]
        sources = [exchange(pairs, self.side, self.patch_size) for pairs in layouts]
        return torch.from_numpy(np.stack(sources))

    def _one(self, rng: np.random.Generator) -> Corners:
        if self.settings.masks == "fresh":
            # The bank needed a hundredth of these attempts at most: bad luck does not end a run.
            return self._fresh(rng, 100 * ATTEMPTS)
        layout = self.bank[rng.integers(BANK)]
        square = self.patch_size[0] == self.patch_size[1]
        quarters = rng.integers(4) if square else 2 * rng.integers(2)
        return turned(layout, self.side, self.patch_size, int(quarters))

    def _fresh(self, rng: np.random.Generator, attempts: int = ATTEMPTS) -> Corners:
        s = self.settings
        if s.sampling == "poisson":
            return poisson_disc(rng, self.number, self.side, self.patch_size, attempts)
        draw = uniform_pairs if self.pairs else uniform
        return draw(rng, s.area, self.side, self.patch_size)


def view_settings(settings: InpaintingSettings) -> ViewSettings:
    """Return the strength of the augmentation: none, by default."""
    return ViewSettings() if settings.augment else UNCHANGED


def counted(settings: InpaintingSettings, hidden: Tensor) -> Tensor:
    """Return where the loss is taken: (B, 1, X, Y) bool, as `hidden`."""
    return torch.ones_like(hidden) if settings.loss_region == "image" else hidden


def scheduled(settings: InpaintingSettings, epoch: int, cosine: float) -> float:
    """Return the rate of an epoch, counted from 0: that of the staircase, or the cosine's."""
    return staircase(epoch, settings.initial_lr) if settings.lr_schedule == "staircase" else cosine


def note_on_patience(settings: InpaintingSettings) -> list[str]:
    """Warn of a patience that may end a run long before its cosine does."""
    patience = settings.early_stopping
    if settings.lr_schedule == "staircase" or patience is None:
        return []
    return [
        f"WARNING: early_stopping={patience} may end the run long before its cosine does; early_stopping=none "
        "trains all epochs."
    ]


class ContextPrediction(Reconstruction):
    """Fill in what was there before the squares were set to 0, the mean after normalisation."""

    settings_class = InpaintingSettings
    settings: InpaintingSettings
    curves = CURVES
    checkpoint = CHECKPOINT
    paper = PAPER

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        self.layouts = Layouts(settings, self.side, patch_size, pairs=False)

    def examine(self, store: SliceStore) -> list[str]:
        return [*super().examine(store), *note_on_patience(self.settings), *self.layouts.notes]

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        cosine = super().learning_rate(step, steps_per_epoch)
        return scheduled(self.settings, step // steps_per_epoch, cosine)

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw one view of each slice, and its squares."""
        drawn = self.draw_common(rng, sizes, view_settings(self.settings))
        drawn["hidden"] = self.layouts.covered(self.layouts.draw(rng, len(sizes)))
        return drawn

    def corrupt(self, images: Tensor, drawn: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the images without their squares, and where these lie (B, 1, X, Y), True = hidden."""
        hidden = drawn["hidden"].to(images.device, non_blocking=True)[:, None]
        return images.masked_fill(hidden, 0.0), hidden

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        target, inside = self.view(batch)
        corrupted, hidden = self.corrupt(target, batch.drawn)
        where = counted(self.settings, hidden)
        return self.compare(batch, corrupted, target, hidden=hidden, inside=inside, counted=where)

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        target, _ = self.view(batch)
        return self.show(target, *self.corrupt(target, batch.drawn))


class ContextRestoration(Reconstruction):
    """Put back the squares that have changed places in pairs."""

    settings_class = InpaintingSettings
    settings: InpaintingSettings
    curves = CURVES
    checkpoint = CHECKPOINT
    paper = PAPER

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        self.layouts = Layouts(settings, self.side, patch_size, pairs=True)

    def examine(self, store: SliceStore) -> list[str]:
        return [*super().examine(store), *note_on_patience(self.settings), *self.layouts.notes]

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        cosine = super().learning_rate(step, steps_per_epoch)
        return scheduled(self.settings, step // steps_per_epoch, cosine)

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw one view of each slice, its squares, and which of them change places."""
        drawn = self.draw_common(rng, sizes, view_settings(self.settings))
        layouts = self.layouts.draw(rng, len(sizes))
        drawn["hidden"] = self.layouts.covered(layouts)
        drawn["source"] = self.layouts.exchanged(rng, layouts)
        return drawn

    def corrupt(self, images: Tensor, drawn: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the images with exchanged squares, and where these lie (B, 1, X, Y), True = hidden."""
        hidden = drawn["hidden"].to(images.device, non_blocking=True)[:, None]
        source = drawn["source"].to(images.device, non_blocking=True).long()
        pixels = images.flatten(2)
        index = source.flatten(1)[:, None].expand_as(pixels)
        return pixels.gather(2, index).view_as(images), hidden

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        target, inside = self.view(batch)
        corrupted, hidden = self.corrupt(target, batch.drawn)
        where = counted(self.settings, hidden)
        return self.compare(batch, corrupted, target, hidden=hidden, inside=inside, counted=where)

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        target, _ = self.view(batch)
        return self.show(target, *self.corrupt(target, batch.drawn))
