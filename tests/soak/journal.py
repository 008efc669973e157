"""Record of a soak: one JSON line per trial, so that a run continues where it stopped."""

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
    """Outcome of a trial.

    Attributes:
        outcome: `SURVIVED`, `LOST` (something was lost, wrong or unexplained) or `NOT_TRIED`.
        lost: Loss in words; for a survivor, the work that was done twice.
        detail: Course of events, to find the reason.
    """

    outcome: str
    lost: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        group: Row of the trial in the table.
        number: Number within the group; both together identify the trial for ever.
        run: Runs the trial.
    """

    group: str
    number: int
    run: Callable[[], Result]

    @property
    def key(self) -> str:
        return f"{self.group} {self.number}"


@dataclass
class Journal:
    """Finished trials, in a file."""

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
        """Run the trials that are not finished; an error of the trial itself counts as a loss."""
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
