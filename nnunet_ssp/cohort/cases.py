"""Cases, subjects and folds: the tables beside nnU-Net's data, and nnU-Net's folders.

A *subject* is one cine examination, a *case* one of its time frames, a 3D stack of slices. nnU-Net
knows only cases; `cases.csv` says which subject, frame and scanner each of them comes from.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path

from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import must_all_be_plain, must_be_plain
from nnunet_ssp.files.tables import read_table, whole_number

SPLITS = ("train", "test")
PHASES = ("", "ED", "ES")
BASES = ("first", "last", "unknown")
FOLD_COLUMNS = ("fold", "name", "n_train_subjects", "n_val_subjects", "source")
FOLD_SEED = 12345  # nnU-Net's own seed for its cross-validation
TEMPORARY = ".ssp-tmp"  # half-written files live in this folder of a dataset, never in nnU-Net's


@dataclass(frozen=True)
class Case:
    """One row of `cases.csv`: a time frame of a subject."""

    case: str  # nnU-Net's case name, see `case_name`
    subject: str
    source: str  # data set: mm1 (M&Ms), mm2 (M&Ms-2), acdc, ...
    source_frame: int  # the frame's number in the source, 1-based in some
    split: str  # train or test
    frame: int  # time index from 0
    n_frames: int  # frames in the subject's cine, also those that are not cases
    phase: str  # ED, ES, or empty: not labelled
    base: str  # which end of the stack is the base of the heart: first, last or unknown
    vendor: str
    centre: str
    scanner: str
    field: str  # field strength in T
    pathology: str

    @property
    def labelled(self) -> bool:
        """Whether the frame has a usable mask."""
        return self.phase != ""

    @property
    def subject_key(self) -> str:
        """`<source>-<subject>`: codes of combined sources may be equal, keys are not."""
        return f"{self.source}-{self.subject}"


COLUMNS = tuple(field.name for field in fields(Case))
_INTEGERS = ("source_frame", "frame", "n_frames")
_CHOICES = {"split": SPLITS, "phase": PHASES, "base": BASES}


def case_name(subject: str, frame: int, source: str | None = None) -> str:
    """nnU-Net's name of a frame: `A1D9Z7_frame05`, in combined sets `mm1-A1D9Z7_frame05`.

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
    # Our own texts: a vendor may be called nan.
    for row in read_table(file, COLUMNS, numbers=(*_INTEGERS, "field"), nothing=()):
        where = f"{file}, row {row['row']}"
        case = _parse_case(row, where)
        if case.case in cases:
            raise ValueError(f"{where}: `case` (={case.case}) must occur only once.")
        cases[case.case] = case
    return cases


def subject_of(case: str, cases: Mapping[str, Case], pattern: str | None) -> str:
    """The subject of a case: from `cases.csv`, else what `pattern` finds in its name, else the case itself.

    Args:
        case: Name of the case.
        cases: From `read_cases`; empty for a dataset without `cases.csv`.
        pattern: Regular expression; its first group, when it has one, is the subject.

    Raises:
        ValueError: The pattern is no regular expression, or the case is not in `cases` and it does not match.
    """
    try:
        match = re.search(pattern or "", case)
    except re.error as error:
        raise ValueError(
            f"`subject_pattern` (={pattern}) must be a regular expression: {error}."
        ) from None
    if case in cases:
        return cases[case].subject_key
    if pattern is None:
        return case
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
    _write_table(file, COLUMNS, (asdict(case) for case in cases))


