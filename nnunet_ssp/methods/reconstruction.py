"""Shared parts of the reconstructing methods: run the planned U-Net on corrupted images, and compare its output.

With plain skip connections the full-resolution skip can solve most of a reconstruction while every deeper layer stays
at its initial weights. `recipe=deep` and the single settings below push learning down; `recipe=paper` is the published
procedure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.distributed import sum_over_ranks, world_size
from nnunet_ssp.methods.base import Batch, Method, Pictures
from nnunet_ssp.methods.parts.depth import depth_warning
from nnunet_ssp.methods.parts.losses import coarse_weights, error_sums, masked_variance, pooled
from nnunet_ssp.methods.parts.masking import auto_block
from nnunet_ssp.methods.parts.views import ViewSettings, draw_centres, draw_views
from nnunet_ssp.methods.parts.visible_norm import VisibleNorm
from nnunet_ssp.settings import PretrainingSettings, require
from nnunet_ssp.slices.drawing import SliceStore


@dataclass(frozen=True)
class ReconstructionSettings(PretrainingSettings):
    """Settings of every reconstructing method."""

    # paper: the paper's settings. deep: AdamW and a reconstruction at every decoder stage, which moves the deep stages.
    recipe: Literal["paper", "deep"] = "paper"
    # Side of a hidden block or square, in px; auto: an eighth of the planned patch.
    mask_patch: int | Literal["auto"] = "auto"
    # yes: one reconstruction per decoder stage, against area-averaged targets, with weights 2^-i / sum.
    coarse_heads: bool = False
    # Probability of zeroing a skip connection, per image and skip.
    skip_dropout: float = 0.0
    # yes: the encoder's InstanceNorm takes its statistics from visible pixels only (SparK, arXiv 2301.03580; S3D,
    # arXiv 2410.23132).
    visible_statistics: bool = False

    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "deep": {
            "optimizer": "adamw",
            "initial_lr": 1e-3,
            "weight_decay": 0.01,
            "coarse_heads": True,
        }
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        drop = self.skip_dropout
        require(0 <= drop <= 1, "skip_dropout", drop, "lie in [0, 1]")
        side = self.mask_patch
        require(side == "auto" or side >= 1, "mask_patch", side, "be auto or at least 1")


COMPOSITE = "composite: the output where the input was corrupted, the image elsewhere."


class Reconstruction(Method):
    """Helpers for reconstructing a view from its corrupted copy with the whole planned U-Net.

    A method has its own `draw`, `forward` and `panels`, which call `draw_common`, `view`, `compare` and `show`.
    """

    transfers = "encoder+decoder"
    reconstructs = True
    curves: ClassVar[tuple[str, ...]] = ("error_over_variance",)
    references: ClassVar[dict[str, tuple[float, str]]] = {
        "error_over_variance": (1.0, "only the mean learned")
    }
    pictures = Pictures(
        "reconstructions/epoch_{epoch:03d}.png",
        "{slices} slices after {epochs}",
        change=True,
        caption=f"{COMPOSITE} The loss is taken on the whole raw output, with loss_region=corrupted where the input "
        "was corrupted.",
    )

    settings: ReconstructionSettings

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        self.side = auto_block(patch_size) if settings.mask_patch == "auto" else settings.mask_patch
        if self.side > min(patch_size):
            raise ValueError(
                f"`mask_patch` (={self.side}) must not exceed the shorter side of the planned patch {patch_size}."
            )
        decoder: Any = network.decoder
        decoder.deep_supervision = settings.coarse_heads
        self.n_skips = len(decoder.stages)
        heads = decoder.seg_layers if settings.coarse_heads else decoder.seg_layers[-1:]
        for parameter in decoder.seg_layers.parameters():
            parameter.requires_grad_(False)
        for parameter in heads.parameters():
            parameter.requires_grad_(True)
        self.visible_norm = VisibleNorm(network.encoder) if settings.visible_statistics else None

    def examine(self, store: SliceStore) -> list[str]:
        return [*super().examine(store), f"mask_patch is {self.side} px here."]

    def draw_common(
        self, rng: np.random.Generator, sizes: NDArray[np.int64], settings: ViewSettings
    ) -> dict[str, Any]:
        """Draw one view per slice, and which of its skip connections survive."""
        centre = draw_centres(rng, sizes, self.patch_size, self.centres)
        views = draw_views(rng, sizes, self.channels, self.patch_size, settings, centre)
        keep = rng.random((len(sizes), self.n_skips)) >= self.settings.skip_dropout
        return {"views": views, "keep_skips": torch.from_numpy(keep)}

    def view(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the views (B, C, *patch), and where they lie inside the slice (B, 1, *patch)."""
        return self.make_views(batch.slices, batch.sizes, batch.drawn["views"], self.patch_size)

    def run(self, images: Tensor, hidden: Tensor, keep: Tensor | None) -> list[Tensor]:
        """Return the network's outputs, finest first; `keep` (B, skips) are the skips that survive."""
        network: Any = self.network
        if self.visible_norm is not None:
            self.visible_norm.visible = (~hidden).float()
        skips = network.encoder(images)
        if self.visible_norm is not None:
            self.visible_norm.visible = None
        if keep is not None and self.training and self.settings.skip_dropout > 0:
            kept = keep[:, :, None, None, None].unbind(1)
            skips = [*(s * k for s, k in zip(skips[:-1], kept, strict=True)), skips[-1]]
        outputs = network.decoder(skips)
        return list(outputs) if self.settings.coarse_heads else [outputs]

    def compare(
        self,
        batch: Batch,
        corrupted: Tensor,
        target: Tensor,
        *,
        hidden: Tensor,
        inside: Tensor,
        counted: Tensor,
    ) -> dict[str, Tensor]:
        """Reconstruct the target from its corrupted copy: the mean squared error over the counted pixels.

        Args:
            batch: This rank's share.
            corrupted: (B, C, *patch), what the network sees.
            target: (B, C, *patch).
            hidden: (B, 1, *patch) bool, True where the target was corrupted.
            inside: (B, 1, *patch) bool, True inside the slice. Padding never counts.
            counted: (B, 1, *patch) bool, True where the loss is taken.

        Returns:
            The loss; error and variance over the hidden pixels; the mean norm of a slice's error.
        """
        weight = (counted & inside).float()
        masked = (hidden & inside).float()
        keep = batch.drawn["keep_skips"].to(target.device, non_blocking=True)

        shapes: list[Tensor] = []

        def sums_of(rows: slice) -> Tensor:
            outputs = self.run(corrupted[rows], hidden[rows], keep[rows])
            shapes[:] = [output.to("meta") for output in outputs]
            return error_sums(
                outputs, target[rows], weight[rows], masked[rows], inside[rows].float()
            )

        variance, n_masked = masked_variance(target, masked)

        @cache
        def counts() -> Tensor:
            """Count the pixels of the global batch: DDP averages gradients over ranks, hence the factor."""
            pixels = [pooled(weight, like).sum() * self.channels for like in shapes]
            counted = sum_over_ranks(torch.stack([*pixels, n_masked]))
            return counted.clamp_min(1e-6) / world_size()

        def weights() -> Tensor:
            table = counts().new_zeros(len(shapes) + 1, 2)
            table[:-1, 0] = table.new_tensor(coarse_weights(len(shapes))) / counts()[:-1]
            return table

        loss, sums = self.chunks.weighted_sum(
            sums_of, len(batch), target.device, weights, list(self.parameters())
        )
        error, norms = sums[-1]
        return {
            "loss": loss,
            "error": error / counts()[-1],
            "variance": variance / counts()[-1],
            "l2_norm": norms * world_size() / batch.total,
        }

    def show(self, target: Tensor, corrupted: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Return what the network is asked, what it sees and what it answers, by title."""
        output = self.run(corrupted, hidden, None)[0].float()
        composite = torch.where(hidden, output, target)
        # The composite shows what was learned; nothing is asked of the output where the image is seen.
        return {"input": corrupted, "composite": composite, "target": target, "raw output": output}

    @classmethod
    def summarise(cls, sums: dict[str, float]) -> dict[str, float]:
        variance = sums["variance"]
        share = sums["error"] / variance if variance > 0 else float("nan")
        found = {**sums, "error_over_variance": share}
        return {name: found[name] for name in cls.curves}

    def warnings(
        self, curves: dict[str, float], change: Mapping[str, float] | None = None
    ) -> list[str]:
        warning = depth_warning(change or {}, 'Consider nnUNet_ssp_settings="recipe=deep".')
        return [warning] if warning else []

    def extra_state(self) -> dict[str, Any]:
        """Return the reconstruction heads: a segmentation network gets other output layers."""
        decoder: Any = self.network.decoder
        return {"heads": {k: v.detach().cpu() for k, v in decoder.seg_layers.state_dict().items()}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        decoder: Any = self.network.decoder
        decoder.seg_layers.load_state_dict(state["heads"])
