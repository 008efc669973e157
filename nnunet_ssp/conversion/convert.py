"""The shared part of all converters: from subjects of any dataset to a folder of `nnUNet_raw`.

A converter lists its subjects as `Task`s and gives one function that reads a task into a `Cine`.
`convert_subjects` does the rest, in parallel, resumable, and with nothing half-written. A subject is
either converted as a whole or refused with file and rule in the closing summary. A dry run only looks
at the headers and writes nothing.

The dataset's folder goes through three states: `convert.json` is written first and makes it ours,
`.ssp-tmp/done/SUBJECT.json` marks each finished subject, `dataset.json` comes last.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_ssp import __version__
from nnunet_ssp.cohort.cases import (
    COLUMNS,
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    Case,
    case_files,
    write_cases,
)
from nnunet_ssp.cohort.copies import sum_of_values
from nnunet_ssp.cohort.privacy import map_texts
from nnunet_ssp.cohort.pseudonyms import shorten_key, write_log
from nnunet_ssp.cohort.splits import FOLD_SOURCE, copy_tables, make_splits, write_splits
from nnunet_ssp.console import writing_failed
from nnunet_ssp.conversion.geometry import place_stack
from nnunet_ssp.conversion.record import (
    KEY_NOTE,
    NewDataset,
    appended_folds,
    check_folder,
    in_own_names,
    made_otherwise,
    read_marker,
    was_finished,
    without_folder,
    without_texts,
)
from nnunet_ssp.conversion.subjects import (
    Cine,
    Look,
    Outcome,
    Renamed,
    Task,
    TaskT,
    without_labels,
)
from nnunet_ssp.conversion.summary import (
    Remarks,
    as_log,
    dry_summary_lines,
    lost_labels,
    refusals,
    same_images,
    same_patients,
    summary_lines,
)
from nnunet_ssp.files.atomic import TEMPORARY, flush, remove_half_written, write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.lock import locked_dataset
from nnunet_ssp.files.names import WORDS as NAME_RULE
from nnunet_ssp.files.names import is_plain
from nnunet_ssp.files.nifti import read_header, unpacked_copies, write_nifti
from nnunet_ssp.launch import preparing_lines
from nnunet_ssp.nnunet import check_dataset_id, nnunet_folder
from nnunet_ssp.parallel import number_of_workers, process, worker_died

ADDED_TO_SUBJECT = 20  # characters of a case's name


def look_at_headers(task: Task, alike: bool = True) -> Look:
    """Look at the headers of a subject's NIfTI files; a dry run does so unless a converter has a look of its own.

    Args:
        task: The subject.
        alike: Whether all files must have the same sides.
    """
    images = [file for file in task.files if "_gt." not in file.name]
    nifti = [file for file in task.files if file.name.lower().endswith((".nii", ".nii.gz"))]
    notes = unpacked_copies(nifti)
    try:
        headers = {file: read_header(file) for file in nifti if file.is_file()}
        shapes = {file: shape for file, (shape, _) in headers.items()}
        first = next(iter(shapes), Path())
        for file, shape in shapes.items():
            # Axes of masks may be permuted in own data; the sides are the same.
            if alike and sorted(shape[:3]) != sorted(shapes[first][:3]):
                raise ValueError(
                    f"{file}: shape (={shape}) must be that of {first.name} (={shapes[first]})."
                )
        if task.split == "test" and not task.has_masks:
            notes.append(without_labels(task, "there is no mask", task.files[0].parent))
        if images and images[0] in headers:
            shape, grid = headers[images[0]]
            place = place_stack(grid, (*shape, 1, 1, 1)[: max(3, len(shape))], images[0])
            notes += [*place.corrections, *place.notes]
    except ValueError as error:
        return Look(task.subject, task.split, task.has_masks, refused=str(error))
    cines = [math.prod(shape[3:]) for shape in shapes.values() if math.prod(shape[3:]) > 1]
    n_frames = max(cines, default=sum(file in shapes for file in images))
    every = task.split == "train" or task.test_frames == "all" or not task.has_masks
    return Look(task.subject, task.split, task.has_masks, n_frames, every_frame=every, notes=notes)


def convert_subjects(
    tasks: Sequence[TaskT],
    read: Callable[[TaskT], Cine],
    new: NewDataset,
    *,
    refused: Mapping[str, str],
    overwrite: bool = False,
    workers: int | None = None,
    dry_run: bool = False,
    look: Callable[[TaskT], Look] = look_at_headers,
    remarks: Remarks = Remarks(),  # noqa: B008 (immutable)
    rename: Callable[[Path, Sequence[TaskT], Mapping[str, str]], Renamed[TaskT]] | None = None,
    count_refused: Callable[[int], None] | None = None,
) -> Path:
    """Convert all subjects to `nnUNet_raw/DatasetXXX_Name` and print a summary.

    Training frames go to `imagesTr` and `labelsTr`, without labels to `imagesUn`; test frames to
    `imagesTs`, and to `labelsTs` with labels. Without any labelled training frame, the dataset
    lists `imagesUn` as its training images and has no class but the background.

    Args:
        tasks: The subjects.
        read: Reads one subject; a `ValueError` refuses it, with the message as reason. It runs
            in other processes, so it must be a function of a module.
        new: The dataset to make.
        refused: Subjects that were found to be unusable before reading, with the reason.
        overwrite: Delete an earlier conversion of this id and start again.
        workers: Number of processes. By default nnU-Net's `nnUNet_def_n_proc`, or one for each
            core, at most 8.
        dry_run: Write nothing; print what would be converted, as far as the headers tell.
        look: Looks at one subject in a dry run, instead of `read`; also a function of a module.
        remarks: Remarks on the dataset, for the summary.
        rename: Gives local subjects pseudonyms; called with the dataset's folder, the subjects and those refused.
        count_refused: Called with the number of refused subjects, also after a dry run.

    Returns:
        The dataset's folder, which does not exist after a dry run.

    Raises:
        FileExistsError: The id is taken, or the folder is not ours to continue or delete.
        RuntimeError: Writing failed (a full disk), a worker died, or another process works on this dataset; a second
            run continues.
        ValueError: No subject could be converted, or `workers` is below 1.
    """
    workers = number_of_workers(workers)
    # A case's name is the subject's with the frame and, in combined sets, the source.
    bad = [t.subject for t in tasks if not is_plain(t.subject + "_" * ADDED_TO_SUBJECT)]
    refused = {**refused, **dict.fromkeys(bad, f"the subject's name must be {NAME_RULE}.")}
    tasks = [task for task in tasks if task.subject not in bad]
    settings = new.settings()
    target = check_dataset_id(new.dataset_id, new.name)
    if dry_run:
        if not (target / "dataset.json").exists():
            check_folder(target, settings, overwrite)
        looks = [Look(subject, "", refused=reason) for subject, reason in refused.items()]
        looks += process(look, tasks, workers, "Looking", "subject")
        print("\n".join(_dry_lines(looks, target, remarks, rename is not None, settings)))
        return _told(count_refused, looks, target)
    if not (target / "convert.json").is_file():  # a folder that is not ours gets no lock, either
        check_folder(target, settings, overwrite)
    with failures_in_words(target), ExitStack() as lock:
        prepared = nnunet_folder("nnUNet_preprocessed") / target.name
        lock.enter_context(locked_dataset(target, prepared, create=target))
        check_dataset_id(new.dataset_id, new.name)  # again: it may have been taken since
        if not overwrite and was_finished(target, settings):
            shutil.rmtree(target / TEMPORARY)
            print(f"{target}: converted before; removed what an interrupted run had left.")
            return target
        check_folder(target, settings, overwrite)  # and the key, before anything is deleted
        subjects = Renamed(tasks, refused) if rename is None else rename(target, tasks, refused)
        deleted = _take_over(target, overwrite, settings)
        marker = settings | {"version": __version__, "deleted_folds": deleted}
        write_json(target / "convert.json", marker)
        outcomes, lines = _convert_all(target, new, subjects, read, workers, remarks, deleted)
    print("\n".join(lines))
    print(f"\nConverted to {target}")
    if not lost_labels(outcomes):  # else mending comes next, as the lines say
        print(preparing_lines(new.dataset_id))
    return _told(count_refused, outcomes, target)


def _told(
    count_refused: Callable[[int], None] | None,
    outcomes: Sequence[Look] | Sequence[Outcome],
    target: Path,
) -> Path:
    """Tell how many subjects are refused; return the dataset's folder."""
    if count_refused is not None:
        count_refused(sum(bool(outcome.refused) for outcome in outcomes))
    return target


