"""NIfTI files, read as a whole or refused in words, and written so that every tool reads them alike."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from nnunet_ssp.files.compression import DAMAGED, compressed, decompressing
from nnunet_ssp.files.grids import Array as Array
from nnunet_ssp.files.grids import Grid, read_grid

CHUNK = 2**20  # bytes read at a time
HEADER = 348  # bytes; of NIfTI 2 more
# Bounds for the largest intensity of an image: above, float32 cannot hold its square; below, nnU-Net's normalisation,
# which divides by at least 1e-8, leaves no image.
SMALLEST, LARGEST = 1e-6, 1e18


@dataclass(frozen=True)
class Nifti:
    """A NIfTI file as read."""

    file: Path
    # Native byte order; integers as stored, all else float32
    voxels: Array
    grid: Grid

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the voxels."""
        return self.voxels.shape


@dataclass(frozen=True)
class NiftiHeader:
    """A NIfTI file of which only the header was read."""

    file: Path
    shape: tuple[int, ...]
    grid: Grid


def read_nifti(file: Path) -> tuple[Array, Array]:
    """Read voxels and affine (4, 4) of a NIfTI file; see `read_image` for what is refused."""
    image = read_image(file)
    return image.voxels, image.grid.affine


def read_image(file: Path) -> Nifti:
    """Read a NIfTI file to its end, even one whose axes are not orthogonal, which SimpleITK refuses.

    Its first bytes tell whether it is compressed, whatever its name is.

    Raises:
        ValueError: The file is missing, damaged or truncated, not NIfTI, or not of real numbers.
    """
    from nibabel.volumeutils import apply_read_scaling

    header, raw = read_stored(file)
    with _readable(file), np.errstate(all="ignore"):  # `check_cine` refuses what is not finite
        grid = read_grid(header)
        voxels = apply_read_scaling(raw, *header.get_slope_inter())
        kept = voxels.dtype.newbyteorder("=") if voxels.dtype.kind in "iu" else np.dtype(np.float32)
        return Nifti(file, voxels.astype(kept, copy=False), grid)


def read_stored(file: Path) -> tuple[Any, Array]:
    """Read the header of a NIfTI file, unchanged, and its voxels as stored; see `read_image` for what is refused."""
    with _readable(file), _opened(file, to_end=True) as stream:
        header = _parse_header(stream)
        dtype, shape = _stored_as(header)
        if dtype.kind in "iuf":
            return header, _read_voxels(stream, file, int(header["vox_offset"]), dtype, shape)
    raise ValueError(f"{file}: voxels (={dtype}) must be integers or real numbers.")


def each_frame(file: Path) -> Iterator[Array]:
    """Read the frames of a NIfTI file one by one, `(X, Y, Z)`, and none that is not asked for.

    Raises:
        ValueError: As `read_image`, as far as the file is read.
    """
    from nibabel.volumeutils import apply_read_scaling

    with _readable(file), _opened(file) as stream:
        header = _parse_header(stream)
        dtype, shape = _stored_as(header)
        if dtype.kind in "iuf":
            n_frames = math.prod(shape[3:])
            n_bytes = math.prod(shape[:3]) * dtype.itemsize
            _check_size(stream, file, int(header["vox_offset"]), n_bytes * n_frames, shape)
            stream.seek(int(header["vox_offset"]))
            for frame in range(n_frames):
                part = stream.read(n_bytes)
                if len(part) < n_bytes:
                    raise EOFError(
                        f"its header declares {n_bytes * n_frames} bytes of voxels, it holds "
                        f"{n_bytes * frame + len(part)}"
                    )
                raw = np.frombuffer(part, dtype).reshape(shape[:3], order="F")
                yield apply_read_scaling(raw, *header.get_slope_inter())
            return
    raise ValueError(f"{file}: voxels (={dtype}) must be integers or real numbers.")


def read_header(file: Path) -> tuple[tuple[int, ...], Grid]:
    """Read the shape and the grid of a NIfTI file from its header alone.

    Raises:
        ValueError: The file is missing or not NIfTI.
    """
    with _readable(file), _opened(file) as stream:
        header = _parse_header(stream)
        return tuple(header.get_data_shape()), read_grid(header)


