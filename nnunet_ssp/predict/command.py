"""`nnunet-ssp predict`: segment new cines and measure them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnunet_ssp.console import count_of, some, writing_failed
from nnunet_ssp.conversion.convert import input_stamp
from nnunet_ssp.conversion.subjects import SEVERAL_VISITS
from nnunet_ssp.dataset_conversion.cine_files import CineTask
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.files.atomic import remove_half_written, require_place, write_json
from nnunet_ssp.files.grids import Array
from nnunet_ssp.files.lock import locked
from nnunet_ssp.launch import choose_device
from nnunet_ssp.parallel import number_of_workers
from nnunet_ssp.predict.dicom_seg import (
    check_installed,
    read_sources,
    without_dicom,
    write_segmentations,
)
from nnunet_ssp.predict.flags import FLAGS
from nnunet_ssp.predict.inputs import InputCine, find_studies, read_cine, read_mask, write_mask
from nnunet_ssp.predict.kept import KeptFrames
from nnunet_ssp.predict.measure import Choices, measure
from nnunet_ssp.predict.model import (
    Wanted,
    check_model,
    model_folder,
    models_in_words,
    refuse_fold,
    results_folder,
)
from nnunet_ssp.predict.page import run_page, subject_page
from nnunet_ssp.predict.postprocessing import postprocess, read_postprocessing
from nnunet_ssp.predict.progress import FrameCount, n_frames_of
from nnunet_ssp.predict.results import REPORT, Output, in_short, mean
from nnunet_ssp.signals import ending_at_once


class Segments(Protocol):
    """A loaded network, which segments a cine."""

    def segment(self, voxels: Array, affine: Array) -> Iterable[tuple[Array, float]]:
        """Return label values (X, Y, Z) of each frame, and the disagreement in %, NaN where there is none."""


@dataclass(frozen=True)
class Procedure:
    """The way in which the subjects of a run are segmented and measured."""

    labels: Labels
    # Makes or loads what segments; called once, and only if there is something to segment
    load: Callable[[], Segments]
    choices: Choices = field(default_factory=Choices)
    # Steps of nnU-Net's postprocessing
    postprocessing: Sequence[dict[str, Any]] = field(default_factory=tuple)
    # Whether to write DICOM Segmentations, too
    dicom_seg: bool = False
    # The command that goes on after an interruption
    again: str = "the same command"


def predict(
    inputs: Sequence[Path],
    output: Path,
    model: Path | None = None,
    dataset: str | None = None,
    trainer: str | None = None,
    plans: str | None = None,
    configuration: str | None = None,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    device: str | None = None,
    mirror: bool = True,
    postprocessing: Path | None = None,
    trust: bool = False,
    lv: str | None = None,
    myo: str | None = None,
    rv: str | None = None,
    frames: Sequence[int] | None = None,
    fixed_base: bool = False,
    by_patient_id: bool = False,
    series: Sequence[str] = (),
    workers: int | None = None,
    dicom_seg: bool = False,
    overwrite: bool = False,
    again: str = "the same command",
) -> int:
    """Segment and measure new cines; arguments are those of the command, see `arguments`, and `again` is its text.

    Returns:
        1 if a subject or its DICOM Segmentations were refused, else 0.

    Raises:
        FileNotFoundError: An input or the model is missing.
        FileExistsError: The output folder is another model's, or not ours.
        NotADirectoryError: A file is where the output folder should be.
        PermissionError: The output folder is one that this process may not write to.
        RuntimeError: Writing failed, another process works in the output folder, or highdicom is not installed.
        ValueError: The model does not fit short-axis cine, or an argument breaks its rule.
    """
    if (model is None) == (dataset is None):
        raise ValueError(
            "either `-m` (its folder or zip) or `-d` (its dataset) must name the model; "
            f"{models_in_words()}."
        )
    if frames is not None and frames[0] == frames[1]:
        raise ValueError(f"`--frames` (={frames[0]} {frames[1]}) must be two frames, ED and ES.")
    if dicom_seg:
        check_installed()
    require_place(output)  # said before minutes of reading
    if model is not None:
        refuse_fold(model, again)
    wanted = Wanted(trainer, plans, configuration)
    place = model if model is not None else results_folder(str(dataset), wanted)
    device = choose_device(device)
    steps = read_postprocessing(postprocessing) if postprocessing is not None else []
    _say(f"Looking for cines in {some([str(place) for place in inputs], 3)} ...")
    tasks, refused = find_studies(inputs, by_patient_id, series, number_of_workers(workers))
    with (
        _failures_in_words(output),
        locked(output, create=True),
        _unpacked(place, wanted, output) as folder,
    ):
        _say(f"Reading the model {place} ...")
        checked = check_model(folder, folds, checkpoint, {"LV": lv, "MYO": myo, "RV": rv}, trust)

        def load() -> Segments:
            from nnunet_ssp.predict.network import Segmenter

            print(f"Model: {place}, fold {', '.join(checked.folds)}", flush=True)
            network = Segmenter(checked, device, mirror, output)
            if device == "cpu" and network.passes > 1:
                _say(_about_mirroring(network.passes))
            return network

        known = (frames[0], frames[1]) if frames is not None else None
        job = Procedure(checked.labels, load, Choices(known, fixed_base), steps, dicom_seg, again)
        made_by = {"digest": checked.digest, "mirror": mirror, "postprocessing": list(steps)}
        refused = run(tasks, refused, Output(output), job, made_by, overwrite, checked.folds)
    return int(bool(refused))


def _say(text: str) -> None:
    """Say at once what is done now; results go to stdout, this does not."""
    print(text, file=sys.stderr, flush=True)


def _about_mirroring(passes: int) -> str:
    return (
        f"Without a GPU: each frame is segmented {passes} times, as it is and mirrored. --disable_tta does it once, "
        f"about {passes} times as fast and a little less accurate, in another -o or with --overwrite."
    )


def _say_if(text: str) -> None:
    if text:
        _say(text)


@contextmanager
def _unpacked(place: Path, wanted: Wanted, output: Path) -> Iterator[Path]:
    """Yield the model's folder; what killed runs have left in the output folder goes before a zip comes."""
    remove_half_written(output)
    with model_folder(place, wanted, output) as folder:
        yield folder