def _dry_lines(
    looks: Sequence[Look],
    target: Path,
    remarks: Remarks,
    renames: bool,
    settings: Mapping[str, object],
) -> list[str]:
    said = [*remarks.about(looks), *same_patients(looks), *remarks.local]
    if renames:
        said.append("Local subjects will get pseudonyms; --keep-ids keeps names.")
    lines = dry_summary_lines(looks, target, said, remarks.prefixes, remarks.unlabelled)
    made = made_otherwise(target, settings)
    return [*lines, *[f"WARNING: It is {made}: --overwrite would replace it."] * bool(made)]


@contextmanager
def failures_in_words(target: Path) -> Iterator[None]:
    """Raise errors that say that a stopped conversion can be continued."""
    try:
        yield
    except BrokenProcessPool as error:
        raise worker_died(target) from error
    except FileExistsError:
        raise
    except OSError as error:
        raise RuntimeError(writing_failed(target, error)) from error


# -- the dataset's folder --------------------------------------------------------------------------


def _take_over(target: Path, overwrite: bool, settings: Mapping[str, object]) -> list[str]:
    """Take over a new folder or that of an earlier conversion; return the appended folds that are deleted with it."""
    if not (target / "convert.json").is_file():
        return []
    deleted = appended_folds(target)
    if overwrite:
        if made := made_otherwise(target, settings):
            print(f"Replacing {target.name}, {made}")
        _empty(target, deleted)
    else:
        print(f"Continuing the conversion in {target}")
    return deleted


