"""The same heart under two names: M&Ms and M&Ms-2, for one, share subjects, and no table says which.

A frame becomes a *fingerprint*, a coarse picture of its contours, and two fingerprints are compared by correlation in
all orientations. Intensity scale, zero padding, axis order, resolution and even the cardiac phase hardly matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPE = (32, 32, 4)  # of a fingerprint: in the plane, and through it
BRIGHT = 95  # percentile of the non-zero voxels; above it are fat and flow, which sources clip differently
BLUR = (
    1.5  # cells; what is smoother than this (coil shading, the outline of the body) is taken away
)
# Lowest similarity of one heart. Measured on 60 subjects of ACDC and 5 of Sunnybrook: different hearts below 0.40,
# end-diastole and end-systole of one heart above 0.90, copies (flipped, transposed, padded, rescaled, resampled,
# clipped, gamma, shaded) above 0.94. But a copy that lacks the last slice has 0.58 at worst, a crop within the body is
# not recognised, and the simple hearts of a phantom reach 0.71.
SAME = 0.8
SUSPECT = 0.6  # worth a look


def fingerprint(voxels: NDArray[Any]) -> NDArray[np.float32]:
    """The contours of a frame on a coarse grid over its non-zero voxels.

    Args:
        voxels: `(X, Y, Z)`.

    Returns:
        `SHAPE`, of mean 0 and norm 1; zeros for a frame without contours.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.transform import resize_local_mean

    if not voxels.any():
        return np.zeros(SHAPE, np.float32)
    clipped = np.minimum(_within_zeros(voxels), np.percentile(voxels[voxels != 0], BRIGHT))
    grid = resize_local_mean(clipped.astype(np.float32), SHAPE, preserve_range=True)
    grid = grid - gaussian_filter(grid, (BLUR, BLUR, 0))
    grid -= grid.mean()
    norm = np.linalg.norm(grid)
    # Rounding leaves a little of a constant frame; that is no contour.
    relief = norm > 1e-4 * np.abs(voxels).max(initial=0)
    return np.asarray(grid / norm if relief else np.zeros(SHAPE), np.float32)


def _within_zeros(voxels: NDArray[Any]) -> NDArray[Any]:
    """The smallest box with all non-zero voxels, of which there must be one."""
    for axis in range(voxels.ndim):
        others = tuple(other for other in range(voxels.ndim) if other != axis)
        places = np.flatnonzero(voxels.any(axis=others))
        voxels = voxels.take(range(places[0], places[-1] + 1), axis)
    return voxels


def _orientations(grids: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """All 16 ways to flip and transpose grids `(N, X, Y, Z)` that keep Z the stack's axis."""
    for stack in (grids, grids[..., ::-1]):
        for turns in range(4):
            turned = np.rot90(stack, turns, axes=(1, 2))
            yield turned
            yield turned.swapaxes(1, 2)


def similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlation of fingerprints in the orientation where it is highest.

    Args:
        first: `(N, *SHAPE)`.
        second: `(M, *SHAPE)`.

    Returns:
        `(N, M)`, 1 for equal images; symmetric in its arguments.
    """
    flat = first.reshape(len(first), -1)
    best = np.full((len(first), len(second)), -1, np.float32)
    for turned in _orientations(second):
        np.maximum(best, flat @ turned.reshape(len(second), -1).T, out=best)
    return best


def look_alikes(
    fingerprints: Mapping[str, NDArray[np.float32]], threshold: float = SUSPECT
) -> list[tuple[str, str, float]]:
    """Pairs of subjects that may be one: whose fingerprints are similar.

    Args:
        fingerprints: One of each subject.
        threshold: Lowest similarity that counts.

    Returns:
        Both subjects, in the order of `fingerprints`, and their similarity; the most similar pair first.
    """
    if not fingerprints:
        return []
    names, grids = list(fingerprints), np.stack(list(fingerprints.values()))
    table = np.triu(similarity(grids, grids), k=1)
    pairs = [(names[i], names[j], float(table[i, j])) for i, j in np.argwhere(table >= threshold)]
    return sorted(pairs, key=lambda pair: -pair[2])
