"""The meaning of a dataset's labels: the classes to score, and which of them are LV, myocardium and RV."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from nnunet_ssp.console import nearest
from nnunet_ssp.files.nnunet import read_dataset

# Names of the three structures, in lower case and letters only. The first of each is ours; those of
# nnU-Net's conversions of M&Ms and ACDC follow.
SYNONYMS = {
    "LV": "lv lvbp lvc lvcav lvcavity lvblood lvbloodpool lvendo leftventricle leftventriclecavity "
    "leftventricularcavity leftventriclebloodpool leftventricularbloodpool",
    "MYO": "myo lvm mlv lvmyo myolv lvwall myocardium lvmyocardium leftventriclemyocardium "
    "leftventricularmyocardium",
    "RV": "rv rvbp rvc rvcav rvcavity rvblood rvbloodpool rvendo rightventricle rightventriclecavity "
    "rightventricularcavity rightventriclebloodpool rightventricularbloodpool",
}


@dataclass(frozen=True)
class Labels:
    """Label values of a dataset.

    Voxels whose *reference* is the ignore label do not count, as in nnU-Net's evaluator.
    """

    # Values of each class; several for a region.
    classes: dict[str, tuple[int, ...]]
    ignore: int | None = None
    # Class by structure, for those of LV, MYO and RV that exist.
    structures: dict[str, str] = field(default_factory=dict)

    @property
    def values(self) -> set[int]:
        """All values that a label map may hold."""
        ignored = set() if self.ignore is None else {self.ignore}
        return {0}.union(ignored, *self.classes.values())

    def shown(self, name: str) -> str:
        """Return what people read of a class: LV, MYO or RV for one that is taken for it; others keep their name."""
        structure = next((s for s, own in self.structures.items() if own == name), name)
        return name if structure in self.classes else structure

    @property
    def overlap(self) -> str:
        """Say why volumes are wrong: two structures share a label value; empty if none do."""
        for one, other in combinations(self.structures, 2):
            names = self.structures[one], self.structures[other]
            if shared := set(self.classes[names[0]]) & set(self.classes[names[1]]):
                return (
                    f"{names[0]}, which is taken for {one}, and {names[1]}, for {other}, share the "
                    f"label value {min(shared)}; name the class of either alone with "
                    f"--{one.lower()} or --{other.lower()}"
                )
        return ""


def structure_of(name: str) -> str:
    """Return LV, MYO or RV for any of its names in use; others stay as they are.

    >>> [structure_of(name) for name in ("LVBP", "LV cavity", "LVM", "scar")]
    ['LV', 'LV', 'MYO', 'scar']
    """
    letters = re.sub("[^a-z]", "", name.lower())
    return next((known for known, names in SYNONYMS.items() if letters in names.split()), name)


def read_labels(dataset_json: Path, named: Mapping[str, str | None] | None = None) -> Labels:
    """Read the labels of nnU-Net's `dataset.json`.

    Args:
        dataset_json: The file; its regions become classes of several values.
        named: Class of `LV`, `MYO` and `RV`; None finds it by the name.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It has no class, it lacks a class that the user named, or two classes have names of the same
            structure.
    """
    entries: dict[str, int | list[int]] = read_dataset(dataset_json)["labels"]
    ignore = entries.get("ignore")
    classes = {
        name: tuple(value) if isinstance(value, list) else (value,)
        for name, value in entries.items()
        if name != "ignore" and value != 0
    }
    if not classes:
        raise ValueError(f"{dataset_json}: `labels` (={entries}) must have a class to evaluate.")
    return Labels(
        classes,
        ignore=ignore if isinstance(ignore, int) else None,
        structures=_structures(classes, named or {}, dataset_json),
    )


def _structures(
    classes: Mapping[str, object], named: Mapping[str, str | None], file: Path
) -> dict[str, str]:
    found = {}
    for structure, synonyms in SYNONYMS.items():
        flag = f"--{structure.lower()}"
        if (name := named.get(structure)) is not None:
            if name not in classes:
                raise ValueError(
                    f"`{flag}` (={name}) must be a class of {file}: {', '.join(classes)}."
                    f"{nearest(name, [*classes])}"
                )
            found[structure] = name
            continue
        fitting = [
            name for name in classes if re.sub("[^a-z]", "", name.lower()) in synonyms.split()
        ]
        if len(fitting) > 1:
            raise ValueError(
                f"{file}: {' and '.join(fitting)} could both be the {structure}; say which with "
                f"{flag} NAME."
            )
        if fitting:
            found[structure] = fitting[0]
    return found
