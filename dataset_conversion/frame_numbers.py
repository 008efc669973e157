"""The numbers of frames in the names of own cine's masks: what they count, and from which number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from nnunet_ssp.console import count_of
from nnunet_ssp.dataset_conversion.cine_files import MASK, CineTask, holds_one_slice, stem_of
from nnunet_ssp.files.nifti import read_header

FIRST = (0, 1)  # numbers of the first frame that --frames-from takes
_OF_IMAGE = re.compile(r"frame[_-]?(\d+)", re.IGNORECASE)


def frame_of(
    file: Path,
    images: Sequence[Path],
    shape: Sequence[int],
    *,
    slices: bool,
    n_frames: int,
    first: int | None = None,
) -> int | None:
    """Return the time index of a mask of one frame; None for a mask of all.

    Args:
        file: The mask.
        images: Several NIfTI files of the image, those of frames in order of time; empty for any other image.
        shape: Shape of the mask.
        slices: Whether each image is of one slice.
        n_frames: Frames of the cine.
        first: The number of the first frame that `--frames-from` names; None, taken as 0, if it is not given.

    Raises:
        ValueError: It is not clear which frame it is of, or there is no such frame.
    """
    if not slices and shape[3:] == (len(images),):
        return None  # also where the first frame has the subject's name
    named = [n for n, image in enumerate(images) if f"{stem_of(image)}_gt" == stem_of(file)]
    if named and not slices:
        shared = [_shared_folders(images[n], file) for n in named]
        if shared.count(max(shared)) > 1:
            raise ValueError(
                f"{file}: must be in a folder called as its image's: {len(named)} images have this name."
            )
        return named[shared.index(max(shared))]
    number = _number_of(file)
    if number is None:
        return None if slices else _in_folder_of(file, images)
    counted = _numbers_of(images)
    there = sorted({*counted}) if slices else counted
    if len(there) == n_frames:
        if there.count(number) != 1:
            raise ValueError(f"{file}: there must be one image of frame {number:02}.")
        return there.index(number)
    begin = first or 0
    if not begin <= number < begin + n_frames:
        more = ""
        if number == n_frames and first is None:
            more = " If the names of your masks count frames from 1: --frames-from 1."
        raise ValueError(
            f"{file}: frame (={number}) must be within {begin} to {begin + n_frames - 1}.{more}"
        )
    return number - begin


def _in_folder_of(mask: Path, images: Sequence[Path]) -> int | None:
    """Return the only image in the folder of a mask, or in one that the mask is called after, if each has its own."""
    folders = [image.parent.name for image in images]
    if len({*folders}) < len(images) or len(images) < 2:
        return None
    own = re.sub(r"(_sa)?_gt$", "", stem_of(mask), flags=re.IGNORECASE)
    for name in (mask.parent.name, own):
        if name in folders:
            return folders.index(name)
    return None


def _number_of(mask: Path) -> int | None:
    match = MASK.fullmatch(stem_of(mask))
    return int(match["frame"]) if match and match["frame"] else None


def _numbers_of(images: Sequence[Path]) -> list[int]:
    """Return the numbers of images called frame<number>, or in a folder each called so; empty unless all are."""
    folders = [image.parent.name for image in images]
    for names in (map(stem_of, images), folders if len({*folders}) == len(images) else ()):
        found = [match for match in map(_OF_IMAGE.search, names) if match]
        if len(found) == len(images):
            return [int(match[1]) for match in found]
    return []


def _shared_folders(image: Path, mask: Path) -> int:
    """Count the folders above two files that have the same names."""
    parents = zip(image.parts[-2::-1], mask.parts[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda names: names[0] == names[1], parents))


def counted_frames(task: CineTask) -> dict[Path, int]:
    """Return the masks of a subject whose names count frames, with the number; none where images have these numbers."""
    several = task.images if len(task.images) > 1 and stem_of(task.images[0]) else ()
    if _numbers_of(several):
        return {}
    of_images = {f"{stem_of(image)}_gt" for image in several}
    numbers = {mask: _number_of(mask) for mask in task.masks if stem_of(mask) not in of_images}
    return {mask: number for mask, number in numbers.items() if number is not None}


def refuse_counted_from_one(tasks: Sequence[CineTask]) -> None:
    """Refuse subjects whose masks can only be counted from 1, where nothing says how they count.

    Raises:
        ValueError: A mask has the number of the last frame, counted from 1, and none has the number 0.
    """
    counted = [(task, counted_frames(task)) for task in tasks if task.frames_from is None]
    if any(0 in numbers.values() for _, numbers in counted):
        return
    for task, numbers in counted:
        if numbers and max(numbers.values()) == _n_frames(task):
            mask = max(numbers, key=lambda mask: numbers[mask])
            raise ValueError(
                f"{mask}: frame (={numbers[mask]}) of {count_of(numbers[mask], 'frame')}: the names of masks seem to "
                "count frames from 1, which is --frames-from 1. If they count from 0, and this name is wrong: "
                "--frames-from 0."
            )


def _n_frames(task: CineTask) -> int:
    """Return the number of frames, as far as NIfTI's headers tell; else 0."""
    first = task.images[0]
    if not stem_of(first):
        return 0
    if len(task.images) > 1:
        return 0 if holds_one_slice(first) else len(task.images)
    try:
        return max(read_header(first)[0][3:], default=0)
    except ValueError:  # its own subject, whose reading says what is wrong
        return 0


def remarks_on_frames(tasks: Sequence[CineTask]) -> list[str]:
    """Say which frames masks belong to, on the first subject; a warning where they may count from another number."""
    counted = [(task, sorted({*counted_frames(task).values()})) for task in tasks]
    counted = [(task, numbers) for task, numbers in counted if numbers]
    if not counted:
        return []
    task, numbers = counted[0]
    every = {number for _, others in counted for number in others}
    frames = " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
    others = f" ({count_of(len(counted), 'subject')} in all)" if counted[1:] else ""
    said = (
        f"Masks of {task.subject} belong to frame{'s' * (len(numbers) > 1)} {frames}, counted from "
        f"{task.frames_from or 0}{others}."
    )
    if task.frames_from is not None or 0 in every:
        return [said]
    doubt = "WARNING: " if 1 in every else ""
    return [
        f"{doubt}{said} If the names of your masks count from 1, each is one frame late: convert with --frames-from 1. "
        "--frames-from 0 says that they count from 0."
    ]
