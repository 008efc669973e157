"""The end of nnU-Net's data loading: workers that hang do not keep a training from ending."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from typing import Any

# A scheduler kills about 30 s after its signal. nnU-Net gives each of its two loaders 10 s and a second for each
# worker, and Python then waits for ever for one that heeds no SIGTERM, as while a network drive does not answer.
SECONDS = 5.0


def end_workers(*loaders: Any) -> None:
    """End the processes and threads of loaders; kill workers that have not ended after `SECONDS`.

    Args:
        loaders: nnU-Net's augmenters, loaders of ours, which have `close`, or others, which have nothing to end.
    """
    workers = [worker for loader in loaders for worker in getattr(loader, "_processes", ())]
    killing = threading.Timer(SECONDS, _kill, [workers])
    killing.daemon = True
    killing.start()
    try:
        for loader in loaders:
            end = getattr(loader, "_finish", None) or getattr(loader, "close", None)
            if end is not None:
                end()
    finally:
        killing.cancel()
        _kill(workers)


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()
