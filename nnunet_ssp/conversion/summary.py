"""Reports of a conversion: log, summary, dry run, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nnunet_ssp.cohort.cases import SPLITS
from nnunet_ssp.cohort.copies import lines_on_copies, shared
from nnunet_ssp.console import count_of, some
from nnunet_ssp.conversion.dicom.inventory import inventory_lines
from nnunet_ssp.conversion.record import OVERWRITES
from nnunet_ssp.conversion.subjects import Look, Outcome

SHOWN = 10  # subjects of other lines
NAMED = (
    200  # subjects of a warning or a dry run: options such as --label-values-for take their names
)

# The file or folder that a reason begins with
_FILE = re.compile(r"^(?P<file>(?:[^:\n]|:(?! ))*([/\\]|\.[A-Za-z])(?:[^:\n]|:(?! ))*): ")


@dataclass(frozen=True)
class Remarks:
    """Remarks on a dataset as a whole, for the summary."""

    # Whatever its subjects are
    general: Sequence[str] = ()
    # From the split of each subject that was not refused
    of_splits: Callable[[Mapping[str, str]], Sequence[str]] = lambda splits: []
    # For each of these, the summary counts the subjects `<prefix>-...` apart
    prefixes: Sequence[str] = ()
    # Printed and kept beside the key, never in `convert.json`: they hold names of the user's files
    local: Sequence[str] = ()
    # Last lines where no frame is labelled: how labels are given
    unlabelled: Sequence[str] = ()

    def about(self, outcomes: Iterable[Outcome | Look]) -> list[str]:
        """Return the remarks on these subjects."""
        splits = {outcome.subject: outcome.split for outcome in outcomes if not outcome.refused}
        return [*self.general, *self.of_splits(splits)]


def as_log(outcomes: Iterable[Outcome]) -> dict[str, dict[str, object]]:
    """Return everything that was said about the subjects, for `convert.json`."""
    kinds = ("refused", "corrections", "warnings", "notes")
    return {
        kind: {o.subject: getattr(o, kind) for o in outcomes if getattr(o, kind)} for kind in kinds
    }


def summary_lines(
    outcomes: Sequence[Outcome], n_folds: int, remarks: Sequence[str], prefixes: Sequence[str]
) -> list[str]:
    """Return the last lines of a conversion: counts by split and source, then remarks on subjects."""
    columns = ("subjects", "frames", "labelled", "unlabelled", "corrected", "refused")
    lines = ["", _row("", columns)]
    for name, mine in _groups(outcomes, prefixes):
        cases = [case for outcome in mine for case in outcome.cases]
        labelled = sum(case.labelled for case in cases)
        numbers = (
            sum(not outcome.refused for outcome in mine),
            len(cases),
            labelled,
            len(cases) - labelled,
            sum(bool(outcome.corrections) for outcome in mine),
            sum(bool(outcome.refused) for outcome in mine),
        )
        lines.append(_row(name, numbers))
    lines += _inventories(outcomes)
    folds = count_of(n_folds, "fold") if n_folds else "no folds, only `all`"
    lines += [f"\nCross-validation by subject: {folds}", *_remarks(remarks)]
    for title, kind in (("Corrected", "corrections"), ("WARNING", "warnings"), ("Notes", "notes")):
        lines += _said(outcomes, title, kind)
    if any(outcome.refused for outcome in outcomes):
        lines += ["\nREFUSED, not converted:", *refusals(outcomes)]
        lines.append(
            f"Once they are mended, the same command with --overwrite converts all again: {OVERWRITES}."
        )
    return lines


def dry_summary_lines(
    looks: Sequence[Look],
    target: Path,
    remarks: Sequence[str],
    prefixes: Sequence[str],
    unlabelled: Sequence[str] = (),
) -> list[str]:
    """Return the lines of a dry run, from the headers alone; `unlabelled` where no subject has a mask."""
    columns = ("subjects", "with masks", "without", "frames", "refused")
    lines = ["", _row("", columns)]
    for name, mine in _groups(looks, prefixes):
        usable = [look for look in mine if not look.refused]
        masks = sum(look.has_masks for look in usable)
        frames = sum(look.n_frames for look in usable)
        numbers = (len(usable), masks, len(usable) - masks, frames, len(mine) - len(usable))
        lines.append(_row(name, numbers))
    lines += _inventories(looks)
    lines += ["", *_read_in_a_dry_run(looks)]
    if not all(look.every_frame for look in looks):
        lines.append("Only the labelled frames of test subjects will be converted.")
    lines += _remarks(remarks)
    for split in SPLITS:
        subjects = [look.subject for look in looks if look.split == split and not look.refused]
        if subjects:
            lines.append(f"\n{split}: {some(sorted(subjects, key=_by_numbers), NAMED)}")
    bare = [look.subject for look in looks if not (look.has_masks or look.refused)]
    masked = any(look.has_masks for look in looks if not look.refused)
    if bare and masked:
        lines.append(f"\nwithout masks: {some(bare)}")
    for title, kind in (("WARNING", "warnings"), ("Notes", "notes")):
        lines += _said(looks, title, kind)
    if any(look.refused for look in looks):
        lines += ["\nWould be REFUSED:", *refusals(looks, limit=None)]
    if all(look.refused for look in looks):
        return [*lines, "\nDry run: nothing was written, and no subject could be converted."]
    if not any(map(_is_labelled, looks)):
        lines += [f"\n{line}" for line in lost_labels(looks) or unlabelled]
    lines.append(f"\nDry run: nothing was written. The dataset would be {target}")
    if (target / "dataset.json").exists():
        lines.append(
            f"That folder holds a finished dataset: choose another id to keep it, or --overwrite: {OVERWRITES}."
        )
    return lines


def _read_in_a_dry_run(looks: Sequence[Look]) -> list[str]:
    """Say what a dry run has read, and how many frames are labelled where it has read masks."""
    counted = [
        look.n_labelled for look in looks if look.n_labelled is not None and not look.refused
    ]
    masked = [look for look in looks if look.has_masks and not look.refused]
    if len(counted) < max(len(masked), 1):
        return ["Only headers were read: a mask may turn out to be empty, a file to be damaged."]
    subjects = count_of(sum(map(bool, counted)), "subject")
    return [
        f"Labelled frames: {sum(counted)}, of {subjects}. Masks were read, of images only headers: a file may turn out "
        "to be damaged."
    ]


def lost_labels(outcomes: Sequence[Outcome] | Sequence[Look]) -> list[str]:
    """Say that no frame is labelled because subjects with masks are refused; empty where that is not so."""
    lost = sum(bool(o.refused) and o.has_masks for o in outcomes)
    if not lost or any(map(_is_labelled, outcomes)):
        return []
    return [
        f"Nothing is labelled: {count_of(lost, 'subject')} with masks {'is' if lost == 1 else 'are'} refused, for the "
        "reasons above. Mend that first."
    ]


def _is_labelled(outcome: Outcome | Look) -> bool:
    if isinstance(outcome, Look):
        return outcome.has_masks and outcome.n_labelled != 0 and not outcome.refused
    return any(case.labelled for case in outcome.cases)


_Group = TypeVar("_Group", Outcome, Look)


def same_patients(outcomes: Iterable[Outcome | Look]) -> list[str]:
    """Warn of each patient with several subjects."""
    patients: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.patient:
            patients.setdefault(outcome.patient, []).append(outcome.subject)
    return [
        f"WARNING: {some(subjects)} have the same PatientID: one subject? use --by-patient-id"
        for subjects in patients.values()
        if len(subjects) > 1
    ]


def same_images(outcomes: Iterable[Outcome], dataset_id: int) -> list[str]:
    """Warn of subjects with the same voxels in some frame, those of test and training first."""
    outcomes = list(outcomes)
    pairs = shared((o.subject, total) for o in outcomes for total in o.sums)
    tests = {o.subject for o in outcomes if o.split == "test"}
    return list(lines_on_copies(pairs, tests, dataset_id))


def _groups(
    outcomes: Sequence[_Group], prefixes: Sequence[str]
) -> Iterator[tuple[str, list[_Group]]]:
    """Yield the rows of a summary: train, test, unread (refused while listing), all, and those of each source."""
    names = {split: split for split in SPLITS} | {"": "unread"}
    for split, name in names.items():
        mine = [o for o in outcomes if o.split == split]
        if mine or split:
            yield name, mine
    yield "all", list(outcomes)
    for prefix in prefixes:
        for split, name in names.items():
            mine = [o for o in outcomes if o.subject.startswith(f"{prefix}-") and o.split == split]
            if mine:
                yield f"{prefix} {name}", mine


def _inventories(outcomes: Iterable[Outcome | Look]) -> list[str]:
    of_dicom = [outcome for outcome in outcomes if outcome.inventory and not outcome.refused]
    return inventory_lines([o.inventory for o in of_dicom], [o.patient for o in of_dicom])


def _said(outcomes: Iterable[Outcome | Look], title: str, kind: str) -> list[str]:
    ordered = sorted(outcomes, key=lambda outcome: _by_numbers(outcome.subject))
    texts = [(o.subject, text) for o in ordered for text in getattr(o, kind)]
    names = NAMED if kind == "warnings" else SHOWN
    return [f"\n{title}:", *_grouped(texts, names=names)] if texts else []


def _by_numbers(name: str) -> str:
    """Return what sorts p2 before p10."""
    return re.sub(r"\d+", lambda number: number[0].zfill(9), name)


def _row(name: str, values: Iterable[object]) -> str:
    return f"{name:12}" + "".join(f"{value:>12}" for value in values)


def _remarks(remarks: Sequence[str]) -> list[str]:
    return ["", *remarks] if remarks else []


def refusals(outcomes: Iterable[Outcome | Look], limit: int | None = 20) -> list[str]:
    """Return the refused subjects with their reasons, at most `limit` lines; numbers in names sort as numbers."""
    refused = [(o.subject, o.refused) for o in outcomes if o.refused]
    refused.sort(key=lambda pair: _by_numbers(pair[0]))
    kinds: dict[str, list[str]] = {}
    for _, text in refused:
        if _FILE.match(text):
            kinds.setdefault(_FILE.sub("", text), []).append(text)

    def one_of_a_kind(text: str) -> str:
        """Return the reason without its file where it is that of others, too; the first file follows it."""
        alike = kinds[_FILE.sub("", text)] if _FILE.match(text) else []
        if len({*alike}) <= 1:
            return text
        first = _FILE.match(alike[0])
        return f"{_FILE.sub('', text)} The first: {first['file'] if first else ''}"

    return list(_grouped([(name, one_of_a_kind(text)) for name, text in refused], limit))


def _grouped(
    texts: Iterable[tuple[str, str]], limit: int | None = 20, names: int = SHOWN
) -> Iterator[str]:
    """Yield lines of `subjects: text`, equal texts in one line, at most `limit` lines of `names` subjects."""
    groups: dict[str, list[str]] = {}
    for subject, text in texts:
        groups.setdefault(text, []).append(subject)
    for number, (text, subjects) in enumerate(groups.items()):
        if number == limit:
            yield f"  ... and {len(groups) - limit} more, see convert.json"
            return
        yield f"  {some(subjects, names)}: {text}"
