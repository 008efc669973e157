"""A warning when the deep half of a network hardly learns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

# A stage stands still when it has turned by less than this share of the stage that turned most.
STANDING_STILL = 0.1
# Stages are compared once the most changed one has turned by this much.
LEARNING = 0.02


def deep_stages(stages: Iterable[str]) -> list[str]:
    """Return the stages of the deeper half of a network: `encoder 1` ... `decoder 1` by their numbers.

    >>> deep_stages(["encoder 1", "encoder 2", "encoder 3", "decoder 2", "decoder 1"])
    ['encoder 3']
    """
    levels = {stage: int(stage.split()[1]) for stage in stages if stage.split()[-1].isdigit()}
    deepest = max(levels.values(), default=0)
    return [stage for stage, level in levels.items() if level > (deepest + 1) / 2]


def depth_warning(change: Mapping[str, float], advice: str) -> str | None:
    """Say in words when the deep half of the network stands still while another part learns.

    Args:
        change: How far each stage has turned since initialisation, in [0, 1], by name: `encoder 1` ... `decoder 1`.
        advice: A sentence on what to do.

    >>> depth_warning({"encoder 1": 0.2, "encoder 2": 0.2, "encoder 3": 0.1}, "Wait.") is None
    True
    >>> depth_warning({"encoder 1": 0.2, "encoder 2": 0.0, "encoder 3": 0.0}, "Wait.")[:43]
    'WARNING: the deep stages hardly learn: enco'
    """
    deep = [change[part] for part in deep_stages(change)]
    largest = max(change.values(), default=0.0)
    if not deep or largest < LEARNING or float(np.median(deep)) >= STANDING_STILL * largest:
        return None
    most = max(change, key=lambda part: change[part])
    return (
        f"WARNING: the deep stages hardly learn: {most} has changed by {largest:.3f} since "
        f"initialisation, the deep half of the network by {float(np.median(deep)):.3f} (median). "
        f"The skip connections solve the task; fine-tuning gains little from such a network. {advice}"
    )
