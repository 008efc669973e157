"""The rows of the table: each function measures one thing."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssp.bench.counting import Floor, LiveBytes
from nnunet_ssp.bench.memory import resident
from nnunet_ssp.bench.place import (
    NARROW,
    PLANS,
    STOCK,
    Bench,
    both_clocks,
    core_seconds,
    in_turns,
    ratio,
)
from nnunet_ssp.methods.base import Method
from nnunet_ssp.methods.parts.chunks import eager
from nnunet_ssp.nnunet import environment, quiet
from nnunet_ssp.parallel import one_thread, start_worker
from nnunet_ssp.slices.drawing import SliceStore, batch_indices
from nnunet_ssp.slices.store import StoredCase, write_index
from nnunet_ssp.training.precision import has_bf16

CHUNK = 64  # images in the network at a time where memory is measured
GROWTH_BATCH = 64
SLICES_PER_CASE = 10
# What is compared on a GPU: `precision`, and whether torch.compile is used.
GPU_WAYS = {
    f"{precision}{', compiled' if compiled else ''}": (precision, compiled)
    for precision in ("fp32", "fp16", "bf16")
    for compiled in (False, True)
}
Make = Callable[..., tuple[Tensor, Tensor]]  # Method.make_views


@contextmanager
def make_views_with(method: Method, make: Make) -> Iterator[None]:
    """Let a method take its views from another function inside the block."""
    method.make_views = make  # type: ignore[method-assign]
    try:
        yield
    finally:
        del method.make_views


def fixed_views(method: Method) -> Make:
    """Make a `make_views` that makes the views of each set of parameters once, and keeps them on the device."""
    make, made = method.make_views, dict[bytes, tuple[Tensor, Tensor]]()

    def views(slices: Tensor, sizes: Tensor, views: Any, patch: tuple[int, int]) -> Any:
        key = b"".join(column.numpy().tobytes() for column in vars(views).values())
        if key not in made:
            made[key] = make(slices, sizes, views, patch)
        return made[key]

    return views


def method_row(
    bench: Bench, method: str, rates: dict[str, dict[str, float]], seconds: float
) -> dict[str, Any]:
    """Measure the speed of a method: compute alone, end to end, against the floor and against nnU-Net's data loader.

    Args:
        bench: Where it is measured.
        method: Its name.
        rates: Results of `device_rates` by precision; missing ones are measured and added.
        seconds: Approximate seconds for each of the four.
    """
    with bench.pretraining(method, batch=bench.workload.batch) as trainer:
        found = speed(trainer, 2 * seconds)
        dtype = trainer.autocast_dtype or torch.float32
        if str(dtype) not in rates:
            rates[str(dtype)] = device_rates(bench.device, dtype)
        step = trainer.batch_size / found["compute_images_per_s"]
        found["fraction_of_floor"] = floor_seconds(trainer, **rates[str(dtype)]) / step
        found |= views_over_stock(bench, trainer, seconds)
    return found


def from_host(bench: Bench, method: str, seconds: float) -> dict[str, Any]:
    """Measure `speed` end to end with the slices on the host, read ahead, as on a GPU that cannot hold them.

    Returns:
        The metrics of `speed`, under names that begin with `host_`.
    """
    with bench.pretraining(method, batch=bench.workload.batch, data_device="host") as trainer:
        found = speed(trainer, seconds)
    return {f"host_{name}": found[name] for name in found if name.startswith("end_to_end")}


def ways_to_compute(
    bench: Bench, method: str, ways: Mapping[str, tuple[str, bool]], seconds: float
) -> dict[str, dict[str, float]]:
    """Measure the training step, with its data, in several precisions, compiled and not.

    Args:
        bench: Where it is measured.
        method: Its name.
        ways: Name of each way, setting `precision` and whether torch.compile is used.
        seconds: Approximate seconds for all.

    Returns:
        By way: `images_per_s`, and on CUDA `peak_memory_bytes`.
    """
    found: dict[str, dict[str, float]] = {}
    cuda = bench.device.type == "cuda"
    for name, (precision, compiled) in ways.items():
        with (
            environment(nnUNet_compile=str(compiled)),
            bench.pretraining(method, batch=bench.workload.batch, precision=precision) as trainer,
        ):
            if cuda:
                torch.cuda.reset_peak_memory_stats(bench.device)
            work = partial(_steps, trainer, 5 if cuda else 1)
            took = in_turns({name: work}, bench.device, seconds / len(ways))[name]
            images = trainer.batch_size * (5 if cuda else 1)
            found[name] = {"images_per_s": images / statistics.median(took)}
            if cuda:
                peak = torch.cuda.max_memory_allocated(bench.device)
                found[name]["peak_memory_bytes"] = float(peak)
    return found


def speed(trainer: Any, seconds: float) -> dict[str, Any]:
    """Measure the training step with views fixed on the device, and with slice store and views.

    On the CPU their ratio is the smaller of two. Core-seconds do not count the time that the process waits for its
    slices, and the wall clock does not count work that another core takes over.
    """
    cuda = trainer.device.type == "cuda"
    steps = 5 if cuda else 1
    batch, fixed = next(trainer.dataloader_train), fixed_views(trainer.method)

    def compute() -> None:
        with make_views_with(trainer.method, fixed):
            for _ in range(steps):
                trainer.train_step(batch)

    def end_to_end() -> None:
        for _ in range(steps):
            trainer.train_step(next(trainer.dataloader_train))

    works = {"compute": compute, "end_to_end": end_to_end}
    took = in_turns(works, trainer.device, seconds, clock=both_clocks)
    alone, loaded = (np.array(took[name]).T for name in works)
    name = "end_to_end_over_compute"
    by_clock = [ratio(name, a, b) for a, b in zip(alone, loaded, strict=True)]
    smaller = min(by_clock, key=lambda found: found[name])
    # Core-seconds of the CPU are shared by all its threads.
    images = steps * trainer.batch_size * (1 if cuda else torch.get_num_threads())
    per_second = images / float(np.median(alone[0]))
    return {
        "batch_size": trainer.batch_size,
        "compute_images_per_s": per_second,
        "end_to_end_images_per_s": per_second * smaller[name],
        **smaller,
    }


def floor_seconds(trainer: Any, flops_per_s: float, bytes_per_s: float) -> float:
    """Compute the least time of a training step with fixed views, see `counting.Floor`."""
    batch, fixed = next(trainer.dataloader_train), fixed_views(trainer.method)
    with make_views_with(trainer.method, fixed), eager():
        trainer.train_step(batch)
        with Floor(flops_per_s, bytes_per_s) as floor:
            trainer.train_step(batch)
    return floor.seconds


def device_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure the peak rates of the device, the best of several trials.

    Returns:
        `flops_per_s` of a large matrix product or convolution, whichever is faster, and `bytes_per_s` of a copy.
    """
    large = device.type == "cuda"
    n, channels, size = (8192, 512, 64) if large else (2048, 256, 32)
    a = torch.randn(n, n, device=device, dtype=dtype)
    x = torch.randn(16, channels, size, size, device=device, dtype=dtype)
    convolution = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    source = torch.zeros(2**30 if large else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    works: dict[str, Callable[[], object]] = {
        "product": lambda: a @ a,
        "convolution": lambda: convolution(x),
        "copy": lambda: target.copy_(source),
    }
    with torch.no_grad():
        took = {name: min(rounds) for name, rounds in in_turns(works, device, 2.0).items()}
    cores = 1 if large else torch.get_num_threads()
    flops = {"product": 2 * n**3, "convolution": 2 * 9 * channels * x.numel()}
    return {
        "flops_per_s": cores * max(flops[name] / took[name] for name in flops),
        "bytes_per_s": cores * 2 * len(source) / took["copy"],
    }


def calls_of_make_views(trainer: Any) -> list[tuple[Any, ...]]:
    """Record the arguments of every call of `make_views` in a step."""
    made: list[tuple[Any, ...]] = []
    make = trainer.method.make_views

    def record(*arguments: Any) -> tuple[Tensor, Tensor]:
        made.append(arguments)
        return make(*arguments)

    with make_views_with(trainer.method, record), torch.no_grad():
        trainer.validation_step(next(trainer.dataloader_train))
    return made


def number_of_views(calls: Sequence[tuple[Any, ...]], patch_size: tuple[int, int]) -> float:
    """Count the different views among the calls of `calls_of_make_views`, by their pixels in whole patches.

    Views that student and teacher both compute count once.
    """
    pixels = {v.matrix.numpy().tobytes(): len(v) * np.prod(patch) for _, _, v, patch in calls}
    return float(sum(pixels.values()) / np.prod(patch_size))


def views_over_stock(bench: Bench, trainer: Any, seconds: float) -> dict[str, Any]:
    """Compare the views per core-second of the method's data path with those of nnU-Net's data loader.

    nnU-Net's loader has the same patch, and the augmentation of de Mooij et al., or none for methods without one.
    """
    calls, make = calls_of_make_views(trainer), trainer.method.make_views
    views = number_of_views(calls, trainer.method.patch_size)

    def ours() -> None:
        next(trainer.dataloader_train)
        for arguments in calls:
            make(*arguments)

    augments = getattr(trainer.settings, "augment", True)
    stock = bench.trainer(f"{STOCK}Scratch{'Cine' if augments else 'NoDA'}")
    with quiet():
        loader, _ = stock.get_dataloaders()
    batches = max(1, round(8 / stock.batch_size))

    def theirs() -> None:
        for _ in range(batches):
            next(loader)

    with one_thread():
        took = in_turns({"ours": ours, "theirs": theirs}, bench.device, seconds, clock=core_seconds)
    factor = views / (batches * stock.batch_size)
    return ratio("views_over_stock_loader", took["theirs"], took["ours"], factor)


# -- memory ----------------------------------------------------------------------------------------


def peak_memory(bench: Bench, method: str, batch: int | None = None) -> tuple[int, int]:
    """Measure the bytes on the device at the peak of a training step: weights, optimiser, slices, activations.

    Returns:
        The slices in the step, and the bytes.
    """
    with bench.pretraining(method, NARROW, batch, chunk_size=CHUNK) as trainer:
        trainer.train_step(next(trainer.dataloader_train))  # makes the optimiser's state
        slices = next(trainer.dataloader_train)
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
            trainer.train_step(slices)
            return trainer.batch_size, torch.cuda.max_memory_allocated(bench.device)
        trainer.optimizer.zero_grad(set_to_none=True)
        states = [x for state in trainer.optimizer.state.values() for x in state.values()]
        held = [*trainer.method.parameters(), *trainer.method.buffers(), *states, slices.slices]
        with LiveBytes() as live:
            trainer.train_step(slices)
        there = sum(x.untyped_storage().nbytes() for x in held if isinstance(x, Tensor))
        return trainer.batch_size, live.peak + there


def growth(numbers: Sequence[int], device: torch.device) -> dict[str, dict[str, Any]]:
    """Measure opening and reading stores of different lengths, from sparse files on the host.

    Returns:
        By number of slices: `open_s`, `grown_bytes` (see the function), `stored_bytes`, and `batch_over_first`, the
        time to read a batch over that of the first store.
    """
    found: dict[str, dict[str, Any]] = {}
    reading: dict[str, Callable[[], object]] = {}
    size = min(GROWTH_BATCH, *numbers)
    with tempfile.TemporaryDirectory(prefix="nnunet-ssp-growth-") as base:
        for n in numbers:
            folder = Path(base) / str(n)
            write_sparse_store(folder, n)
            start = time.perf_counter()
            store = SliceStore(folder)
            opened = time.perf_counter() - start
            reading[str(n)] = _reading(store, size, device)
            # A process that has worked before could take in a store without growing.
            with ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), initializer=start_worker
            ) as fresh:
                grown = fresh.submit(grown_bytes, folder, size).result()
            found[str(n)] = {
                "open_s": opened,
                "grown_bytes": grown,
                "stored_bytes": store.nbytes,
            }
        took = in_turns(reading, device, 5.0)
    for name, seconds in took.items():
        found[name] |= ratio("batch_over_first", seconds, took[str(numbers[0])])
    return found


