"""Values of DICOM headers as consoles, converters and people write them.

A number may have the VR of a text, or a decimal comma, brackets, blanks or a unit. It is read if there is one way to
read it. The caller names a value that cannot be read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from datetime import date
from functools import cache
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

_AROUND = " \t\r\n\0[](){}<>'\""
_NUMBER = re.compile(
    r"(?P<number>[-+]?(\d+[.,]?\d*|[.,]\d+)([eEdD][-+]?\d+)?)\s*(mm|ms|T)?", re.ASCII
)
_SEPARATORS = (r"\\", r"[;|/]", r",\s+", r"\s+", ",")
_TIME = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2})?([.,]\d+)?", re.ASCII)
_DATE = re.compile(r"(\d{4})[-./:]?(\d{2})[-./:]?(\d{2})", re.ASCII)


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Return the value of an element as pydicom converts it, or its bytes where that fails; None if absent or empty."""
    tag = _tag(keyword)
    if tag not in dataset:
        return None
    try:
        value = dataset[tag].value
    except Exception:  # values of another kind than their VR raise anything
        value = dataset.get_item(tag).value
    return None if value is None or (isinstance(value, str | bytes) and not value) else value


def texts_of(value: Any) -> list[str]:
    """Return the parts of a value as texts."""
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    elif isinstance(value, str):
        value = value.split("\\")
    elif not isinstance(value, Sequence):
        value = [value]
    return [f"{p:.12g}" if isinstance(p, float) else str(p).strip(" \0") for p in value]


def numbers_of(value: Any, count: int) -> tuple[float, ...]:
    """Read a fixed count of numbers; empty if the value cannot be read as these."""
    if isinstance(value, bytes):
        return _numbers_in(value.decode("latin-1"), count) or _unpacked(value, count)
    if isinstance(value, int | float):
        found: tuple[float, ...] = (float(value),)
    elif isinstance(value, str) or not isinstance(value, Sequence):
        return _numbers_in(str(value), count)
    elif all(isinstance(part, int | float) for part in value):
        found = tuple(map(float, value))
    else:
        return _numbers_in("\\".join(map(str, value)), count)
    return found if len(found) == count and np.isfinite(found).all() else ()


def _numbers_in(text: str, count: int) -> tuple[float, ...]:
    for separator in _SEPARATORS:
        parts = [part.strip(_AROUND) for part in re.split(separator, text.strip(_AROUND))]
        parts = [part for part in parts if part]
        matches = [_NUMBER.fullmatch(part) for part in parts]
        if len(parts) != count or None in matches:
            continue
        if separator == "," and count == 2 and all(part.isdigit() for part in parts):
            return ()  # `1,4` is one number or two
        read = [m["number"].replace(",", ".").upper().replace("D", "E") for m in matches if m]
        found = tuple(map(float, read))
        return found if np.isfinite(found).all() else ()
    return ()


def _unpacked(value: bytes, count: int) -> tuple[float, ...]:
    """Unpack binary numbers that have the VR of bytes."""
    for kind, size in (("d", 8), ("f", 4), ("H", 2)):
        if len(value) == size * count:
            found = struct.unpack(f"<{count}{kind}", value)
            if all(n == 0 or 1e-6 < abs(n) < 1e7 for n in found):
                return tuple(map(float, found))
    return ()


def brief(value: Any) -> str:
    """Return a value for a message, cut to 40 characters."""
    text = "\\".join(texts_of(value)).encode("ascii", "backslashreplace").decode()
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= 40 else f"{text[:37]}..."


def seconds_of(text: str) -> float | None:
    """Return the seconds since midnight of a time (TM); None if it is none."""
    whole = re.match(r"\d*", text)
    if whole and len(whole[0]) == 5:  # written as a number
        text = f"0{text}"
    match = _TIME.fullmatch(text)
    if not match:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    fraction = float((match[4] or "0").replace(",", "."))
    return 3600 * hours + 60 * minutes + seconds + fraction


def day_of(text: str) -> int | None:
    """Return the number of the day of a date (DA); None if it is none."""
    match = _DATE.fullmatch(text)
    try:
        return date(*map(int, match.groups())).toordinal() if match else None
    except ValueError:
        return None
