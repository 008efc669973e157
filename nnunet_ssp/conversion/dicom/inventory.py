"""Counts of what the DICOM files of a subject are: studies, series, what was taken and what was left out.

Nothing in them is of a person: no name, UID or date, and of the header only manufacturer, model and field strength.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nnunet_ssp.console import count_of, some

if TYPE_CHECKING:  # every conversion would import pydicom
    from nnunet_ssp.conversion.dicom.headers import Image


@dataclass(frozen=True)
class Inventory:
    """What the files of a subject are."""

    images: int
    studies: int
    series: int
    # Of these, the series whose images make the short axis
    taken: int
    # Manufacturer, model, field strength
    scanner: str
    # Of the short axis: slices x frames
    size: str
    # Number of series by the reason for which they were left out
    left_out: Mapping[str, int] = field(default_factory=dict)


def take_inventory(
    images: Collection[Image], stack: Sequence[Sequence[Image]], left_out: Mapping[str, int]
) -> Inventory:
    """Count the images of a subject.

    Args:
        images: All of them.
        stack: The images of the short axis by slice and frame.
        left_out: Number of series by the reason for which they were left out.
    """
    taken = [image for row in stack for image in row]
    vendor, model, field_strength = taken[0].scanner
    named = " ".join(filter(None, (vendor, model))) or "unknown scanner"
    return Inventory(
        images=len(images),
        studies=len({image.study for image in images}),
        series=len({image.series for image in images}),
        taken=len({image.series for image in taken}),
        scanner=f"{named}, {field_strength} T" if field_strength else named,
        size=f"{count_of(len(stack), 'slice')} x {count_of(len(stack[0]), 'frame')}",
        left_out=dict(left_out),
    )


def inventory_lines(found: Sequence[Mapping[str, Any]], patients: Iterable[str]) -> list[str]:
    """Sum up the inventories of subjects in some lines; none without any.

    Args:
        found: The inventories, as `asdict` makes them.
        patients: Digest of the PatientID of each subject; empty if it has none.
    """
    if not found:
        return []

    def total(name: str) -> int:
        return sum(int(one[name]) for one in found)

    persons = len(set(filter(None, patients)))
    known = f" ({count_of(persons, 'PatientID')})" if persons else " (no PatientID)"
    left_out = Counter[str]()
    for one in found:
        left_out.update(one["left_out"])
    why = [
        f"{count_of(n, 'series', 'series')} ({reason})" for reason, n in sorted(left_out.items())
    ]
    return [
        "",
        f"DICOM of {count_of(len(found), 'subject')}{known}: {count_of(total('studies'), 'study', 'studies')}, "
        f"{count_of(total('series'), 'series', 'series')}, {count_of(total('images'), 'image')}",
        f"  scanner: {_counted(one['scanner'] for one in found)}",
        f"  short axis, from {count_of(total('taken'), 'series', 'series')}: {_counted(one['size'] for one in found)}",
        f"  left out: {some(why) or 'nothing'}",
    ]


def _counted(names: Iterable[str]) -> str:
    """Return names with the number of subjects of each, the most frequent first."""
    return some([f"{name} ({count_of(n, 'subject')})" for name, n in Counter(names).most_common()])
