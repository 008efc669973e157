"""Processes that train together, and the collective operations that they need; these do nothing in a single process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def launched() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launching_words() -> list[str]:
    """Return the words that start the same processes again, before those of our own command."""
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    words = ["torchrun", "--nnodes", nodes, "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:PORT"]
    return [*words, *(["--standalone"] if nodes == "1" else meeting), "--no-python"]


def device_of_rank(device: torch.device) -> torch.device:
    """Return the device of this rank: of a machine's GPUs the one with its number there."""
    if device.type != "cuda":
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) if launched() else rank())


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun has started, with NCCL on GPUs and gloo elsewhere, until the block ends.

    A failed process ends the others in words. A single process joins nobody.

    Args:
        device: Kind of the devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device_of_rank(device))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with ending_with_other_ranks(lambda: "Its own output says why."):
            yield
            dist.barrier()
    except BaseException:
        if device.type != "cuda" and dist.is_initialized():  # NCCL would wait for the others
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def require_equal_ranks(described: Mapping[str, Any]) -> None:
    """Refuse ranks that would not train alike; each of them raises.

    Args:
        described: What must be equal on all ranks, by name.

    Raises:
        ValueError: Names every difference of the first rank that differs from rank 0.
    """
    if world_size() == 1:
        return
    every: list[dict[str, Any]] = [{}] * world_size()
    dist.all_gather_object(every, dict(described))
    for number, other in enumerate(every):
        changed = [
            f"{name}: {_differing(value, other.get(name), number)}"
            for name, value in every[0].items()
            if value != other.get(name)
        ]
        if changed:
            raise ValueError(
                f"rank {number} differs from rank 0, and all ranks must train alike: {'; '.join(changed)}."
            )


def _differing(first: Any, other: Any, number: int) -> str:
    """Say how two values differ; of lists how long they are, and what only one has."""
    if not isinstance(first, list) or not isinstance(other, list):
        return f"{first} on rank 0, {other} on rank {number}"
    alone = min({*first} ^ {*other}, default="the order")
    return f"{len(first)} on rank 0, {len(other)} on rank {number}; {alone} differs"


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over all ranks, without a gradient."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def max_over_ranks(x: Tensor) -> Tensor:
    """Take the elementwise maximum over all ranks, without a gradient."""
    if world_size() == 1:
        return x.detach()
    largest = x.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


@contextmanager
def ending_with_other_ranks(say: Callable[[], str]) -> Iterator[None]:
    """End this process when another rank has gone, with one line in place of gloo's or NCCL's traceback.

    A collective operation fails then, and so would all that follow, the orderly end included.

    Args:
        say: Returns the end of the line.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _connection_failed(error):
            raise
        line = f"Rank {rank()} ends, as another of the {world_size()} ranks has gone. {say()}"
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)


def _connection_failed(error: RuntimeError) -> bool:
    """Whether the connection between ranks has failed; gloo's errors have no class of their own."""
    words = r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe"
    return isinstance(error, dist.DistError) or bool(re.search(words, str(error), re.IGNORECASE))


def mean_over_steps(outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the mean of each scalar over steps and ranks; the only wait for the device in an epoch.

    Args:
        outputs: Scalars of each step by name.
    """
    names = list(outputs[0])
    steps = torch.stack([torch.stack([o[name].float() for name in names]) for o in outputs])
    means = (sum_over_ranks(steps.mean(0)) / world_size()).tolist()
    return dict(zip(names, means, strict=True))


def share(total: int, number: int | None = None) -> slice:
    """Return the rows of a global batch that a rank works on; ranks differ by at most one row.

    Args:
        total: Rows of the global batch.
        number: Number of the rank; this one by default.
    """
    n = world_size()
    number = rank() if number is None else number
    size, longer = divmod(total, n)
    start = number * size + min(number, longer)
    return slice(start, start + size + (number < longer))


def gather_rows(x: Tensor, total: int) -> Tensor:
    """Return the rows of all ranks, in the order of the global batch, with a gradient to this rank's own.

    Every rank computes the same loss from the gathered rows. DDP averages gradients over ranks, so the gradient of this
    rank's rows is multiplied by the number of ranks here. The result is the gradient of one process with the whole
    batch, both for parameters before (each rank adds its rows' part) and after (equal on all ranks).

    Args:
        x: (n, ...), this rank's share of the rows.
        total: Rows of the global batch.

    Raises:
        ValueError: `x` has another number of rows than `share` says.
    """
    own = share(total)
    if len(x) != own.stop - own.start:
        raise ValueError(
            f"`x` must have this rank's {own.stop - own.start} of {total} rows, not {len(x)}."
        )
    gathered: Tensor = x if world_size() == 1 else _Gather.apply(x, total)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, total: int) -> Tensor:
        ctx.total = total
        parts = [share(total, number) for number in range(world_size())]
        longest = max(part.stop - part.start for part in parts)
        padded = x.new_zeros((longest, *x.shape[1:]))  # collectives want equal sizes
        padded[: len(x)] = x
        received = [torch.empty_like(padded) for _ in parts]
        dist.all_gather(received, padded)
        return torch.cat(
            [r[: part.stop - part.start] for r, part in zip(received, parts, strict=True)]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][share(ctx.total)] * world_size(), None


def with_global_statistics(network: nn.Module, over_ranks: bool) -> nn.Module:
    """Let the network's BatchNorm take its statistics over all ranks, so that their number changes nothing.

    Names of tensors stay. SyncBatchNorm needs CUDA.

    Args:
        network: The planned network; one without BatchNorm stays as it is.
        over_ranks: Whether there are several ranks, on CUDA.
    """
    if not over_ranks:
        return network
    if (
        "timm" in sys.modules
    ):  # its BatchNorm may hold the activation, which torch's converter drops
        from timm.layers import convert_sync_batchnorm

        synchronised: nn.Module = convert_sync_batchnorm(network)
        return synchronised
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted
