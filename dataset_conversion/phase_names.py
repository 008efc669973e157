"""End-diastole (ED) and end-systole (ES) in the names of files and folders: `alice_ED`, `alice-end_systole`."""

from __future__ import annotations

import re
from collections.abc import Iterable

PHASES = ("ED", "ES")  # in the order of time
_PHASE = re.compile(
    r"(?<![A-Za-z])(?:"
    r"(?P<ed>(?i:ED|(?:end[ ._-]?)?dia(?:stol(?:e|ic))?))|(?P<es>(?i:ES|(?:end[ ._-]?)?sys(?:tol(?:e|ic))?))"
    r")(?![A-Za-z])"
    r"|(?<=[a-z])(?:(?P<ed2>ED)|(?P<es2>ES))(?![A-Za-z])"  # aliceED
)
_FRAME = re.compile(r"(?<![A-Za-z])frame[_-]?(?P<number>\d+)(?!\d)", re.IGNORECASE)
_SEPARATORS = " ._-"


def phase_of(name: str) -> str:
    """Return the phase that a name tells, ED or ES; empty if it tells none, or both.

    >>> [phase_of(name) for name in ("alice_ED", "bob end-systole", "p1_sys", "p01ES", "edward", "ED_ES")]
    ['ED', 'ES', 'ES', 'ES', '', '']
    """
    found = {"ED" if match["ed"] or match["ed2"] else "ES" for match in _PHASE.finditer(name)}
    return found.pop() if len(found) == 1 else ""


def is_of_frame(name: str) -> bool:
    """Whether a name tells a phase or the number of a frame."""
    return bool(phase_of(name) or _FRAME.search(name))


def without_frame(name: str) -> str:
    """Return a name without the phase or frame that it tells.

    >>> [without_frame(name) for name in ("alice_ED_sa", "ES-bob", "p1_frame07", "p01ED", "ED")]
    ['alice_sa', 'bob', 'p1', 'p01', '']
    """
    bare = _FRAME.sub("", _PHASE.sub("", name) if phase_of(name) else name)
    return re.sub(r"([ ._-])[ ._-]+", r"\1", bare).strip(_SEPARATORS)


def time_of(name: str) -> tuple[int, str]:
    """Return what sorts names by the frame that they tell, else by the phase."""
    match = _FRAME.search(name)
    return (int(match["number"]) if match else -1, phase_of(name))


def are_two_phases(names: Iterable[str]) -> bool:
    """Whether names are those of ED and ES, and differ in nothing else."""
    names = list(names)
    return (
        sorted(map(phase_of, names)) == [*PHASES]
        and len({without_frame(name) for name in names}) == 1
    )
