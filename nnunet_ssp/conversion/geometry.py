"""Geometry of stacks: orthogonal axes, the axis of the slices, equal grids, and the base of the heart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssp.files.grids import Array, Grid, corner_distance
from nnunet_ssp.files.nifti import Nifti, NiftiHeader

FAR = 2.0  # times the next spacing; no axis within a slice is as coarse
COARSER = (
    1.1  # times the next spacing, where the axis has at most half as many voxels as each other one
)


@dataclass(frozen=True)
class StackPlace:
    """Place of a stack once its slices are on the third axis."""

    # (4, 4), in mm, with orthogonal axes
    affine: Array
    # Of the axes of the file
    order: tuple[int, int, int]
    corrections: list[str]
    notes: list[str]

    def move(self, voxels: Array) -> Array:
        """Bring voxels on the grid of the file, with any further axes, into this order."""
        return voxels.transpose(*self.order, *range(3, voxels.ndim))


def place_stack(grid: Grid, shape: Sequence[int], file: Path) -> StackPlace:
    """Make the axes of a grid orthogonal and put that of the slices last; keep the remarks on the header.

    Axes are exchanged in a ring, so the handedness stays, and none is reversed.

    Args:
        grid: The grid as read.
        shape: Shape of the voxels in the file, at least three axes.
        file: The file, for messages.

    Raises:
        ValueError: The axes do not span space.
    """
    affine, corrections = straighten(grid.affine, file)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axis, doubt = slice_axis(spacing, shape)
    order = ((axis + 1) % 3, (axis + 2) % 3, axis)
    if axis != 2:
        corrections = [
            *corrections,
            f"slices were on the file's {ORDINALS[axis]} axis, now on the third",
        ]
    moved = affine[:, [*order, 3]]
    return StackPlace(moved, order, [*grid.corrections, *corrections], [*grid.notes, *doubt])


def slice_axis(spacing: Sequence[float] | Array, shape: Sequence[int]) -> tuple[int, list[str]]:
    """Find the axis on which the slices follow each other, by spacing and shape.

    It is the only axis of length 1, else the one whose spacing is by far the largest. Otherwise it is the one with a
    larger spacing and by far the fewest voxels, else the third.

    Args:
        spacing: mm, of three axes.
        shape: Voxels on the same axes; further ones are ignored.

    Returns:
        The axis, and a note if another than the third might be meant.
    """
    sizes = np.array(shape[:3])
    if (sizes == 1).sum() == 1:
        return int(np.argmin(sizes)), []
    axis = int(np.argmax(spacing))
    others = [other for other in range(3) if other != axis]
    ratio = spacing[axis] / max(spacing[other] for other in others)
    if ratio >= FAR and sizes[axis] <= sizes[others].max():
        return axis, []
    if ratio >= COARSER and (2 * sizes[axis] <= sizes[others]).all():
        return axis, []
    if (axis == 2 and ratio >= COARSER) or (2 * sizes[2] <= sizes[:2]).all():
        return 2, []
    return 2, ["neither spacing nor shape shows the axis of the slices: axis 3 is taken"]


def clean_affine(affine: Array, file: Path) -> tuple[Array, float]:
    """Make the axes of an affine orthogonal; spacing, origin and handedness stay.

    SimpleITK refuses NIfTI files whose direction cosines are not orthonormal, as in some M&Ms files. The nearest
    orthonormal axes are the polar factor of the direction matrix.

    Args:
        affine: (4, 4), in mm.
        file: For the message.

    Returns:
        The clean affine, and the largest angle in degrees by which an axis was turned.

    Raises:
        ValueError: The axes do not span space.
    """
    finite = bool(np.isfinite(affine).all())
    spacing = np.linalg.norm(affine[:3, :3] if finite else np.zeros((3, 3)), axis=0)
    directions = affine[:3, :3] / np.maximum(spacing, 1e-6)  # mm; a shorter axis is none
    # Below 0.5 an axis is off by tens of degrees: no rounding does that, the header is broken.
    if not finite or not np.isfinite(spacing).all() or abs(np.linalg.det(directions)) < 0.5:
        raise ValueError(f"{file}: the affine must have three axes at right angles, or nearly so.")
    u, _, vt = np.linalg.svd(directions)
    clean = np.eye(4)
    clean[:3, :3] = (u @ vt) * spacing
    clean[:3, 3] = affine[:3, 3]
    cosines = np.clip((directions * (u @ vt)).sum(axis=0), -1, 1)
    return clean, float(np.degrees(np.arccos(cosines)).max())


def straighten(affine: Array, file: Path) -> tuple[Array, list[str]]:
    """Clean an affine, with a correction where an axis was turned by more than rounding."""
    clean, turned = clean_affine(affine, file)
    if turned <= 0.002:  # degrees; SimpleITK 2.5 refuses from 0.005 (and reads 0.0015)
        return clean, []
    return clean, [f"axes not orthogonal, turned by up to {turned:.2f} degrees"]


def same_grid(first: Nifti | NiftiHeader, second: Nifti | NiftiHeader, within: float = 0.5) -> bool:
    """Whether two files have the same grid as we, nibabel or SimpleITK read it; one of the three is enough.

    A mask is drawn on its image as some tool shows it. So voxels of equal index belong together if one tool finds
    both files in one place.

    Args:
        first: A file as read.
        second: Another file.
        within: Largest distance of equal corners, in edges of a voxel.
    """
    shape = first.shape[:3]
    return shape == second.shape[:3] and (
        _together(first.grid.affine, second.grid.affine, shape, within)
        or _together(first.grid.nominal, second.grid.nominal, shape, within)
        or _together(_as_simpleitk(first.file), _as_simpleitk(second.file), shape, within)
    )


def _together(
    first: Array | None, second: Array | None, shape: Sequence[int], within: float
) -> bool:
    if first is None or second is None:
        return False
    edge = np.linalg.norm(first[:3, :3], axis=0).min()  # in the unit of both
    return bool(corner_distance(first, second, shape) <= edge * within)


def _as_simpleitk(file: Path) -> Array | None:
    """Return the affine as SimpleITK reads it, in its own LPS+; None where it refuses the file."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader: Any = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    n = reader.GetDimension()
    if n < 3:
        return None
    affine = np.eye(4)
    directions = np.reshape(reader.GetDirection(), (n, n))[:3, :3]
    affine[:3, :3] = directions * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    return affine


