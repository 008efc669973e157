"""Names that become parts of paths: one rule for all, wherever they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nnunet_ssp.files.contents import Rule, shown

# Of a file's name. File systems allow 255: the rest is for endings and for what half-written files begin with.
LONGEST = 200
WORDS = (
    "one plain name: not empty, no /, \\ or control character, no drive, not beginning with a point, "
    f"at most {LONGEST} bytes"
)


def is_plain(name: object) -> bool:
    """Whether a name stays where it is put: one component of a path, with room for endings."""
    if not isinstance(name, str) or not name.strip() or name.startswith("."):
        return False
    if re.search(r"[/\\]|^[A-Za-z]:", name) or any(ord(c) < 32 or ord(c) == 127 for c in name):
        return False
    try:
        return len(name.encode()) <= LONGEST
    except UnicodeEncodeError:  # half a character, which no file system can write
        return False


PLAIN = Rule(WORDS, is_plain)


def must_be_plain(name: object, what: str, where: str = "") -> str:
    """Check a name that becomes part of a path.

    Args:
        name: the name.
        what: what is called so, e.g. `case`.
        where: the file that it was read from, and the place.

    Returns:
        The name.

    Raises:
        ValueError: it is not one plain component.
    """
    if not is_plain(name):
        raise ValueError(
            f"{where}{': ' if where else ''}`{what}` (={shown(name)}) must be {WORDS}."
        )
    return str(name)


def must_all_be_plain(names: Iterable[object], what: str, where: str) -> None:
    """Check several names, see `must_be_plain`."""
    for name in names:
        must_be_plain(name, what, where)
