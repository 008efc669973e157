"""The shared part of all converters' commands: their arguments, further sources, lists of test subjects.

    nnunet-ssp convert mnms -i FOLDER -d 116 --add acdc:FOLDER --add mnms2:FOLDER

In a dataset of several sources each subject's name begins with its source: `mm1-A1D9Z7`, `acdc-patient001`. All
sources must have the same labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from nnunet_ssp.cohort.cases import case_name
from nnunet_ssp.cohort.privacy import PUBLIC, hashed_path
from nnunet_ssp.cohort.pseudonyms import extend_key, key_file, named_otherwise, read_key
from nnunet_ssp.console import nearest, path, some
from nnunet_ssp.conversion.convert import convert_subjects, look_at_headers
from nnunet_ssp.conversion.record import NewDataset, is_finished, was_finished
from nnunet_ssp.conversion.subjects import (
    TEST_FRAMES,
    Cine,
    Look,
    Renamed,
    Task,
    TestFrames,
)
from nnunet_ssp.conversion.summary import Remarks
from nnunet_ssp.dataset_conversion import SOURCES, load_converter
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.tables import read_names
from nnunet_ssp.nnunet import check_dataset_id

NAMING = (
    "test",
    "series",
    "label_values_for",
)  # options that name subjects; under pseudonyms the key has the names
NAMES_STAY = "This conversion began with the subjects' names and keeps them. --overwrite begins again, with pseudonyms."


@dataclass(frozen=True)
class Source:
    """The subjects of one dataset, listed and not yet read."""

    # One of `CONVERTERS`
    converter: str
    folder: Path
    # As in `cases.csv`
    name: str
    labels: Mapping[str, int]
    tasks: Sequence[Task]
    refused: Mapping[str, str]
    # Of one of the tasks
    read: Callable[[Any], Cine]
    look: Callable[[Any], Look] = look_at_headers
    # Printed, and never in `convert.json`, as they may name subjects
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class CombinedTask(Task):
    """A subject of one of several sources, under its name in the dataset."""

    converter: str
    original: Task


def open_source(converter: str, folder: str | Path, **options: object) -> Source:
    """List the subjects of a dataset.

    Args:
        converter: One of `CONVERTERS`.
        folder: The folder, as for the converter's command.
        options: Further arguments of its `list_tasks`.

    Raises:
        FileNotFoundError: The folder, its table or the subjects are missing.
        ValueError: The table is wrong.
    """
    module = load_converter(converter)
    tasks, refused = module.list_tasks(Path(folder), **options)
    return Source(
        converter,
        Path(folder),
        module.SOURCE,
        module.LABELS,
        tasks,
        refused,
        module.read_subject,
        _look_of(module),
        module.remarks_on(tasks) if hasattr(module, "remarks_on") else (),
    )


def _look_of(module: ModuleType) -> Callable[[Any], Look]:
    return getattr(module, "look", look_at_headers)


def _readers(sources: Sequence[Source]) -> tuple[Callable[[Any], Cine], Callable[[Any], Look]]:
    if len(sources) > 1:
        return read_combined, look_combined
    return sources[0].read, sources[0].look


def _named_if_used(test_frames: TestFrames, added: Sequence[tuple[str, Path]]) -> dict[str, object]:
    """Return what a dataset's record holds only where it is used, so that earlier records stay equal."""
    found: dict[str, object] = {}
    if test_frames != TEST_FRAMES[0]:
        found["test_frames"] = test_frames
    if added:
        found["add"] = [f"{converter}:{folder.resolve()}" for converter, folder in added]
    return found


