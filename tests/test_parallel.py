from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from nnunet_ssp import parallel
from nnunet_ssp.parallel import (
    LIGHT,
    WITH_NNUNET,
    AtMost,
    available_cores,
    number_of_workers,
    one_thread,
    process,
    small_machine_environment,
    worker_died,
)


def test_the_number_of_processes_is_nnunets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_def_n_proc", "3")
    assert number_of_workers() == 3
    assert number_of_workers(5) == 5
    monkeypatch.delenv("nnUNet_def_n_proc")
    monkeypatch.setattr(parallel, "available_cores", lambda: 2)
    assert number_of_workers() == 2
    monkeypatch.setattr(parallel, "available_cores", lambda: 64)
    assert number_of_workers() == 8


@pytest.mark.parametrize("wanted", [0, -2])
def test_too_few_processes_are_refused(wanted: int):
    with pytest.raises(ValueError, match=rf"`workers` \(={wanted}\) must be at least 1"):
        number_of_workers(wanted)


@pytest.mark.parametrize("value", ["0", "many", "\u0664"])
def test_a_wrong_variable_is_refused(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("nnUNet_def_n_proc", value)
    with pytest.raises(ValueError, match=rf"`nnUNet_def_n_proc` \(={value}\) must be at least 1"):
        number_of_workers()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinities")
def test_cores_are_those_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cores() == len(allowed)


def test_small_machines_get_few_workers():
    assert small_machine_environment({}, cores=2) == {
        "nnUNet_def_n_proc": "2",
        "nnUNet_n_proc_DA": "2",
        "nnUNet_npp": "1",
        "nnUNet_nps": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    big = {"nnUNet_def_n_proc": "8", "nnUNet_n_proc_DA": "12"}
    assert small_machine_environment({}, cores=64) == big
    assert small_machine_environment(big, cores=64) == {}
    assert small_machine_environment({"nnUNet_npp": "3"}, cores=4).get("nnUNet_npp") is None


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers: int):
    items = [range(5_000_000), range(10), range(3)]  # the first takes longest
    assert list(process(sum, items, workers, "sum", "range")) == [sum(item) for item in items]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_function_are_raised(workers: int):
    results = process(math.sqrt, [4.0, -1.0, 9.0], workers, "root", "number")
    assert next(results) == 2
    with pytest.raises(ValueError):
        next(results)


def test_one_item_needs_no_process():
    assert list(process(lambda _: os.getpid(), ["x"], 8, "", "")) == [os.getpid()]


def test_a_dead_worker_is_an_error():
    with pytest.raises(BrokenProcessPool):
        list(process(os._exit, [1, 1], 2, "", ""))


def test_the_error_of_a_dead_worker_names_folder_and_way_out(tmp_path: Path):
    error = worker_died(tmp_path)
    assert str(error).startswith(f"{tmp_path}: a worker process died")
    assert "-np" in str(error) and "continues where it stopped" in str(error)


def test_no_items_show_no_progress(capsys: pytest.CaptureFixture[str]):
    assert list(process(math.sqrt, [], 2, "root", "number")) == []
    assert capsys.readouterr().err == ""
    assert list(process(math.sqrt, [4.0], 2, "root", "number")) == [2]
    assert "1/1" in capsys.readouterr().err


def process_of(_: object) -> int:
    return os.getpid()


def test_few_items_need_no_process_unless_one_asks():
    here = [os.getpid()] * 6
    assert list(process(process_of, range(6), number_of_workers(), "", "")) == here
    assert list(process(process_of, range(6), AtMost(8), "", "")) == here
    asked = number_of_workers(2)
    assert os.getpid() not in list(process(process_of, range(2), asked, "", ""))


def test_workers_take_over_what_takes_long(monkeypatch: pytest.MonkeyPatch):
    """The first items are done here, so that it is known how long one takes; none is lost or done twice."""
    now = itertools.count(step=10.0)  # each item takes ten seconds
    monkeypatch.setattr(parallel.time, "monotonic", lambda: next(now))
    made = list(process(number_and_process, range(20), AtMost(2), "", "", start=11.0))
    assert [number for number, _ in made] == [*range(20)]
    assert [pid == os.getpid() for _, pid in made] == [True] + [False] * 19


def number_and_process(number: int) -> tuple[int, int]:
    return number, os.getpid()


@pytest.mark.parametrize(
    ("took", "done", "left", "workers", "start", "pays"),
    [
        (0.0, 0, 1000, 8, LIGHT, False),  # nothing is known yet
        (LIGHT, 1, 1000, 8, LIGHT, False),  # imports may have taken all of it
        (2.0, 10, 30, 2, LIGHT, False),  # 3 s for the rest
        (2.0, 10, 90, 2, LIGHT, True),  # 9 s, of which two workers save half
        (8.8, 80, 20, 8, WITH_NNUNET, False),  # 120 frames of a short study
        (8.8, 80, 920, 2, WITH_NNUNET, True),
        (64.4, 1, 9, 8, WITH_NNUNET, True),  # a minute each
        (64.4, 1, 1, 8, WITH_NNUNET, False),  # no other process would do the last one sooner
    ],
)
def test_workers_pay_where_they_save_twice_their_start(took, done, left, workers, start, pays):
    assert parallel._workers_pay(took, done, left, workers, start) is pays


SLEEPERS = """
import os, pathlib, time
from nnunet_ssp.parallel import process
def sleep(folder):
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(60)
if __name__ == "__main__":
    list(process(sleep, ["."] * 2, 2, "", ""))
"""


def test_workers_end_with_a_killed_parent(tmp_path: Path):
    (tmp_path / "sleepers.py").write_text(SLEEPERS)
    (tmp_path / "pids").mkdir()
    command = [sys.executable, str(tmp_path / "sleepers.py")]
    parent = subprocess.Popen(command, cwd=tmp_path / "pids", stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
    workers = [int(file.name) for file in (tmp_path / "pids").iterdir()]
    assert all(map(is_running, workers))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(map(is_running, workers)))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A worker that has ended but whose new parent has not asked yet still has its number.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def blocked_signals(_: int) -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_ctrl_c_is_held_back_from_workers_from_their_first_line():
    """One that still imports would show a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    found = list(parallel.process(blocked_signals, [1, 2, 3], 2, "Looking", "number"))
    assert all(signal.SIGINT in masks for masks in found)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_pytorch_gets_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
