"""The heart of the phantom: its walls as formulas, and the volumes that these enclose.

Axes in this file: T frames, S slices, N angles, X and Y pixels. Distances are mm.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

OUTFLOW = 0.08  # part of the LV's length, from the valve plane, where the aorta opens the wall
ANGLES = 360  # of rays that measure an area; the walls are smooth, so that few would do
STEP = 0.25  # mm, between the sections that measure a body
BODY = (-40.0, 120.0)  # mm below the end-diastolic valve plane, in which every heart lies


class Heart(NamedTuple):
    """One heart in numbers: mm, radians and fractions."""

    # LV cavity at the base, end-diastole.
    radius: float
    # At the base, end-diastole.
    wall: float
    # LV.
    ejection: float
    # From septum to free wall at the base, end-diastole.
    rv_depth: float
    rv_ejection: float
    # Valve plane to epicardial apex, end-diastole.
    length: float
    # Of the valve plane towards the apex at end-systole.
    descent: float
    # Part of the cycle.
    systole: float
    # Part of the length where the RV's label starts; below 0: above the LV.
    rv_start: float
    rv_end: float
    # Of the septum against the body.
    turn: float


class Shape(NamedTuple):
    """Irregularities of one heart."""

    # (2,): mm per mm, the LV's axis is not quite the slices' normal.
    lean: Array
    # (2,): mm, the LV moves while it contracts.
    drift: Array
    # Harmonics of the LV's radius, of a few percent.
    waves: tuple[tuple[int, complex], ...]
    # How much thinner it is than the lateral wall.
    septum: float
    # The RV leans to the front or to the back.
    skew: float


class Ellipse(NamedTuple):
    """An ellipse in the heart's axes; each number is an array of shape (T, S, 1, 1)."""

    centre: tuple[Any, Any]
    half_axes: tuple[Any, Any]


class Borders(NamedTuple):
    """The walls in some directions from the LV's axis."""

    # (T, S, ...), negative beyond the apex of the cavity.
    lv_radius: Array
    # (T, S, ...), negative beyond the apex.
    epi_radius: Array
    # In `skewed` coordinates.
    rv: Ellipse
    # The aortic root, 22 mm wide.
    outflow: Ellipse


def draw_shape(rng: np.random.Generator) -> Shape:
    """Draw the irregularities of a heart."""
    lean, drift = rng.normal(0, 0.08, 2), rng.uniform(-1, 3, 2)
    waves = tuple((k, complex(*rng.normal(0, 0.07 / k, 2))) for k in (2, 3, 5))
    return Shape(lean, drift, waves, rng.normal(0.05, 0.12), rng.normal(0.1, 0.1))


def radii(heart: Heart, contraction: Array, z: Array) -> tuple[Array, Array, Array]:
    """Compute mean radii of the LV (mm) and the place along it, each of shape (T, S, 1, 1).

    The wall's volume stays: at a given part of the length its area grows as the length shrinks.

    Returns:
        Endocardial and epicardial radius, negative beyond the apex, and the part of the length
        (0 valve plane, 1 apex).
    """
    contraction = contraction[:, None, None, None]
    down = heart.descent * contraction
    shortening = 1 - down / heart.length
    u = (z[:, None, None] - down) / (heart.length - down)
    # 0 in the atrium, which has a thin wall and does not eject with the ventricle.
    ventricle = np.clip(1 + u / 0.1, 0, 1)

    def dome(part: Array) -> Array:  # squared radius over the basal one; fuller than an ellipsoid's
        return 1 - np.maximum(part, 0) ** 2.4

    relaxed = heart.radius**2 * dome(u / 0.92)  # the cavity ends before the wall does
    wall = (heart.radius + heart.wall) ** 2 * dome(u) - np.maximum(relaxed, 0)
    inner = relaxed * (1 - heart.ejection * contraction * ventricle) / shortening
    outer = np.maximum(inner, 0) + wall * np.maximum(ventricle, 0.2) / shortening
    root_inner, root_outer = (np.sign(r) * np.sqrt(abs(r)) for r in (inner, outer))
    return root_inner.astype(np.float32), root_outer.astype(np.float32), u.astype(np.float32)


