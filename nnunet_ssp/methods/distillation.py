"""Shared parts of DINO and BYOL: a student, and a teacher that is a moving average of it.

The teacher is the target, and it moves. So losses of different epochs, and with them `checkpoint_best` and
`early_stopping`, do not tell which encoder is better: fine-tune from `checkpoint_final`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from nnunet_ssp.methods.parts.momentum import Momentum
from nnunet_ssp.schedules import iteration_schedule
from nnunet_ssp.settings import PretrainingSettings


def student_and_teacher(
    network: Any, make_head: Callable[[], nn.Module], separate: bool
) -> tuple[nn.Module, Momentum, Momentum]:
    """Return the student's head, the teacher's encoder and the teacher's head.

    Args:
        network: The planned network, whose encoder is the student's.
        make_head: Returns a head with weights of its own.
        separate: True gives the teacher weights of its own; False starts it as a copy of the student.
    """
    head = make_head()
    teacher_encoder, teacher_head = Momentum(network.encoder), Momentum(head)
    if separate:
        teacher_encoder.apply(network.initialize)
        teacher_head = Momentum(make_head())
    return head, teacher_encoder, teacher_head


def decayed_and_spared(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Group trained parameters: those with one dimension get no weight decay (nor, in LARS, adaptation)."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def rate_by_step(
    settings: PretrainingSettings, step: int, steps_per_epoch: int, start: float, end: float
) -> float:
    """Return a step's learning rate: a linear warm-up from `start` to `peak_lr`, then a cosine towards `end`."""
    total = settings.num_epochs * steps_per_epoch
    warmup = round(settings.warmup * steps_per_epoch)
    return iteration_schedule(step, total, warmup, settings.peak_lr, start, end)


def note_on_moving_target(settings: PretrainingSettings) -> list[str]:
    """Warn of early stopping, which follows a moving target."""
    if settings.early_stopping is None:
        return []
    return [
        "WARNING: early_stopping follows a loss whose target, the teacher, moves: it may rise while the "
        "encoder improves. early_stopping=none trains all epochs."
    ]
