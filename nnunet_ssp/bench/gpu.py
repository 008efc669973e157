"""Everything worth knowing on a GPU, by importance, within a time budget; each row is written as soon as it is there.

On a CPU the same rows run in miniature, so that the mode can be tried before a card is at hand.
"""

from __future__ import annotations

import copy
import re
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_ssp.bench import rows
from nnunet_ssp.bench.place import (
    NARROW,
    ON_CUDA,
    Bench,
    Workload,
    chosen_methods,
    found_device,
    in_turns,
    ratio,
)
from nnunet_ssp.bench.running import announce, heading, setting, terminable
from nnunet_ssp.console import count_of, some
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.launch import command_environment, last_lines, run_logged
from nnunet_ssp.nnunet import environment
from nnunet_ssp.training.fused import fuse
from nnunet_ssp.training.layout import CHANNELS_LAST, CONTIGUOUS

TESTS = Path(__file__).parents[2] / "tests"
FIRST = ("MIM", "SimCLR", "Dense", "DINO", "BYOL", "PCL", "Inpainting")  # the others follow
PAPERS_IMAGES = 9_060_000  # of 256x256, in MIM's pretraining by de Mooij et al.
SMALL = Workload(side=64, batch=16, narrow=8, unlabelled=1, frames=4)  # a network for CUDA graphs
STUDY_MODELS = ("scratch", "movement alone", "MIM")  # the control, and the best two as measured
STUDY_DATASET = "997"
KEPT_LINES = 12  # of a command's last words
OVER = "the time was over"
STUDY = "study"
MINUTES = 8.0
MINIATURE = Workload(
    side=48, batch=8, narrow=8, seconds=0.1, unlabelled=1, frames=4, batches=(8, 16)
)
WORDS = ("left_out", "failed", "passed", "skipped", "rc", "precision", "memory_format", "compiled")
RATIOS = (
    "papers_images_in_minutes",
    "views_over_stock_loader",
    "graph_over_launches",
    "finetuning_over_stock",
)


@dataclass(frozen=True)
class ComputingWay:
    """A way to compute a step.

    Attributes:
        precision: `bf16`, `fp16` or `fp32`.
        layout: Memory layout of the maps.
        compiled: Whether by torch.compile.
        fused: Whether norms and LeakyReLU are one operation.
    """

    precision: str
    layout: str
    compiled: bool
    fused: bool

    @property
    def name(self) -> str:
        """Its name in the table."""
        more = [self.layout] if self.layout != CONTIGUOUS else []
        more += ["compiled"] * self.compiled + ["fused"] * self.fused
        return ", ".join([self.precision, *more])


WAYS = tuple(
    ComputingWay(precision, layout, compiled, fused)
    for compiled, fused, layout, precision in product(
        (False, True), (False, True), (CONTIGUOUS, CHANNELS_LAST), ("bf16", "fp16")
    )
)


