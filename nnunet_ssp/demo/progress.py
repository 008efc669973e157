"""Progress bar of the demo, over steps of very different length."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

SECONDS_BETWEEN_LINES = 20  # where the output is no terminal, which shows a bar

# Share of each step in the progress bar: about its seconds on two cores.
WEIGHTS = {
    "phantom": 10,
    "convert": 10,
    "prepare": 20,
    "pretrain": 270,
    "finetune": 150,
    "scratch": 150,
    "predict_finetune": 25,
    "predict_scratch": 25,
}


class ProgressBar:
    """Progress bar over all steps; printed lines go above it.

    Args:
        total: Sum of the steps' weights.
        clock: Returns the time in seconds.
    """

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        from tqdm import tqdm

        self._clock = clock
        self._done = 0.0
        # Whether what is shown next was done by an earlier call, which tells nothing about the time left.
        self._earlier = False
        self._said = clock()
        self._bar = tqdm(
            total=total,
            disable=None,  # no bar where the output is no terminal
            bar_format="{percentage:3.0f}% |{bar}| {elapsed}, about {remaining} left  {desc}",
        )
        self._bar.initial = 0.0  # a bar that is not shown has none

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        """Print above the bar."""
        self._said = self._clock()
        self._bar.write(text)
        sys.stdout.flush()

    def goes_on(self) -> None:
        """Take the next part that is shown as done by an earlier call."""
        self._earlier = True

    def show(self, name: str, part: float, last: str = "") -> None:
        """Name the running step, of which `part` (0 to 1) is done; of other steps, show the last line of the log."""
        if part and self._earlier:
            self._bar.initial += WEIGHTS[name] * part
            self._earlier = False
        step = f"{name} {part:.0%}" if part else name
        self._bar.set_description_str(step, refresh=False)
        self._bar.n = self._done + WEIGHTS[name] * part
        self._bar.refresh()
        if self._bar.disable and self._clock() - self._said >= SECONDS_BETWEEN_LINES:
            words = f": {last}" if last and not part else ""
            self.say(f"  {step}, {self._bar.n / self._bar.total:.0%} of the demo{words}")

    def finish(self, name: str) -> None:
        """Count a step as done."""
        self.show(name, 1)
        self._done += WEIGHTS[name]
