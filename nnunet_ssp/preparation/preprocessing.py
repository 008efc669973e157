"""nnU-Net's own preprocessing of every case, and the case's slices for the store."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.membership import training_cases
from nnunet_ssp.console import count_of, some
from nnunet_ssp.files.atomic import TEMPORARY, atomic_write
from nnunet_ssp.files.nnunet import NATURAL
from nnunet_ssp.parallel import WITH_NNUNET, process
from nnunet_ssp.preparation import prepared
from nnunet_ssp.preparation.packing import (
    groups,
    open_plans,
    preprocess_pack,
    require_space,
    run_unlabelled,
    why_it_failed,
)
from nnunet_ssp.preparation.raw import (
    CaseJob,
)
from nnunet_ssp.preparation.raw_checks import (
    RefusedError,
    Rules,
)
from nnunet_ssp.slices import store as slices
from nnunet_ssp.slices.intact import file_stamp
from nnunet_ssp.slices.packs import in_whole_packs, remove_other_packs

# The files of a preprocessed case, which exists once its .b2nd does.
ENDINGS = ("_seg.b2nd", ".pkl", ".b2nd")
# Older versions of nnU-Net left the others.
REMOVED = (*ENDINGS, "_seg.npz", ".npz", "_seg.npy", ".npy")
SECONDS_BETWEEN_INDEXES = 10.0  # a killed run loses the cases of at most this time


def copy_labels(labelled: Sequence[CaseJob], target: Path, ending: str) -> None:
    """Copy masks to `gt_segmentations`, where nnU-Net's validation looks for them."""
    folder = target / "gt_segmentations"
    for job in labelled:
        copy, mask = folder / f"{job.case}{ending}", Path(str(job.label))
        if not copy.is_file() or _stamp(copy) != _stamp(mask):
            with atomic_write(copy, target / TEMPORARY) as temporary:
                shutil.copy2(mask, temporary)  # with its time of modification
    keep = {f"{job.case}{ending}" for job in labelled}
    prepared.remove_others(folder, prepared.recorded(target), (ending,), keep)


