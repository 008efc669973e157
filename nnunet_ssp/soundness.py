"""Whether an image or mask file is sound, which nnU-Net's readers do not say.

SimpleITK fills what a truncated NIfTI lacks with zeros, does not see a flipped bit, reads NaN and infinite values of
NIfTI as 0, and a voxel edge of 0 mm as 1 mm.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssp.nifti import is_whole

DAMAGED = "the compressed file is truncated or damaged."
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how the file that git-lfs leaves begins


def is_lfs_pointer(file: Path) -> bool:
    """Whether git-lfs has left its pointer in place of the file."""
    with open(file, "rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def check_sound(file: Path) -> None:
    """Check that a file is whole and, for NIfTI, that its voxels and its voxel edges are numbers.

    A compressed file is read once, to its checksum.

    Raises:
        OSError: The file cannot be opened.
        ValueError: Names the file and what is wrong with it.
    """
    if is_lfs_pointer(file):
        raise ValueError(f"{file}: a git-lfs pointer in place of the file: run git lfs pull.")
    if file.name.endswith((".nii", ".nii.gz")):
        _check_nifti(file, _content(file))
    elif not is_whole(file):
        raise ValueError(f"{file}: {DAMAGED}")


def _content(file: Path) -> bytes:
    """Read a file, decompressed, with its checksum."""
    if file.suffix != ".gz":
        return file.read_bytes()
    try:
        with gzip.open(file) as stream:
            return stream.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file}: {DAMAGED}") from error


def _check_nifti(file: Path, content: bytes) -> None:
    from nibabel.spatialimages import HeaderDataError

    try:
        header = _header(content)
        dtype, shape = header.get_data_dtype(), header.get_data_shape()
        offset = int(header["vox_offset"])
    except (ValueError, HeaderDataError) as error:
        raise ValueError(f"{file}: not a complete NIfTI file ({error}).") from error
    if dtype.kind not in "iuf":
        raise ValueError(f"{file}: voxels (={dtype}) must be integers or real numbers.")
    n, held = math.prod(shape), max(0, len(content) - offset)
    if min(shape, default=0) < 1 or n * dtype.itemsize > held:
        raise ValueError(
            f"{file}: not a complete NIfTI file (its header declares voxels of shape {shape} and type {dtype}, but "
            f"{held} bytes of them are there)."
        )
    if dtype.kind == "f" and not np.isfinite(np.frombuffer(content, dtype, n, offset)).all():
        raise ValueError(f"{file}: holds NaN or infinite values.")
    # An axis of one voxel needs no edge. (nibabel's own `get_zooms` may have turned a 0 into a 1.)
    edges = [
        float(e) for e, length in zip(header["pixdim"][1:4], shape, strict=False) if length > 1
    ]
    if not all(np.isfinite(edge) and edge != 0 for edge in edges):
        listed = " x ".join(f"{edge:g}" for edge in edges)
        raise ValueError(f"{file}: the voxel edges (={listed}) must be numbers other than 0.")


def _header(content: bytes) -> Any:
    """Parse the header of NIfTI 1 or 2, as it is."""
    import nibabel

    declared = int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")
    for size, kind in ((348, nibabel.Nifti1Header), (540, nibabel.Nifti2Header)):
        if size in declared:
            return kind(content[:size], check=False)
    raise ValueError("it has no NIfTI header")
