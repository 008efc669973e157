"""Malformed inputs for every reader, the messages that they must give, and checks that all of them share.

An entry makes a small input in an empty folder and names what reads it. `trial` runs that in this process and
returns what is wrong with its end; nothing is wrong when

* the command exits with the entry's status and prints one of our errors, which names file and rule;
* it prints no traceback and no bare exception of a library, and no code of ours warns;
* nothing outside the paths that the entry names was opened for writing, created, renamed or removed, and what is
  there afterwards is whole;
* no process was started.

Whoever runs it must end a trial that hangs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from nnunetv2.utilities import utils

from nnunet_ssp.cli import main
from nnunet_ssp.console import run_command
from nnunet_ssp.files.lock import LOCK
from nnunet_ssp.launch import trainers_folder
from nnunet_ssp.preparation import fingerprints
from tests.faults.harness import Watch
from tests.malformed import checkpoints, dicoms, images, jsons, names, stores, tables, words, yamls
from tests.malformed.entry import Entry

# What Python and libraries keep for the next time, made at the first use in a process.
CACHES = ("__pycache__", "torchinductor", "/matplotlib")
SECONDS = 20  # no entry may take longer
CORPUS: tuple[Entry, ...] = (
    *images.ENTRIES,
    *dicoms.ENTRIES,
    *tables.ENTRIES,
    *jsons.ENTRIES,
    *yamls.ENTRIES,
    *checkpoints.ENTRIES,
    *stores.ENTRIES,
    *words.ENTRIES,
    *names.ENTRIES,
)

# An exception that is not ours, in a message.
BARE = re.compile(r"\b(?!NaN)[A-Z]\w*(Error|Exception|Warning)\b|Traceback")


STARTS = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system")


@dataclass
class Seen:
    """Changes of files and starts of processes, by Python's audit hook; C libraries escape it."""

    active: bool = False
    changed: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    watch: Watch = field(default_factory=lambda: Watch([]))

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active:
            self.changed += self.watch.changed_by(event, arguments)
            if event in STARTS:
                self.started.append(f"{event} {arguments[:1]}")


SEEN = Seen()
sys.addaudithook(SEEN.hook)  # for good: hooks cannot be removed


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    SEEN.changed, SEEN.started, SEEN.active = [], [], True
    try:
        yield SEEN
    finally:
        SEEN.active = False


def environment(root: Path) -> dict[str, str]:
    """nnU-Net's three folders below a folder, and few processes."""
    return {
        **{f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": str(trainers_folder()),
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "0",
        "nnUNet_npp": "1",
        "nnUNet_nps": "1",
        "nnUNet_compile": "f",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


@contextlib.contextmanager
def set_up(root: Path) -> Iterator[None]:
    """nnU-Net's folders, environment and arguments as a fresh process has them; all are taken back."""
    before, argv, place = dict(os.environ), sys.argv, Path.cwd()
    for name in ("raw", "preprocessed", "results", "here"):
        (root / name).mkdir(exist_ok=True)
    os.environ.pop("nnUNet_ssp_settings", None)
    os.environ.update(environment(root))
    sys.argv = ["nnunet-ssp"]
    os.chdir(root / "here")
    # nnU-Net forks twelve processes to list a folder, and draws 1e8 voxels, as we do.
    pool, utils.Pool = utils.Pool, ThreadPool
    samples, fingerprints.LABELLED_SAMPLES = fingerprints.LABELLED_SAMPLES, 1000
    try:
        yield
    finally:
        utils.Pool, fingerprints.LABELLED_SAMPLES = pool, samples
        os.chdir(place)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)


def run(reads: Sequence[str] | Callable[[], object]) -> tuple[int, str]:
    """Run a command or a function as our command line does; return its status and all that it printed."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module="nnunet_ssp")
        status = run_command(reads) if callable(reads) else main(list(reads))
    return status, printed.getvalue()


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Kind, size and time of every file."""
    found = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        regular = stat.S_ISREG(about.st_mode)
        found[str(path.relative_to(root))] = (
            stat.S_IFMT(about.st_mode),
            about.st_size if regular else 0,
            about.st_mtime_ns if regular else 0,
        )
    return found


def trial(entry: Entry, root: Path) -> list[str]:
    """Try an entry in an empty folder; return what is wrong with its end, nothing if all is right."""
    root = root.resolve()
    with set_up(root):
        reads = entry.make(root)
        before = snapshot(root)
        try:
            with watched() as seen:
                status, printed = run(reads)
        except SystemExit as ending:
            return [f"argparse ended it with {ending.code}"]
        except Exception as error:
            return [f"{type(error).__name__}: {error}"[:1000]]
    wrong = []
    if status != entry.exits:
        wrong.append(f"exit {status}, not {entry.exits}")
    if not re.search(entry.says, printed, re.DOTALL):
        wrong.append(f"does not say {entry.says!r}")
    if found := BARE.search(printed.replace(str(root), "")):
        wrong.append(f"says {found[0]}")
    wrong += [f"started {what}" for what in seen.started]
    wrong += _writes(entry, root, seen.changed, before)
    return [*wrong, f"printed: {printed[-1500:]}"] if wrong else []


def _writes(
    entry: Entry, root: Path, opened: Sequence[str], before: dict[str, tuple[int, int, int]]
) -> list[str]:
    """Paths that were written without leave, and files that are left in parts."""

    def allowed(path: str) -> bool:
        return entry.writes is not None and re.match(entry.writes, path) is not None

    after = snapshot(root)
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    wrong = [f"changed {path}" for path in changed if not allowed(path)]
    for path in opened:
        inside = os.path.relpath(os.path.realpath(os.path.join(root / "here", path)), root)
        if path.startswith(("/dev/", "/proc/")) or any(name in path for name in CACHES):
            continue
        if os.path.basename(path).startswith(LOCK):  # taken back, or it is among what changed
            continue
        if not allowed(inside):
            wrong.append(f"wrote {inside}")
    for path in changed:
        file = root / path
        if ".ssp-tmp" in path and file.exists():
            wrong.append(f"left {path}")
        converted = any(root.glob("raw/Dataset*/dataset.json"))  # a part of the subjects
        if entry.exits and not converted and ".ssp-keys" in path and file.exists():
            wrong.append(f"left {path}, a key to nothing")
        if path.endswith(".json") and file.is_file():
            try:
                json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                wrong.append(f"half of {path}")
    return list(dict.fromkeys(wrong))
