"""The short-axis cine among the DICOM images of one subject.

Only position, orientation and time decide, never a description. Images with the same orientation
make a *plane*, those of a plane at the same distance a *slice*, and the images that one series has
of a slice a *run*: one breath-hold, a cine if it has `MIN_FRAMES` frames. The short-axis stack is
the largest set of cine runs on parallel, evenly spaced slices that cuts the heart across; the runs
may be in one series (GE, Philips) or in a series for each slice (Siemens). Long-axis views,
localisers, late enhancement, maps and phase images are thus left out, and the notes say so.

Nothing is interpolated. Of a slice that was acquired twice, the later run is taken; runs whose
matrix, pixel spacing, sequence or number of frames is not the stack's are left out, and a stack
with a gap is refused.

The only header values handed on are manufacturer, model and field strength, and a digest of PatientID.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from nnunet_ssp.dicom import NO_POSITION, Image, count_of, read_headers, read_pixels
from nnunet_ssp.geometry import TOWARDS_APEX, base_of_stack
from nnunet_ssp.nifti import Array

MIN_FRAMES = 10  # M&Ms and ACDC have 12 and more; maps and late enhancement fewer
MIN_SLICES = 3
PARALLEL = 2.0  # degrees; breath-holds of one stack are copies of one planned orientation
SAME_SLICE = 0.5  # mm
UNEVEN = 0.1  # of the spacing: by how much distances between slices may differ
# Degrees from the anatomical axis of the heart to the slices' normal. Long-axis views have 90;
# stacks along an axis of the body, as headers without true geometry have them, 55.
ACROSS = 60.0

_NO_ORDER = "frames without distinct times or numbers"


@dataclass
class ShortAxis:
    """The short-axis cine of one subject.

    The axes are those of the DICOM images: X along a row, Y along a column, Z in the direction of
    their cross product.
    """

    voxels: Array  # (X, Y, Z, T); integers as stored, or float32 where a rescale slope applies
    affine: Array  # (4, 4), voxel to world in mm, RAS+
    vendor: str  # empty where the header has none, like the next two
    scanner: str
    field_strength: str  # T
    patient: str  # a digest of PatientID, empty where there is none
    warnings: list[str]  # slices of the stack that are lost
    notes: list[str]


@dataclass(frozen=True)
class Choice:
    """The short-axis cine of one subject, found by the headers alone."""

    runs: Sequence[_Run]  # one for each slice, in the order of Z
    patient: str  # like the following as in `ShortAxis`
    warnings: list[str]
    notes: list[str]

    @property
    def n_frames(self) -> int:
        """Frames of each slice."""
        return len(self.runs[0].images)


@dataclass(frozen=True, eq=False)
class _Run:
    """The frames of one slice in one breath-hold."""

    images: tuple[Image, ...]  # in order of time
    clock: str  # what that order is from
    plane: int
    slice: int  # within its plane, in the direction of the normal

    @property
    def kind(self) -> tuple[object, ...]:
        """What the runs of one stack have in common."""
        first = self.images[0]
        spacing = tuple(round(value, 3) for value in first.spacing)
        return (*first.shape, spacing, first.sequence, len(self.images))

    @property
    def acquired(self) -> tuple[str, int, float]:
        """Sorts runs by the time at which they were acquired, as far as the headers tell."""
        first = self.images[0]
        series = first.series[1]
        return (
            max(image.acquired for image in self.images),
            int(series) if series.isdecimal() else 0,
            max(image.number or 0 for image in self.images),
        )


def read_short_axis(files: Sequence[Path], where: Path, hint: str = "") -> ShortAxis:
    """Read the short-axis cine of one subject.

    Args:
        files: All files of the subject, DICOM or not.
        where: The subject's folder, for messages.
        hint: What to add to the message where all images are of one series, and it is no stack.

    Raises:
        ValueError: There is no short-axis cine or an incomplete one, the images are those of
            several patients, or a file is damaged. Names the file or folder and the rule.
    """
    choice = choose_short_axis(files, where, hint)
    pixels = read_pixels(image for run in choice.runs for image in run.images)
    slices = [np.stack([pixels[image].T for image in run.images], axis=-1) for run in choice.runs]
    scanner = choice.runs[0].images[0].scanner
    return ShortAxis(
        np.stack(slices, axis=2),
        _affine(choice.runs),
        *scanner,
        choice.patient,
        choice.warnings,
        choice.notes,
    )


def choose_short_axis(files: Sequence[Path], where: Path, hint: str = "") -> Choice:
    """Find the short-axis cine of one subject without reading pixels.

    Arguments and errors are those of `read_short_axis`, except that damaged pixels go unseen.
    """
    images, notes = read_headers(files)
    if not images:
        raise ValueError(f"{where}: no DICOM image here.{_listed(notes)}")
    patients = {image.patient for image in images} - {""}
    if len(patients) > 1:
        raise ValueError(
            f"{where}: must hold the images of one patient, not of {len(patients)} (PatientID)."
        )
    runs = _find_runs([image for image in images if not image.problem])
    stack = _choose_stack(runs)
    lost = _lost_slices(runs, stack)
    notes += _left_out(images, [run for run in runs if run not in lost.values()], stack)
    warnings = _name_lost(lost, stack)
    if fault := _fault(stack, images, runs):
        if stack or len({image.series for image in images}) > 1:
            hint = ""
        raise ValueError(f"{where}: {fault}{_listed(warnings + notes)}{hint and ' ' + hint}")
    notes += _doubts(stack)
    return Choice(stack, _digest(*patients), warnings, notes)


def _digest(patient: str = "") -> str:
    """Tells whether ids are equal without being one; who can guess an id can still confirm it."""
    return hashlib.blake2b(patient.encode(), digest_size=5).hexdigest() if patient else ""


# --- runs -------------------------------------------------------------------------------------


def _find_runs(images: Iterable[Image]) -> list[_Run]:
    planes: list[list[Image]] = []
    for image in images:
        for plane in planes:
            if plane[0].study == image.study and _parallel(plane[0], image):
                plane.append(image)
                break
        else:
            planes.append([image])
    return [run for number, plane in enumerate(planes) for run in _runs_of_plane(plane, number)]


def _parallel(image: Image, other: Image) -> bool:
    if image.directions == other.directions:
        return True
    cosines = (image.axes[:2] * other.axes[:2]).sum(axis=1)
    return bool((cosines > np.cos(np.radians(PARALLEL))).all())


def _runs_of_plane(images: Iterable[Image], plane: int) -> Iterator[_Run]:
    # Distances along one normal: along each image's own, within 2 degrees, they differ by mm.
    images = list(images)
    normal = images[0].axes[2]
    places = {image: float(normal @ image.position) for image in images}
    images.sort(key=lambda image: places[image])
    slices = [[images[0]]]
    for before, image in pairwise(images):
        if places[image] - places[before] > SAME_SLICE:
            slices.append([])
        slices[-1].append(image)
    for number, members in enumerate(slices):
        series: dict[tuple[object, ...], list[Image]] = {}
        for image in members:
            key = (image.series, image.shape, image.spacing, image.sequence)
            series.setdefault(key, []).append(image)
        for members_of_series in series.values():
            clock, repeats = _in_time(members_of_series)
            for repeat in repeats:
                yield _Run(tuple(repeat), clock, plane, number)


def _in_time(images: Sequence[Image]) -> tuple[str, list[list[Image]]]:
    """Order the images of one slice in one series by time.

    Returns:
        What the order is from, empty if there is none, and the images; apart, in order of
        acquisition, those of two breath-holds in one series, where trigger times occur twice. A
        single time that occurs twice is no breath-hold, but a wrong time.
    """
    for clock in ("trigger", "acquired", "number"):
        times = [getattr(image, clock) for image in images]
        if None in times or "" in times:
            continue
        if len(set(times)) == len(times):
            return clock, [sorted(images, key=lambda image: getattr(image, clock))]
        if clock == "trigger" and len(set(times)) >= MIN_FRAMES:
            repeats: list[list[Image]] = []
            occurred: Counter[float | None] = Counter()
            for image in sorted(images, key=lambda image: (image.acquired, image.number or 0)):
                repeat = occurred[image.trigger]
                occurred[image.trigger] += 1
                if repeat == len(repeats):
                    repeats.append([])
                repeats[repeat].append(image)
            lengths = {len(repeat) for repeat in repeats}
            if len(lengths) == 1 or min(lengths) >= MIN_FRAMES:
                return clock, [sorted(repeat, key=lambda i: i.trigger or 0) for repeat in repeats]
    return "", [list(images)]


# --- the stack --------------------------------------------------------------------------------


def _choose_stack(runs: Iterable[_Run]) -> list[_Run]:
    """The short-axis stack, a run for each slice in the direction of the normal; empty if there is none."""
    groups: dict[tuple[object, ...], list[_Run]] = {}
    for run in runs:
        if run.clock and len(run.images) >= MIN_FRAMES and _angle_to_heart(run) <= ACROSS:
            groups.setdefault((run.plane, run.kind), []).append(run)
    stacks = [stack for group in groups.values() if len(stack := _assemble(group)) >= MIN_SLICES]

    def preference(stack: Sequence[_Run]) -> tuple[object, ...]:
        known = base_of_stack(_affine(stack)) != "unknown"
        return known, len(stack), max(run.acquired for run in stack)

    return max(stacks, default=[], key=preference)


def _angle_to_heart(run: _Run) -> float:
    """Degrees between the normal, of either sign, and the axis of the heart."""
    normal = run.images[0].axes[2] * _LPS_TO_RAS
    return float(np.degrees(np.arccos(min(abs(normal @ TOWARDS_APEX), 1.0))))


def _assemble(group: Sequence[_Run]) -> list[_Run]:
    """A stack from the runs of a kind in a plane: of each slice the run acquired last.

    Where slices were repeated at places in between, all runs together are uneven. Then a series
    that alone reaches as far is the stack, the larger or later one.
    """
    stack = _last_runs(group)
    if not _gap(stack):
        return stack
    by_series: dict[tuple[str, str], list[_Run]] = {}
    for run in group:
        by_series.setdefault(run.images[0].series, []).append(run)
    alone = [_last_runs(runs) for runs in by_series.values() if len(runs) >= MIN_SLICES]
    even = [
        runs
        for runs in alone
        if not _gap(runs) and _places(stack)[-1] <= _places(runs)[-1] * len(runs) / (len(runs) - 1)
    ]
    return max(even, default=stack, key=lambda runs: (len(runs), max(r.acquired for r in runs)))


def _last_runs(runs: Iterable[_Run]) -> list[_Run]:
    last = {run.slice: run for run in sorted(runs, key=lambda run: run.acquired)}
    return [last[number] for number in sorted(last)]


def _places(stack: Sequence[_Run]) -> Array:
    """Distances along the first slice's normal, in mm, relative to the first slice."""
    first = stack[0].images[0]
    positions = np.array([run.images[0].position for run in stack])
    return (positions - first.position) @ first.axes[2]


