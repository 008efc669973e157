"""Guard of a command: it passes signals on to it, and kills it with all that it started once its launcher has gone.

nnU-Net's workers would go on alone. The guard leads a process group of its own, to which the command belongs. Signals
go to the command alone: a training ends its workers itself, once it has saved. What is left after that is killed, too.

`python -I guard.py COMMAND...` runs a command that starts by itself, so this module imports the standard library alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) if os.name == "posix" else ()


def stand_guard(start: Callable[[], int], *channels: int) -> int:
    """Start a command and wait for its end.

    Args:
        start: Starts it and returns its process id; 0 in the process of a command that is a fork of this one.
        channels: Open files. When one of them closes, whoever holds its other end has gone: the group is killed. A byte
            that arrives is the number of a signal to pass on.

    Returns:
        The command's exit status, as a shell has it: 128 and the signal's number after a signal.
    """
    pid = 0
    ends = False
    early: list[int] = []  # signals that came while the command was being started

    def pass_on(number: int, _: object) -> None:
        nonlocal ends
        ends = ends or number != signal.SIGUSR1
        # SIGUSR1 asks to save. A command that has no handler yet, such as one that still imports, would die of it.
        if not pid:
            early.append(number)
        elif number != signal.SIGUSR1 or _handles(pid, number):
            os.kill(pid, number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    pid = start()
    if pid == 0:
        return 0
    for signaled in early:
        pass_on(signaled, None)
    for channel in channels:
        threading.Thread(target=_watch, args=(channel,), daemon=True).start()
    _, status = os.waitpid(pid, 0)
    if ends:
        os.killpg(0, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _watch(channel: int) -> None:
    main = threading.main_thread().ident
    assert main is not None
    with suppress(OSError):  # a launcher that was killed before it read all that it was sent
        while number := os.read(channel, 1):
            signal.pthread_kill(main, number[0])
    os.killpg(0, signal.SIGKILL)


def _handles(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal; True where the system does not tell."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return True
    return bool(int(caught, 16) >> (number - 1) & 1)


if __name__ == "__main__":
    started: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        """Run the words of this process as a command."""
        started.append(subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL))
        return started[0].pid

    os._exit(stand_guard(start, 0))
