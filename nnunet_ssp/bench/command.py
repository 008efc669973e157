"""Measure everything and print one table.

The bench converts and prepares a phantom, and runs the trainers that users run on it, step by step. Works that are
compared run in turns, so that a busy machine slows both sides. The result is the median of the ratios.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssp.bench import files, predicting, rows, scoring, sharing, starting
from nnunet_ssp.bench.place import ON_CPU, ON_CUDA, Bench, Workload, chosen_methods, found_device
from nnunet_ssp.bench.running import announce, heading, setting, terminable
from nnunet_ssp.files.atomic import write_json

MIB = 2**20
OPENED = 5  # seconds in which a store must be open


def run(
    methods: Sequence[str] | None = None,
    device: str | None = None,
    file: Path | None = None,
    workload: Workload | None = None,
) -> dict[str, Any]:
    """Measure, print the table, and write the metrics.

    Args:
        methods: Names from `method_names`, in upper or lower case; None measures all.
        device: "cpu" or "cuda"; None takes the GPU when there is one.
        file: JSON file for the metrics.
        workload: How large everything is; None chooses by the device.

    Returns:
        The metrics, as in the file.

    Raises:
        ValueError: A method is unknown, or the device is not there.
    """
    chosen = chosen_methods(methods)
    where = found_device(device)
    workload = workload or (ON_CUDA if where.type == "cuda" else ON_CPU)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)

    with terminable(), tempfile.TemporaryDirectory(prefix="nnunet-ssp-bench-") as folder:
        announce("a phantom")
        with Bench.prepared(Path(folder), where, workload) as bench:
            metrics = {
                "setting": setting(where) | {"side": workload.side, "narrow": workload.narrow}
            }
            for _ in _measure(bench, chosen, metrics):
                if file is not None:  # each row, so that a run that is cut short is not lost
                    write_json(file, metrics)
    print("\n".join(table(metrics)))
    return metrics


def _measure(bench: Bench, methods: Sequence[str], metrics: dict[str, Any]) -> Iterator[None]:
    """Add every row to the metrics, one after another; those of a method stand under `methods` and its name."""
    workload, on_gpu = bench.workload, bench.device.type == "cuda"
    metrics |= {"methods": {}, "rates": {}, "simclr_peak_memory_bytes": {}}
    seconds = workload.seconds / len(methods)
    for name in methods:
        announce(name)
        found = rows.method_row(bench, name, metrics["rates"], seconds)
        if on_gpu:
            found |= rows.from_host(bench, name, 2 * seconds)
            found["ways"] = rows.ways_to_compute(bench, name, rows.GPU_WAYS, seconds)
        batch, peak = rows.peak_memory(bench, name)
        found |= {"peak_memory_bytes": peak, "peak_memory_batch_size": batch}
        metrics["methods"][name] = found
        yield
    announce("SimCLR's memory")
    for size in workload.batches:
        metrics["simclr_peak_memory_bytes"][str(size)] = rows.peak_memory(bench, "SimCLR", size)[1]
    yield
    announce("the slice store's growth")
    metrics["growth"] = rows.growth(workload.growth, bench.device)
    yield
    others: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "lightly": lambda _: {"images_over_lightly": rows.over_lightly(bench)},
        "fine-tuning": rows.finetuning_over_stock,
        "bfloat16": rows.bf16_over_fp32,
        "fused norms": rows.fused_over_plain,
        "files": files.files_over_zlib,
        "scoring": scoring.scoring_over_before,
        "prepare": starting.prepare_over_nnunet,
        "starting up": lambda _: starting.warm_over_cold(),
        "export and import": sharing.sharing_over_copy,
        "predict": predicting.predicting_over_stock,
    }
    for title, row in others.items():
        announce(title)
        metrics |= row(bench)
        yield


def table(metrics: dict[str, Any]) -> Iterator[str]:
    """Write the metrics as Markdown; absolute times stand there for a GPU only, since those of a CPU say little."""
    s = metrics["setting"]
    on_gpu = s["device"] == "cuda"
    yield heading(s)
    yield ""
    patch = f"Patch {s['side']}x{s['side']}, nnU-Net's planned network"
    narrow = f" (1/{s['narrow']} of its widths for memory and lightly)" if s["narrow"] > 1 else ""
    yield f"{patch}{narrow}. Memory with {rows.CHUNK} images in the network at a time."
    yield ""
    columns = ["method", "slices per step"]
    columns += ["compute, images/s", "end to end, images/s"] if on_gpu else []
    columns += ["end to end / compute"]
    columns += ["from the host / compute"] if on_gpu else []
    columns += ["of the floor", "views / nnU-Net's loader"]
    columns += ["peak memory, MiB (slices)"]
    yield _line(columns)
    yield _line(["---"] * len(columns))
    for name, f in metrics["methods"].items():
        cells = [name, str(f["batch_size"])]
        if on_gpu:
            cells += [f"{f[k]:.0f}" for k in ("compute_images_per_s", "end_to_end_images_per_s")]
        cells += [f"{f['end_to_end_over_compute']:.2f}"]
        cells += [f"{f['host_end_to_end_over_compute']:.2f}"] if on_gpu else []
        cells += [f"{f['fraction_of_floor']:.2f}", f"{f['views_over_stock_loader']:.1f}"]
        memory = f"{f['peak_memory_bytes'] / MIB:.0f} ({f['peak_memory_batch_size']})"
        yield _line([*cells, memory])
    yield ""
    yield from _ways(metrics["methods"]) if on_gpu else ()
    for dtype, rates in metrics["rates"].items() if on_gpu else ():
        speed, copy = rates["flops_per_s"] / 1e12, rates["bytes_per_s"] / 1e9
        yield f"- Floor: {speed:.1f} TFLOP/s and {copy:.0f} GB/s measured here in {dtype}."
    peaks = metrics["simclr_peak_memory_bytes"]
    smallest = next(iter(peaks.values()))
    shown = ", ".join(
        f"{n} slices {b / MIB:.0f} MiB ({b / smallest:.2f}x)" for n, b in peaks.items()
    )
    yield f"- SimCLR's memory: {shown}."
    for n, g in metrics["growth"].items():
        opened = g["open_s"]
        took = f"under {OPENED} s" if opened < OPENED else f"{opened:.0f} s, not under {OPENED}"
        grown = g["grown_bytes"]
        grows = "not measured here" if grown is None else f"{grown / MIB:.0f} MiB"
        yield (
            f"- Slice store of {int(n):,} slices of 256x256 ({g['stored_bytes'] / 2**30:.1f} GiB): a batch takes "
            f"{g['batch_over_first']:.2f}x the time; a process that opens it and reads grows by "
            f"{grows}; opened in {took}."
        )
    peer = metrics["images_over_lightly"]
    if peer is None:
        yield "- Lightly: left out, it is not installed (pip install 'nnunet-ssp[bench]')."
    else:
        shown = ", ".join(f"{name} {f['images_over_lightly']:.2f}x" for name, f in peer.items())
        yield f"- Images per second over lightly's, end to end: {shown}."
    yield f"- Fine-tuning over stock nnU-Net, steps per second: {metrics['finetuning_over_stock']:.2f}x."
    yield f"- Fine-tuning in bf16 over fp32, steps per second: {metrics['bf16_over_fp32']:.2f}x."
    for how, found in metrics["fused_over_plain"].items():
        yield (
            f"- Fine-tuning with fused_norm={how} over nnU-Net's modules, steps per second: {found['steps']:.2f}x, "
            f"memory of a step {found['memory']:.2f}x."
        )
    yield _files(metrics)
    yield from _commands(metrics)
    yield _sharing(metrics)
    yield _predicting(metrics, on_gpu)


def _ways(methods: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Write a table of images per second by precision and compilation."""
    names = list(next(iter(methods.values()))["ways"])
    yield _line(["images/s", *names])
    yield _line(["---"] * (1 + len(names)))
    for method, found in methods.items():
        rates = (found["ways"][name] for name in names)
        yield _line([method, *(f"{way['images_per_s']:.0f}" for way in rates)])
    yield ""


