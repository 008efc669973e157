"""DICOM images grouped into acquisitions by their content; UIDs are only hints.

Images with the same orientation make a *plane*, those of a plane at the same distance a *slice*. The images of a
slice from one breath-hold make a *run*. A run may be in one series or in many. Several series are one run if their
phases complete each other, evenly and at one time. The same holds for studies: `pools` are the sets of images that
may be of one visit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, count, pairwise, starmap

import numpy as np

from nnunet_ssp.console import count_of
from nnunet_ssp.conversion.dicom.headers import Image
from nnunet_ssp.conversion.dicom.pixels import read_pixels
from nnunet_ssp.files.nifti import Array

MIN_FRAMES = 10  # M&Ms and ACDC have 12 and more; maps and late enhancement fewer
PARALLEL = 2.0  # degrees; breath-holds of one stack are copies of one planned orientation
SAME_SLICE = 0.5  # mm
ONE_TIME = 60.0  # s; a breath-hold, also where each of its images has a time of its own
# s between frames. The frames of a cine share one heartbeat; ten at this distance take longer than
# any heartbeat. Those of perfusion are one heartbeat apart.
HEARTBEAT = 0.3
SYSTOLE = 200.0  # ms; the frames of a cine cover more than that
# What frames are ordered by, from the best to the worst
CLOCKS = ("trigger", "temporal", "when", "number", "content")

MOST_MISSING = 4  # frames of a run; with more it is another sampling of the heartbeat

NO_ORDER = "frames without distinct times or numbers"


@dataclass(frozen=True, eq=False)
class SliceRun:
    """The frames of one slice in one breath-hold."""

    # In order of time
    images: tuple[Image, ...]
    # The clock of that order, one of `CLOCKS`; empty if there is no order
    clock: str
    plane: int
    # Within its plane, in the direction of the normal
    slice: int
    # Two images of one slice and phase that nothing tells apart
    conflict: tuple[Image, Image] | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """The properties that the runs of one stack share."""
        return (*kind_of(self.images[0]), len(self.images))

    @property
    def acquired(self) -> tuple[float, int, float]:
        """Sort key by the time of acquisition, as far as the headers tell."""
        series = self.images[0].series[1]
        return (
            max(image.when or 0 for image in self.images),
            int(series) if series.isdecimal() else 0,
            max(image.number or 0 for image in self.images),
        )

    @property
    def times(self) -> Array:
        """Numbers that order the frames."""
        return np.array([getattr(image, self.clock) for image in self.images], dtype=float)

    @property
    def normal(self) -> Array:
        """The direction across the slice, LPS+."""
        axis: Array = self.images[0].axes[2]
        return axis

    @property
    def beats_apart(self) -> float:
        """Seconds between frames where these are too many for a cine, or 0."""
        triggers = np.array([i.trigger for i in self.images if i.trigger is not None])
        if len(triggers) == len(self.images) and len(set(triggers)) > len(triggers) / 2:
            steps = np.diff(np.unique(triggers)) / 1000
        else:
            whens = np.array([i.when for i in self.images if i.when is not None])
            if len(whens) < len(self.images) or len(set(whens)) <= len(whens) / 2:
                return 0.0
            steps = np.diff(np.sort(whens))
        usual = float(np.median(steps)) if steps.size else 0.0
        return usual if usual >= HEARTBEAT else 0.0


def kind_of(image: Image) -> tuple[object, ...]:
    """Return the properties that the images of one stack share."""
    return (*image.shape, *(round(value, 3) for value in image.spacing), image.sequence)


def visit_of(image: Image) -> tuple[str, str]:
    """Return study and day, as the header has them."""
    return image.study, image.day


def without_copies(images: Sequence[Image]) -> tuple[list[Image], list[str]]:
    """Leave out copies of images, under whatever UIDs, and say how many.

    Copies agree in place, phase, time and pixels. Pixels are compared only where the headers agree. Of copies in
    several series that of the largest stays, so that a few images sent again as another series tear no hole in a stack.
    """
    sizes = Counter((image.study, image.series) for image in images)
    groups: dict[object, list[Image]] = {}
    informative = _with_known_phases(images)
    for image in images:
        phase = (image.trigger, image.temporal) if image in informative else image.number
        what = (image.position, image.directions, image.when, image.patient)
        groups.setdefault((*what, *kind_of(image), phase, image.problem), []).append(image)
    kept: set[Image] = set()
    for group in groups.values():
        group.sort(key=lambda image: -sizes[image.study, image.series])
        kept.update(group if len(group) == 1 else _distinct(group))
    copies = len(images) - len(kept)
    notes = [f"{copies} images occur twice; used once"] if copies else []
    return [image for image in images if image in kept], notes


def _with_known_phases(images: Iterable[Image]) -> set[Image]:
    """Return the images of slices whose headers tell phases apart."""
    places: dict[object, list[Image]] = {}
    for image in images:
        places.setdefault((image.position, image.directions, kind_of(image)), []).append(image)
    known = set()
    for members in places.values():
        phases = {(image.trigger, image.temporal) for image in members}
        if len(phases) >= MIN_FRAMES:
            known.update(members)
    return known


def _distinct(group: Sequence[Image]) -> list[Image]:
    """Return those images with different pixels among some with equal headers."""
    if group[0].problem:
        return list({(i.uid, i.series, i.number, i.frame): i for i in group}.values())
    found: list[tuple[Image, Array]] = []
    damaged = []
    for image in group:
        try:
            pixels = read_pixels([image])[image]
        except ValueError:  # images that are not needed may be damaged
            damaged.append(image)
            continue
        if not any(np.array_equal(pixels, other) for _, other in found):
            found.append((image, pixels))
    return [image for image, _ in found] or damaged[:1]


def pools(images: Sequence[Image]) -> list[list[Image]]:
    """Return sets of images that may be of one visit: by study and day, then wider ones.

    A study may cover several days if no slice and phase was acquired on two of them, and a visit
    may have several StudyInstanceUIDs.
    """
    cells: dict[object, list[Image]] = {}
    for image in images:
        cells.setdefault(visit_of(image), []).append(image)
    wide: dict[object, list[list[Image]]] = {}
    for cell in cells.values():
        if cell[0].study and _one_visit(i for i in images if i.study == cell[0].study):
            wide.setdefault(("study", cell[0].study), []).append(cell)
        wide.setdefault(("day", cell[0].day), []).append(cell)
    merged = [list(chain(*parts)) for parts in wide.values() if len(parts) > 1]
    return [*cells.values(), *merged]


def _one_visit(images: Iterable[Image]) -> bool:
    """Whether no slice and phase was acquired on two days."""
    days: dict[object, set[str]] = {}
    for image in images:
        place = (image.directions, image.position, kind_of(image), image.trigger, image.temporal)
        phase = image.number if image.trigger is image.temporal is None else None
        days.setdefault((*place, phase), set()).add(image.day)
    return all(len(found) == 1 for found in days.values())


# -- runs ------------------------------------------------------------------------------------------

_planes = count()


def find_runs(images: Iterable[Image]) -> list[SliceRun]:
    """Group the images of one visit into runs."""
    planes: list[list[Image]] = []
    for image in images:
        for plane in planes:
            if _parallel(plane[0], image):
                plane.append(image)
                break
        else:
            planes.append([image])
    return [run for plane in planes for run in _runs_of_plane(plane, next(_planes))]


def _parallel(image: Image, other: Image) -> bool:
    if image.directions == other.directions:
        return True
    cosines = (image.axes[:2] * other.axes[:2]).sum(axis=1)
    return bool((cosines > np.cos(np.radians(PARALLEL))).all())


def _runs_of_plane(images: Iterable[Image], plane: int) -> Iterator[SliceRun]:
    # Distances are measured along one normal: normals that differ by 2 degrees change them by mm.
    images = list(images)
    normal = images[0].axes[2]
    places = {image: float(normal @ image.position) for image in images}
    images.sort(key=lambda image: places[image])
    slices = [[images[0]]]
    for before, image in pairwise(images):
        if places[image] - places[before] > SAME_SLICE:
            slices.append([])
        slices[-1].append(image)
    breath_holds = [
        (number, members)
        for number, its_images in enumerate(slices)
        for kind in _by_kind(its_images)
        for members in _breath_holds(kind)
    ]
    usual = Counter(
        (kind_of(members[0]), len(members))
        for _, members in breath_holds
        if len(members) >= MIN_FRAMES
    )
    for number, members in breath_holds:
        kind = kind_of(members[0])
        lengths = [length for (other, length), _ in usual.most_common() if other == kind]
        yield from _in_time(members, plane, number, lengths[0] if lengths else 0)


def _by_kind(images: Iterable[Image]) -> list[list[Image]]:
    kinds: dict[object, list[Image]] = {}
    for image in images:
        kinds.setdefault(kind_of(image), []).append(image)
    return list(kinds.values())


def _breath_holds(images: Sequence[Image]) -> list[list[Image]]:
    """Part the images of one slice and kind by series, unless several series are one run."""
    series: dict[object, list[Image]] = {}
    for image in images:
        series.setdefault((image.study, image.series), []).append(image)
    if len(series) == 1 or _complete_each_other(images):
        return [list(images)]
    whole = [members for members in series.values() if len(members) >= MIN_FRAMES]
    fragments = [members for members in series.values() if len(members) < MIN_FRAMES]
    rest = list(chain(*fragments))
    if len(fragments) > 1 and len(rest) >= MIN_FRAMES:
        numbered = all(image.when == rest[0].when for image in rest)
        runs = list(_in_time(rest, 0, 0))
        if all(
            _complete_each_other(run.images)
            or (numbered and run.clock == "number" and np.ptp(np.diff(run.times)) == 0)
            for run in runs
        ):
            return [*whole, *(list(run.images) for run in runs)]
    return whole + fragments


def _complete_each_other(images: Sequence[Image]) -> bool:
    """Whether images show distinct phases of one heartbeat, evenly, and were acquired at one time."""
    whens = [image.when for image in images if image.when is not None]
    if len(images) < MIN_FRAMES or (whens and max(whens) - min(whens) > ONE_TIME):
        return False
    for clock, longest in (("trigger", 1000 * HEARTBEAT), ("temporal", 1.0)):
        times = [getattr(image, clock) for image in images]
        if None in times or len(set(times)) < len(times):
            continue
        steps = np.diff(np.sort(times))
        usual = float(np.median(steps))
        if clock == "trigger" and max(times) - min(times) < SYSTOLE:
            return False
        return usual <= longest and bool((np.abs(steps - usual) <= 0.3 * usual).all())
    return False


def _in_time(
    images: Sequence[Image], plane: int, number: int, usual: int = 0
) -> Iterator[SliceRun]:
    """Order the images of one slice by time.

    Where phases occur twice, one series has two breath-holds; these are parted, in order of
    acquisition. A single phase that occurs twice is no breath-hold but a wrong time or, with more
    images than the `usual` slice of the plane has, a conflict.
    """
    for clock in CLOCKS:
        times = [getattr(image, clock) for image in images]
        if None in times or (clock == "number" and _contradicted(images)):
            continue
        phases = set(times)
        if len(phases) == len(times):
            ordered = sorted(images, key=lambda image: getattr(image, clock))
            yield SliceRun(tuple(ordered), clock, plane, number)
            return
        if clock not in ("trigger", "temporal") or len(phases) < MIN_FRAMES:
            continue
        repeats, conflict = _repeats(images, clock)
        lengths = {len(repeat) for repeat in repeats}
        if len(lengths) == 1 or min(lengths) >= MIN_FRAMES:
            for repeat in repeats:
                yield SliceRun(tuple(repeat), clock, plane, number, conflict)
            return
        if conflict or len(phases) == usual < len(images):
            pair = conflict or _same_phase(images, clock)
            yield SliceRun(tuple(repeats[0]), "", plane, number, pair)
            return
    yield SliceRun(tuple(images), "", plane, number)


def _contradicted(images: Sequence[Image]) -> bool:
    """Whether a dimension that may be time has another order than the frames of enhanced files."""
    ordered = sorted(images, key=lambda image: image.number or 0)
    for indices in zip(*[image.dimensions for image in ordered], strict=False):
        numbers = [int(index) for index in indices if index.isdecimal()]
        if len(set(numbers)) == len(images) and numbers != sorted(numbers):
            return True
    return False


def _repeats(
    images: Iterable[Image], clock: str
) -> tuple[list[list[Image]], tuple[Image, Image] | None]:
    """Return breath-holds in order of acquisition, and two images that could be of either of two."""
    repeats: list[list[Image]] = []
    latest: dict[float, Image] = {}
    occurred: Counter[float] = Counter()
    conflict = None
    for image in sorted(images, key=lambda image: (image.when or 0, image.number or 0)):
        phase = getattr(image, clock)
        before = latest.get(phase)
        if before and (before.when, before.number) == (image.when, image.number):
            conflict = conflict or (before, image)
        latest[phase] = image
        repeat = occurred[phase]
        occurred[phase] += 1
        if repeat == len(repeats):
            repeats.append([])
        repeats[repeat].append(image)
    return [sorted(r, key=lambda image: getattr(image, clock)) for r in repeats], conflict


def _same_phase(images: Sequence[Image], clock: str) -> tuple[Image, Image]:
    ordered = sorted(images, key=lambda image: getattr(image, clock))
    return next(
        (one, other)
        for one, other in pairwise(ordered)
        if getattr(one, clock) == getattr(other, clock)
    )


# -- phases ----------------------------------------------------------------------------------------


def phases_of(runs: Sequence[SliceRun], n_frames: int) -> list[list[int] | None]:
    """Return the phase of each frame, counted alike in all runs of a stack; None where it is unknown.

    Whole runs, of `n_frames`, have their frames in order of time. If a run has other times than the
    rest, or lacks frames, its times tell its phases.
    """
    whole = [run for run in runs if len(run.images) == n_frames]
    ranks = list(range(n_frames))
    clocks = {run.clock for run in runs}
    if not whole or len(clocks) > 1 or clocks <= {"when", "content"}:
        gaps = _gaps(whole) if clocks == {"when"} else {}
        return [gaps.get(run, ranks) if run in whole else None for run in runs]
    if clocks == {"trigger"}:
        return _phases_by_trigger(runs, whole, n_frames)
    return _phases_by_number(runs, whole, n_frames)


def _gaps(whole: Sequence[SliceRun]) -> dict[SliceRun, list[int]]:
    """Return the phases of runs by the times of their frames, if these are even apart from missing frames.

    Times are only compared within a run: its first frame is taken for the first phase. The result is empty if no frame
    is missing, if all runs lack the same ones, or if times are uneven.
    """
    found = {}
    for run in whole:
        steps = np.diff(run.times) / float(np.median(np.diff(run.times)))
        if np.abs(steps - np.rint(steps)).max() > 0.2 or steps.sum() >= len(steps) + MOST_MISSING:
            return {}
        found[run] = [0, *np.cumsum(np.rint(steps).astype(int)).tolist()]
    return found if len({tuple(phases) for phases in found.values()}) > 1 else {}


def _phases_by_trigger(
    runs: Sequence[SliceRun], whole: Sequence[SliceRun], n_frames: int
) -> list[list[int] | None]:
    """Return phases by trigger delays, in units of the run's own frame duration, which varies with the heart rate."""
    duration = {run: float(np.median(np.diff(run.times))) for run in runs}
    first = float(np.median([run.times[0] / duration[run] for run in whole]))
    delays = np.array([run.times / duration[run] for run in whole])
    as_ranked = bool((np.abs(delays - np.median(delays, axis=0)) <= 0.75).all())
    usual = float(np.median([duration[run] for run in whole]))
    found: list[list[int] | None] = []
    for run in runs:
        steps = np.rint(np.diff(run.times) / duration[run]).astype(int)
        start = round(run.times[0] / duration[run] - first)
        phases = [start, *(start + np.cumsum(steps)).tolist()]
        if run in whole:
            found.append(list(range(n_frames)) if as_ranked else phases)
            continue
        # Fewer frames of another duration sample the heartbeat otherwise; they are no part of it.
        same = abs(np.log(duration[run] / usual)) < abs(np.log(n_frames / len(run.images))) / 2
        fits = min(phases) >= 0 and max(phases) < n_frames and len({*phases}) == len(phases)
        found.append(phases if same and fits else None)
    return found


