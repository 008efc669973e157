"""Find the same heart under two names: M&Ms and M&Ms-2 share subjects, and no table says which.

A frame becomes a *fingerprint*, a coarse picture of its contours. The similarity of two fingerprints is their highest
correlation over all orientations and small shifts. Intensity scale, padding, cropping, axis order, resolution, a few
slices more or less and even the cardiac phase hardly matter. Two patients of ACDC or Sunnybrook have at most
`DIFFERENT_HEARTS`, two phases of one at least `ONE_HEART`; `SAME` lies between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, DEPTH = 32, 16  # of a fingerprint, in cells in the plane and in slices
SHAPE = (2, WIDTH, WIDTH, DEPTH)  # in both scales
CELL = 12.0  # mm, in the first scale
FILLED = 28  # cells that the image's mean width takes in the second, which serves where a spacing is wrong
FINE, COARSE = (
    0.7,
    1.5,
)  # cells; contours are what two blurs differ in, so shading and texture are gone
BACKGROUND, BRIGHT = (
    1,
    95,
)  # percentiles; fat and flow are clipped, as sources clip them differently
WINDOW = 10.0  # cells; standard deviation of the weight, as what is far from the middle turns and is cropped
SHIFT, SLICE_SHIFT = 4, 2  # furthest, in cells and slices
BAND = 10  # highest frequency compared, in periods a fingerprint; the blur leaves little above it
SHARED = 0.6  # part of each frame's contours that must overlap, when slices are shifted
# Highest similarity of two patients' ED (for 99.9 % of the pairs 0.54), and lowest of one patient's ED and ES: of 60 of
# ACDC and 5 of Sunnybrook, 2080 pairs. Of Sunnybrook alone they are 0.48 and 0.96.
DIFFERENT_HEARTS, ONE_HEART = 0.62, 0.90
# Lowest similarity of one heart, between those two. Copies have at least 0.97 if flipped, transposed, padded, rescaled,
# resampled or clipped; 0.88 with gamma 2 or 0.5, cropped by 6 % a side or two slices short; 0.79 rotated by 5 degrees;
# 0.72 cropped by 20 % a side, and 0.52 rotated by 10 degrees. Synthetic hearts share their anatomy and come nearer.
SAME = 0.75
SUSPECT = 0.68  # worth a look
UNSEEN = "not seen by this: copies turned by more than 5 degrees, cropped to the heart, or without most of their slices"


def fingerprint(voxels: NDArray[Any], spacing: Sequence[float]) -> NDArray[np.float32]:
    """Return the contours of a frame on a coarse grid, once in mm and once in parts of the image's width.

    Args:
        voxels: `(X, Y, Z)`.
        spacing: mm; only the first two, those in the plane, are used.

    Returns:
        `SHAPE`, each scale of norm 1; zeros for a frame without contours.
    """
    low, bright = np.percentile(voxels, (BACKGROUND, BRIGHT))
    body = _body(voxels, low + 0.05 * (bright - low))
    if not body.size:
        return np.zeros(SHAPE, np.float32)
    body = np.minimum(body, np.percentile(body, BRIGHT)).astype(np.float32)
    size = np.multiply(body.shape[:2], spacing[:2])
    cells = (CELL, float(np.sqrt(size.prod())) / FILLED)
    return np.stack([_contours(body, cell / np.asarray(spacing[:2], float)) for cell in cells])


def _body(voxels: NDArray[Any], threshold: float) -> NDArray[Any]:
    """Cut out the smallest box with all rows, columns and slices of which 1 % is above a threshold."""
    above = voxels > threshold
    for axis in range(voxels.ndim):
        others = tuple(other for other in range(voxels.ndim) if other != axis)
        places = np.flatnonzero(above.mean(axis=others) > 0.01)
        kept = range(places[0], places[-1] + 1) if len(places) else range(0)
        voxels, above = voxels.take(kept, axis), above.take(kept, axis)
        if not voxels.size:
            break
    return voxels


def _contours(body: NDArray[np.float32], cell: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return one scale of a fingerprint; `cell` is in voxels, `(2,)`."""
    from scipy.ndimage import affine_transform, gaussian_filter
    from skimage.transform import resize_local_mean

    # A quarter of a cell is fine enough, and quick.
    fewer = [max(1, min(n, round(4 * n / c))) for n, c in zip(body.shape[:2], cell, strict=True)]
    cell = cell * fewer / body.shape[:2]
    body = resize_local_mean(body, (*fewer, min(DEPTH, body.shape[2])), preserve_range=True)

    def blurred(cells: float) -> NDArray[np.floating]:
        sigma = (*(cells * cell), 0)
        weight = gaussian_filter(np.ones_like(body[..., :1]), sigma, mode="constant")
        return np.asarray(gaussian_filter(body, sigma, mode="constant") / weight)

    relief = blurred(FINE) - blurred(COARSE)
    size = np.array(body.shape)
    # So that a shift by half the difference of two depths is a whole number of slices, depths round down.
    offset = np.append((size[:2] - 1) / 2 - cell * (WIDTH - 1) / 2, -((DEPTH - size[2]) // 2))
    grid = affine_transform(
        relief, np.append(cell, 1), offset, (WIDTH, WIDTH, DEPTH), order=1, mode="constant"
    )
    from_middle = np.arange(WIDTH) - (WIDTH - 1) / 2
    weight = np.exp(-((from_middle / WINDOW) ** 2) / 2)
    grid *= (weight[:, None] * weight)[..., None]
    # What is not compared must not count in the norm either.
    spectrum = np.fft.rfft2(grid, axes=(0, 1)) * _band()[0][..., None]
    grid = np.fft.irfft2(spectrum, s=(WIDTH, WIDTH), axes=(0, 1))
    norm = float(np.linalg.norm(grid))
    # Rounding leaves a little of a constant frame; that is no contour.
    if norm <= 1e-4 * float(np.abs(body).max(initial=0)):
        return np.zeros_like(grid, np.float32)
    return np.asarray(grid / norm, np.float32)


def _orientations(grids: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield grids `(N, X, Y, Z)` flipped and transposed in all 16 ways that keep Z the stack's axis."""
    for stack in (grids, grids[..., ::-1]):
        for turns in range(4):
            turned = np.rot90(stack, turns, axes=(1, 2))
            yield turned
            yield turned.swapaxes(1, 2)


def similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the correlation of fingerprints in the scale, orientation and shift where it is highest.

    Args:
        first: `(N, *SHAPE)`.
        second: `(M, *SHAPE)`.

    Returns:
        `(N, M)`, 1 for equal images, 0 for one without contours; symmetric in its arguments.
    """
    best = np.zeros((len(first), len(second)), np.float32)
    for scale in range(SHAPE[0]):
        spectra, strength = _spectra(second[:, scale]), _strength(second[:, scale])
        for turned in _orientations(first[:, scale]):
            _correlate(_spectra(turned), _strength(turned), spectra, strength, best)
    return best


@cache
def _band() -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return the frequencies compared, and the matrix `(2 K, shifts)` from products of spectra to correlations."""
    x, y = np.fft.fftfreq(WIDTH)[:, None], np.fft.rfftfreq(WIDTH)[None]
    band = np.hypot(x, y) * WIDTH <= BAND
    twice = np.where(y == 0, 1, 2) / WIDTH**2  # the other half of a real image's spectrum
    shifts = [
        (i, j)
        for i in range(-SHIFT, SHIFT + 1)
        for j in range(-SHIFT, SHIFT + 1)
        if np.hypot(i, j) <= SHIFT
    ]
    waves = [(twice * np.exp(2j * np.pi * (x * i + y * j)))[band] for i, j in shifts]
    basis = np.stack(waves, axis=1)
    pairs = np.stack([basis.real, -basis.imag], axis=1).reshape(-1, len(shifts))
    return band, pairs.astype(np.float32)


def _spectra(grids: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Return the spectra `(K, N, Z)` of grids `(N, X, Y, Z)`."""
    kept = np.fft.rfft2(grids, axes=(1, 2))[:, _band()[0]]
    return np.ascontiguousarray(kept.transpose(1, 0, 2), np.complex64)


def _strength(grids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the strength of the contours in each slice, `(N, Z)`."""
    return np.asarray((grids**2).sum(axis=(1, 2)))


def _correlate(
    first: NDArray[np.complex64],
    first_strength: NDArray[np.float32],
    second: NDArray[np.complex64],
    second_strength: NDArray[np.float32],
    best: NDArray[np.float32],
) -> None:
    """Raise `best` to the highest correlation over all shifts, relative to the slices that both have."""
    basis = _band()[1]
    for shift in range(-SLICE_SHIFT, SLICE_SHIFT + 1):
        a = slice(max(0, shift), DEPTH + min(0, shift))
        b = slice(max(0, -shift), DEPTH + min(0, -shift))
        of_second = np.conj(second[..., b]).transpose(0, 2, 1)
        there_a, there_b = ((s > 0).astype(np.float32) for s in (first_strength, second_strength))
        shared_a = first_strength[:, a] @ there_b[:, b].T
        shared_b = there_a[:, a] @ second_strength[:, b].T
        norm = np.sqrt(np.maximum(shared_a, SHARED) * np.maximum(shared_b, SHARED))
        for rows in range(0, len(best), 16):  # so that memory does not grow with the square
            some = slice(rows, rows + 16)
            products = np.ascontiguousarray((first[:, some, a] @ of_second).transpose(1, 2, 0))
            highest = (products.view(np.float32) @ basis).max(axis=-1)
            np.maximum(best[some], highest / norm[some], out=best[some])


def look_alikes(
    fingerprints: Mapping[str, NDArray[np.float32]], threshold: float = SUSPECT
) -> list[tuple[str, str, float]]:
    """Find pairs of subjects that may be one, by the similarity of their fingerprints.

    Args:
        fingerprints: One for each subject.
        threshold: Lowest similarity that counts.

    Returns:
        Both subjects, in the order of `fingerprints`, and their similarity; the most similar pair first.
    """
    if not fingerprints:
        return []
    names, grids = list(fingerprints), np.stack(list(fingerprints.values()))
    pairs = []
    for start in range(0, len(names), 64):  # half of the square is enough
        table = similarity(grids[start : start + 64], grids[start:])
        for i, j in np.argwhere(np.triu(table, k=1) >= threshold):
            pairs.append((names[start + i], names[start + j], float(table[i, j])))
    return sorted(pairs, key=lambda pair: -pair[2])
