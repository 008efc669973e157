"""The slices that training draws: their order, and where they are read from.

A batch is drawn by index, copied once into a canvas of the batch's largest slice, and everything after that runs on the
device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ssp.console import count_of, some
from nnunet_ssp.slices.intact import prepare_command, require_size
from nnunet_ssp.slices.store import read_index


class SliceStore:
    """Slices of the chosen cases, numbered from 0 in the order of the cases.

    Opening reads the index and asks for the sizes of the files; a file is read when it is drawn from.

    Args:
        folder: The store.
        cases: The cases to open; None opens all.
        bases: By case, the end of the stack that is the base of the heart: `first`, `last` or `unknown`, the default.

    Attributes:
        names: Names of the cases.
        case_of: (n,) position in `names` of each slice.
        slice_of: (n,) position of each slice in its array.
        sizes: (n, 2) rows and columns of each slice.
        positions: (n, 2) number of each slice in its original stack, counted from the base (as stored where the base
            is unknown), and the number of slices of that stack.
        bases: The base of each case.
        channels: Number of channels.

    Raises:
        FileNotFoundError: The store or a case's file is missing.
        ValueError: A case is not in the store, a file has another size than the index says, or cases have different
            numbers of channels.
    """

    def __init__(
        self,
        folder: str | Path,
        cases: Sequence[str] | None = None,
        bases: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.preprocessing, index = read_index(self.folder)
        self.names = list(index) if cases is None else list(cases)
        absent = [name for name in self.names if name not in index]
        if absent:
            raise ValueError(
                f"{self.folder}: {count_of(len(absent), 'case')} not in the slice store, {some(absent)}: "
                f"run {prepare_command(self.folder)}."
            )
        self.cases = [index[name] for name in self.names]
        files = {
            entry.place(name)[0]: entry.file_size
            for name, entry in zip(self.names, self.cases, strict=True)
        }
        for file, size in files.items():
            require_size(self.folder / file, size, self.folder)
        channels = {entry.shape[1] for entry in self.cases}
        if len(channels) > 1:
            raise ValueError(
                f"{self.folder}: cases must have equal channels, not {' and '.join(map(str, sorted(channels)))}."
            )
        self.channels = channels.pop() if channels else 0
        lengths = np.array([entry.shape[0] for entry in self.cases], dtype=np.int64)
        self.case_of = np.repeat(np.arange(len(lengths)), lengths)
        starts = np.concatenate([[0], lengths.cumsum()[:-1]]) if len(lengths) else lengths
        self.slice_of = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        shapes = np.array([entry.shape[2:] for entry in self.cases], dtype=np.int64).reshape(-1, 2)
        self.sizes = shapes[self.case_of]
        self.bases = [(bases or {}).get(name, "unknown") for name in self.names]
        stacks = [(entry.first_slice, entry.n_slices) for entry in self.cases]
        first, depth = np.array(stacks, dtype=np.int64).reshape(-1, 2)[self.case_of].T
        number = first + self.slice_of
        turned = np.array([base == "last" for base in self.bases], dtype=bool)[self.case_of]
        self.positions = np.stack([np.where(turned, depth - 1 - number, number), depth], 1)

    def __len__(self) -> int:
        return len(self.case_of)

    @property
    def nbytes(self) -> int:
        """Bytes of all slices."""
        return int(self.sizes.prod(1).sum()) * self.channels * 2

    def array(self, case: int) -> NDArray[np.float16]:
        """Map the array (slices, channels, rows, cols) of case number `case`.

        It is mapped anew each time: a map keeps its file open, and M&Ms has more files than a process may open.
        """
        entry = self.cases[case]
        name, offset = entry.place(self.names[case])
        file = self.folder / name
        try:
            array: NDArray[np.float16] = (
                np.memmap(file, np.float16, "r", offset, entry.shape)
                if entry.pack
                else np.load(file, mmap_mode="r")
            )
        except (OSError, ValueError, EOFError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(
                f"{file} cannot be read ({error}): run {prepare_command(self.folder)}, which makes it anew."
            ) from error
        expected = entry.shape
        if array.shape != expected or array.dtype != np.float16:
            raise ValueError(
                f"{file}: {array.dtype} {array.shape} must be the index's float16 {expected}: "
                f"run {prepare_command(self.folder)}."
            )
        return array

    def slice(self, index: int) -> NDArray[np.float16]:
        """Read slice number `index` (channels, rows, cols).

        Reading takes a fifth of the time of mapping where each slice comes from another file.
        """
        case, number = self.case_of[index], self.slice_of[index]
        entry = self.cases[case]
        shape, header = entry.shape, entry.header
        nbytes = 2 * math.prod(shape[1:])
        name, offset = entry.place(self.names[case])
        with suppress(OSError), open(f"{self.folder}/{name}", "rb", buffering=0) as file:
            if file.read(len(header)) == header:
                file.seek(offset + int(number) * nbytes)
                content = file.read(nbytes)
                if len(content) == nbytes:
                    return np.frombuffer(content, np.float16).reshape(shape[1:])
        return self.array(case)[number]  # says what is wrong

    def read(self, indices: NDArray[np.int64], pin: bool = False) -> Tensor:
        """Copy slices into one canvas.

        Args:
            indices: (B,) numbers of slices, or (B, 2).
            pin: Use page-locked memory, for copies to CUDA that do not block.

        Returns:
            (B, C, X, Y) float16, or (B, 2, C, X, Y): each slice in the top left corner, 0 beyond its size.
        """
        flat = indices.reshape(-1)
        shape = (len(flat), self.channels, *self.sizes[flat].max(0))
        canvas = torch.zeros(shape, dtype=torch.float16, pin_memory=pin)
        target = canvas.numpy()
        for row, index in enumerate(flat):
            rows, columns = self.sizes[index]
            target[row, :, :rows, :columns] = self.slice(int(index))
        return canvas.reshape(*indices.shape, *shape[1:])


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
        self.place = np.empty_like(self.members)  # of each slice among the members
        self.place[self.members] = np.arange(len(self.members))

    def draw(
        self, rng: np.random.Generator, indices: NDArray[np.int64], other: bool = False
    ) -> NDArray[np.int64]:
        """Draw one frame of each slice, uniformly among all of its frames.

        Args:
            rng: Source of randomness.
            indices: (B,) numbers of slices.
            other: Leave out the frame itself, where there is another one.
        """
        group = self.group[indices]
        left_out = (self.counts[group] > 1) & other
        chosen = np.floor(rng.random(len(indices)) * (self.counts[group] - left_out))
        chosen = chosen.astype(np.int64) + self.starts[group]
        return self.members[chosen + (left_out & (chosen >= self.place[indices]))]


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
            f"`batch_size` (={batch_size}) must lie between 1 and the number of slices to train on (={n}). "
            f"Set a smaller one in nnUNet_ssp_settings, such as batch_size={max(1, min(n, 16))}."
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
