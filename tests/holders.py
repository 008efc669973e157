"""Other processes that hold a folder's lock."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_ssp.files.lock import LOCK

HOLD = """
import sys
from pathlib import Path
from nnunet_ssp.files.lock import locked
with locked(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder until the block ends or it is told so by an end of its input."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        yield holder
        holder.kill()


def leave_lock(folder: Path, **changed: object) -> Path:
    """The lock of a process that was killed, or as if another machine's had it; returns the file.

    Another name alone makes no other machine: it has its own boot, too.
    """
    if "host" in changed:
        changed = {"boot": f"boot of {changed['host']}", **changed}
    with held(folder) as holder:
        content = json.loads((folder / LOCK).read_text())
        holder.kill()
        holder.wait()
    (folder / LOCK).write_text(json.dumps(content | changed))
    return folder / LOCK
