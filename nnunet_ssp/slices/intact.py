"""Whether the files that were made of a case are as they were written, and what to run where they are not."""

from __future__ import annotations

import io
import math
import pickletools
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

Stamps = tuple[tuple[str, int, int], ...]  # see `file_stamp`


def file_stamp(file: Path) -> tuple[str, int, int]:
    """Name, size in bytes and modification time in ns: differs when a file was replaced."""
    stat = file.stat()
    return file.name, stat.st_size, stat.st_mtime_ns


def can_be_read(file: Path, shape: tuple[int, int, int, int]) -> bool:
    """Whether a file of the store (`.npy`) or of nnU-Net's folder can be read to its end."""
    if file.suffix == ".npy":
        header = npy_header(shape)
        with open(file, "rb") as stream:
            return stream.read(len(header)) == header and file.stat().st_size == npy_size(shape)
    try:
        if file.suffix == ".b2nd":
            import blosc2

            blosc2.open(urlpath=str(file), mode="r")[:]
        else:
            with open(file, "rb") as stream:
                all(pickletools.genops(stream))  # nothing is made of it, so nothing is run
    except Exception:  # blosc2 has many kinds
        return False
    return True


def npy_size(shape: tuple[int, int, int, int]) -> int:
    """Bytes of a file of `write_case`."""
    return len(npy_header(shape)) + 2 * math.prod(shape)


def require_size(file: Path, size: int, store: Path) -> None:
    """Check the size of a file.

    Args:
        file: a file that was made of a case.
        size: bytes that it must have.
        store: the slice store, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was truncated, or replaced.
    """
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing: run {prepare_command(store)}.") from None
    if found != size:
        raise ValueError(
            f"{file} is damaged (it has {found} bytes, not {size}): run {prepare_command(store)}, which makes it anew."
        )


@lru_cache(maxsize=1024)
def npy_header(shape: tuple[int, int, int, int]) -> bytes:
    """How a file of `write_case` begins."""
    stream = io.BytesIO()
    content = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, content)
    return stream.getvalue()


def prepare_command(store: Path) -> str:
    """The command that makes anew what is missing or damaged in a store."""
    words = ["nnunet-ssp prepare"]
    if match := re.match(r"Dataset0*(\d+)_", store.parent.name):
        words.append(match[1])
    plans = store.name.removesuffix("_slices").removesuffix("_2d")
    if plans != "nnUNetPlans" and (store.parent / f"{plans}.json").is_file():
        words.append(f"-p {plans}")
    return " ".join(words)
