"""Commands of the warm runner, beside the same commands after a cold start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunet_ssp import launch, warm
from nnunet_ssp.launch import run_logged
from nnunet_ssp.warm import VARIABLE, WarmCommand, start_warm, warm_runner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the runner forks on Linux alone"),
]

# What a script may find out about its process, as JSON.
SCRIPT = """
import sys

warm = "torch" in sys.modules
import json, multiprocessing, os, signal, threading


def work(number: int):
    return number * 2, os.environ["nnUNet_results"], sys.argv


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.map(work, [21])
    import random
    import numpy as np
    import torch
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.paths import nnUNet_results

    main = sys.modules["__main__"]
    handlers = [str(signal.getsignal(n)) for n in range(1, 32)]
    same = {
        "spawned": spawned,
        "arguments": sys.argv,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": os.umask(0o22),
        "main": [main.__name__, main.__file__, str(main.__spec__), sorted(vars(main))],
        "path": sys.path,
        "input": sys.stdin.read(),
        "terminal": sys.stdout.isatty(),
        "write_through": sys.stdout.write_through,
        "handlers": handlers,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "leads": os.getpgid(0) == os.getppid() == os.getsid(0),
        "processes": default_num_processes,
        "results": str(nnUNet_results),
        "threads": torch.get_num_threads(),
        "python threads": threading.active_count(),
        "annotations": str(work.__annotations__),
        "open": sorted(int(n) for n in os.listdir("/proc/self/fd") if int(n) < 3),
    }
    drawn = [random.random(), np.random.rand(), torch.rand(1).item()]
    with open(os.path.join(str(nnUNet_results), "found.json"), "w") as file:
        json.dump({"same": same, "drawn": drawn, "warm": warm}, file)
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    added = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return {n: v for n, v in os.environ.items() if not n.startswith("nnUNet_")} | added


@pytest.fixture(scope="module")
def runner(environment: dict[str, str]) -> Iterator[None]:
    with warm_runner(environment) as there:
        assert there
        yield


def script(folder: Path, text: str) -> str:
    """Write a script with the name of a command."""
    file = folder / "nnUNetv2_script"
    file.write_text(f"#!{sys.executable}\n{text}")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """Run a script as a command, and return its exit status and its log."""
    monkeypatch.setattr(launch, "find_command", lambda name: name)

    def run(text: str, *arguments: str, **options: Any) -> tuple[int, str]:
        with open(tmp_path / "log", "wb") as log:
            words = [script(tmp_path, text), *arguments]
            status = run_logged(words, log, environment | options.pop("more", {}), **options)
        return status, (tmp_path / "log").read_text()

    return run


def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)


def test_a_warm_command_is_as_a_cold_one(run, runner, tmp_path, monkeypatch):
    """All that a script sees is equal; what it draws without a seed is not."""

    def found() -> dict[str, Any]:
        more = {"nnUNet_results": str(tmp_path), "nnUNet_def_n_proc": "3"}
        status, said = run(SCRIPT, "7", "a b", more=more)
        assert status == 0, said
        return json.loads((tmp_path / "found.json").read_text())

    warm, again = found(), found()
    cold(monkeypatch)
    other = found()
    assert (warm["warm"], again["warm"], other["warm"]) == (True, True, False)
    assert warm["same"] == again["same"] == other["same"]
    assert warm["same"]["processes"] == 3
    assert warm["same"]["spawned"][0][0] == 42
    for one, two in zip(warm["drawn"], again["drawn"], strict=True):
        assert one != two


def test_two_commands_at_once_write_into_two_folders(runner, environment, tmp_path):
    name = script(tmp_path, SCRIPT)
    commands = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        more = {"nnUNet_results": str(folder), "nnUNet_def_n_proc": str(number)}
        with open(folder / "log", "wb") as log:
            commands.append(start_warm([name], log, environment | more))
    for number, command in enumerate(commands, 1):
        assert isinstance(command, WarmCommand)
        assert command.wait(60) == 0, (tmp_path / str(number) / "log").read_text()
        same = json.loads((tmp_path / str(number) / "found.json").read_text())["same"]
        assert (
            same["results"] == same["environment"]["nnUNet_results"] == str(tmp_path / str(number))
        )
        assert same["processes"] == number


