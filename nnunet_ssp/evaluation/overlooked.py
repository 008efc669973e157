"""Structures that a model misses in all or nearly all frames, with what it says in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnunet_ssp.console import count_of
from nnunet_ssp.evaluation.files import Pair, read_pair
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.evaluation.scoring import joint_counts

if TYPE_CHECKING:
    import pandas as pd

NONE = 0.01  # Dice that is as good as none
NEARLY_ALL = 0.9  # of the frames whose reference has the structure
LOOKED_AT = 10  # frames of a model in which labels are compared
INSTEAD = 0.5  # share of the reference's voxels that another label must have


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
        found.append(
            f"WARNING: {model}: {labels.shown(str(name))} has a Dice of 0 in {len(missed)} of "
            f"{count_of(len(own), 'frame')} whose reference has it. {_cause(str(name), mine, labels)}"
        )
    return found


def shares(name: str, pairs: Sequence[Pair], labels: Labels) -> dict[int, float]:
    """Return which predicted values lie on the voxels of a class of the reference, as shares of these.

    Args:
        name: The class.
        pairs: Label maps to look at.
        labels: Their labels.
    """
    values = sorted(labels.values)
    inside = np.isin(values, labels.classes[name])
    counts = np.zeros(len(values))
    for pair in pairs:
        prediction, reference, _ = read_pair(pair)
        joint = joint_counts(prediction, reference, values).sum(0)
        counts += joint[:, inside].sum(1)
    total = max(counts.sum(), 1)
    return {value: float(count / total) for value, count in zip(values, counts, strict=True)}


def _cause(name: str, pairs: Sequence[Pair], labels: Labels) -> str:
    lying = shares(name, pairs, labels)
    others = {value: share for value, share in lying.items() if value not in labels.classes[name]}
    most = max(others, key=others.__getitem__, default=0)
    if most == 0 or others[most] < INSTEAD:
        background = f"; {lying.get(0, 0):.0%} of its voxels are predicted as background"
        return f"Most likely the model did not learn it{background}. Else its labels are numbered otherwise."
    names = [labels.shown(other) for other, own in labels.classes.items() if most in own]
    called = f"label {most}{f' ({names[0]})' if names else ''}"
    value = ", ".join(map(str, labels.classes[name]))
    return (
        f"{others[most]:.0%} of its voxels are predicted as {called}: most likely the labels of predictions and "
        f"references are swapped or numbered otherwise (here it is label {value}). Else the model did not learn it."
    )
