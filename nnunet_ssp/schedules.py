"""Schedules as functions of progress, and early stopping."""

from __future__ import annotations

import math


def warmup_cosine(epoch: float, num_epochs: float, warmup_epochs: float = 0) -> float:
    """Factor of the initial learning rate: linear warm-up, then half a cosine to 0.

    Without warm-up it is ``torch.optim.lr_scheduler.CosineAnnealingLR(T_max=num_epochs)``, the papers' schedule
    (de Mooij et al., appendix A). The warm-up rises by equal steps and reaches 1 with the first cosine epoch.

    Args:
        epoch: finished epochs, in [0, num_epochs]; fractions are allowed.
        num_epochs: length of the run.
        warmup_epochs: length of the warm-up, 0 for none.

    Returns:
        A factor in [0, 1].

    Raises:
        ValueError: ``epoch`` outside [0, num_epochs].
    """
    if not 0 <= epoch <= num_epochs:
        raise ValueError(f"`epoch` (={epoch}) must lie in [0, num_epochs={num_epochs}].")
    if epoch < warmup_epochs:
        return (epoch + 1) / (warmup_epochs + 1)
    if num_epochs == warmup_epochs:
        return 1.0
    progress = (epoch - warmup_epochs) / (num_epochs - warmup_epochs)
    return (1 + math.cos(math.pi * progress)) / 2


def staircase(epoch: int, peak: float) -> float:
    """``peak * 0.9^floor((epoch + 1) / 2)``, at least 1e-8: Dominic et al.'s, from the configurations of their code.

    Args:
        epoch: counted from 0; the rate falls after the first epoch and then after every second one.
        peak: rate of the first epoch.
    """
    return max(1e-8, peak * 0.9 ** ((epoch + 1) // 2))


def polynomial(epoch: int, num_epochs: int, peak: float) -> float:
    """``peak * (1 - epoch / num_epochs)^0.9``, nnU-Net's rate of an epoch, counted from 0."""
    return float(peak * (1 - epoch / num_epochs) ** 0.9)


def iteration_schedule(
    step: int, total: int, warmup: int, peak: float, start: float = 0.0, end: float = 0.0
) -> float:
    """Learning rate of one step: linear from ``start`` to ``peak``, both reached, then half a cosine towards ``end``.

    DINO's (``np.linspace(0, peak, warmup)``, then a cosine to 1e-6) and BYOL's (from 3e-5 to 0) schedule; the first
    step of the cosine has the peak again, and its end lies one step after the last.

    Args:
        step: counted from 0.
        total: steps of the run.
        warmup: steps of the warm-up.
        peak: largest rate.
        start: rate of the first step of the warm-up.
        end: what the cosine falls to.

    Raises:
        ValueError: ``step`` outside [0, total), or a longer warm-up than the run.
    """
    if not 0 <= step < total:
        raise ValueError(f"`step` (={step}) must lie in [0, total={total}).")
    if not 0 <= warmup <= total:
        raise ValueError(f"`warmup` (={warmup}) must lie in [0, total={total}].")
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def momentum_schedule(step: int, total: int, start: float) -> float:
    """Momentum of a teacher: from ``start`` to 1 by half a cosine (DINO and BYOL).

    Args:
        step: finished steps before this update, counted from 0.
        total: steps of the run.
        start: momentum of the first update.
    """
    return 1 - (1 - start) * (1 + math.cos(math.pi * step / total)) / 2


class EarlyStopping:
    """Tells when a loss has not improved for some epochs.

    Args:
        patience: epochs without improvement before it stops; None never stops.
        min_delta: smallest decrease that counts as an improvement.
    """

    def __init__(self, patience: int | None, min_delta: float = 0.0) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best = math.inf
        self.stale_epochs = 0

    def update(self, loss: float) -> None:
        """Take the loss of one more epoch; a loss that is not a number counts as no improvement."""
        if loss < self.best - self.min_delta:
            self.best, self.stale_epochs = loss, 0
        else:
            self.stale_epochs += 1

    @property
    def should_stop(self) -> bool:
        """Whether ``patience`` epochs have passed without improvement."""
        return self.patience is not None and self.stale_epochs >= self.patience

    def state_dict(self) -> dict[str, float]:
        """What is needed to go on after an interruption."""
        return {"best": self.best, "stale_epochs": self.stale_epochs}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from ``state_dict()``."""
        self.best, self.stale_epochs = state["best"], int(state["stale_epochs"])
