"""A trainer that gives signs of life where it and nnU-Net log nothing for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssp.distributed import world_size
from nnunet_ssp.heartbeat import Heartbeat
from nnunet_ssp.reporting.wording import duration
from nnunet_ssp.training.pace import SECONDS

PREDICTING = "predicting "  # begins nnU-Net's line of each case of the final validation


class AliveTrainer(nnUNetTrainer):
    """An `nnUNetTrainer` whose log is never silent for long.

    Attributes:
        heartbeat: Gives the signs of life; None outside of `alive`.
        predicted: Cases whose prediction the log has announced.
        predicting: Time in s at which the first of them began, and the last.
    """

    heartbeat: Heartbeat | None = None
    predicted: int = 0
    predicting: tuple[float, float] = (0.0, 0.0)

    def print_to_log_file(self, *args: Any, **options: Any) -> None:
        """Log as nnU-Net does; count the cases of the final validation."""
        super().print_to_log_file(*args, **options)
        if self.heartbeat is not None:
            self.heartbeat.heard()
        if args and str(args[0]).startswith(PREDICTING):
            self.predicted += 1
            now = time.monotonic()
            self.predicting = (self.predicting[0] if self.predicted > 1 else now, now)

    @contextmanager
    def alive(self, what: Callable[[], str]) -> Iterator[Heartbeat]:
        """Log a line whenever nothing was logged for a while.

        Args:
            what: Returns what is being done, a gerund or where it is.
        """
        with Heartbeat(self.print_to_log_file, what, SECONDS + 1) as heartbeat:
            self.heartbeat = heartbeat
            try:
                yield heartbeat
            finally:
                self.heartbeat = None

    @contextmanager
    def alive_in_validation(self, n_cases: int) -> Iterator[None]:
        """Log how far the final validation is; a single case takes minutes on a CPU, and nnU-Net logs its beginning.

        Args:
            n_cases: Cases to predict, on all ranks.
        """
        self.predicted = 0
        own = -(-n_cases // world_size())  # rank 0 logs, and predicts so many

        def what() -> str:
            case = f"case {self.predicted} of {own}" if self.predicted else "before the first case"
            return f"in the final validation, {case}{self._cases_left(own)}"

        with self.alive(what):
            yield

    def _cases_left(self, n_cases: int) -> str:
        """Say how long the cases still take that are not predicted, once one is done."""
        first, last = self.predicting
        if self.predicted < 2 or last <= first:
            return ""
        each = (last - first) / (self.predicted - 1)
        ends = last + each * (n_cases - self.predicted + 1)
        return f", about {duration(max(1, ends - time.monotonic()))} left"
