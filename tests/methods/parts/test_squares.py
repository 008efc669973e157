from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import chisquare

from nnunet_ssp.methods.parts.squares import (
    cover,
    exchange,
    number_of_squares,
    poisson_disc,
    turned,
    uniform,
    uniform_pairs,
)

PAPERS_SIDES = (8, 16, 32, 64)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def inside(corners, side, size) -> bool:
    return bool((corners >= 0).all() and (corners + side <= np.asarray(size)).all())


def overlap(one, other, side) -> bool:
    return bool((abs(np.subtract(one, other)) < side).all())


# Sides and sizes that leave place for at least two squares beside each other along the rows.
images = st.integers(1, 9).flatmap(
    lambda side: st.tuples(
        st.just(side),
        st.tuples(st.integers(2 * side, 2 * side + 30), st.integers(side, side + 30)),
        st.integers(0, 2**31),
    )
)
examples = settings(max_examples=60, deadline=None)


# -- how many --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("length", [256, 512])
@pytest.mark.parametrize("side", PAPERS_SIDES)
def test_the_papers_squares_cover_exactly_a_quarter(side, length, pairs):
    size = (length, length)
    number = number_of_squares(0.25, side, size, pairs)
    assert number == length**2 // 4 // side**2
    corners = poisson_disc(random(side), number, side, size)
    assert cover(corners, side, size).mean() == 0.25


@pytest.mark.parametrize(
    ("area", "side", "size", "single", "paired"),
    [
        (0.25, 8, (40, 40), 6, 6),
        (0.25, 8, (40, 48), 7, 6),  # 7.5: never more than the area, never half a pair
        (0.29, 1, (10, 10), 29, 28),  # 0.29 * 100 is a little less than 29
        (0.5, 32, (64, 32), 1, None),
        (0.99, 1, (2, 1), 1, None),
    ],
)
def test_numbers(area, side, size, single, paired):
    assert number_of_squares(area, side, size, pairs=False) == single
    if paired is not None:
        assert number_of_squares(area, side, size, pairs=True) == paired
    else:
        with pytest.raises(ValueError, match=r"must hold 2 squares of"):
            number_of_squares(area, side, size, pairs=True)


@given(image=images, area=st.floats(0.05, 0.5), pairs=st.booleans())
@examples
def test_the_fewest_squares_that_cover_at_least_an_area(image, area, pairs):
    side, size, _ = image
    number, needed = number_of_squares(area, side, size, pairs, at_least=True), 1 + pairs
    pixels = size[0] * size[1]
    assert number % needed == 0
    assert number * side**2 >= area * pixels * (1 - 1e-9) > (number - needed) * side**2 * (1 - 1e-6)


@pytest.mark.parametrize("pairs", [False, True])
@given(image=images)
@examples
def test_the_smallest_area_that_a_refusal_names_is_accepted(pairs, image):
    side, size, _ = image
    needed = 2 if pairs else 1
    with pytest.raises(ValueError, match=rf"`area` \(=1e-09\) must hold {needed} sq") as refused:
        number_of_squares(1e-9, side, size, pairs)
    smallest = float(str(refused.value).split("at least ")[1].split(",")[0])
    assert number_of_squares(smallest, side, size, pairs) >= needed


def test_squares_that_do_not_fit_are_refused():
    message = r"`mask_patch` \(=33\) must not exceed the shorter side of the planned patch \(64, 32"
    with pytest.raises(ValueError, match=message):
        number_of_squares(0.25, 33, (64, 32), pairs=False)
    message = r"`mask_patch` \(=32\) must leave place for two squares in 63 x 32 px"
    with pytest.raises(ValueError, match=message):
        number_of_squares(0.9, 32, (63, 32), pairs=True)


# -- Poisson-disc ----------------------------------------------------------------------------------


@given(image=images)
@examples
def test_poisson_disc_squares_keep_their_distance(image):
    side, size, seed = image
    number = max(1, math.floor(0.25 * size[0] * size[1] / side**2))
    corners = poisson_disc(random(seed), number, side, size)
    assert (corners.shape, corners.dtype) == ((number, 2), np.int64)
    assert inside(corners, side, size)
    assert (pdist(corners) >= side * math.sqrt(2) - 1e-9).all()
    assert np.count_nonzero(cover(corners, side, size)) == number * side**2, "squares overlap"
    assert np.array_equal(corners, poisson_disc(random(seed), number, side, size))


