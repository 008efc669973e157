"""Run the soak, or the rest of it: `python -m tests.soak`, as `make soak` does.

The outcome of every trial is one line of FOLDER/trials.jsonl; a second run continues after the last one. At the end the
table is printed and written into the page. The soak takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nnunet_ssp
from tests.soak import disks, fuzzing, kills, pairs, ranks, signals, steps, table
from tests.soak.base import make_base
from tests.soak.journal import LOST, Journal, Trial

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def groups(base: Path, work: Path, seed: int) -> dict[str, Callable[[], Iterator[Trial]]]:
    """Return the kinds of trials by the names of `--only`, in the order of running."""
    return {
        "kills": lambda: kills.trials(base, work, seed),
        "disks": lambda: disks.trials(base, work),
        "pairs": lambda: pairs.trials(base, work, seed),
        "signals": lambda: signals.trials(base, work),
        "ranks": lambda: ranks.trials(base, work),
        "steps": lambda: steps.trials(base, work),
        "fuzzer": lambda: fuzzing.trials(work, seed),
    }


def main() -> int:
    # A shell's background jobs ignore Ctrl-C, and so would all commands that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = list(groups(Path(), Path(), 0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "soak", help="of the record and the work"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--match", default="", help="only trials whose name holds this")
    parser.add_argument("--fresh", action="store_true", help="forget what was recorded")
    parser.add_argument("--page", type=Path, default=PAGE, help="with the two markers")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if given.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    base = work / "base" if given.only == ["fuzzer"] else make_base(work)
    journal = Journal(folder / "trials.jsonl")
    for name in given.only:
        trials = groups(base, work, given.seed)[name]()
        journal.run(trial for trial in trials if given.match in trial.key)
    entries = list(journal.done.values())
    seconds = sum(float(str(entry["seconds"])) for entry in entries)
    about = (
        f"nnunet-ssp {nnunet_ssp.__version__} ({commit()}), seed {given.seed}, {len(entries)} trials "
        f"in {seconds / 60:.0f} minutes."
    )
    print("\n".join([about, "", *table.rows(entries)]))
    table.write(given.page, entries, about)
    print(f"\n{given.page} has the table; {time.monotonic() - begun:.0f} s")
    return int(any(entry["outcome"] == LOST for entry in entries))


def commit() -> str:
    """Return the commit under trial, if git knows it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "no commit"
    except OSError:
        return "no commit"


if __name__ == "__main__":
    sys.exit(main())