def _write_table(
    file: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]
) -> None:
    with atomic_write(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def subject_folds(
    subjects: Mapping[str, str], n_folds: int = 5, seed: int = FOLD_SEED
) -> list[list[str]]:
    """Divide subjects into validation folds, stratified by vendor.

    Every subject is in exactly one fold. Folds differ by at most one subject, in total and for
    each vendor. There are never more folds than subjects, and none at all for a single subject.

    Args:
        subjects: Vendor of each subject.
        n_folds: Number of folds wanted, at least 2.
        seed: The same seed and subjects give the same folds.

    Returns:
        The validation subjects of each fold, sorted.
    """
    if n_folds < 2:
        raise ValueError(f"`n_folds` (={n_folds}) must be at least 2.")
    n_folds = min(n_folds, len(subjects))
    if n_folds < 2:
        return []
    generator = random.Random(seed)
    dealt: list[str] = []
    for vendor in sorted(set(subjects.values())):
        group = sorted(subject for subject in subjects if subjects[subject] == vendor)
        generator.shuffle(group)
        dealt += group
    # Dealing on from vendor to vendor, like cards, keeps both each vendor and the total even.
    return [sorted(dealt[fold::n_folds]) for fold in range(n_folds)]


def make_splits(
    cases: Mapping[str, Case], n_folds: int = 5, seed: int = FOLD_SEED
) -> list[dict[str, list[str]]]:
    """Cross-validation by subject over the labelled training cases, as nnU-Net's splits.

    Returns:
        `{"train": [...], "val": [...]}` for each fold; an empty list with fewer than two labelled
        training subjects, where only nnU-Net's fold `all` makes sense.
    """
    labelled = [case for case in cases.values() if case.labelled and case.split == "train"]
    folds = subject_folds({case.subject_key: case.vendor for case in labelled}, n_folds, seed)
    return [
        {
            "train": sorted(case.case for case in labelled if case.subject_key not in val),
            "val": sorted(case.case for case in labelled if case.subject_key in val),
        }
        for val in folds
    ]


def read_splits(file: str | Path) -> list[dict[str, list[str]]]:
    """Read nnU-Net's `splits_final.json`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a list of folds with the case names of `train` and `val`.
    """
    splits = read_json(file, list)
    for number, fold in enumerate(splits):
        for side in ("train", "val"):
            names = fold.get(side) if isinstance(fold, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{file}: fold {number} must have a list of case names `{side}`.")
            must_all_be_plain(names, "case", f"{file}, fold {number}, `{side}`")
    return [{side: list(fold[side]) for side in ("train", "val")} for fold in splits]


def write_splits(
    folder: str | Path,
    splits: Sequence[Mapping[str, Sequence[str]]],
    cases: Mapping[str, Case],
    names: Sequence[str],
    source: str | Sequence[str],
) -> None:
    """Write `splits_final.json` and its description, `folds.csv`, into a dataset's folder.

    Args:
        folder: `nnUNet_raw/DatasetXXX_Name` or `nnUNet_preprocessed/DatasetXXX_Name`.
        splits: Case names of `train` and `val` for each fold.
        cases: Every case that the splits name.
        names: One name for each fold.
        source: Where the folds come from, all of them or each.
    """
    folder = Path(folder)
    sources = [source] * len(splits) if isinstance(source, str) else source
    rows = [
        {
            "fold": number,
            "name": name,
            "n_train_subjects": len({cases[case].subject_key for case in fold["train"]}),
            "n_val_subjects": len({cases[case].subject_key for case in fold["val"]}),
            "source": origin,
        }
        for number, (fold, name, origin) in enumerate(zip(splits, names, sources, strict=True))
    ]
    # A run that is killed between the two leaves names without folds; folds without names would be appended again.
    _write_table(folder / "folds.csv", FOLD_COLUMNS, rows)
    write_json(folder / "splits_final.json", [dict(fold) for fold in splits])


def trained_folds(
    new: Sequence[Mapping[str, Sequence[str]]],
    old: Sequence[Mapping[str, Sequence[str]]],
    results: Path,
) -> list[int]:
    """The numbers of the folds that differ although `results`, a dataset's folder, were trained on them."""
    changed = [fold for fold, (a, b) in enumerate(zip_longest(new, old)) if a != b]
    return [fold for fold in changed if any(results.glob(f"*/fold_{fold}"))]


def copy_tables(raw: Path, prepared: Path, results: Path, overwrite: bool) -> list[int]:
    """Copy `cases.csv`, `folds.csv` and `splits_final.json`, those that there are, beside the prepared data.

    Args:
        raw: The dataset's folder in nnUNet_raw.
        prepared: Its folder in nnUNet_preprocessed.
        results: Its folder in nnUNet_results, which need not exist.
        overwrite: Also replace folds on which results were trained.

    Returns:
        The numbers of the folds that changed although results were trained on them.

    Raises:
        FileExistsError: There are such folds, and `overwrite` is False. Nothing is copied then.
    """
    name = "splits_final.json"
    trained = []
    if (raw / name).is_file() and (prepared / name).is_file():
        trained = trained_folds(read_splits(raw / name), read_splits(prepared / name), results)
    if trained and not overwrite:
        raise FileExistsError(
            f"{raw / name}: fold {', '.join(map(str, trained))} differs from the one that results in {results} were "
            "trained on; --overwrite replaces it."
        )
    for table in ("cases.csv", "folds.csv", name):
        if (raw / table).is_file():
            with atomic_write(prepared / table) as temporary:
                shutil.copyfile(raw / table, temporary)
    return trained


def write_json(file: str | Path, content: object) -> None:
    """Write a JSON file; an existing one is replaced as a whole."""
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def atomic_write(file: str | Path, folder: str | Path | None = None) -> Iterator[Path]:
    """Give a temporary path that becomes `file` when the block ends without an error.

    Readers see the old file or the new one, never half of it, also after a power cut.

    Args:
        file: The file to create or replace; its folder is created.
        folder: Where the temporary file lives, on the same file system as `file`: the dataset's
            `.ssp-tmp` for files of folders that nnU-Net lists. By default the file's own folder.

    Yields:
        A path that ends with the name of `file`, because writers choose the format by the ending.
    """
    file = Path(file)
    folder = file.parent if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{TEMPORARY}-{os.getpid()}-{file.name}"
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, file)
        with suppress(OSError):  # some file systems do not flush folders
            _flush(file.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary), temporary):
            error.filename = str(file)  # writing to an open file names none
        raise
    finally:
        with suppress(OSError):  # the folder may have gone, the first error says so
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: after a power cut they are there."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_together(folder: str | Path) -> Iterator[Path]:
    """Give a temporary folder whose files move into `folder` when the block ends without an error.

    A full disk, an error or a kill inside the block leaves the files of `folder` as they were.
    Writing several files through `atomic_write` could end with some old and some new ones.

    Args:
        folder: Where the files belong; created at the end.

    Yields:
        An empty folder on the same file system. Files in its subfolders are not moved.
    """
    folder = Path(folder)
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    temporary = existing / f"{TEMPORARY}-{os.getpid()}-together"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(temporary.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_half_written(folder: str | Path) -> None:
    """Remove what writers that were killed have left in a folder, where no other writes now."""
    for file in Path(folder).glob(f"{TEMPORARY}-*"):
        file.unlink(missing_ok=True)


NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def nnunet_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Args:
        variable: `nnUNet_raw`, `nnUNet_preprocessed` or `nnUNet_results`.

    Raises:
        RuntimeError: The variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise RuntimeError(
            f"The environment variable {variable} is not set. nnU-Net needs all three of "
            f"{', '.join(NNUNET_FOLDERS)}, e.g. export {variable}=/data/{variable}"
        )
    return Path(value)


def dataset_id(dataset: str | int) -> int:
    """The number of a dataset given as a number or as `DatasetXXX_Name`.

    Raises:
        ValueError: It is neither, or the number is not within 1 to 999.
    """
    match = re.fullmatch(r"([0-9]+)|Dataset([0-9]{3})_.+", str(dataset))
    if match is None:
        raise ValueError(
            f"`dataset` (={dataset}) must be a number (114) or a full name (Dataset114_MNMs)."
        )
    number = int(match[1] or match[2])
    if not 1 <= number <= 999:
        raise ValueError(f"dataset id (={number}) must be within 1 to 999, nnU-Net's three digits.")
    return number


def dataset_folder(base: str | Path, dataset: str | int) -> Path:
    """The folder of a dataset within one of nnU-Net's three folders.

    Args:
        base: For example `nnunet_folder("nnUNet_raw")`.
        dataset: Dataset id (114, "114") or full name ("Dataset114_MNMs").

    Raises:
        FileNotFoundError: `base` has no such dataset.
        ValueError: `dataset` is no id or name, or several folders have this id.
    """
    base = Path(base)
    found = _folders_with_id(base, dataset_id(dataset))
    if str(dataset).startswith("Dataset"):
        found = [folder for folder in found if folder.name == dataset]
    if not found:
        present = sorted(folder.name for folder in base.glob("Dataset*")) or ["no dataset"]
        raise FileNotFoundError(f"{base}: no dataset {dataset} here; found {', '.join(present)}.")
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise ValueError(f"{base}: dataset id {dataset} must belong to one folder, not to {names}.")
    return found[0]


def check_dataset_id(number: int, name: str) -> Path:
    """Check that a new dataset of this id would be alone in all three of nnU-Net's folders.

    A folder of the same id *and* name in `nnUNet_raw` is left to the caller to judge.

    Args:
        number: The dataset's id.
        name: The part after the id: `MNMs` for `Dataset114_MNMs`.

    Returns:
        The dataset's folder in `nnUNet_raw`, existing or not.

    Raises:
        FileExistsError: The id is taken, in any of the folders.
        RuntimeError: One of nnU-Net's three environment variables is not set.
        ValueError: The id or the name is not one nnU-Net can use.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"`name` (={name}) must be made of letters, digits, `_`, `-` and `.`.")
    full_name = must_be_plain(f"Dataset{dataset_id(number):03d}_{name}", "dataset")
    bases = [nnunet_folder(variable) for variable in NNUNET_FOLDERS]
    target = bases[0] / full_name
    for base in bases:
        for folder in _folders_with_id(base, number):
            if folder.name != full_name or not target.is_dir():
                raise FileExistsError(
                    f"{folder}: dataset id {number} is taken; choose another id or remove it."
                )
    return target


def _folders_with_id(base: Path, number: int) -> list[Path]:
    return sorted(f for f in base.glob(f"Dataset{number:03d}_*") if f.is_dir())
