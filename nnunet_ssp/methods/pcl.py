"""Positional contrastive learning: train the encoder to see slices at nearly the same height of the heart as alike.

Source: Zeng et al., "Positional contrastive learning for volumetric medical image segmentation" (MICCAI 2021), with
the settings of de Mooij, Pluim and Scannell, https://arxiv.org/abs/2409.18100, section 2 and appendix A, and their
published code, which leaves out the original's factor T / 0.07.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.console import count_of
from nnunet_ssp.distributed import gather_rows
from nnunet_ssp.methods.base import Batch
from nnunet_ssp.methods.embedding import Embedding, EmbeddingSettings
from nnunet_ssp.methods.parts.heads import mlp
from nnunet_ssp.methods.parts.losses import contrastive_loss
from nnunet_ssp.methods.parts.views import BrightnessName, CropsName
from nnunet_ssp.methods.simclr import draw_pairs
from nnunet_ssp.settings import require
from nnunet_ssp.slices.drawing import SliceStore


@dataclass(frozen=True)
class PCLSettings(EmbeddingSettings):
    """Settings of positional contrastive learning; the defaults are the paper's, but for `threshold`."""

    # Slices, two views each; appendix A.
    batch_size: int = 64
    # Appendix A.
    initial_lr: float = 0.1
    # Appendix A.
    momentum: float = 0.9
    # Appendix A.
    weight_decay: float = 1e-5
    # Appendix A.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    # Factors of brightness. meant: 0.6-1.5. run: 1.6-2.5, which the authors' code makes of that range.
    brightness: BrightnessName = "meant"
    # Where crops lie. free: chosen without labels. mask: about the labelled structures of each subject that has masks,
    # as the authors' code; this reads labels.
    crops: CropsName = "free"
    # Their code.
    temperature: float = 0.1
    # Width of each of the head's three layers; their code.
    head_width: int = 512
    # Positives are closer than this share of the stack. With 0.17 neighbours are, in stacks of 6 slices and more, and
    # nothing else in stacks of up to 11, the median of their data. Their code: 0.1.
    threshold: float = 0.17
    # yes: base and apex count as neighbours; an option of their code, off.
    cyclic: bool = False
    # exact: in integers. run: in float32, as in their code, where rounding makes 4 of the 9 pairs of neighbours in a
    # stack of 10 slices closer than a tenth.
    arithmetic: Literal["exact", "run"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "temperature", self.temperature, "be positive")
        require(self.head_width >= 1, "head_width", self.head_width, "be at least 1")
        require(0 < self.threshold <= 1, "threshold", self.threshold, "lie in (0, 1]")


class PCL(Embedding):
    """Contrast as SimCLR does, with more positives: all views at nearly one position in any frame of any subject."""

    settings_class = PCLSettings
    settings: PCLSettings
    curves = (*Embedding.curves, "positives_per_view")
    paper = (
        "Zeng et al.: Positional contrastive learning for volumetric medical image segmentation. "
        "MICCAI (2021); settings of de Mooij, Pluim, Scannell, arXiv 2409.18100 (2024)"
    )

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        self.head = mlp([self.width, *[settings.head_width] * 3])

    def examine(self, store: SliceStore) -> list[str]:
        """Refuse slices without a position, and say where the threshold finds no neighbours.

        Raises:
            ValueError: A case is a single slice.
        """
        notes = super().examine(store)
        single = [n for n, c in zip(store.names, store.cases, strict=True) if c.n_slices < 2]
        if single:
            raise ValueError(
                f"{store.folder}: {single[0]} has a single slice ({count_of(len(single), 'such case')}). "
                "Positional contrastive learning needs the position of each slice in a stack; "
                "use -tr nnUNetTrainerSimCLRPretrain."
            )
        unknown = store.bases.count("unknown")
        if unknown:
            notes.append(
                f"WARNING: which end of the stack is the base is unknown for {unknown} of {len(store.bases)} cases "
                "(column `base` of cases.csv); their slices count as stored, first to last. If stacks differ in "
                "direction, positions of different subjects do not mean the same."
            )
        depths = np.array([case.n_slices for case in store.cases])
        alone = [n for n in np.unique(depths).tolist() if not self._has_neighbours(n)]
        if alone:
            notes.append(
                f"WARNING: threshold={self.settings.threshold} finds no neighbouring slices within "
                f"{int(np.isin(depths, alone).sum())} of {len(depths)} stacks, those of "
                f"{', '.join(map(str, alone))} slices: the positives of a view there are its twin and the views at its "
                "own position in other frames and, where stacks agree, in other subjects. Neighbours in a stack of n "
                f"slices need a threshold above 1/n, e.g. threshold={1.5 / max(alone):.2g}."
            )
        return notes

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        return draw_pairs(
            rng, sizes, self.channels, self.patch_size, self.settings.brightness, self.centres
        )

    def positives(self, batch: Batch) -> Tensor:
        """Return which views of the global batch are near: (2B, 2B) bool, all first views, then all second."""
        positions = batch.positions.to(batch.slices.device, non_blocking=True)
        return self._near(gather_rows(positions, batch.total)).repeat(2, 2)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = (batch.drawn["first"], batch.drawn["second"])
        pooled = self.embed(self.network.encoder, batch, views).flatten(0, 1)
        with torch.autocast(pooled.device.type, enabled=False):
            features = self.head(self.head_norm(pooled))
            positives = self.positives(batch)
            loss, _ = contrastive_loss(features, positives, self.settings.temperature)
        others = positives.sum(1, dtype=torch.float32).mean() - 1  # a view is no positive of itself
        return {"loss": loss, **self.metrics(features, pooled), "positives_per_view": others}

    def _near(self, positions: Tensor) -> Tensor:
        s = self.settings
        return near(positions, s.threshold, s.cyclic, s.arithmetic == "exact")

    def _has_neighbours(self, n_slices: int) -> bool:
        number = torch.arange(n_slices)
        stack = torch.stack([number, torch.full_like(number, n_slices)], 1)
        return bool(self._near(stack).triu(1).any())


def near(positions: Tensor, threshold: float, cyclic: bool = False, exact: bool = True) -> Tensor:
    """Tell which slices are less than `threshold` apart, as shares of their stacks.

    Slice p of n lies at p / n. Exact: `|p/n - q/m| < a/b` is decided in integers, with the threshold as it is
    written. The float 0.1 is already more than a tenth: it would make all neighbours in a stack of 10 slices near.

    Args:
        positions: (N, 2) int64, number of each slice and the number of slices in its stack.
        threshold: A share in (0, 1].
        cyclic: Whether distances also run around the end of the stack.
        exact: False rounds in float32, as the code of de Mooij et al. does.

    Returns:
        (N, N) bool.

    >>> near(torch.tensor([[0, 20], [1, 20], [5, 20]]), 0.1).int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    number, depth = positions.unbind(1)
    if exact:
        # To nine digits, so that products stay within int64; never 0: a view is near its twin.
        limit = max(Fraction(str(threshold)).limit_denominator(10**9), Fraction(1, 10**9))
        whole = depth[:, None] * depth
        distance = (number[:, None] * depth - number * depth[:, None]).abs()
        if cyclic:
            distance = torch.minimum(distance, whole - distance)
        return distance * limit.denominator < limit.numerator * whole
    share = number.float() / depth.float()
    gap = (share[:, None] - share).abs()
    if cyclic:
        gap = torch.minimum(gap, 1 - gap)
    return gap < threshold
