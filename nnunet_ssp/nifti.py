"""NIfTI files: read as a whole or refused in words, checked, and written so that every tool reads them alike."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def read_nifti(file: Path) -> tuple[Array, Array]:
    """Read voxels and affine; nibabel also reads the headers that SimpleITK refuses.

    Returns:
        Voxels in native byte order (integers as stored, all else float32), and the affine (4, 4)
        from voxel indices to mm in RAS+.

    Raises:
        ValueError: The file is missing, truncated, not NIfTI, or not of real numbers.
    """
    import nibabel

    with _readable(file):
        image = nibabel.load(file)
        voxels = np.asanyarray(image.dataobj)
    if voxels.dtype.kind not in "iuf":
        raise ValueError(f"{file}: voxels (={voxels.dtype}) must be integers or real numbers.")
    kept = voxels.dtype.newbyteorder("=") if voxels.dtype.kind in "iu" else np.dtype(np.float32)
    return voxels.astype(kept, copy=False), np.asarray(image.affine, dtype=float)


def read_shape(file: Path) -> tuple[int, ...]:
    """The shape of a NIfTI file, from its header alone.

    Raises:
        ValueError: The file is missing or not NIfTI.
    """
    import nibabel

    with _readable(file):
        return tuple(nibabel.load(file).shape)


def is_whole(file: Path) -> bool:
    """Whether a compressed file can be read to its end and its checksum is right.

    nibabel stops before the checksum, and SimpleITK fills what a truncated file lacks with zeros.
    """
    if file.suffix == ".gz":
        try:
            with gzip.open(file) as stream:
                while stream.read(2**24):
                    pass
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return False
    return True


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Say in words what is wrong with a file."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{file}: the file is missing.") from error
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ValueError(f"{file}: not a complete NIfTI file ({error}).") from error


def write_nifti(file: Path, voxels: Array, affine: Array) -> None:
    """Write a 3D NIfTI with equal sform and qform.

    Args:
        file: Ends with `.nii.gz`.
        voxels: `(X, Y, Z)`.
        affine: (4, 4) with orthogonal axes, in mm.
    """
    import nibabel

    image = nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)


def check_cine(voxels: Array, file: Path) -> None:
    """Refuse what is no cine: not 4D `(X, Y, Z, T)`, not finite, or with a constant frame.

    Raises:
        ValueError: Names the file and the rule.
    """
    if voxels.ndim != 4 or 0 in voxels.shape:
        raise ValueError(
            f"{file}: shape (={voxels.shape}) must have 4 axes: columns, rows, slices, frames."
        )
    if not np.isfinite(voxels).all():
        raise ValueError(f"{file}: holds NaN or infinite values.")
    constant = np.flatnonzero(voxels.min(axis=(0, 1, 2)) == voxels.max(axis=(0, 1, 2)))
    if constant.size:
        frames = "all frames" if constant.size == voxels.shape[3] else f"frame {constant[0]}"
        raise ValueError(f"{file}: {frames} constant, there is no image.")


WHOLE = 1e-3  # how far the values of a mask may be off whole numbers, as scaled headers make them


def integer_labels(mask: Array, file: Path, classes: Iterable[int]) -> Array:
    """Return a mask as integers; one stored as floating point, or under a scaled header, is rounded.

    Args:
        mask: Any shape.
        file: For the message.
        classes: The values that may occur.

    Returns:
        The mask as uint8, or as int32 where a class is above 255.

    Raises:
        ValueError: A value is not within 0.001 of a class.
    """
    rounded = np.rint(mask) if mask.dtype.kind == "f" else mask
    # NaN fails, too: it is not close to anything, not even to itself.
    if mask.dtype.kind == "f" and not (close := np.abs(mask - rounded) <= WHOLE).all():
        raise ValueError(
            f"{file}: mask values must be whole numbers, not {mask[~close].flat[0]:g}; save the mask as integers "
            "(uint8), without a scaling in its header."
        )
    classes = sorted(classes)
    strange = sorted(set(np.unique(rounded).tolist()) - set(classes))
    if strange:
        found = ", ".join(f"{value:g}" for value in strange[:5])
        raise ValueError(f"{file}: mask values (={found}) must be among {classes}.")
    return rounded.astype(np.uint8 if max(classes, default=0) <= 255 else np.int32)
