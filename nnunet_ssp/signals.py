"""Signals of the operating system: what they mean to our commands, and how to receive them at any time."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM)  # the second is the more urgent
SAVES = getattr(signal, "SIGUSR1", None)  # Windows has none


@contextmanager
def woken_by_signals(call: Callable[[int], None]) -> Iterator[None]:
    """Call a function in a thread for each signal that has a handler, even while the main thread waits."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with suppress(OSError):
            while number := reader.recv(1):
                threading.Thread(target=call, args=(number[0],), daemon=True).start()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.shutdown(socket.SHUT_WR)  # forked workers also have it open
        thread.join()
        writer.close()
        reader.close()


@contextmanager
def ending_at_once(say: Callable[[], str]) -> Iterator[None]:
    """End with the exit status of the signal, from wherever it meets the block; for work that has nothing to save.

    Args:
        say: Returns the line to print then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with ExitStack() as stack:
        for number in (*ENDS, SAVES):
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                stack.callback(signal.signal, number, signal.getsignal(number))
                signal.signal(number, end if number in ENDS else signal.SIG_IGN)
        try:
            yield
        except SystemExit as error:
            if error.code in [128 + number for number in ENDS]:
                print(f"{signal.Signals(int(error.code) - 128).name}: {say()}", flush=True)
            raise
