"""SimCLR: train the encoder to see two views of a slice as alike, and as unlike all other views of the batch.

Source: Chen et al., "A simple framework for contrastive learning of visual representations" (ICML 2020), with the
settings of de Mooij, Pluim and Scannell, https://arxiv.org/abs/2409.18100, section 2 and appendix A, and their
published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.methods.base import Batch
from nnunet_ssp.methods.embedding import Embedding, EmbeddingSettings, frame_sizes
from nnunet_ssp.methods.parts.heads import mlp
from nnunet_ssp.methods.parts.losses import contrastive_loss
from nnunet_ssp.methods.parts.views import (
    BRIGHTNESS,
    BrightnessName,
    CropsName,
    Views,
    ViewSettings,
    draw_centres,
    draw_views,
)
from nnunet_ssp.settings import require


@dataclass(frozen=True)
class SimCLRSettings(EmbeddingSettings):
    """Settings of SimCLR; the defaults are the paper's."""

    # Slices, two views each; appendix A.
    batch_size: int = 224
    # Appendix A.
    initial_lr: float = 0.1
    # Appendix A.
    momentum: float = 0.9
    # Appendix A.
    weight_decay: float = 1e-4
    # Factors of brightness. meant: 0.6-1.5. run: 1.6-2.5, which the authors' code makes of that range.
    brightness: BrightnessName = "meant"
    # Where crops lie. free: chosen without labels. mask: about the labelled structures of each subject that has masks,
    # as the authors' code; this reads labels.
    crops: CropsName = "free"
    # Their code.
    temperature: float = 0.1
    # Width of each of the head's three layers; their code.
    head_width: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "temperature", self.temperature, "be positive")
        require(self.head_width >= 1, "head_width", self.head_width, "be at least 1")


def draw_pairs(
    rng: np.random.Generator,
    sizes: NDArray[np.int64],
    channels: int,
    patch_size: tuple[int, int],
    brightness: BrightnessName,
    centres: NDArray[np.float64] | None = None,
) -> dict[str, Views]:
    """Draw two views of each slice.

    Both lie about one centre, as the papers' crops lie about the heart. Patches smaller than the image would otherwise
    often show nothing in common.

    Args:
        rng: Source of randomness.
        sizes: (B, 2) rows and columns of each slice, or (B, 2, 2) with a second frame each.
        channels: Channels of the slices.
        patch_size: Rows and columns of the views.
        brightness: Name of its range.
        centres: (B, 2) given centres, see `draw_centres`.
    """
    settings = ViewSettings(brightness=BRIGHTNESS[brightness])
    pair = frame_sizes(sizes)
    centre = draw_centres(rng, pair[:, 0], patch_size, centres)
    first, second = (
        draw_views(rng, pair[:, i], channels, patch_size, settings, centre) for i in (0, 1)
    )
    return {"first": first, "second": second}


class SimCLR(Embedding):
    """Contrast the two views of each slice with all other views of the global batch."""

    settings_class = SimCLRSettings
    settings: SimCLRSettings
    paper = (
        "Chen, Kornblith, Norouzi, Hinton: A simple framework for contrastive learning of visual representations. "
        "ICML (2020); settings of de Mooij, Pluim, Scannell, arXiv 2409.18100 (2024)"
    )

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        self.head = mlp([self.width, *[settings.head_width] * 3])

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        return draw_pairs(
            rng, sizes, self.channels, self.patch_size, self.settings.brightness, self.centres
        )

    def positives(self, batch: Batch) -> Tensor:
        """Return which views of the global batch show one slice: (2B, 2B) bool, all first views, then all second."""
        number = torch.arange(batch.total, device=batch.slices.device).repeat(2)
        return number[:, None] == number

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = (batch.drawn["first"], batch.drawn["second"])
        pooled = self.embed(self.network.encoder, batch, views).flatten(0, 1)
        with torch.autocast(pooled.device.type, enabled=False):
            features = self.head(self.head_norm(pooled))
            loss, _ = contrastive_loss(features, self.positives(batch), self.settings.temperature)
        return {"loss": loss, **self.metrics(features, pooled)}