@pytest.mark.parametrize(
    ("text", "status", "end"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("import sys; sys.exit('no luck')", 1, "no luck\n"),
        ("import os; os.kill(os.getpid(), 9)", 137, ""),
        ("import atexit; atexit.register(print, 'bye'); 1 / 0", 1, "by zero\nbye\n"),
        (
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
            0,
            "late\n",
        ),
    ],
)
def test_a_command_ends_as_after_a_cold_start(run, runner, monkeypatch, text, status, end):
    results = [run(f"import sys; print('torch' in sys.modules)\n{text}")]
    cold(monkeypatch)
    results.append(run(f"import sys; print('torch' in sys.modules)\n{text}"))
    for (found, said), was_warm in zip(results, (True, False), strict=True):
        assert found == status
        assert said.startswith(f"{was_warm}\n")
        # The runner's one line above a script's in a traceback.
        said = said.replace('  File "<string>", line 1, in <module>\n', "")
        assert said.endswith(end)
        assert "nnunet_ssp" not in said
    logs = [said.partition("\n")[2] for _, said in results]
    assert logs[0].replace('  File "<string>", line 1, in <module>\n', "") == logs[1]


def test_what_a_fork_could_not_take_over_starts_cold(runner, environment, tmp_path, monkeypatch):
    name = script(tmp_path, "")
    with open(os.devnull, "wb") as log:

        def is_warm(words: list[str], environment: dict[str, str]) -> bool:
            command = start_warm(words, log, environment)
            assert command is None or command.wait(60) == 0
            return command is not None

        assert is_warm([name], environment)
        assert is_warm([name], environment | {"nnUNet_raw": "/elsewhere"})
        assert not is_warm([name], environment | {"OMP_NUM_THREADS": "2"})
        assert not is_warm([name], {**environment, "CUDA_VISIBLE_DEVICES": "1"})
        assert not is_warm([sys.executable, "-c", ""], environment)
        monkeypatch.chdir(tmp_path)
        assert not is_warm([name], environment)
        monkeypatch.undo()
        assert is_warm([name], environment)
        monkeypatch.setenv(VARIABLE, str(tmp_path / "gone"))
        assert not is_warm([name], environment)
        monkeypatch.delenv(VARIABLE)
        assert not is_warm([name], environment)


SLEEPS = """
import os, signal, sys, time

if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, lambda *_: (print("asked"), sys.exit(143)))
child = os.fork()
if child == 0:
    time.sleep(600)
with open(sys.argv[1], "w") as pipe:
    # This process, its child, its guard, the runner.
    pids = [os.getpid(), child, os.getppid()]
    with open(f"/proc/{pids[-1]}/stat") as stat:
        pids.append(int(stat.read().rpartition(")")[2].split()[1]))
    print(*pids, file=pipe)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(*pids: int) -> None:
    end = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert [pid for pid in pids if is_running(pid)] == []


@pytest.fixture
def sleeping(tmp_path: Path, environment: dict[str, str]):
    """Start a command that sleeps beside its child; return it with the four processes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def start(*arguments: str) -> tuple[WarmCommand, list[int]]:
        with open(tmp_path / "log", "wb") as log:
            command = start_warm(
                [script(tmp_path, SLEEPS), str(pipe), *arguments], log, environment
            )
        assert command is not None
        with open(pipe) as end:
            return command, [int(word) for word in end.readline().split()]

    return start


def test_the_runner_has_no_threads(sleeping, runner):
    command, (*processes, server) = sleeping()
    assert os.listdir(f"/proc/{server}/task") == [str(server)]
    command.close()
    assert command.wait(20) == -signal.SIGKILL
    wait_until_gone(*processes)
    assert is_running(server)


def test_signals_are_passed_on(sleeping, runner, tmp_path):
    command, processes = sleeping("handles")
    command.send_signal(signal.SIGUSR1)  # kept from a command that has no handler
    with pytest.raises(subprocess.TimeoutExpired):
        command.wait(0.3)
    command.send_signal(signal.SIGTERM)
    command.wait(20)
    assert (tmp_path / "log").read_text() == "asked\n"
    wait_until_gone(*processes[:3])


