"""Harness that runs our commands in a process that is killed at its N-th change of a file, or after some seconds.

One server imports everything once and forks a child for each run, so that a run costs no more than its work. In the
child an audit hook of Python counts changes of files: opening for writing, renaming, linking, removing, making folders.
It kills the process with SIGKILL before a given change, and notes changes outside the folders that may change.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILLS = int(os.environ.get("NNUNET_SSP_KILLS", "3"))  # of each command; `make soak` sets more
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ROOT = Path(__file__).parents[2]
# Position of the folders, open ones, to which the paths at the beginning are relative; and how many paths there are.
FOLDER_OF = {
    "os.rename": (2, 2),
    "os.link": (2, 2),
    "os.remove": (1, 1),
    "os.rmdir": (1, 1),
    "os.mkdir": (2, 1),
}
HARMLESS = ("/dev/", "/proc/")


# -- in the server ---------------------------------------------------------------------------------


@dataclass
class Watch:
    """Count a process's changes of files and kill it before one of them."""

    allowed: Sequence[str]
    # Number of the change at which it is killed; 0: never.
    kill_at: int = 0
    count: int = 0
    outside: list[str] = field(default_factory=list)
    process: int = field(default_factory=os.getpid)

    def changed_by(self, event: str, arguments: tuple[Any, ...]) -> list[str]:
        """Return the files that an audit event is about to change."""
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            paths = [path] if changes else []
            folders = [-1]
        elif event in FOLDER_OF:
            first, n = FOLDER_OF[event]
            paths, folders = list(arguments[:n]), list(arguments[first : first + n])
        else:
            return []
        return [
            os.path.abspath(os.path.join(_place(folder), os.fsdecode(os.fspath(path))))
            for path, folder in zip(paths, folders, strict=False)
            if not isinstance(path, int)
        ]

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an event of `sys.addaudithook`, except in children that nnU-Net forks."""
        if os.getpid() != self.process:
            return
        for path in self.changed_by(event, arguments):
            if path.startswith(HARMLESS):
                continue
            if not path.startswith(tuple(self.allowed)):
                self.outside.append(f"{event} {path}")
                continue
            self.count += 1
            if self.count == self.kill_at:
                os.kill(self.process, signal.SIGKILL)


def _place(folder: int) -> str:
    return "" if folder < 0 else os.readlink(f"/proc/self/fd/{folder}")


def _child(order: dict[str, Any]) -> int:
    """Run one command in this process, which has just been forked."""
    os.environ.update(order["environment"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w")
    sys.argv = ["nnunet-ssp", *order["command"]]
    if order["seconds"]:
        kill = threading.Timer(order["seconds"], os.kill, (os.getpid(), signal.SIGKILL))
        kill.daemon = True
        kill.start()
    watch = Watch(order["allowed"], order["kill_at"])
    sys.addaudithook(watch)
    from nnunet_ssp.cli import main

    try:
        status = main(order["command"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 99
    watch.process = 0
    Path(order["log"] + ".json").write_text(
        json.dumps({"events": watch.count, "outside": watch.outside})
    )
    sys.stdout.flush()
    return status


def serve() -> None:
    """Fork a child for each order, a line of JSON on the standard input; answer with its exit status."""
    from multiprocessing.pool import ThreadPool
    from types import SimpleNamespace

    import nnunetv2.utilities.utils
    import torch
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor

    from nnunet_ssp.dataset_conversion import mnms  # noqa: F401

    # nnU-Net forks a dozen processes for what takes a thread a moment here, and draws 1e8 voxels.
    nnunetv2.utilities.utils.Pool = ThreadPool
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    fingerprint_extractor.multiprocessing = threads
    real = fingerprint_extractor.DatasetFingerprintExtractor.run

    def run(self: Any, overwrite_existing: bool = False) -> Any:
        self.num_foreground_voxels_for_intensitystats = 1e5
        return real(self, overwrite_existing)

    fingerprint_extractor.DatasetFingerprintExtractor.run = run
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(_child(json.loads(line)))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


# -- in the test -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """End of a run; a killed run reports no events."""

    status: int
    said: str
    events: int
    outside: list[str]


@dataclass
class Harness:
    """Run our commands in a server's children."""

    server: subprocess.Popen[str]

    def run(
        self, base: Path, command: Sequence[object], kill_at: int = 0, seconds: float = 0.0
    ) -> Done:
        """Run a command whose nnU-Net folders are those in `base`.

        Args:
            base: Folder of nnUNet_raw and the others, outside which the command may change nothing.
            command: Words after `nnunet-ssp`.
            kill_at: Number of the change of a file, from 1, before which to kill; 0 for none.
            seconds: Seconds after which to kill; 0 for none.
        """
        for name in FOLDERS:
            (base / name).mkdir(parents=True, exist_ok=True)
        log = base / "log.txt"
        report = Path(f"{log}.json")
        report.unlink(missing_ok=True)
        order = {
            "environment": {name: str(base / name) for name in FOLDERS},
            "log": str(log),
            "command": [str(word) for word in command],
            "seconds": seconds,
            "allowed": [str(base / name) for name in FOLDERS],
            "kill_at": kill_at,
        }
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(order), file=self.server.stdin, flush=True)
        status = int(self.server.stdout.readline())
        counted = {"events": 0, "outside": []}
        if report.is_file():
            counted = json.loads(report.read_text())
        return Done(status, log.read_text(), **counted)


