from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from nnunet_ssp import guard

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups and signals of POSIX")


def guarded(code: str, **options: int) -> subprocess.Popen[str]:
    """Start a Python program under a guard, as `launch.run_logged` does."""
    return subprocess.Popen(
        [sys.executable, "-I", guard.__file__, sys.executable, "-uc", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
        **options,
    )


def test_it_imports_the_standard_library_alone():
    nodes = ast.walk(ast.parse(Path(guard.__file__).read_text()))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert names <= sys.stdlib_module_names
    assert "nnunet_ssp" not in names


@pytest.mark.parametrize(
    ("code", "status"),
    [("", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_exit_status_is_that_of_a_shell(code, status):
    with guarded(code) as process:
        assert process.wait() == status


def test_a_byte_is_a_signal_and_a_closed_channel_the_end():
    """The number arrives as a signal; what the command started is killed with it."""
    child = "import time; print('child', flush=True); time.sleep(600)"
    code = f"""
import signal, subprocess, sys
signal.signal(signal.SIGUSR1, lambda *_: print("saved"))
subprocess.run([sys.executable, "-c", {child!r}])
"""
    with guarded(code) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "child\n"
        process.stdin.write(chr(signal.SIGUSR1))
        process.stdin.flush()
        assert process.stdout.readline() == "saved\n"
        process.stdin.close()
        assert process.wait() == -signal.SIGKILL
        assert process.stdout.read() == ""  # the child had it open, too


# A guard whose command sleeps; `early` runs while the command is being started.
SLEEPER = """
import os, signal, subprocess, sys, time
sys.path.insert(0, {folder!r})
from guard import stand_guard

def start():
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    {early}
    return sleeper.pid

os._exit(stand_guard(start, *map(int, sys.argv[1:])))
"""


def sleeper(early: str) -> list[str]:
    code = SLEEPER.format(folder=str(Path(guard.__file__).parent), early=early)
    return [sys.executable, "-Ic", code]


def status_of(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_signal_that_comes_while_the_command_is_being_started_ends_it():
    words = sleeper("os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1)")
    with subprocess.Popen(words, start_new_session=True) as process:
        assert status_of(process) == -signal.SIGKILL  # with its group, once the command has ended


def test_a_launcher_that_is_killed_before_it_has_read_all_ends_the_command():
    """The system then reports an error in place of the end."""
    ours, theirs = socket.socketpair()
    words = [*sleeper("os.write(int(sys.argv[1]), b'+')"), str(theirs.fileno())]
    with subprocess.Popen(words, pass_fds=[theirs.fileno()], start_new_session=True) as process:
        theirs.close()
        assert ours.recv(1, socket.MSG_PEEK) == b"+"
        ours.close()
        assert status_of(process) == -signal.SIGKILL


def test_a_warning_is_kept_from_a_command_without_a_handler():
    with guarded("import sys, time; print('here'); time.sleep(0.5)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait() == 0
