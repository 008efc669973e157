"""Training steps as they are computed by default, beside float32 with nnU-Net's own modules.

The older way is a set of switches of today's code, so both run side by side in one process.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from nnunet_ssp.bench.place import (
    NARROW,
    STOCK,
    Bench,
    Workload,
    chosen_methods,
    in_turns,
    ratio,
)
from nnunet_ssp.bench.running import announce, heading, setting, terminable
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.nnunet import quiet
from nnunet_ssp.parallel import one_thread
from nnunet_ssp.recommended import MOVEMENT
from nnunet_ssp.training.precision import has_bf16

PLAIN = {"precision": "fp32", "fused_norm": "no", "memory_format": "contiguous"}
FINETUNING = "fine-tuning"
IN_CHUNKS = "MIM, 128 in chunks"
CHUNK = 16  # images in the network at a time


@dataclass(frozen=True)
class StepSize:
    """Patch, widths and batch of a comparison.

    Attributes:
        side: Rows and columns of the patch.
        narrow: Divisor of the planned widths.
        batch: Slices in a step.
        large: Slices in a step of `IN_CHUNKS`; None leaves it out.
        seconds: Approximate seconds of each row.
    """

    side: int
    narrow: int
    batch: int
    large: int | None
    seconds: float

    @property
    def title(self) -> str:
        """Name in the table."""
        return (
            f"{self.side}x{self.side}, {'full' if self.narrow == 1 else f'1/{self.narrow}'} widths"
        )


SIZES = (StepSize(96, 2, 8, 128, 20.0), StepSize(128, 1, 4, None, 20.0))
METHODS = ("MIM", "Dense", "SimCLR", "PCL", "DINO", "BYOL", "Inpainting")
# Methods with more than a row, one for each of these settings: Dense as it is and as it is recommended.
SETTINGS = {"Dense": ("", MOVEMENT)}


def run(
    methods: Sequence[str] | None = None,
    file: Path | None = None,
    sizes: Sequence[StepSize] = SIZES,
) -> dict[str, Any]:
    """Measure on one core, print the table, and write the rows after each one.

    Args:
        methods: Names of pretraining methods, in upper or lower case; None measures all of `METHODS`.
        file: JSON file for the rows.
        sizes: Patches and widths.

    Returns:
        The rows, as in the file.

    Raises:
        ValueError: A method is unknown.
    """
    metrics: dict[str, Any] = {"setting": setting(torch.device("cpu")), "steps": {}}
    chosen = chosen_methods(methods) if methods else METHODS
    with terminable(), one_thread():
        for metrics["steps"] in measure_steps(sizes, chosen):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, metrics)
    print("\n".join([heading(metrics["setting"]), "", *steps_table(metrics["steps"])]))
    return metrics


def measure_steps(sizes: Sequence[StepSize], methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Measure each method and fine-tuning in each size; yield the rows after each one.

    Args:
        sizes: Patches and widths, each with a phantom of its own.
        methods: Names of pretraining methods.
    """
    found: dict[str, Any] = {}
    for size in sizes:
        rows = found.setdefault(size.title, {})
        workload = Workload(size.side, size.batch, size.narrow, unlabelled=4, frames=8)
        with (
            tempfile.TemporaryDirectory(prefix="nnunet-ssp-steps-") as folder,
            Bench.prepared(Path(folder), torch.device("cpu"), workload) as bench,
        ):
            for method, own in [(m, own) for m in methods for own in SETTINGS.get(m, ("",))]:
                name = f"{method}, {own}" if own else method
                announce(f"{name}, {size.title}")
                rows[name] = steps_over_plain(bench, method, size.seconds, own)
                yield found
            announce(f"{FINETUNING}, {size.title}")
            rows[FINETUNING] = finetuning_over_plain(bench, size.seconds)
            yield found
            if size.large:
                announce(f"{IN_CHUNKS}, {size.title}")
                rows[IN_CHUNKS] = chunks_over_plain(bench, size.large, size.seconds)
                yield found


def steps_over_plain(
    bench: Bench, method: str, seconds: float, settings: str = ""
) -> dict[str, Any]:
    """Compare the steps per second of a method, with its data, with those in float32 and nnU-Net's modules.

    Args:
        bench: Where it is measured.
        method: Its name.
        seconds: Approximate seconds.
        settings: Of the method, such as "contrast=0".

    Returns:
        The ratio `steps_over_plain`; `bf16_over_plain`, where the processor has bfloat16; `computes`, what the
        defaults came to; `seconds_per_image`; the `activations_per_image` in bytes, also with `fused_norm=yes`; and the
        `share_of_convolutions` in a step.
    """
    own = dict(word.split("=") for word in settings.split())
    ways: dict[str, dict[str, Any]] = {"plain": own | PLAIN, "default": own}
    if has_bf16():
        ways["bf16"] = own | {"precision": "bf16"}
    with ExitStack() as stack:
        works: dict[str, Callable[[], object]] = {}
        trainers = {}
        for name, given in ways.items():
            trainers[name] = trainer = stack.enter_context(_settled(bench, method, given))
            works[name] = partial(_step, trainer)
        took = in_turns(works, bench.device, seconds)
        default = trainers["default"]
        shares = {name: convolutions(work) for name, work in works.items()}
        joined = own | {"fused_norm": "yes"}
        kept = ways | {"default": own | default.computes(), "joined": joined}
        if "bf16" in ways:
            kept["joined in bf16"] = joined | {"precision": "bf16"}
        found = {name: _activations(bench, method, given) for name, given in kept.items()}
        return _row(took, default.batch_size, default.computes(), found, shares)