def _gap(stack: Sequence[_Run]) -> int:
    """The first slice, counted from 1, whose distance to the one before is unlike the others."""
    distances = np.diff(_places(stack))
    if not distances.size:
        return 0
    usual = np.median(distances)
    uneven = np.flatnonzero(np.abs(distances - usual) > UNEVEN * usual)
    return int(uneven[0]) + 1 if uneven.size else 0


def _fault(stack: Sequence[_Run], images: Iterable[Image], runs: Iterable[_Run]) -> str:
    """Why a stack cannot be converted, or empty."""
    if not stack:
        return (
            f"no short-axis cine, which has {MIN_SLICES} or more parallel slices of {MIN_FRAMES} or "
            "more frames."
        )
    series = {image.series for run in stack for image in run.images}
    for image in images:
        if image.series in series and image.problem == NO_POSITION:
            return f"{image.file} has no slice position, but others of its series have."
    gap = _gap(stack)
    if not gap:
        return ""
    before, after = stack[gap - 1], stack[gap]
    distances = np.diff(_places(stack))
    text = (
        f"the slices must be evenly spaced, {np.median(distances):.1f} mm as most of the "
        f"{len(stack)} are, but slices {gap} and {gap + 1} are {distances[gap - 1]:.1f} mm apart."
    )
    for run in runs:
        if run.plane == before.plane and before.slice < run.slice < after.slice:
            text += f" The slice between ({run.images[0].file}) has {_difference(run, before)}."
    return text