def test_seeds_differ():
    drawn = {poisson_disc(random(seed), 16, 16, (128, 128)).tobytes() for seed in range(20)}
    assert len(drawn) == 20


def test_each_square_is_uniform_over_what_is_free():
    """All probabilities of two single pixels, neighbours along a side excluded, in 3 x 4."""
    places = list(itertools.product(range(3), range(4)))
    expected = {}
    for first in places:
        free = [p for p in places if math.dist(first, p) >= math.sqrt(2)]
        expected.update({(first, second): 1 / 12 / len(free) for second in free})
    rng = random(1)
    draws = 20_000
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        first, second = poisson_disc(rng, 2, 1, (3, 4)).tolist()
        counts[tuple(first), tuple(second)] += 1
    probable = [draws * p for p in expected.values()]
    assert chisquare(list(counts.values()), probable).pvalue > 1e-3


@pytest.mark.parametrize("side", PAPERS_SIDES)
def test_the_largest_area_that_a_refusal_names_can_be_reached(side):
    size = (256, 256)
    number = number_of_squares(0.6, side, size, pairs=False)
    message = (
        rf"`area` must not ask for {number} squares of {side} px in 256 x 256 px: only for \d+ "
    )
    with pytest.raises(ValueError, match=message) as refused:
        poisson_disc(random(), number, side, size)
    largest = float(str(refused.value).split("Largest area here: ")[1].rstrip("."))
    assert 0.25 <= largest < 0.6
    number = number_of_squares(largest, side, size, pairs=False)
    for seed in range(20):
        assert len(poisson_disc(random(seed), number, side, size)) == number


def test_an_image_that_fills_up_early_is_tried_again():
    """Two squares of 2 x 2 fit into 4 x 4 in opposite corners, and not when the first lies in the middle."""
    for seed in range(20):
        corners = poisson_disc(random(seed), 2, 2, (4, 4), attempts=100)
        assert pdist(corners) >= 2 * math.sqrt(2)
    with pytest.raises(ValueError, match="only for 1 of them"):
        poisson_disc(random(0), 3, 2, (3, 3), attempts=1)


# -- uniform ---------------------------------------------------------------------------------------


@given(image=images, area=st.floats(0.05, 0.9))
@examples
def test_uniform_squares_stop_when_the_area_is_reached(image, area):
    side, size, seed = image
    corners = uniform(random(seed), area, side, size)
    assert inside(corners, side, size)
    assert cover(corners, side, size).mean() >= area
    assert cover(corners[:-1], side, size).mean() < area
    assert np.array_equal(corners, uniform(random(seed), area, side, size))


def test_uniform_squares_lie_anywhere():
    rng = random(2)
    draws = np.concatenate([uniform(rng, 0.5, 3, (5, 7)) for _ in range(2000)])
    counts = np.bincount(5 * draws[:, 0] + draws[:, 1], minlength=15)  # 3 x 5 places
    assert chisquare(counts).pvalue > 1e-3
    assert any(
        overlap(*two, 3)
        for _ in range(20)
        for two in itertools.combinations(uniform(rng, 0.5, 3, (9, 9)), 2)
    )


@given(image=images, area=st.floats(0.05, 0.9), transposed=st.booleans())
@examples
def test_the_two_squares_of_a_pair_lie_apart(image, area, transposed):
    side, size, seed = image
    size = size[::-1] if transposed else size
    pairs = uniform_pairs(random(seed), area, side, size)
    assert pairs.shape == (len(pairs), 2, 2)
    assert inside(pairs, side, size)
    assert not any(overlap(*pair, side) for pair in pairs)
    assert cover(pairs, side, size).mean() >= area
    assert cover(pairs[:-1], side, size).mean() < area
    assert np.array_equal(pairs, uniform_pairs(random(seed), area, side, size))


