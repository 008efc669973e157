"""The short-axis cine among the DICOM images of one subject.

Only position, orientation and time decide, never a description. A stack is the largest set of
cine runs (see `acquisitions`) on parallel, evenly spaced slices. The runs may be in one series (GE,
Philips) or in a series for each slice (Siemens). The short axis is the stack that cuts the usual
heart across. In an unusual heart it is the stack that is perpendicular to the long axes, which are
the planes of few slices, or it is the only stack. This leaves out long-axis views, localisers, late
enhancement, perfusion, maps and phase images; the notes say so.

Nothing is interpolated. If a slice was acquired twice, the later run is taken. Runs with another
matrix, pixel spacing or sequence are left out, and a stack with a gap is refused. If slices lack
frames, the most voxels that form whole volumes are kept.

The only header values that a dataset gets are manufacturer, model, field strength and a digest of PatientID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ssp.console import count_of
from nnunet_ssp.conversion.dicom.acquisitions import (
    MIN_FRAMES,
    SliceRun,
    find_runs,
    image_name,
    kind_of,
    pools,
    without_copies,
)
from nnunet_ssp.conversion.dicom.headers import NO_POSITION, Image, read_headers
from nnunet_ssp.conversion.dicom.inventory import Inventory, take_inventory
from nnunet_ssp.conversion.dicom.left_out import (
    difference_from_stack,
    left_out,
    lost_slices,
    name_lost,
)
from nnunet_ssp.conversion.dicom.pixels import read_pixels
from nnunet_ssp.conversion.dicom.volumes import (
    ACROSS,
    MIN_SLICES,
    Stack,
    affine_of,
    angle_between,
    angle_to_heart,
    find_stacks,
    gap_in,
    places_of,
)
from nnunet_ssp.conversion.geometry import base_of_stack
from nnunet_ssp.files.nifti import Array

USUAL = 45.0  # as in `base_of_stack`
# The short axis of a heart that points to the right is 71 degrees off; larger angles are those of long axes.
UNUSUAL = 80.0
FEW_SLICES = 3  # at most, in a long-axis view
SMALL = 5  # slices; a larger stack may be the short axis, whatever the size of another


@dataclass
class ShortAxis:
    """The short-axis cine of one subject.

    The axes are those of the DICOM images: X along a row, Y along a column, Z in the direction of
    their cross product.
    """

    # (X, Y, Z, T); integers as stored, or float32 where a rescale slope applies
    voxels: Array
    # (4, 4), voxel to world in mm, RAS+
    affine: Array
    # Empty if the header has none, like the next two
    vendor: str
    scanner: str
    # T
    field_strength: str
    # A digest of PatientID, empty where there is none
    patient: str
    # Slices of the stack that are lost, in words
    warnings: list[str]
    notes: list[str]
    # Beats per minute
    heart_rate: float | None
    # s, from one frame to the next
    frame_time: float | None
    # By slice and frame, where the voxels come from
    images: Sequence[Sequence[Image]]
    inventory: Inventory


@dataclass(frozen=True)
class Choice:
    """The short-axis cine of one subject, found by the headers alone."""

    # One run for each slice, in the order of Z
    runs: Sequence[SliceRun]
    # This and the following as in `ShortAxis`
    patient: str
    warnings: list[str]
    notes: list[str]
    inventory: Inventory

    @property
    def n_frames(self) -> int:
        """Frames of each slice."""
        return len(self.runs[0].images)


def read_short_axis(
    files: Sequence[Path], where: Path, hint: str = "", *, chosen: bool = False, masks: bool = False
) -> ShortAxis:
    """Read the short-axis cine of one subject.

    Args:
        files: All files of the subject, DICOM or not.
        where: The subject's folder, for messages.
        hint: Text to add to the error if all images are of one series, and it is no whole stack.
        chosen: The user says that the files are the short axis: anything unusual is a warning.
        masks: There are masks, whose names count the frames.

    Raises:
        ValueError: There is no short-axis cine or an incomplete one, the images are those of
            several patients, or a file is damaged. Names the file or folder and the rule.
    """
    choice = choose_short_axis(files, where, hint, chosen=chosen, masks=masks)
    pixels = read_pixels(image for run in choice.runs for image in run.images)
    slices = [np.stack([pixels[image].T for image in run.images], axis=-1) for run in choice.runs]
    scanner = choice.runs[0].images[0].scanner
    return ShortAxis(
        np.stack(slices, axis=2),
        affine_of(choice.runs),
        *scanner,
        choice.patient,
        choice.warnings,
        choice.notes,
        *_beat(choice.runs),
        [run.images for run in choice.runs],
        choice.inventory,
    )


def _beat(runs: Sequence[SliceRun]) -> tuple[float | None, float | None]:
    """Return the heart rate per minute and the time of a frame in s, as far as the headers tell."""
    intervals = [i.interval for run in runs for i in run.images if i.interval is not None]
    times = [[i.trigger for i in run.images if i.trigger is not None] for run in runs]
    steps = np.concatenate([np.diff(row) for row in times])
    step = float(np.median(steps)) / 1000 if steps.size else 0.0
    return 60_000 / float(np.median(intervals)) if intervals else None, step or None


def choose_short_axis(
    files: Sequence[Path], where: Path, hint: str = "", *, chosen: bool = False, masks: bool = False
) -> Choice:
    """Find the short-axis cine of one subject; only images that may be copies have their pixels read.

    Arguments and errors are those of `read_short_axis`, except that damaged pixels go unseen.
    """
    images, notes = read_headers(files)
    if not images:
        raise ValueError(f"{where}: no NIfTI or DICOM image here.{_there(notes)}")
    patients = {image.patient for image in images} - {""}
    if len(patients) > 1:
        raise ValueError(
            f"{where}: must hold the images of one patient, not of {len(patients)} (PatientID)."
        )
    every = images
    images, copies = without_copies(images)
    notes += copies
    usable = [image for image in images if not image.problem]
    found, rivals = _choose_stack(usable, alone=not hint, chosen=chosen)
    stack = found.runs if found else []
    runs = _all_runs(usable, found)
    lost = lost_slices(runs, stack)
    reasons: dict[str, int] = {}
    if not rivals:
        others = [run for run in runs if run not in lost.values()]
        said, reasons = left_out(images, others, stack, chosen)
        notes += said
    warnings = [*(found.warnings if found else []), *name_lost(lost, stack)]
    if fault := (found.fault if found else rivals) or _fault(stack, images, runs):
        whole = stack and not (found and found.fault)
        if whole or rivals or len({image.series for image in images}) > 1:
            hint = ""
        raise ValueError(f"{where}: {fault}{_there(warnings + notes)}{hint and ' ' + hint}")
    if masks and found and found.renumbered:
        raise ValueError(
            f"{where}: {'; '.join(warnings)}. Frames are numbered anew without them, so that the masks' "
            "numbers no longer hold: add the missing files, or leave out the masks."
        )
    return Choice(
        stack,
        _patient_digest(*patients),
        warnings + _concerns(stack),
        notes + _notes_on(stack),
        take_inventory(every, [run.images for run in stack], reasons),
    )


def _all_runs(images: Sequence[Image], found: Stack | None) -> list[SliceRun]:
    """Return the runs of the stack's visit, and those of all other images."""
    runs = list(found.visit) if found else []
    covered = {image for run in runs for image in run.images} | (found.lost if found else set())
    for cell in pools(images):
        rest = [image for image in cell if image not in covered]
        covered.update(rest)
        runs += find_runs(rest)
    return runs


