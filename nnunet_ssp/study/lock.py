"""One process at a time in a folder, also after the process that started it was killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path, waiting: str | None = None) -> Iterator[bool]:
    """Hold a folder's lock, which the system takes back however the process ends.

    Args:
        folder: Gets a file `.lock`.
        waiting: Printed when another process holds the lock, before waiting for it; None does not wait.

    Yields:
        Whether it is held: Windows and some file systems have no such locks.

    Raises:
        RuntimeError: Another process holds the lock, and `waiting` is None.
    """
    with open(folder / ".lock", "w") as stream:
        try:
            import fcntl
        except ImportError:
            yield False
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise RuntimeError(f"{folder} is in use by another process.") from None
            print(waiting, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