@contextmanager
def harness() -> Iterator[Harness]:
    """Run a server for the duration of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", "from tests.faults.harness import serve; serve()"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield Harness(server)
        server.kill()


def tree(base: Path) -> dict[str, bytes]:
    """Return every file below nnU-Net's folders, hidden ones included; a store's index without times of writing."""
    found = {}
    for name in FOLDERS:
        for file in sorted((base / name).rglob("*")):
            if file.is_file():
                content = file.read_bytes()
                if file.name == "index.json":
                    index = json.loads(content)
                    for entry in index["cases"].values():
                        entry["stored"] = [stamp[:2] for stamp in entry["stored"]]
                    content = json.dumps(index).encode()
                found[str(file.relative_to(base))] = content
    return found


def is_nnunets(name: str) -> bool:
    """Whether a file lies where nnU-Net or the slice store would take it for a case."""
    folder = Path(name).parent.name
    return folder.startswith(("images", "labels", "gt_", "nnUNetPlans_")) and not name.endswith(
        "index.json"
    )


def survives_kills(
    harness: Harness,
    start: Path,
    work: Path,
    command: Sequence[object],
    kills: int,
    seed: int,
    check: Callable[[Path], None] = lambda base: None,
) -> None:
    """Kill a command at seeded places; a second run must end as if nothing had happened.

    Args:
        harness: Harness that runs the command.
        start: Folder of nnU-Net's folders before the command; copied for each run.
        work: An empty folder.
        command: Words after `nnunet-ssp`.
        kills: Number of kills.
        seed: Seed of the places.
        check: Further checks of a killed run's folders.
    """
    whole = _copy(start, work / "whole")
    done = harness.run(whole, command)
    assert done.status == 0, done.said
    assert done.outside == [], done.outside
    expected = tree(whole)
    rng = random.Random(seed)
    for number in range(kills):
        base = _copy(start, work / f"killed{number}")
        place = rng.randint(1, done.events)
        killed = harness.run(base, command, kill_at=place)
        where = f"{' '.join(map(str, command))}, killed before change {place} of {done.events}"
        assert killed.status == -signal.SIGKILL, f"{where}: {killed.status}\n{killed.said}"
        for name, content in tree_of_nnunets(base).items():
            assert expected.get(name) == content, f"{where}: {name} is half-written, or no case"
        check(base)
        again = harness.run(base, command)
        # Killed after its last file: convert does not touch what is finished.
        finished = "a finished dataset" in again.said
        assert again.status == 0 or finished, f"{where}\n{again.said}"
        assert again.outside == [], (where, again.outside)
        found = tree(base)
        assert sorted(found) == sorted(expected), where
        assert [name for name in expected if found[name] != expected[name]] == [], where
        shutil.rmtree(base)


def tree_of_nnunets(base: Path) -> dict[str, bytes]:
    """Return the files that nnU-Net takes for cases."""
    files = (file for name in FOLDERS for file in (base / name).rglob("*") if file.is_file())
    names = {str(file.relative_to(base)): file for file in files}
    return {
        name: file.read_bytes()
        for name, file in names.items()
        if is_nnunets(name) and ".ssp-tmp" not in name
    }


def _copy(start: Path, target: Path) -> Path:
    for name in FOLDERS:
        if (start / name).is_dir():
            shutil.copytree(start / name, target / name)
    return target
