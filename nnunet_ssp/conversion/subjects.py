"""A subject in a conversion: the task, its cine, and the outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar, get_args

from nnunet_ssp.cohort.cases import (
    Case,
    case_name,
)
from nnunet_ssp.files.grids import Array

SEVERAL_VISITS = (
    "several exams"  # begins a note on a folder with more than one, of which one was taken
)

TestFrames = Literal["labelled", "all"]
TEST_FRAMES: tuple[TestFrames, ...] = get_args(TestFrames)


class Common(TypedDict, total=False):
    """Arguments that the `convert` of every converter takes besides its own.

    `dataset_conversion.combined.convert_sources` describes them.
    """

    test: str | Path | None
    test_frames: TestFrames
    add: Iterable[str]
    overwrite: bool
    workers: int | None
    dry_run: bool
    keep_ids: bool
    count_refused: Callable[[int], None] | None


@dataclass(frozen=True)
class Task:
    """One subject to convert; converters add what their reader needs."""

    subject: str
    # `train` or `test`
    split: str
    # The input; a resumed run converts a subject again if one of them changed
    files: tuple[Path, ...]
    # The frames of a test subject to convert; of one without labels they are all
    test_frames: TestFrames = field(default="labelled", kw_only=True)

    @property
    def needs_labels(self) -> bool:
        """Whether the subject is refused without labels: a dataset that has them for its test lacks a file."""
        return self.split == "test" and self.test_frames == "labelled"

    @property
    def has_masks(self) -> bool:
        """Whether there are files with labels, which may turn out to be empty."""
        return any("_gt." in file.name and file.is_file() for file in self.files)


@dataclass
class Cine:
    """One subject as read and checked.

    All frames are of shape `(X, Y, Z)`, axis order and slice order as in the source.
    """

    # By time index; integers or floating point
    frames: Mapping[int, Array]
    # uint8, only the labelled frames
    labels: Mapping[int, Array]
    # (4, 4), voxel to world in mm, RAS+, from `place_stack` or `clean_affine`
    affine: Array
    # What to write; labelled cases have a frame in `labels`
    cases: list[Case]
    # Faults that were set right
    corrections: list[str] = field(default_factory=list)
    # Parts of the subject that are lost
    warnings: list[str] = field(default_factory=list)
    # What the user should know
    notes: list[str] = field(default_factory=list)
    # A digest that is equal for subjects of one patient; empty if unknown
    patient: str = ""
    # What the subject's DICOM files are, see `dicom.inventory`; empty for others
    inventory: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """The outcome of one subject."""

    subject: str
    # Empty when unknown
    split: str
    cases: list[Case] = field(default_factory=list)
    corrections: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # As in `Cine`, like the next
    patient: str = ""
    inventory: dict[str, Any] = field(default_factory=dict)
    # Whether there are files with labels
    has_masks: bool = False
    # The reason
    refused: str = ""
    # Of each case's image, see `copies.sum_of_values`
    sums: list[str] = field(default_factory=list)


@dataclass
class Look:
    """A subject as its headers describe it."""

    subject: str
    # Empty when unknown
    split: str
    has_masks: bool = False
    # 0 also if it is unknown
    n_frames: int = 0
    # Those that would be labelled; None if masks were not read
    n_labelled: int | None = None
    # Whether all frames would be converted
    every_frame: bool = True
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # As in `Cine`, like the next
    patient: str = ""
    inventory: dict[str, Any] = field(default_factory=dict)
    # The reason
    refused: str = ""


TaskT = TypeVar("TaskT", bound=Task)


@dataclass(frozen=True)
class Renamed(Generic[TaskT]):
    """Subjects under the names of the dataset, some of which may be pseudonyms.

    Attributes:
        tasks: The subjects.
        refused: Those refused before reading, with the reason.
        names: The user's name of each subject that has a pseudonym.
        key: The file that holds these names, if there are any.
        added: Names that this conversion has added to it.
    """

    tasks: Sequence[TaskT]
    refused: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    key: Path | None = None
    added: Sequence[str] = ()


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
    """Make a subject's rows of `cases.csv`: all frames for training, those of `test_frames` for testing.

    Args:
        task: The subject.
        phases: ED or ES of the labelled frames, by time index.
        n_frames: Frames of the cine.
        source: As in `cases.csv`, like vendor, centre, scanner and pathology.
        base: See `base_of_stack`.
        vendor: The vendor.
        frames: The frames that exist, by default all.
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
        if task.split == "train" or task.test_frames == "all" or not phases or frame in phases
    ]


def without_labels(task: Task, reason: str, where: Path) -> str:
    """Return the note on a subject without labels.

    Args:
        task: The subject.
        reason: Why there are none.
        where: File or folder, for the refusal.

    Raises:
        ValueError: It needs them.
    """
    if task.needs_labels:
        raise ValueError(
            f"{where}: {reason}; a test subject must have labels. With --test-frames all it is for prediction only."
        )
    if task.split == "test":
        return f"{reason}: for prediction only, in imagesTs without labelsTs"
    return f"{reason}: converted as unlabelled"