@contextmanager
def _failures_in_words(output: Path) -> Iterator[None]:
    """Raise errors that say that a stopped run can be continued."""
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        raise RuntimeError(writing_failed(output, error)) from error


def run(
    tasks: Sequence[CineTask],
    refused: Mapping[str, str],
    output: Output,
    job: Procedure,
    made_by: Mapping[str, Any],
    overwrite: bool = False,
    folds: Sequence[str] = (),
) -> dict[str, str]:
    """Segment and measure subjects, and write the tables.

    While one subject is segmented, the next one is read.

    Args:
        tasks: The subjects.
        refused: Those refused before reading, with the reason.
        output: Where to write; exists, and the caller holds its lock.
        job: How to segment and measure.
        made_by: What decides about the labels; a folder made by anything else is refused.
        overwrite: Whether to delete such a folder's content.
        folds: Those of the model, to be recorded.

    Returns:
        All that were refused, themselves or their DICOM Segmentations, with the reason.
    """
    output.take_over(made_by, overwrite, folds)
    refused = dict(refused)
    choices = asdict(job.choices) | {"structures": dict(job.labels.structures)}
    choices["frames"] = list(job.choices.frames) if job.choices.frames else None
    no_objects = without_dicom(tasks) if job.dicom_seg else {}
    # Before the first image is read: one that changes during the run is of the next run
    stamps = {task.subject: _stamp(task) for task in tasks}
    with_objects = {task.subject for task in tasks} - {*no_objects} if job.dicom_seg else set()
    waiting, done = _compare(tasks, stamps, choices, with_objects, output)
    if done:
        print("\n".join([f"{count_of(len(done), 'subject')} done before:", *done]))
    for subject, reason in refused.items():
        _say_refused(subject, reason)
    progress = _progress([task for task, before in waiting if before is None], output, stamps)
    job = replace(job, load=cache(job.load))
    with ending_at_once(lambda: _stopped(tasks, refused, output, progress, job.again)):
        for task, before, reading in _read_ahead(waiting):
            try:
                study = reading.result()
                job.choices.check(study.voxels.shape[3])
                kept = output.frames(task.subject, stamps[task.subject])
                mask, doubt = _segmented(task, before, study, job, output, kept, progress)
            except ValueError as error:
                refused[task.subject] = str(error)
                progress.forget(task.subject)
                if before is None:  # what there is, is of other images
                    output.remove(task.subject)
                _say_refused(task.subject, refused[task.subject])
                continue
            record = _measured(mask, doubt, study, job)
            page = subject_page(task.subject, record, study, mask, job.labels)
            page.write(output.page(task.subject))
            if before is not None and before["choices"].get("structures") != choices["structures"]:
                output.remove_dicom(task.subject)  # its segments are of other classes
            if job.dicom_seg and task.subject not in no_objects:
                no_objects |= _write_objects(task, mask, study, job, output)
            record |= {"stamp": stamps[task.subject], "choices": choices}
            write_json(output.record(task.subject), record)
            kept.remove()
            progress.forget(task.subject)
            print(_line(task.subject, record), flush=True)
            _say_if(progress.time_left())
        _write_tables(output, refused)
    for subject, reason in no_objects.items():
        print(f"{subject}: no DICOM Segmentations. {reason}")
    print("\n".join(_closing(tasks, refused, output)))
    return no_objects | refused


