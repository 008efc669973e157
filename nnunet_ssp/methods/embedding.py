"""Shared parts of the methods that train an encoder: pooled features of views, in chunks and over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.distributed import gather_rows
from nnunet_ssp.methods.base import Batch, Method
from nnunet_ssp.methods.parts.features import (
    COLLAPSED_RANK,
    COLLAPSED_SPREAD,
    alignment,
    collapse_warning,
    effective_rank,
    relative_alignment,
    spread,
    uniformity,
)
from nnunet_ssp.methods.parts.heads import Standardise
from nnunet_ssp.methods.parts.views import Views
from nnunet_ssp.network import in_encoder
from nnunet_ssp.settings import PretrainingSettings, require

STAGES = 3  # the deepest ones, for pooling=stages


@dataclass(frozen=True)
class EmbeddingSettings(PretrainingSettings):
    """Settings of every method that trains the encoder alone."""

    # paper: pooling=average head_norm=none, as published, for BatchNorm. instancenorm: what nnU-Net's networks need.
    recipe: Literal["instancenorm", "paper"] = "instancenorm"
    # Features of an image. average (the papers'), max: of the encoder's last map. stages: averages of its last three.
    pooling: Literal["average", "max", "stages"] = "average"
    # batch: pooled features are standardised over the batch before the head, see heads.Standardise. none: the papers'.
    head_norm: Literal["batch", "none"] = "batch"
    # augment: all views of an image show one frame. frame: every second view shows any frame of the same slice, so that
    # features do not depend on the phase of the heartbeat.
    pairs: Literal["augment", "frame"] = "augment"
    # yes: measure now and then a linear segmentation of training-fold labels on the frozen encoder.
    probe: bool = True

    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"pooling": "average", "head_norm": "none"}
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 2, "batch_size", self.batch_size, "be at least 2")


def frame_sizes(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sizes of each slice's first and second frame, one size twice where there is no second frame.

    Args:
        sizes: (B, 2) rows and columns, or (B, 2, 2).

    Returns:
        (B, 2, 2).
    """
    return sizes if sizes.ndim == 3 else np.stack([sizes, sizes], 1)


class Embedding(Method):
    """Helpers for training the planned encoder on whole-image features; the decoder takes no part.

    A method has its own heads, `draw` and `forward`, which call `embed` and `metrics`.
    """

    transfers = "encoder"
    curves: ClassVar[tuple[str, ...]] = (
        "relative_alignment",
        "alignment",
        "uniformity",
        "spread",
    )
    val_curves = ("effective_rank",)
    references: ClassVar[dict[str, tuple[float, str]]] = {
        "relative_alignment": (1.0, "as far apart as any two slices"),
        "spread": (COLLAPSED_SPREAD, "collapsed below"),
        "effective_rank": (COLLAPSED_RANK, "collapsed below"),
    }
    smallest_batch = 2
    # Pooled features differ by two percent: bf16's 8 bits would drown that.
    half_precision = "fp16"

    settings: EmbeddingSettings

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        # By parameter, not by module: nnU-Net's decoder holds the encoder.
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(in_encoder(name))
        encoder: Any = network.encoder
        pooled = encoder.output_channels[-STAGES if settings.pooling == "stages" else -1 :]
        self.width = sum(pooled)
        self.second_frames = settings.pairs == "frame"
        self.head_norm = Standardise() if settings.head_norm == "batch" else nn.Identity()

    def pool(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool the encoder's maps (N, C, X, Y), finest first, to features (N, width), float32."""
        if self.settings.pooling == "max":
            return maps[-1].float().amax((2, 3))
        used = maps[-STAGES:] if self.settings.pooling == "stages" else maps[-1:]
        return torch.cat([m.float().mean((2, 3)) for m in used], 1)

    def embed(
        self,
        encoder: Any,
        batch: Batch,
        views: Sequence[Views],
        patch_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return pooled features of the global batch's views, with a gradient to this rank's.

        Views are made chunk by chunk, again in a recomputation: no tensor of all views needs to exist.

        Args:
            encoder: Returns its maps, finest first.
            batch: This rank's share.
            views: V views of each slice in the share. Every second one shows the second frame where there is one.
            patch_size: Rows and columns of the views; the planned patch by default.

        Returns:
            (V, total, width), float32.
        """
        n, flat = len(batch), Views.cat(views)
        device = batch.slices.device

        def features(rows: slice) -> Tensor:
            number = torch.arange(rows.start, rows.stop, device=device)
            row: tuple[Tensor, ...] = (number % n,)
            if batch.slices.ndim == 5:
                row = (*row, number // n % 2)
            images, _ = self.make_views(
                batch.slices[row], batch.sizes[row], flat[rows], patch_size or self.patch_size
            )
            return self.pool(encoder(images))

        pooled = torch.cat(self.chunks.run(features, len(flat), device))
        pooled = pooled.reshape(len(views), n, self.width).transpose(0, 1)
        return gather_rows(pooled, batch.total).transpose(0, 1)

    def metrics(self, features: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        """Return the metrics of the family's curves, detached.

        Args:
            features: (2B, D) what the loss compares: all first views, then all second ones.
            pooled: (N, F) what fine-tuning starts from.
        """
        features, pooled = features.detach(), pooled.detach()
        found = {
            "relative_alignment": relative_alignment(*features.chunk(2)),
            "alignment": alignment(*features.chunk(2)),
            "uniformity": uniformity(features),
            "spread": spread(features),
        }
        if not self.training:  # an eigenvalue problem: not in every step
            found["effective_rank"] = effective_rank(pooled)
        return found

    @classmethod
    def summarise(cls, sums: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in sums.items() if name != "loss"}

    def warnings(
        self, curves: dict[str, float], change: Mapping[str, float] | None = None
    ) -> list[str]:
        names = ("spread", "effective_rank", "relative_alignment")
        warning = collapse_warning(*(curves[f"val_{name}"] for name in names))
        return [warning] if warning else []

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Return both views of each slice, by name."""
        pair = [(f"{k} view", batch.drawn[k], self.patch_size) for k in ("first", "second")]
        return self.show(batch, pair)

    def show(
        self, batch: Batch, views: Sequence[tuple[str, Views, tuple[int, int]]]
    ) -> dict[str, Tensor]:
        """Make views of each slice, given by title, parameters and size; every second one shows the second frame."""
        shown = {}
        for number, (name, drawn, patch_size) in enumerate(views):
            frame = number % 2
            slices = batch.slices[:, frame] if batch.slices.ndim == 5 else batch.slices
            sizes = batch.sizes[:, frame] if batch.sizes.ndim == 3 else batch.sizes
            shown[name] = self.make_views(slices, sizes, drawn, patch_size)[0]
        return shown
