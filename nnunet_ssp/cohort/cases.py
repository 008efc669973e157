"""Cases and subjects: the table `cases.csv` beside nnU-Net's data.

A *subject* is one cine examination, a *case* one of its time frames, a 3D stack of slices. nnU-Net
knows only cases; `cases.csv` says which subject, frame and scanner each of them comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nnunet_ssp.files.atomic import write_table
from nnunet_ssp.files.contents import shown
from nnunet_ssp.files.names import must_be_plain
from nnunet_ssp.files.patterns import compile_pattern
from nnunet_ssp.files.tables import read_table, whole_number

SPLITS = ("train", "test")
PHASES = ("", "ED", "ES")
BASES = ("first", "last", "unknown")
# Datasets as people call them, by the `source` of `cases.csv`.
NAMES = {"mm1": "M&Ms", "mm2": "M&Ms-2", "acdc": "ACDC", "cine": "own cine"}


@dataclass(frozen=True)
class Case:
    """One row of `cases.csv`: a time frame of a subject."""

    # nnU-Net's case name, see `case_name`
    case: str
    subject: str
    # Dataset: mm1 (M&Ms), mm2 (M&Ms-2), acdc, ...
    source: str
    # The frame's number in the source, 1-based in some
    source_frame: int
    # `train` or `test`
    split: str
    # Time index from 0
    frame: int
    # Frames in the subject's cine, also those that are not cases
    n_frames: int
    # `ED`, `ES`, or empty: not labelled
    phase: str
    # The end of the stack that is the base of the heart: `first`, `last` or `unknown`
    base: str
    vendor: str
    centre: str
    scanner: str
    # Field strength in T
    field: str
    pathology: str

    @property
    def labelled(self) -> bool:
        """Whether the frame has a usable mask."""
        return self.phase != ""

    @property
    def trainable(self) -> bool:
        """Whether a fold may hold the frame: it is labelled, and of no test subject."""
        return self.labelled and self.split == "train"

    @property
    def subject_key(self) -> str:
        """Unique name `<source>-<subject>`: codes of combined sources may be equal, keys are not."""
        return f"{self.source}-{self.subject}"


COLUMNS = tuple(field.name for field in fields(Case))
_INTEGERS = ("source_frame", "frame", "n_frames")
_CHOICES = {"split": SPLITS, "phase": PHASES, "base": BASES}


def case_name(subject: str, frame: int, source: str | None = None) -> str:
    """Return nnU-Net's name of a frame: `A1D9Z7_frame05`, in combined sets `mm1-A1D9Z7_frame05`.

    Args:
        subject: The subject's code.
        frame: Time index from 0.
        source: Only for a dataset that combines several sources.
    """
    return f"{source}-{subject}_frame{frame:02d}" if source else f"{subject}_frame{frame:02d}"


def read_cases(file: str | Path) -> dict[str, Case]:
    """Read `cases.csv`.

    Returns:
        The cases by name, in the order of the file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A column is missing or a value breaks a rule; names file, row and column.
    """
    cases: dict[str, Case] = {}
    # These are our own texts: a vendor may be called nan.
    for row in read_table(file, COLUMNS, numbers=(*_INTEGERS, "field"), nothing=()):
        where = f"{file}, row {row['row']}"
        case = _parse_case(row, where)
        if case.case in cases:
            raise ValueError(f"{where}: `case` (={case.case}) must occur only once.")
        cases[case.case] = case
    return cases


def shown_subjects(keys: Iterable[str], cases: Mapping[str, Case]) -> list[str]:
    """Return the names of subjects for a reader, sorted: with their source in a dataset of several, as its cases have.

    Args:
        keys: `Case.subject_key`, or what `subject_of` found for a case without a row.
        cases: Rows of `cases.csv`.
    """
    names = names_of_subjects(cases)
    return sorted(names.get(key, key) for key in keys)


def names_of_subjects(cases: Mapping[str, Case]) -> dict[str, str]:
    """Return the names of all subjects for a reader, by `Case.subject_key`."""
    several = len({case.source for case in cases.values()}) > 1
    return {c.subject_key: c.subject_key if several else c.subject for c in cases.values()}


def subject_of(case: str, cases: Mapping[str, Case], pattern: str | None) -> str:
    """Return the subject of a case: from `cases.csv`, else what `pattern` finds in its name, else the case itself.

    Args:
        case: Name of the case.
        cases: From `read_cases`; empty for a dataset without `cases.csv`.
        pattern: Regular expression; its first group, when it has one, is the subject.

    Raises:
        ValueError: The pattern is none, or could take long, or the case is not in `cases` and it does not match.
    """
    try:
        compiled = compile_pattern(pattern or "")
    except ValueError as error:
        raise ValueError(f"`subject_pattern` (={shown(pattern)}) must be {error}.") from None
    if case in cases:
        return cases[case].subject_key
    if pattern is None:
        return case
    match = compiled.search(case)
    if match is None:
        raise ValueError(f"`subject_pattern` (={pattern}) must match every case name, not {case}.")
    return match[1] if match.groups() else match[0]


def _parse_case(row: Mapping[str, str], where: str) -> Case:
    values: dict[str, str | int] = {}
    for column in COLUMNS:
        text = row[column]
        if column in ("case", "subject"):
            if not text:
                raise ValueError(f"{where}: `{column}` must not be empty.")
            must_be_plain(text, column, where)
        if column in _CHOICES and text not in _CHOICES[column]:
            allowed = ", ".join(choice or "empty" for choice in _CHOICES[column])
            raise ValueError(f"{where}: `{column}` (={text}) must be one of {allowed}.")
        number = whole_number(text) if column in _INTEGERS else None
        if column in _INTEGERS and number is None:
            raise ValueError(f"{where}: `{column}` (={text}) must be a whole number from 0.")
        values[column] = text if number is None else number
    case = Case(**values)  # type: ignore[arg-type]  # the loop above has the type of each column
    if case.frame >= case.n_frames:
        raise ValueError(
            f"{where}: `frame` (={case.frame}) must be below `n_frames` (={case.n_frames})."
        )
    code = case.case.split("_frame")[0].rsplit("-", 1)[-1]
    if case.subject.isdecimal() and code != case.subject and code.lstrip("0") == case.subject:
        raise ValueError(
            f"{where}: `subject` (={case.subject}) must keep the leading zeros of {code}, which spreadsheets drop from "
            "columns that are not of the type text."
        )
    return case


def write_cases(file: str | Path, cases: Iterable[Case]) -> None:
    """Write `cases.csv`, in the order given; an existing file is replaced as a whole."""
    write_table(file, COLUMNS, (asdict(case) for case in cases))


IMAGE_FOLDERS = ("imagesTr", "imagesTs", "imagesUn")


LABEL_FOLDERS = ("labelsTr", "labelsTs")


def case_files(target: Path, case: Case) -> list[Path]:
    """Return the image, and for a labelled case the mask, in a dataset of `nnUNet_raw`.

    `imagesUn` is for training: frames of test subjects are in `imagesTs`, whether they have labels or not.
    """
    part = "Ts" if case.split == "test" else "Tr" if case.labelled else "Un"
    files = [target / f"images{part}" / f"{case.case}_0000.nii.gz"]
    if case.labelled:
        files.append(target / f"labels{part}" / f"{case.case}.nii.gz")
    return files
