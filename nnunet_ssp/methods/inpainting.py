"""Context prediction and context restoration: fill in, or put back, squares of a slice.

Source: Dominic et al., "Improving data-efficiency and robustness of medical imaging segmentation using
inpainting-based self-supervised learning", Bioengineering 2023, 10(2):207, and their published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

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
from nnunet_ssp.slices.store import SliceStore

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
    """The paper's settings; optimiser and early stopping are in their code's configurations."""

    num_epochs: int = 500  # at most
    batch_size: int = 9
    optimizer: Literal["sgd", "adam", "adamw", "lars"] = "adam"
    initial_lr: float = 1e-3
    beta1: float = 0.99
    beta2: float = 0.995
    weight_decay: float = 0.0
    lr_schedule: Literal["staircase", "cosine"] = "staircase"  # x 0.9 every two epochs, or a cosine
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    early_stopping: int | None = 4
    early_stopping_delta: float = 50 / 512**2  # theirs is 50 of the sum over a 512 x 512 image
    area: float = 0.25  # share of the image that is corrupted
    # poisson: squares apart, at most the area. uniform: anywhere, they may overlap; at least the area.
    sampling: Literal["poisson", "uniform"] = "poisson"
    # bank: 100 layouts drawn once and rotated by quarters of a turn, as in their code. fresh: a new one each time.
    masks: Literal["bank", "fresh"] = "bank"
    loss_region: Literal["image", "corrupted"] = "image"
    augment: bool = False  # yes: the views of masked image modelling; the paper has no augmentation

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

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.area < 1, "area", self.area, "lie in (0, 1)")
        warm = self.warmup_epochs
        works = self.lr_schedule == "cosine" or warm == 0
        require(works, "warmup_epochs", warm, "be 0 for lr_schedule=staircase")


class Inpainting(Reconstruction):
    """The mean squared error over the whole image, by default.

    The paper's loss is the sum over the pixels of an image, averaged over batch and channels: rows x columns times
    this mean. Their norm, the root of the sum, is the curve ``l2_norm``, whatever region the loss is taken on.
    """

    curves = (*Reconstruction.curves, "l2_norm")
    checkpoint = "checkpoint_best.pth"  # the weights they hand on
    paper = (
        "Dominic et al.: Improving data-efficiency and robustness of medical imaging segmentation using "
        "inpainting-based self-supervised learning. Bioengineering 10(2):207 (2023)"
    )
    pairs: ClassVar[bool]  # whether squares change places

    settings: InpaintingSettings

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        s = self.settings
        self.number = number_of_squares(s.area, self.side, patch_size, self.pairs)
        rng = np.random.default_rng([s.seed, BANK])
        # Drawn for fresh masks, too: an area that cannot be reached is refused before anything runs.
        self.bank = [self._layout(rng) for _ in range(BANK)]

    def examine(self, store: SliceStore) -> list[str]:
        notes = super().examine(store)
        patience = self.settings.early_stopping
        if self.settings.lr_schedule == "cosine" and patience is not None:
            notes.append(
                f"WARNING: early_stopping={patience} may end the run long before its cosine does; early_stopping=none "
                "trains all epochs."
            )
        return notes

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        if self.settings.lr_schedule == "cosine":
            return super().learning_rate(step, steps_per_epoch)
        return staircase(step // steps_per_epoch, self.settings.initial_lr)

    def view_settings(self) -> ViewSettings:
        return ViewSettings() if self.settings.augment else UNCHANGED

    def draw_corruption(self, rng: np.random.Generator, n: int) -> dict[str, Any]:
        layouts = [self._chosen(rng) for _ in range(n)]
        hidden = np.stack([cover(c, self.side, self.patch_size) for c in layouts])
        return {"hidden": torch.from_numpy(hidden), **self.draw_places(rng, layouts)}

    def draw_places(self, rng: np.random.Generator, layouts: list[Corners]) -> dict[str, Any]:
        """What else the corruption of each image needs to know."""
        return {}

    def counted(self, hidden: Tensor) -> Tensor:
        whole = self.settings.loss_region == "image"
        return torch.ones_like(hidden) if whole else hidden

    @staticmethod
    def summarise(sums: dict[str, float]) -> dict[str, float]:
        return {**Reconstruction.summarise(sums), "l2_norm": sums["l2_norm"]}

    def _layout(self, rng: np.random.Generator, attempts: int = ATTEMPTS) -> Corners:
        s = self.settings
        if s.sampling == "poisson":
            return poisson_disc(rng, self.number, self.side, self.patch_size, attempts)
        draw = uniform_pairs if self.pairs else uniform
        return draw(rng, s.area, self.side, self.patch_size)

    def _chosen(self, rng: np.random.Generator) -> Corners:
        if self.settings.masks == "fresh":
            # Never the end of a run: the bank needed no more than a hundredth of these attempts.
            return self._layout(rng, 100 * ATTEMPTS)
        layout = self.bank[rng.integers(BANK)]
        square = self.patch_size[0] == self.patch_size[1]
        quarters = rng.integers(4) if square else 2 * rng.integers(2)
        return turned(layout, self.side, self.patch_size, int(quarters))


class ContextPrediction(Inpainting):
    """Fill in what was there before the squares were set to 0, the mean after normalisation."""

    settings_class = InpaintingSettings
    pairs = False

    def corrupt(self, images: Tensor, drawn: dict[str, Any]) -> tuple[Tensor, Tensor]:
        hidden = drawn["hidden"].to(images.device, non_blocking=True)[:, None]
        return images.masked_fill(hidden, 0.0), hidden


class ContextRestoration(Inpainting):
    """Put back the squares that have changed places in pairs."""

    settings_class = InpaintingSettings
    pairs = True

    def draw_places(self, rng: np.random.Generator, layouts: list[Corners]) -> dict[str, Any]:
        # Poisson-disc squares are paired afresh at each use, so that a layout of the bank is many corruptions.
        if self.settings.sampling == "poisson":
            layouts = [rng.permutation(corners).reshape(-1, 2, 2) for corners in layouts]
        sources = [exchange(pairs, self.side, self.patch_size) for pairs in layouts]
        return {"source": torch.from_numpy(np.stack(sources))}

    def corrupt(self, images: Tensor, drawn: dict[str, Any]) -> tuple[Tensor, Tensor]:
        hidden = drawn["hidden"].to(images.device, non_blocking=True)[:, None]
        source = drawn["source"].to(images.device, non_blocking=True).long()
        pixels = images.flatten(2)
        index = source.flatten(1)[:, None].expand_as(pixels)
        return pixels.gather(2, index).view_as(images), hidden
