"""Folders of one patient's phases or frames, `alice_ED` and `alice_ES`: one subject, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_ssp.console import some
from nnunet_ssp.dataset_conversion.cine_files import CineTask, Found, n_frames_of, stem_of
from nnunet_ssp.dataset_conversion.phase_names import (
    PHASES,
    is_of_frame,
    phase_of,
    time_of,
    without_frame,
)


def join_phases(found: Sequence[Found], root: Path) -> list[Found]:
    """Make one subject of those whose names differ only in the phase or the number of a frame.

    Args:
        found: The subjects as their files and folders tell them.
        root: The folder that they were found in.

    Returns:
        The subjects. Those of one frame each are joined, in the order of time; where one has a whole cine, or DICOM,
        they are refused as one, since each alone would be a subject, perhaps on both sides of a fold.
    """
    groups: dict[str, list[Found]] = {}
    for entry in found:
        name = without_frame(entry.name) if is_of_frame(entry.name) else entry.name
        groups.setdefault(name, []).append(entry)
    joined = []
    for name, entries in groups.items():
        apart = any(is_of_frame(entry.name) for entry in entries)
        joined += [_joined(name, entries, root)] if apart and entries[1:] else entries
    return joined


def _joined(name: str, entries: Sequence[Found], root: Path) -> Found:
    entries = sorted(entries, key=lambda entry: time_of(entry.name))
    names = [entry.name for entry in entries]
    others = (*names, *(other for entry in entries for other in entry.others))
    times = {time_of(entry.name) for entry in entries}
    images = [image for entry in entries for image in entry.images]
    single = len(images) == len(entries) and all(map(_is_frame, images))
    if name and single and len(times) == len(entries) and all(map(is_of_frame, names)):
        note = f"one subject of {some(names)}, whose names differ only in the phase or frame"
        return Found(name, root, tuple(images), note, others=others)
    called = name or "the patient"
    return Found(
        name or some(names),
        root,
        (),
        f"{some(names)} differ only in the phase or frame: one patient as several subjects? Frames of one: all in one "
        f"folder {called}, called {called}_frame<number>.nii.gz; of whole cines keep one. Several patients: names that "
        "differ in more than that.",
        others=others,
    )


def _is_frame(image: Path) -> bool:
    return bool(stem_of(image)) and n_frames_of(image) == 1


def named_phases(task: CineTask, n_frames: int) -> dict[str, int]:
    """Return the time index of each phase that the names of a subject's files or folders tell.

    Args:
        task: The subject.
        n_frames: Frames of its cine; names tell phases only where each frame has a file of its own.
    """
    if len(task.images) != n_frames or not stem_of(task.images[0]):
        return {}
    told = [phase_of(stem_of(image)) or phase_of(image.parent.name) for image in task.images]
    return {phase: told.index(phase) for phase in PHASES if told.count(phase) == 1}
