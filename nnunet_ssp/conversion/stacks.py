"""One cine from NIfTI files: one file in all, or one for each frame, each slice, or each slice and frame.

dcm2niix makes a file for each slice where a scanner stores each slice as a series; other tools split further. The
geometry of the files decides how they fit together; their names only give the order of time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from nnunet_ssp.conversion.geometry import StackPlace, place_stack
from nnunet_ssp.files.grids import Array, Grid
from nnunet_ssp.files.nifti import (
    Nifti,
    NiftiHeader,
    as_cine,
    as_frame,
    check_axes,
    check_cine,
    read_header,
    read_image,
)

PARALLEL = 2.0  # degrees
SAME_SLICE = 0.5  # mm
UNEVEN = 0.1  # of the spacing; largest difference of distances between slices


@dataclass(frozen=True)
class NiftiStack:
    """A cine, its slices on the third axis."""

    # (X, Y, Z, T)
    voxels: Array
    place: StackPlace
    # A file on the grid of the whole stack, as stored; None where each file has one slice
    source: Nifti | None


@dataclass(frozen=True)
class StackHeader:
    """A cine of which only the headers were read, its slices on the third axis."""

    # (X, Y, Z, T)
    shape: tuple[int, ...]
    place: StackPlace
    # As in `NiftiStack`
    source: NiftiHeader | None


@dataclass(frozen=True)
class _Head:
    """The header of one of the files."""

    file: Path
    # Three axes, and a fourth of more than one frame
    shape: tuple[int, ...]
    grid: Grid

    @property
    def one_slice(self) -> bool:
        return self.shape[:3].count(1) == 1

    @property
    def n_frames(self) -> int:
        return self.shape[3] if len(self.shape) == 4 else 1


def read_nifti_stack(files: Sequence[Path], where: Path, one_frame: bool = False) -> NiftiStack:
    """Read the cine of one subject.

    Args:
        files: The files in the order of time, as far as their names tell.
        where: The subject's file or folder, for messages.
        one_frame: Whether a single 3D file is taken as a cine of one frame.

    Raises:
        ValueError: A file is damaged, the files do not fit together, or they hold no cine; names files and rule.
    """
    if len(files) == 1:
        image = read_image(files[0])
        voxels = as_cine(image.voxels)
        if one_frame and voxels.ndim == 3:
            voxels = voxels[..., None]
        _check_has_frames(voxels.shape, files[0])
        check_cine(voxels, files[0])
        place = place_stack(image.grid, voxels.shape, files[0])
        return NiftiStack(place.move(voxels), place, image)
    rows, place = _arrange([_read_head(file) for file in files])
    images = {head.file: read_image(head.file) for row in rows for head in row}
    frames = {file: place.move(as_frame(image.voxels)) for file, image in images.items()}
    parts = [[frames[head.file] for head in row] for row in rows]
    slices = [row[0] if row[0].ndim == 4 else np.stack(row, axis=-1) for row in parts]
    voxels = slices[0] if len(rows) == 1 else np.concatenate(slices, axis=2)
    check_cine(voxels, where)
    return NiftiStack(voxels, place, images[files[0]] if len(rows) == 1 else None)


def look_at_nifti_stack(files: Sequence[Path]) -> StackHeader:
    """Look at the stack that `read_nifti_stack` reads, by the headers alone."""
    if len(files) == 1:
        shape, grid = read_header(files[0])
        _check_has_frames(shape, files[0])
        check_axes(shape, files[0])
        place = place_stack(grid, shape, files[0])
        n_frames = math.prod(shape[3:])
        return StackHeader(
            (*_moved(shape, place), n_frames), place, NiftiHeader(files[0], shape, grid)
        )
    rows, place = _arrange([_read_head(file) for file in files])
    first = rows[0][0]
    x, y, z = _moved(first.shape, place)
    if len(rows) > 1:
        return StackHeader((x, y, len(rows), max(len(rows[0]), first.n_frames)), place, None)
    source = NiftiHeader(first.file, first.shape, first.grid)
    return StackHeader((x, y, z, len(rows[0])), place, source)


def _moved(shape: Sequence[int], place: StackPlace) -> tuple[int, ...]:
    """Return the sides of a file in the order of the stack's axes."""
    return tuple(shape[axis] for axis in place.order)


