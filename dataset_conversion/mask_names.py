"""The names of own cine's masks: the rule in words, files that it passes over, and how they should be called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from nnunet_ssp.console import count_of
from nnunet_ssp.conversion.record import OVERWRITES
from nnunet_ssp.conversion.subjects import Task
from nnunet_ssp.dataset_conversion.cine_files import MASK, MASK_WORD, CineTask, stem_of

RULE = (
    "Their names end in _gt: <subject>_gt.nii.gz or <image>_gt.nii.gz of all frames, <subject>_frame<TT>_gt.nii.gz of "
    "one."
)
SHOWN = 5  # files
_SEPARATORS = " ._-"


def expected_name(file: Path, subjects: Collection[str], images: Collection[str] = ()) -> str:
    """Return how a mask of one of the subjects should be called that is nearest to a file's name; empty if none is.

    Args:
        file: The file.
        subjects: Names of the subjects.
        images: Names of the images, without ending.

    >>> names = ["p1", "p12"]
    >>> [expected_name(Path(n), names) for n in ("p1_seg.nii.gz", "mask-p12_frame03.nii", "P12.nrrd", "x.nii")]
    ['p1_gt.nii.gz', 'p12_frame03_gt.nii.gz', 'p12_gt.nii.gz', '']
    >>> [expected_name(Path(n), names) for n in ("p1_drawn_by_us.nii", "p13_seg.nii", "pp12_seg.nii")]
    ['p1_gt.nii.gz', '', 'p12_gt.nii.gz']
    """
    stem = stem_of(file) or file.stem
    plain = re.sub(r"[ ._-]{2,}", "_", MASK_WORD.sub("", stem)).strip(_SEPARATORS)
    if plain in images:
        return f"{plain}_gt.nii.gz"
    parts = MASK.fullmatch(f"{plain}_gt")
    wanted = parts["subject"] if parts else plain
    frame = f"_frame{parts['frame']}" if parts and parts["frame"] else ""
    by_case = {name.casefold(): name for name in sorted(subjects)}
    called = wanted.casefold()
    begun = [name for name in by_case if re.fullmatch(rf"{re.escape(name)}[ ._-]\D*", called)]
    numbers = _numbers(called)  # p12 and p1 are alike, and two patients
    alike = [name for name in by_case if _numbers(name) == numbers]
    near = difflib.get_close_matches(called, alike, 1, cutoff=0.7)
    best = max(begun, key=len) if begun else next(iter(near), "")
    return f"{by_case[best]}{frame}_gt.nii.gz" if best else ""


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", name)]


def name_beside(mask: Path) -> str:
    """Return how a mask that lies among images should be called, after the nearest; empty if none is, or it exists."""
    others = [file for file in mask.parent.iterdir() if file != mask and file.name[0] != "."]
    names = {file.name if file.is_dir() else stem_of(file) for file in others} - {""}
    images = {name for name in names if not MASK_WORD.search(name)}
    parts = [MASK.fullmatch(f"{name}_gt") for name in images]
    name = expected_name(mask, {part["subject"] for part in parts if part}, images)
    return name if name and not mask.with_name(name).exists() else ""


def passed_over(folder: Path, tasks: Sequence[CineTask], also_masks: bool = False) -> list[Path]:
    """Return the files of a folder of masks that are used for nothing.

    Args:
        folder: The folder, which may also hold images.
        tasks: The subjects.
        also_masks: Whether also files that are called as masks are meant, of subjects that do not exist.
    """
    used = {file for task in tasks for file in task.files}
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file not in used
        and (also_masks or not MASK.fullmatch(stem_of(file)))
    ]


def listed(files: Sequence[Path], folder: Path, tasks: Sequence[CineTask]) -> str:
    """Return files of a folder in words, the first with the names that masks would have."""
    subjects = {task.subject for task in tasks}
    images = {stem_of(image) for task in tasks for image in task.images} - {""}
    said = []
    for file in files[:SHOWN]:
        name = expected_name(file, subjects, images)
        here = file.relative_to(folder).as_posix()
        said.append(f"{here} (call it {name})" if name and name != file.name else here)
    more = [f"... ({len(files)} in all)"] * (len(files) > SHOWN)
    return ", ".join([*said, *more])


def require_some(folder: Path, tasks: Sequence[CineTask]) -> None:
    """Refuse a folder of masks that is given and has none of any subject.

    Raises:
        FileNotFoundError: There is none; names the files in it, the rule, and the nearest names.
    """
    if not tasks or any(task.masks for task in tasks):
        return
    files = passed_over(folder, tasks, also_masks=True)
    if files:
        there = f"Used for nothing: {listed(files, folder, tasks)}."
    else:
        there = "It holds images alone." if any(folder.rglob("*.nii*")) else "The folder is empty."
    raise FileNotFoundError(
        f"{folder}: no masks here of {count_of(len(tasks), 'subject')}. {RULE} {there}"
    )


def remarks_on_masks(folder: Path, tasks: Sequence[CineTask]) -> list[str]:
    """Warn of files in a folder of masks that are used for nothing."""
    files = passed_over(folder, tasks)
    if not files:
        return []
    return [
        f"WARNING: {count_of(len(files), 'file')} in {folder} {'is' if len(files) == 1 else 'are'} used for nothing, "
        f"as the names are not those of masks: {listed(files, folder, tasks)}. {RULE}"
    ]


def unlabelled_lines(
    labels: str | Path | None, tasks: Sequence[Task], dry_run: bool = False
) -> list[str]:
    """Say how masks are given, for the end of a conversion without a label, or of its dry run."""
    if any(task.has_masks for task in tasks):
        return ["Nothing is labelled: all masks are empty, so there is nothing to fine-tune with."]
    where = "beside the images" if labels is None else f"in {labels}"
    again = "" if dry_run else f", with --overwrite: {OVERWRITES}"
    return [
        f"Nothing is labelled: there is no mask {where}, so this dataset can pretrain and not fine-tune. If there are "
        f"masks elsewhere: the same command with --labels FOLDER{again}. {RULE}"
    ]
