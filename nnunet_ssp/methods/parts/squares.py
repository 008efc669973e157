"""Squares at random places of an image, for the corruptions of Dominic et al. (Bioengineering 2023, 10(2):207).

A square is given by its corner, which is its first row and column, and its side in pixels. All squares lie inside the
image. Everything is drawn on the host.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nnunet_ssp.console import count_of

Corners = NDArray[np.int64]  # (squares, 2), or (pairs, 2, 2)

ATTEMPTS = 10  # to place all Poisson-disc squares before the image has filled up


def number_of_squares(
    area: float, side: int, size: tuple[int, int], pairs: bool, at_least: bool = False
) -> int:
    """Count the squares that cover at most, or at least, a share of the image; for pairs an even number of them.

    Args:
        area: Share of the image, in (0, 1].
        side: Pixels of a square.
        size: Rows and columns of the image.
        pairs: Whether the squares change places in pairs.
        at_least: Whether they cover at least that share.

    Raises:
        ValueError: Not a single square, or pair, fits into the image or into that area.

    >>> number_of_squares(0.25, 32, (256, 256), pairs=True)
    16
    >>> [number_of_squares(0.25, 28, (224, 256), False, at_least) for at_least in (False, True)]
    [18, 19]
    """
    if side > min(size):
        raise ValueError(
            f"`mask_patch` (={side}) must not exceed the shorter side of the planned patch {size}."
        )
    if pairs:
        _require_place_for_two(side, size)
    needed = 2 if pairs else 1
    squares = size[0] * size[1] / side**2
    # 0.29 * 100 is a little less than 29.
    if at_least:
        return math.ceil(area * squares / needed - 1e-9) * needed
    number = math.floor(area * squares + 1e-9)
    number -= number % needed
    if number == 0:
        smallest = math.ceil(1000 * needed / squares) / 1000
        raise ValueError(
            f"`area` (={area}) must hold {count_of(needed, 'square')} of {side} px in {size[0]} x {size[1]} px: "
            f"at least {smallest:.3f}, or a smaller mask_patch."
        )
    return number


def _require_place_for_two(side: int, size: tuple[int, int]) -> None:
    if max(size) < 2 * side:
        raise ValueError(
            f"`mask_patch` (={side}) must leave place for two squares in {size[0]} x {size[1]} px."
        )


def poisson_disc(
    rng: np.random.Generator,
    number: int,
    side: int,
    size: tuple[int, int],
    attempts: int = ATTEMPTS,
) -> Corners:
    """Draw squares that are at least `side * sqrt(2)` apart, so that they never overlap.

    Each one is uniform over the places that those before it leave free. The papers' code grows its squares outwards
    from a random place and stops at their number, so that they leave a part of the image untouched.

    Args:
        rng: Source of randomness.
        number: Number of squares.
        side: Pixels of a square.
        size: Rows and columns of the image.
        attempts: Times that the image may fill up too early.

    Returns:
        (number, 2) corners.

    Raises:
        ValueError: That many do not fit. The message names the largest area.

    >>> corners = poisson_disc(np.random.default_rng(0), number=16, side=8, size=(64, 64))
    >>> corners.shape, cover(corners, 8, (64, 64)).mean().item()
    ((16, 2), 0.25)
    """
    fitted = []
    for _ in range(attempts):
        corners = _fill(rng, number, side, size)
        if len(corners) == number:
            return corners
        fitted.append(len(corners))
    # Every attempt has reached this: the advice holds. An even number may be one of pairs.
    reached = min(fitted) - (min(fitted) % 2 if number % 2 == 0 else 0)
    area = math.floor(1000 * reached * side**2 / (size[0] * size[1])) / 1000
    advice = f"Largest area here: {area:.3f}." if reached else "Take a smaller `mask_patch`."
    raise ValueError(
        f"`area` must not ask for {number} squares of {side} px in {size[0]} x {size[1]} px: only for {min(fitted)} of "
        f"them are there places at least {side} * sqrt(2) apart. {advice}"
    )


def _fill(rng: np.random.Generator, number: int, side: int, size: tuple[int, int]) -> Corners:
    """Place as many squares as fit one after the other, at most `number`."""
    free = np.ones((size[0] - side + 1, size[1] - side + 1), dtype=bool)
    reach = math.isqrt(2 * side**2 - 1)  # the largest offset that may be too near
    offset = np.arange(-reach, reach + 1)
    far = offset[:, None] ** 2 + offset**2 >= 2 * side**2
    corners: list[tuple[int, int]] = []
    # Places come in random order, without those taken: the next one is uniform over what is free.
    for place in rng.permutation(free.size):
        row, column = divmod(int(place), free.shape[1])
        if free[row, column]:
            corners.append((row, column))
            if len(corners) == number:
                break
            top, left = max(row - reach, 0), max(column - reach, 0)
            around = free[top : row + reach + 1, left : column + reach + 1]
            first_row, first_column = top - row + reach, left - column + reach
            around &= far[
                first_row : first_row + around.shape[0],
                first_column : first_column + around.shape[1],
            ]
    return np.array(corners, dtype=np.int64).reshape(-1, 2)


def uniform(rng: np.random.Generator, area: float, side: int, size: tuple[int, int]) -> Corners:
    """Draw squares at independent places, which may overlap, until they cover a share of the image.

    Args:
        rng: Source of randomness.
        area: Smallest covered share of the image.
        side: Pixels of a square.
        size: Rows and columns of the image.

    Returns:
        (squares, 2) corners.

    >>> corners = uniform(np.random.default_rng(0), area=0.25, side=8, size=(64, 64))
    >>> bool(0.25 <= cover(corners, 8, (64, 64)).mean() < 0.25 + 8**2 / 64**2)
    True
    """
    covered = np.zeros(size, dtype=bool)
    corners = []
    while np.count_nonzero(covered) < area * covered.size:
        corners.append(_anywhere(rng, side, size))
        _mark(covered, corners[-1], side)
    return np.stack(corners)


def uniform_pairs(
    rng: np.random.Generator, area: float, side: int, size: tuple[int, int]
) -> Corners:
    """Draw pairs of squares, the two of a pair apart, until all together cover a share of the image.

    Squares of different pairs may overlap. The second square's row is uniform. Its column is uniform over those where
    it does not overlap the first.

    Args:
        rng: Source of randomness.
        area: Smallest covered share of the image.
        side: Pixels of a square.
        size: Rows and columns of the image.

    Returns:
        (pairs, 2, 2) corners.

    Raises:
        ValueError: No two squares fit beside each other.

    >>> pairs = uniform_pairs(np.random.default_rng(0), area=0.25, side=8, size=(64, 64))
    >>> (abs(pairs[:, 0] - pairs[:, 1]).max(1) >= 8).all().item()
    True
    """
    _require_place_for_two(side, size)
    covered = np.zeros(size, dtype=bool)
    pairs = []
    while np.count_nonzero(covered) < area * covered.size:
        first, second = _anywhere(rng, side, size), _anywhere(rng, side, size)
        if abs(second[0] - first[0]) < side:
            columns = np.arange(size[1] - side + 1)
            columns = columns[abs(columns - first[1]) >= side]
            if not len(columns):
                continue
            second[1] = rng.choice(columns)
        pairs.append(np.stack([first, second]))
        for corner in pairs[-1]:
            _mark(covered, corner, side)
    return np.stack(pairs)


def _anywhere(rng: np.random.Generator, side: int, size: tuple[int, int]) -> NDArray[np.int64]:
    return rng.integers(0, np.asarray(size) - side + 1)


def _mark(covered: NDArray[np.bool_], corner: NDArray[np.int64], side: int) -> None:
    row, column = corner
    covered[row : row + side, column : column + side] = True


def turned(corners: Corners, side: int, size: tuple[int, int], quarters: int) -> Corners:
    """Turn the image by quarters, counter-clockwise, with its squares.

    Args:
        corners: (..., 2).
        side: Pixels of a square.
        size: Rows and columns of the image before.
        quarters: Number of quarter turns.

    >>> turned(np.array([[0, 0]]), side=2, size=(10, 20), quarters=1).tolist()
    [[18, 0]]
    """
    height, width = size
    for _ in range(quarters % 4):
        corners = np.stack([width - side - corners[..., 1], corners[..., 0]], -1)
        height, width = width, height
    return corners


def cover(corners: Corners, side: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return where the squares lie: (rows, columns), True inside.

    Args:
        corners: (..., 2).
        side: Pixels of a square.
        size: Rows and columns of the image.

    >>> cover(np.array([[0, 1]]), side=1, size=(2, 3)).astype(int).tolist()
    [[0, 1, 0], [0, 0, 0]]
    """
    covered = np.zeros(size, dtype=bool)
    covered[_pixels(corners.reshape(-1, 2), side)] = True
    return covered


