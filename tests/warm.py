"""Console scripts in forks of a process that has their libraries: as a user runs them, without seconds of imports.

nnU-Net and this package are imported anew by each script, since they read the environment while they are imported.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 800  # the longest that a script may run


def serve() -> None:
    """Fork for each order, a line of JSON on the standard input; answer with the exit status of its script."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nnU-Net prints while it is imported
    import nnunetv2.inference.predict_from_raw_data
    import nnunetv2.run.run_training  # noqa: F401
    import numpy as np

    for name in [name for name in sys.modules if name.split(".")[0] in ("nnunetv2", "nnunet_ssp")]:
        del sys.modules[name]
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            np.random.seed()  # else each script would draw the same numbers
            run_script(json.loads(line))
            return
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def run_script(order: Mapping[str, Any]) -> None:
    """Become the process of a script: errors and the exit status leave it in Python's own way."""
    signal.alarm(SECONDS)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # As Python starts: without the folder of `-c`.
    added = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [*added, *(place for place in sys.path if place)]
    sys.argv = order["words"]
    runpy.run_path(sys.argv[0], run_name="__main__")


class Scripts:
    """Run console scripts of this Python environment in the server's children.

    Args:
        server: Process that runs `serve`.
        log: File for what a script prints.
    """

    def __init__(self, server: subprocess.Popen[str], log: Path) -> None:
        self.server = server
        self.log = log

    def run(self, *words: object, folder: Path | None = None, **environment: str) -> str:
        """Return all that a script prints; it must end well.

        Args:
            words: Name of the script, and its arguments.
            folder: Folder to run in; this process's by default.
            environment: Variables in addition to this process's.
        """
        program, *arguments = map(str, words)
        order = {
            "words": [str(Path(sys.executable).with_name(program)), *arguments],
            "environment": {**os.environ, **environment},
            "folder": str(folder or Path.cwd()),
            "log": str(self.log),
        }
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(order), file=self.server.stdin, flush=True)
        status = self.server.stdout.readline().strip()
        said = self.log.read_text()
        assert status == "0", f"{words}\n{said[-4000:]}"
        return said


@contextmanager
def scripts(folder: Path) -> Iterator[Scripts]:
    """Run a server for the duration of the block; scripts print to a file in `folder`."""
    with subprocess.Popen(
        [sys.executable, "-c", "from tests.warm import serve; serve()"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield Scripts(server, folder / "log.txt")
        server.kill()
