"""The check that nnU-Net's planned 2D network sees the acquired slices, and not planes across them.

nnU-Net assumes that the axis of the largest median spacing is that of the slices. If slices are thinner than their
pixels are wide, it plans for planes across the stack. 2D images joined with a spacing of 1 mm are an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunet_ssp.files.contents import read_json
from nnunet_ssp.preparation.fingerprints import FILE
from nnunet_ssp.preparation.raw_checks import is_natural

SMALLEST_PATCH = 32  # pixels; below it little is left for the deeper stages of a U-Net
ISOTROPIC = 1.1  # largest by smallest spacing
SHORT = 4  # an axis with this many times fewer voxels than the others is that of the slices
AXES = ("slice", "row", "column")  # nnU-Net's order, the reverse of NIfTI's
WAY_OUT = (
    "Correct the spacing in the headers of the images, or accept these plans with --any-plane."
)


def check_plane(
    plans: PlansManager, configuration: str, target: Path, ours: bool, any_plane: bool
) -> list[str]:
    """Compare a planned 2D plane with the acquired one.

    Datasets of our converters have their slices on the last NIfTI axis. Other datasets do not record the acquired
    plane, so only planes one pixel thick are refused. 2D images, such as PNG, are not checked.

    Args:
        plans: Plans of the dataset.
        configuration: Name of the configuration; a 3D one has no plane.
        target: The dataset's folder in nnUNet_preprocessed, which holds the fingerprint.
        ours: The dataset has a `cases.csv`.
        any_plane: Warn instead of refusing.

    Returns:
        Warnings.

    Raises:
        ValueError: The plane is one pixel thick; or, in a dataset of ours, it lies across the slices or the patch is
            below 32 x 32.
    """
    patch = tuple(int(side) for side in plans.get_configuration(configuration).patch_size)
    fingerprint = read_json(target / FILE, dict)
    spacings, shapes = (
        np.array(fingerprint[name], float) for name in ("spacings", "shapes_after_crop")
    )
    if len(patch) != 2 or np.mean([is_natural(spacing) for spacing in spacings]) > 0.5:
        return []
    forward = [int(axis) for axis in plans.transpose_forward]
    plane = np.median(shapes, axis=0)[forward[1:]]
    numbers = (
        f"{plans.plans_name} {configuration}: patch {_by(patch)}, planes of {_by(plane)} pixels, along the axis of the "
        f"{AXES[forward[0]]}s; the files have a median of {_by(np.median(shapes, axis=0))} voxels of "
        f"{_by(np.median(spacings, axis=0))} mm (slices, rows, columns)"
    )
    problems = []
    if plane.min() < 2:
        problems.append((True, "the 2D network would see lines one pixel thick, across the slices"))
    elif _acquired_axis(spacings, shapes, ours) not in (None, forward[0]):
        problems.append((ours, "the 2D network would see planes across the acquired slices"))
    if min(patch) < SMALLEST_PATCH:
        wanted = f"{SMALLEST_PATCH} x {SMALLEST_PATCH}"
        problems.append(
            (
                ours,
                f"the patch must be at least {wanted} pixels (a larger -gpu_memory_target may give that)",
            )
        )
    refused = [text for refuse, text in problems if refuse and not any_plane]
    if refused:
        raise ValueError(f"{numbers}: {'; '.join(refused)}. {WAY_OUT}")
    return [f"{numbers}: {text}." for _, text in problems]


def _acquired_axis(
    spacings: NDArray[np.float64], shapes: NDArray[np.float64], ours: bool
) -> int | None:
    """Return the axis of the slices in most cases, in nnU-Net's order; None where there is none or it is unknown."""
    if np.mean(spacings.max(axis=1) <= ISOTROPIC * spacings.min(axis=1)) > 0.5:
        return None
    if ours:
        return 0
    ordered = np.sort(shapes, axis=1)
    clear = SHORT * ordered[:, 0] <= ordered[:, 1]
    votes = np.bincount(shapes.argmin(axis=1)[clear], minlength=3)
    return int(votes.argmax()) if votes.max() > len(shapes) / 2 else None


def _by(values: Sequence[Any] | NDArray[Any]) -> str:
    return " x ".join(f"{float(value):.4g}" for value in values)
