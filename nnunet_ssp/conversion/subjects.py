"""What a converter knows of a subject: a task, its cine, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypedDict, TypeVar

from nnunet_ssp.cohort.cases import (
    Case,
    case_name,
)
from nnunet_ssp.files.grids import Array


class Common(TypedDict, total=False):
    """Arguments that the `convert` of every converter takes besides its own.

    `dataset_conversion.combined.convert_sources` describes them.
    """

    test: str | Path | None
    add: Iterable[str]
    overwrite: bool
    workers: int | None
    dry_run: bool
    pseudonyms: bool


@dataclass(frozen=True)
class Task:
    """One subject to convert; converters add what their reader needs."""

    subject: str
    split: str  # train or test
    files: tuple[Path, ...]  # the input: a resumed run converts again what changed here

    @property
    def has_masks(self) -> bool:
        """Whether there are files with labels; what is in them only reading tells."""
        return any("_gt." in file.name and file.is_file() for file in self.files)


@dataclass
class Cine:
    """One subject as read and checked.

    All frames are of shape `(X, Y, Z)`, axis order and slice order as in the source.
    """

    frames: Mapping[int, Array]  # by time index; integers or floating point
    labels: Mapping[int, Array]  # uint8, only the labelled frames
    affine: Array  # (4, 4), voxel to world in mm, RAS+, from `place_stack` or `clean_affine`
    cases: list[Case]  # what to write; labelled cases have a frame in `labels`
    corrections: list[str] = field(default_factory=list)  # what was wrong and is now right
    warnings: list[str] = field(default_factory=list)  # what of the subject is lost
    notes: list[str] = field(default_factory=list)  # what the user should know
    patient: str = ""  # a digest that is equal for subjects of one patient; empty if unknown


@dataclass
class Outcome:
    """What became of one subject."""

    subject: str
    split: str  # empty when unknown
    cases: list[Case] = field(default_factory=list)
    corrections: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    patient: str = ""  # as in `Cine`
    refused: str = ""  # the reason


@dataclass
class Look:
    """What the headers tell about a subject."""

    subject: str
    split: str  # empty when unknown
    has_masks: bool = False
    n_frames: int = 0  # 0 also when nothing tells
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    patient: str = ""  # as in `Cine`
    refused: str = ""  # the reason


TaskT = TypeVar("TaskT", bound=Task)


@dataclass(frozen=True)
class Renamed(Generic[TaskT]):
    """Subjects under the names of the dataset, some of which may be pseudonyms.

    Attributes:
        tasks: The subjects.
        refused: Those refused before reading, with the reason.
        names: The user's name of each subject that has a pseudonym.
        key: The file that holds these names, if there are any.
    """

    tasks: Sequence[TaskT]
    refused: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    key: Path | None = None


def make_cases(
    task: Task,
    phases: Mapping[int, str],
    n_frames: int,
    *,
    source: str,
    base: str,
    vendor: str,
    frames: Iterable[int] | None = None,
    first: int = 0,
    centre: str = "",
    scanner: str = "",
    field: str = "",
    pathology: str = "",
) -> list[Case]:
    """The rows of `cases.csv` of a subject: all frames for training, the labelled for testing.

    Args:
        task: The subject.
        phases: ED or ES of the labelled frames, by time index.
        n_frames: Frames of the cine.
        source: As in `cases.csv`, like the arguments that are not explained here.
        base: See `base_of_stack`.
        vendor: The vendor.
        frames: The frames that there are, by default all.
        first: The source's number of the first frame.
        centre: The centre.
        scanner: The scanner.
        field: Field strength in T.
        pathology: The pathology.
    """
    return [
        Case(
            case=case_name(task.subject, frame),
            subject=task.subject,
            source=source,
            source_frame=frame + first,
            split=task.split,
            frame=frame,
            n_frames=n_frames,
            phase=phases.get(frame, ""),
            base=base,
            vendor=vendor,
            centre=centre,
            scanner=scanner,
            field=field,
            pathology=pathology,
        )
        for frame in sorted(range(n_frames) if frames is None else frames)
        if task.split == "train" or frame in phases
    ]
