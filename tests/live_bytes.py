"""Counts memory without a clock or the operating system: the same figures on every machine."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that came into being inside of it: what is alive, and its peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.note((args, kwargs), count=False)  # not yet known: it was there before
        result = function(*args, **(kwargs or {}))
        self.note(result, count=True)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result

    def note(self, tensors: Any, count: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes() if count else 0
                    weakref.finalize(storage, self.alive.pop, storage._cdata)
