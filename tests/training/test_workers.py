from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

from nnunet_ssp.training import workers
from nnunet_ssp.training.workers import end_workers


class Hanging(Iterator[dict[str, Any]]):
    """Gives a batch, and does not answer from then on."""

    def __init__(self, hangs: bool) -> None:
        self.hangs, self.given, self.hanging = hangs, 0, multiprocessing.Event()

    def set_thread_id(self, number: int) -> None:
        """See batchgenerators."""

    def __next__(self) -> dict[str, Any]:
        self.given += 1
        if self.hangs and self.given > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.hanging.set()
            time.sleep(600)
        return {"n": self.given}


@pytest.mark.parametrize("hangs", [False, True])
def test_workers_end_also_where_they_hang(monkeypatch: pytest.MonkeyPatch, hangs: bool):
    monkeypatch.setattr(workers, "SECONDS", 1.0)
    source = Hanging(hangs)
    loader = NonDetMultiThreadedAugmenter(source, None, 1)
    assert next(loader)["n"] == 1
    (worker,) = loader._processes
    assert not hangs or source.hanging.wait(60)
    end_workers(loader, None)
    worker.join(60)
    assert worker.exitcode == (-signal.SIGKILL if hangs else 0)


def test_loaders_without_workers_are_closed():
    class Ours:
        closed = False

        def close(self) -> None:
            self.closed = True

    ours = Ours()
    end_workers(ours, iter([]), None)
    assert ours.closed