@dataclass
class GpuRun:
    """One run of the mode.

    Attributes:
        bench: Where it is measured.
        methods: Names, by importance.
        seconds: Approximate seconds of a row.
        tests: Folder of the tests; those marked `gpu` run.
        acdc: Folder of ACDC in its own layout, for the study at the end; None leaves it out.
        end: `time.monotonic` after which no row begins.
        rates: Largest rates of the device by precision.
    """

    bench: Bench
    methods: Sequence[str]
    seconds: float
    tests: Path
    acdc: Path | None
    end: float
    rates: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def rows(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Return every row's name and measurement, the most important first."""
        yield "tests", self.gpu_tests
        leading, others = self.methods[:2], self.methods[2:]
        eager = [way for way in WAYS if not way.compiled]
        compiled = [way for way in WAYS if way.compiled]
        for method in leading:
            yield f"{method}: by default", partial(self.by_default, method)
            yield from self._in_ways(method, eager)
            yield f"{method}: from the host", partial(self.from_host, method)
            yield f"{method}: views", partial(self.views, method)
        for size in self.bench.workload.batches:
            yield f"SimCLR: {size} slices", partial(self.simclr, size)
        yield "CUDA graphs", self.graphs
        yield "fine-tuning", partial(rows.finetuning_over_stock, self.bench)
        for method in others:
            yield f"{method}: by default", partial(self.by_default, method)
        for method in leading:
            yield from self._in_ways(method, compiled)
        for method in others:
            yield from self._in_ways(method, eager)
            yield f"{method}: from the host", partial(self.from_host, method)
            yield f"{method}: views", partial(self.views, method)
        for method in others:
            yield from self._in_ways(method, compiled)
        yield STUDY, self.study

    def _in_ways(
        self, method: str, ways: Sequence[ComputingWay]
    ) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        for way in ways:
            yield f"{method}: {way.name}", partial(self.in_way, method, way)

    def gpu_tests(self) -> dict[str, Any]:
        """Run the tests marked `gpu`; count them by outcome."""
        marked = [
            file
            for file in sorted(self.tests.rglob("test_*.py"))
            if "mark.gpu" in file.read_text(encoding="utf-8")
        ]
        if not marked:
            return {"left_out": f"{self.tests} has no tests marked gpu"}
        words = ["python", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        found = self._command([*words, *map(str, marked)], self.left / 4)
        counts = re.findall(r"(\d+) (passed|failed|skipped|error)", found["said"])
        return found | {outcome: int(number) for number, outcome in counts}

    def by_default(self, method: str) -> dict[str, Any]:
        """Measure a method as users run it: speed, share of the floor, memory, and what its data cost."""
        with self.bench.pretraining(
            method, batch=self.bench.workload.batch, settle=True
        ) as trainer:
            found = trainer.computes() | {"compiled": trainer._do_i_compile()}
            found |= self._speed(trainer)
        if method == "MIM":
            found["papers_images_in_minutes"] = (
                PAPERS_IMAGES / found["end_to_end_images_per_s"] / 60
            )
        return found

    def in_way(self, method: str, way: ComputingWay) -> dict[str, Any]:
        """Measure a method in one way to compute."""
        given = {"precision": way.precision, "memory_format": way.layout, "fused_norm": "no"}
        if way.precision == "fp16" and self.bench.device.type != "cuda":
            return {"left_out": "fp16 needs CUDA"}
        batch = self.bench.workload.batch
        with (
            environment(nnUNet_compile=str(way.compiled)),
            self.bench.pretraining(method, batch=batch, settle=True, **given) as trainer,
        ):
            if way.fused:
                fuse(trainer.network, joined=True)
            return self._speed(trainer)

    def from_host(self, method: str) -> dict[str, Any]:
        """Measure a method with its slices on the host, read ahead into pinned memory."""
        return rows.from_host(self.bench, method, self.seconds)

    def simclr(self, size: int) -> dict[str, Any]:
        """Measure the memory of SimCLR's step with so many slices."""
        batch, peak = rows.peak_memory(self.bench, "SimCLR", size)
        return {"batch_size": batch, "peak_memory_bytes": peak}

    def views(self, method: str) -> dict[str, Any]:
        """Compare views per core with nnU-Net's loader."""
        with self.bench.pretraining(method, batch=self.bench.workload.batch) as trainer:
            return rows.views_over_stock(self.bench, trainer, self.seconds)

    def graphs(self) -> dict[str, Any]:
        """Compare forward and backward pass of a small network, launched one by one and as one CUDA graph."""
        if self.bench.device.type != "cuda":
            return {"left_out": "CUDA graphs need CUDA"}
        with tempfile.TemporaryDirectory(prefix="nnunet-ssp-graphs-") as folder:
            place = Bench.prepared(Path(folder), self.bench.device, SMALL)
            with place as bench, bench.pretraining("MIM", NARROW, SMALL.batch) as trainer:
                return graphs_over_launches(trainer.method.network, self.bench.device, self.seconds)

    def study(self) -> dict[str, Any]:
        """Run `acdc-few` at size gpu, cut to a few models and five patients, for the time that is left."""
        if self.acdc is None:
            return {"left_out": "no --acdc FOLDER was given"}
        with tempfile.TemporaryDirectory(prefix="nnunet-ssp-acdc-") as folder:
            base, output = Path(folder), Path(folder, "study")
            convert = ["nnunet-ssp", "convert", "acdc", "-i", str(self.acdc), "--few"]
            found = {"convert": self._command([*convert, "-d", STUDY_DATASET], self.left, base)}
            study = ["nnunet-ssp", "study", "acdc-few", "-d", STUDY_DATASET, "--size", "gpu"]
            study += ["--folds", "5", "--models", *STUDY_MODELS, "-o", str(output)]
            study += ["--device", self.bench.device.type]
            # Also without the subjects that are refused, of which the status 1 tells.
            if any(base.glob("nnUNet_raw/*/dataset.json")) and self.left > 0:
                found["study"] = self._command(study, self.left, base)
                found["tables"] = {
                    str(file.relative_to(output)): file.read_text(encoding="utf-8")
                    for file in sorted(output.rglob("tables/*.csv"))
                }
            return found

    def _speed(self, trainer: Any) -> dict[str, Any]:
        """Measure images per second with views fixed and with data, share of the floor, and the largest memory."""
        cuda = self.bench.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.bench.device)
        found = rows.speed(trainer, self.seconds)
        if cuda:
            found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.bench.device)
        dtype = trainer.autocast_dtype or torch.float32
        if str(dtype) not in self.rates:
            self.rates[str(dtype)] = rows.device_rates(self.bench.device, dtype)
        step = trainer.batch_size / found["compute_images_per_s"]
        found["fraction_of_floor"] = rows.floor_seconds(trainer, **self.rates[str(dtype)]) / step
        return found

    def _command(
        self, words: Sequence[str], seconds: float, folder: Path | None = None
    ) -> dict[str, Any]:
        """Run a command for some seconds at most, then ask it to end.

        Args:
            words: The command, one of this Python environment.
            seconds: Time after which it is asked.
            folder: Place of nnU-Net's three folders.

        Returns:
            Its status `rc`, its `seconds` and its last words, `said`.
        """
        begun, asked = time.monotonic(), False

        def late() -> int | None:
            nonlocal asked
            if asked or time.monotonic() - begun < seconds:
                return None
            asked = True
            return signal.SIGTERM

        with tempfile.NamedTemporaryFile() as log:
            rc = run_logged(words, log, command_environment(folder), late)
            said = last_lines(Path(log.name), KEPT_LINES)
        took = time.monotonic() - begun
        return {"command": shlex.join(words), "rc": rc, "seconds": took, "said": said}