def _difference(run: _Run, stacked: _Run) -> str:
    """In what a run differs from those of the stack; empty if it is of their kind."""
    mine, others = run.images[0], stacked.images[0]
    if not run.clock:
        return _NO_ORDER
    if mine.shape != others.shape:
        return "matrix {} x {}, not {} x {}".format(*mine.shape, *others.shape)
    if len(run.images) != len(stacked.images):
        return f"{count_of(len(run.images), 'frame')}, not {len(stacked.images)}"
    if run.kind != stacked.kind:
        return "another sequence" if mine.sequence != others.sequence else "another pixel spacing"
    return ""


_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def _affine(stack: Sequence[_Run]) -> Array:
    first = stack[0].images[0]
    between_rows, between_columns = first.spacing
    between_slices = _places(stack)[-1] / (len(stack) - 1)
    affine = np.eye(4)
    affine[:3, :3] = first.axes.T * [between_columns, between_rows, between_slices]
    affine[:3, 3] = first.position
    affine[:3] *= _LPS_TO_RAS[:, None]
    return affine


_CLOCK_NOTES = {
    "acquired": "frames in the order of AcquisitionTime: there are no distinct TriggerTimes",
    "number": "frames in the order of InstanceNumber: there are no distinct TriggerTimes or AcquisitionTimes",
}


