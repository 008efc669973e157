"""Large batches in little memory: pass a batch through a network in chunks, with the gradient of one pass.

nnU-Net's planned networks use InstanceNorm: no image sees another before the loss. So a network may embed a batch
chunk by chunk under ``torch.utils.checkpoint``, which keeps a chunk's results and computes its activations again in the
backward pass. The loss sees the whole batch; gradients are those of one pass, for one more forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

SHARE = 0.5  # of the free memory that saved activations may take: the rest is for what is computed from them
UNKNOWN = 4 * 2**30  # bytes taken as free where the system does not tell


class Chunks:
    """Passes batches through a network, ``size`` images at a time.

    Args:
        setting: images at a time; ``"auto"`` chooses a power of two from the free memory at the first batch; None
            takes the whole batch.
        network: what the images go through.

    Attributes:
        size: images at a time, None for the whole batch; 0 until ``auto`` has chosen.
        note: how ``auto`` chose, for the log.
        draws: whether the network draws at random (dropout), which a recomputation must repeat.

    Raises:
        ValueError: chunks are asked for and the network has BatchNorm, whose statistics are those of the whole batch.
    """

    def __init__(self, setting: int | Literal["auto"] | None, network: nn.Module) -> None:
        batchnorm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
        if batchnorm and isinstance(setting, int):
            raise ValueError(
                f"`chunk_size` (={setting}) must be none or auto: these plans use BatchNorm, "
                "whose statistics are those of the whole batch."
            )
        self.network = network
        self.size = 0 if setting == "auto" and not batchnorm else None
        if isinstance(setting, int):
            self.size = setting
        self.note = ""
        if batchnorm and setting == "auto":
            self.note = (
                "chunk_size=auto: the whole batch at once, because these plans use BatchNorm"
            )
        self.draws = any(
            isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in network.modules()
        )

    def run(
        self, function: Callable[[slice], Tensor], n: int, device: torch.device
    ) -> list[Tensor]:
        """``[function(rows), ...]`` for consecutive rows of a batch; gradients flow as from one call.

        Args:
            function: computes the result for these rows with the network; besides the network's dropout nothing in it
                may be random.
            n: rows of the batch.
            device: where it runs.
        """
        if self.size == 0:
            self._choose(function, n, device)
        size = self.size or n
        pieces = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        if len(pieces) == 1 or not torch.is_grad_enabled():
            return [function(rows) for rows in pieces]
        return [
            checkpoint(function, rows, use_reentrant=False, preserve_rng_state=self.draws)
            for rows in pieces
        ]

    def _choose(self, function: Callable[[slice], Tensor], n: int, device: torch.device) -> None:
        if n < 2:
            return  # nothing to measure, and nothing to split
        # The difference, because copies of the weights in another precision do not grow with the batch.
        each = self._saved_bytes(function, 2) - self._saved_bytes(function, 1)
        free = free_memory(device)
        fitting = max(1, int(SHARE * free / max(each, 1)))
        # A power of two, so that a little more or less free memory changes nothing.
        self.size = 2 ** int(math.log2(fitting))
        self.note = (
            f"chunk_size=auto: {self.size} images at a time "
            f"({each / 2**20:.1f} MiB of activations each, {free / 2**30:.1f} GiB free)"
        )

    def _saved_bytes(self, function: Callable[[slice], Tensor], n: int) -> int:
        """Bytes that autograd keeps for the backward pass of n images, weights apart."""
        weights = {p.untyped_storage().data_ptr() for p in self.network.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor), eager():
            result = function(slice(0, n))  # its name keeps the graph, and so the addresses, alive
        del result
        return sum(sizes.values())


def eager() -> AbstractContextManager[object]:
    """No compilation for the odd sizes of a measurement, where torch (2.6 and newer) can be told so."""
    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance else nullcontext()


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device; on the CPU what the system and the process's limits leave."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    left = [free for free in (_system_memory(), _cgroup_memory()) if free is not None]
    return min(left, default=UNKNOWN)


def _system_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kilobytes) * 1024 if kilobytes else None


def _cgroup_memory() -> int | None:
    """What a container's limit leaves (cgroup version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
        # Pages of files that can be dropped, such as the slice store's, are as good as free.
        return max(int(limit) - int(used) + int(statistics.get("inactive_file", 0)), 0)
    except (OSError, ValueError):  # no such limit: the file is missing or says "max"
        return None
