"""Regular expressions of others: those that find a match, or none, in a short time."""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST, REPETITIONS = 200, 6
RULE = (
    f"a regular expression of at most {LONGEST} characters and {REPETITIONS} repetitions, without a repeated group "
    "that holds repetitions or alternatives"
)
_PART = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<open>\(\??)|(?P<close>\))|(?P<either>\|)"
    r"|(?P<times>(?:[*+?]|\{\d*,\d*\}|(?P<exact>\{\d+\}))[?+]?)|.",
    re.DOTALL,
)


@lru_cache(maxsize=8)
def compile_pattern(text: str) -> re.Pattern[str]:
    """Compile a regular expression that somebody may have chosen so that it never ends.

    Raises:
        ValueError: It is none, or could take long; the message follows "must be".
    """
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"a regular expression: {error}") from None
    if len(text) > LONGEST or _may_take_long(text):
        raise ValueError(RULE)
    return pattern


def is_pattern(text: object) -> bool:
    """Whether `compile_pattern` takes it."""
    try:
        return isinstance(text, str) and compile_pattern(text) is not None
    except ValueError:
        return False


def _may_take_long(text: str) -> bool:
    """Whether a valid pattern has many ways to match one text: the time is exponential in nested repetitions."""
    varies = [False]  # whether what each open group holds so far may match in several ways
    n, last = 0, False  # repetitions; whether the last part is a group that varies
    for part in _PART.finditer(text):
        if part["open"]:
            varies.append(False)
        elif part["close"]:
            last = varies.pop()
            varies[-1] |= last
            continue
        elif part["times"]:
            if last and not part["times"].startswith("?"):
                return True
            n += part["exact"] is None
            varies[-1] |= part["exact"] is None
        elif part["either"]:
            varies[-1] = True
        last = False
    return n > REPETITIONS