def borders(
    heart: Heart, shape: Shape, contraction: Array, lv: tuple[Array, Array, Array], angle: Array
) -> Borders:
    """Compute the walls of a heart.

    Args:
        heart: The heart.
        shape: Its irregularities.
        contraction: (T,), from 0 (relaxed) to 1 (end-systole).
        lv: From `radii`.
        angle: Unit complex numbers, directions from the septum (-1) to the lateral wall (1).
    """
    inner, outer, u = lv
    beat = contraction[:, None, None, None].astype(np.float32)
    lv_radius = inner * (1 + sum((c * angle**k).real for k, c in shape.waves))
    uneven = 1 - shape.septum * angle.real  # 1 on average: the volume stays
    thick = (outer**2 - np.maximum(inner, 0) ** 2) * uneven
    epi_radius = np.where(outer > 0, np.sqrt(np.maximum(lv_radius, 0) ** 2 + thick.clip(0)), outer)

    # RV: an ellipse behind the septum, less deep when contracted and towards the apex.
    size = np.maximum(outer, 0)
    taper = np.sqrt(np.clip(1 - (np.maximum(u, 0) / heart.rv_end) ** 2, 0, 1))
    ejected = heart.rv_ejection * beat * np.clip(1 + u / 0.1, 0, 1)
    half = (0.8 * size + heart.rv_depth * taper * (1 - ejected)) / 2 + 1e-3
    across = size * (0.6 + 0.5 * taper) + 1e-3
    rv = Ellipse((-0.2 * size - half, 0), (half, across))
    outflow = Ellipse((-0.75 * size, -0.35 * size), (11, 11))
    return Borders(lv_radius, epi_radius, rv, outflow)


class Anatomy(NamedTuple):
    """A beating heart as formulas, to measure what is drawn of it."""

    heart: Heart
    shape: Shape
    # (T,): 0 relaxed, 1 end-systole.
    contraction: Array

    def areas(self, z: Array) -> Array:
        """Compute the areas (3, T, S) in mm² of LV, myocardium and RV in sections.

        Along each ray from the LV's axis the walls are exact, and their squares are averaged over rays.

        Args:
            z: (S,), mm from the end-diastolic valve plane towards the apex.
        """
        lv = radii(self.heart, self.contraction, z)
        ray = np.exp(2j * np.pi * (np.arange(ANGLES)[:, None] + 0.5) / ANGLES)
        walls = borders(self.heart, self.shape, self.contraction, lv, ray)
        endo, epi = np.maximum(walls.lv_radius, 0), np.maximum(walls.epi_radius, 0)
        u = lv[2]
        root = np.clip(_crossings(walls.outflow, ray.real, ray.imag), endo, epi) * (u < OUTFLOW)
        skewed = ray.imag + self.shape.skew * ray.real
        right = np.maximum(_crossings(walls.rv, ray.real, skewed), epi)
        squares = (
            endo**2 * (u >= 0),
            (epi**2 - endo**2 - (root[1] ** 2 - root[0] ** 2)) * (u >= 0),
            (right[1] ** 2 - right[0] ** 2) * (u > self.heart.rv_start),
        )
        return math.pi * np.stack([square.mean(axis=(2, 3)) for square in squares])

    def volumes(self, z: Array, gap: float) -> Array:
        """Compute the volumes (3, T) in ml of slices of a thickness of `gap` mm at the depths `z`."""
        return self.areas(z).sum(axis=2) * gap / 1000

    def body(self) -> Array:
        """Compute the volumes (3, T) in ml of the heart itself, whatever slices cut it."""
        return self.volumes(np.arange(*BODY, STEP) + STEP / 2, STEP)


def _crossings(ellipse: Ellipse, along: Array, across: Array) -> Array:
    """Return where rays from the origin enter and leave an ellipse (2, ...), in mm from 0; both 0 if they miss it."""
    (x, y), (a, b) = ellipse
    square = (along / a) ** 2 + (across / b) ** 2
    middle = (along * x / a**2 + across * y / b**2) / square
    half = middle**2 - ((x / a) ** 2 + (y / b) ** 2 - 1) / square
    reach = np.sqrt(np.maximum(half, 0))
    hit = half > 0
    return np.stack([np.maximum(middle - reach, 0) * hit, np.maximum(middle + reach, 0) * hit])
