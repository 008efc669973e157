"""What DINO and BYOL share: a student encoder, and a teacher that is a moving average of it.

The teacher is the target, and it moves: losses of different epochs, and so `checkpoint_best` and `early_stopping`, do
not say which encoder is better. `checkpoint_final` is the file to use.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from nnunet_ssp.methods.embedding import Embedding, EmbeddingSettings
from nnunet_ssp.methods.parts.momentum import Momentum
from nnunet_ssp.schedules import iteration_schedule, momentum_schedule
from nnunet_ssp.settings import require
from nnunet_ssp.slices.store import SliceStore


@dataclass(frozen=True)
class DistillationSettings(EmbeddingSettings):
    """Settings of the methods with a momentum teacher."""

    # initial_lr is the rate for 256 slices per batch, and scaled linearly with the batch size.
    warmup_epochs: int | Literal["auto"] = (
        "auto"  # auto: 10 as in both papers, a tenth of a shorter run
    )
    teacher_momentum: float = 0.996  # of the first step; rises to 1 by a cosine
    # copy: the teacher starts as the student. separate: with weights of its own, as de Mooij et al.'s DINO ran.
    teacher_init: Literal["copy", "separate"] = "copy"
    # The papers pool the last map alone. In an untrained network with InstanceNorm two views of a slice are then as
    # unlike as views of any two, and a teacher has nothing to teach (figures: README, results).
    pooling: Literal["average", "max", "stages"] = "stages"
    transfer_from: Literal["student", "teacher"] = "student"  # whose encoder goes into the file

    def __post_init__(self) -> None:
        super().__post_init__()
        start = self.teacher_momentum
        require(0 <= start <= 1, "teacher_momentum", start, "lie in [0, 1]")

    @property
    def peak_lr(self) -> float:
        return self.initial_lr * self.batch_size / 256


class Distillation(Embedding):
    """A student that learns to predict its teacher's output for other views of the same slice.

    A subclass gives ``make_head``, ``draw`` and ``forward``.
    """

    warmup_start: ClassVar[float] = 0.0  # learning rates of the first step,
    final_lr: ClassVar[float] = 0.0  # and towards the end

    settings: DistillationSettings

    def __init__(
        self, network: nn.Module, settings: Any, patch_size: tuple[int, int], channels: int
    ) -> None:
        super().__init__(network, settings, patch_size, channels)
        planned: Any = network
        self.head = self.make_head()
        self.teacher_encoder = Momentum(planned.encoder)
        self.teacher_head = Momentum(self.head)
        if settings.teacher_init == "separate":
            self.teacher_encoder.apply(planned.initialize)
            self.teacher_head = Momentum(self.make_head())

    def examine(self, store: SliceStore) -> list[str]:
        notes = super().examine(store)
        if self.settings.early_stopping is not None:
            notes.append(
                "WARNING: early_stopping follows a loss whose target, the teacher, moves: it may rise while the "
                "encoder improves. early_stopping=none trains all epochs."
            )
        return notes

    @abstractmethod
    def make_head(self) -> nn.Module:
        """The head that student and teacher both have, with weights of its own."""

    def compiled(self) -> list[nn.Module]:
        return [*super().compiled(), self.teacher_encoder.copy]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Biases and all other 1-D parameters without weight decay (and, in LARS, without adaptation)."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Per step: linear warm-up, then a cosine."""
        s = self.settings
        total = s.num_epochs * steps_per_epoch
        warmup = round(s.warmup * steps_per_epoch)
        return iteration_schedule(step, total, warmup, s.peak_lr, self.warmup_start, self.final_lr)

    def after_step(self, step: int, total: int) -> None:
        """Move the teacher."""
        network: Any = self.network
        momentum = momentum_schedule(step, total, self.settings.teacher_momentum)
        self.teacher_encoder.update(network.encoder, momentum)
        self.teacher_head.update(self.head, momentum)

    def exported(self) -> nn.Module:
        """The planned network with the encoder that shall be handed on."""
        if self.settings.transfer_from == "student":
            return self.network
        network: Any = copy.deepcopy(self.network)
        network.encoder.load_state_dict(self.teacher_encoder.copy.state_dict())
        return network

    def handed_on(self) -> nn.Module:
        student = self.settings.transfer_from == "student"
        return super().handed_on() if student else self.teacher_encoder.copy

    def extra_state(self) -> dict[str, Any]:
        """Head and teacher; and the student's encoder when the file's network has the teacher's."""
        state = super().extra_state()
        if self.settings.transfer_from == "teacher":
            encoder: Any = self.network.encoder
            state.update({f"network.encoder.{k}": v for k, v in encoder.state_dict().items()})
        return state