def test_an_interruption_ends_a_command_and_its_children(run, runner, tmp_path):
    """As after a cold start: it is asked, and what is left is killed."""
    file = tmp_path / "pids"

    def watch() -> None:
        if file.is_file() and (words := file.read_text().split()):
            pids.extend(map(int, words))
            raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(SLEEPS, str(file), "handles", watch=watch)
    wait_until_gone(*pids[:3])
    assert (tmp_path / "log").read_text() == "asked\n"


LOCKS = """
import sys, time
from pathlib import Path

from nnunet_ssp.files.lock import locked

with locked(Path(sys.argv[1])):
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w") as pipe:
            print("held", file=pipe)
        time.sleep(600)
print("had it")
"""


def test_a_killed_command_gives_its_lock_back(run, runner, environment, tmp_path):
    """The lock names its command; while that runs another is refused, and afterwards the next one takes it."""
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(pipe)
    with open(os.devnull, "wb") as log:
        command = start_warm([script(tmp_path, LOCKS), str(folder), str(pipe)], log, environment)
    assert command is not None
    assert pipe.read_text() == "held\n"
    status, said = run(LOCKS, str(folder))
    assert status == 1
    assert f"is in use by `nnUNetv2_script {folder} {pipe}`" in said
    command.close()
    assert command.wait(20) == -signal.SIGKILL
    assert run(LOCKS, str(folder)) == (0, "had it\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_long_order_arrives(run, runner, size):
    """Many words and variables, in bytes that are not UTF-8, too."""
    words = ["é\udcff" * 10_000] * 10 if size > 1 else ["é"]
    text = f"import os, sys; print('torch' in sys.modules, sys.argv[1:] == {words!r}, len(os.environ['nnUNet_x']))"
    size = min(size, 100_000)  # the system's limit for one variable
    assert run(text, *words, more={"nnUNet_x": "x" * size}) == (0, f"True True {size}\n")


def test_a_wrapper_in_another_language_starts_cold(run, runner, tmp_path, environment, monkeypatch):
    file = tmp_path / "nnUNetv2_wrapper"
    file.write_text("#!/bin/sh\necho hello $1\n")
    file.chmod(0o755)
    with open(tmp_path / "log", "wb") as log:
        assert start_warm([str(file)], log, environment) is None
        assert run_logged([str(file), "you"], log, environment) == 0
    assert (tmp_path / "log").read_text() == "hello you\n"


def test_a_runner_that_cannot_fork_goes_on(monkeypatch):
    """Else all commands that run would end with it."""

    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    assert not warm._forks()


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_commands_end_with_a_runner_that_is_killed(environment, sleeping, run, number):
    with warm_runner(environment):
        command, (*processes, server) = sleeping()
        os.kill(server, number)
        wait_until_gone(*processes)
        assert command.wait(20) == -signal.SIGKILL
        # The next ones start cold.
        assert run("import sys; print('torch' in sys.modules)") == (0, "False\n")


@pytest.mark.heavy
def test_a_command_outlives_a_study_that_is_killed(environment, sleeping, monkeypatch):
    """The runner waits for it, and leaves nothing behind."""
    code = f"""
import os, time
from nnunet_ssp.warm import warm_runner
with warm_runner(dict(os.environ)):
    print(os.environ[{VARIABLE!r}], flush=True)
    time.sleep(600)
"""
    keeper = [sys.executable, "-c", code]
    with subprocess.Popen(keeper, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        place = process.stdout.readline().strip()
        monkeypatch.setenv(VARIABLE, place)
        command, processes = sleeping()
        process.kill()
    end = time.monotonic() + 20
    while Path(place).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(place).parent.exists()
    assert all(map(is_running, processes))
    command.close()
    assert command.wait(20) == -signal.SIGKILL
    wait_until_gone(*processes)


def test_there_is_a_runner_only_where_it_is_safe_and_wanted(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)  # of the other tests' runner
    free_memory = warm._free_memory_mb
    with warm_runner({}, wanted=False) as there:
        assert not there and VARIABLE not in os.environ
    monkeypatch.setattr(warm, "_free_memory_mb", lambda: 1000.0)
    said: list[str] = []
    with warm_runner({}, say=said.append) as there:
        assert not there
    assert said == ["Little memory is free (1000 MB), so each command starts by itself."]
    monkeypatch.setattr(warm, "_free_memory_mb", free_memory)
    assert warm._free_memory_mb() > 0
    monkeypatch.setattr(sys, "platform", "darwin")
    with warm_runner({}) as there:
        assert not there
