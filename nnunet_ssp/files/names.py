"""One rule for all names that become parts of paths."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nnunet_ssp.files.contents import Rule, shown

# Bytes of a name. File systems allow 255: the rest is for endings and for the beginning of half-written files' names.
LONGEST = 200
WORDS = (
    "one plain name: not empty, no /, \\ or control character, no drive, not beginning with a point, "
    f"at most {LONGEST} bytes"
)
# Files that nnU-Net keeps beside plans, without their ending.
NOT_PLANS = ("dataset", "dataset_fingerprint", "splits_final")


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
        name: The name.
        what: Key of the name, for example `case`.
        where: File and place that it was read from.

    Returns:
        The name.

    Raises:
        ValueError: It is not one plain component.
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


def must_name_plans(name: str, place: str) -> str:
    """Return a name for plans.

    Args:
        name: The name.
        place: Where it comes from, for the message.

    Raises:
        ValueError: It is not plain, nnU-Net would split it, or plans of this name would replace a file of nnU-Net's.
    """
    if must_be_plain(name, place).lower() in NOT_PLANS:
        raise ValueError(
            f"{place} (={name}) must be none of {', '.join(NOT_PLANS)}: beside plans, nnU-Net has files of these names."
        )
    if "__" in name:
        raise ValueError(
            f"{place} (={name}) must not hold __, at which nnU-Net splits names of folders."
        )
    return name
