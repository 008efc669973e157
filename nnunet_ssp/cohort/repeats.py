"""Case names that may be repeats of one subject, for datasets without a table of subjects."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from nnunet_ssp.console import count_of

LONGEST_RUN = (
    8  # repeats of one subject, at most; longer runs of numbers are how cases were numbered
)
MORE_OFTEN = 4  # than chance must numbers follow each other, or they tell nothing


def shared_prefixes(train: Sequence[str], val: Sequence[str]) -> list[str]:
    """Return beginnings of case names, up to a separator, that occur on both sides but not in all names.

    Args:
        train: Case names.
        val: Case names.
    """

    def beginnings(case: str) -> set[str]:
        return {case[: match.start()] for match in re.finditer(r"[_\-.]", case)}

    sides = [set().union(*map(beginnings, cases)) for cases in (train, val)]
    common = set.intersection(*map(beginnings, [*train, *val])) if train and val else set()
    return sorted((sides[0] & sides[1]) - common)


def continuing_names(train: Sequence[str], val: Sequence[str]) -> list[tuple[str, str]]:
    """Find names with consecutive numbers on two sides, as `genius_0800` and `genius_0801`: possible repeats.

    Where nearly every number is taken, as in a dataset numbered from 1 on, consecutive numbers tell nothing. So they
    must be more frequent in a pattern than among as many numbers drawn by chance.

    Args:
        train: Case names.
        val: Case names.

    Returns:
        Pairs of a name in `train` and one in `val`, sorted.
    """
    held_out = set(val)
    pairs = set()
    for numbers in _by_pattern([*train, *val]).values():
        runs = _runs(numbers)
        following = len(numbers) - len(runs)
        expected = len(numbers) * (len(numbers) - 1) / max(1, *numbers)
        if following <= MORE_OFTEN * expected:
            continue
        for run in runs:
            for first, second in pairwise(run):
                names = sorted((numbers[first], numbers[second]), key=held_out.__contains__)
                if len(run) <= LONGEST_RUN and len(held_out & set(names)) == 1:
                    pairs.add((names[0], names[1]))
    return sorted(pairs)


def _by_pattern(names: Iterable[str]) -> dict[tuple[str, str], dict[int, str]]:
    """Sort names by what is before and after a number in them, and then by that number."""
    found: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in names:
        for match in re.finditer(r"[0-9]{1,15}", name):
            found[name[: match.start()], name[match.end() :]][int(match[0])] = name
    return found


def _runs(numbers: Iterable[int]) -> list[list[int]]:
    """Cut numbers into runs without a gap."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def doubts(train: Sequence[str], val: Sequence[str]) -> list[str]:
    """Say in words what looks like one subject on both sides of a fold.

    Args:
        train: Case names.
        val: Case names.
    """
    found = []
    if shared := shared_prefixes(train, val):
        such = count_of(len(shared), "such prefix", "such prefixes")
        framed = all(re.fullmatch(r".+_frame\d+", case) for case in (*train, *val))
        how = "=(.+)_frame in nnUNet_ssp_settings" if framed else " (docs/data.md)"
        found.append(
            f"WARNING: cases on both sides of this fold share a prefix, e.g. {shared[0]} ({such}). "
            f"If they are one subject, set subject_pattern{how}, or give the dataset a cases.csv."
        )
    if repeats := continuing_names(train, val):
        found.append(
            f"NOTE: numbers of cases continue across the sides of this fold, as in {' and '.join(repeats[0])} "
            f"({count_of(len(repeats), 'such pair')}): possible repeats of one subject, not certain. "
            "nnunet-ssp folds --check compares their images."
        )
    return found