def _files(m: dict[str, Any]) -> str:
    converted = m["convert_over_zlib"]
    by_isal = "isal is not installed" if converted is None else f"{converted:.2f}x"
    return (
        f"- Files per core-second: convert with ISA-L over zlib {by_isal}; unlabelled frames in prepare over "
        f"those with a resampled mask {m['unlabelled_over_resampled_mask']:.2f}x."
    )


def _commands(m: dict[str, Any]) -> Iterator[str]:
    yield (
        f"- Scoring {m['scoring_pairs']} pairs, pairs per core-second: {m['scoring_over_before']:.2f}x those without "
        f"crop and with whole distance maps; {m['scoring_over_nnunet']:.2f}x nnU-Net's, which has Dice alone."
    )
    yield (
        f"- Core-seconds of `prepare` for {m['prepare_cases']} labelled cases over nnUNetv2_plan_and_preprocess -c 2d: "
        f"{m['prepare_over_nnunet']:.2f}x."
    )
    if m["start_cold_over_warm"] is None:
        yield "- Starting up: there is no warm runner here (Linux, with 2 GB of free memory)."
        return
    imports = m["start_runner_s"] / m["start_cold_s"]
    yield (
        f"- Starting up, core-seconds of a command by itself over one of the warm runner: "
        f"{m['start_cold_over_warm']:.1f}x; the runner takes those of {imports:.1f} commands by themselves, once."
    )


def _sharing(m: dict[str, Any]) -> str:
    found = []
    for name in ("export", "import"):
        memory = m[f"{name}_memory_over_tensors"]
        more = "" if memory is None else f", memory {memory:.2f}x the tensors"
        found.append(f"{name} {m[f'{name}_over_copy']:.2f}x{more}")
    return (
        f"- Sharing a checkpoint of {m['shared_bytes'] / 1e6:.0f} MB, seconds over a plain copy of what is written: "
        f"{'; '.join(found)}."
    )


def _predicting(m: dict[str, Any], on_gpu: bool) -> str:
    outside, memory = m["predict_over_nnunet_outside"], m["predict_host_memory_ratio"]
    size = f"{m['predict_frames']} frames of {m['predict_slices']} slices"
    found = [f"{m['predict_over_nnunet']:.2f}x"]
    if outside is not None:
        found.append(f"outside of the forward passes {outside:.2f}x")
    if memory is not None:
        found.append(f"host memory {memory:.2f}x")
    if on_gpu:
        found.append(f"{m['predict_frames_per_s']:.1f} frames/s")
    return (
        f"- Predicting {size} with {m['predict_parameters'] / 1e6:.1f} million parameters, frames per second over "
        f"nnUNetv2_predict, start-up included: {', '.join(found)}."
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
