"""Distances between the surfaces of two masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class SurfaceDistances(NamedTuple):
    """Distances between two surfaces; both are NaN where a mask is empty and has no surface."""

    # The larger of the two directions' 95th percentiles.
    hd95: float
    # Mean over the surface voxels of both masks.
    assd: float


def surface_distances(
    prediction: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_],
    spacing: Sequence[float],
) -> SurfaceDistances:
    """Compute the 95 % Hausdorff distance and average symmetric surface distance, as MONAI defines them.

    The surface of a mask consists of its voxels with a face to the outside, which includes all beyond the array.
    Distances are between voxel centres.

    Args:
        prediction: Mask, True inside.
        reference: Mask of the same shape.
        spacing: Size of a voxel along each axis; the distances have its unit.
    """
    from scipy import ndimage

    if not prediction.any() or not reference.any():
        return SurfaceDistances(np.nan, np.nan)
    # The joint bounding box holds both surfaces, and so every nearest point.
    (box,) = ndimage.find_objects((prediction | reference).astype(np.uint8))
    surfaces = [surface(mask[box]) for mask in (prediction, reference)]
    there, back = (_nearest(own, other, spacing) for own, other in (surfaces, surfaces[::-1]))
    return SurfaceDistances(
        hd95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        assd=float(np.concatenate([there, back]).mean()),
    )


def surface(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the voxels of a 3D mask with a face to the outside."""
    padded = np.pad(mask, 1)
    middle = slice(1, -1)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for shifted in (slice(None, -2), slice(2, None)):
            inner &= padded[(*[middle] * axis, shifted, *[middle] * (mask.ndim - axis - 1))]
    return mask & ~inner


def _nearest(
    own: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], spacing: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return the distance of each voxel of one surface to the nearest of another."""
    from scipy import ndimage

    nearest = ndimage.distance_transform_edt(
        ~other, sampling=spacing, return_distances=False, return_indices=True
    )
    # Only the surface's voxels need a distance, a small part of the box.
    steps = (nearest[:, own] - np.array(own.nonzero())) * np.array(spacing)[:, None]
    return np.asarray(np.sqrt((steps**2).sum(axis=0)))
