"""SimCLR: two views of a slice shall look alike to the encoder, and unlike all other views of the batch.

Source: Chen et al., "A simple framework for contrastive learning of visual representations" (ICML 2020), with the
settings of de Mooij, Pluim and Scannell, arXiv 2409.18100, section 2 and appendix A, and their published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.methods.base import Batch
from nnunet_ssp.methods.embedding import Embedding, EmbeddingSettings
from nnunet_ssp.methods.parts.heads import mlp
from nnunet_ssp.methods.parts.losses import contrastive_loss
from nnunet_ssp.methods.parts.views import (
    BRIGHTNESS,
    BrightnessName,
    ViewSettings,
    draw_centres,
    draw_views,
)
from nnunet_ssp.settings import require


@dataclass(frozen=True)
class SimCLRSettings(EmbeddingSettings):
    """The paper's settings."""

    batch_size: int = 224  # slices, two views each; appendix A
    initial_lr: float = 0.1  # appendix A
    momentum: float = 0.9  # appendix A
    weight_decay: float = 1e-4  # appendix A
    # meant: factors 0.6-1.5; run: 1.6-2.5, what the authors' code does with that range
    brightness: BrightnessName = "meant"
    temperature: float = 0.1  # their code
    head_width: int = 512  # of each of the head's three layers; their code

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "temperature", self.temperature, "be positive")
        require(self.head_width >= 1, "head_width", self.head_width, "be at least 1")


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
        """Two views of each slice.

        Both lie about one centre, as the papers' crops lie about the heart: patches smaller than the image would
        otherwise often show nothing in common.
        """
        settings = ViewSettings(brightness=BRIGHTNESS[self.settings.brightness])
        pair = self.frame_sizes(sizes)
        centre = draw_centres(rng, pair[:, 0], self.patch_size)
        first, second = (
            draw_views(rng, pair[:, i], self.channels, self.patch_size, settings, centre)
            for i in (0, 1)
        )
        return {"first": first, "second": second}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = (batch.drawn["first"], batch.drawn["second"])
        pooled = self.embed(self.network.encoder, batch, views).flatten(0, 1)
        with torch.autocast(pooled.device.type, enabled=False):
            features = self.head(self.head_norm(pooled))
            positives = self.positives(batch)
            loss, _ = contrastive_loss(features, positives, self.settings.temperature)
        return {"loss": loss, **self.figures(features, pooled), **self.counts(positives)}

    def positives(self, batch: Batch) -> Tensor:
        """(2B, 2B) bool: which views of the global batch, all first ones and then all second ones, are alike."""
        number = torch.arange(batch.total, device=batch.slices.device).repeat(2)
        return number[:, None] == number

    def counts(self, positives: Tensor) -> dict[str, Tensor]:
        """What the monitors show of the positives."""
        return {}
