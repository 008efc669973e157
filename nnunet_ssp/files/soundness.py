"""Checks that an image or mask file is sound, which nnU-Net's readers do not make.

SimpleITK fills a truncated NIfTI with zeros and does not see a flipped bit. It reads NaN and infinite values of NIfTI
as 0, and a voxel edge of 0 mm as 1 mm.
"""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nnunet_ssp.files.compression import DAMAGED, decompressing
from nnunet_ssp.files.nifti import read_stored

CHUNK = 2**16  # bytes read at a time, which may decompress to a thousand times as many
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # first bytes of git-lfs's placeholder


def is_lfs_pointer(file: Path) -> bool:
    """Whether git-lfs has left its pointer in place of the file."""
    with open(file, "rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def check_sound(file: Path) -> None:
    """Check that a file is whole and, for NIfTI, that its voxels and its voxel edges are numbers.

    A compressed file is read once, to its checksum.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file is not sound; names it and what is wrong with it.
    """
    if is_lfs_pointer(file):
        raise ValueError(f"{file}: a git-lfs pointer in place of the file: run git lfs pull.")
    if file.name.endswith((".nii", ".nii.gz")):
        _check_nifti(file)
    elif file.suffix == ".gz":
        with open(file, "rb") as stored, decompressing(stored) as content:
            try:
                while content.read(2**24):
                    pass
            except DAMAGED as error:
                raise ValueError(f"{file}: the compressed file is truncated or damaged.") from error
    elif file.suffix in (".mha", ".nrrd"):
        with open(file, "rb") as stream:
            _read_to_checksum(stream, file)


def _read_to_checksum(stream: BinaryIO, file: Path) -> None:
    """Read a MetaImage or NRRD to its end where it is compressed; SimpleITK stops before the checksum."""
    separator, last = ("=", "elementdatafile") if file.suffix == ".mha" else (":", "")
    header: dict[str, str] = {}
    while last not in header and (line := stream.readline(CHUNK)):
        name, _, value = line.decode("latin-1").partition(separator)
        header[name.strip().lower()] = value.strip().lower()
    compressed = header.get("compresseddata") == "true" and header.get("elementdatafile") == "local"
    encoding = header.get("encoding") if not header.keys() & {"data file", "datafile"} else None
    if compressed or encoding in ("gz", "gzip"):
        decompressor: Any = zlib.decompressobj(zlib.MAX_WBITS + 32)  # of zlib or gzip
    elif encoding in ("bz2", "bzip2"):
        decompressor = bz2.BZ2Decompressor()
    else:
        return
    try:
        while not decompressor.eof:
            if not (part := stream.read(CHUNK)):
                raise EOFError
            decompressor.decompress(part)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file}: the compressed file is truncated or damaged.") from error


def _check_nifti(file: Path) -> None:
    header, voxels = read_stored(file)
    if not voxels.size:
        raise ValueError(f"{file}: shape (={voxels.shape}) must have no 0.")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise ValueError(f"{file}: holds NaN or infinite values.")
    # An axis of one voxel needs no edge.
    edges = [float(e) for e, n in zip(header["pixdim"][1:4], voxels.shape, strict=False) if n > 1]
    if not all(np.isfinite(edge) and edge != 0 for edge in edges):
        listed = " x ".join(f"{edge:g}" for edge in edges)
        raise ValueError(f"{file}: the voxel edges (={listed}) must be numbers other than 0.")