def _reading(store: SliceStore, size: int, device: torch.device) -> Callable[[], object]:
    """Make a function that reads the next batch; all batches were read before, so no disk is measured."""
    n = len(store)
    batches = [batch_indices(0, step, n, size) for step in range(min(n // size, 8))]
    for batch in batches:
        store.read(batch)
    following = cycle(batches)
    return lambda: store.read(next(following)).to(device)


def write_sparse_store(folder: Path, n_slices: int, side: int = 256) -> None:
    """Write a slice store of zeros that takes almost no space on the disk."""
    folder.mkdir(parents=True)
    cases = {}
    for start in range(0, n_slices, SLICES_PER_CASE):
        shape = (min(SLICES_PER_CASE, n_slices - start), 1, side, side)
        case = f"case{start:07d}"
        np.lib.format.open_memmap(folder / f"{case}.npy", "w+", np.float16, shape)
        cases[case] = StoredCase(shape, 0, shape[0])
    write_index(folder, {}, cases)


def grown_bytes(folder: Path, size: int) -> int | None:
    """Measure by how much this process's memory grows, at its peak, while it opens a store and reads batches of it.

    Returns:
        The bytes; None where the system does not report them.
    """
    before = resident("VmRSS")
    read = _reading(SliceStore(folder), size, torch.device("cpu"))
    read()
    after = resident("VmHWM")
    return None if before is None or after is None else after - before


# -- others ----------------------------------------------------------------------------------------


def over_lightly(bench: Bench) -> dict[str, dict[str, Any]] | None:
    """Compare the images per second of our SimCLR and DINO with lightly's, end to end; None without lightly."""
    try:
        from nnunet_ssp.bench.peer import PEERS
    except ImportError:
        return None
    found = {}
    for name, peer in PEERS.items():
        with bench.pretraining(name, NARROW, batch=bench.workload.batch) as trainer:
            theirs = peer(trainer)
            ours = partial(_steps, trainer, theirs.steps)
            works: dict[str, Callable[[], object]] = {"lightly": theirs.one_pass, "ours": ours}
            took = in_turns(works, bench.device, bench.workload.seconds / 2)
        found[name] = ratio("images_over_lightly", took["lightly"], took["ours"])
    return found


def finetuning_over_stock(bench: Bench) -> dict[str, Any]:
    """Compare the steps per second of our fine-tuning, with data loading, with stock nnU-Net's; count its images."""
    ours = f"{STOCK}Scratch"
    works: dict[str, Callable[[], object]] = {}
    settings = "precision=fp32" if bench.device.type == "cpu" else ""  # stock nnU-Net's
    for name in (STOCK, ours):
        trainer = bench.trainer(name, settings=settings)
        with quiet():
            trainer.on_train_start()
        works[name] = partial(_steps, trainer, 1)
    with one_thread():  # small batches: threads would wait for each other
        took = in_turns(works, bench.device, bench.workload.seconds)
    return {
        **ratio("finetuning_over_stock", took[STOCK], took[ours]),
        "finetuning_images_per_s": float(trainer.batch_size / statistics.median(took[ours])),
    }


def bf16_over_fp32(bench: Bench) -> dict[str, Any]:
    """Compare the steps per second of fine-tuning in bfloat16 with those in float32, on one batch without loading."""
    works: dict[str, Callable[[], object]] = {}
    for name in ("fp32", "bf16"):
        trainer = bench.trainer(f"{STOCK}Scratch", settings=f"precision={name}")
        if not works:
            with quiet():
                batch = next(trainer.get_dataloaders()[0])
        works[name] = partial(trainer.train_step, batch)
    with one_thread():
        took = in_turns(works, bench.device, bench.workload.seconds)
    return ratio("bf16_over_fp32", took["fp32"], took["bf16"])


def fused_over_plain(bench: Bench) -> dict[str, Any]:
    """Compare steps of fine-tuning with `fused_norm` of auto and yes with those of nnU-Net's modules.

    Returns:
        By setting the ratio `steps` of the steps per second, in bfloat16 where the processor has it, and `memory`, of
        the largest memory of a step of the narrow network; nothing on a GPU, where the modules stay as they are.
    """
    if bench.device.type != "cpu":
        return {"fused_over_plain": {}}
    batch = None
    steps: dict[tuple[str, str], Callable[[], object]] = {}
    for plans, how in product((NARROW, PLANS), ("no", "auto", "yes")):
        text = f"fused_norm={how} precision={'bf16' if has_bf16() else 'fp32'}"
        trainer = bench.trainer(f"{STOCK}Scratch", plans, text)
        with quiet():
            trainer.fuse_norms()
            batch = batch or next(trainer.get_dataloaders()[0])
        steps[plans, how] = partial(trainer.train_step, batch)
    works = {how: steps[PLANS, how] for how in ("no", "auto", "yes")}
    peaks = {how: _peak_of_second(steps[NARROW, how]) for how in works}
    with one_thread():
        took = in_turns(works, bench.device, bench.workload.seconds)
    return {
        "fused_over_plain": {
            how: ratio("steps", took["no"], took[how]) | {"memory": peaks[how] / peaks["no"]}
            for how in ("auto", "yes")
        }
    }


def _peak_of_second(step: Callable[[], object]) -> int:
    """Return the largest memory of a step that finds what the first one made for the optimiser."""
    step()
    with LiveBytes() as live:
        step()
    return live.peak


def _steps(trainer: Any, number: int) -> None:
    for _ in range(number):
        trainer.train_step(next(trainer.dataloader_train))