def _convert_all(
    target: Path,
    new: NewDataset,
    subjects: Renamed[TaskT],
    read: Callable[[TaskT], Cine],
    workers: int,
    remarks: Remarks,
    deleted: Sequence[str],
) -> tuple[list[Outcome], list[str]]:
    """Convert the subjects into a folder of ours and finish it; return what came out and the lines of the summary."""
    outcomes = [Outcome(name, "", refused=reason) for name, reason in subjects.refused.items()]
    convert = partial(_convert_subject, read=read, target=target)
    outcomes += process(convert, subjects.tasks, workers, "Converting", "subject")
    cases = {case.case: case for outcome in outcomes for case in outcome.cases}
    if not cases:
        if subjects.key is not None:
            shorten_key(subjects.key, subjects.added)
        _withdraw(target)
        raise ValueError(
            f"{new.source}: no subject could be converted.\n"
            + "\n".join(refusals(in_own_names(outcomes, subjects.names)))
        )
    n_folds = _write_cases_and_folds(target, cases)
    said = remarks.about(outcomes)
    shared = {"remarks": [*said, *_of_one(outcomes, new)], **as_log(outcomes)}
    outcomes = in_own_names(outcomes, subjects.names)
    said += [*_of_one(outcomes, new), *remarks.local]
    if subjects.key is not None:
        log = write_log(subjects.key, {"remarks": said, **as_log(outcomes)})
        shared = without_texts(shared, subjects.names, f"see {log.parent.name}/{log.name}")
        said.append(KEY_NOTE.format(key=subjects.key, log=log.name))
    shared = map_texts(shared, partial(without_folder, folder=new.source))
    write_json(target / "convert.json", new.settings() | {"version": __version__, **shared})
    warnings = _update_copies(target)
    if deleted:
        warnings.append(
            f"\nWARNING: deleted with the earlier conversion: {', '.join(deleted)}. "
            f"To append them again: nnunet-ssp folds {new.dataset_id} (see --help)."
        )
    write_json(target / "dataset.json", _dataset_json(cases.values(), new.labels, new.description))
    _remove_temporary(target)
    if not any(case.labelled for case in cases.values()):
        why = lost_labels(outcomes) or remarks.unlabelled
        warnings += [f"\n{line}" for line in why]
    return outcomes, [*summary_lines(outcomes, n_folds, said, remarks.prefixes), *warnings]


