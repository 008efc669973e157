"""Warm runner: one process that has imported PyTorch and nnU-Net's libraries, and forks for each command.

Most of a short command is imports, 5 core-seconds for nnU-Net's. A fork has them already. `study` and `demo` run their
commands in this way on Linux, on one machine; all else starts by itself, cold.

A fork does the same as a cold start, or none is made. The runner takes over folder and environment of its first command
before it imports anything, since libraries read variables when they are imported. A command with another folder, or
with other variables than nnU-Net's, starts cold. nnU-Net and this package read theirs anew: each command imports them
by itself. The runner never computes, so it has no threads and no CUDA that a fork would break; it checks both.

A command of the runner has a guard of its own, see `guard`: it ends with its launcher and with the runner.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType
from typing import IO, Any

from nnunet_ssp.guard import SIGNALS, stand_guard

VARIABLE = "NNUNET_SSP_WARM"  # names the runner's socket to the processes that start commands
ANEW = ("nnunetv2", "nnunet_ssp")  # packages that each command imports by itself
# What the commands import, by the modules that import it, and what these import only when they work.
PRELOADED = (
    "nnunetv2.run.run_training",
    "nnunetv2.inference.predict_from_raw_data",
    "dynamic_network_architectures.architectures.primus",  # of trainers among which nnU-Net looks for ours
    "torch._dynamo",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pandas",
    "scipy.ndimage",
    "scipy.spatial",
    "scipy.stats",
)
# Variables that Python, the loader and the C library have read before the first command comes.
OF_THE_START = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
# Leaves nothing in `__main__`, where the script of a command will run; takes no modules of the folder.
PROGRAM = (
    "import sys; sys.path[:] = filter(None, sys.path); del sys; "
    "exec(__import__('nnunet_ssp.warm', fromlist=['serve']).serve({}))"
)
STARTED = b"+"
SECONDS_TO_SEND = 10.0  # at most, for the launcher of a command
SECONDS_TO_CLOSE = 5.0  # at most, for a runner whose commands have ended
MEMORY_MB = 2000  # to be free, or commands start cold
NO_WARM = "--no-warm"
WARM_HELP = (
    "start each command by itself, not from one process with all libraries loaded, as on Linux"
)
SAID = (
    "Commands start from one process that has imported everything, which takes 0.6 GB of memory; "
    f"{NO_WARM} starts each by itself."
)


# -- starting commands -----------------------------------------------------------------------------


@contextmanager
def warm_runner(
    environment: Mapping[str, str],
    wanted: bool = True,
    say: Callable[[str], object] = lambda text: None,
) -> Iterator[bool]:
    """Keep a warm runner for the commands that this process and its children start within the block.

    It costs nothing before the first command comes. It ends with this process, and not before its last command.

    Args:
        environment: Environment variables of the commands.
        wanted: Whether to keep one.
        say: Called with a line on memory.

    Yields:
        Whether there is one: on Linux, with enough free memory.
    """
    wanted = wanted and sys.platform == "linux"
    if wanted and (free := _free_memory_mb()) < MEMORY_MB:
        say(f"Little memory is free ({free:.0f} MB), so each command starts by itself.")
        wanted = False
    if not wanted:
        yield False
        return
    place, runner = "", None
    try:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as listener:
            place = tempfile.mkdtemp(prefix="nnunet-ssp-")  # which nobody else may enter
            listener.bind(os.path.join(place, "warm"))
            listener.listen()
            fileno = listener.fileno()
            runner = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(fileno)],
                stdin=subprocess.PIPE,  # closes when this process ends
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: value for name, value in environment.items() if name != VARIABLE},
                pass_fds=[fileno],
                start_new_session=True,
            )
            os.environ[VARIABLE] = listener.getsockname()
            say(SAID)
        yield runner is not None
    finally:
        os.environ.pop(VARIABLE, None)
        if runner is not None:
            assert runner.stdin is not None
            runner.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                runner.wait(SECONDS_TO_CLOSE)
        # If the runner was killed; else it did this itself.
        shutil.rmtree(place, ignore_errors=True)


def _script(words: Sequence[str]) -> CodeType:
    """Compile a console script, named by the first word, as Python does: with none of this module's `__future__`."""
    return compile(Path(words[0]).read_bytes(), words[0], "exec", dont_inherit=True)


