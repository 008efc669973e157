"""The slice store: every slice of a dataset after nnU-Net's own preprocessing, ready to be drawn.

On disk, `<data_identifier>_slices/` holds one float16 array (slices, channels, rows, cols) per case and `index.json`,
which says which plans made it and what each case is. In training a batch is drawn by index, copied once into a canvas
of the batch's largest slice, and everything after that runs on the device.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ssp.cases import TEMPORARY, atomic_write, write_json
from nnunet_ssp.contents import NAMES, Rule, check, is_whole, read_json
from nnunet_ssp.names import must_all_be_plain, must_be_plain

INDEX = "index.json"
PREPROCESSED = (".b2nd", ".npz")  # endings of nnU-Net's preprocessed cases
FLOAT16_MAX = 65504.0
LONGEST_SIDE = (
    2**16
)  # of an array of the store; a damaged index must not ask for more memory than there is


def _is_side(value: object) -> bool:
    return is_whole(value) and value < LONGEST_SIDE  # type: ignore[operator]


def _is_stamp(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and is_whole(value[1])
        and is_whole(value[2], -(2**63))  # a file may be older than 1970
    )


_SIDE = Rule(f"a whole number from 0, below {LONGEST_SIDE}", _is_side)
ENTRY = {  # of a case in the index, see `StoredCase`
    "shape": Rule(
        f"four whole numbers from 0, below {LONGEST_SIDE}",
        lambda v: isinstance(v, list) and len(v) == 4 and all(map(_is_side, v)),
    ),
    "first_slice": _SIDE,
    "n_slices": _SIDE,
    "source": Rule(
        "a list of [name, bytes, time]", lambda v: isinstance(v, list) and all(map(_is_stamp, v))
    ),
}


@dataclass(frozen=True)
class StoredCase:
    """One case of the store.

    Attributes:
        shape: (slices, channels, rows, cols) of its array.
        first_slice: position of its first slice in the original stack, which nnU-Net's crop may have shortened.
        n_slices: slices of the original stack.
        source: what it was made from, (file name, bytes, modification time in ns) per file: a changed file is
            prepared again.
    """

    shape: tuple[int, int, int, int]
    first_slice: int
    n_slices: int
    source: tuple[tuple[str, int, int], ...] = ()


def file_stamp(file: Path) -> tuple[str, int, int]:
    """Name, size in bytes and modification time in ns: differs when a file was replaced."""
    stat = file.stat()
    return file.name, stat.st_size, stat.st_mtime_ns


def store_folder(preprocessed: str | Path, data_identifier: str) -> Path:
    """The store that belongs to ``preprocessed/data_identifier``."""
    return Path(preprocessed) / f"{must_be_plain(data_identifier, 'data_identifier')}_slices"


def preprocessing_of(plans: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """What of the plans decides how a preprocessed slice looks; two stores fit together when these are equal.

    Args:
        plans: content of the plans file.
        configuration: the resolved configuration (``ConfigurationManager.configuration``).
    """
    names = (
        "spacing",
        "normalization_schemes",
        "use_mask_for_norm",
        "resampling_fn_data",
        "resampling_fn_data_kwargs",
    )
    chosen = {name: configuration[name] for name in names}
    chosen["transpose_forward"] = plans["transpose_forward"]
    # Only these schemes look at the intensities of the whole dataset.
    if any(scheme == "CTNormalization" for scheme in configuration["normalization_schemes"]):
        chosen["intensities"] = plans["foreground_intensity_properties_per_channel"]
    return dict(json.loads(json.dumps(chosen)))


def write_case(folder: Path, case: str, data: NDArray[Any]) -> tuple[int, int, int, int]:
    """Write one case's slices.

    Args:
        folder: the store; created when missing.
        case: name of the case.
        data: (channels, slices, rows, cols), as nnU-Net's preprocessing returns it.

    Returns:
        The shape written: (slices, channels, rows, cols).

    Raises:
        ValueError: values that are not finite or beyond float16.
    """
    largest = float(np.abs(data).max(initial=0.0))
    if not largest <= FLOAT16_MAX:  # also catches NaN
        raise ValueError(
            f"{case}: the largest preprocessed intensity (={largest}) must be finite and at most {FLOAT16_MAX:.0f}, "
            f"float16's range; choose a normalisation in dataset.json's channel_names."
        )
    slices = np.ascontiguousarray(data.swapaxes(0, 1), dtype=np.float16)
    must_be_plain(case, "case", str(folder))
    with atomic_write(folder / f"{case}.npy", folder.parent / TEMPORARY) as temporary:
        np.save(temporary, slices)
    n, c, rows, cols = slices.shape
    return n, c, rows, cols


def write_index(folder: Path, preprocessing: dict[str, Any], cases: dict[str, StoredCase]) -> None:
    """Write `index.json` as a whole."""
    entries = {case: asdict(entry) for case, entry in sorted(cases.items())}
    write_json(folder / INDEX, {"preprocessing": preprocessing, "cases": entries})


def read_index(folder: Path) -> tuple[dict[str, Any], dict[str, StoredCase]]:
    """Read `index.json`.

    Returns:
        The preprocessing that made the store, and its cases by name.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: the file is damaged.
    """
    file = folder / INDEX
    try:
        content = read_json(file, dict)
        check(content, {"cases": NAMES, "preprocessing": NAMES}, "it", ("cases", "preprocessing"))
        must_all_be_plain(content["cases"], "case", "it")
        for name, entry in content["cases"].items():
            check(entry, ENTRY, name, tuple(ENTRY))
        cases = {
            name: StoredCase(
                tuple(e["shape"]),
                e["first_slice"],
                e["n_slices"],
                tuple((n, size, time) for n, size, time in e["source"]),
            )
            for name, e in content["cases"].items()
        }
        return content["preprocessing"], cases
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{file} is missing: run nnunet-ssp prepare for this dataset and these plans."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): delete the folder and run nnunet-ssp prepare again."
        ) from error


def add_preprocessed(folder: Path, preprocessed: Path, case: str) -> StoredCase:
    """Copy one case of nnU-Net's preprocessed folder into the store.

    Args:
        folder: the store.
        preprocessed: nnU-Net's `<data_identifier>` folder.
        case: name of the case.

    Raises:
        ValueError: the case cannot be read, or its values do not fit float16.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(preprocessed))(str(preprocessed), [case])
    try:
        data, _, _, properties = dataset.load_case(case)
        data = np.asarray(data[:])
    except Exception as error:  # blosc2, numpy and pickle each have their own
        raise ValueError(f"{preprocessed / case}: cannot be read ({error}).") from error
    return StoredCase(write_case(folder, case, data), *stack_position(properties))


