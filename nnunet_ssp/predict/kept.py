"""Segmented frames of a subject that is not finished, with which an interrupted run goes on."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ssp.files.atomic import atomic_write, remove_half_written, write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.grids import Array

IMAGES = "images.json"
# What NumPy and zipfile raise for files with changed bytes; RuntimeError: packed or encrypted in an unknown way
DAMAGED = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    EOFError,
    OSError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class KeptFrames:
    """A folder with a file for each frame, written whole or not at all."""

    folder: Path
    # Of the images that were segmented; frames of others are not used
    stamp: Sequence[str]

    def open(self) -> None:
        """Make the folder one of these images, without what was made of others."""
        if not self._is_theirs():
            self.remove()
            write_json(self.folder / IMAGES, list(self.stamp))
        remove_half_written(self.folder)

    def count(self) -> int:
        """Count the frames that are there."""
        return len([*self.folder.glob("frame_*.npz")]) if self._is_theirs() else 0

    def write(self, number: int, labels: Array, doubt: float) -> None:
        """Write a frame.

        Args:
            number: Its place in time.
            labels: (X, Y, Z), label values.
            doubt: Disagreement in %, or NaN.
        """
        with atomic_write(self._file(number)) as temporary:
            np.savez_compressed(temporary, labels=labels, doubt=doubt)

    def read(self, number: int, shape: Sequence[int]) -> tuple[Array, float] | None:
        """Return a frame as it was written; None where there is none, or it is damaged.

        Args:
            number: Its place in time.
            shape: (X, Y, Z) of the images.
        """
        try:
            # Opened here: where NumPy opens a damaged file, it leaves it open
            with (
                open(self._file(number), "rb") as file,
                np.load(file, allow_pickle=False) as stored,
            ):
                labels, doubt = stored["labels"], float(stored["doubt"])
        except DAMAGED:
            return None
        whole = labels.shape == tuple(shape) and labels.dtype.kind in "iu"
        return (labels, doubt) if whole else None

    def remove(self) -> None:
        """Remove all frames, and the folder above if nothing else is in it."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        with suppress(OSError):
            self.folder.parent.rmdir()

    def _is_theirs(self) -> bool:
        try:
            return bool(read_json(self.folder / IMAGES, list) == list(self.stamp))
        except (OSError, ValueError):
            return False

    def _file(self, number: int) -> Path:
        return self.folder / f"frame_{number:04d}.npz"
