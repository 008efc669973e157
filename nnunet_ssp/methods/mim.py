"""Masked image modelling: hide most blocks of a slice and reconstruct them.

Source: de Mooij, Pluim and Scannell, "Self-supervised pretraining for cardiovascular magnetic resonance cine
segmentation", https://arxiv.org/abs/2409.18100, section 2 and appendix A, and their published code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.distributed import rank, world_size
from nnunet_ssp.methods.base import Batch
from nnunet_ssp.methods.parts.masking import FillName, draw_block_masks, fill, grid_shape, to_pixels
from nnunet_ssp.methods.parts.views import BRIGHTNESS, BrightnessName, CropsName, ViewSettings
from nnunet_ssp.methods.reconstruction import COMPOSITE, Reconstruction, ReconstructionSettings
from nnunet_ssp.settings import require


@dataclass(frozen=True)
class MIMSettings(ReconstructionSettings):
    """Settings of masked image modelling; the defaults are the paper's."""

    # Slices; appendix A.
    batch_size: int = 128
    # Appendix A.
    initial_lr: float = 0.01
    # Appendix A.
    momentum: float = 0.99
    # Appendix A.
    nesterov: bool = True
    # Appendix A.
    weight_decay: float = 3e-5
    # Hidden share: 48 of 64 blocks.
    mask_ratio: float = 0.75
    # yes: each block is hidden with probability mask_ratio (ratio_as_prob in their code).
    mask_independent: bool = False
    # What hidden blocks show; theirs is the constant 0, after normalisation and augmentation.
    fill: float | FillName = 0.0
    # Factors of brightness. meant: 0.6-1.5. run: 1.6-2.5, which the authors' code makes of that range.
    brightness: BrightnessName = "meant"
    # Where crops lie. free: chosen without labels. mask: about the labelled structures of each subject that has masks,
    # as the authors' code; this reads labels.
    crops: CropsName = "free"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.mask_ratio < 1, "mask_ratio", self.mask_ratio, "lie in (0, 1)")
        needs_two = self.fill == "replace_patches" and self.batch_size < 2
        require(
            not needs_two, "batch_size", self.batch_size, "be at least 2 for fill=replace_patches"
        )


class MIM(Reconstruction):
    """Reconstruct the hidden blocks of a view; the loss is the mean squared error over the slice's hidden pixels."""

    settings_class = MIMSettings
    settings: MIMSettings
    pictures = replace(
        Reconstruction.pictures,
        caption=f"{COMPOSITE} What the raw output holds where the input is visible means nothing: no loss is taken "
        "there.",
    )
    paper = (
        "de Mooij, Pluim, Scannell: Self-supervised pretraining for cardiovascular magnetic resonance "
        "cine segmentation. arXiv 2409.18100 (2024)"
    )

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        self.grid = grid_shape(patch_size, self.side)
        self.draw_blocks(np.random.default_rng(0), 1)  # refuses an unsuitable ratio early
        if settings.fill == "replace_patches" and settings.batch_size < 2 * world_size():
            raise ValueError(
                f"`batch_size` (={settings.batch_size}) must be at least 2 for each of the {world_size()} processes "
                "for fill=replace_patches."
            )

    def view_settings(self) -> ViewSettings:
        """Return the strength of the augmentation."""
        return ViewSettings(brightness=BRIGHTNESS[self.settings.brightness])

    def draw_blocks(self, rng: np.random.Generator, n: int) -> NDArray[np.bool_]:
        """Draw the hidden blocks of n images: (n, rows, columns), True = hidden."""
        s = self.settings
        return draw_block_masks(rng, n, self.grid, s.mask_ratio, s.mask_independent)

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw one view of each slice, its hidden blocks, and a seed for what fills them."""
        drawn = self.draw_common(rng, sizes, self.view_settings())
        drawn["hidden_blocks"] = torch.from_numpy(self.draw_blocks(rng, len(sizes)))
        drawn["fill_seed"] = int(rng.integers(2**31))
        return drawn

    def corrupt(self, images: Tensor, drawn: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the images with their hidden blocks filled, and where they are hidden (B, 1, X, Y), True = hidden."""
        blocks = drawn["hidden_blocks"].to(images.device, non_blocking=True)
        # One number for the whole batch: without its own offset each rank would fill in the same noise.
        seed = drawn["fill_seed"] + rank()
        generator = torch.Generator(images.device).manual_seed(seed)
        filled = fill(images, blocks, self.side, self.settings.fill, generator)
        return filled, to_pixels(blocks, self.side, self.patch_size)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        target, inside = self.view(batch)
        corrupted, hidden = self.corrupt(target, batch.drawn)
        return self.compare(batch, corrupted, target, hidden=hidden, inside=inside, counted=hidden)

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        target, _ = self.view(batch)
        return self.show(target, *self.corrupt(target, batch.drawn))
