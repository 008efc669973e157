"""The scores of one prediction and its reference, and of many in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nnunet_ssp.evaluation.dice import EmptyRule, dice_of_counts
from nnunet_ssp.evaluation.distances import surface_distances
from nnunet_ssp.evaluation.files import Pair, read_pair
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.files.nifti import integer_labels
from nnunet_ssp.parallel import process

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

DICE_RULES: dict[str, EmptyRule] = {"dice": "one", "dice_nan": "nan"}
SLICE_COLUMNS = ("model", "seed", "case", "class", "slice", "position", *DICE_RULES)


class Scores(NamedTuple):
    """Scores as two tidy tables.

    Both have `model, seed, case, class, dice, dice_nan`, in 3D or by slice. The two Dice follow the papers' and
    nnU-Net's rule for classes that are in neither label map.

    `frames` has one row per pair and class. It adds `hd95_mm, assd_mm`, `missed` (1 where the class is in only one of
    the two and has no distance), and the volumes `reference_ml, predicted_ml`.

    `slices` has one row per pair, class and slice, from the first to the last slice with any reference label. It adds
    `slice`, the index in the file, and `position`, from 0 at the first of these slices to 1 at the last (de Mooij et
    al., code: `summary_2d`).
    """

    frames: pd.DataFrame
    slices: pd.DataFrame


def score_pairs(pairs: Sequence[Pair], labels: Labels, workers: int = 1) -> Scores:
    """Score pairs of files in worker processes, with a progress bar.

    Args:
        pairs: Prediction and reference of each case, in the order of the tables.
        labels: Labels with the classes to score.
        workers: At most this many processes.

    Raises:
        ValueError: A file cannot be read, the files of a pair lie on different grids, or one holds a value that is no
            label.
    """
    import pandas as pd

    results = list(process(partial(score_pair, labels=labels), pairs, workers, "Scoring", "frame"))
    return Scores(
        pd.DataFrame([row for frames, _ in results for row in frames]),
        # Without any label there are no slices, but still their columns.
        pd.DataFrame([row for _, slices in results for row in slices], columns=SLICE_COLUMNS),
    )


def score_pair(pair: Pair, labels: Labels) -> tuple[list[Row], list[Row]]:
    """Score one pair, as rows for the two tables of `Scores`."""
    prediction, reference, spacing = read_pair(pair)
    prediction = integer_labels(prediction, pair.prediction, labels.values)
    reference = integer_labels(reference, pair.reference, labels.values)
    prediction, reference = _crop(prediction, reference)
    if labels.ignore is not None:
        ignored = reference == labels.ignore
        prediction[ignored] = reference[ignored] = 0

    voxel_ml = float(np.prod(spacing)) / 1000
    first, positions = relative_positions(reference)
    part = slice(first, first + len(positions))
    values = sorted(labels.values)
    counts = joint_counts(prediction, reference, values)
    frames, slices = [], []
    for name, own in labels.classes.items():
        inside = np.isin(values, own)
        n_predicted, n_true = counts[:, inside].sum((1, 2)), counts[:, :, inside].sum((1, 2))
        n_both = counts[:, inside][:, :, inside].sum((1, 2))
        n_sum = n_predicted + n_true
        key = {"model": pair.model, "seed": pair.seed, "case": pair.case, "class": name}
        distances = surface_distances(np.isin(prediction, own), np.isin(reference, own), spacing)
        frames.append(
            key
            | {
                column: dice_of_counts(n_both.sum(), n_sum.sum(), rule)
                for column, rule in DICE_RULES.items()
            }
            | {
                "hd95_mm": distances.hd95,
                "assd_mm": distances.assd,
                "missed": int(bool(n_predicted.any()) != bool(n_true.any())),
                "reference_ml": int(n_true.sum()) * voxel_ml,
                "predicted_ml": int(n_predicted.sum()) * voxel_ml,
            }
        )
        by_slice = {
            column: dice_of_counts(n_both[part], n_sum[part], rule)
            for column, rule in DICE_RULES.items()
        }
        slices += [
            key
            | {"slice": first + i, "position": position}
            | {column: scores[i] for column, scores in by_slice.items()}
            for i, position in enumerate(positions)
        ]
    return frames, slices


def _crop(*maps: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Crop rows and columns of label maps to those where any of them has a label."""
    there = np.logical_or.reduce([labels.any(axis=0) for labels in maps])
    rows, columns = (np.flatnonzero(there.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return [labels[:, :0, :0] for labels in maps]
    (top, bottom), (left, right) = rows[[0, -1]] + (0, 1), columns[[0, -1]] + (0, 1)
    return [labels[:, top:bottom, left:right] for labels in maps]


def joint_counts(
    prediction: npt.NDArray[Any], reference: npt.NDArray[Any], values: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Count the voxels of each slice with each pair of labels.

    Args:
        prediction: Label map of shape (slices, rows, columns).
        reference: Label map of the same shape.
        values: All values that occur, ascending.

    Returns:
        Counts of shape (slices, predicted value, reference value).
    """
    n, n_slices = len(values), len(prediction)
    slices = np.arange(n_slices)[:, None, None]
    pairs = np.searchsorted(values, prediction) * n + np.searchsorted(values, reference)
    counts = np.bincount((slices * n**2 + pairs).ravel(), minlength=n_slices * n**2)
    return counts.reshape(n_slices, n, n)


def relative_positions(reference: npt.NDArray[Any]) -> tuple[int, list[float]]:
    """Compute where the labelled part of a stack begins, and the position of each slice within it.

    Args:
        reference: Label map of shape (slices, rows, columns); 0 is the background.

    Returns:
        The index of the first labelled slice, and positions from 0 there to 1 at the last labelled slice. A single
        labelled slice has 0.5; without labels there are no positions.
    """
    labelled = np.flatnonzero(reference.any(axis=(1, 2)))
    if len(labelled) == 0:
        return 0, []
    first, last = int(labelled[0]), int(labelled[-1])
    if first == last:
        return first, [0.5]
    return first, [(z - first) / (last - first) for z in range(first, last + 1)]
