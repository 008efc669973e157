"""Natural images (PNG, JPEG, TIFF) as 8-bit RGB, where that is exactly what a file shows; else the reason why not."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nnunet_ssp.files.atomic import TEMPORARY
from nnunet_ssp.files.soundness import is_lfs_pointer

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339  # tags of TIFF
FORMATS = ("PNG", "JPEG", "TIFF")  # Pillow's names
LARGEST_SIDE = 2**16 - 1  # the slice store's
NAME_KEPT = 120  # characters of a file's path in the name of its case


def find_images(folder: Path) -> tuple[list[Path], int]:
    """Return the images of a tree in the order of their paths, and the number of other files.

    Hidden files and folders are left alone, among them the `._NAME` that macOS leaves. Links to folders are not
    followed.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No file has the ending of an image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder.")
    files = sorted(_files(folder))
    images = [file for file in files if file.suffix.lower() in ENDINGS]
    if not images:
        raise ValueError(
            f"{folder}: none of its {len(files)} files ends in {', '.join(ENDINGS)}, in capitals or not."
        )
    return images, len(files) - len(images)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in names if not name.startswith("."))


def case_of(image: Path) -> str:
    """Return the name of the case of an image: that of its file, and sixteen digits of its path's digest.

    Args:
        image: Path below the folder that is converted.

    >>> case_of(Path("n01440764/n01440764_10026.JPEG"))
    'n01440764_10026-93d7fd1901b70c86'
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", image.stem)[:NAME_KEPT].strip("_-") or "image"
    path = image.as_posix().encode("utf-8", "surrogateescape")
    return f"{plain}-{hashlib.sha256(path).hexdigest()[:16]}"


def read_rgb(file: Path) -> NDArray[np.uint8]:
    """Read an image as it is shown.

    Grey, black-and-white and palette images become colours exactly; the orientation of the camera is applied.

    Returns:
        (rows, columns, 3).

    Raises:
        ValueError: The file is damaged, or what it shows is not exactly 8-bit RGB; names file and reason.
    """
    if not file.stat().st_size:
        raise ValueError(f"{file}: the file is empty.")
    if is_lfs_pointer(file):
        raise ValueError(f"{file}: a git-lfs pointer in place of the file: run git lfs pull.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on metadata, which nobody needs here
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                reason = _unfaithful(image)
                pixels = None if reason else _as_shown(image)
        except Exception as error:  # of decoders, which raise whatever they like
            text = " ".join(str(error).replace(str(file), "").split())
            raise ValueError(
                f"{file}: cannot be read; truncated, damaged, or no PNG, JPEG or TIFF ({text})."
            ) from error
    if pixels is None:
        raise ValueError(f"{file}: {reason}.")
    if max(pixels.shape) > LARGEST_SIDE:
        raise ValueError(f"{file}: sides (={pixels.shape[:2]}) must be at most {LARGEST_SIDE}.")
    if (pixels[..., :3] == pixels[0, 0, :3]).all():
        raise ValueError(f"{file}: all pixels are equal, there is no image.")
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        raise ValueError(
            f"{file}: has transparent pixels, whose colour depends on the background; put it on one."
        )
    return np.ascontiguousarray(pixels[..., :3])


def _unfaithful(image: Any) -> str:
    """Return why an image, of which the header was read, is no 8-bit RGB; empty if it can be one exactly."""
    if (n := getattr(image, "n_frames", 1)) > 1:
        return (
            f"holds {n} pictures (an animation, or several pages); save each as a file of its own"
        )
    # Pillow reads 16-bit colours, too, and drops the lower half of each; of separate planes only TIFF's tags tell.
    codes, tags = [str(tile.args) for tile in image.tile], getattr(image, "tag_v2", {})
    deep = image.mode[0] in "IF" or any(";16" in code for code in codes)
    if deep or max(tags.get(BITS_PER_SAMPLE, (8,))) > 8:
        return "has more than 8 bits a channel; save it with 8, by a scale of your choice"
    if not {*tags.get(SAMPLE_FORMAT, (1,))} <= {1, 4}:  # unsigned, or not said
        return "its values are signed; save it with values from 0 to 255"
    if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        return f"its colours are {image.mode}, which only a colour profile turns into RGB; save it as RGB"
    return ""


def _as_shown(image: Any) -> NDArray[np.uint8]:
    """Return (rows, columns, 3), or 4 with opacity."""
    image = ImageOps.exif_transpose(image)
    opacity = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if opacity else "RGB"))


# -- many ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageOutcome:
    """What became of one image.

    Attributes:
        side: Length of its shorter side in pixels; 0 if it was refused.
        nbytes: Bytes of the file written.
        refused: The reason.
    """

    side: int = 0
    nbytes: int = 0
    refused: str = ""


def write_images(pairs: Sequence[tuple[Path, Path]]) -> list[ImageOutcome]:
    """Write images as PNG; one that was written before and has not changed since is left alone.

    A copy has its original's time of change, by which a later run knows it.

    Args:
        pairs: Original and copy.
    """
    return [_write_image(source, copy) for source, copy in pairs]


def _write_image(source: Path, copy: Path) -> ImageOutcome:
    try:
        changed = source.stat().st_mtime_ns
        if copy.is_file() and copy.stat().st_mtime_ns == changed:
            with suppress(OSError), Image.open(copy) as image:
                return ImageOutcome(min(image.size), copy.stat().st_size)
        pixels = read_rgb(source)
    except OSError as error:  # a link that leads nowhere, or a file that may not be read
        return ImageOutcome(refused=f"{source}: cannot be read ({error.strerror or error}).")
    except ValueError as error:
        return ImageOutcome(refused=str(error))
    # Not flushed one by one, which takes ten times as long; what a power cut leaves of a file, `prepare` refuses.
    temporary = copy.parents[1] / TEMPORARY / copy.name
    for folder in (temporary.parent, copy.parent):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(temporary, compress_level=1)
    os.utime(temporary, ns=(changed, changed))
    os.replace(temporary, copy)
    return ImageOutcome(min(pixels.shape[:2]), copy.stat().st_size)