def _phases_by_number(
    runs: Sequence[SliceRun], whole: Sequence[SliceRun], n_frames: int
) -> list[list[int] | None]:
    """Return phases by TemporalPositionIndex or InstanceNumber, which may continue from slice to slice."""
    numbers = [run.times.astype(int) for run in runs]
    steps = {int(step) for run in whole for step in np.diff(run.times)}
    as_ranked: list[list[int] | None] = [
        list(range(n_frames)) if run in whole else None for run in runs
    ]
    if whole[0].clock == "temporal" and len({tuple(run.times) for run in whole}) == 1:
        ranks = {int(number): rank for rank, number in enumerate(whole[0].times)}
        known = [[ranks.get(int(n), -1) for n in its_numbers] for its_numbers in numbers]
        return [phases if min(phases) >= 0 else None for phases in known]
    step = min(steps)
    starts = [int(run.times[0]) for run in whole]
    spread = max(starts) - min(starts)
    if len(steps) == 1 and len(whole) == len(runs):
        if step == 1 and 0 < spread < MOST_MISSING:  # they restart in each slice
            return [(its_numbers - min(starts)).tolist() for its_numbers in numbers]
        return as_ranked
    if whole[0].clock == "temporal" and len(whole) == len(runs):
        return [its_numbers.tolist() for its_numbers in numbers]
    if step > 1 and spread < step and not any(larger % step for larger in steps):
        most = n_frames + (0 if len(steps) == 1 else MOST_MISSING - 1)
        known = [((its_numbers - min(starts)) // step).tolist() for its_numbers in numbers]
        return [phases if 0 <= min(phases) <= max(phases) < most else None for phases in known]
    start = min(int(its_numbers[0]) for its_numbers in numbers)
    for length in range(n_frames, n_frames + (1 if len(steps) == 1 else MOST_MISSING)):
        for before in range(3):  # frames that the first slice lacks
            blocks = [_in_block(its_numbers, start - before, length) for its_numbers in numbers]
            if all(blocks[runs.index(run)] for run in whole):
                return blocks
    if whole[0].clock == "number" and any(starmap(_out_of_step, combinations(whole, 2))):
        return [None] * len(runs)
    return as_ranked


def _out_of_step(run: SliceRun, other: SliceRun) -> bool:
    """Whether the numbers of one series count neither slice by slice nor phase by phase, and so tell no time."""
    if run.images[0].series != other.images[0].series:
        return False
    first, last = sorted([run.times, other.times], key=lambda times: float(times[0]))
    by_slice = first[-1] < last[0]
    by_phase = (np.maximum(first, last)[:-1] < np.minimum(first, last)[1:]).all()
    return not (by_slice or by_phase)


def _in_block(numbers: Array, start: int, length: int) -> list[int] | None:
    """Return phases by numbers that continue from slice to slice; None where they belong to two slices."""
    blocks = {int(number - start) // length for number in numbers}
    return ((numbers - start) % length).tolist() if len(blocks) == 1 else None


def image_name(image: Image) -> str:
    """Name an image in a message: its file, and the frame within an enhanced one."""
    return f"{image.file}" if image.frame is None else f"{image.file} (frame {image.frame})"


def size_in_words(runs: Sequence[SliceRun]) -> str:
    """Return the size of runs as `10 slices x 25 frames`."""
    frames = max(len(run.images) for run in runs)
    return f"{count_of(len(runs), 'slice')} x {count_of(frames, 'frame')}"