def graphs_over_launches(
    network: nn.Module,
    device: torch.device,
    seconds: float,
    graphed: Callable[..., Any] = torch.cuda.make_graphed_callables,
) -> dict[str, Any]:
    """Compare forward and backward pass of a network with those of a copy that is one CUDA graph.

    Args:
        network: Network of `SMALL`'s patch.
        device: Its device.
        seconds: Approximate seconds.
        graphed: Makes the copy's graph.
    """
    image = torch.rand(SMALL.batch or 1, 1, SMALL.side, SMALL.side, device=device)
    networks = {"launches": network, "graph": graphed(copy.deepcopy(network), (image,))}

    def step(network: nn.Module) -> None:
        network.zero_grad(set_to_none=True)
        output = network(image)
        outputs = output if isinstance(output, list | tuple) else [output]
        torch.stack([x.square().mean() for x in outputs]).sum().backward()

    works = {name: partial(step, network) for name, network in networks.items()}
    took = in_turns(works, device, seconds)
    return ratio("graph_over_launches", took["launches"], took["graph"])


def run(
    methods: Sequence[str] | None = None,
    device: str | None = None,
    file: Path | None = None,
    minutes: float = MINUTES,
    acdc: Path | None = None,
    workload: Workload | None = None,
    tests: Path = TESTS,
) -> dict[str, Any]:
    """Measure row by row until the time is over, print the rows, and write each as soon as it is there.

    Args:
        methods: Names of methods, in upper or lower case; None measures all.
        device: "cuda"; "cpu" tries the mode in miniature; None takes the GPU when there is one.
        file: JSON file for the rows.
        minutes: Time after which no row begins.
        acdc: Folder of ACDC for the study at the end, which gets the last third of the time.
        workload: How large everything is; None takes the papers' sizes, or the miniature's.
        tests: Folder of the tests.

    Returns:
        The rows, as in the file.

    Raises:
        ValueError: A method is unknown, the device is not there, or the time is not positive.
        RuntimeError: A row failed; all rows were measured, printed and written before.
    """
    if minutes <= 0:
        raise ValueError(f"`--minutes` (={minutes:g}) must be positive.")
    given = chosen_methods(methods)
    where = found_device(device)
    workload = workload or (ON_CUDA if where.type == "cuda" else MINIATURE)
    metrics: dict[str, Any] = {"setting": setting(where), "rows": {}}
    end = time.monotonic() + 60 * minutes
    with terminable(), tempfile.TemporaryDirectory(prefix="nnunet-ssp-gpu-") as folder:
        announce("a phantom")
        with Bench.prepared(Path(folder), where, workload) as bench:
            ordered = sorted(given, key=lambda name: (*FIRST, name).index(name))
            this = GpuRun(bench, ordered, workload.seconds, tests, acdc, end)
            for name, measure in this.rows():
                kept = 0 if acdc is None or name == STUDY else 60 * minutes / 3
                metrics["rows"][name] = _measured(name, measure, this.left - kept)
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_json(file, metrics)
    print("\n".join([heading(metrics["setting"]), "", *gpu_table(metrics["rows"])]))
    if failed := [name for name, row in metrics["rows"].items() if row.get("failed")]:
        raise RuntimeError(f"{count_of(len(failed), 'row')} failed: {some(failed)}.")
    return metrics