def _pixels(corners: Corners, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows (squares, side, 1) and columns (squares, 1, side) of squares (squares, 2)."""
    along = np.arange(side)
    return corners[:, 0, None, None] + along[:, None], corners[:, 1, None, None] + along


def exchange(pairs: Corners, side: int, size: tuple[int, int]) -> NDArray[np.int32]:
    """Return where each pixel comes from when the squares of each pair change places, one pair after the other.

    Args:
        pairs: (pairs, 2, 2) corners; the two squares of a pair must not overlap.
        side: Pixels of a square.
        size: Rows and columns of the image.

    Returns:
        (rows, columns) numbers of the source pixels, counted row by row: a permutation.

    Raises:
        ValueError: The corners do not come in pairs.

    >>> exchange(np.array([[[0, 0], [1, 2]]]), side=1, size=(2, 3)).tolist()
    [[5, 1, 2], [3, 4, 0]]
    """
    if pairs.shape[1:] != (2, 2):
        raise ValueError(f"`pairs` (of shape {pairs.shape}) must be of shape (pairs, 2, 2).")
    source = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
    if np.count_nonzero(cover(pairs, side, size)) == pairs.size // 2 * side**2:
        # No two squares overlap, so that the order does not matter.
        first, second = (_pixels(pairs[:, i], side) for i in (0, 1))
        source[first], source[second] = source[second], source[first]
        return source
    for (row, column), (other_row, other_column) in pairs:
        one = source[row : row + side, column : column + side]
        other = source[other_row : other_row + side, other_column : other_column + side]
        kept = one.copy()
        one[:] = other
        other[:] = kept
    return source