def _patient_digest(patient: str = "") -> str:
    """Return a digest that tells patients apart; whoever guesses an id can still confirm it."""
    return hashlib.blake2b(patient.encode(), digest_size=5).hexdigest() if patient else ""


# -- the stack -------------------------------------------------------------------------------------


def _choose_stack(
    images: Sequence[Image], *, alone: bool, chosen: bool
) -> tuple[Stack | None, str]:
    """Return the short-axis stack; without one, why two candidates cannot be told apart, or nothing.

    Args:
        images: Images without a problem.
        alone: No other folder is of the same patient.
        chosen: The user says that this is the short axis.
    """
    stacks, planes = find_stacks(images, chosen)
    large = [stack for stack in stacks if len(stack.runs) >= MIN_SLICES]
    if chosen:
        return max(stacks, default=None, key=lambda s: (s.voxels, s.acquired)), ""
    across = [stack for stack in large if stack.angle <= ACROSS]
    unusual = [stack for stack in large if stack.angle > ACROSS]
    if across:
        best = max(across, key=lambda s: (_known(s), len(s.runs), not s.lost, s.acquired))
        if not _known(best):  # at this angle a stack along an axis of the body lies as well
            return _tell_apart([stack for stack in large if stack.angle <= UNUSUAL], [], planes)
        better = [stack for stack in unusual if _outweighs(stack, best, planes)]
        return max(better, default=best, key=lambda s: _evidence(s, planes)), ""
    few = [stack for stack in stacks if stack not in large and stack.angle <= USUAL]
    few = [stack for stack in few if _evidence(stack, planes)[1] == 0]
    if unusual:
        return _tell_apart(unusual, few, planes)
    # A single slice may be one of a stack whose others are in other folders.
    few = [stack for stack in few if len(stack.runs) > 1 or alone or len(planes) > 1]
    few.sort(key=lambda stack: (len(stack.runs), stack.acquired), reverse=True)
    if len(few) > 1 and len(few[0].runs) == len(few[1].runs) and not _same_plane(*few[:2]):
        return None, _not_told_apart(*few[:2])
    return (few[0], "") if few else (None, "")


