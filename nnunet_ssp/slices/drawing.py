"""The slices that training draws: their order, and where they are read from.

A batch is drawn by index, copied once into a canvas of the batch's largest slice, and everything after that runs on the
device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ssp.slices.store import SliceStore


class DeviceStore:
    """The slices of a store as one flat tensor on the device; drawing is one gather."""

    def __init__(self, store: SliceStore, device: torch.device) -> None:
        self.store = store
        lengths = store.sizes.prod(1) * store.channels
        self.offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()[:-1]])).to(device)
        self.sizes = torch.from_numpy(store.sizes).to(device)
        self.flat = torch.empty(int(lengths.sum()), dtype=torch.float16, device=device)
        start = 0
        for case in range(len(store.names)):
            part = torch.from_numpy(store.array(case).reshape(-1).copy())
            self.flat[start : start + len(part)] = part.to(device)
            start += len(part)

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """Copy slices into one canvas on the device, as `SliceStore.read` does."""
        device = self.flat.device
        flat = indices.reshape(-1)
        height, width = (int(side) for side in self.store.sizes[flat].max(0))
        chosen = torch.from_numpy(flat.copy()).to(device, non_blocking=True)
        size = self.sizes[chosen]
        channel = torch.arange(self.store.channels, device=device)[None, :, None, None]
        row = torch.arange(height, device=device)[None, None, :, None]
        column = torch.arange(width, device=device)
        rows, columns = (size[:, i, None, None, None] for i in (0, 1))
        inside = (row < rows) & (column < columns)
        position = (
            (channel * rows + row) * columns + column + self.offsets[chosen][:, None, None, None]
        )
        canvas = torch.where(inside, self.flat[position.where(inside, 0)], 0.0)
        return canvas.reshape(*indices.shape, *canvas.shape[1:])


class SameSlice:
    """For each slice, the frames of the same slice of the same subject.

    Args:
        store: The slices.
        subjects: The subject of each case in `store.names`.
    """

    def __init__(self, store: SliceStore, subjects: Sequence[str]) -> None:
        _, subject = np.unique(np.asarray(subjects), return_inverse=True)
        place = np.column_stack([subject[store.case_of], store.positions])
        _, self.group = np.unique(place, axis=0, return_inverse=True)
        self.members = np.argsort(self.group, kind="stable")
        self.counts = np.bincount(self.group)
        self.starts = self.counts.cumsum() - self.counts

    def draw(self, rng: np.random.Generator, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw one frame of each slice, uniformly among all of its frames.

        Args:
            rng: Source of randomness.
            indices: (B,) numbers of slices.
        """
        group = self.group[indices]
        chosen = np.floor(rng.random(len(indices)) * self.counts[group]).astype(np.int64)
        return self.members[self.starts[group] + chosen]


# Independent random streams of one seed. To numpy, a list of numbers and the same list with a 0 at its end are one
# seed, so all have three entries.
ORDER, DRAW, VALIDATION, FRAME = 1, 2, 3, 4


def random_stream(seed: int, stream: int, number: int) -> np.random.Generator:
    """Return the generator of an epoch's order, a step's views and masks, its second frames, or the validation."""
    return np.random.default_rng([seed, stream, number])


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the permutation of n slices in pass number `epoch` over the data; read-only, as it is cached."""
    order = random_stream(seed, ORDER, epoch).permutation(n)
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, n: int, batch_size: int) -> NDArray[np.int64]:
    """Return the slices that a step draws: each pass of `n // batch_size` batches is a fresh permutation.

    They depend on the step alone, so an interrupted run goes on exactly, whatever the length of its epochs.

    Raises:
        ValueError: The batch is larger than the data.
    """
    if not 1 <= batch_size <= n:
        raise ValueError(
            f"`batch_size` (={batch_size}) must lie between 1 and the number of slices to train on (={n})."
        )
    epoch, batch = divmod(step, n // batch_size)
    return epoch_order(seed, epoch, n)[batch * batch_size : (batch + 1) * batch_size]


def fits_on_device(store: SliceStore, device: torch.device) -> bool:
    """Whether the slices take less than half of the device's free memory; never on the CPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return store.nbytes < free / 2


class SliceReader:
    """Reader of the slices of a run's steps, in order: from the device, or from disk one step ahead.

    Args:
        store: The slices.
        device: The device to read them to.
        on_device: Keep all slices on the device.
    """

    def __init__(self, store: SliceStore, device: torch.device, on_device: bool) -> None:
        self.store = store
        self.device = device
        self.resident = DeviceStore(store, device) if on_device else None

    def steps(self, plan: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Yield the canvas (B, C, X, Y) on the device for each set of indices in `plan`.

        While the caller works with one batch, a thread reads the next one into pinned memory.
        """
        if self.resident is not None:
            yield from (self.resident.read(indices) for indices in plan)
            return
        pin = self.device.type == "cuda"
        with ThreadPoolExecutor(1, thread_name_prefix="slices") as pool:

            def submit() -> Future[Tensor] | None:
                indices = next(plan, None)
                return None if indices is None else pool.submit(self.store.read, indices, pin)

            waiting = submit()
            while waiting is not None:
                ready, waiting = waiting.result(), submit()
                yield ready.to(self.device, non_blocking=True)
