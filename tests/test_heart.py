from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_ssp.heart import OUTFLOW, Anatomy, Heart, Shape, draw_shape, radii
from nnunet_ssp.phantom import LV, MYO, RV, make_subject

HEART = Heart(25, 8, 0.6, 28, 0.5, 90, 10, 0.35, 0.0, 0.9, 0.2)
ROUND = Shape(np.zeros(2), np.zeros(2), ((2, 0j),), 0.0, 0.0)
CONTRACTION = np.array([0.0, 1.0])


def anatomy(shape: Shape = ROUND) -> Anatomy:
    return Anatomy(HEART, shape, CONTRACTION)


def test_a_round_heart_has_the_areas_of_circles() -> None:
    z = np.array([-5.0, 30.0, 60.0, 89.5, 95.0])
    lv, myo, _ = anatomy().areas(z)
    inner, outer, u = (part[..., 0, 0] for part in radii(HEART, CONTRACTION, z))
    inner, outer = np.maximum(inner, 0) * (u >= 0), np.maximum(outer, 0) * (u >= 0)
    assert (u > OUTFLOW)[:, 1:].all()
    np.testing.assert_allclose(lv, math.pi * inner**2, rtol=1e-5)
    np.testing.assert_allclose(myo, math.pi * (outer**2 - inner**2), rtol=1e-5, atol=1e-3)
    assert (lv[:, 0] == 0).all()  # above the valve plane
    assert (myo[:, 4] == 0).all()  # below the apex


def test_waves_add_what_their_amplitudes_say() -> None:
    z = np.array([30.0])
    wavy = anatomy(ROUND._replace(waves=((2, 0.06 + 0.08j), (5, 0.02 + 0j))))
    added = wavy.areas(z)[0] / anatomy().areas(z)[0]
    np.testing.assert_allclose(added, 1 + (0.1**2 + 0.02**2) / 2, rtol=1e-5)
    # A thin septum gives its wall to the other side.
    thin = anatomy(ROUND._replace(septum=0.2))
    np.testing.assert_allclose(thin.areas(z)[1], anatomy().areas(z)[1], rtol=1e-5)


def test_the_aorta_takes_wall_near_the_valve_plane_only() -> None:
    inner, outer, u = (part[..., 0, 0] for part in radii(HEART, np.zeros(1), np.array([3.0, 30.0])))
    ring = math.pi * (outer**2 - inner**2)
    areas = Anatomy(HEART, ROUND, np.zeros(1)).areas(np.array([3.0, 30.0]))[1]
    assert u[0, 0] < OUTFLOW < u[0, 1]
    assert 0.5 * ring[0, 0] < areas[0, 0] < 0.9 * ring[0, 0]
    np.testing.assert_allclose(areas[0, 1], ring[0, 1], rtol=1e-5)


def test_thin_slices_add_up_to_the_body() -> None:
    drawn = anatomy(draw_shape(np.random.default_rng(0)))
    body = drawn.body()
    slices = drawn.volumes(np.arange(-30.5, 110, 1.0), 1.0)
    np.testing.assert_allclose(slices, body, rtol=0.005)
    assert body[0, 1] < 0.6 * body[0, 0]
    # The wall keeps its volume, but for the aorta's opening.
    np.testing.assert_allclose(body[1, 1], body[1, 0], rtol=0.05)


@pytest.mark.parametrize("index", range(4))
def test_drawn_masks_have_the_volumes_of_the_formulas(index: int) -> None:
    """The finer the pixels, the closer; 1 % at 1.1 to 1.3 mm."""
    subject = make_subject(index, seed=1, matrix=192, frames=6)
    voxel = abs(np.linalg.det(subject.affine[:3, :3])) / 1000
    drawn = [(subject.labels == value).sum(axis=(0, 1, 2)) * voxel for value in (LV, MYO, RV)]
    np.testing.assert_allclose(drawn, subject.volumes, rtol=0.01)
    # Slices 8 to 10 mm apart differ from the body that they cut.
    away = np.abs(subject.volumes / subject.anatomy.body() - 1)
    assert 0.01 < away.max() < 0.3
    labelled = [subject.ed, subject.es]
    np.testing.assert_array_equal(subject.labels[..., labelled], subject.mask[..., labelled])