def _compare(
    tasks: Sequence[CineTask],
    stamps: Mapping[str, Sequence[str]],
    choices: Mapping[str, Any],
    with_objects: Collection[str],
    output: Output,
) -> tuple[list[tuple[CineTask, Mapping[str, Any] | None]], list[str]]:
    """Compare subjects with their records, and remove results of other images.

    Args:
        tasks: The subjects.
        stamps: Of their images.
        choices: How they are to be measured.
        with_objects: Those that are to have DICOM Segmentations.
        output: Where the records are.

    Returns:
        Subjects to do, with the record if it is of these images, and the lines of those that are done.
    """
    waiting: list[tuple[CineTask, Mapping[str, Any] | None]] = []
    done = []
    for task in tasks:
        record = output.read(task.subject)
        same = record if record is not None and _is_of(record, stamps[task.subject]) else None
        whole = task.subject not in with_objects or output.has_dicom(task.subject)
        if same is None:
            output.remove_results(task.subject)  # they are of other images, or not whole
        if same is None or same["choices"] != choices or not whole:
            waiting.append((task, same))
        else:
            done.append(_line(task.subject, same))
            output.frames(task.subject, ()).remove()  # a kill may have left them
    return waiting, done


def _read_ahead(
    waiting: Sequence[tuple[CineTask, Mapping[str, Any] | None]],
) -> Iterator[tuple[CineTask, Mapping[str, Any] | None, Future[InputCine]]]:
    """Yield subjects with what was found of them and their cine, while the next one is read."""
    with ThreadPoolExecutor(1) as reader:
        reading = [reader.submit(read_cine, task) for task, _ in waiting[:1]]
        for number, (task, before) in enumerate(waiting):
            reading += [
                reader.submit(read_cine, later) for later, _ in waiting[number + 1 : number + 2]
            ]
            yield task, before, reading.pop(0)


def _progress(
    tasks: Sequence[CineTask], output: Output, stamps: Mapping[str, Sequence[str]]
) -> FrameCount:
    """Say what there is to segment, and return what counts it."""
    frames = {task.subject: n_frames_of(task) for task in tasks}
    kept = {
        task.subject: output.frames(task.subject, stamps[task.subject]).count() for task in tasks
    }
    progress = FrameCount(frames, kept)
    _say_if(progress.introduction())
    return progress


def _write_tables(output: Output, refused: Mapping[str, str]) -> None:
    """Write the tables and the page of all that is done."""
    done = output.write_tables(refused)
    run_page(done, refused).write(output.folder / REPORT)


def _stopped(
    tasks: Sequence[CineTask],
    refused: Mapping[str, str],
    output: Output,
    progress: FrameCount,
    again: str,
) -> str:
    """Write the tables and the page of what is done when a run is stopped; returns what to say then."""
    done = [task for task in tasks if output.read(task.subject) is not None]
    with suppress(
        OSError
    ):  # the next run writes them; on a full disk the signal's exit status counts, too
        _write_tables(output, refused)
    return (
        f"stopped. Done: {len(done)} of {count_of(len(tasks), 'subject')}{progress.under_way()}. What is done stays, "
        f"see {output.folder / REPORT}. To go on with the rest:\n{again}"
    )