def _of_one(outcomes: Sequence[Outcome], new: NewDataset) -> list[str]:
    """Return warnings of subjects that may be one patient, by PatientID or by their images."""
    return [*same_patients(outcomes), *same_images(outcomes, new.dataset_id)]


def _write_cases_and_folds(target: Path, cases: Mapping[str, Case]) -> int:
    """Write `cases.csv` and the folds, and remove what belongs to no case; return the number of folds."""
    _remove_strays(target, cases.values())
    write_cases(target / "cases.csv", cases.values())
    splits = make_splits(cases)
    write_splits(
        target,
        splits,
        cases,
        names=[f"{len(splits)}-fold-{number}" for number in range(len(splits))],
        source=FOLD_SOURCE,
    )
    return len(splits)


def _withdraw(target: Path) -> None:
    """Remove a conversion without cases; files that are not ours stay, and the folder with them."""
    _empty(target, ())
    (target / "convert.json").unlink()
    with suppress(OSError):
        target.rmdir()


def _empty(target: Path, folds: Sequence[str]) -> None:
    """Delete all but the marker: a run killed in here leaves a folder that is still ours, and the folds' names."""
    marker = read_marker(target)
    write_json(target / "convert.json", marker | {"deleted_folds": list(folds)})
    (target / "dataset.json").unlink(missing_ok=True)
    for name in IMAGE_FOLDERS + LABEL_FOLDERS:
        folder = target / name
        if folder.is_symlink():
            folder.unlink()
            continue
        for file in _frames(folder):
            file.unlink()
        with suppress(OSError):  # the user's own files stay, and so does their folder
            folder.rmdir()
    for name in ("cases.csv", "folds.csv", "splits_final.json"):
        (target / name).unlink(missing_ok=True)
    _remove_temporary(target)


def _remove_temporary(target: Path) -> None:
    remove_half_written(target)
    shutil.rmtree(target / TEMPORARY, ignore_errors=True)


def _frames(folder: Path) -> list[Path]:
    """Return the images or masks of a folder whose names are those of a conversion."""
    files = folder.iterdir() if folder.is_dir() else ()
    return [file for file in files if re.fullmatch(r".+_frame\d{2,}(_0000)?\.nii\.gz", file.name)]


def _remove_strays(target: Path, cases: Iterable[Case]) -> None:
    """Remove frames of subjects that an interrupted run wrote and this one refuses."""
    expected = {file for case in cases for file in case_files(target, case)}
    for folder in IMAGE_FOLDERS + LABEL_FOLDERS:
        for file in _frames(target / folder):
            if file not in expected:
                file.unlink()


def _dataset_json(
    cases: Iterable[Case], labels: Mapping[str, int], description: str
) -> dict[str, object]:
    training = [case for case in cases if case.split == "train"]
    labelled = [case for case in training if case.labelled]
    content: dict[str, object] = {
        "channel_names": {"0": "cineMRI"},
        "labels": dict(labels),
        "numTraining": len(labelled),
        "file_ending": ".nii.gz",
        "description": description,
        "converted_by": f"nnunet-ssp {__version__}",
    }
    if training and not labelled:
        content["labels"] = {"background": 0}
        content["numTraining"] = len(training)
        # nnU-Net insists on a path for each label; this one says where a label would be.
        content["dataset"] = {
            case.case: {
                "images": [f"imagesUn/{case.case}_0000.nii.gz"],
                "label": f"labelsTr/{case.case}.nii.gz",
            }
            for case in training
        }
    return content


