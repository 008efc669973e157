from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from nnunet_ssp.evaluation.distances import surface, surface_distances
from tests.evaluation.conftest import heart

masks = arrays(bool, (3, 4, 5))
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 1.25, 8.0])] * 3)


def points(mask: np.ndarray, spacing) -> list[np.ndarray]:
    """Centres in mm of the voxels with one of the six faces to the outside."""
    inside = {tuple(p) for p in np.argwhere(mask)}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    return [
        np.array(p) * spacing
        for p in inside
        if any(tuple(a + b for a, b in zip(p, step, strict=True)) not in inside for step in steps)
    ]


@given(masks, masks, spacings)
def test_agrees_with_measuring_every_pair_of_surface_voxels(prediction, reference, spacing):
    assume(prediction.any() and reference.any())
    ours, theirs = points(prediction, spacing), points(reference, spacing)
    there = [min(np.linalg.norm(p - r) for r in theirs) for p in ours]
    back = [min(np.linalg.norm(p - r) for p in ours) for r in theirs]
    distances = surface_distances(prediction, reference, spacing)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert distances.hd95 == pytest.approx(expected)
    assert distances.assd == pytest.approx(np.mean(there + back))


@given(masks)
def test_the_surface_is_what_erosion_takes_away(mask):
    np.testing.assert_array_equal(surface(mask), mask & ~ndimage.binary_erosion(mask))


@given(masks, masks, spacings)
def test_is_symmetric_zero_on_itself_and_blind_to_the_space_around(prediction, reference, spacing):
    distances = surface_distances(prediction, reference, spacing)
    swapped = surface_distances(reference, prediction, spacing)
    np.testing.assert_allclose(distances, swapped)
    padded = surface_distances(np.pad(prediction, 3), np.pad(reference, 3), spacing)
    np.testing.assert_allclose(distances, padded)
    if prediction.any():
        assert surface_distances(prediction, prediction, spacing) == (0, 0)


def test_planes_are_as_far_apart_as_they_were_moved():
    plane = np.zeros((9, 5, 5), bool)
    plane[2] = True
    assert surface_distances(plane, np.roll(plane, 3, 0), (8, 1, 1)) == (24, 24)


def test_a_mask_that_is_empty_has_no_distance():
    full, empty = np.ones((2, 3, 3), bool), np.zeros((2, 3, 3), bool)
    for pair in ((full, empty), (empty, full), (empty, empty)):
        assert all(math.isnan(value) for value in surface_distances(*pair, (1, 1, 1)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (8.0, 1.25, 1.5)])
def test_agrees_with_monai(spacing):
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    maps = heart(10, 20, 24), heart(8.5, 22, 21)
    maps[0][:, 0:3, 0:3] = 3  # far from the rest, and at the border of the image
    one_hot = [
        torch.from_numpy(np.stack([m == label for label in range(4)])[None]).float() for m in maps
    ]
    hd95 = metrics.compute_hausdorff_distance(*one_hot, percentile=95, spacing=list(spacing))
    assd = metrics.compute_average_surface_distance(*one_hot, symmetric=True, spacing=list(spacing))
    for label in (1, 2, 3):
        distances = surface_distances(maps[0] == label, maps[1] == label, spacing)
        assert distances.hd95 == pytest.approx(float(hd95[0, label - 1]), rel=1e-5)
        assert distances.assd == pytest.approx(float(assd[0, label - 1]), rel=1e-5)