def _check_has_frames(shape: Sequence[int], file: Path) -> None:
    if len(shape) == 3:
        raise ValueError(
            f"{file}: shape (={tuple(shape)}) must have 4 axes: columns, rows, slices, frames. 3D frames of one "
            "subject belong in a folder of its name; masks end in _gt."
        )


def _read_head(file: Path) -> _Head:
    shape, grid = read_header(file)
    further = [n for n in shape[3:] if n > 1]
    if len(shape) < 3 or len(further) > 1:
        raise ValueError(f"{file}: shape (={shape}) must have 3 or 4 axes longer than 1.")
    return _Head(file, (*shape[:3], *further), grid)


def _arrange(heads: Sequence[_Head]) -> tuple[list[list[_Head]], StackPlace]:
    """Return the place of the stack, and the files of each slice in order of time; one row if each holds all slices."""
    first = heads[0]
    cines = [head for head in heads if head.n_frames > 1 and not head.one_slice]
    if len(cines) > 1:
        raise ValueError(
            f"{cines[0].file} and {cines[1].file.name} are two cines, of shapes {cines[0].shape} and {cines[1].shape}, "
            "and a folder must hold one. Two views: keep the short axis alone. Two visits of a patient: a folder for "
            "each, and folds that keep both on one side (folds --from FILE)."
        )
    for head in heads[1:]:
        if head.shape != first.shape:
            rule = "must have 3 axes and be that" if first.n_frames == 1 else "must be that"
            raise ValueError(
                f"{head.file}: shape (={head.shape}) {rule} of {first.file.name} (={first.shape})."
            )
    place = place_stack(first.grid, first.shape, first.file)
    distances = _distances(heads, place) if first.one_slice else np.zeros(len(heads))
    if np.ptp(distances) <= SAME_SLICE:
        if first.n_frames > 1:
            raise ValueError(f"{heads[1].file} must not show the same slice as {first.file.name}.")
        for head in heads:
            if not np.allclose(head.grid.affine, first.grid.affine, atol=0.01):  # mm
                raise ValueError(f"{head.file}: the affine must be that of {first.file.name}.")
        _check_numbers(heads)
        return [list(heads)], place
    order = np.argsort(distances, kind="stable")
    breaks = np.flatnonzero(np.diff(distances[order]) > SAME_SLICE) + 1
    rows = [[heads[i] for i in sorted(row)] for row in np.split(order, breaks)]
    _check_rows(rows)
    return rows, _across(rows, place)


def _distances(heads: Sequence[_Head], place: StackPlace) -> Array:
    """Return the distances of slices from that of the first file, along its normal; all must be parallel to it."""
    first = place.affine[:3, :3] / np.linalg.norm(place.affine[:3, :3], axis=0)
    spacing = np.linalg.norm(place.affine[:3, :2], axis=0)
    offsets = []
    for head in heads:
        affine = head.grid.affine[:, [*place.order, 3]]
        its_spacing = np.linalg.norm(affine[:3, :3], axis=0)
        cosines = np.clip((affine[:3, :3] / its_spacing * first).sum(axis=0), -1, 1)
        angle = np.degrees(np.arccos(cosines)).max()
        offset = first.T @ (affine[:3, 3] - place.affine[:3, 3])
        name = heads[0].file.name
        if not angle <= PARALLEL:
            raise ValueError(
                f"{head.file}: must be parallel to {name}, not turned by {angle:.0f} degrees."
            )
        if not np.allclose(its_spacing[:2], spacing, rtol=1e-3):
            raise ValueError(f"{head.file}: the pixel spacing must be that of {name}.")
        if (np.abs(offset[:2]) > spacing / 2).any():
            raise ValueError(f"{head.file}: must lie behind {name}, not beside it.")
        offsets.append(offset[2])
    return np.array(offsets)


