"""Run a console script in this process and kill it, with all that it started, at its N-th change of a file.

    python -m tests.soak.killed N FOLDER COUNT PROGRAM ARGUMENT...

Only changes below FOLDER count: opening for writing, renaming, removing, making folders. With N = 0 the script runs to
its end. The number of changes is then written to the file COUNT.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import entry_points
from typing import Any

from tests.faults.harness import Watch


def main() -> None:
    number, folder, count, name, *arguments = sys.argv[1:]
    last, root, seen = int(number), os.path.realpath(folder), 0
    watch = Watch([root])

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal seen
        for path in watch.changed_by(event, values):
            if path.startswith(root):
                seen += 1
                if seen == last:
                    os.killpg(0, signal.SIGKILL)

    (script,) = entry_points(group="console_scripts", name=name)
    function = script.load()
    sys.argv = [name, *arguments]
    sys.addaudithook(hook)
    try:
        sys.exit(function())
    finally:
        last = 0
        with open(count, "w") as out:
            out.write(str(seen))


if __name__ == "__main__":
    main()
