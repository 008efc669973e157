"""`export` and `import` of a large checkpoint, each in turn with a plain copy of the bytes that it writes.

As a module it is the process that is measured: `python -m nnunet_ssp.bench.sharing FOLDER SECONDS`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ssp.bench.memory import growth_of_sharing
from nnunet_ssp.bench.place import PLANS, Bench, in_turns, ratio
from nnunet_ssp.files import saving
from nnunet_ssp.files.atomic import atomic_write, write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.nnunet import read_plans
from nnunet_ssp.nnunet import quiet
from nnunet_ssp.sharing.export import export_checkpoint
from nnunet_ssp.sharing.importing import import_bundle
from nnunet_ssp.training import transfer

CHECKPOINT, SHARED, TAKEN = "checkpoint_final.pth", "shared.zip", "taken.pth"
FOUND = "found.json"  # what the process has measured
SMALL = "small"  # folder of a checkpoint whose size does not count
CPU = torch.device("cpu")


def sharing_over_copy(bench: Bench) -> dict[str, Any]:
    """Compare the seconds of export and import with those of a plain copy, and their memory with the tensors' bytes.

    Returns:
        `export_over_copy`, `import_over_copy`, `export_memory_over_tensors`, `import_memory_over_tensors` (None where
        the system does not tell), and `shared_bytes`, those of the checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="nnunet-ssp-sharing-") as folder:
        plans = bench.folder / f"{PLANS}.json"
        write_checkpoint(Path(folder), plans, bench.workload.shared)
        write_checkpoint(Path(folder) / SMALL, plans, 1)
        seconds = bench.workload.seconds / 2
        command = [sys.executable, "-m", "nnunet_ssp.bench.sharing", folder, str(seconds)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read_json(Path(folder) / FOUND, dict)


def write_checkpoint(folder: Path, plans_file: Path, size: int) -> None:
    """Write a checkpoint of at least `size` bytes: a planned network, wide enough, and its momentum."""
    plans = read_plans(plans_file)
    architecture = plans["configurations"]["2d"]["architecture"]
    arguments = architecture["arch_kwargs"]
    while True:
        network = get_network_from_plans(
            architecture["network_class_name"],
            arguments,
            architecture["_kw_requires_import"],
            1,
            2,
            deep_supervision=True,
        )
        weights = transfer.pretrained_weights(network, "encoder+decoder", 2)
        if 2 * tensors_bytes(weights) >= size:
            break
        widths = arguments["features_per_stage"]
        arguments["features_per_stage"] = [n + max(1, n // 4) for n in widths]
    momentum = {n: torch.zeros_like(p) for n, p in enumerate(network.parameters())}
    record = {"trainer": "", "method": "MIM", "transfers": "encoder+decoder", "subjects": []}
    content = {
        "network_weights": weights,
        "optimizer_state": {"state": {n: {"momentum_buffer": m} for n, m in momentum.items()}},
        "current_epoch": 1,
        "logging": {},
        "trainer_name": "",
        "init_args": {
            "plans": plans,
            "configuration": "2d",
            "dataset_json": {"channel_names": {"0": "cineMRI"}, "labels": {"background": 0}},
        },
        "ssp": {**record, "counts": {"subjects": 0, "frames": 0, "slices": 0}},
    }
    saving.save(folder / CHECKPOINT, content)


def tensors_bytes(weights: dict[str, torch.Tensor]) -> int:
    """Sum the bytes of tensors; those that share their storage count once."""
    own = {t.data_ptr(): t.numel() * t.element_size() for t in weights.values()}
    return sum(own.values())


def measure_sharing(folder: Path, seconds: float) -> dict[str, Any]:
    """Measure in this process, with the wall clock: copies wait for the disk."""
    found: dict[str, Any] = {"shared_bytes": (folder / CHECKPOINT).stat().st_size}
    for work, _ in works_in(folder / SMALL).values():
        work()  # loads the libraries, whose seconds are not those of the bytes
    for name, (work, written) in works_in(folder).items():
        source = folder / (CHECKPOINT if name == "export" else SHARED)
        target = folder / written
        target.unlink(missing_ok=True)
        grown = growth_of_sharing(name, source, target)
        size = tensors_bytes(transfer.read(folder / written).weights)
        found[f"{name}_memory_over_tensors"] = None if grown is None else grown / size
        works: dict[str, Callable[[], object]] = {
            "copy": partial(_copy, folder / written),
            "ours": work,
        }
        took = in_turns(works, CPU, seconds, clock=lambda _: time.perf_counter())
        found |= ratio(f"{name}_over_copy", took["ours"], took["copy"])
    return found


def works_in(folder: Path) -> dict[str, tuple[Callable[[], None], str]]:
    """Return export and import of a folder's checkpoint, each with the name of the file that it writes."""

    def export() -> None:
        (folder / SHARED).unlink(missing_ok=True)
        with quiet():
            export_checkpoint(folder / CHECKPOINT, folder / SHARED)

    def take() -> None:
        (folder / TAKEN).unlink(missing_ok=True)
        with quiet():
            import_bundle(folder / SHARED, pth=folder / TAKEN)

    return {"export": (export, SHARED), "import": (take, TAKEN)}


def _copy(file: Path) -> None:
    """Copy as safely as we write."""
    with atomic_write(file.with_suffix(".copy")) as temporary:
        shutil.copyfile(file, temporary)


if __name__ == "__main__":
    write_json(Path(sys.argv[1]) / FOUND, measure_sharing(Path(sys.argv[1]), float(sys.argv[2])))
