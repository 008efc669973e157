"""Values of settings as they are typed: `3`, `1e-3`, `none`, `yes`, `no`, or a name."""

from __future__ import annotations

import math
import re
import types
from typing import Any, Literal, Union, get_args, get_origin


def as_word(value: object) -> str:
    """Write a value as it is typed in the environment variable.

    >>> as_word(True), as_word(None), as_word(0.1)
    ('yes', 'none', '0.1')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, or the type itself."""
    return (
        list(get_args(annotation))
        if get_origin(annotation) in (Union, types.UnionType)
        else [annotation]
    )


# Numbers as people write them: Python also reads 1_0, inf and the digits of other scripts. No setting has more digits.
_NUMBERS = {
    int: r"[+-]?[0-9]{1,18}",
    float: r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?",
}


def parse_value(name: str, text: str, annotation: Any) -> Any:
    """Read a setting's value as it is typed in the environment variable.

    Args:
        name: Of the setting, for the message.
        text: Its value.
        annotation: Its type: `int`, `float`, `bool`, `str`, a `Literal`, None, or a union of them.

    Raises:
        ValueError: The text is no value of that type.

    >>> parse_value("chunk_size", "none", int | None), parse_value("seed", "3", int)
    (None, 3)
    """
    alternatives = _alternatives(annotation)
    for kind in alternatives:
        if kind is type(None) and text.lower() == "none":
            return None
        if kind is bool and text.lower() in ("yes", "no"):
            return text.lower() == "yes"
        if get_origin(kind) is Literal and text in get_args(kind):
            return text
        if kind in _NUMBERS and re.fullmatch(_NUMBERS[kind], text):
            number = kind(text)
            if math.isfinite(number):  # 1e400 is not
                return number
    if str in alternatives:
        return text
    raise ValueError(
        f"`{name}` (={text}) must be {' or '.join(_describe(kind) for kind in alternatives)}."
    )


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    return {
        int: "an integer",
        float: "a number",
        bool: "yes or no",
        type(None): "none",
        str: "a text",
    }[kind]
