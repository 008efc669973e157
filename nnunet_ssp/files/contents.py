"""Checks of files that anybody may have written; errors name file, place and rule."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

DEEPEST = 100  # levels of nesting; nnU-Net's own files have fewer than 10
SHOWN = 80  # characters of a value in a message
# Ends the refusal of a file that would run code.
WAY_OUT = "Only if you know and trust who made the file: --trust (commands) or the setting trust=yes (trainers)."

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """A rule for one value, in words that follow "must be"."""

    words: str
    holds: Callable[[Any], bool]


def is_whole(value: object, least: int = 0) -> bool:
    """Whether a value is a whole number of at least `least`; True and False are none."""
    return type(value) is int and value >= least


def _all_text(values: Collection[object]) -> bool:
    return all(isinstance(value, str) for value in values)


TEXT = Rule("text", lambda v: isinstance(v, str))
TEXTS = Rule("a list of text", lambda v: isinstance(v, list) and _all_text(v))
NAMES = Rule("names with values", lambda v: isinstance(v, dict) and _all_text(v))
COUNT = Rule("a whole number from 0", is_whole)
NUMBER = Rule("a number", lambda v: isinstance(v, Real) and not isinstance(v, bool))


def optional(rule: Rule) -> Rule:
    """Return the same rule, which null keeps, too."""
    return Rule(f"{rule.words}, or null", lambda v: v is None or rule.holds(v))


def check(
    content: Mapping[str, Any],
    rules: Mapping[str, Rule],
    where: str,
    required: Collection[str] = (),
) -> None:
    """Check values by name.

    Args:
        content: Values by name; those without a rule may be anything.
        rules: Rules by name.
        where: File and place, the beginning of each message.
        required: Names that must be there.

    Raises:
        ValueError: A name is missing, or a value breaks its rule.
    """
    for name in required:
        if name not in content:
            raise ValueError(f"{where}: `{name}` is missing.")
    for name, rule in rules.items():
        if name in content and not rule.holds(content[name]):
            raise ValueError(f"{where}: `{name}` (={shown(content[name])}) must be {rule.words}.")


def shown(value: object) -> str:
    """Return a value in one short line, without anything that a terminal would obey."""
    if isinstance(value, str):
        text = printable(value[: SHOWN + 1])
    else:
        short = reprlib.Repr()
        short.maxother = short.maxstring = SHOWN
        text = printable(short.repr(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def printable(text: str) -> str:
    """Write out control characters in a text, as Python does in literals."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nests_too_deeply(value: object) -> bool:
    """Whether lists and names lie in each other more than `DEEPEST` times, or hold themselves."""
    seen: set[tuple[int, int]] = set()
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if not isinstance(item, dict | list | tuple) or (id(item), depth) in seen:
            continue
        if depth > DEEPEST:
            return True
        seen.add((id(item), depth))
        inner = item.values() if isinstance(item, dict) else item
        waiting.extend((part, depth + 1) for part in inner)
    return False


def read_json(file: str | Path, kind: type[T]) -> T:
    """Read a JSON file.

    Args:
        file: The file.
        kind: The type that it must hold, `dict` or `list`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON, is not UTF-8, nests too deeply or holds something else.
    """
    file = Path(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing.") from None
    except IsADirectoryError:
        raise ValueError(f"{file}: must be a file, not a folder.") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}: not a JSON file (line {error.lineno}, column {error.colno}: {error.msg})."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not a JSON file (byte {error.start} is no UTF-8 text)."
        ) from None
    except RecursionError:
        raise ValueError(_deep(file)) from None
    except ValueError as error:  # Python limits the digits of a number
        raise ValueError(f"{file}: not a JSON file that can be read ({error}).") from None
    if not isinstance(content, kind):
        wanted = "names with values ({...})" if kind is dict else "a list ([...])"
        raise ValueError(f"{file}: must hold {wanted}, not {shown(content)}.")
    if nests_too_deeply(content):
        raise ValueError(_deep(file))
    return content


def _deep(file: Path) -> str:
    return f"{file}: must not nest more than {DEEPEST} levels deep."
