"""Signals that ask a training to end or to save: noted on arrival, heeded between steps.

SIGTERM and SIGINT (Ctrl-C) end it with exit status 143 and 130. SIGUSR1, a scheduler's warning, only saves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import Any

import torch

from nnunet_ssp.distributed import max_over_ranks, world_size
from nnunet_ssp.signals import ENDS, SAVES, woken_by_signals

GRACE = 25.0  # seconds for the current step; a scheduler kills after 30
BETWEEN_AGREEMENTS = 2.0  # seconds between exchanges among ranks
DEAD = "background workers are no longer alive"  # batchgenerators' message
LOST = (
    EOFError,
    ConnectionError,
    FileNotFoundError,
)  # of a batch that an ended worker was handing over
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

_installed: list[Interruption] = []  # those that are active in this process


class Interruption:
    """Note signals while its block runs in the main thread of a process; do nothing in other threads.

    No handler writes or saves anything: the caller asks between steps. If a step does not end in time, for example
    because another rank has ended, the process ends without it.

    Args:
        stuck: Returns the line to print in that case.
        device: Device on which ranks exchange their signals.
    """

    def __init__(self, stuck: Callable[[], str], device: torch.device) -> None:
        # The signal that ends the training, 0 before it comes.
        self.number = 0
        self._stuck = stuck
        self._device = device
        self._saves = False
        self._heeded = threading.Event()
        self._stack = ExitStack()
        self._next, self._asked, self._since = 1, 0, time.monotonic()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (*ENDS, SAVES):
                if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
                    continue  # as under nohup
                self._stack.callback(signal.signal, number, signal.getsignal(number))
                signal.signal(number, self._note)
            self._stack.enter_context(woken_by_signals(self._end_if_stuck))
            self._stack.callback(setattr, threading, "excepthook", threading.excepthook)
            threading.excepthook = partial(self._of_thread, threading.excepthook)
            _installed.append(self)
            self._stack.callback(_installed.remove, self)
        return self

    def __exit__(self, *_: object) -> None:
        self._heeded.set()
        self._stack.close()

    def _note(self, number: int, _: FrameType | None) -> None:
        if number in ENDS:
            self.number = self.number or number
        else:
            self._saves = True

    def _of_thread(
        self, before: Callable[[threading.ExceptHookArgs], Any], args: threading.ExceptHookArgs
    ) -> None:
        """Print a thread's traceback, but for nnU-Net's of workers that a signal to the whole group has ended."""
        dead = isinstance(args.exc_value, RuntimeError) and DEAD in str(args.exc_value)
        if not (dead or isinstance(args.exc_value, LOST)):
            before(args)
            return
        for _ in range(10):  # the signal may reach this process after its workers
            if self.number:
                return
            time.sleep(0.05)
        before(args)

    def _end_if_stuck(self, number: int) -> None:
        if number in ENDS and not self._heeded.wait(GRACE):
            print(self._stuck(), file=sys.stderr, flush=True)
            os._exit(128 + number)

    def asked(self, now: bool = False) -> int:
        """Return the signal to heed, 0 for none, the same on all ranks; these must ask equally often.

        Args:
            now: Whether the ranks exchange their signals in this call in any case.
        """
        saves = int(SAVES) if SAVES is not None and self._saves else 0
        found = self.number or saves
        if world_size() > 1:
            self._asked += 1
            if self._asked < self._next and not now:
                return 0
            order = (0, int(SAVES or -1), *map(int, ENDS))  # the last is the most urgent
            seconds = (time.monotonic() - self._since) / self._asked
            mine = torch.tensor([order.index(found), seconds], device=self._device)
            urgency, seconds = max_over_ranks(mine).tolist()
            found = order[round(urgency)]
            # At most doubled: steps to come may be longer.
            self._next = max(
                1, min(50, 2 * self._next, int(BETWEEN_AGREEMENTS / max(seconds, 1e-3)))
            )
            self._asked, self._since = 0, time.monotonic()
        if found in ENDS:
            self.number = found
            self._heeded.set()
        elif found:
            self._saves = False
        return found


def _in_forked_worker() -> None:
    """Make a worker of a training end on SIGTERM or with its parent, and leave other signals to the parent."""
    if not _installed:
        return
    _installed.clear()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, SAVES):
        if number is not None:
            signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        library: Any = ctypes.CDLL(None)
        library.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_worker)