def _known(stack: Stack) -> bool:
    return stack.angle <= USUAL


def _evidence(stack: Stack, planes: Iterable[Sequence[SliceRun]]) -> tuple[int, int]:
    """Count the planes of few slices that are perpendicular to a stack, as long axes are, and those oblique to it."""
    perpendicular = oblique = 0
    for plane in planes:
        n_slices = len({run.slice for run in plane})
        angle = angle_between(stack.runs[0], plane[0])
        if angle <= 15 or n_slices > min(FEW_SLICES, max(len(stack.runs) - 1, 2)):
            continue
        perpendicular += angle >= ACROSS
        oblique += angle < 50
    return perpendicular, oblique


def _outweighs(stack: Stack, best: Stack, planes: Sequence[Sequence[SliceRun]]) -> bool:
    """Whether the other planes say that an unusual stack, not the best of the usual ones, is the short axis."""
    mine, its = _evidence(stack, planes), _evidence(best, planes)
    if _known(best) and (its[0] or not its[1] or len(stack.runs) < len(best.runs)):
        return False
    return mine[0] >= 2 and mine[1] == 0 and mine[0] > its[0]


def _tell_apart(
    unusual: Sequence[Stack], few: Sequence[Stack], planes: Sequence[Sequence[SliceRun]]
) -> tuple[Stack | None, str]:
    """Choose among stacks none of which lies where the short axis of the usual heart does."""

    def weight(stack: Stack) -> tuple[object, ...]:
        perpendicular, oblique = _evidence(stack, planes)
        return perpendicular - oblique, len(stack.runs), not stack.lost, stack.acquired

    best = max(unusual, key=weight)
    perpendicular, oblique = _evidence(best, planes)
    for stack in unusual:
        if _same_plane(best, stack):
            continue
        its = _evidence(stack, planes)
        rival = len(stack.runs) > SMALL or 2 * len(stack.runs) > len(best.runs)
        if perpendicular - oblique <= its[0] - its[1] and rival:
            return None, _not_told_apart(best, stack)
    if few and perpendicular < 2:
        return None, _not_told_apart(best, few[0])
    return best, ""


def _same_plane(stack: Stack, other: Stack) -> bool:
    return angle_between(stack.runs[0], other.runs[0]) < 15


def _not_told_apart(stack: Stack, other: Stack) -> str:
    return (
        f"two cines may be the short axis: ({stack.name}) and ({other.name}). Choose with --series "
        "and the series number, the SeriesInstanceUID or a part of the folder's name."
    )


