"""nnU-Net's postprocessing, by its record in JSON: the pickle beside it could run code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ssp.files.contents import is_whole, read_json, shown
from nnunet_ssp.files.grids import Array

FUNCTION = "remove_all_but_largest_component_from_segmentation"


def read_postprocessing(file: Path) -> list[dict[str, Any]]:
    """Read the steps of `postprocessing.json`.

    Args:
        file: The file, or the `postprocessing.pkl` beside it.

    Returns:
        The arguments of nnU-Net's `remove_all_but_largest_component_from_segmentation`, step by step.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such record; names the rule.
    """
    file = file.with_suffix(".json")
    content = read_json(file, dict)
    names, steps = content.get("postprocessing_fns"), content.get("postprocessing_kwargs")
    if not isinstance(names, list) or not isinstance(steps, list) or len(names) != len(steps):
        raise ValueError(f"{file}: must list `postprocessing_fns` and `postprocessing_kwargs`.")
    for name in names:
        if name != FUNCTION:
            raise ValueError(f"{file}: `postprocessing_fns` (={shown(name)}) must be {FUNCTION}.")
    for step in steps:
        allowed = {"labels_or_regions", "background_label"}
        labels = step.get("labels_or_regions") if isinstance(step, dict) else None
        plain = isinstance(step, dict) and step.keys() <= allowed and _are_labels(labels)
        if not plain or not is_whole(step.get("background_label", 0)):
            raise ValueError(
                f"{file}: `postprocessing_kwargs` (={shown(step)}) must be labels, or regions of labels."
            )
    return steps


def _are_labels(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    inner = [part for item in values for part in (item if isinstance(item, list) else [item])]
    return bool(inner) and all(map(is_whole, inner))


def postprocess(labels: Array, steps: Sequence[dict[str, Any]]) -> Array:
    """Apply nnU-Net's own function to label values (X, Y, Z)."""
    from nnunetv2.postprocessing import remove_connected_components

    for step in steps:
        labels = getattr(remove_connected_components, FUNCTION)(labels, **step)
    return labels