def _parse_header(stream: BinaryIO) -> Any:
    """Read the header of NIfTI 1 or 2, unchanged; nibabel's `load` goes by the name, and fails on some valid forms."""
    import nibabel

    start = stream.read(40)
    stream.seek(0)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("a git-lfs pointer in place of the file: run git lfs pull")
    for size, kind in ((348, nibabel.Nifti1Header), (540, nibabel.Nifti2Header)):
        if start[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            content = stream.read(size)
            kind(content)  # raises where nibabel cannot mend it, as it would an edge of 0 mm
            return kind(content, check=False)
    raise ValueError("it has no NIfTI header")


def _stored_as(header: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return the type and the shape of the voxels in a file."""
    if np.isinf(
        header["scl_slope"]
    ):  # nibabel takes that for no slope, SimpleITK for infinite voxels
        raise ValueError("the slope of its header is infinite")
    return header.get_data_dtype(), tuple(header.get_data_shape())


def _check_size(
    stream: BinaryIO, file: Path, offset: int, n_bytes: int, shape: tuple[int, ...]
) -> None:
    """Refuse what a file cannot hold, before memory is allocated."""
    if min(shape, default=0) < 0:
        raise ValueError(f"its header declares a shape of {shape}")
    if offset < HEADER:
        raise ValueError(f"its header says that voxels begin at byte {offset}, within itself")
    # Deflate shrinks to 1/1032 at best.
    packing = 1032 if isinstance(stream, gzip.GzipFile) else 1
    if offset + n_bytes > file.stat().st_size * packing:
        raise EOFError(f"its header declares {n_bytes} bytes of voxels, more than it can hold")


def _read_voxels(
    stream: BinaryIO, file: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Array:
    """Read the voxels as stored; read a compressed file to its end, where its checksum is."""
    n_bytes = math.prod(shape) * dtype.itemsize
    is_packed = isinstance(stream, gzip.GzipFile)
    _check_size(stream, file, offset, n_bytes, shape)
    stream.seek(offset)
    buffer = np.empty(n_bytes, np.uint8)
    place = 0
    while place < n_bytes:
        part = stream.read(min(CHUNK, n_bytes - place))
        if not part:
            raise EOFError(f"its header declares {n_bytes} bytes of voxels, it holds {place}")
        buffer[place : place + len(part)] = np.frombuffer(part, np.uint8)
        place += len(part)
    while is_packed and stream.read(CHUNK):
        pass
    return buffer.view(dtype).reshape(shape, order="F")


def as_frame(voxels: Array) -> Array:
    """Drop axes of length 1 after the third, as in `(X, Y, Z, 1)`."""
    kept = [n for axis, n in enumerate(voxels.shape) if axis < 3 or n > 1]
    return voxels.reshape(kept, order="F")


def as_cine(voxels: Array) -> Array:
    """Drop axes of length 1 after the third, as in `(X, Y, Z, 1, T)`; a fourth axis stays."""
    frame = as_frame(voxels)
    return frame[..., None] if frame.ndim == 3 < voxels.ndim else frame


def with_ending(file: Path) -> Path:
    """Return a file that ends with `.nii.gz`, or its `.nii` where only that exists."""
    unpacked = file.with_suffix("")
    return unpacked if unpacked.is_file() and not file.is_file() else file


def has_packed_copy(file: Path) -> bool:
    """Whether this is a `.nii` beside its `.nii.gz`, which is the one to read."""
    return file.suffix == ".nii" and file.with_name(f"{file.name}.gz").is_file()


def unpacked_copies(files: Iterable[Path]) -> list[str]:
    """Say which `.nii` were left out because `files` has their `.nii.gz`."""
    copies = [
        file.stem for file in files if file.suffix == ".gz" and file.with_suffix("").is_file()
    ]
    more = f" and {len(copies) - 1} more" if copies[1:] else ""
    return [f"left out {copies[0]}{more}: .nii.gz is there, too"] if copies else []


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Say in words what is wrong with a file."""
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{file}: the file is missing.") from error
    except MemoryError as error:
        raise ValueError(f"{file}: its voxels need more memory than there is.") from error
    except (*DAMAGED, ValueError, OverflowError, HeaderDataError, WrapStructError) as error:
        raise ValueError(f"{file}: not a complete NIfTI file ({error}).") from error


@contextmanager
def _opened(file: Path, to_end: bool = False) -> Iterator[BinaryIO]:
    if file.exists() and not file.is_file():  # reading a pipe could wait forever
        raise ValueError("it is no regular file")
    with open(file, "rb") as stored:
        is_packed = stored.read(2) == b"\x1f\x8b"
        stored.seek(0)
        if is_packed:
            # ISA-L reads far ahead, so it would meet the damages behind a header.
            with decompressing(stored) if to_end else gzip.GzipFile(fileobj=stored) as stream:
                yield cast(BinaryIO, stream)
        else:
            yield stored


def stored_header(file: Path) -> Any:
    """Read the header of a NIfTI file, unchanged.

    Raises:
        ValueError: The file is missing or not NIfTI.
    """
    with _readable(file), _opened(file) as stream:
        return _parse_header(stream)


def write_like(file: Path, labels: Array, header: Any) -> None:
    """Write label values under the header of their image, so that every tool shows both in one place.

    Args:
        file: Ends with `.nii.gz`.
        labels: `(X, Y, Z, T)`, axes as in the image.
        header: From `stored_header`: of the image, or of its first frame.
    """
    shape = tuple(header.get_data_shape())
    if math.prod(shape) != labels.size:  # one file of many frames
        shape = labels.shape
    like = type(header)(header.binaryblock, header.endianness, check=False)
    like.set_data_dtype(labels.dtype)
    like.set_data_shape(shape)
    like.set_slope_inter(1, 0)
    like["cal_max"] = like["cal_min"] = 0  # the grey values of the image
    like["vox_offset"] = like.single_vox_offset
    like["magic"] = like.single_magic
    head = like.binaryblock.ljust(like.single_vox_offset, b"\0")
    values = labels.reshape(shape, order="F").astype(like.get_data_dtype())
    file.write_bytes(compressed(head + values.tobytes(order="F"), zlib_level=6))


def write_nifti(file: Path, voxels: Array, affine: Array, seconds: float = 0.0) -> None:
    """Write a NIfTI with equal sform and qform.

    Args:
        file: Ends with `.nii.gz`.
        voxels: `(X, Y, Z)` or `(X, Y, Z, T)`.
        affine: (4, 4) with orthogonal axes, in mm.
        seconds: Time from frame to frame; 0 where it is unknown.
    """
    import nibabel

    image = nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec" if seconds else None)
    if voxels.ndim == 4:
        image.header["pixdim"][4] = seconds
    file.write_bytes(compressed(image.to_bytes()))


def check_axes(shape: Sequence[int], file: Path) -> None:
    """Refuse a shape that is not 4D `(X, Y, Z, T)`, apart from further axes of length 1.

    Raises:
        ValueError: Names the file and the rule.
    """
    if len(shape) < 4 or 0 in shape or sum(n > 1 for n in shape[3:]) > 1:
        raise ValueError(
            f"{file}: shape (={tuple(shape)}) must have 4 axes: columns, rows, slices, frames."
        )


def check_cine(voxels: Array, file: Path) -> None:
    """Refuse what is no cine: not 4D `(X, Y, Z, T)`, without an image's intensities, or with a constant frame.

    Raises:
        ValueError: Names the file and the rule.
    """
    check_axes(voxels.shape, file)
    if not np.isfinite(voxels).all():
        raise ValueError(f"{file}: holds NaN or infinite values.")
    largest = float(np.abs(voxels).max())
    if voxels.dtype.kind == "f" and not (SMALLEST <= largest <= LARGEST or largest == 0):
        raise ValueError(
            f"{file}: the largest value (={largest:g}) must be within {SMALLEST:g} to {LARGEST:g}, as the intensities "
            "of images are; look at the slope and intercept of its header."
        )
    constant = np.flatnonzero(voxels.min(axis=(0, 1, 2)) == voxels.max(axis=(0, 1, 2)))
    if constant.size:
        frames = "all frames" if constant.size == voxels.shape[3] else f"frame {constant[0]}"
        raise ValueError(f"{file}: {frames} constant, there is no image.")


WHOLE = 1e-3  # largest distance of a mask's values from whole numbers; scaled headers round


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
    with np.errstate(
        invalid="ignore"
    ):  # NaN and infinity fail: they are not close even to themselves
        close = np.abs(mask - rounded) <= WHOLE if mask.dtype.kind == "f" else np.True_
    if not close.all():
        raise ValueError(
            f"{file}: mask values must be whole numbers, not {mask[~close].flat[0]:g}; save the mask as integers "
            "(uint8), without a scaling in its header."
        )
    classes = sorted(classes)
    if strange := _values_beyond(rounded, classes):
        found = ", ".join(f"{value:g}" for value in strange[:5])
        raise ValueError(f"{file}: mask values (={found}) must be among {classes}.")
    return rounded.astype(np.uint8 if max(classes, default=0) <= 255 else np.int32)


def _values_beyond(values: Array, classes: Sequence[int]) -> list[float]:
    """Return the values that are no class, ascending."""
    if values.size:
        least, most = int(values.min()), int(values.max())
        # All between is a class, as nearly always: there is no need to list the values.
        if most - least < len(classes) and {*range(least, most + 1)} <= {*classes}:
            return []
    return sorted({*np.unique(values).tolist()} - {*classes})