def _fault(stack: Sequence[SliceRun], images: Iterable[Image], runs: Sequence[SliceRun]) -> str:
    """Say why a stack cannot be converted; empty if it can."""
    if not stack:
        return (
            f"no short-axis cine, which has {MIN_SLICES} or more parallel slices of {MIN_FRAMES} or "
            "more frames."
        )
    series = {image.series for run in stack for image in run.images}
    for image in images:
        if image.series in series and image.faulty:
            if image.problem == NO_POSITION:
                return f"{image.file} has no slice position, but others of its series have."
            return f"{image.file}: {image.problem}, unlike others of its series."
    if pair := _conflict(stack, runs):
        return (
            f"{image_name(pair[0])} and {image_name(pair[1])} show the same slice and phase with different "
            "pixels, and nothing tells which is later; remove one."
        )
    if len(stack) == 1 and not stack[0].images[0].thickness:
        return f"{stack[0].images[0].file}: no SliceThickness, which a single slice needs."
    gap = gap_in(stack)
    if not gap:
        return ""
    before, after = stack[gap - 1], stack[gap]
    distances = np.diff(places_of(stack))
    text = (
        f"the slices must be evenly spaced, {np.median(distances):.1f} mm as most of the "
        f"{len(stack)} are, but slices {gap} and {gap + 1} are {distances[gap - 1]:.1f} mm apart."
    )
    for run in runs:
        if run.plane == before.plane and before.slice < run.slice < after.slice:
            text += f" The slice between ({run.images[0].file}) has {difference_from_stack(run, before)}."
    return text


def _conflict(stack: Sequence[SliceRun], runs: Iterable[SliceRun]) -> tuple[Image, Image] | None:
    """Find two images of the same slice and phase, neither of which is the later one."""
    stacked = {run.slice: run for run in stack}
    for run in runs:
        if run.plane != stack[0].plane or kind_of(run.images[0]) != kind_of(stack[0].images[0]):
            continue
        if run.conflict:
            return run.conflict
        rival = stacked.get(run.slice)
        if rival and rival is not run and run.kind == rival.kind and _at_one_time(run, rival):
            return rival.images[0], run.images[0]
    return None


def _at_one_time(run: SliceRun, other: SliceRun) -> bool:
    """Whether neither the time nor the series tells which of two runs is the later one."""
    if run.images[0].series == other.images[0].series:
        return run.acquired == other.acquired
    return run.acquired[:2] == other.acquired[:2]


_CLOCK_NOTES = {
    "temporal": "frames in the order of their temporal position: there are no distinct TriggerTimes",
    "when": "frames in the order of AcquisitionTime: there are no distinct TriggerTimes",
    "number": "frames in the order of InstanceNumber: there are no distinct TriggerTimes or AcquisitionTimes",
    "content": "frames in the order of ContentTime: there are no distinct TriggerTimes, AcquisitionTimes or "
    "InstanceNumbers",
}


def _concerns(stack: Sequence[SliceRun]) -> list[str]:
    """Say what makes it doubtful that a stack is a usable short-axis cine."""
    concerns = []
    if len(stack) < MIN_SLICES:
        concerns.append(f"only {count_of(len(stack), 'slice')}")
    if seconds := max(run.beats_apart for run in stack):
        concerns.append(
            f"frames {seconds:.1f} s apart: perfusion, or another series that is no cine"
        )
    return concerns


def _notes_on(stack: Sequence[SliceRun]) -> list[str]:
    """Say what the user should know about the stack."""
    clocks = {run.clock for run in stack}
    notes = [note for clock, note in _CLOCK_NOTES.items() if clock in clocks]
    images = [image for run in stack for image in run.images]
    if any(image.inverted for image in images):
        notes.append("MONOCHROME1, whose large values are dark, converted to MONOCHROME2")
    for what, uids in (
        ("StudyInstanceUIDs", {image.study for image in images}),
        ("days", {image.day for image in images}),
    ):
        if len(uids) > 1:
            notes.append(
                f"images of {len(uids)} {what} that complete each other, taken as one stack"
            )
    first = stack[0].images[0]
    offsets = np.array([run.images[0].position for run in stack]) - first.position
    shift = np.abs(offsets @ first.axes[:2].T).max()
    if shift > max(first.spacing):
        notes.append(f"slices shifted against each other by up to {shift:.0f} mm in their plane")
    if base_of_stack(affine_of(stack)) == "unknown":
        notes.append(
            f"the slices' normal is {angle_to_heart(stack[0]):.0f} degrees off the usual axis of the heart: "
            "make sure that this is the short axis"
        )
    return notes


def _there(texts: Iterable[str]) -> str:
    joined = "; ".join(texts)
    return f" There: {joined}." if joined else ""