def _measured(name: str, measure: Callable[[], dict[str, Any]], left: float) -> dict[str, Any]:
    """Return what a row measures, why it was left out, or how it failed: one row must not cost the others."""
    if left <= 0:
        return {"left_out": OVER}
    announce(name)
    begun = time.monotonic()
    try:
        found = measure()
    except Exception as error:  # of any kind: the card is paid for by the minute
        found = {"failed": f"{type(error).__name__}: {error}"}
    return found | {"row_seconds": round(time.monotonic() - begun, 1)}


def gpu_table(found: dict[str, Any]) -> Iterator[str]:
    """Write the rows as Markdown; what was left out or failed says why."""
    yield "| row | images/s | end to end / compute | of the floor | peak memory, MiB | other |"
    yield f"|{' --- |' * 6}"
    for name, row in found.items():
        images = row.get("compute_images_per_s", row.get("host_end_to_end_images_per_s"))
        whole = row.get("end_to_end_over_compute", row.get("host_end_to_end_over_compute"))
        peak = row.get("peak_memory_bytes")
        other = [f"{key} {row[key]}" for key in WORDS if key in row]
        other += [f"{key} {row[key]:.2f}" for key in RATIOS if key in row]
        cells = (
            name,
            "" if images is None else f"{images:.0f}",
            "" if whole is None else f"{whole:.2f}",
            f"{row['fraction_of_floor']:.2f}" if "fraction_of_floor" in row else "",
            "" if peak is None else f"{peak / 2**20:.0f}",
            ", ".join(other),
        )
        yield f"| {' | '.join(cells)} |"
