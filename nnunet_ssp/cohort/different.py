"""What follows two subjects that look alike: to look at them, or to say that they are different people."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from nnunet_ssp.cohort.lookalikes import DIFFERENT_HEARTS, ONE_HEART, SAME, SUSPECT
from nnunet_ssp.console import nearest

SHOWN = 3  # pairs whose images are named
MEANING = (
    f"similarity is how far the contours of two images agree, 1 for copies: {SAME} or more is taken for one heart, "
    f"{SUSPECT} or more is worth a look. In ACDC and Sunnybrook two patients had at most {DIFFERENT_HEARTS}, two "
    f"phases of one patient at least {ONE_HEART:.2f}; synthetic hearts may be more alike"
)

Different = Sequence[Sequence[str]]


def declared(different: Different, subjects: Collection[str]) -> set[frozenset[str]]:
    """Return the pairs of subjects that the user calls different people.

    Args:
        different: Two names each.
        subjects: All subjects' names.

    Raises:
        ValueError: No subject has such a name, or both names are one.
    """
    for name in (name for pair in different for name in pair):
        if name not in subjects:
            raise ValueError(
                f"--different {name}: no subject is called so.{nearest(name, subjects)}"
            )
    if twice := next((pair[0] for pair in different if len({*pair}) < len(pair)), None):
        raise ValueError(f"--different {twice} {twice}: the two must be different subjects.")
    return {frozenset(pair) for pair in different}


def lines_on_pairs(
    pairs: Iterable[tuple[tuple[str, Path], tuple[str, Path]]],
    dataset: str,
    pattern: str | None,
    different: Different,
) -> list[str]:
    """Return the lines that say what the similarity means and what to do.

    Args:
        pairs: Names and images of the subjects that look alike, the pair to settle first before the others.
        dataset: Name of the dataset.
        pattern: `--subject-pattern`, where one was given.
        different: The pairs that were called different people before.
    """
    found = list(pairs)
    lines = [MEANING] if found else []
    for (_, first), (_, second) in found[:SHOWN]:
        paths = shlex.join([str(first), str(second)])
        lines.append(f"look at both, in a viewer such as ITK-SNAP: {paths}")
    if found:
        (one, _), (other, _) = found[0]
        words = ["nnunet-ssp", "folds", dataset, "--check"]
        words += ["--subject-pattern", pattern] if pattern is not None else []
        for pair in [*different, (one, other)]:
            words += ["--different", *pair]
        lines.append(
            f"{one} and {other} are different people, or one? If different: {shlex.join(words)}"
        )
    return lines
