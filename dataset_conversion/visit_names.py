"""Subjects that may be visits of one patient, by their names: `PAT1_2019` and `PAT1_2021`, `p1_baseline` and `p1`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nnunet_ssp.console import some

SHOWN = 5  # patients
_WORD = (
    r"visit|ses|sess?ion|exam|timepoint|tp|baseline|bl|follow[ ._-]?up|fu|pre|post|before|after|v"
)
_YEAR = r"(?:19[89]|20[0-3])\d"
_VISIT = re.compile(
    rf"(?<![A-Za-z0-9])(?:(?:{_WORD})[ ._-]?\d{{0,3}}|{_YEAR}(?:[._-]?\d\d[._-]?\d\d)?)(?![A-Za-z0-9])",
    re.IGNORECASE,
)


def without_visit(name: str) -> str:
    """Return a name without the words or the date that tell a visit.

    >>> [without_visit(name) for name in ("PAT1_2019", "PAT1_2021-03-04", "p1_ses-02", "p1_baseline", "p12", "2019")]
    ['PAT1', 'PAT1', 'p1', 'p1', 'p12', '2019']
    """
    bare = re.sub(r"([ ._-])[ ._-]+", r"\1", _VISIT.sub("", name)).strip(" ._-")
    return bare or name


def remarks_on_visits(subjects: Iterable[str]) -> list[str]:
    """Warn of subjects that differ only in what tells a visit: folds may have one patient on both sides."""
    patients: dict[str, list[str]] = {}
    for subject in subjects:
        patients.setdefault(without_visit(subject), []).append(subject)
    several = [some(names) for names in patients.values() if len(names) > 1]
    if not several:
        return []
    more = f"; and {len(several) - SHOWN} more" * (len(several) > SHOWN)
    return [
        f"WARNING: by their names, these may be visits of one patient: {'; '.join(several[:SHOWN])}{more}. Each is a "
        "subject of its own, and folds may part them. To keep them on one side: folds --from FILE, with --keep-ids, or "
        "leave all but one out."
    ]
