"""End-diastole and end-systole in the volume curve of the left ventricle."""

from __future__ import annotations

import numpy as np

from nnunet_ssp.files.grids import Array

NEAR = 1  # frames; how far smoothing may move an extremum


def smooth(curve: Array) -> Array:
    """Smooth a curve of one cycle, whose last frame is followed by its first.

    The median of three frames takes out a single bad one; the weights 1/4, 1/2, 1/4 smooth what is left.

    >>> smooth(np.array([8.0, 8.0, 0.0, 8.0, 8.0])).tolist()
    [8.0, 8.0, 8.0, 8.0, 8.0]
    >>> smooth(np.array([4.0, 4.0, 0.0, 0.0])).tolist()
    [3.0, 3.0, 1.0, 1.0]
    """
    curve = np.median([np.roll(curve, 1), curve, np.roll(curve, -1)], axis=0)
    return curve / 2 + (np.roll(curve, 1) + np.roll(curve, -1)) / 4


def find_phases(curve: Array) -> tuple[int, int]:
    """Find end-diastole and end-systole: the largest and the smallest volume near those of the smoothed curve.

    Volumes that are equal are told apart by the smoothed curve.

    >>> find_phases(np.array([100.0, 90.0, 60.0, 45.0, 50.0, 70.0, 85.0, 95.0]))
    (0, 3)

    Args:
        curve: (T,), volumes in ml.

    Returns:
        Both frames, from 0.
    """
    return _largest(curve), _largest(-curve)


def _largest(curve: Array) -> int:
    smoothed = smooth(curve)
    near = (int(smoothed.argmax()) + np.arange(-NEAR, NEAR + 1)) % len(curve)
    return int(max(near, key=lambda frame: (curve[frame], smoothed[frame])))


def minima(curve: Array, depth: float) -> list[int]:
    """Return the minima of a cyclic curve that lie at least `depth` below both maxima beside them.

    >>> minima(np.array([10.0, 2.0, 9.0, 3.0]), 5)
    [1, 3]
    >>> minima(np.array([10.0, 2.0, 4.0, 3.0]), 5)
    [1]
    """
    from scipy.signal import find_peaks

    order = (np.arange(len(curve) + 1) + int(curve.argmax())) % len(curve)
    peaks, _ = find_peaks(-curve[order], prominence=depth)
    return sorted(int(frame) for frame in order[peaks])