def follow_preprocessed(store: Path, preprocessed: Path, preprocessing: dict[str, Any]) -> bool:
    """Bring the store of a plain nnU-Net dataset up to date with nnU-Net's own folder.

    New and changed cases are copied, those that are gone are dropped. A store that was made from raw images, or by
    other plans, is left alone.

    Args:
        store: the slice store; it need not exist.
        preprocessed: nnU-Net's `<data_identifier>` folder.
        preprocessing: what the plans say now, see `preprocessing_of`.

    Returns:
        Whether anything changed.

    Raises:
        FileNotFoundError: there is neither a store nor the folder.
        ValueError: a case cannot be read, or its values do not fit float16.
    """
    from tqdm import tqdm

    done: dict[str, StoredCase] = {}
    if (store / INDEX).is_file():
        made_by, done = read_index(store)
        from_folder = all(
            len(e.source) == 1 and e.source[0][0].endswith(PREPROCESSED) for e in done.values()
        )
        if not from_folder or made_by != preprocessing:
            return False
    if not preprocessed.is_dir():
        raise FileNotFoundError(
            f"{preprocessed} does not exist: run nnunet-ssp prepare or nnUNetv2_plan_and_preprocess."
        )
    sources = {
        file.stem: (file_stamp(file),)
        for file in sorted(preprocessed.iterdir())
        if file.name.endswith(PREPROCESSED) and not file.stem.endswith("_seg")
    }
    kept = {case: done[case] for case in done if sources.get(case) == done[case].source}
    missing = [case for case in sources if case not in kept]
    if not missing and len(kept) == len(done):
        return False
    for case in tqdm(missing, desc="slice store", unit="case"):
        entry = add_preprocessed(store, preprocessed, case)
        kept[case] = replace(entry, source=sources[case])
    write_index(store, preprocessing, kept)
    shutil.rmtree(store.parent / TEMPORARY, ignore_errors=True)
    return True


def stack_position(properties: dict[str, Any]) -> tuple[int, int]:
    """(first slice, slices of the original stack) from a case's properties: undoes nnU-Net's non-zero crop."""
    first_slice = int(properties["bbox_used_for_cropping"][0][0])
    return first_slice, int(properties["shape_before_cropping"][0])


