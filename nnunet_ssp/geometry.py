"""Where voxels lie: affines with orthogonal axes, and the base of a short-axis stack."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunet_ssp.nifti import Array


def clean_affine(affine: Array, file: Path) -> tuple[Array, float]:
    """Make the axes of an affine orthogonal; spacing, origin and handedness stay.

    SimpleITK refuses NIfTI files whose direction cosines are not orthonormal, and some M&Ms files
    have such. The nearest orthonormal axes are the polar factor of the direction matrix.

    Args:
        affine: (4, 4), in mm.
        file: For the message.

    Returns:
        The clean affine, and the largest angle in degrees by which an axis was turned.

    Raises:
        ValueError: The axes do not span space.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / np.maximum(spacing, 1e-6)  # mm; a shorter axis is none
    # Below 0.5 an axis is off by tens of degrees: no rounding does that, the header is broken.
    if not np.isfinite(affine).all() or abs(np.linalg.det(directions)) < 0.5:
        raise ValueError(f"{file}: the affine must have three axes at right angles, or nearly so.")
    u, _, vt = np.linalg.svd(directions)
    clean = np.eye(4)
    clean[:3, :3] = (u @ vt) * spacing
    clean[:3, 3] = affine[:3, 3]
    cosines = np.clip((directions * (u @ vt)).sum(axis=0), -1, 1)
    return clean, float(np.degrees(np.arccos(cosines)).max())


def straighten(affine: Array, file: Path) -> tuple[Array, list[str]]:
    """`clean_affine`, with what to say where an axis was turned by more than rounding."""
    clean, turned = clean_affine(affine, file)
    if turned <= 0.002:  # degrees; SimpleITK 2.5 refuses from 0.005 (and reads 0.0015)
        return clean, []
    return clean, [f"axes not orthogonal, turned by up to {turned:.2f} degrees"]


def compare_affines(mask: Array, image: Array) -> list[str]:
    """What to say about the affines of a mask and its image, whose voxels are paired by index."""
    if np.allclose(mask, image, atol=0.01):  # mm
        return []
    return ["affines of image and mask differ; their voxels are taken to match"]


# "The apex is directed downward, forward, and to the left" (Gray, Anatomy of the Human Body, 1918).
TOWARDS_APEX = np.array([-1.0, 1.0, -1.0]) / np.sqrt(3)  # RAS+


def base_of_stack(affine: Array) -> str:
    """Which end of a short-axis stack is the base of the heart.

    The direction of growing slice index is compared with the anatomical direction from base to
    apex. Within 45 degrees of it the base is the first slice, within 45 degrees of the opposite
    the last. In between it is unknown: so also for nominal affines, where slices run along one of
    the body's axes (54.7 degrees), which no short-axis stack does.

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
