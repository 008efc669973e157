"""Removing folds: the last ones alone, so that no other changes its number."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.cohort.splits import FOLD_SOURCE
from nnunet_ssp.console import some


def without(folds: Sequence[Fold], numbers: Collection[int], results: Path) -> list[Fold]:
    """Return the folds without the last ones.

    Args:
        folds: All folds.
        numbers: Those to remove.
        results: The dataset's folder in nnUNet_results.

    Raises:
        FileExistsError: Results were trained on one of them.
        ValueError: They are not the last folds, whose removal changes no other's number, or are the cross-validation.
    """
    if not numbers:
        return list(folds)
    asked = f"`--remove` (={_listed(numbers)})"
    last = len(folds) - 1
    if unknown := [n for n in numbers if not 0 <= n <= last]:
        raise ValueError(
            f"{asked} must be the last of the folds, up to {last}: there is no {_listed(unknown)}."
        )
    kept = len(folds) - len(set(numbers))
    if set(numbers) != set(range(kept, len(folds))):
        above = [n for n in range(min(numbers), len(folds)) if n not in numbers]
        raise ValueError(
            f"{asked} must be the last of the folds, up to {last}: no other fold may change its number, as "
            f"{_listed(above)} would."
        )
    crossed = [n for n in range(kept, len(folds)) if folds[n].source == FOLD_SOURCE]
    if crossed:
        raise ValueError(
            f"{asked} must leave the folds of the cross-validation, which {_listed(crossed)} belong to."
        )
    trained = [n for n in range(kept, len(folds)) if any(results.glob(f"*/fold_{n}"))]
    if trained:
        raise FileExistsError(
            f"{asked}: in {results} results were trained on fold {_listed(trained)}, which therefore stays."
        )
    return list(folds[:kept])


def _listed(numbers: Collection[int]) -> str:
    return some([str(n) for n in numbers])
