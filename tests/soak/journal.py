"""The record of a soak: one JSON line per trial, so that a run goes on where it was stopped."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

SURVIVED, LOST, NOT_TRIED = "survived", "lost", "not tried"


@dataclass
class Result:
    """How a trial ended.

    Attributes:
        outcome: `SURVIVED`, `LOST` (something was lost, wrong or unexplained) or `NOT_TRIED`.
        lost: What was lost in words, of a survivor the work that was done twice.
        detail: What happened, for whoever looks for the reason.
    """

    outcome: str
    lost: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        group: Its row in the table.
        number: Within the group; group and number name the trial for ever.
        run: What is done.
    """

    group: str
    number: int
    run: Callable[[], Result]

    @property
    def key(self) -> str:
        return f"{self.group} {self.number}"


@dataclass
class Journal:
    """The trials that are done, in a file."""

    file: Path
    done: dict[str, dict[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.is_file():
            for line in self.file.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # a kill in the middle of a line
                    continue
                self.done[entry["key"]] = entry

    def run(self, trials: Iterator[Trial]) -> None:
        """Run what is not done yet; an error of the trial itself is one of its outcomes."""
        for trial in trials:
            if trial.key in self.done:
                continue
            begun = time.monotonic()
            try:
                result = trial.run()
            except Exception as error:
                last = traceback.format_exc(limit=-3)
                result = Result(LOST, f"the trial failed ({type(error).__name__})", last)
            seconds = round(time.monotonic() - begun, 1)
            entry: dict[str, object] = {"key": trial.key, "group": trial.group, "seconds": seconds}
            entry |= asdict(result)
            self.done[trial.key] = entry
            with open(self.file, "a") as out:
                out.write(json.dumps(entry) + "\n")
            said = f": {result.lost}" if result.lost else ""
            print(f"{trial.key}: {result.outcome}{said} ({seconds:.0f} s)", flush=True)