def _update_copies(target: Path) -> list[str]:
    """Bring the tables in `nnUNet_preprocessed` up to date; say what is now out of date."""
    warnings = []
    prepared = nnunet_folder("nnUNet_preprocessed") / target.name
    results = nnunet_folder("nnUNet_results") / target.name
    if prepared.is_dir():
        # Only --overwrite leads to a new conversion of a prepared dataset, so the folds may change.
        folds = copy_tables(target, prepared, results, overwrite=True)
        warnings.append(
            f"\nWARNING: {prepared} was prepared from an earlier conversion. Its cases.csv and folds are up to date "
            "now, its images are not: run nnunet-ssp prepare again."
        )
        if folds:
            listed = ", ".join(map(str, folds))
            warnings.append(
                f"\nWARNING: fold {listed} is not the one that {results} was trained on."
            )
    if results.is_dir():
        warnings.append(f"\nWARNING: {results} was trained on an earlier conversion.")
    return warnings


# -- one subject after the other -------------------------------------------------------------------


def _convert_subject(task: TaskT, read: Callable[[TaskT], Cine], target: Path) -> Outcome:
    record = target / TEMPORARY / "done" / f"{task.subject}.json"
    stamp = [repr(task), *(input_stamp(file) for file in task.files)]
    done = _read_done(record)
    if done is None or done.pop("stamp") != stamp:
        try:
            cine = read(task)
        except ValueError as error:
            return Outcome(task.subject, task.split, has_masks=task.has_masks, refused=str(error))
        _write_subject(cine, target, target / TEMPORARY / "writing" / task.subject)
        done = {
            "cases": [asdict(case) for case in cine.cases],
            "corrections": cine.corrections,
            "warnings": cine.warnings,
            "notes": cine.notes,
            "patient": cine.patient,
            "inventory": cine.inventory,
            "sums": [sum_of_values(cine.frames[case.frame]) for case in cine.cases],
        }
        write_json(record, {"stamp": stamp, **done})
    cases = [Case(**case) for case in done.pop("cases")]
    return Outcome(task.subject, task.split, cases=cases, has_masks=task.has_masks, **done)


def input_stamp(file: Path) -> str:
    """Return size and time of change of a file, or why there are none; equal texts tell an unchanged file."""
    try:
        status = file.stat()
    except OSError as error:
        return str(error)
    return f"{status.st_size} {status.st_mtime_ns}"


def _read_done(record: Path) -> dict[str, Any] | None:
    try:
        content = read_json(record, dict)
    except (FileNotFoundError, ValueError):
        return None
    for name, value in (("inventory", {}), ("sums", [])):  # an earlier version began it
        content.setdefault(name, value)
    lists = ("stamp", "corrections", "warnings", "notes", "sums")
    kinds: dict[str, type] = dict.fromkeys(lists, list)
    kinds |= {"patient": str, "inventory": dict}
    whole = content.keys() == {*kinds, "cases"} and isinstance(content["cases"], list)
    whole = whole and all(isinstance(content[key], kind) for key, kind in kinds.items())
    fitting = whole and all(
        isinstance(case, dict) and case.keys() == {*COLUMNS} and is_plain(case["case"])
        for case in content["cases"]
    )
    return content if fitting else None  # a damaged record counts as none


def _write_subject(cine: Cine, target: Path, temporary: Path) -> None:
    """Write all files of a subject beside their place, then rename them into it."""
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        files = [file for case in cine.cases for file in case_files(target, case)]
        for folder in {file.parent.name for file in files}:
            (temporary / folder).mkdir(parents=True)
            (target / folder).mkdir(exist_ok=True)
        for case in cine.cases:
            arrays = [cine.frames[case.frame]]
            if case.labelled:
                arrays.append(cine.labels[case.frame])
            for file, array in zip(case_files(target, case), arrays, strict=True):
                write_nifti(temporary / file.parent.name / file.name, array, cine.affine)
        for file in files:
            flush(
                temporary / file.parent.name / file.name
            )  # before the record says that it is there
            os.replace(temporary / file.parent.name / file.name, file)
        for place in {file.parent for file in files}:
            with suppress(OSError):  # some file systems do not flush folders
                flush(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
