"""Checks of a raw dataset while nnU-Net's own reader reads it, so that no file is read twice.

nnU-Net itself truncates masks to integers (0.996 becomes background), pairs masks and images by index whatever their
headers say, and treats the volumes of one file as channels.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunet_ssp.console import count_of
from nnunet_ssp.files.nifti import integer_labels
from nnunet_ssp.files.soundness import check_sound

LISTED = 20  # problems shown
# The largest factor between the spacing of a case and the dataset's median. Stacks with and without gaps and volumes in
# one dataset reach 10, and only between slices.
ABSURD = 30.0
UNIT = 1000.0  # between metres, millimetres and micrometres
STACK_OF_2D = 999.0  # nnU-Net's factor for the third spacing of a 2D image, or that spacing itself


class RefusedError(ValueError):
    """Refusal of a file; the message names it and the reason."""


@dataclass(frozen=True)
class Rules:
    """Rules for the files of a dataset.

    Attributes:
        reader: Name of nnU-Net's class that reads them.
        channels: Channels of each case.
        labels: Values that a mask may have.
        spacing: Median of the dataset in mm, in the reader's order of axes; None before it is known.
    """

    reader: str
    channels: int
    labels: tuple[int, ...]
    spacing: tuple[float, ...] | None = None


def label_values(labels: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the mask values that `labels` of `dataset.json` names: classes, regions (lists) and `ignore`.

    Raises:
        ValueError: A value is no whole number.
    """
    found = {0}
    for name, value in labels.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(number, int) or isinstance(number, bool):
                raise ValueError(
                    f"dataset.json: label {name} (={value}) must be a whole number or a list of them."
                )
            found.add(number)
    return tuple(sorted(found))


class CheckedReader:
    """nnU-Net's reader; it refuses in words what nnU-Net would misread.

    Args:
        rules: Rules of the dataset.

    Attributes:
        notes: Warnings about the case that was read last.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.notes: list[str] = []
        self._reader = recursive_find_reader_writer_by_name(rules.reader)()
        self._image = ""
        self._grid: dict[str, NDArray[Any]] = {}

    def read_images(self, files: Sequence[str]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Read the channels of a case, as nnU-Net's reader does.

        Raises:
            RefusedError: A file is damaged, holds NaN, several volumes or equal voxels, or its spacing is absurd.
        """
        self.notes = []
        with self._explained(files[0]):
            for file in files:
                check_sound(Path(file))
            image, properties = self._reader.read_images(files)
        if len(image) != self.rules.channels:
            raise RefusedError(self._wrong_channels(files, len(image)))
        if not np.isfinite(image).all():
            raise RefusedError(f"{files[0]}: holds NaN or infinite values.")
        if image.min() == image.max():
            raise RefusedError(f"{files[0]}: all voxels are equal, there is no image.")
        spacing = [float(edge) for edge in properties["spacing"]]
        if self.rules.spacing and (text := absurd_spacing(spacing, self.rules.spacing)):
            raise RefusedError(f"{files[0]}: {text}")
        self._image, self._grid = files[0], _grid(image.shape, properties)
        return image, properties

    def read_seg(self, file: str) -> tuple[NDArray[Any], dict[str, Any]]:
        """Read the mask of the case whose images were read before.

        Raises:
            RefusedError: The file is damaged, its values are not exactly those of `dataset.json`, or its shape is
                not the image's.
        """
        with self._explained(file):
            check_sound(Path(file))
            mask, properties = self._reader.read_seg(file)
            whole = integer_labels(mask, Path(file), self.rules.labels)
        if (inexact := mask != whole).any():
            raise RefusedError(
                f"{file}: mask values must be exactly whole numbers, not {float(mask[inexact].flat[0]):.9g}, as "
                "nnU-Net does not round them; save the mask as integers (uint8), without a scaling in its header."
            )
        self._compare_grids(file, _grid(mask.shape, properties))
        return mask, properties

    @contextlib.contextmanager
    def _explained(self, file: str) -> Iterator[None]:
        """Catch what the reader prints, and turn what it raises into words."""
        chatter = io.StringIO()
        try:
            with contextlib.redirect_stdout(chatter):
                yield
        except (ValueError, FileNotFoundError) as error:
            named = Path(file).name in str(error)
            text = str(error) if named else f"{file}: cannot be read ({one_line(error)})."
            raise RefusedError(text) from error
        except Exception as error:
            # nnU-Net prints why the files of a case do not fit each other, and raises an error without words.
            reason = one_line(error) if str(error) else chatter.getvalue().partition("\n")[0]
            reader = type(self._reader).__name__
            raise RefusedError(f"{file}: nnU-Net's {reader} cannot read it ({reason}).") from error

    def _wrong_channels(self, files: Sequence[str], found: int) -> str:
        named = f"dataset.json names {count_of(self.rules.channels, 'channel')}"
        if len(files) == 1:
            return (
                f"{files[0]}: holds {found} volumes, but {named}. Each file must be one 3D volume; "
                "nnunet-ssp convert cine makes one file of each frame of a cine."
            )
        return f"{files[0]}: the case has {found} channels, but {named}."

    def _compare_grids(self, file: str, mask: dict[str, NDArray[Any]]) -> None:
        """Refuse a mask of another shape; note one with another grid, since nnU-Net pairs voxels by index."""
        for name in self._grid.keys() & mask.keys():
            ours, theirs = mask[name], self._grid[name]
            # The tolerances allow for the rounding of header formats.
            if ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-4, atol=1e-3):
                continue
            listed = f"{name} (={_numbers(ours)}) must be that of the image (={_numbers(theirs)})"
            if name == "shape":
                raise RefusedError(f"{file}: {listed}.")
            self.notes.append(f"{file}: {listed}; voxels are paired by index.")