class SliceStore:
    """Slices of the chosen cases, numbered from 0 in the order of the cases.

    Opening reads only the index; a case's file is mapped when it is first drawn from.

    Args:
        folder: the store.
        cases: the cases to open; None opens all.
        bases: by case, the end of the stack that is the base of the heart: ``first``, ``last`` or ``unknown``, which
            is also what an absent case has.

    Attributes:
        names: names of the cases.
        case_of: (n,) position in ``names`` of each slice.
        slice_of: (n,) position of each slice in its array.
        sizes: (n, 2) rows and columns of each slice.
        positions: (n, 2) number of each slice in its original stack, counted from the base (as stored where the base
            is unknown), and the number of slices of that stack.
        bases: of each case.
        channels: channels of every slice.

    Raises:
        FileNotFoundError: no store, or a case's file is missing.
        ValueError: a case that is not in the store, or cases with different numbers of channels.
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
                f"{self.folder}: {len(absent)} case(s) are not in the slice store, e.g. {absent[0]}; "
                "run nnunet-ssp prepare again."
            )
        self.cases = [index[name] for name in self.names]
        channels = {entry.shape[1] for entry in self.cases}
        if len(channels) > 1:
            raise ValueError(
                f"{self.folder}: cases must have equal channels, not {sorted(channels)}."
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
        """The memory-mapped (slices, channels, rows, cols) of case number ``case``.

        Mapped anew each time: a map keeps its file open, and M&Ms has more files than a process may open.
        """
        file = self.folder / f"{self.names[case]}.npy"
        try:
            array: NDArray[np.float16] = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{file} cannot be read ({error}): run nnunet-ssp prepare again.") from error
        expected = self.cases[case].shape
        if array.shape != expected or array.dtype != np.float16:
            raise ValueError(
                f"{file}: {array.dtype} {array.shape} must be the index's float16 {expected}: "
                "run nnunet-ssp prepare again."
            )
        return array

    def slice(self, index: int) -> NDArray[np.float16]:
        """The (channels, rows, cols) of slice number ``index``.

        Read, not mapped: a fifth of the time where each slice comes from another file.
        """
        case, number = self.case_of[index], self.slice_of[index]
        shape = self.cases[case].shape
        nbytes = 2 * math.prod(shape[1:])
        with (
            suppress(OSError),
            open(f"{self.folder}/{self.names[case]}.npy", "rb", buffering=0) as file,
        ):
            header = _npy_header(shape)
            if file.read(len(header)) == header:
                file.seek(number * nbytes, os.SEEK_CUR)
                content = file.read(nbytes)
                if len(content) == nbytes:
                    return np.frombuffer(content, np.float16).reshape(shape[1:])
        return self.array(case)[number]  # says what is wrong

    def read(self, indices: NDArray[np.int64], pin: bool = False) -> Tensor:
        """Copy slices into one canvas.

        Args:
            indices: (B,) numbers of slices, or (B, 2).
            pin: use page-locked memory, for copies to CUDA that do not block.

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


@lru_cache(maxsize=1024)
def _npy_header(shape: tuple[int, int, int, int]) -> bytes:
    """How a file of `write_case` begins."""
    stream = io.BytesIO()
    content = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, content)
    return stream.getvalue()


class DeviceStore:
    """The same slices as one flat tensor on the device; drawing is one gather."""

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
        """As `SliceStore.read`, on the device."""
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
    """Finds, for each slice, the frames of the same slice of the same subject.

    Args:
        store: the slices.
        subjects: of each case in ``store.names``.
    """

    def __init__(self, store: SliceStore, subjects: Sequence[str]) -> None:
        _, subject = np.unique(np.asarray(subjects), return_inverse=True)
        place = np.column_stack([subject[store.case_of], store.positions])
        _, self.group = np.unique(place, axis=0, return_inverse=True)
        self.members = np.argsort(self.group, kind="stable")
        self.counts = np.bincount(self.group)
        self.starts = self.counts.cumsum() - self.counts

    def draw(self, rng: np.random.Generator, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each slice one of its frames, uniformly, itself among them.

        Args:
            rng: source of randomness.
            indices: (B,) numbers of slices.
        """
        group = self.group[indices]
        chosen = np.floor(rng.random(len(indices)) * self.counts[group]).astype(np.int64)
        return self.members[self.starts[group] + chosen]


# Independent random streams of one seed. (A list of numbers and the same list with a 0 at its end are one seed to
# numpy, so all have three entries.)
ORDER, DRAW, VALIDATION, FRAME = 1, 2, 3, 4


def random_stream(seed: int, stream: int, number: int) -> np.random.Generator:
    """The generator of one epoch's order, one step's views and masks, its second frames, or the validation's."""
    return np.random.default_rng([seed, stream, number])


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The permutation of n slices that pass number ``epoch`` over the data takes; read-only, as it is kept."""
    order = random_stream(seed, ORDER, epoch).permutation(n)
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, n: int, batch_size: int) -> NDArray[np.int64]:
    """Which slices step number ``step`` draws: passes of ``n // batch_size`` batches, each a fresh permutation.

    A function of the step alone, so that an interrupted run goes on exactly, whatever the length of its epochs.

    Raises:
        ValueError: a batch larger than the data.
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
    """Reads the slices of a run's steps in order: from the device, or from disk one step ahead.

    Args:
        store: where the slices are.
        device: where they shall be.
        on_device: keep all slices on the device.
    """

    def __init__(self, store: SliceStore, device: torch.device, on_device: bool) -> None:
        self.store = store
        self.device = device
        self.resident = DeviceStore(store, device) if on_device else None

    def steps(self, plan: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Yield the canvas (B, C, X, Y) on the device for each set of indices; ends with ``plan``.

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