def _check_rows(rows: Sequence[Sequence[_Head]]) -> None:
    """Refuse slices that occur twice, lack frames, or have frames without an order."""
    first = rows[0][0]
    for row in rows:
        if len(row) > 1 and first.n_frames > 1:
            raise ValueError(f"{row[0].file} and {row[1].file.name} must not show the same slice.")
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{row[0].file}: its slice has {len(row)} files, that of {first.file.name} {len(rows[0])}; "
                "each must have as many."
            )
        if len(row) > 1:
            numbers = _name_numbers(row)
            varying = numbers[:, np.ptp(numbers, axis=0) > 0]
            if not varying.shape[1] or not (np.diff(varying, axis=0) > 0).all():
                raise ValueError(
                    f"{row[0].file}, {row[1].file.name}: the numbers in the names must tell the order of time."
                )
            _check_numbers(row)
    _check_same_frames(rows)
    if len(rows[0]) == 1 and first.n_frames == 1:
        raise ValueError(
            f"{first.file} and {rows[1][0].file.name} lie in different places, and each holds only one frame."
        )


def _check_same_frames(rows: Sequence[Sequence[_Head]]) -> None:
    """Refuse slices with equally many but other frames, as where one lacks its first and the rest their last.

    Numbers that restart in each slice tell it. Numbers that continue or jump from slice to slice do not overlap, or not
    at the same place of the step.
    """
    heads = [head for row in rows for head in row]
    for numbers in _name_numbers(heads).reshape(len(rows), len(rows[0]), -1).transpose(2, 0, 1):
        steps = np.unique(np.diff(numbers, axis=1))
        if len(steps) != 1 or steps[0] == 0:
            continue
        starts = numbers[:, 0].tolist()
        usual = starts.index(max(starts, key=starts.count))
        shift = np.abs(numbers[:, 0] - starts[usual])
        other = (shift > 0) & (shift % steps[0] == 0) & (shift <= np.ptp(numbers[usual]))
        if other.any():
            row = int(other.argmax())
            raise ValueError(
                f"{rows[row][0].file}: its slice has frames {starts[row]} to {numbers[row, -1]}, that of "
                f"{rows[usual][0].file.name} {starts[usual]} to {numbers[usual, -1]}; each must have the same."
            )


def _across(rows: Sequence[Sequence[_Head]], place: StackPlace) -> StackPlace:
    """Return the place of a stack of single slices; they must be evenly spaced."""
    origins = np.array([row[0].grid.affine[:3, 3] for row in rows])
    steps = np.diff(origins, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    usual = float(np.median(lengths))
    for length, (before, after) in zip(lengths, pairwise(rows), strict=True):
        if abs(length - usual) > UNEVEN * usual:
            raise ValueError(
                f"{before[0].file} and {after[0].file.name}: the slices are {length:.1f} mm apart, "
                f"and must be evenly spaced (others {usual:.1f} mm)."
            )
    normal = place.affine[:3, 2] / np.linalg.norm(place.affine[:3, 2])
    affine = place.affine.copy()
    affine[:3, 2] = normal * float(np.mean(steps @ normal))
    affine[:3, 3] = origins[0]
    said = f"one stack of {len(rows)} slices, each in {'files' if rows[0][1:] else 'a file'} of its own"
    return StackPlace(affine, place.order, place.corrections, [*place.notes, said])


def _name_numbers(heads: Sequence[_Head]) -> Array:
    """Return the numbers in the files' names, one row each; if their counts differ, the places in the list."""
    found = [[int(number) for number in re.findall(r"\d+", str(head.file))] for head in heads]
    same = len({len(numbers) for numbers in found}) == 1 and found[0]
    return np.array(found) if same else np.arange(len(heads))[:, None]


def _check_numbers(heads: Sequence[_Head]) -> None:
    """Refuse frames that are numbered one by one with a gap."""
    numbers = _name_numbers(heads)
    varying = np.flatnonzero(np.ptp(numbers, axis=0))
    if len(varying) == 1:
        steps = np.diff(numbers[:, varying[0]])
        if steps.min() == 1 and steps.max() > 1:
            place = int(steps.argmax()) + 1
            before, after = (int(numbers[n, varying[0]]) for n in (place - 1, place))
            file = heads[place].file
            raise ValueError(
                f"{file.parent}: a frame is missing before {file.name}, whose number {after} follows {before}. If "
                "these are frames of one subject: add the missing ones, or number them without a gap. If they are "
                "several subjects: a folder for each."
            )
