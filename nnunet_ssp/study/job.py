"""Run a study's command: `python -m nnunet_ssp.study.job WORKFLOW RECORD [GPUS MACHINES THREADS] -- COMMAND`.

Only one process works in a run's folder at a time. An interrupted training is continued, the output of the command goes
to a log, and a record states that it is done. This module imports nothing heavy.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.lock import locked
from nnunet_ssp.launch import last_lines, run_logged
from nnunet_ssp.parallel import small_machine_environment
from nnunet_ssp.signals import ENDS, SAVES
from nnunet_ssp.study.gpus import Asked, on_gpus
from nnunet_ssp.study.record import read_record

SIGNALS = ".signals"  # file in the study's folder with the signals that its process received
TAIL = 15  # lines of a log that are shown when its command failed
SAVING = ("pretrain", "finetune")  # kinds of jobs whose command saves at SIGUSR1
DONE = {
    "pretrain": "pretrained",
    "finetune": "trained",
    "predict": "predicted",
    "evaluate": "evaluated",
}


def main(arguments: Sequence[str]) -> int:
    """Run the command of a record in the study's folder, unless another process just did.

    Returns:
        The exit status: that of the command, or 1 if it made nothing.
    """
    workflow, record, *more = arguments
    asked = Asked.read(more)
    content = read_json(workflow, dict)
    jobs = content["jobs"]
    job = jobs[record]
    Path(record).parent.mkdir(parents=True, exist_ok=True)
    # torchrun would end at a warning.
    signals = PassedOn(job["kind"] in SAVING and asked.machines < 2)
    # A command that outlived a killed study goes on to its end.
    waiting = f"{job['title']}: waits for another process that works on it"
    with locked(Path(record).parent, wait=math.inf, saying=waiting, watch=signals):
        # Snakemake removes the record before a job begins, so another process has written this one since.
        if read_record(Path(record)).get("key") == job["key"]:
            return 0
        signals()  # the study may have been asked to end since
        return _run(record, on_gpus(job, asked), jobs, content["environment"], signals)


class PassedOn:
    """Signals for the command: those sent to this process, and those that the study's process passed on.

    Args:
        saves: Whether the command saves at a warning; others would die of it.
    """

    def __init__(self, saves: bool) -> None:
        self.saves = saves
        written = self._written()
        self.read = len(written)
        # Earlier warnings were for others; an end that came while this process started is for it, too.
        self.received = [number for number in written if number in ENDS]
        if SAVES is not None:
            signal.signal(SAVES, lambda number, _: self.received.append(number))

    def __call__(self) -> int | None:
        """Return a signal to pass on to the command, or None.

        Raises:
            SystemExit: The study has been asked to end.
        """
        written = self._written()
        # A shorter file is that of another study, which has begun since.
        self.received += written[self.read if self.read <= len(written) else 0 :]
        self.read = len(written)
        number = self.received.pop(0) if self.received else None
        if number in ENDS:
            sys.exit(128 + number)
        return number if self.saves else None

    @staticmethod
    def _written() -> list[int]:
        try:
            return [int(word) for word in Path(SIGNALS).read_text(encoding="ascii").split()]
        except (OSError, ValueError):
            return []


def _run(
    record: str,
    job: dict[str, Any],
    jobs: dict[str, Any],
    shared: dict[str, str],
    signals: PassedOn,
) -> int:
    command = job["command"]
    # Interrupted, or finished except for the last validation and the record; outdated results were put away before.
    begun = (Path(file).is_file() for file in (job["latest"], job["makes"]) if job["latest"])
    if any(begun):
        command = job["resumed"]
    variables = (f"{name}={shlex.quote(value)}" for name, value in job["variables"].items())
    line = " ".join([*variables, shlex.join(command)])
    start = time.time()
    with open(job["log"], "ab", buffering=0) as log:
        log.write(f"\n$ {line}\n".encode())
        inherited = {**os.environ, **small_machine_environment(os.environ), **shared}
        status = run_logged(command, log, {**inherited, **job["variables"]}, signals)
    if status == 0 and not Path(job["makes"]).exists():
        print(f"{job['makes']} is missing: the command made nothing.", file=sys.stderr)
        status = 1
    if status != 0:
        tail = last_lines(Path(job["log"]), TAIL)
        print(f"FAILED: {job['title']}: {job['kind']}\n{tail}\nLog: {job['log']}", flush=True)
        return status if status > 0 else 1
    seconds = time.time() - start
    content = {
        "key": job["key"],
        "command": line,
        "seconds": round(seconds, 1),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": platform.node(),
    }
    write_json(record, content)
    n = sum(Path(other).is_file() for other in jobs)
    print(f"[{n}/{len(jobs)}] {job['title']}: {DONE[job['kind']]} in {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which also ends the command
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
