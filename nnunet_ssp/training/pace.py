"""Signs of life within an epoch, and the time that a training still takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from nnunet_ssp.reporting.wording import duration

SECONDS = 15.0  # between two lines; shorter epochs have none


class Pace:
    """Log how far an epoch is, where epochs are long.

    Args:
        say: Writes a line to the log.
        slices: Slices of a step.
        ends_early: Whether the training may stop before its last epoch.
    """

    def __init__(self, say: Callable[[str], None], slices: int, ends_early: bool = False) -> None:
        self.say, self.slices, self.ends_early = say, slices, ends_early
        self._first, self._started, self._said = 0, 0.0, 0.0
        self._part, self._later = "", 0

    def begin(self, done: int, part: str = "training", later: int = 0) -> None:
        """Begin an epoch's training or validation.

        Args:
            done: Its steps that were made before.
            part: What begins.
            later: Epochs after this one, where no line has said how long they take.
        """
        self._first, self._started = done, time.monotonic()
        self._said, self._part, self._later = self._started, part, later

    def step(self, done: int, planned: int) -> None:
        """Log a line if the last one was long ago.

        Args:
            done: Steps of this part of the epoch that are done.
            planned: Its steps.
        """
        now = time.monotonic()
        if now - self._said < SECONDS or done >= planned:
            return
        self._said = now
        seconds = (now - self._started) / (done - self._first)
        speed = f"{self.slices / seconds:.1f} slices/s, " if self._part == "training" else ""
        whole = duration(seconds * planned * (self._later + 1))
        about = "at most" if self.ends_early else "about"
        then = f", {about} {whole} for all {self._later + 1} epochs to come" if self._later else ""
        self.say(
            f"{'' if speed else f'{self._part} '}step {done} of {planned}, {speed}about "
            f"{duration(seconds * (planned - done))} left in this epoch's {self._part}{then}"
        )


def time_left(seconds: float, epochs: int, ends_early: bool, then: str = "") -> str:
    """Say how long a training still takes.

    Args:
        seconds: Of the last epoch.
        epochs: Number of epochs to come.
        ends_early: Whether the training may stop earlier.
        then: What follows the last epoch and takes time of its own.

    >>> time_left(60, 30, ends_early=True), time_left(0.1, 3, False, "the final validation")
    ('at most 30 min left', '1 s left, then the final validation')
    """
    if not epochs:
        return "the last epoch"
    # Not 0 s: an epoch is to come.
    left = f"{'at most ' if ends_early else ''}{duration(max(1, seconds * epochs))} left"
    return f"{left}, then {then}" if then else left
