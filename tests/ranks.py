"""Runs a function on several processes that train together, as `torchrun` would, with gloo on the CPU."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(function: Callable[..., Any], ranks: int, folder: Path, *arguments: Any) -> list[Any]:
    """Return what `function(*arguments)`, a top-level function, returns on each rank: tensors and builtins."""
    mp.spawn(_one_rank, (ranks, str(folder), function, arguments), nprocs=ranks)
    return [torch.load(folder / f"rank{number}.pt") for number in range(ranks)]


def _one_rank(
    number: int, ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=ranks
    )
    try:
        torch.save(function(*arguments), f"{folder}/rank{number}.pt")
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        raise
    dist.destroy_process_group()
    # Not by way of the interpreter's end: gloo's threads, when they meet it, abort a process that has done its work
    # ("terminate called without an active exception").
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
