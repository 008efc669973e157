"""BYOL: predict from one crop of a slice what a momentum teacher makes of another, without negatives.

Source: Grill et al., "Bootstrap your own latent" (NeurIPS 2020), with the settings of Kalapos and Gyires-Tóth,
"Self-supervised pretraining for 2D medical image segmentation", https://arxiv.org/abs/2209.00314, and their code. One
thing differs: their normalisation divides intensities by 255 and then subtracts a mean taken before, so that all
inputs lie between -0.795 and -0.783. Ours is nnU-Net's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_ssp.methods.base import Batch
from nnunet_ssp.methods.distillation import (
    decayed_and_spared,
    note_on_moving_target,
    rate_by_step,
    student_and_teacher,
)
from nnunet_ssp.methods.embedding import Embedding, EmbeddingSettings, frame_sizes
from nnunet_ssp.methods.parts.heads import batchnorm_mlp
from nnunet_ssp.methods.parts.losses import negative_cosine
from nnunet_ssp.methods.parts.views import CropSettings, draw_resized_crops
from nnunet_ssp.schedules import momentum_schedule
from nnunet_ssp.settings import require
from nnunet_ssp.slices.drawing import SliceStore


@dataclass(frozen=True)
class BYOLSettings(EmbeddingSettings):
    """Settings of BYOL; the defaults are those of Kalapos and Gyires-Tóth, or of their code."""

    # Section 4.1.2, from random weights.
    num_epochs: int = 400
    # Slices, two views each; their code.
    batch_size: int = 128
    # Their code.
    optimizer: Literal["sgd", "adam", "adamw", "lars"] = "lars"
    # For 256 slices, scaled linearly with the batch size: 0.25 for 128.
    initial_lr: float = 0.5
    # Their code; solo-learn has 1e-6.
    weight_decay: float = 1e-5
    # auto: 10 as in the paper, a tenth of a run shorter than 100.
    warmup_epochs: int | Literal["auto"] = "auto"
    # The paper pools the last map alone. In an untrained network with InstanceNorm two views of a slice are then as
    # unlike as views of any two, and a teacher has nothing to teach (docs/results.md).
    pooling: Literal["average", "max", "stages"] = "stages"
    # Of the first step; rises to 1 by a cosine.
    teacher_momentum: float = 0.99
    # copy: the teacher starts as the student. separate: with weights of its own.
    teacher_init: Literal["copy", "separate"] = "copy"
    # Whose encoder is exported.
    transfer_from: Literal["student", "teacher"] = "teacher"
    # Width of the projector's hidden layer.
    head_width: int = 4096
    # Width of what is predicted.
    head_out: int = 256
    # Width of the predictor's hidden layer; 4096 in the original BYOL.
    predictor_width: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        start = self.teacher_momentum
        require(0 <= start <= 1, "teacher_momentum", start, "lie in [0, 1]")
        for name in ("head_width", "head_out", "predictor_width"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")

    @property
    def peak_lr(self) -> float:
        return self.initial_lr * self.batch_size / 256


class BYOL(Embedding):
    """Predict the teacher's projection; the loss is `2 - 2 cos`, summed over both directions, in [0, 8]."""

    settings_class = BYOLSettings
    settings: BYOLSettings
    paper = (
        "Kalapos, Gyires-Tóth: Self-supervised pretraining for 2D medical image segmentation. ECCV workshops (2022). "
        "Grill et al.: Bootstrap your own latent. NeurIPS (2020)"
    )

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        s = self.settings
        self.head, self.teacher_encoder, self.teacher_head = student_and_teacher(
            network,
            lambda: batchnorm_mlp([self.width, s.head_width, s.head_out], nn.ReLU),
            s.teacher_init == "separate",
        )
        self.predictor = batchnorm_mlp([s.head_out, s.predictor_width, s.head_out], nn.ReLU)

    def examine(self, store: SliceStore) -> list[str]:
        return [*super().examine(store), *note_on_moving_target(self.settings)]

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw two random resized crops of each slice."""
        pair = frame_sizes(sizes)
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
        return {"loss": loss, **self.metrics(torch.cat(projected), pooled.flatten(0, 1))}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return decayed_and_spared(self.parameters())

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        return rate_by_step(self.settings, step, steps_per_epoch, start=3e-5, end=0.0)

    def after_step(self, step: int, total: int) -> None:
        """Move the teacher."""
        network: Any = self.network
        momentum = momentum_schedule(step, total, self.settings.teacher_momentum)
        self.teacher_encoder.update(network.encoder, momentum)
        self.teacher_head.update(self.head, momentum)

    def compiled(self) -> list[nn.Module]:
        return [*super().compiled(), self.teacher_encoder.copy]

    def handed_on(self) -> nn.Module:
        student = self.settings.transfer_from == "student"
        return super().handed_on() if student else self.teacher_encoder.copy
