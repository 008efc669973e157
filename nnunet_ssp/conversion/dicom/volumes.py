"""Stacks of parallel slices from the runs of a visit: evenly spaced, of whole volumes.

Nothing is interpolated. If a slice was acquired twice, the later run is taken. If slices lack
frames, the most voxels that form whole volumes are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nnunet_ssp.conversion.dicom.acquisitions import (
    MIN_FRAMES,
    SliceRun,
    find_runs,
    kind_of,
    phases_of,
    pools,
    size_in_words,
    visit_of,
)
from nnunet_ssp.conversion.dicom.headers import Image
from nnunet_ssp.conversion.geometry import TOWARDS_APEX
from nnunet_ssp.files.nifti import Array

MIN_SLICES = 3
UNEVEN = 0.1  # of the spacing; largest difference of distances between slices
# Degrees from the anatomical axis of the heart to the slices' normal: 90 for long-axis views. It is 55 for
# stacks along an axis of the body, as in headers without true geometry.
ACROSS = 60.0


@dataclass(frozen=True, eq=False)
class Stack:
    """A run for each slice, in the direction of the normal."""

    runs: list[SliceRun]
    # All runs of the visit, with those of the stack
    visit: list[SliceRun]
    # Warnings about lost frames
    warnings: list[str] = field(default_factory=list)
    # The images of these frames
    lost: set[Image] = field(default_factory=set)
    # Whether frames after a lost one are kept
    renumbered: bool = False
    fault: str = ""

    @property
    def angle(self) -> float:
        """Degrees between the slices' normal and the usual axis of the heart."""
        return angle_to_heart(self.runs[0])

    @property
    def voxels(self) -> int:
        """Slices times frames; 0 for a stack with a gap."""
        whole = not self.fault and not gap_in(self.runs)
        return len(self.runs) * len(self.runs[0].images) if whole else 0

    @property
    def acquired(self) -> tuple[float, int, float]:
        """Sort key of stacks by time."""
        return max(run.acquired for run in self.runs)

    @property
    def name(self) -> str:
        """The stack's name for the user, without a text of the header."""
        first = min((image for run in self.runs for image in run.images), key=lambda i: str(i.file))
        number = f"series {first.series[1]}, " if first.series[1].isdecimal() else ""
        return f"{number}{size_in_words(self.runs)}, {first.file.parent.name}/{first.file.name}"


# -- making stacks ---------------------------------------------------------------------------------


def find_stacks(images: Sequence[Image], chosen: bool) -> tuple[list[Stack], list[list[SliceRun]]]:
    """Find all stacks, and the cine runs of each plane.

    A stack of several studies or days counts only if it is larger than those of one.
    """
    stacks: list[Stack] = []
    planes: dict[int, list[SliceRun]] = {}
    for pool in pools(images):
        runs = find_runs(pool)
        cines = [run for run in runs if is_cine(run, chosen)]
        groups: dict[tuple[object, ...], list[SliceRun]] = {}
        for run in cines:
            groups.setdefault((run.plane, run.kind), []).append(run)
        found = [_whole_volumes(_assemble(group), runs, chosen) for group in groups.values()]
        if len({visit_of(image) for image in pool}) == 1:
            stacks += found
            for run in cines:
                planes.setdefault(run.plane, []).append(run)
            continue
        for stack in found:
            if len({visit_of(image) for run in stack.runs for image in run.images}) == 1:
                continue
            rivals = [other for other in stacks if _share_images(stack, other)]
            if stack.voxels > max((other.voxels for other in rivals), default=0):
                stacks = [other for other in stacks if other not in rivals] + [stack]
    covered = {image for runs in planes.values() for run in runs for image in run.images}
    for stack in stacks:
        if not any(image in covered for run in stack.runs for image in run.images):
            planes[stack.runs[0].plane] = stack.runs
    return stacks, list(planes.values())


def is_cine(run: SliceRun, chosen: bool) -> bool:
    """Whether a run has an order in time, enough frames, and, unless the user chose it, all in one heartbeat."""
    return bool(run.clock) and len(run.images) >= MIN_FRAMES and (chosen or not run.beats_apart)


def _share_images(stack: Stack, other: Stack) -> bool:
    mine = {image for run in stack.runs for image in run.images}
    return any(image in mine for run in other.runs for image in run.images)


def _assemble(group: Sequence[SliceRun]) -> list[SliceRun]:
    """Make a stack from the runs of a kind in a plane, with the last run of each slice.

    If slices were repeated at places in between, all runs together are uneven. Then a series that
    alone reaches as far is the stack, the larger or later one.
    """
    stack = _last_runs(group)
    if not gap_in(stack):
        return stack
    by_series: dict[tuple[str, str], list[SliceRun]] = {}
    for run in group:
        by_series.setdefault(run.images[0].series, []).append(run)
    alone = [_last_runs(runs) for runs in by_series.values() if len(runs) >= MIN_SLICES]
    even = [
        runs
        for runs in alone
        if not gap_in(runs)
        and places_of(stack)[-1] <= places_of(runs)[-1] * len(runs) / (len(runs) - 1)
    ]
    return max(even, default=stack, key=lambda runs: (len(runs), max(r.acquired for r in runs)))


def _last_runs(runs: Iterable[SliceRun]) -> list[SliceRun]:
    last = {run.slice: run for run in sorted(runs, key=lambda run: run.acquired)}
    return [last[number] for number in sorted(last)]


