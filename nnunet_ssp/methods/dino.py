"""DINO: a student predicts from small crops of a slice what its momentum teacher sees in large ones.

Source: Caron et al., "Emerging properties in self-supervised vision transformers" (ICCV 2021), with the settings of
de Mooij, Pluim and Scannell, https://arxiv.org/abs/2409.18100, section 2 and appendix A, and their published code.
Where paper and code differ, the default is what the paper means. What their code does has a name:
`teacher_init=separate`, `local_scale=run`, `brightness=run`. DINO exports the student's encoder, as they did
(`transfer_from`).

The published settings are for 100 epochs of 1415 steps. In runs of some hundred steps their targets only sharpen, and
the loss rises; `recipe=short` is for those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

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
from nnunet_ssp.methods.parts.heads import DINOHead
from nnunet_ssp.methods.parts.losses import distillation_loss
from nnunet_ssp.methods.parts.views import (
    BRIGHTNESS,
    BrightnessName,
    CropsName,
    Views,
    ViewSettings,
    draw_centres,
    draw_views,
)
from nnunet_ssp.schedules import momentum_schedule
from nnunet_ssp.settings import require
from nnunet_ssp.slices.drawing import SliceStore

# Of the sampling grid: areas of 0.14 to 1 of the largest one.
GLOBAL_SCALE = (0.14**0.5 * 1.4, 1.4)
# Of the sampling grid: 0.05 to 0.14 of that area.
LOCAL_SCALE = (0.05**0.5 * 1.4, 0.14**0.5 * 1.4)
# Of the local window's side, in its own scale.
LOCAL_TRANSLATION = 160 / 128
# Share of the largest entropy from which on the teacher has no opinion.
UNIFORM = 0.98
# Nats of KL below which the student has nothing to learn.
SAME = 0.01


@dataclass(frozen=True)
class DINOSettings(EmbeddingSettings):
    """Settings of DINO; the defaults are the paper's."""

    # Slices, eight crops each; appendix A.
    batch_size: int = 64
    # short: for runs of some hundred steps, with 64 prototypes and a teacher that moves faster.
    recipe: Literal["instancenorm", "paper", "short"] = "instancenorm"  # type: ignore[assignment]
    # For 256 slices, scaled linearly with the batch size: 0.0075 for 64; appendix A.
    initial_lr: float = 0.03
    # Appendix A.
    weight_decay: float = 1e-4
    # auto: 10 as in the paper, a tenth of a run shorter than 100.
    warmup_epochs: int | Literal["auto"] = "auto"
    # The paper pools the last map alone. In an untrained network with InstanceNorm two views of a slice are then as
    # unlike as views of any two, and a teacher has nothing to teach (docs/results.md).
    pooling: Literal["average", "max", "stages"] = "stages"
    # Of the first step; rises to 1 by a cosine.
    teacher_momentum: float = 0.996
    # copy: the teacher starts as the student. separate: with weights of its own, as theirs ran.
    teacher_init: Literal["copy", "separate"] = "copy"
    # Whose encoder is exported.
    transfer_from: Literal["student", "teacher"] = "student"
    # Factors of brightness. meant: 0.6-1.5. run: 1.6-2.5, which the authors' code makes of that range.
    brightness: BrightnessName = "meant"
    # Where crops lie. free: chosen without labels. mask: about the labelled structures of each subject that has masks,
    # as the authors' code; this reads labels.
    crops: CropsName = "free"
    # Besides the two global ones.
    local_crops: int = 6
    # Side of the local crops, as a share of the planned patch.
    local_ratio: float = 0.5
    # meant: local crops of 5-14 % of the largest global one. run: their code applies the scales meant for the whole
    # patch to a window already halved, which leaves 1.25-3.5 %. Both lie equally far from the middle.
    local_scale: Literal["meant", "run"] = "meant"
    # Width of the head's hidden layers.
    head_width: int = 2048
    # Width before the prototypes.
    head_bottleneck: int = 256
    # Number of prototypes.
    out_dim: int = 8192
    # Divides the student's scores before the softmax.
    student_temperature: float = 0.1
    # Divides the teacher's scores, after the first epochs.
    teacher_temperature: float = 0.04
    # Of the first epoch; rises to teacher_temperature.
    warmup_teacher_temperature: float = 0.02
    # Epochs of that rise; auto: 30 as in the paper, three tenths of a run shorter than 100.
    warmup_teacher_epochs: int | Literal["auto"] = "auto"
    # Of the moving average of the teacher's scores, which centres them.
    centre_momentum: float = 0.9
    # no: for studies of collapse.
    centring: bool = True
    # Epochs at the start without training the last layer.
    freeze_prototypes: int = 1

    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        **EmbeddingSettings.recipes,
        "short": {
            "initial_lr": 0.3,
            "teacher_momentum": 0.98,
            # With more, teachers of so few steps soon have no opinion.
            "teacher_temperature": 0.02,
            "local_crops": 2,
            "head_width": 256,
            "head_bottleneck": 64,
            "out_dim": 64,
            "warmup_teacher_epochs": 0,
            "freeze_prototypes": 0,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        start = self.teacher_momentum
        require(0 <= start <= 1, "teacher_momentum", start, "lie in [0, 1]")
        for name in ("head_width", "head_bottleneck"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")
        require(self.local_crops >= 0, "local_crops", self.local_crops, "not be negative")
        require(0 < self.local_ratio <= 1, "local_ratio", self.local_ratio, "lie in (0, 1]")
        require(self.out_dim >= 2, "out_dim", self.out_dim, "be at least 2")
        for name in ("student_temperature", "teacher_temperature", "warmup_teacher_temperature"):
            require(getattr(self, name) > 0, name, getattr(self, name), "be positive")
        epochs = self.warmup_teacher_epochs
        rule = "be auto or not negative"
        require(epochs == "auto" or epochs >= 0, "warmup_teacher_epochs", epochs, rule)
        centre = self.centre_momentum
        require(0 <= centre <= 1, "centre_momentum", centre, "lie in [0, 1]")
        require(
            self.freeze_prototypes >= 0,
            "freeze_prototypes",
            self.freeze_prototypes,
            "not be negative",
        )

    @property
    def peak_lr(self) -> float:
        return self.initial_lr * self.batch_size / 256

    @property
    def teacher_warmup(self) -> int:
        """Number of epochs in which the teacher's temperature rises."""
        epochs = self.warmup_teacher_epochs
        return min(30, round(0.3 * self.num_epochs)) if epochs == "auto" else epochs


class DINO(Embedding):
    """Match the teacher's choice of prototypes for each global crop with the student's for all other crops."""

    settings_class = DINOSettings
    settings: DINOSettings
    curves = (*Embedding.curves, "teacher_entropy", "kl")
    train_curves = ("prototypes_used",)
    paper = (
        "Caron et al.: Emerging properties in self-supervised vision transformers. ICCV (2021); settings of "
        "de Mooij, Pluim, Scannell, arXiv 2409.18100 (2024)"
    )

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        s = self.settings
        self.head, self.teacher_encoder, self.teacher_head = student_and_teacher(
            network,
            lambda: DINOHead(self.width, s.head_width, s.head_bottleneck, s.out_dim),
            s.teacher_init == "separate",
        )
        self.local_size = patch_size
        if s.local_crops:
            self.local_size = local_size(patch_size, encoder_stride(network), s.local_ratio)
        self.teacher_temperature = s.teacher_temperature
        self.epoch = 0
        self.centre: Tensor
        self.used: Tensor
        self.register_buffer("centre", torch.zeros(s.out_dim))
        # Prototypes that were some image's largest in this epoch.
        self.register_buffer("used", torch.zeros(s.out_dim, dtype=torch.bool), persistent=False)

    def examine(self, store: SliceStore) -> list[str]:
        return [*super().examine(store), *note_on_moving_target(self.settings)]

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Draw two global crops, one blurred and one at times solarised, and the local ones, about one centre."""
        pair = frame_sizes(sizes)
        centre = draw_centres(rng, pair[:, 0], self.patch_size, self.centres)
        drawn = {}
        for number, (settings, patch) in enumerate(self.crops()):
            drawn[f"crop{number}"] = draw_views(
                rng, pair[:, number % 2], self.channels, patch, settings, centre
            )
        return drawn

    def crops(self) -> list[tuple[ViewSettings, tuple[int, int]]]:
        """Return augmentation and size of each crop: two global ones, then the local ones."""
        # In the same scale a window of half the side shows a quarter of the area.
        larger = math.prod(self.patch_size) / math.prod(self.local_size)
        zoom = larger**0.5 if self.settings.local_scale == "meant" else 1.0
        local = ViewSettings(
            scale=(LOCAL_SCALE[0] * zoom, LOCAL_SCALE[1] * zoom),
            translation=LOCAL_TRANSLATION / zoom,
            noise=0.15,
            blur=0.1,
            brightness=BRIGHTNESS[self.settings.brightness],
            brightness_probability=0.2,
            shift_probability=0.15,
            gamma_probability=0.15,
        )
        whole = replace(local, scale=GLOBAL_SCALE, translation=ViewSettings.translation)
        blurred = replace(whole, blur=1.0, blur_sigma=(0.1, 2.0))
        solarised = replace(whole, solarise=0.2)
        crops = [(blurred, self.patch_size), (solarised, self.patch_size)]
        return crops + [(local, self.local_size)] * self.settings.local_crops

    def views(self, batch: Batch) -> list[tuple[str, Views, tuple[int, int]]]:
        """Return title, parameters and size of each crop; every second one shows the second frame."""
        names = ["global, blurred", "global, solarised"]
        names += [f"local {i + 1}" for i in range(self.settings.local_crops)]
        return [
            (name, batch.drawn[f"crop{i}"], patch)
            for i, (name, (_, patch)) in enumerate(zip(names, self.crops(), strict=True))
        ]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        encoder: Any = self.network.encoder
        views = [views for _, views, _ in self.views(batch)]
        pooled = self.embed(encoder, batch, views[:2])
        with torch.no_grad():
            targets = self.embed(self.teacher_encoder, batch, views[:2])
        crops = [pooled]
        if len(views) > 2:
            crops.append(self.embed(encoder, batch, views[2:], self.local_size))
        n = batch.total
        with torch.autocast(pooled.device.type, enabled=False):
            # All crops in one batch of the head, as in the papers' code.
            features, student = self.head(self.head_norm(torch.cat(crops).flatten(0, 1)))
            _, teacher = self.teacher_head(self.head_norm(targets.flatten(0, 1)))
            found = distillation_loss(
                student.unflatten(0, (-1, n)),
                teacher.unflatten(0, (-1, n)),
                self.centre,
                self.settings.student_temperature,
                self.teacher_temperature,
            )
        if self.training:
            self._follow(teacher)
        return {**found, **self.metrics(features[: 2 * n], pooled.flatten(0, 1))}

    @torch.no_grad()
    def _follow(self, teacher: Tensor) -> None:
        """Move the centre, after its use; it and the prototypes in use are those of the global batch."""
        self.used.index_fill_(0, (teacher - self.centre).argmax(1), True)
        if self.settings.centring:
            self.centre.lerp_(teacher.mean(0), 1 - self.settings.centre_momentum)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return decayed_and_spared(self.parameters())

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        return rate_by_step(self.settings, step, steps_per_epoch, start=0.0, end=1e-6)

    def start_epoch(self, epoch: int) -> None:
        """Set the teacher's temperature: linear over the first epochs, both ends reached."""
        s = self.settings
        progress = min(epoch / max(s.teacher_warmup - 1, 1), 1.0) if s.teacher_warmup else 1.0
        warm = s.warmup_teacher_temperature
        self.teacher_temperature = warm + (s.teacher_temperature - warm) * progress
        self.epoch = epoch
        self.used.fill_(False)

    def after_backward(self) -> None:
        """Freeze the prototypes at first: without a gradient the optimiser leaves them alone."""
        if self.epoch < self.settings.freeze_prototypes:
            head: Any = self.head
            head.prototypes.grad = None

    def after_step(self, step: int, total: int) -> None:
        """Move the teacher."""
        network: Any = self.network
        momentum = momentum_schedule(step, total, self.settings.teacher_momentum)
        self.teacher_encoder.update(network.encoder, momentum)
        self.teacher_head.update(self.head, momentum)

    def end_epoch(self) -> dict[str, float]:
        return {"prototypes_used": float(self.used.sum())}

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Return the crops of each slice, by name."""
        return self.show(batch, self.views(batch))

    def compiled(self) -> list[nn.Module]:
        return [*super().compiled(), self.teacher_encoder.copy]

    def handed_on(self) -> nn.Module:
        student = self.settings.transfer_from == "student"
        return super().handed_on() if student else self.teacher_encoder.copy

    def warnings(
        self, curves: dict[str, float], change: Mapping[str, float] | None = None
    ) -> list[str]:
        found = super().warnings(curves)
        entropy, kl = curves["val_teacher_entropy"], curves["val_kl"]
        if entropy > UNIFORM * math.log(self.settings.out_dim):
            found.append(
                f"WARNING: the teacher has no opinion: its entropy {entropy:.2f} is nearly that of a uniform choice "
                f"among {self.settings.out_dim} prototypes. Lower teacher_temperature."
            )
        elif kl < SAME or curves["train_prototypes_used"] < 2:
            found.append(
                "WARNING: the teacher gives all images the same target: "
                f"{curves['train_prototypes_used']:.0f} of {self.settings.out_dim} prototypes were chosen in this "
                f"epoch, and the student's KL to it is {kl:.4f}. Keep centring=yes, or raise teacher_temperature."
            )
        return found


def encoder_stride(network: Any) -> tuple[int, int]:
    """Return the rows and columns of the input per row and column of the encoder's last map."""
    rows, columns = np.prod([np.broadcast_to(s, 2) for s in network.encoder.strides], 0).tolist()
    return rows, columns


def local_size(
    patch_size: tuple[int, int], stride: tuple[int, int], ratio: float
) -> tuple[int, int]:
    """Return the size of the local crops: a share of the patch, rounded to whole pixels of the encoder's last map.

    Args:
        patch_size: Rows and columns of the planned patch.
        stride: Rows and columns of the input per row and column of that map.
        ratio: Share of each side, in (0, 1].

    Raises:
        ValueError: That map is smaller than 2 x 2.

    >>> local_size((256, 224), (32, 32), 0.5)
    (128, 128)
    """
    rows, columns = (
        math.floor(ratio * side / step + 0.5) for side, step in zip(patch_size, stride, strict=True)
    )
    if min(rows, columns) < 2:
        raise ValueError(
            f"`local_ratio` (={ratio}) must leave at least 2 x 2 of the encoder's last map: of the planned patch "
            f"{patch_size[0]} x {patch_size[1]} with stride {stride[0]} x {stride[1]} it leaves {rows} x {columns}. "
            "Raise local_ratio, or plan a larger patch or fewer stages."
        )
    return rows * stride[0], columns * stride[1]
