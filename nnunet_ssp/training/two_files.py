"""`nnunet-ssp inspect A B`: which tensors two files share, and how far the others are from each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nnunet_ssp.files.contents import printable, shown
from nnunet_ssp.network import is_alias, is_output_layer, parts
from nnunet_ssp.training import transfer

OUTPUT = "output layers"
NOT_STORED = "not stored"


def inspect_two(first: Path, second: Path, trust: bool = False) -> int:
    """Print, for each part of the network, how many tensors are equal, changed, of another shape, or in one file only.

    A shared pretraining stores what was trained. Tensors that a file does not store are none of its content, and no
    difference.

    Args:
        first: A checkpoint, a shared pretraining or a file of safetensors.
        second: Another.
        trust: Whether to run code that the files ask for, see `checkpoints.load`.

    Returns:
        0 if all tensors that both store are equal, else 1.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is not readable, or would run code.
    """
    files = [transfer.read(file, trust) for file in (first, second)]
    a, b = (_named(file.weights) for file in files)
    drawn = files[0].drawn | files[1].drawn
    lines = [f"A: {first}", f"B: {second}"]
    n_different, n_absent, most, farthest = 0, 0, 0.0, ""
    for part, keys in _parts([*a, *(key for key in b if key not in a)]).items():
        fates = [NOT_STORED if key in drawn else _fate(a.get(key), b.get(key)) for key in keys]
        distances = [fate for fate in fates if isinstance(fate, float) and fate > 0]
        counts = {
            "equal": fates.count(0.0),
            _changed(distances): len(distances),
            **{words: fates.count(words) for words in dict.fromkeys(map(str, fates))},
        }
        said = ", ".join(f"{n} {words}" for words, n in counts.items() if n)
        lines.append(f"  {part:13s} {said}")
        n_absent += fates.count(NOT_STORED)
        n_different += len(fates) - counts["equal"] - fates.count(NOT_STORED)
        for key, fate in zip(keys, fates, strict=True):
            if isinstance(fate, float) and fate > most:
                most, farthest = fate, key
    n = len(a.keys() | b.keys()) - n_absent
    lines.append(f"{n_different} of {n} tensors differ" if n_different else f"all {n} are equal")
    if n_absent:
        lines[-1] += f"; {n_absent} are {NOT_STORED} in one of the files"
    if farthest:
        lines.append(f"changed most: {shown(farthest)}, by {_percent(most)} of its norm in A")
    print("\n".join(map(printable, lines)))
    return int(n_different > 0)


def _named(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if not is_alias(key)}


def _parts(keys: list[str]) -> dict[str, list[str]]:
    output = [key for key in keys if is_output_layer(key)]
    return parts(keys) | ({OUTPUT: output} if output else {})


def _fate(a: Tensor | None, b: Tensor | None) -> float | str:
    """Return the distance of two tensors, relative to the norm of the first, or why there is none."""
    if a is None or b is None:
        return "only in B" if a is None else "only in A"
    if a.shape != b.shape:
        return "of another shape"
    x, y = a.double(), b.double()
    if x.equal(y):
        return 0.0
    distance, norm = float((y - x).norm()), float(x.norm())
    if not math.isfinite(distance) or not math.isfinite(norm):
        return "not finite"
    return distance / norm if norm else math.inf


def _changed(distances: list[float]) -> str:
    if not distances:
        return "changed"
    low, high = _percent(min(distances)), _percent(max(distances))
    return f"changed by {low}" if low == high else f"changed by {low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if math.isfinite(share) else "more than 0, which it was"
