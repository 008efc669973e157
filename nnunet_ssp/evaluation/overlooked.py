"""Structures that a model misses in all or nearly all frames, with what it says in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nnunet_ssp.console import count_of
from nnunet_ssp.evaluation.files import Pair, read_pair
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.evaluation.scoring import joint_counts
from nnunet_ssp.reporting.wording import one_warning

if TYPE_CHECKING:
    import pandas as pd

NONE = 0.01  # Dice that is as good as none
NEARLY_ALL = 0.9  # of the frames whose reference has the structure
LOOKED_AT = 10  # frames of a model in which labels are compared
INSTEAD = 0.5  # share of the reference's voxels that another label must have to be named
SWAPPED = 0.5  # Dice above which another label's prediction fits the structure


def overlooked(frames: pd.DataFrame, pairs: Sequence[Pair], labels: Labels) -> list[str]:
    """Warn of each structure that a model has not found, with the likely cause.

    Args:
        frames: Scores of frames, as in `scoring.Scores`.
        pairs: The label maps that were scored.
        labels: Their labels.
    """
    held = frames[frames["reference_ml"] > 0]
    found = []
    for (model, name), own in held.groupby(["model", "class"], sort=False):
        missed = own[own["dice"] < NONE]
        if len(missed) < NEARLY_ALL * len(own):
            continue
        cases = {*zip(missed["case"], missed["seed"], strict=True)}
        mine = [p for p in pairs if p.model == model and (p.case, p.seed) in cases][:LOOKED_AT]
        none = "almost 0" if missed["dice"].max() > 0 else "0"
        found.append(
            f"{model}: {labels.shown(str(name))} has a Dice of {none} in {len(missed)} of "
            f"{count_of(len(own), 'frame')} whose reference has it. {_cause(str(name), mine, labels)}"
        )
    return one_warning("structures that were not found.", found)


def joint(pairs: Sequence[Pair], labels: Labels) -> npt.NDArray[np.int64]:
    """Count the voxels of label maps with each pair of values.

    Args:
        pairs: Label maps to look at.
        labels: Their labels; voxels to be ignored do not count.

    Returns:
        Counts of shape (predicted value, reference value), both as `sorted(labels.values)`.
    """
    values = sorted(labels.values)
    counts = np.zeros((len(values), len(values)), np.int64)
    for pair in pairs:
        prediction, reference, _ = read_pair(pair)
        counts += joint_counts(prediction, reference, values).sum(0)
    if labels.ignore is not None:
        counts[:, values.index(labels.ignore)] = 0
    return counts


def _cause(name: str, pairs: Sequence[Pair], labels: Labels) -> str:
    values = sorted(labels.values)
    counts = joint(pairs, labels)
    own = np.isin(values, labels.classes[name])
    on_it = counts[:, own].sum(1)  # predicted values on the voxels of the structure
    size, predicted = max(int(on_it.sum()), 1), counts.sum(1)
    others = [n for n, value in enumerate(values) if value and not own[n]]
    fits = {n: 2 * on_it[n] / (predicted[n] + size) for n in others}
    best = max(others, key=fits.__getitem__, default=0)
    # A blob over both structures fits its own one, too.
    as_named = 2 * counts[best, best] / max(predicted[best] + counts[:, best].sum(), 1)
    if best and fits[best] > SWAPPED and fits[best] > 2 * as_named:
        value = ", ".join(map(str, labels.classes[name]))
        return (
            f"{on_it[best] / size:.0%} of its voxels are predicted as {_called(values[best], labels)}, which fits it "
            f"with a Dice of {fits[best]:.2f}: most likely the labels of predictions and references are swapped or "
            f"numbered otherwise (here it is label {value}). Else the model did not learn it."
        )
    most = max(others, key=on_it.__getitem__, default=0)
    if most and on_it[most] >= INSTEAD * size:
        return (
            f"Most likely the model did not learn it: {on_it[most] / size:.0%} of its voxels lie in "
            f"{_called(values[most], labels)}, which is predicted {predicted[most] / size:.1f} times as large as the "
            "structure."
        )
    return (
        f"Most likely the model did not learn it; {on_it[0] / size:.0%} of its voxels are predicted as background. "
        "Else its labels are numbered otherwise."
    )


def _called(value: int, labels: Labels) -> str:
    names = [labels.shown(other) for other, own in labels.classes.items() if value in own]
    return f"label {value}{f' ({names[0]})' if names else ''}"
