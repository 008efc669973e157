"""How far a run is: frames and the time left, and what is done when it is stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from tqdm import tqdm

from nnunet_ssp.console import count_of
from nnunet_ssp.dataset_conversion.cine_files import CineTask, stem_of
from nnunet_ssp.files.nifti import read_header
from nnunet_ssp.reporting.wording import duration

T = TypeVar("T")
SHORT = 20.0  # seconds left of which nothing is said


def n_frames_of(task: CineTask) -> int | None:
    """Return a subject's number of frames by its NIfTI headers; None of DICOM, which is counted as it is read."""
    if not stem_of(task.images[0]):
        return None
    try:
        shape, _ = read_header(task.images[0])
    except ValueError:  # reading it says what is wrong
        return None
    if max(shape[3:], default=1) > 1:
        return int(max(shape[3:]))
    if len(task.images) > 1 and 1 in shape[:3]:  # files of single slices
        return None
    return len(task.images)


class FrameCount:
    """Say how many frames there are to segment, and how long they take.

    Args:
        frames: Of each subject to segment, how many frames it has; None where it is not known.
        kept: Of each of these subjects, how many are there from an earlier run.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        frames: Mapping[str, int | None],
        kept: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._frames, self._kept, self._clock = dict(frames), dict(kept), clock
        # The subject that is being segmented, its frames, and how many of them are done
        self.subject, self.n_frames, self.done = "", 0, 0
        self._segmented, self._seconds = 0, 0.0

    def introduction(self) -> str:
        """Return in words what there is to segment; empty where there is nothing."""
        if not self._frames:
            return ""
        known = [number for number in self._frames.values() if number is not None]
        said = []
        if known:
            said.append(f"{count_of(sum(known), 'frame')} of {count_of(len(known), 'subject')}")
        if unknown := len(self._frames) - len(known):
            said.append(f"{count_of(unknown, 'subject')} whose frames are counted on reading")
        done = (
            f"; {count_of(kept, 'frame')} done before" if (kept := sum(self._kept.values())) else ""
        )
        return f"To segment: {', '.join(said)}{done}"

    def through(
        self, subject: str, n_frames: int, missing: Sequence[int], segmented: Iterable[T]
    ) -> Iterator[tuple[int, T]]:
        """Yield the frames of a subject as they come, under a bar, with the time left after the first of the run.

        Args:
            subject: Its name.
            n_frames: All its frames.
            missing: The numbers of the frames to come.
            segmented: These frames.
        """
        self.subject, self.n_frames, self.done = subject, n_frames, n_frames - len(missing)
        self._frames.pop(subject, None)
        self._kept.pop(subject, None)
        bar = {"initial": self.done, "total": n_frames, "unit": "frame", "leave": False}
        frames = iter(segmented)
        with tqdm(desc=f"Segmenting {subject}", file=sys.stderr, **bar) as shown:
            for number in missing:
                begun = self._clock()
                frame = next(frames)
                self._seconds += self._clock() - begun
                yield number, frame
                self.done, self._segmented = self.done + 1, self._segmented + 1
                shown.update()
                if self._segmented == 1 and (left := self.time_left()):
                    tqdm.write(f"One frame took {duration(self._seconds)}: {left}", sys.stderr)
        self.subject = ""

    def time_left(self) -> str:
        """Return in words how long the frames to come take; empty where they are few, or none was segmented."""
        known = [number for number in self._frames.values() if number is not None]
        usual = sum(known) / len(known) if known else self.n_frames
        later = [usual if number is None else number for number in self._frames.values()]
        to_come = self.n_frames - self.done + sum(later) - sum(self._kept.values())
        if not self._segmented or to_come <= 0:
            return ""
        seconds = self._seconds / self._segmented * to_come
        if seconds < SHORT:
            return ""
        return f"about {duration(seconds)} left for {count_of(round(to_come), 'frame')}"

    def forget(self, subject: str) -> None:
        """Count a subject no longer that is done or refused."""
        self._frames.pop(subject, None)
        self._kept.pop(subject, None)
        if subject == self.subject:
            self.subject, self.n_frames, self.done = "", 0, 0

    def under_way(self) -> str:
        """Return in words how far the subject is that is being segmented; empty where there is none."""
        return (
            f", and {self.done} of {self.n_frames} frames of {self.subject}" if self.subject else ""
        )