def convert_sources(
    sources: Sequence[Source],
    *,
    dataset_id: int,
    name: str,
    description: str,
    add: Iterable[str] = (),
    test: str | Path | None = None,
    test_frames: TestFrames = "labelled",
    options: Mapping[str, object] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    dry_run: bool = False,
    keep_ids: bool = False,
    count_refused: Callable[[int], None] | None = None,
    remarks: Remarks = Remarks(),  # noqa: B008 (immutable)
) -> Path:
    """Convert one source, or several as one dataset, and return its folder.

    Args:
        sources: The command's own.
        dataset_id: Number of the new dataset.
        name: Its name.
        description: Text for `dataset.json`.
        add: Further sources, `acdc:FOLDER`.
        test: File with the names of the test subjects; by default the sources' own division.
        test_frames: Of test subjects, "labelled" frames or "all"; subjects of own cine without labels have all.
        options: Whatever else changes the result.
        overwrite: Delete an earlier conversion of this id and start again.
        workers: Number of processes.
        dry_run: Write nothing.
        keep_ids: Keep the names of own cine. By default they get random ones, with a key apart from the dataset; a
            conversion that was begun with names keeps them.
        count_refused: Called with the number of refused subjects, also after a dry run.
        remarks: Texts for the user about the dataset.

    Raises:
        FileExistsError: The id is taken.
        FileNotFoundError: A folder, a table or all subjects are missing.
        RuntimeError: An nnU-Net variable is not set, or writing failed.
        ValueError: A table, `test`, `test_frames`, `add` or the labels of a source are wrong, or all subjects are
            refused.
    """
    if test_frames not in TEST_FRAMES:
        raise ValueError(f"`test_frames` (={test_frames}) must be one of {', '.join(TEST_FRAMES)}.")
    added = [_parse_source(text) for text in add]
    general = [*remarks.general, *_overlap(sources, added)]
    sources = [*sources, *(open_source(converter, folder) for converter, folder in added)]
    several = len(sources) > 1
    read, look = _readers(sources)
    tasks, refused = _all_subjects(sources)
    tasks, chosen = _divided(tasks, refused, test)
    local = {source.name for source in sources} - {*PUBLIC}
    target = check_dataset_id(dataset_id, name)
    stays = bool(local) and not (keep_ids or overwrite) and _began_with_names(target)
    renames = bool(local) and not (keep_ids or stays)
    heads = _local_subjects((*(task.subject for task in tasks), *refused), local, several)
    general += [*[NAMES_STAY] * stays, *_not_known_again(target, heads, local, renames)]
    given = _without_names({"test": chosen, **(options or {})}, renames)
    given |= _named_if_used(test_frames, added)
    tasks = [replace(task, test_frames=test_frames) for task in tasks]
    description += f"; with {', '.join(converter for converter, _ in added)}" * bool(added)
    new = _new_dataset(dataset_id, name, description, sources, given)
    if stays and not dry_run and _is_whole(target, new):
        print(f"{target}: converted before, nothing to do. {NAMES_STAY}")
        return target
    return convert_subjects(
        tasks,
        read,
        new,
        refused=refused,
        overwrite=overwrite,
        workers=workers,
        dry_run=dry_run,
        look=look,
        remarks=_all_remarks(replace(remarks, general=general), sources),
        rename=partial(_rename, heads=heads) if renames else None,
        count_refused=count_refused,
    )


def _all_remarks(remarks: Remarks, sources: Sequence[Source]) -> Remarks:
    """Add those of the sources, and count several sources apart."""
    local = [*remarks.local, *(line for source in sources for line in source.remarks)]
    return replace(remarks, local=local, prefixes=_names_of(sources) if sources[1:] else ())


def _new_dataset(
    dataset_id: int,
    name: str,
    description: str,
    sources: Sequence[Source],
    options: Mapping[str, object],
) -> NewDataset:
    return NewDataset(
        dataset_id=dataset_id,
        name=name,
        labels=sources[0].labels,
        description=description,
        converter="+".join(dict.fromkeys(source.converter for source in sources)),
        source=sources[0].folder,
        options=options,
    )


def _divided(
    tasks: Sequence[Task], refused: Iterable[str], test: str | Path | None
) -> tuple[Sequence[Task], list[str] | None]:
    """Return the subjects divided as the file `test` says, and the test subjects that it lists, if it is given."""
    if test is None:
        return tasks, None
    chosen = _read_test_subjects(Path(test), {*refused, *(task.subject for task in tasks)})
    return [replace(t, split="test" if t.subject in chosen else "train") for t in tasks], chosen


def _names_of(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(source.name for source in sources))


def _all_subjects(sources: Sequence[Source]) -> tuple[Sequence[Task], Mapping[str, str]]:
    """Return the subjects of sources with the same labels, and those that cannot be used with the reason."""
    first = sources[0]
    for source in sources:
        if dict(source.labels) != dict(first.labels):
            own, wanted = (
                ", ".join(f"{n} {v}" for n, v in s.labels.items()) for s in (source, first)
            )
            raise ValueError(
                f"{source.folder}: labels (={own}) must be those of {first.folder} (={wanted})."
            )
    tasks, refused = combine(sources) if len(sources) > 1 else (first.tasks, first.refused)
    if not tasks:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in list(refused.items())[:20])
        raise FileNotFoundError(f"{first.folder}: no subject could be used.\n{reasons}")
    return tasks, refused


def _began_with_names(target: Path) -> bool:
    """Whether a conversion that can be continued here was begun without pseudonyms."""
    marker = target / "convert.json"
    if not marker.is_file():
        return False
    options = read_json(marker, dict).get("options")
    return isinstance(options, dict) and "pseudonyms" not in options


def _without_names(options: Mapping[str, object], renames: bool) -> dict[str, object]:
    """Return the options for `convert.json`; with pseudonyms, hashes replace lists of names."""
    if not renames:
        return dict(options)
    hashes = {key: hashed_path(repr(options[key])) for key in NAMING if options.get(key)}
    return {**options, **hashes, "pseudonyms": True}


def _is_whole(target: Path, new: NewDataset) -> bool:
    """Whether this conversion was finished before, and left nothing to remove."""
    settings = new.settings()
    return is_finished(target, settings) and not was_finished(target, settings)