def test_where_the_second_square_of_a_pair_lies():
    """All probabilities of pairs of 2 x 2 squares in 3 x 5: rows are free, columns as far as they must be."""
    rows, columns = range(2), range(4)
    expected = {}
    for first in itertools.product(rows, columns):
        for row in rows:  # with two rows of places squares always meet in their rows
            apart = [c for c in columns if abs(c - first[1]) >= 2]
            expected.update({(first, (row, c)): 1 / 8 / 2 / len(apart) for c in apart})
    rng = random(3)
    draws = 20_000
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        ((first, second),) = uniform_pairs(rng, 0.5, 2, (3, 5)).tolist()
        counts[tuple(first), tuple(second)] += 1
    probable = [draws * p for p in expected.values()]
    assert sum(expected.values()) == pytest.approx(1)
    assert chisquare(list(counts.values()), probable).pvalue > 1e-3


def test_no_place_for_two():
    with pytest.raises(ValueError, match=r"`mask_patch` \(=5\) must leave place for two squares"):
        uniform_pairs(random(), 0.25, 5, (9, 9))


# -- turning, covering, exchanging -----------------------------------------------------------------


@given(image=images, quarters=st.integers(-1, 8))
@examples
def test_turned_squares_are_numpys_turned_image(image, quarters):
    side, size, seed = image
    corners = uniform(random(seed), 0.3, side, size)
    moved = turned(corners, side, size, quarters)
    turned_size = size if quarters % 2 == 0 else size[::-1]
    assert inside(moved, side, turned_size)
    expected = np.rot90(cover(corners, side, size), quarters)
    assert np.array_equal(cover(moved, side, turned_size), expected)
    one = np.rot90(cover(corners[:1], side, size), quarters)  # squares keep their order
    assert np.array_equal(cover(moved[:1], side, turned_size), one)


def test_pairs_are_turned_together():
    pairs = uniform_pairs(random(), 0.4, 3, (20, 14))
    moved = turned(pairs, 3, (20, 14), 1)
    assert moved.shape == pairs.shape
    flat = turned(pairs.reshape(-1, 2), 3, (20, 14), 1)
    assert np.array_equal(moved.reshape(-1, 2), flat)


def test_cover_against_a_naive_loop():
    corners = np.array([[0, 0], [1, 2], [4, 3]])
    covered = cover(corners, 2, (6, 5))
    for row, column in np.ndindex(6, 5):
        expected = any(r <= row < r + 2 and c <= column < c + 2 for r, c in corners)
        assert covered[row, column] == expected
    assert not cover(corners[:0], 2, (6, 5)).any()


@given(image=images, area=st.floats(0.05, 0.9))
@examples
def test_exchanged_squares_against_a_naive_loop(image, area):
    side, size, seed = image
    pairs = uniform_pairs(random(seed), area, side, size)  # pairs overlap each other: order counts
    source = exchange(pairs, side, size)
    assert source.dtype == np.int32
    picture = random(seed + 1).normal(size=size)
    found = picture.reshape(-1)[source]

    expected = picture.copy()
    for (top, left), (bottom, right) in pairs:
        for y, x in np.ndindex(side, side):
            one, other = (top + y, left + x), (bottom + y, right + x)
            expected[one], expected[other] = expected[other], expected[one]
    assert np.array_equal(found, expected)
    assert np.array_equal(np.sort(source, axis=None), np.arange(size[0] * size[1]))
    outside = ~cover(pairs, side, size)
    assert np.array_equal(found[outside], picture[outside])


def test_exchanging_twice_gives_the_image_back():
    pairs = poisson_disc(random(), 16, 8, (64, 48)).reshape(-1, 2, 2)[:6]
    source = exchange(pairs, 8, (64, 48)).reshape(-1)
    assert not np.array_equal(source, np.arange(64 * 48))
    assert np.array_equal(source[source], np.arange(64 * 48))
    moved = source != np.arange(64 * 48)
    assert np.array_equal(moved.reshape(64, 48), cover(pairs, 8, (64, 48)))


@pytest.mark.parametrize("shape", [(3, 2), (4, 2), (2, 3, 2)])
def test_corners_that_are_no_pairs_are_refused(shape):
    with pytest.raises(ValueError, match=r"`pairs` \(of shape .*\) must be of shape \(pairs, 2, 2"):
        exchange(np.zeros(shape, dtype=np.int64), 2, (8, 8))