def compare_grids(mask: Nifti, image: Nifti) -> list[str]:
    """Say if a mask does not lie where its image does, though their voxels are paired by index."""
    if np.allclose(mask.grid.affine, image.grid.affine, atol=0.01):  # mm
        return []
    if same_grid(mask, image, within=0.01):
        return []
    return ["affines of image and mask differ; their voxels are taken to match"]


# "The apex is directed downward, forward, and to the left" (Gray, Anatomy of the Human Body, 1918).
ORDINALS = ("first", "second", "third")
TOWARDS_APEX = np.array([-1.0, 1.0, -1.0]) / np.sqrt(3)  # RAS+


def base_of_stack(affine: Array) -> str:
    """Find the end of a short-axis stack that is the base of the heart.

    The direction of growing slice index is compared with the anatomical direction from base to
    apex. Within 45 degrees of it the base is the first slice, within 45 degrees of the opposite
    the last. In between it is unknown. That includes nominal affines, where slices run along one
    of the body's axes (54.7 degrees), as no short-axis stack does.

    Args:
        affine: (4, 4), in RAS+.

    Returns:
        `first`, `last` or `unknown`.
    """
    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    cosine = float(normal @ TOWARDS_APEX)
    if abs(cosine) < np.sqrt(0.5):
        return "unknown"
    return "first" if cosine > 0 else "last"