def _local_subjects(
    subjects: Iterable[str], local: Collection[str], combined: bool
) -> dict[str, str]:
    """Return the subjects of local sources, each with the part of its name that stands for its source.

    Args:
        subjects: All subjects.
        local: Names of the local sources.
        combined: Whether subjects are named after their source.
    """
    prefixes = tuple(f"{source}-" for source in sorted(local)) if combined else ("",) * len(local)
    return {
        subject: next(prefix for prefix in prefixes if subject.startswith(prefix))
        for subject in subjects
        if subject.startswith(prefixes)
    }


def _not_known_again(
    target: Path, heads: Mapping[str, str], local: Collection[str], renames: bool
) -> list[str]:
    """Warn of datasets with the same subjects under the other kind of name: no check for leaks finds them."""
    names = {subject.removeprefix(head) for subject, head in heads.items()}
    others = named_otherwise(target, names, local, renames)
    if not others:
        return []
    kind, way = ("names", "--keep-ids") if renames else ("pseudonyms", "pseudonyms here, too")
    return [
        f"WARNING: {', '.join(others)} has subjects of this dataset under their {kind}, so no check for leaks "
        f"knows them here. Use no weights that were pretrained there, or choose {way}."
    ]


def _rename(
    target: Path,
    tasks: Sequence[Task],
    refused: Mapping[str, str],
    *,
    heads: Mapping[str, str],
) -> Renamed[Task]:
    """Give the subjects of local sources their pseudonyms; the others keep their public codes.

    Args:
        target: The dataset's folder.
        tasks: The subjects.
        refused: Those refused before reading.
        heads: See `_local_subjects`.
    """
    file = key_file(target)
    before = read_key(file)
    key = extend_key(file, [subject.removeprefix(head) for subject, head in heads.items()])
    new = {subject: head + key[subject.removeprefix(head)] for subject, head in heads.items()}

    def renamed(task: Task) -> Task:
        if task.subject not in new:
            return task
        pseudonym = new[task.subject]
        if isinstance(task, CombinedTask):
            inner = pseudonym.removeprefix(heads[task.subject])
            return replace(task, subject=pseudonym, original=replace(task.original, subject=inner))
        return replace(task, subject=pseudonym)

    return Renamed(
        sorted(map(renamed, tasks), key=lambda task: task.subject),
        {new.get(subject, subject): reason for subject, reason in refused.items()},
        {pseudonym: subject for subject, pseudonym in new.items()},
        file,
        sorted(key.keys() - before.keys()),
    )


def combine(sources: Sequence[Source]) -> tuple[list[CombinedTask], dict[str, str]]:
    """Let each subject's name begin with its source; refuse names that occur in two folders."""
    tasks, refused = [], {}
    named = [
        (f"{source.name}-{task.subject}", source, task)
        for source in sources
        for task in source.tasks
    ]
    counts = Counter(subject for subject, _, _ in named)
    for subject, source, task in named:
        if counts[subject] > 1:
            refused[subject] = f"{source.folder}: a subject of this name is in another source too."
        else:
            tasks.append(CombinedTask(subject, task.split, task.files, source.converter, task))
    for source in sources:
        refused |= {f"{source.name}-{subject}": why for subject, why in source.refused.items()}
    return tasks, refused


def read_combined(task: CombinedTask) -> Cine:
    """Read a subject with its own converter, and name its cases after the source.

    Raises:
        ValueError: The subject cannot be converted; names the file and the rule.
    """
    cine: Cine = load_converter(task.converter).read_subject(_original(task))
    cine.cases = [
        replace(case, case=case_name(case.subject, case.frame, case.source)) for case in cine.cases
    ]
    return cine


def look_combined(task: CombinedTask) -> Look:
    """Look at a subject as its own converter does."""
    look = _look_of(load_converter(task.converter))
    return replace(look(_original(task)), subject=task.subject)


def _original(task: CombinedTask) -> Task:
    return replace(task.original, split=task.split, test_frames=task.test_frames)


def _parse_source(text: str) -> tuple[str, Path]:
    known = SOURCES
    converter, _, folder = text.partition(":")
    if converter not in known or not folder:
        raise ValueError(
            f"`--add` (={text}) must be SOURCE:FOLDER, SOURCE one of {', '.join(known)}."
        )
    return converter, path(folder)


def _overlap(sources: Sequence[Source], added: Sequence[tuple[str, Path]]) -> list[str]:
    own = {source.converter for source in sources}
    both = {"mnms", "mnms2"}
    if both <= own or not both <= own | {converter for converter, _ in added}:
        return []
    return [
        "WARNING: some subjects of M&Ms may be in M&Ms-2 too, under another number, perhaps once for training and "
        "once for the test. nnunet-ssp convert mnms+mnms2 leaves out the categories of M&Ms-2 in which they would be."
    ]


def _read_test_subjects(file: Path, known: Iterable[str]) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file. --test takes a text file with the names of the test subjects, one a line."
        )
    names = sorted(read_names(file))
    if unknown := sorted({*names} - {*known}):
        raise ValueError(
            f"{file}: no subject is called {some(unknown)}.{nearest(unknown[0], {*known}, 1)} The same command with "
            "--dry-run and without --test lists them."
        )
    return names