def places_of(stack: Sequence[SliceRun]) -> Array:
    """Return distances from the first slice along its normal, in mm."""
    first = stack[0].images[0]
    positions = np.array([run.images[0].position for run in stack])
    return (positions - first.position) @ first.axes[2]


def gap_in(stack: Sequence[SliceRun]) -> int:
    """Return the first slice, counted from 1, whose distance to the next is unlike the others; 0 if there is none."""
    distances = np.diff(places_of(stack))
    if not distances.size:
        return 0
    usual = np.median(distances)
    uneven = np.flatnonzero(np.abs(distances - usual) > UNEVEN * usual)
    return int(uneven[0]) + 1 if uneven.size else 0


def _whole_volumes(base: list[SliceRun], runs: Sequence[SliceRun], chosen: bool) -> Stack:
    """Complete a stack with slices that lack frames, and keep the phases that all its slices have.

    As many slices beyond its ends are taken as give the most voxels.
    """
    n_frames = len(base[0].images)
    kind, there = kind_of(base[0].images[0]), {run.slice for run in base}
    lacking = {
        run.slice: run
        for run in sorted(runs, key=lambda run: run.acquired)
        if run.plane == base[0].plane
        and run.slice not in there
        and kind_of(run.images[0]) == kind
        and n_frames <= 2 * len(run.images) < 2 * n_frames
        and is_cine(run, chosen)
    }
    row = sorted([*base, *lacking.values()], key=lambda run: run.slice)
    phases = dict(zip(row, phases_of(row, n_frames), strict=True))
    first, last = row.index(base[0]), row.index(base[-1])
    best: tuple[int, int, list[SliceRun], list[int]] = (0, 0, [], [])
    for begin in range(first + 1):
        for end in range(last + 1, len(row) + 1):
            for window in (row[begin:end], [r for r in row[begin:end] if r.slice in there]):
                common = set.intersection(*[set(phases[run] or ()) for run in window])
                even = len(window) == 1 or not gap_in(window)
                if even and len(common) >= MIN_FRAMES:
                    size = len(window) * len(common)
                    best = max(
                        best, (size, len(window), window, sorted(common)), key=lambda b: b[:2]
                    )
    _, _, window, common_phases = best
    if not window:
        shared = set.intersection(*[set(phases[run] or ()) for run in base])
        fault = ""
        if base[0].clock == "number" and not any(phases[run] for run in base):
            fault = (
                "nothing but InstanceNumber, or the place in the file, tells the order of the frames, and it "
                "follows neither slice by slice nor phase by phase; see "
                f"{base[0].images[0].file} and {base[-1].images[0].file}."
            )
        elif len(shared) < MIN_FRAMES:
            fault = (
                f"the slices' frames are of different phases: of {n_frames} all slices share only "
                f"{len(shared)}, and {MIN_FRAMES} are needed; see {base[0].images[0].file} and "
                f"{base[-1].images[0].file}."
            )
        return Stack(base, list(runs), fault=fault)
    cut = {run: _with_phases(run, phases[run] or [], common_phases) for run in window}
    every = sorted(set().union(*[phases[run] or () for run in window]))
    return Stack(
        [cut[run] for run in window],
        [cut.get(run, run) for run in runs],
        _lost_frames([phases[run] or [] for run in window], every, common_phases),
        {i for run in window for i in run.images} - {i for run in cut.values() for i in run.images},
        renumbered=every[: len(common_phases)] != common_phases,
    )


def _with_phases(run: SliceRun, phases: Sequence[int], kept: Sequence[int]) -> SliceRun:
    if len(kept) == len(phases):
        return run
    images = tuple(i for i, phase in zip(run.images, phases, strict=True) if phase in kept)
    return replace(run, images=images)


def _lost_frames(
    phases: Sequence[Sequence[int]], every: Sequence[int], kept: Sequence[int]
) -> list[str]:
    """Warn about frames that some slices lack; they are counted from 1."""
    lost = [number for number, phase in enumerate(every, 1) if phase not in kept]
    if not lost:
        return []
    lacking = [number for number, its in enumerate(phases, 1) if len(its) < len(every)]
    names = ", ".join(map(str, lost))
    slices = "slice" if len(lacking) == 1 else "slices"
    return [
        f"{len(lost)} of {len(every)} frames left out ({names}): not in {slices} "
        f"{', '.join(map(str, lacking))}"
    ]


# -- geometry --------------------------------------------------------------------------------------


_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def affine_of(stack: Sequence[SliceRun]) -> Array:
    """Return the affine of a stack, voxel to world in mm, RAS+."""
    first = stack[0].images[0]
    between_rows, between_columns = first.spacing
    between_slices = first.thickness or 1.0
    if len(stack) > 1:
        between_slices = places_of(stack)[-1] / (len(stack) - 1)
    affine = np.eye(4)
    affine[:3, :3] = first.axes.T * [between_columns, between_rows, between_slices]
    affine[:3, 3] = first.position
    affine[:3] *= _LPS_TO_RAS[:, None]
    return affine


def angle_between(run: SliceRun, other: SliceRun) -> float:
    """Return the degrees between the normals, of either sign."""
    return float(np.degrees(np.arccos(min(abs(float(run.normal @ other.normal)), 1.0))))


def angle_to_heart(run: SliceRun) -> float:
    """Return the degrees between the normal, of either sign, and the axis of the heart."""
    normal = run.normal * _LPS_TO_RAS
    return float(np.degrees(np.arccos(min(abs(normal @ TOWARDS_APEX), 1.0))))
