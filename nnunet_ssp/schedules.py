"""Schedules as functions of epoch or step, and early stopping."""

from __future__ import annotations

import math


def warmup_cosine(epoch: float, num_epochs: float, warmup_epochs: float = 0) -> float:
    """Return the factor of the initial learning rate: linear warm-up, then half a cosine to 0.

    Without warm-up it is `torch.optim.lr_scheduler.CosineAnnealingLR(T_max=num_epochs)`, the papers' schedule
    (de Mooij et al., appendix A). The warm-up rises by equal steps and reaches 1 with the first cosine epoch.

    Args:
        epoch: Finished epochs, in [0, num_epochs]; fractions are allowed.
        num_epochs: Length of the run.
        warmup_epochs: Length of the warm-up, 0 for none.

    Returns:
        A factor in [0, 1].

    Raises:
        ValueError: `epoch` lies outside [0, num_epochs].

    >>> [round(warmup_cosine(epoch, 4), 2) for epoch in range(5)]
    [1.0, 0.85, 0.5, 0.15, 0.0]
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
    """Return `peak * 0.9^floor((epoch + 1) / 2)`, at least 1e-8: from the configurations of Dominic et al.'s code.

    Args:
        epoch: Counted from 0. The rate falls after the first epoch and then after every second one.
        peak: Rate of the first epoch.

    >>> [round(staircase(epoch, 1.0), 2) for epoch in range(5)]
    [1.0, 0.9, 0.9, 0.81, 0.81]
    """
    return max(1e-8, peak * 0.9 ** ((epoch + 1) // 2))


def polynomial(epoch: int, num_epochs: int, peak: float) -> float:
    """Return nnU-Net's rate of an epoch, counted from 0: `peak * (1 - epoch / num_epochs)^0.9`.

    >>> round(polynomial(500, 1000, 0.01), 5)
    0.00536
    """
    return float(peak * (1 - epoch / num_epochs) ** 0.9)


def iteration_schedule(
    step: int, total: int, warmup: int, peak: float, start: float = 0.0, end: float = 0.0
) -> float:
    """Return one step's learning rate: linear from `start` to `peak`, both reached, then half a cosine towards `end`.

    It is the schedule of DINO (`np.linspace(0, peak, warmup)`, then a cosine to 1e-6) and of BYOL (from 3e-5 to 0). The
    first step of the cosine has the peak again, and its end lies one step after the last.

    Args:
        step: Counted from 0.
        total: Steps of the run.
        warmup: Steps of the warm-up.
        peak: Largest rate.
        start: Rate of the first step of the warm-up.
        end: Rate that the cosine falls to.

    Raises:
        ValueError: `step` lies outside [0, total), or the warm-up is longer than the run.

    >>> [round(iteration_schedule(step, total=6, warmup=2, peak=1.0), 2) for step in range(6)]
    [0.0, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if not 0 <= step < total:
        raise ValueError(f"`step` (={step}) must lie in [0, total={total}).")
    if not 0 <= warmup <= total:
        raise ValueError(f"`warmup` (={warmup}) must lie in [0, total={total}].")
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def momentum_schedule(step: int, total: int, start: float) -> float:
    """Return the momentum of a teacher: from `start` to 1 by half a cosine (DINO and BYOL).

    Args:
        step: Steps before this update, counted from 0.
        total: Steps of the run.
        start: Momentum of the first update.

    >>> [round(momentum_schedule(step, 4, 0.9), 3) for step in range(5)]
    [0.9, 0.915, 0.95, 0.985, 1.0]
    """
    return 1 - (1 - start) * (1 + math.cos(math.pi * step / total)) / 2


def average_momentum(step: int, largest: float) -> float:
    """Return the momentum of a moving average: `largest`, but at first (1 + step) / (10 + step), as in TensorFlow.

    So the average soon forgets where the run began, however short the run is.

    Args:
        step: Steps before this update, counted from 0.
        largest: Momentum of late updates.

    >>> [round(average_momentum(step, 0.99), 2) for step in (0, 90, 10000)]
    [0.1, 0.91, 0.99]
    """
    return min(largest, (1 + step) / (10 + step))


def gaussian_rampup(step: float, length: float) -> float:
    """Return Mean Teacher's factor of the consistency's weight: `exp(-5 (1 - step / length)^2)`, then 1.

    Args:
        step: Counted from 0.
        length: Steps after which the factor is 1.

    >>> [round(gaussian_rampup(step, 4), 3) for step in range(6)]
    [0.007, 0.06, 0.287, 0.732, 1.0, 1.0]
    """
    return 1.0 if step >= length else math.exp(-5 * (1 - step / length) ** 2)


class EarlyStopping:
    """Tells when a loss has not improved for some epochs.

    Args:
        patience: Epochs without improvement before it stops; None never stops.
        min_delta: Smallest decrease that counts as an improvement.
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
        """Whether `patience` epochs have passed without improvement."""
        return self.patience is not None and self.stale_epochs >= self.patience

    def state_dict(self) -> dict[str, float]:
        """Return the state that a resumed run needs."""
        return {"best": self.best, "stale_epochs": self.stale_epochs}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore `state_dict()`."""
        self.best, self.stale_epochs = state["best"], int(state["stale_epochs"])