def _free_memory_mb() -> float:
    with suppress(OSError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1000
    return 0.0


class WarmCommand:
    """A command in a fork of the runner, with the methods of `subprocess.Popen` that its launcher needs."""

    returncode: int | None = None

    def __init__(self, guard: socket.socket) -> None:
        self._guard = guard

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit status.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        if self.returncode is None:
            if not select.select([self._guard], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("", timeout or 0)
            said = b""
            with suppress(OSError):
                said = self._guard.recv(1)
            self.returncode = said[0] if said else -int(signal.SIGKILL)
            self._guard.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Ask the guard to pass a signal on."""
        with suppress(OSError):
            self._guard.sendall(bytes([number]))

    def close(self) -> None:
        """Make the guard kill what still runs, as it does when this process ends."""
        if self.returncode is None:
            with suppress(OSError):
                self._guard.shutdown(socket.SHUT_WR)


def start_warm(
    words: Sequence[str], log: IO[bytes], environment: Mapping[str, str]
) -> WarmCommand | None:
    """Start a command in a fork of the runner.

    Args:
        words: Its words; the first is the path of a console script of this Python environment.
        log: File for its output.
        environment: Its environment variables.

    Returns:
        The command; None if it must start cold, because there is no runner or it has refused.
    """
    name = Path(words[0]).name
    if VARIABLE not in os.environ or not (name == "nnunet-ssp" or name.startswith("nnUNetv2_")):
        return None
    guard = socket.socket(socket.AF_UNIX)
    try:
        with suppress(OSError, SyntaxError, ValueError):
            _script(words)  # a wrapper in another language starts cold
            order = json.dumps(
                {"words": words, "environment": dict(environment), "folder": os.getcwd()}
            )
            guard.connect(os.environ[VARIABLE])
            socket.send_fds(guard, [f"{len(order)}\n".encode()], [log.fileno()])
            guard.sendall(order.encode())
            if guard.recv(1) == STARTED:
                return WarmCommand(guard)
    except BaseException:
        guard.close()
        raise
    guard.close()
    return None


# -- the runner ------------------------------------------------------------------------------------


def serve(descriptor: int) -> CodeType:
    """Fork a guard and a command for each order that arrives, until the standard input closes.

    Args:
        descriptor: The open socket that listens.

    Returns:
        The script of a command, in the command's process: to be run as `__main__`, so that its errors, its exit status
        and the workers that it spawns are as after a cold start.
    """
    listener = socket.socket(fileno=descriptor)
    runner, held = os.pipe()  # closes when this process ends
    first: dict[str, Any] = {}
    while 0 not in select.select([0, listener], [], [])[0]:
        try:
            launcher, _ = listener.accept()
        except OSError:  # it has gone, or no more files may be open
            continue
        order, log = _receive(launcher)
        if not first and log >= 0 and _starts_alike(order):
            first = order
            _preload(order)
        while _forget_child(os.WNOHANG):
            pass
        if log >= 0 and _differs_little(order, first) and _has_one_thread() and _forks():
            os.close(held)
            listener.close()
            return _guarded(order, log, launcher, runner)
        launcher.close()
        if log >= 0:
            os.close(log)
    shutil.rmtree(os.path.dirname(listener.getsockname()), ignore_errors=True)
    listener.close()
    while _forget_child():
        pass
    os._exit(0)


def _receive(launcher: socket.socket) -> tuple[dict[str, Any], int]:
    """Read an order and the log, an open file; -1 if they do not come."""
    launcher.settimeout(SECONDS_TO_SEND)
    logs: list[int] = []
    try:
        head, logs, _, _ = socket.recv_fds(launcher, 32, 1)
        length, _, text = head.partition(b"\n")
        while len(text) < int(length) and (more := launcher.recv(int(length) - len(text))):
            text += more
        launcher.settimeout(None)
        return json.loads(text), logs[0]
    except (OSError, ValueError, IndexError):
        for log in logs:
            os.close(log)
        return {}, -1


def _forget_child(options: int = 0) -> bool:
    """Wait for the end of a guard; return whether there may be others."""
    try:
        return os.waitpid(-1, options)[0] != 0
    except ChildProcessError:
        return False


def _starts_alike(order: Mapping[str, Any]) -> bool:
    """Return whether Python and the loader would start a command as they have started this process."""

    def read(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(OF_THE_START)}

    return read(order["environment"]) == read(os.environ)


def _differs_little(order: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Return whether a command differs from the first one in its words and nnU-Net's variables alone."""

    def shared(order: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        variables = order["environment"].items()
        return order["folder"], {n: value for n, value in variables if not n.startswith("nnUNet_")}

    return bool(first) and shared(order) == shared(first)


def _preload(order: Mapping[str, Any]) -> None:
    """Import all libraries in the folder and the environment of a command; end if they leave no process to fork."""
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for name in PRELOADED:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in ANEW]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # so that collections in forks leave what is shared alone
    import numexpr
    import torch

    # Two libraries start idle threads when they are imported. NumExpr ends them when asked, OpenBLAS at the first fork.
    numexpr.set_num_threads(1)
    if (child := os.fork()) == 0:
        os._exit(torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork())
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("CUDA was started")


def _forks() -> bool:
    """Fork; return whether this is the new process. If there cannot be one, others that run must not end for it."""
    with suppress(OSError):
        return os.fork() == 0
    return False


def _has_one_thread() -> bool:
    return len(os.listdir("/proc/self/task")) == 1


# -- a command -------------------------------------------------------------------------------------


def _guarded(order: Mapping[str, Any], log: int, launcher: socket.socket, runner: int) -> CodeType:
    """Start a command and guard it; return its script in its own process alone."""
    os.setsid()
    script: list[CodeType] = []

    def start() -> int:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if pid == 0:
            launcher.close()
            os.close(runner)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            script.append(_become(order, log))
        else:
            with suppress(OSError):  # a launcher that has gone; the guard sees that, too
                launcher.sendall(STARTED)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    status = stand_guard(start, launcher.fileno(), runner)
    if script:
        return script[0]
    with suppress(OSError):
        launcher.sendall(bytes([status]))
    os._exit(0)


def _become(order: Mapping[str, Any], log: int) -> CodeType:
    """Give this process what Python gives a script that it starts, and return the script."""
    import numexpr
    import numpy as np
    import torch

    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.environ.clear()
    os.environ.update(order["environment"])
    words = order["words"]
    script = str(words[0])
    sys.argv[:] = words
    if not getattr(sys.flags, "safe_path", False):  # Python 3.11
        sys.path.insert(0, os.path.dirname(script))
    vars(sys.modules["__main__"]).update(__file__=script, __cached__=None)
    numexpr.set_num_threads(numexpr.nthreads)
    # Else each command would draw the same numbers; Python's own generator is seeded at each fork.
    np.random.seed()
    torch.default_generator.seed()
    return _script(words)
