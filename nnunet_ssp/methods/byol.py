"""BYOL: predict from one crop of a slice what a momentum teacher makes of another, without negatives.

Source: Grill et al., "Bootstrap your own latent" (NeurIPS 2020), with the settings of Kalapos and Gyires-Toth,
"Self-supervised pretraining for 2D medical image segmentation", arXiv 2209.00314, and their code. Its normalisation is
mended: theirs divides intensities by 255 and then subtracts a mean taken before, so that all inputs lie between -0.795
and -0.783; ours are nnU-Net's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.methods.base import Batch
from nnunet_ssp.methods.distillation import Distillation, DistillationSettings
from nnunet_ssp.methods.parts.heads import batchnorm_mlp
from nnunet_ssp.methods.parts.losses import negative_cosine
from nnunet_ssp.methods.parts.views import CropSettings, draw_resized_crops
from nnunet_ssp.settings import require


@dataclass(frozen=True)
class BYOLSettings(DistillationSettings):
    """The paper's settings."""

    num_epochs: int = 400  # section 3.2, from random weights
    batch_size: int = 128  # their code
    optimizer: Literal["sgd", "adam", "adamw", "lars"] = "lars"  # their code
    initial_lr: float = 0.5  # for 256 slices, 0.25 for 128; their code
    weight_decay: float = 1e-5  # their code
    teacher_momentum: float = 0.99  # their code
    transfer_from: Literal["student", "teacher"] = "teacher"  # their code
    head_width: int = 4096  # hidden layer of the projector
    head_out: int = 256  # what is predicted
    predictor_width: int = 8192  # hidden layer of the predictor; 4096 in the original BYOL

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("head_width", "head_out", "predictor_width"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")


class BYOL(Distillation):
    """The loss is the sum over both directions of ``2 - 2 cos`` (prediction, the teacher's projection), in [0, 8]."""

    settings_class = BYOLSettings
    settings: BYOLSettings
    warmup_start = 3e-5
    paper = (
        "Kalapos, Gyires-Toth: Self-supervised pretraining for 2D medical image segmentation. ECCV workshops (2022). "
        "Grill et al.: Bootstrap your own latent. NeurIPS (2020)"
    )

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        s = self.settings
        self.predictor = batchnorm_mlp([s.head_out, s.predictor_width, s.head_out], nn.ReLU)

    def make_head(self) -> nn.Module:
        s = self.settings
        return batchnorm_mlp([self.width, s.head_width, s.head_out], nn.ReLU)

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Two random resized crops of each slice."""
        pair = self.frame_sizes(sizes)
        first, second = (
            draw_resized_crops(rng, pair[:, i], self.channels, self.patch_size, CropSettings())
            for i in (0, 1)
        )
        return {"first": first, "second": second}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = (batch.drawn["first"], batch.drawn["second"])
        pooled = self.embed(self.network.encoder, batch, views)
        with torch.no_grad():
            targets = self.embed(self.teacher_encoder, batch, views)
        with torch.autocast(pooled.device.type, enabled=False):
            projected = [self.head(self.head_norm(x)) for x in pooled]
            wanted = [self.teacher_head(self.head_norm(x)) for x in targets]
            predicted = [self.predictor(x) for x in projected]
            loss = negative_cosine(predicted[0], wanted[1]) + negative_cosine(
                predicted[1], wanted[0]
            )
        return {"loss": loss, **self.figures(torch.cat(projected), pooled.flatten(0, 1))}