def _segmented(
    task: CineTask,
    before: Mapping[str, Any] | None,
    study: InputCine,
    job: Procedure,
    output: Output,
    kept: KeptFrames,
    progress: FrameCount,
) -> tuple[Array, list[float | None]]:
    """Return a subject's mask and the disagreement of each frame, of an earlier run where these are there."""
    if before is not None:
        with suppress(ValueError):  # a damaged mask is made anew
            mask = read_mask(output.mask(task.subject), study)
            return mask, before["frames"]["disagreement_percent"]
    output.remove_results(task.subject)
    kept.open()
    *shape, n_frames = study.voxels.shape
    found = {t: frame for t in range(n_frames) if (frame := kept.read(t, shape)) is not None}
    missing = [t for t in range(n_frames) if t not in found]
    if missing:
        new = job.load().segment(study.voxels[..., missing], study.affine)
        for t, (labels, doubt) in progress.through(task.subject, n_frames, missing, new):
            kept.write(t, labels, doubt)
            found[t] = labels, doubt
    mask = np.stack([found[t][0] for t in range(n_frames)], axis=-1)
    for t in range(n_frames if job.postprocessing else 0):
        mask[..., t] = postprocess(mask[..., t], job.postprocessing)
    write_mask(output.mask(task.subject), mask, study)
    doubts = [found[t][1] for t in range(n_frames)]
    return mask, [None if math.isnan(value) else value for value in doubts]


def _write_objects(
    task: CineTask, mask: Array, study: InputCine, job: Procedure, output: Output
) -> dict[str, str]:
    """Write a subject's DICOM Segmentations; returns it with the reason if that failed, and leaves none then."""
    try:
        write_segmentations(output.dicom(task.subject), mask, read_sources(study), job.labels)
    except OSError:
        raise
    except Exception as error:  # highdicom and pydicom refuse headers by errors of many kinds
        output.remove_dicom(task.subject)
        ours = isinstance(error, ValueError) and str(task.place) in str(error)
        return {task.subject: str(error) if ours else f"{task.place}: highdicom says {error!r}."}
    return {}


def _stamp(task: CineTask) -> list[str]:
    """Return what tells a subject's images from others, however their path is typed."""
    place = str(task.place.resolve())
    return [place, *(f"{file.name} {input_stamp(file)}" for file in task.images)]


def _is_of(record: Mapping[str, Any], stamp: Sequence[str]) -> bool:
    """Whether a record is of images; earlier versions recorded their path as it was typed."""
    place, *files = record["stamp"] or [""]
    return files == [*stamp[1:]] and str(Path(str(place)).resolve()) == stamp[0]


def _measured(
    mask: Array, doubt: Sequence[float | None], study: InputCine, job: Procedure
) -> dict[str, Any]:
    metrics = measure(mask, study.spacing, job.labels, job.choices, study.spacing_known)
    subject = {
        **metrics.subject,
        "heart_rate": study.heart_rate,
        "disagreement_percent": mean(doubt),
    }
    notes = list(study.notes)
    if mask.shape[3] == 1:
        notes.append("one frame only: no ES, stroke volume or EF")
    return {
        "frames": {**metrics.frames, "disagreement_percent": list(doubt)},
        "subject": subject,
        "flags": dict(metrics.flags),
        "notes": notes,
    }


def _say_refused(subject: str, reason: str) -> None:
    print(f"{subject}: refused. {reason}", flush=True)


def _line(subject: str, record: Mapping[str, Any]) -> str:
    flags = record["flags"]
    raised = f", {count_of(len(flags), 'flag')} ({', '.join(flags)})" if flags else ""
    exams = [note for note in record["notes"] if note.startswith(SEVERAL_VISITS)]
    return "; ".join([f"{subject}: {in_short(record['subject'])}{raised}", *exams])


def _closing(tasks: Sequence[CineTask], refused: Mapping[str, str], output: Output) -> list[str]:
    found = [record for task in tasks if (record := output.read(task.subject)) is not None]
    raised = {name for record in found for name in record["flags"]}
    lines = [f"flag {flag.name}: {flag.rule}" for flag in FLAGS if flag.name in raised]
    lines += [f"{count_of(len(refused), 'subject')} refused, see volumes.csv"] if refused else []
    return [*lines, f"Report: {output.folder / REPORT}"]
