"""The values of own cine's masks: the rule in words, other numberings, and a look at which label encloses which."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from nnunet_ssp.console import count_of, nearest
from nnunet_ssp.dataset_conversion.cine_files import CineTask
from nnunet_ssp.evaluation.labels import structure_of
from nnunet_ssp.files.grids import Array
from nnunet_ssp.files.nifti import integer_labels

HIGHEST = 65535  # value of a mask
# Parts of a label's border in the slices, see `warn_of_numbering`
TOUCHING = 0.6
ENCLOSED = 0.8
LOOK = "Look at them. --label-values names the values of each structure."
SOME = "--label-values-for and the names of these subjects"
FEWEST = 50  # pairs of voxels on the border; fewer tell nothing


def check_values(values: Sequence[int], label_names: Sequence[str]) -> None:
    """Check `--label-values`.

    Raises:
        ValueError: They are not one value from 1 for each name, each once.
    """
    wanted = len(label_names)
    if len({*values}) != len(values) or len(values) != wanted or not _all_within(values):
        raise ValueError(
            f"`--label-values` (={' '.join(map(str, values))}) must be {wanted} different whole numbers from 1 to "
            f"{HIGHEST}: the values that the masks have for {', '.join(label_names)}."
        )


def _all_within(values: Iterable[int]) -> bool:
    return all(1 <= value <= HIGHEST for value in values)


def in_words(label_names: Sequence[str], values: Sequence[int] = ()) -> str:
    """Say which value of a mask is which structure.

    >>> in_words(["LVBP", "LVM", "RV"])
    '1 = LV, 2 = MYO, 3 = RV'
    >>> in_words(["LVBP", "LVM", "RV"], [3, 2, 1])
    '3 = LV, 2 = MYO, 1 = RV'
    """
    values = values or range(1, len(label_names) + 1)
    named = zip(values, map(structure_of, label_names), strict=True)
    return ", ".join(f"{value} = {name}" for value, name in named)


def chosen_subjects(
    chosen: Sequence[str], known: Collection[str], values: Sequence[int], prefix: str
) -> set[str]:
    """Check `--label-values-for`, and return the subjects.

    Args:
        chosen: Their names, also as they are called beside other sources.
        known: All subjects.
        values: Of `--label-values`.
        prefix: What their names begin with beside other sources.

    Raises:
        ValueError: `--label-values` is missing, or no subject has one of the names.
    """
    if chosen and not values:
        raise ValueError(
            "`--label-values-for` needs `--label-values`: the values of the masks of these subjects."
        )
    found = {name if name in known else name.removeprefix(prefix) for name in chosen}
    for name in sorted(found - {*known}):
        raise ValueError(
            f"`--label-values-for` (={name}) must name subjects, as --dry-run lists them.{nearest(name, known)}"
        )
    return found


def rule_of_values(
    label_names: Sequence[str], values: Sequence[int] = (), n_subjects: int = 0
) -> str:
    """Return the rule for the values of masks, with the ways out.

    Args:
        label_names: Names of the classes.
        values: Of `--label-values`.
        n_subjects: Number of subjects that they are for; 0 if it is all.
    """
    ways = "Masks that are numbered otherwise: --label-values, see --help."
    rule = in_words(label_names, values)
    if n_subjects:
        subjects = count_of(n_subjects, "subject")
        rule = f"{in_words(label_names)}; {rule} in the {subjects} of --label-values-for"
    return f"Values of the masks: {rule}. {ways}"


def to_classes(mask: Array, file: Path, task: CineTask) -> Array:
    """Return a mask with the values 1, 2, ... in the order of the label names.

    Args:
        mask: Any shape, as read.
        file: For the message.
        task: The subject.

    Raises:
        ValueError: It has a value that is none of a label; says how other values are named.
    """
    values = task.label_values or tuple(range(1, len(task.label_names) + 1))
    try:
        whole = integer_labels(mask, file, (0, *values))
    except ValueError as error:
        names = ", ".join(map(structure_of, task.label_names))
        places = " ".join("V" * len(values))
        raise ValueError(
            f"{error} They are {in_words(task.label_names, values)}. If the masks have other values, --label-values "
            f"{places} names those of {names}."
        ) from error
    if not task.label_values:
        return whole
    classes = np.zeros(max(values) + 1, np.uint8)
    classes[[*values]] = range(1, len(values) + 1)
    mapped: Array = classes[whole]
    return mapped


def warn_of_numbering(masks: Iterable[Array], task: CineTask) -> list[str]:
    """Warn where the label called LV is not enclosed by the one called myocardium, but another one is.

    Counted are pairs of neighbours in a slice, one inside of a label and one outside, in the slices that have LV and
    myocardium. In 120 stacks of ACDC's patients 1 to 60, in the order of M&Ms, myocardium is outside of LV in at least
    98.7 % of the pairs (in 84 % of those of the worst slice, where the base's ring is open), but outside of RV in 26 to
    44 %, and LV is outside of myocardium in 22 to 46 %. The three labelled ED stacks of Sunnybrook that have
    myocardium, without RV, have at least 98.7 %, too. So none of the five wrong orders reaches `TOUCHING`.

    Args:
        masks: `(X, Y, Z)`, slices on the third axis, as from `to_classes`.
        task: The subject.

    Returns:
        A warning, which names the values that would be right if they are clear.
    """
    names = [structure_of(name) for name in task.label_names]
    if names.count("LV") != 1 or names.count("MYO") != 1:
        return []
    lv, myo = names.index("LV") + 1, names.index("MYO") + 1
    masks = list(masks)
    if no_lv := _without_lv(masks, lv, names, task):
        return [no_lv]
    pairs = np.zeros((len(names) + 1,) * 2, int)
    for mask in masks:
        both = (mask == lv).any((0, 1)) & (mask == myo).any((0, 1))
        pairs += _neighbours(mask[..., both], len(names))
    borders = pairs.sum(axis=1)
    parts = pairs / np.maximum(borders, 1)[:, None]
    if borders[lv] < FEWEST or parts[lv, myo] >= TOUCHING:
        return []
    values = list(task.label_values or range(1, len(names) + 1))
    said = (
        f"label {values[lv - 1]} is taken for LV and label {values[myo - 1]} for MYO, but MYO does not enclose it: are "
        "the masks numbered otherwise?"
    )
    return [f"{said} {_right_numbering(parts, borders, names, values)}"]


def _without_lv(masks: Sequence[Array], lv: int, names: Sequence[str], task: CineTask) -> str:
    """Warn of a subject whose masks have other labels and no LV; empty for any other subject."""
    there = sorted({int(value) for mask in masks for value in np.unique(mask)} - {0})
    if not there or lv in there:
        return ""
    values = task.label_values or range(1, len(names) + 1)
    found = ", ".join(f"{values[n - 1]} = {names[n - 1]}" for n in there)
    return (
        f"no label {values[lv - 1]}, which is taken for LV, only {found}: are the masks numbered otherwise? {LOOK} In "
        f"some subjects alone: also {SOME}."
    )


def _neighbours(mask: Array, n_labels: int) -> Array:
    """Count neighbours in the slices with different labels, by label and neighbour's label."""
    pairs = np.zeros((n_labels + 1) ** 2, int)
    for one, other in ((mask[:-1], mask[1:]), (mask[:, :-1], mask[:, 1:])):
        differ = one != other
        code = one[differ].astype(int) * (n_labels + 1) + other[differ]
        pairs += np.bincount(code, minlength=pairs.size)
    square = pairs.reshape(n_labels + 1, n_labels + 1)
    both_ways: Array = square + square.T
    return both_ways


def _right_numbering(
    parts: Array, borders: Array, names: Sequence[str], values: Sequence[int]
) -> str:
    """Name the option that would be right: the label that another encloses is LV, the other one myocardium."""
    known = [n for n, name in enumerate(names, 1) if name in ("LV", "MYO", "RV")]
    inside, around = max(
        ((one, other) for one in known for other in known if one != other),
        key=lambda pair: parts[pair] * (borders[pair[0]] >= FEWEST),
    )
    if parts[inside, around] < ENCLOSED or borders[inside] < FEWEST:
        return LOOK
    rest = [n for n in known if n not in (inside, around)]
    if len(rest) > 1:  # two parts of RV
        return f"Label {values[inside - 1]} lies in label {values[around - 1]} as LV in MYO. {LOOK}"
    found = {"LV": inside, "MYO": around, "RV": (*rest, 0)[0]}
    right = [values[found.get(name, n) - 1] for n, name in enumerate(names, 1)]
    lies = f"Label {values[inside - 1]} lies in label {values[around - 1]} as LV in MYO: if that is so in your masks,"
    if right == sorted(right) == list(range(1, len(names) + 1)):
        return f"{lies} these subjects need no --label-values: name the others with --label-values-for."
    return (
        f"{lies} convert with --label-values {' '.join(map(str, right))}, for {in_words(names, right)}. Where other "
        f"subjects' masks are right: also {SOME}."
    )
