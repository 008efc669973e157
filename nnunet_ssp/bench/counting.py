"""Count what a piece of work takes, operator by operator: memory, and the least time that a device needs."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class LiveBytes(TorchDispatchMode):
    """Count of the bytes of all tensors made inside the block, the same on every machine.

    Attributes:
        alive: Bytes of each tensor's memory that still exists.
        peak: Largest sum of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.note((args, kwargs), count=False)  # not known yet, so it was there before
        result = function(*args, **(kwargs or {}))
        self.note(result, count=True)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result

    def note(self, tensors: Any, count: bool) -> None:
        """Remember the memory of tensors: with its size, or as memory that does not count."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes() if count else 0
                    weakref.finalize(storage, self.alive.pop, storage._cdata)


class Floor(TorchDispatchMode):
    """Sum of the least time of each operator: its arithmetic or its traffic, whichever takes longer.

    An operator's traffic is its arguments read once and its results written once; views cost nothing. A program that
    fuses operators can be faster. One that reads an argument twice (a normalisation) cannot reach the floor.

    Args:
        flops_per_s: Floating-point operations per second; a multiplication and an addition count two.
        bytes_per_s: Bytes per second, read and written.

    Attributes:
        flops: Operations so far, of convolutions and matrix products.
        bytes: Bytes moved so far.
        seconds: Floor so far.
    """

    def __init__(self, flops_per_s: float, bytes_per_s: float) -> None:
        super().__init__()
        self.flops_per_s = flops_per_s
        self.bytes_per_s = bytes_per_s
        self.flops = 0
        self.bytes = 0
        self.seconds = 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        count = flop_registry.get(function._overloadpacket)
        flops = count(*args, **kwargs, out_val=result) if count else 0
        moved = 0
        if not function.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            moved = sum(x.numel() * x.element_size() for x in tensors)
        self.flops += flops
        self.bytes += moved
        self.seconds += max(flops / self.flops_per_s, moved / self.bytes_per_s)
        return result
