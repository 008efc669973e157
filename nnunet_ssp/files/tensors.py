"""Tensors in the format safetensors, which runs no code: written and read in one pass, without a second copy.

A file is the length of a header in 8 bytes, the header, and the bytes of the tensors without gaps. The header is JSON:
type, shape and place of each tensor by name, and texts about the file in `__metadata__`. The library of that name reads
and writes the same files. It needs a file of its own or all bytes in memory, and takes no checksum on the way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nnunet_ssp.files.contents import NAMES, Rule, check, is_whole, nests_too_deeply, shown

METADATA = "__metadata__"
EARLY = "not whole: it ends early."
LENGTH = 8  # bytes of the header's length, with which a file begins
LONGEST_HEADER = 2**26
LARGEST_SIDE, MOST_AXES = 2**31, 8
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES_OF_TYPES = {dtype: name for name, dtype in TYPES.items()}

SHAPE = Rule(
    f"a list of at most {MOST_AXES} whole numbers from 1",
    lambda v: isinstance(v, list)
    and len(v) <= MOST_AXES
    and all(is_whole(side, 1) and side < LARGEST_SIDE for side in v),
)
ENTRY = {
    "dtype": Rule(f"one of {', '.join(TYPES)}", lambda v: isinstance(v, str) and v in TYPES),
    "shape": SHAPE,
    "data_offsets": Rule(
        "two whole numbers from 0, the second not below the first",
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(is_whole, v)) and v[0] <= v[1],
    ),
}


class Sink(Protocol):
    """A place that bytes are written to."""

    def write(self, data: Any, /) -> object:
        """Take bytes, or a view of them."""


class Spring(Protocol):
    """A place that bytes are read from."""

    def readinto(self, place: memoryview, /) -> int:
        """Fill a place with the next bytes, or a part of it; return how many they are, 0 at the end."""


def write_tensors(
    stream: Sink, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, those of the largest numbers first, so that each lies at a multiple of its numbers' size.

    Args:
        stream: Where to.
        tensors: By name, on the CPU.
        metadata: Texts about the file, by name.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header: dict[str, Any] = {METADATA: {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES_OF_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)
    stream.write(len(text).to_bytes(LENGTH, "little"))
    stream.write(text)
    for tensor in ordered.values():
        stream.write(_bytes_of(tensor.detach().contiguous()))


def read_tensors(
    stream: Spring, size: int, where: str, take: Callable[[int], memoryview] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors; memory is taken only for bytes that are there.

    Args:
        stream: At the beginning of a file.
        size: Bytes of the file.
        where: The file, for messages.
        take: Returns the next bytes of the stream in memory that the tensors may have, fewer where it ends early.

    Returns:
        The tensors by name, and the texts about the file.

    Raises:
        ValueError: The file breaks the format, or ends early.
    """
    length = int.from_bytes(_read(stream, LENGTH, where), "little")
    if not 2 <= length <= min(LONGEST_HEADER, size - LENGTH):
        raise ValueError(
            f"{where}: not a file of safetensors: the length of its header (={length}) must be within 2 and what the "
            f"file holds, at most {LONGEST_HEADER}."
        )
    header = _parse(_read(stream, length, where), where)
    metadata = header.pop(METADATA, {})
    check({METADATA: metadata}, {METADATA: _TEXTS_BY_NAME}, where)
    for name, entry in header.items():
        _check_entry(name, entry, where)
    places = sorted((entry["data_offsets"], name) for name, entry in header.items())
    ends = [0, *(end for (_, end), _ in places)]
    begins = [*(begin for (begin, _), _ in places), size - LENGTH - length]
    if begins != ends:
        raise ValueError(
            f"{where}: not whole, or altered: its tensors must fill it without gaps ({size} bytes)."
        )
    tensors = {}
    for _, name in places:
        entry = header[name]
        begin, end = entry["data_offsets"]
        dtype = TYPES[entry["dtype"]]
        if take is None:
            memory = np.empty(
                end - begin, np.uint8
            )  # of large pages where it can, unlike PyTorch's
            _fill(stream, memory.data, where)
        else:
            memory = np.frombuffer(take(end - begin), np.uint8)
            if len(memory) < end - begin:
                raise ValueError(f"{where}: {EARLY}")
            if memory.ctypes.data % dtype.itemsize:  # of another's zip
                memory = memory.copy()
        tensors[name] = torch.from_numpy(memory).view(dtype).view(entry["shape"])
    return tensors, metadata


_TEXTS_BY_NAME = Rule(
    "names with text",
    lambda v: NAMES.holds(v) and all(isinstance(text, str) for text in v.values()),
)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return a contiguous tensor's own bytes, not a copy."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _check_entry(name: str, entry: object, where: str) -> None:
    place = f"{where}, tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: must be described by `{', '.join(ENTRY)}`.")
    check(entry, ENTRY, place, tuple(ENTRY))
    begin, end = entry["data_offsets"]
    needed = math.prod(entry["shape"]) * TYPES[entry["dtype"]].itemsize
    if end - begin != needed:
        raise ValueError(f"{place}: `data_offsets` (={[begin, end]}) must be {needed} bytes apart.")


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else shown(str(error))
        raise ValueError(
            f"{where}: not a file of safetensors: its header is no JSON that can be read ({reason})."
        ) from None
    if not isinstance(header, dict) or nests_too_deeply(header):
        raise ValueError(f"{where}: not a file of safetensors: its header must name tensors.")
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = next((a for a, b in pairwise(sorted(names)) if a == b), None)
    if repeated is not None:
        raise ValueError(f"{repeated} occurs twice")
    return dict(pairs)


def _read(stream: Spring, number: int, where: str) -> bytes:
    text = bytearray(number)
    _fill(stream, memoryview(text), where)
    return bytes(text)


def _fill(stream: Spring, place: memoryview, where: str) -> None:
    while place:
        number = stream.readinto(place)
        if not number:
            raise ValueError(f"{where}: {EARLY}")
        place = place[number:]
