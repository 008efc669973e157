from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import get_context

from nnunet_ssp.distributed import rank
from nnunet_ssp.signals import ending_at_once, woken_by_signals
from nnunet_ssp.training.interruption import DEAD, Interruption
from tests.ranks import on_ranks

CPU = torch.device("cpu")
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_noted_and_the_handlers_are_restored(number):
    before = [signal.getsignal(n) for n in NUMBERS]
    with Interruption(lambda: "", CPU) as interruption:
        assert interruption.asked() == 0
        os.kill(os.getpid(), number)
        assert interruption.asked() == number
        # Saving is asked for once, the end stays asked for.
        assert interruption.asked() == (0 if number == signal.SIGUSR1 else number)
    assert [signal.getsignal(n) for n in NUMBERS] == before


def test_the_first_signal_that_ends_decides():
    with Interruption(lambda: "", CPU) as interruption:
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interruption.asked() == signal.SIGINT


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption(lambda: "", CPU) as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.asked() == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_installs_nothing():
    before, found = signal.getsignal(signal.SIGTERM), []

    def train() -> None:
        with Interruption(lambda: "", CPU) as interruption:
            found.append((signal.getsignal(signal.SIGTERM), interruption.asked()))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [(before, 0)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, None])
def test_workers_that_the_signal_ended_leave_no_traceback(number, monkeypatch):
    """A scheduler's SIGTERM reaches nnU-Net's workers, too; the thread that watches them then raises."""
    printed: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(str(args.exc_value)))
    dead = "One or more background workers are no longer alive. Exiting. Please check the print statements"

    def fail(message: str) -> None:
        raise RuntimeError(message)

    with Interruption(lambda: "", CPU):
        watching = threading.Thread(target=fail, args=(dead,))
        watching.start()
        if number is not None:
            os.kill(os.getpid(), number)
        watching.join()
        other = threading.Thread(target=fail, args=("another fault",))
        other.start()
        other.join()
    ended = number in (signal.SIGTERM, signal.SIGINT)
    assert printed == [*([] if ended else [dead]), "another fault"]
    source = find_spec("batchgenerators.dataloading.nondet_multi_threaded_augmenter")
    assert source is not None and source.origin is not None
    assert DEAD in Path(source.origin).read_text(encoding="utf-8")


@pytest.mark.parametrize("asked", [True, False])
def test_a_batch_that_a_worker_could_not_hand_over_leaves_no_traceback(asked, monkeypatch):
    """A worker that ends by the signal has announced a batch, but takes its memory with it."""
    printed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(args.exc_value))
    context = get_context("fork")
    queue: Any = context.Queue()
    worker = context.Process(target=announce, args=(queue,))
    worker.start()
    while queue.empty():
        time.sleep(0.01)
    worker.kill()
    worker.join()
    with Interruption(lambda: "", CPU):
        taking = threading.Thread(target=queue.get, args=(True, 60))
        taking.start()
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)
        taking.join()
    assert asked or isinstance(printed.pop(), (ConnectionError, FileNotFoundError))
    assert not printed


def announce(queue: Any) -> None:
    queue.put(torch.zeros(2))
    time.sleep(60)


def test_signals_are_heard_while_the_main_thread_waits():
    heard, event = [], threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with woken_by_signals(lambda number: (heard.append(number), event.set())):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert event.wait(10)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    head = "import os, signal, sys, time\nimport torch\nfrom nnunet_ssp import signals\n"
    head += "from nnunet_ssp.training import interruption\n"
    command = [sys.executable, "-c", head + code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_step_that_does_not_end_is_ended():
    code = """
interruption.GRACE = 0.2
with interruption.Interruption(lambda: "stuck; last good checkpoint X", torch.device("cpu")):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (143, "stuck; last good checkpoint X\n")


WORKER = """
with interruption.Interruption(lambda: "", torch.device("cpu")) as found:
    process = os.fork()
    if process == 0:
        open(sys.argv[1], "w").close()
        time.sleep(60)
        os._exit(0)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(process, number)
    print(os.waitpid(process, 0)[1], found.asked())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_worker_ends_with_sigterm_and_leaves_the_others_to_its_parent(tmp_path):
    done = run(WORKER, str(tmp_path / "begun"))
    assert done.stdout == f"{int(signal.SIGTERM)} 0\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to")
def test_a_forked_worker_ends_when_its_parent_is_killed(tmp_path):
    import psutil

    code = WORKER.replace('open(sys.argv[1], "w").close()', "print(os.getpid(), flush=True)")
    head = (
        "import os, signal, sys, time\nimport torch\nfrom nnunet_ssp.training import interruption\n"
    )
    command = [sys.executable, "-c", head + code, str(tmp_path / "never")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([worker], 20)
    assert not worker.is_running()


def test_work_that_saves_nothing_ends_at_once():
    code = """
with signals.ending_at_once(lambda: "validate with --val"):
    os.kill(os.getpid(), signal.SIGUSR1)  # there is nothing to save
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    done = run(code)
    assert (done.returncode, done.stdout) == (130, "SIGINT: validate with --val\n")
    assert done.stderr == ""
    with pytest.raises(SystemExit) as ended, ending_at_once(lambda: "never said"):
        sys.exit(3)
    assert ended.value.code == 3


def one_rank() -> list[int]:
    with Interruption(lambda: "", CPU) as interruption:
        answers = []
        for step in range(60):
            if rank() == 1 and step == 20:
                os.kill(os.getpid(), signal.SIGUSR1)
            if rank() == 0 and step == 40:
                os.kill(os.getpid(), signal.SIGTERM)
            answers.append(interruption.asked(now=step in (30, 59)))
            time.sleep(0.01)
        return answers


def test_ranks_agree_on_the_step_after_which_they_save_and_end(tmp_path: Path):
    first, second = on_ranks(one_rank, 2, tmp_path)
    assert first == second
    assert first.count(int(signal.SIGUSR1)) == 1
    assert first[-1] == signal.SIGTERM


KILLED: Any = """
import os, signal, sys
import torch
import torch.distributed as dist
from nnunet_ssp.distributed import ending_with_other_ranks
number = int(sys.argv[1])
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/rendezvous", rank=number, world_size=2)
with ending_with_other_ranks(lambda: "last good checkpoint X; continue with --c"):
    for step in range(100):
        if number == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(2))
"""


def test_a_killed_rank_ends_the_others_with_a_line(tmp_path: Path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, str(number), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in ranks]
    assert ranks[1].returncode == -signal.SIGKILL
    assert ranks[0].returncode == 1
    assert "Traceback" not in said[0]
    (line,) = [line for line in said[0].splitlines() if line.startswith("Rank 0")]
    assert line == (
        "Rank 0 ends, as another of the 2 ranks has gone. last good checkpoint X; continue with --c"
    )
