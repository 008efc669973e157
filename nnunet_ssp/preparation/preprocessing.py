"""nnU-Net's own preprocessing of every case, and the case's slices for the store."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.membership import training_cases
from nnunet_ssp.console import count_of, some
from nnunet_ssp.files.atomic import TEMPORARY, atomic_write
from nnunet_ssp.parallel import process
from nnunet_ssp.preparation import prepared
from nnunet_ssp.preparation.raw import (
    CaseJob,
)
from nnunet_ssp.preparation.raw_checks import (
    CheckedPlans,
    CheckedReader,
    RefusedError,
    Rules,
    one_line,
)
from nnunet_ssp.slices import store as slices
from nnunet_ssp.slices.intact import file_stamp

# The files of a preprocessed case, which exists once its .b2nd does.
ENDINGS = ("_seg.b2nd", ".pkl", ".b2nd")
# Older versions of nnU-Net left the others.
REMOVED = (*ENDINGS, "_seg.npz", ".npz", "_seg.npy", ".npy")
SECONDS_BETWEEN_INDEXES = 10.0  # a killed run loses the cases of at most this time
SPACE_FOR_A_CASE = 2**24  # bytes; more than most cases take


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
    run = partial(
        preprocess_case,
        target=target,
        plans_file=target / f"{plans.plans_name}.json",
        configuration=configuration,
        content=content,
        rules=replace(rules, reader=str(plans.plans["image_reader_writer"])),
    )
    results = process(run, todo, workers, f"Preprocessing {configuration}", "case")
    problems = _collect(todo, results, done, partial(slices.write_index, store, recipe))
    missing = {**_without_image(target, jobs), **problems} if flat else problems
    slices.write_index(store, recipe, done, missing)
    if flat:
        labelled = sum(bool(job.label) for job in jobs if job.case in done)
        n_slices = sum(entry.shape[0] for entry in done.values())
        print(
            f"Slice store: {len(done)} frames ({labelled} labelled), {n_slices} slices in {store}"
        )
    return list(problems.values())


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
    done = {
        job.case: entry
        for job in wanted
        if job.case in done
        and done[job.case].source == job.source()
        and (entry := slices.checked(done[job.case], _files(job, folder, store if flat else None)))
    }
    # From here on the index names valid cases only, and no other case is there to be trained on.
    slices.write_index(store, recipe, done)
    valid = {
        f"{job.case}{end}" for job in wanted if job.label and job.case in done for end in ENDINGS
    }
    prepared.remove_others(folder, known, REMOVED, valid)
    prepared.remove_others(store, known, (".npy",), {f"{case}.npy" for case in done})
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
    todo: Sequence[CaseJob],
    results: Iterable[slices.StoredCase | str],
    done: dict[str, slices.StoredCase],
    write_index: Callable[[dict[str, slices.StoredCase]], None],
) -> dict[str, str]:
    """Add the results to `done` as they come, and write the index now and then.

    Returns:
        The problems of the cases that failed, in words, by case.
    """
    problems: dict[str, str] = {}
    written = time.monotonic()
    try:
        for job, result in zip(todo, results, strict=True):
            if isinstance(result, str):
                problems[job.case] = result
                continue
            done[job.case] = result
            if time.monotonic() - written > SECONDS_BETWEEN_INDEXES:
                write_index(done)
                written = time.monotonic()
    except BaseException:
        write_index(done)
        raise
    return problems


def _files(job: CaseJob, folder: Path, store: Path | None) -> list[Path]:
    """List the files made of a case: in nnU-Net's folder if it is labelled, in the store if slices are stored."""
    own = [store / f"{job.case}.npy"] if store else []
    return own + [folder / f"{job.case}{ending}" for ending in ENDINGS if job.label]


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
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there are as many processes as cores
    plans = CheckedPlans(plans_file, CheckedReader(rules))
    manager = plans.get_configuration(configuration)
    preprocessor = manager.preprocessor_class(verbose=False)
    folder = target / manager.data_identifier
    store = slices.store_folder(target, manager.data_identifier)
    temporary = target / TEMPORARY / f"{configuration}-{os.getpid()}"
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        source = job.source()
        images = list(job.images)
        if job.label is None:
            without = WithoutMask(manager.configuration)
            data, _, properties = preprocessor.run_case(images, None, plans, without, content)
            if data.min() == data.max():
                return f"{images[0]}: all voxels are equal, there is no image."
            shape = slices.write_case(store, job.case, data)
            position = slices.stack_position(properties)
            stored = tuple(map(file_stamp, _files(job, folder, store)))
            return slices.StoredCase(shape, *position, source, stored)
        folder.mkdir(exist_ok=True)
        made = str(temporary / job.case)
        preprocessor.run_case_save(made, images, job.label, plans, manager, content)
        for ending in ENDINGS:
            os.replace(f"{made}{ending}", folder / f"{job.case}{ending}")
        if len(manager.patch_size) == 3:  # no slices are stored
            stored = tuple(map(file_stamp, _files(job, folder, None)))
            return slices.StoredCase((0, 0, 0, 0), 0, 0, source, stored)
        entry = slices.add_preprocessed(store, folder, job.case)
        stored = tuple(map(file_stamp, _files(job, folder, store)))
        return replace(entry, source=source, stored=stored)
    except RefusedError as error:
        return str(error)
    except Exception as error:
        require_space(temporary)
        return f"{job.images[0]}: nnU-Net cannot preprocess it ({one_line(error)})."
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class WithoutMask(ConfigurationManager):
    """Configuration for cases without a mask, whose data are the same.

    nnU-Net makes up a mask for them, which nobody keeps. Resampling it takes as long as resampling the image.
    """

    @property
    def resampling_fn_seg(self) -> Callable[..., NDArray[Any]]:
        """A function that makes an empty mask of the new shape."""
        return lambda mask, new_shape, *_: np.zeros((len(mask), *new_shape), np.int8)


def require_space(folder: Path) -> None:
    """Tell a full disk from a bad case; blosc2 and numpy report a full disk by errors of many kinds.

    Raises:
        OSError: The system's error, if there is no space for a case.
    """
    probe = folder / "space"
    try:
        probe.write_bytes(bytes(SPACE_FOR_A_CASE))
    finally:
        probe.unlink(missing_ok=True)