def _stamp(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns


def preprocess(
    jobs: Sequence[CaseJob],
    target: Path,
    plans: PlansManager,
    content: dict[str, Any],
    configuration: str,
    workers: int,
    rules: Rules,
) -> list[str]:
    """Bring nnU-Net's folder and, for a 2D configuration, the slice store up to date.

    Returns:
        The problems of the cases that failed, in words.
    """
    manager = plans.get_configuration(configuration)
    folder = target / manager.data_identifier
    store = slices.store_folder(target, manager.data_identifier)
    flat = len(manager.patch_size) == 2
    print(
        f"{plans.plans_name} {configuration}: patch {'x'.join(map(str, manager.patch_size))}, "
        f"batch size {manager.batch_size}, spacing {[round(float(s), 3) for s in manager.spacing]} mm, "
        f"{len(manager.pool_op_kernel_sizes)} stages"
    )
    recipe = _recipe(plans, manager, content)
    wanted = [job for job in jobs if flat or job.label]
    done = _keep_valid(wanted, recipe, target, folder, store, flat)
    todo = [job for job in wanted if job.case not in done]
    if done:
        print(f"{len(done)} of {len(wanted)} cases are up to date.")
    shared: dict[str, Any] = {
        "target": target,
        "plans_file": target / f"{plans.plans_name}.json",
        "configuration": configuration,
        "content": {name: value for name, value in content.items() if name != "dataset"},
        "rules": replace(rules, reader=str(plans.plans["image_reader_writer"])),
    }
    results = _in_processes(todo, shared, workers, flat and shared["rules"].reader == NATURAL)
    problems = _collect(results, done, partial(slices.write_index, store, recipe))
    missing = {**_without_image(target, jobs), **problems} if flat else problems
    slices.write_index(store, recipe, done, missing)
    if flat:
        labelled = sum(bool(job.label) for job in jobs if job.case in done)
        n_slices = sum(entry.shape[0] for entry in done.values())
        print(
            f"Slice store: {count_of(len(done), 'frame')} ({labelled} labelled), "
            f"{count_of(n_slices, 'slice')} in {store}"
        )
    return list(problems.values())


def _in_processes(
    todo: Sequence[CaseJob], shared: dict[str, Any], workers: int, packs: bool
) -> Iterator[tuple[CaseJob, slices.StoredCase | str]]:
    """Preprocess cases in worker processes; yield each with its entry or problem.

    Args:
        todo: The cases.
        shared: Further arguments of `preprocess_case`.
        workers: Number of processes.
        packs: Whether unlabelled cases are stored in packs.
    """
    label = f"Preprocessing {shared['configuration']}"
    packed = [job for job in todo if packs and job.label is None]
    single = [job for job in todo if not packs or job.label is not None]
    one = partial(preprocess_case, **shared)
    yield from zip(single, process(one, single, workers, label, "case", WITH_NNUNET), strict=True)
    parts = groups(packed, workers)
    many = partial(preprocess_pack, **shared)
    results = process(many, parts, workers, label, "pack", WITH_NNUNET)
    for jobs, entries in zip(parts, results, strict=True):
        yield from zip(jobs, entries, strict=True)


def _keep_valid(
    wanted: Sequence[CaseJob],
    recipe: dict[str, Any],
    target: Path,
    folder: Path,
    store: Path,
    flat: bool,
) -> dict[str, slices.StoredCase]:
    """Return the cases that are up to date, and remove the files of all others from folder and store.

    Args:
        wanted: All cases that belong there.
        recipe: How cases are preprocessed now.
        target: The dataset's folder in nnUNet_preprocessed.
        folder: nnU-Net's folder of the configuration.
        store: The folder of its slice store and index.
        flat: Slices are stored.
    """
    try:
        made_by, done = slices.read_index(store)
    except (FileNotFoundError, ValueError):
        made_by, done = recipe, {}
    known = prepared.recorded(target) | done.keys()
    if made_by != recipe:
        print("The plans or labels have changed: all cases are preprocessed again.")
        done = {}
    before = done
    done = {
        job.case: entry
        for job in wanted
        if job.case in before
        and before[job.case].source == job.source()
        and (entry := _checked(before[job.case], job, folder, store if flat else None))
    }
    done = in_whole_packs(done, before)
    # From here on the index names valid cases only, and no other case is there to be trained on.
    slices.write_index(store, recipe, done)
    valid = {
        f"{job.case}{end}" for job in wanted if job.label and job.case in done for end in ENDINGS
    }
    prepared.remove_others(folder, known, REMOVED, valid)
    single = {f"{case}.npy" for case, entry in done.items() if not entry.pack}
    prepared.remove_others(store, known, (".npy",), single)
    remove_other_packs(store, done)
    _warn_of_foreign(folder, known)
    return done


def _warn_of_foreign(folder: Path, known: Collection[str]) -> None:
    """Warn of preprocessed cases that are not of this dataset."""
    foreign = sorted(
        file.stem
        for file in folder.glob("*.b2nd")
        if not file.name.endswith(ENDINGS[0]) and file.stem not in known
    )
    if foreign:
        print(
            f"WARNING: {folder} holds {count_of(len(foreign), 'case')} not of this dataset, e.g. {foreign[0]}. "
            "nnU-Net's fold all would train on all in the folder: remove what you did not put there."
        )


def _collect(
    results: Iterable[tuple[CaseJob, slices.StoredCase | str]],
    done: dict[str, slices.StoredCase],
    write_index: Callable[[dict[str, slices.StoredCase]], None],
) -> dict[str, str]:
    """Add the results to `done` as they come, and write the index now and then.

    Args:
        results: Each case with its entry or, if it failed, the problem.
        done: Entries of the cases that are up to date.
        write_index: Writes these.

    Returns:
        The problems of the cases that failed, in words, by case.
    """
    problems: dict[str, str] = {}
    written, pause = time.monotonic(), SECONDS_BETWEEN_INDEXES
    try:
        for job, result in results:
            if isinstance(result, str):
                problems[job.case] = result
                continue
            done[job.case] = result
            if (started := time.monotonic()) - written > pause:
                write_index(done)
                written = time.monotonic()
                # The index of a hundred thousand cases takes seconds to write.
                pause = max(SECONDS_BETWEEN_INDEXES, 20 * (written - started))
    except BaseException:
        write_index(done)
        raise
    return problems


def _files(job: CaseJob, folder: Path, store: Path | None) -> list[Path]:
    """List the files made of a case: in nnU-Net's folder if it is labelled, in the store if slices are stored."""
    own = [store / f"{job.case}.npy"] if store else []
    return own + [folder / f"{job.case}{ending}" for ending in ENDINGS if job.label]


def _checked(
    entry: slices.StoredCase, job: CaseJob, folder: Path, store: Path | None
) -> slices.StoredCase | None:
    """Return the entry of a case whose files are as they were written."""
    if entry.pack:
        packed = store is not None and job.label is None
        return slices.checked(entry, [Path(str(store)) / entry.pack]) if packed else None
    return slices.checked(entry, _files(job, folder, store))


def _without_image(target: Path, jobs: Sequence[CaseJob]) -> dict[str, str]:
    """Find and print the training cases of `cases.csv` without an image; return them with the reason."""
    table = target / "cases.csv"
    cases = read_cases(table) if table.is_file() else {}
    absent = training_cases(cases) - {job.case for job in jobs}
    if absent:
        print(
            f"WARNING: {table} names cases that have no image, so no training sees them: {some(absent)}"
        )
    return dict.fromkeys(sorted(absent), "there is no image of it")


def _recipe(
    plans: PlansManager, manager: ConfigurationManager, content: dict[str, Any]
) -> dict[str, Any]:
    """Collect what determines preprocessed cases: the part for images, which trainers check, and that for masks."""
    configuration = manager.configuration
    names = ("preprocessor_name", "resampling_fn_seg", "resampling_fn_seg_kwargs")
    masks = {name: configuration[name] for name in names}
    masks |= {name: content.get(name) for name in ("labels", "regions_class_order")}
    images = slices.preprocessing_of(plans.plans, configuration)
    return dict(json.loads(json.dumps({**images, "masks": masks})))


def preprocess_case(
    job: CaseJob,
    target: Path,
    plans_file: Path,
    configuration: str,
    content: dict[str, Any],
    rules: Rules,
) -> slices.StoredCase | str:
    """Preprocess one case with nnU-Net's own preprocessor; write a labelled one also to nnU-Net's folder.

    Returns:
        The case's entry of the slice store or, if it failed, the problem in words.

    Raises:
        OSError: The disk is full.
    """
    plans, manager = open_plans(plans_file, configuration, rules)
    folder = target / manager.data_identifier
    store = slices.store_folder(target, manager.data_identifier)
    temporary = target / TEMPORARY / f"{configuration}-{os.getpid()}"
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        source = job.source()
        if job.label is None:
            data, properties = run_unlabelled(job, plans, manager, content)
            shape = slices.write_case(store, job.case, data)
            position = slices.stack_position(properties)
            stored = tuple(map(file_stamp, _files(job, folder, store)))
            return slices.StoredCase(shape, *position, source, stored)
        folder.mkdir(exist_ok=True)
        made = str(temporary / job.case)
        preprocessor = manager.preprocessor_class(verbose=False)
        preprocessor.run_case_save(made, list(job.images), job.label, plans, manager, content)
        for ending in ENDINGS:
            os.replace(f"{made}{ending}", folder / f"{job.case}{ending}")
        if len(manager.patch_size) == 3:  # no slices are stored
            stored = tuple(map(file_stamp, _files(job, folder, None)))
            return slices.StoredCase((0, 0, 0, 0), 0, 0, source, stored)
        entry = slices.add_preprocessed(store, folder, job.case)
        stored = tuple(map(file_stamp, _files(job, folder, store)))
        return replace(entry, source=source, stored=stored)
    except Exception as error:
        if not isinstance(error, RefusedError):
            require_space(temporary)
        return why_it_failed(job, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
