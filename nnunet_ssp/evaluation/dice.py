"""Dice of masks, over all axes or slice by slice."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

EmptyRule = Literal["one", "nan"]


def dice(
    prediction: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_],
    axis: tuple[int, ...] | None = None,
    empty: EmptyRule = "one",
) -> Any:
    """Compute the Dice, 2|A∩B| / (|A| + |B|), of two masks.

    A mask that is empty in only one of the two scores 0 under both rules.

    Args:
        prediction: Mask of any shape, True inside.
        reference: Mask of the same shape.
        axis: Axes to count over; the others remain. None counts over all.
        empty: Score where both masks are empty: "one" gives 1, as in the papers (de Mooij et al., Dominic et al.);
            "nan" gives NaN, as in nnU-Net's evaluator, whose means leave the case out.

    Returns:
        Dice in [0, 1] or NaN, of the shape of the remaining axes; a number for None.

    Raises:
        ValueError: The shapes differ, or `empty` is neither "one" nor "nan".
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"`prediction` (shape={prediction.shape}) must have the shape of `reference` "
            f"(shape={reference.shape})."
        )
    both = np.count_nonzero(prediction & reference, axis)
    size = np.count_nonzero(prediction, axis) + np.count_nonzero(reference, axis)
    return dice_of_counts(both, size, empty)


def dice_of_counts(both: Any, size: Any, empty: EmptyRule = "one") -> Any:
    """Compute the Dice from numbers of voxels.

    Args:
        both: Voxels in both masks, of any shape.
        size: Voxels in the one plus voxels in the other, of the same shape.
        empty: See `dice`.

    Raises:
        ValueError: `empty` is neither "one" nor "nan".
    """
    if empty not in ("one", "nan"):
        raise ValueError(f"`empty` (={empty!r}) must be 'one' or 'nan'.")
    scores = np.where(size > 0, 2 * both / np.maximum(size, 1), 1.0 if empty == "one" else np.nan)
    return scores[()]  # a number where no axis remains
