"""Images that a short-axis stack leaves out: other series, repeated runs, and slices that lack frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nnunet_ssp.console import count_of, some
from nnunet_ssp.conversion.dicom.acquisitions import (
    MIN_FRAMES,
    NO_ORDER,
    SliceRun,
    visit_of,
)
from nnunet_ssp.conversion.dicom.headers import Image
from nnunet_ssp.conversion.dicom.volumes import (
    ACROSS,
    UNEVEN,
    angle_between,
    angle_to_heart,
    places_of,
)
from nnunet_ssp.conversion.subjects import SEVERAL_VISITS

ANOTHER_DAY, ANOTHER_STUDY = "another day", "another study"


def left_out(
    images: Iterable[Image], runs: Iterable[SliceRun], stack: Sequence[SliceRun], chosen: bool
) -> tuple[list[str], dict[str, int]]:
    """Say which series are not in the stack.

    Returns:
        A line on each kind of series, and on slices acquired again; and the number of series by reason.
    """
    repeated = 0
    unused: dict[tuple[str, tuple[str, str]], list[int]] = {}  # frames of each run
    visits: list[Image] = []  # of others than the stack's, one of each run
    for run in runs:
        if run in stack:
            continue
        why = _why_left_out(run, stack, chosen)
        if why:
            unused.setdefault((why, run.images[0].series), []).append(len(run.images))
            visits += run.images[:1] if why in (ANOTHER_DAY, ANOTHER_STUDY) else []
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
    if visits:
        taken = [run.images[0] for run in stack]
        notes.append(
            f"{SEVERAL_VISITS}: taken is {_where(taken, visits)}, left out {_where(visits, taken)}; --series takes "
            "another"
        )
    return notes, dict(Counter(why for why, _ in [*unused, *problems]))


def _where(images: Iterable[Image], others: Iterable[Image]) -> str:
    """Name the folders of images, and the numbers of their series where the folders do not tell them from others."""
    images = list(images)
    folders = {image.file.parent.name for image in images}
    if not folders & {image.file.parent.name for image in others}:
        return f"folder {some(folders, 3)}"
    return f"series {some({image.series[1] or image.series[0] for image in images}, 3)}"


def _why_left_out(run: SliceRun, stack: Sequence[SliceRun], chosen: bool) -> str:
    """Say why a run is left out; empty for a repeated run of a slice of the stack."""
    if len(run.images) < MIN_FRAMES:
        return f"fewer than {MIN_FRAMES} frames"
    if run.conflict:
        return "two images of one slice and phase"
    if not run.clock:
        return NO_ORDER
    if run.beats_apart and not chosen:
        return f"frames {run.beats_apart:.1f} s apart, as in perfusion: no cine"
    if (angle_between(run, stack[0]) if stack else angle_to_heart(run)) > ACROSS:
        return "long axis"
    if not stack:
        return "too few slices"
    visits = {visit_of(image) for stacked in stack for image in stacked.images}
    if not visits & {visit_of(image) for image in run.images}:
        studies = {study for study, _ in visits}
        return ANOTHER_DAY if run.images[0].study in studies else ANOTHER_STUDY
    if run.plane != stack[0].plane:
        return "another plane"
    if difference := difference_from_stack(run, stack[0]):
        return f"parallel to the short axis, {difference}"
    numbers = {stacked.slice for stacked in stack}
    return "" if run.slice in numbers else "parallel to the short axis, at other places"


def difference_from_stack(run: SliceRun, stacked: SliceRun) -> str:
    """Say how a run differs from those of the stack; empty if it is of their kind."""
    mine, others = run.images[0], stacked.images[0]
    if not run.clock:
        return NO_ORDER
    if mine.shape != others.shape:
        return "matrix {} x {}, not {} x {}".format(*mine.shape, *others.shape)
    if len(run.images) != len(stacked.images):
        return f"{count_of(len(run.images), 'frame')}, not {len(stacked.images)}"
    if run.kind != stacked.kind:
        return "another sequence" if mine.sequence != others.sequence else "another pixel spacing"
    return ""


def lost_slices(runs: Iterable[SliceRun], stack: Sequence[SliceRun]) -> dict[int, SliceRun]:
    """Find slices beyond the ends of the stack that only their number of frames keeps out of it.

    Returns:
        The run of each, by its number of slices after the first of the stack.
    """
    if len(stack) < 2:
        return {}
    first, n_frames = stack[0].images[0], len(stack[0].images)
    spacing = places_of(stack)[-1] / (len(stack) - 1)
    lost = {}
    for run in sorted(runs, key=lambda run: run.acquired):
        like_stack = run.plane == stack[0].plane and run.kind[:-1] == stack[0].kind[:-1]
        # A series with fewer than half the frames has another purpose.
        if not like_stack or not run.clock or 2 * len(run.images) < n_frames:
            continue
        offset = np.subtract(run.images[0].position, first.position)
        steps = float(offset @ first.axes[2]) / spacing
        number = round(steps)
        if abs(steps - number) <= UNEVEN and not 0 <= number < len(stack):
            lost[number] = run
    return lost


def name_lost(lost: Mapping[int, SliceRun], stack: Sequence[SliceRun]) -> list[str]:
    """Warn about lost slices; they are counted from 1, together with those of the stack."""
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
