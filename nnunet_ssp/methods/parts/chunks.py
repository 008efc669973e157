"""Large batches in little memory: pass a batch through a network in chunks, with the gradient of one pass.

nnU-Net's planned networks use InstanceNorm: no image sees another before the loss. So a network may embed a batch
chunk by chunk under `torch.utils.checkpoint`, which keeps a chunk's results and computes its activations again in the
backward pass. The loss sees the whole batch. Gradients are those of one pass, at the cost of one more forward pass.
A loss that is a weighted sum over the images needs no second pass: each chunk's gradient is taken at once, and added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

# Of the free memory that saved activations may take: the rest is for what is computed from them.
SHARE = 0.5
# Bytes taken as free where the system does not tell.
UNKNOWN = 4 * 2**30


class Chunks:
    """Passes batches through a network, some images at a time.

    Args:
        setting: Images at a time. `"auto"` chooses a power of two from the free memory at the first batch. None takes
            the whole batch.
        network: The network that the images pass through.

    Attributes:
        size: Images at a time, None for the whole batch, 0 until `auto` has chosen.
        note: Words for the log on how `auto` chose, where a batch is passed in several chunks.
        draws: Whether the network draws at random (dropout), which a recomputation must repeat.
        adds_up: Whether `weighted_sum` may add the gradients of chunks; if not, it computes them again.
        scaled: Whether the loss is scaled before its backward pass, as in float16. `weighted_sum` computes again then:
            gradients that it takes before could underflow.

    Raises:
        ValueError: Chunks of a network with BatchNorm, whose statistics are those of the whole batch.
    """

    def __init__(self, setting: int | Literal["auto"] | None, network: nn.Module) -> None:
        batchnorm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
        if batchnorm and isinstance(setting, int):
            raise ValueError(
                f"`chunk_size` (={setting}) must be none or auto: these plans use BatchNorm, "
                "whose statistics are those of the whole batch. If that is too large for the memory, lower batch_size, "
                "or take plans with InstanceNorm."
            )
        self.network = network
        self.adds_up = True
        self.scaled = False
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
        """Return `[function(rows), ...]` for consecutive rows of a batch; gradients flow as from one call.

        Args:
            function: Computes the result for some rows with the network. Nothing in it may be random, but for the
                network's dropout.
            n: Rows of the batch.
            device: Device of the network.
        """
        pieces = self._pieces(function, n, device)
        if len(pieces) == 1 or not torch.is_grad_enabled():
            return [function(rows) for rows in pieces]
        return [
            checkpoint(function, rows, use_reentrant=False, preserve_rng_state=self.draws)
            for rows in pieces
        ]

    def weighted_sum(
        self,
        function: Callable[[slice], Tensor],
        n: int,
        device: torch.device,
        weights: Callable[[], Tensor],
        parameters: Sequence[nn.Parameter],
    ) -> tuple[Tensor, Tensor]:
        """Return a loss that is a weighted sum over a batch; gradients flow as from one pass, nothing runs twice.

        Args:
            function: Computes sums over some rows, of any shape, with the network.
            n: Rows of the batch.
            device: Device of the network.
            weights: Returns the weight of each sum, without a gradient. Called once, after the first rows.
            parameters: Those that the sums depend on.

        Returns:
            The loss; the sums over the whole batch, without a gradient.
        """
        pieces = self._pieces(function, n, device)
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        several = len(pieces) > 1 and torch.is_grad_enabled() and bool(wanted)
        if several and self.adds_up and not self.scaled:
            loss, sums = _Accumulated.apply(function, pieces, weights, *wanted)
            return loss, sums
        total = torch.stack(self.run(function, n, device)).sum(0)
        return (weights() * total).sum(), total.detach()

    def _pieces(
        self, function: Callable[[slice], Tensor], n: int, device: torch.device
    ) -> list[slice]:
        if self.size == 0:
            self._choose(function, n, device)
        size = self.size or n
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def _choose(self, function: Callable[[slice], Tensor], n: int, device: torch.device) -> None:
        if n < 2:
            return  # nothing to measure, and nothing to split
        # The difference, because copies of the weights in another precision do not grow with the batch.
        each = self._saved_bytes(function, 2) - self._saved_bytes(function, 1)
        free = free_memory(device)
        fitting = max(1, int(SHARE * free / max(each, 1)))
        # A power of two, so that a little more or less free memory changes nothing.
        self.size = 2 ** int(math.log2(fitting))
        if self.size < n:
            self.note = (
                f"chunk_size=auto: {n} images pass in {math.ceil(n / self.size)} chunks of {self.size}, which memory "
                f"has room for ({each / 2**20:.1f} MiB of activations an image, {free / 2**30:.1f} GiB free)"
            )

    def _saved_bytes(self, function: Callable[[slice], Tensor], n: int) -> int:
        """Count the bytes that autograd keeps for the backward pass of n images, without the weights."""
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


class _Accumulated(torch.autograd.Function):
    """`Chunks.weighted_sum`: its forward pass also takes the gradients, its backward pass hands them over."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[[slice], Tensor],
        pieces: Sequence[slice],
        weights: Callable[[], Tensor],
        *parameters: nn.Parameter,
    ) -> tuple[Tensor, Tensor]:
        gradients: list[Tensor | None] = [None] * len(parameters)
        weight: Tensor | None = None
        totals: list[Tensor] = []
        for rows in pieces:
            with torch.enable_grad():
                sums = function(rows)
                weight = weights() if weight is None else weight
                found = torch.autograd.grad((weight * sums).sum(), parameters, allow_unused=True)
            totals.append(sums.detach())
            for number, gradient in enumerate(found):
                before = gradients[number]
                if before is None or gradient is None:
                    gradients[number] = before if gradient is None else gradient
                else:
                    before.add_(gradient)
        ctx.gradients = gradients
        total = torch.stack(totals).sum(0)
        ctx.mark_non_differentiable(total)
        assert weight is not None
        return (weight * total).sum(), total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, None, *(g if g is None else g.mul_(outer[0]) for g in gradients)


def eager() -> AbstractContextManager[object]:
    """Turn compilation off for the odd sizes of a measurement, where torch can (2.6 and newer)."""
    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance else nullcontext()


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; on the CPU those that the system and a container's limit leave."""
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
    """Return the bytes that a container's limit leaves (cgroup version 2), or None without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
        # Pages of files that the system can drop, such as the slice store's, are as good as free.
        return max(int(limit) - int(used) + int(statistics.get("inactive_file", 0)), 0)
    except (OSError, ValueError):  # no such limit: the file is missing or says "max"
        return None
