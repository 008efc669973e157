"""Worker processes for work on many files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import TypeVar

from nnunet_ssp.heartbeat import work

T = TypeVar("T")
R = TypeVar("R")

# Seconds in which a worker starts. Measured on two cores: 0.6 core-seconds with SciPy, 4.4 with PyTorch and nnU-Net.
LIGHT, WITH_NNUNET = 1.0, 4.4


class AtMost(int):
    """A number of workers that the user has not asked for: fewer start where more do not pay."""


def available_cores() -> int:
    """Return the number of cores that this process may use: on a cluster fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def number_of_workers(wanted: int | None = None) -> int:
    """Return the number of processes to start; a default is `AtMost` as many.

    Args:
        wanted: What the user asked for; by default `nnUNet_def_n_proc` where it is set, else one for each core, at
            most 8.

    Raises:
        ValueError: The number is below 1, or the variable holds none.
    """
    name, value = "workers", str(wanted)
    if wanted is None:
        name = "nnUNet_def_n_proc"
        value = os.environ.get(name) or str(min(8, available_cores()))
    if not (value.isascii() and value.isdecimal()) or int(value) < 1:
        raise ValueError(f"`{name}` (={value}) must be at least 1.")
    return AtMost(value) if wanted is None else wanted


def small_machine_environment(
    environment: Mapping[str, str], cores: int | None = None
) -> dict[str, str]:
    """Return settings of nnU-Net's processes and threads that suit the machine, where the user set none.

    nnU-Net starts 8 processes in some places and 3 + 3 in others, and each imports for five seconds. On few cores,
    threads that spin while they wait take the core from those that work: a training beside other processes was 8 times
    slower.

    Args:
        environment: The user's environment variables.
        cores: Number of CPU cores; None counts those available.

    Returns:
        The variables to add.
    """
    cores = cores or available_cores()
    suitable: dict[str, object] = {
        "nnUNet_def_n_proc": min(8, cores),
        "nnUNet_n_proc_DA": min(12, cores),
    }
    if cores <= 4:
        suitable |= {"nnUNet_npp": 1, "nnUNet_nps": 1, "OMP_WAIT_POLICY": "PASSIVE"}
    return {name: str(value) for name, value in suitable.items() if name not in environment}


def process(
    function: Callable[[T], R],
    items: Sequence[T],
    workers: int,
    label: str,
    unit: str,
    start: float = LIGHT,
) -> Iterator[R]:
    """Apply a function of a module to items in worker processes, with a progress bar.

    With one worker or one item it runs in this process. So do all items where `workers` is `AtMost` a number, until
    workers for the rest would pay.

    Args:
        function: Importable; what it raises is raised here.
        items: Values that can be pickled.
        workers: Most processes to start.
        label: Text of the progress bar.
        unit: Noun for an item.
        start: Seconds in which a worker starts and imports the function.

    Yields:
        The results, in the order of the items.

    Raises:
        concurrent.futures.process.BrokenProcessPool: A worker died.
    """
    from tqdm import tqdm

    with work(f"{label[:1].lower()}{label[1:]}"):
        results = _results(function, items, workers, start)
        yield from tqdm(results, total=len(items), desc=label, unit=unit, disable=not items)


def _results(
    function: Callable[[T], R], items: Sequence[T], workers: int, start: float
) -> Iterator[R]:
    took, done = 0.0, 0
    for item in items:
        left = len(items) - done
        asked = not isinstance(workers, AtMost)
        if min(workers, left) > 1 and (asked or _workers_pay(took, done, left, workers, start)):
            break
        begin = time.monotonic()
        result = function(item)
        took += time.monotonic() - begin
        done += 1
        yield result
    items = items[done:]
    if not items:
        return
    # Spawned, not forked: the caller may have threads, and a fork copies their locks as they are.
    with ProcessPoolExecutor(
        min(workers, len(items)), multiprocessing.get_context("spawn"), initializer=start_worker
    ) as pool:
        with _holding_ctrl_c():
            results = pool.map(function, items)  # starts the workers
        yield from results


def _workers_pay(took: float, done: int, left: int, workers: int, start: float) -> bool:
    """Whether workers save twice the time in which they start, judged by the items that are done.

    Args:
        took: Seconds of the items that are done, of which the first may also have imported libraries.
        done: Their number.
        left: Number of the other items.
        workers: Number of workers.
        start: Seconds in which a worker starts.
    """
    rest = left * max(0.0, took - LIGHT) / max(1, done)
    return rest * (1 - 1 / min(workers, left)) > 2 * start


@contextmanager
def _holding_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back while workers start, and from them: one that still imports would die of it with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_died(folder: Path) -> RuntimeError:
    """Return the error to raise for a `BrokenProcessPool`.

    Args:
        folder: The folder that the workers were writing; a second run must continue there.
    """
    return RuntimeError(
        f"{folder}: a worker process died, perhaps for lack of memory. Run the same command again with fewer "
        "processes (-np): it continues where it stopped."
    )


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it: a worker alone would wait forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch to one core for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