def chunks_over_plain(bench: Bench, batch: int, seconds: float) -> dict[str, Any]:
    """Compare steps of MIM whose chunks add up their gradients with those that compute each chunk twice, as before."""
    with ExitStack() as stack:
        works: dict[str, Callable[[], object]] = {}
        for name, settings in (("plain", PLAIN), ("default", {})):
            trainer = stack.enter_context(
                _settled(bench, "MIM", {**settings, "chunk_size": CHUNK, "batch_size": batch})
            )
            trainer.method.chunks.adds_up = name == "default"
            works[name] = partial(_step, trainer)
        took = in_turns(works, bench.device, seconds)
        shares = {name: convolutions(work) for name, work in works.items()}
        return _row(took, batch, trainer.computes(), {}, shares)


def finetuning_over_plain(bench: Bench, seconds: float) -> dict[str, Any]:
    """Compare steps of fine-tuning on one batch, without its loader, with those of stock `nnUNetTrainer`.

    Returns:
        A row; `loader_seconds_per_image` is what nnU-Net's loader with its augmentation adds to each step of both.
    """
    trainers = {
        "plain": bench.trainer(STOCK, NARROW),
        "default": bench.trainer(f"{STOCK}Scratch", NARROW),
    }
    with quiet():
        trainers["default"].settle_computing(trainers["default"].network_module)
        loader, _ = trainers["plain"].get_dataloaders()
        whole = next(loader)
    loading = in_turns({"loader": lambda: next(loader)}, bench.device, seconds / 4)["loader"]
    batch = _first(whole, bench.workload.batch or 8)
    works = {name: partial(trainer.train_step, batch) for name, trainer in trainers.items()}
    took = in_turns(works, bench.device, seconds)
    kept = {}
    for name, trainer in trainers.items():
        autocast = getattr(trainer, "autocast", contextlib.nullcontext)
        sizes = [
            _kept(partial(trainer.network, _first(whole, n)["data"]), autocast, trainer)
            for n in (1, 2)
        ]
        kept[name] = sizes[1] - sizes[0]
    shares = {name: convolutions(work) for name, work in works.items()}
    row = _row(took, len(batch["data"]), trainers["default"].computes(), kept, shares)
    return row | {"loader_seconds_per_image": min(loading) / len(whole["data"])}


def convolutions(step: Callable[[], object]) -> float:
    """Return the share of convolutions, forward and backward, in the operators' own time of a step."""
    step()  # what the first step makes does not count
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(took for name, took in own.items() if "conv" in name) / sum(own.values())


def _row(
    took: dict[str, list[float]],
    images: int,
    computes: dict[str, str],
    activations: Mapping[str, float],
    shares: Mapping[str, float],
) -> dict[str, Any]:
    per_image = {name: min(seconds) / images for name, seconds in took.items()}
    half = ratio("bf16_over_plain", took["plain"], took["bf16"]) if "bf16" in took else {}
    return {
        **ratio("steps_over_plain", took["plain"], took["default"]),
        **half,
        "seconds_per_image": per_image,
        "computes": computes,
        "activations_per_image": activations,
        "share_of_convolutions": shares,
    }


@contextlib.contextmanager
def _settled(bench: Bench, method: str, settings: dict[str, Any]) -> Iterator[Any]:
    """Make a pretraining trainer of the narrow plans that computes as a run does."""
    given = {"batch_size": bench.workload.batch, **settings}
    with bench.pretraining(method, NARROW, settle=True, **given) as trainer:
        yield trainer


def _activations(bench: Bench, method: str, settings: dict[str, Any]) -> float:
    """Measure the bytes that a forward pass keeps for each slice; what does not grow with the batch does not count."""
    sizes = []
    numbers = (4, 8)
    for n in numbers:
        given = {**settings, "batch_size": n, "chunk_size": "none"}
        with _settled(bench, method, given) as trainer:
            batch = next(trainer.dataloader_train)
            sizes.append(_kept(partial(trainer.method, batch), trainer.autocast, trainer))
    return (sizes[1] - sizes[0]) / (numbers[1] - numbers[0])


def _kept(forward: Callable[[], object], autocast: Callable[[], Any], trainer: Any) -> int:
    """Count the bytes that autograd keeps for the backward pass, each memory once, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in trainer.network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with autocast(), saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)


def _first(batch: dict[str, Any], n: int) -> dict[str, Any]:
    """Return the first images of a batch of nnU-Net's loader."""
    target = batch["target"]
    first = [t[:n] for t in target] if isinstance(target, list) else target[:n]
    return {**batch, "data": batch["data"][:n], "target": first}


def _step(trainer: Any) -> None:
    trainer.train_step(next(trainer.dataloader_train))


def steps_table(found: dict[str, Any]) -> Iterator[str]:
    """Write the rows as Markdown: ratios of core-seconds, with quartiles, and activations."""
    columns = (
        "step",
        "size",
        "by default",
        "quartiles",
        "computes in",
        "in bf16",
        "convolutions",
        "activations",
    )
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for size, rows in found.items():
        for name, row in rows.items():
            low, high = row["steps_over_plain_quartiles"]
            kept = row["activations_per_image"]
            memory = ", ".join(
                f"{name} {kept[name] / kept['plain']:.2f}x" for name in kept if name != "plain"
            )
            half = row.get("bf16_over_plain")
            yield (
                f"| {name} | {size} | {row['steps_over_plain']:.2f}x | {low:.2f} to {high:.2f} | "
                f"{', '.join(row['computes'].values())} | {f'{half:.2f}x' if half else '-'} | "
                f"{row['share_of_convolutions']['default']:.0%} | {memory or '-'} |"
            )
    for size, rows in found.items():
        for name, row in rows.items():
            if loader := row.get("loader_seconds_per_image"):
                part = loader / row["seconds_per_image"]["default"]
                yield f"\nnnU-Net's loader adds {part:.2f}x the time of {name}, {size}, by default."
