"""Checks that the files made from a case are as they were written, and the command that makes them anew."""

from __future__ import annotations

import io
import math
import pickletools
import re
import shlex
from functools import lru_cache
from pathlib import Path

import numpy as np

Stamps = tuple[tuple[str, int, int], ...]  # see `file_stamp`


def file_stamp(file: Path) -> tuple[str, int, int]:
    """Return name, size in bytes and modification time in ns, which differ once a file was replaced."""
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
                all(pickletools.genops(stream))  # builds no object, so runs nothing
    except Exception:  # blosc2 raises many kinds
        return False
    return True


def npy_size(shape: tuple[int, int, int, int]) -> int:
    """Return the size in bytes of a file of `write_case`."""
    return len(npy_header(shape)) + 2 * math.prod(shape)


def require_size(file: Path, size: int, store: Path) -> None:
    """Check the size of a file.

    Args:
        file: A file that was made from a case.
        size: Bytes that it must have.
        store: The slice store, for the message.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It was truncated, or replaced.
    """
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing: run {prepare_command(store)}.") from None
    if found != size:
        raise ValueError(
            f"{file} is damaged (it has {found} bytes, not {size}): run {prepare_command(store)}, which makes it anew."
        )


@lru_cache(maxsize=2**16)  # asked for every slice that is drawn
def npy_header(shape: tuple[int, int, int, int]) -> bytes:
    """Return the first bytes of a file of `write_case`."""
    stream = io.BytesIO()
    content = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, content)
    return stream.getvalue()


def prepare_command(store: Path) -> str:
    """Return the command that makes missing or damaged files of a store anew."""
    words = ["nnunet-ssp prepare"]
    if match := re.match(r"Dataset0*(\d+)_", store.parent.name):
        words.append(match[1])
    plans = store.name.removesuffix("_slices").removesuffix("_2d")
    if (
        store.parent / f"{plans}.json"
    ).is_file():  # planning anew would replace plans that were moved there
        words.append(f"-p {shlex.quote(plans)}")
    return " ".join(words)