def _grid(shape: Sequence[int], properties: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the grid of an image as its reader reports it, without the axis of the channels."""
    grid = {"shape": np.array(shape[1:]), "spacing": np.array(properties["spacing"], float)}
    if itk := properties.get("sitk_stuff"):
        n = len(itk["origin"])
        grid["origin"] = np.array(itk["origin"][:3])
        grid["direction"] = np.reshape(itk["direction"], (n, n))[:3, :3]
    if nibabel := properties.get("nibabel_stuff"):
        grid["affine"] = np.array(nibabel["original_affine"])
    return grid


def _numbers(values: NDArray[Any]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values.ravel()) + ")"


def absurd_spacing(spacing: Sequence[float], median: Sequence[float]) -> str:
    """Explain why a spacing would make nnU-Net resample a case to an absurd size.

    Args:
        spacing: Edges in mm, in the reader's order of axes.
        median: Median of the dataset in mm.

    Returns:
        The reason in words; empty for a plausible spacing.
    """
    listed = f"spacing (={' x '.join(f'{edge:.4g}' for edge in spacing)} mm)"
    if not all(np.isfinite(edge) and edge > 0 for edge in spacing):
        return f"{listed} must be above 0."
    if is_natural(spacing) or is_natural(median):
        return ""
    factors = [edge / usual for edge, usual in zip(spacing, median, strict=True)]
    worst = max(factors, key=lambda factor: max(factor, 1 / factor))
    factor = max(worst, 1 / worst)
    if factor < ABSURD:
        return ""
    text = (
        f"{listed} is {factor:.4g} times {'larger' if worst > 1 else 'smaller'} than the dataset's median "
        f"(={' x '.join(f'{edge:.4g}' for edge in median)} mm)"
    )
    for power, units in ((1, "metres or micrometres"), (2, "metres for micrometres")):
        if 1 / 3 < factor / UNIT**power < 3:
            return f"{text}: a factor of {UNIT**power:.0f} is an error of the unit, {units} for millimetres."
    return f"{text}; nnU-Net would resample it to an absurd size."


def is_natural(spacing: Sequence[float]) -> bool:
    """Whether nnU-Net's reader made up the first spacing, as it does for 2D images."""
    made_up = (STACK_OF_2D, STACK_OF_2D * max(spacing[1:]))
    return bool(np.isclose(spacing[0], made_up).any())


class CheckedPlans(PlansManager):
    """Plans whose reader is a `CheckedReader`.

    Args:
        file: The plans file.
        reader: Reader of the images and masks.
    """

    def __init__(self, file: Path, reader: CheckedReader) -> None:
        super().__init__(str(file))
        self._checked = reader

    @property
    def image_reader_writer_class(self) -> Any:
        """The class that nnU-Net calls to get its reader."""
        return lambda: self._checked


def one_line(error: Exception) -> str:
    """Return type and message in one line; SimpleITK's messages begin with a place in its source."""
    message = str(error).rpartition("sitk::ERROR: ")[-1]
    return f"{type(error).__name__}: {' '.join(message.split())}"


def problem_lines(problems: Collection[str]) -> str:
    """Return problems as indented lines, at most `LISTED`."""
    lines = list(problems)
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n".join(f"  {line}" for line in [*lines[:LISTED], *more])
