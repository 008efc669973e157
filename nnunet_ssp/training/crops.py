"""Crops about the labelled structures, `crops=mask`: as de Mooij et al.'s code places them, with the labels it reads.

Their centre is that of the smallest circle around all foreground pixels of a subject, over its slices and labelled
frames, seen along the stack (https://arxiv.org/abs/2409.18100, qcardia-data). One centre serves every frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from nnunet_ssp.console import count_of
from nnunet_ssp.slices.store import is_preprocessed


def label_use(settings: Any) -> str:
    """Say in words what labels a pretraining reads."""
    if getattr(settings, "crops", "free") == "free":
        return "No label is used in training."
    return "Labels say where crops lie (crops=mask); training uses them for nothing else."


def place_crops(trainer: Any) -> None:
    """Read the masks of the training side and give its batches their centres, where the settings ask for it.

    Args:
        trainer: A `PretrainingTrainer` with its batches.

    Raises:
        ValueError: No case of the training side has a mask.
    """
    if getattr(trainer.settings, "crops", "free") == "free":
        return
    pattern = trainer.settings.subject_pattern
    subjects = {name: trainer.subject_of(name, pattern) for name in trainer.store.names}
    folder = Path(trainer.preprocessed_dataset_folder)
    centres = mask_centres(folder, subjects)
    if not centres:
        raise ValueError(
            f"`crops` (=mask) must find masks in {folder}, but no case of this training side has one: use crops=free."
        )
    nothing = (np.nan, np.nan)
    trainer.batches.centres = np.array(
        [centres.get(subjects[n], nothing) for n in trainer.store.names]
    )
    trainer.warn(
        f"crops=mask reads the labels of {len(centres)} of {count_of(len(set(subjects.values())), 'subject')} in "
        "training to place their crops: this pretraining is not without labels, and a fine-tuning on fewer labels is "
        "not either"
    )


def mask_centres(folder: Path, subjects: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Return the centre of each subject's labelled structures, as shares of rows and columns from the first edge.

    Args:
        folder: nnU-Net's folder of preprocessed cases, which holds the labelled ones.
        subjects: Subject of each case.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    labelled = [name for name in subjects if is_preprocessed(folder, name)]
    if not labelled:
        return {}
    dataset = infer_dataset_class(str(folder))(str(folder), labelled)
    places: dict[str, list[NDArray[np.float64]]] = {}
    for name in labelled:
        try:
            mask = np.asarray(dataset.load_case(name)[1][:])[0]
        except Exception as error:  # blosc2, numpy and pickle raise many kinds
            raise ValueError(f"{folder / name}: cannot be read ({error}).") from error
        seen = (mask > 0).any(0)
        if seen.any():
            # Frames of one subject may have been cropped differently.
            places.setdefault(subjects[name], []).append(
                (np.argwhere(seen) + 0.5) / np.array(seen.shape)
            )
    return {subject: circle_centre(np.concatenate(found)) for subject, found in places.items()}


def circle_centre(points: NDArray[np.float64]) -> tuple[float, float]:
    """Return the centre of the smallest circle around points.

    Two or three points of the convex hull determine it.

    Args:
        points: (N, 2), at least one.

    >>> circle_centre(np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 0.5]]))
    (1.0, 0.0)
    """
    try:
        hull = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):  # on a line, or too few
        hull = points[[points[:, axis].argsort()[side] for axis in (0, 1) for side in (0, -1)]]
    hull = np.unique(hull, axis=0)
    if len(hull) == 1:
        return float(hull[0, 0]), float(hull[0, 1])
    pairs = np.array(list(combinations(range(len(hull)), 2)))
    candidates = [hull[pairs].mean(1)]
    triples = np.array(list(combinations(range(len(hull)), 3)), dtype=int).reshape(-1, 3)
    a, b, c = (hull[triples[:, i]] for i in range(3))
    # The circumcentre is as far from all three: two linear equations.
    sides = np.stack([b - a, c - a], 1)
    right = 0.5 * (sides**2).sum(-1)
    solvable = np.abs(np.linalg.det(sides)) > 1e-12
    candidates.append(
        a[solvable] + np.linalg.solve(sides[solvable], right[solvable][..., None])[..., 0]
    )
    centres = np.concatenate(candidates)
    distance = np.linalg.norm(centres[:, None] - hull[None], axis=-1)
    best = centres[distance.max(1).argmin()]
    return float(best[0]), float(best[1])