def _doubts(stack: Sequence[_Run]) -> list[str]:
    """What the user should know about the stack."""
    clocks = {run.clock for run in stack}
    notes = [note for clock, note in _CLOCK_NOTES.items() if clock in clocks]
    first = stack[0].images[0]
    offsets = np.array([run.images[0].position for run in stack]) - first.position
    shift = np.abs(offsets @ first.axes[:2].T).max()
    if shift > max(first.spacing):
        notes.append(f"slices shifted against each other by up to {shift:.0f} mm in their plane")
    if base_of_stack(_affine(stack)) == "unknown":
        notes.append(
            f"the slices' normal is {_angle_to_heart(stack[0]):.0f} degrees off the usual axis of the heart: "
            "make sure that this is the short axis"
        )
    return notes


# --- what is left out -------------------------------------------------------------------------


def _lost_slices(runs: Iterable[_Run], stack: Sequence[_Run]) -> dict[int, _Run]:
    """The slices beyond the ends of the stack that only their number of frames keeps out of it.

    Returns:
        The run of each, by how many slices it is after the first of the stack.
    """
    if not stack:
        return {}
    first, n_frames = stack[0].images[0], len(stack[0].images)
    spacing = _places(stack)[-1] / (len(stack) - 1)
    lost = {}
    for run in sorted(runs, key=lambda run: run.acquired):
        like_stack = run.plane == stack[0].plane and run.kind[:-1] == stack[0].kind[:-1]
        # With fewer than half the frames it is a series of another purpose.
        if not like_stack or not run.clock or 2 * len(run.images) < n_frames:
            continue
        offset = np.subtract(run.images[0].position, first.position)
        steps = float(offset @ first.axes[2]) / spacing
        number = round(steps)
        if abs(steps - number) <= UNEVEN and not 0 <= number < len(stack):
            lost[number] = run
    return lost


def _name_lost(lost: Mapping[int, _Run], stack: Sequence[_Run]) -> list[str]:
    """The warning about lost slices; they are counted from 1, with those of the stack."""
    if not lost:
        return []
    n_frames = len(stack[0].images)
    before = -min(0, *lost)
    names = ", ".join(str(number + before + 1) for number in sorted(lost))
    found = sorted({len(run.images) for run in lost.values()})
    each = " in each" if len(lost) > 1 else ""
    if found == [n_frames - 1]:
        why = f"one frame is missing{each}"
    else:
        why = f"{' or '.join(map(str, found))} frames{each}, not {n_frames}"
    return [f"{len(lost)} of {len(lost) + len(stack)} slices left out ({names}): {why}"]


def _left_out(images: Iterable[Image], runs: Iterable[_Run], stack: Sequence[_Run]) -> list[str]:
    """One line on each kind of series that is not in the stack, and on slices acquired again."""
    repeated = 0
    unused: dict[tuple[str, tuple[str, str]], list[int]] = {}  # frames of each run
    for run in runs:
        if run in stack:
            continue
        why = _why_left_out(run, stack)
        if why:
            unused.setdefault((why, run.images[0].series), []).append(len(run.images))
        else:
            repeated += 1
    problems = Counter((image.problem, image.series) for image in images if image.problem)
    series = Counter(
        [
            f"of {count_of(len(frames), 'slice')} x {count_of(max(frames), 'frame')}: {why}"
            for (why, _), frames in unused.items()
        ]
        + [f"of {count_of(n, 'image')}: {problem}" for (problem, _), n in problems.items()]
    )
    notes = [f"left out {n} series {text}" for text, n in sorted(series.items())]
    if repeated:
        notes.append(f"{count_of(repeated, 'slice')} acquired again: the last run is used")
    return notes


def _why_left_out(run: _Run, stack: Sequence[_Run]) -> str:
    """The reason; empty for a repeated run of a slice of the stack."""
    if len(run.images) < MIN_FRAMES:
        return f"fewer than {MIN_FRAMES} frames"
    if not run.clock:
        return _NO_ORDER
    if _angle_to_heart(run) > ACROSS:
        return "long axis"
    if not stack:
        return "too few slices"
    if run.images[0].study != stack[0].images[0].study:
        return "another study"
    if run.plane != stack[0].plane:
        return "another plane"
    if difference := _difference(run, stack[0]):
        return f"parallel to the short axis, {difference}"
    numbers = {stacked.slice for stacked in stack}
    return "" if run.slice in numbers else "parallel to the short axis, at other places"


def _listed(texts: Iterable[str]) -> str:
    joined = "; ".join(texts)
    return f" There: {joined}." if joined else ""
