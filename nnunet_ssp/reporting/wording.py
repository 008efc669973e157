"""Wording of numbers and lists, in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from nnunet_ssp.reporting.page import GAP


def listing(words: list[str]) -> str:
    """Join words: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def rounded(number: float, digits: int) -> str:
    """Round a number; NaN gives a dash."""
    # Adding zero makes a rounded -0.0 a 0.0.
    return GAP if math.isnan(number) else f"{round(number, digits) + 0.0:.{digits}f}"


def p_value(value: float) -> str:
    """Write a p value: `0.012`, `<0.001`, or a dash for NaN."""
    return GAP if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def interval(row: dict[Hashable, Any], score: str = "") -> str:
    """Write the interval of a score, or that of a difference, with signs."""
    low, high = (row[f"{score}_{end}" if score else end] for end in ("low", "high"))
    if math.isnan(low):
        return GAP
    return f"{low:.3f}–{high:.3f}" if score else f"{low:+.3f} to {high:+.3f}"


def limits(low: float, high: float) -> str:
    """Write limits of agreement: `-3.1 to 4.0`, or a dash where a single subject has none."""
    return GAP if math.isnan(low) else f"{rounded(low, 1)} to {rounded(high, 1)}"


def duration(seconds: float) -> str:
    """Write seconds as `48 s`, `12 min` or `3.5 h`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def one_warning(heading: str, items: Sequence[str]) -> list[str]:
    r"""Make one warning of several of a kind: a heading, and a line for each; a single one stays a sentence.

    >>> one_warning("Two things.", ["a is wrong.", "b is wrong."]), one_warning("", ["a is wrong."])
    (['WARNING: Two things.\n* a is wrong.\n* b is wrong.'], ['WARNING: a is wrong.'])
    """
    if len(items) < 2:
        return [f"WARNING: {item}" for item in items]
    return ["\n* ".join([f"WARNING: {heading}", *items])]
