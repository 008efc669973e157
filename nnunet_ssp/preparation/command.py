"""`nnunet-ssp prepare`: nnU-Net's own fingerprint, plan and preprocessing, then the slice store.

Everything is done case by case with nnU-Net's public classes and renamed into place, so that an interrupted run goes
on where it stopped. (nnU-Net's `DefaultPreprocessor.run` would empty its folder first.) The index of the slice store
is the record of what is done; a case whose files or plans changed is prepared again.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nnunetv2
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.consistency import require_known_names, some
from nnunet_ssp.cohort.folds import copy_tables, is_trainable, read_splits
from nnunet_ssp.files.atomic import TEMPORARY, atomic_write
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.lock import locked_dataset
from nnunet_ssp.files.names import must_all_be_plain, must_be_plain
from nnunet_ssp.files.nnunet import check_dataset, configuration_of, read_plans
from nnunet_ssp.nnunet import dataset_folder, dataset_id, environment, nnunet_folder, quiet
from nnunet_ssp.parallel import number_of_workers, process
from nnunet_ssp.preparation import prepared
from nnunet_ssp.preparation.fingerprints import make_fingerprint, with_median_spacing
from nnunet_ssp.preparation.planes import check_plane
from nnunet_ssp.preparation.raw_checks import (
    CheckedPlans,
    CheckedReader,
    RefusedError,
    Rules,
    absurd_spacing,
    in_words,
    label_values,
    listed,
)
from nnunet_ssp.slices import store as slices
from nnunet_ssp.slices.intact import file_stamp

REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")  # of dataset.json
ENDINGS = ("_seg.b2nd", ".pkl", ".b2nd")  # of a preprocessed case; it exists when its .b2nd does
REMOVED = (
    *ENDINGS,
    "_seg.npz",
    ".npz",
    "_seg.npy",
    ".npy",
)  # also those of older versions of nnU-Net
NNUNET_FOLDS = 5
SECONDS_BETWEEN_INDEXES = 10.0  # a killed run prepares the cases of at most this time again
SPACE_FOR_A_CASE = 2**24  # bytes; more than most cases take

Source = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Job:
    """One case to preprocess.

    Attributes:
        case: its name.
        images: one file per channel.
        label: the mask; None for an unlabelled case.
    """

    case: str
    images: tuple[str, ...]
    label: str | None

    @property
    def files(self) -> list[Path]:
        """Images and mask."""
        return [Path(file) for file in (*self.images, self.label) if file is not None]

    def source(self) -> Source:
        """Name, size in bytes and modification time in ns of each file."""
        return tuple(file_stamp(file) for file in self.files)


def prepare(
    dataset: str | int,
    configurations: Sequence[str] = ("2d",),
    plans_name: str | None = None,
    planner: str = "ExperimentPlanner",
    gpu_memory_target: float | None = None,
    overwrite_plans_name: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    any_plane: bool = False,
) -> Path:
    """Plan and preprocess a dataset, labelled and unlabelled images with the same plans; print a summary.

    Args:
        dataset: id or name.
        configurations: nnU-Net's; slices are stored for the 2D ones.
        plans_name: use this existing plans file and do not plan.
        planner: nnU-Net's experiment planner, e.g. nnUNetPlannerResEncM.
        gpu_memory_target: GB, as in nnU-Net.
        overwrite_plans_name: name of the plans made, as in nnU-Net.
        workers: processes; default: ``nnUNet_def_n_proc`` or the cores, at most 8.
        overwrite: replace folds that differ from those that results were trained on.
        any_plane: take 2D plans also across the stack of slices, or with a patch below 32 x 32 pixels.

    Returns:
        The dataset's folder in nnUNet_preprocessed.

    Raises:
        FileExistsError: results were trained on folds that have changed since.
        FileNotFoundError: no such dataset, an unfinished conversion, or a missing mask or plans file.
        RuntimeError: a worker died, the disk is full, or another process works on this dataset; a second run continues.
        ValueError: cases that nnU-Net cannot preprocess (all others are done), labelled cases that it would misread,
            a 2D plane across the slices, or impossible options.
    """
    workers = number_of_workers(workers)
    if plans_name is not None and (gpu_memory_target, overwrite_plans_name) != (None, None):
        raise ValueError(
            f"-p {plans_name} takes existing plans, so it must not come with options of a planner "
            "(-gpu_memory_target, -overwrite_plans_name)."
        )
    if gpu_memory_target is not None and not gpu_memory_target > 0:
        raise ValueError(f"`gpu_memory_target` (={gpu_memory_target}) must be above 0 GB.")
    for name, what in ((plans_name, "-p"), (overwrite_plans_name, "-overwrite_plans_name")):
        if name is not None:
            must_be_plain(name, what)
    must_be_plain(planner, "-pl")
    raw = dataset_folder(nnunet_folder("nnUNet_raw"), dataset)
    target = nnunet_folder("nnUNet_preprocessed") / raw.name
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked_dataset(raw, target, create=target))
        content = _read_dataset_json(raw)
        jobs = _list_jobs(raw, content)
        labelled = [job for job in jobs if job.label]
        _check_subjects(raw, jobs)
        _check_folds(raw, target, labelled)
        stack.enter_context(_explained(target))
        copy_tables(raw, target, nnunet_folder("nnUNet_results") / raw.name, overwrite)
        if plans_name is None:
            planner_class = _find_planner(planner)
        else:
            _read_plans(target, plans_name, configurations)
        rules = _rules(content, jobs)
        make_fingerprint(raw, target, labelled or jobs, rules, workers)
        rules = with_median_spacing(rules, target)
        if plans_name is None:
            plans_name = _plan(dataset, planner_class, gpu_memory_target, overwrite_plans_name)
        plans = _read_plans(target, plans_name, configurations)
        ours = (raw / "cases.csv").is_file()
        for configuration in configurations:
            _require_plausible_spacing(plans, configuration, rules)
            for line in check_plane(plans, configuration, target, ours, any_plane):
                print(f"WARNING: {line}")
        with atomic_write(target / "dataset.json") as temporary:
            shutil.copyfile(raw / "dataset.json", temporary)
        known = prepared.recorded(target)
        prepared.record(target, known.union(job.case for job in jobs))
        if labelled:
            _copy_labels(labelled, target, content["file_ending"])
        problems: list[str] = []
        for configuration in configurations:
            problems += _preprocess(jobs, target, plans, content, configuration, workers, rules)
        prepared.record(target, {job.case for job in jobs})
        shutil.rmtree(target / TEMPORARY, ignore_errors=True)
        for left in target.glob(f"{TEMPORARY}-*"):  # tables that a killed run was writing
            left.unlink()
    if problems:
        raise ValueError(
            f"{len(problems)} case(s) could not be preprocessed, all others are done:\n{listed(problems)}"
        )
    print(f"Prepared {target}")
    if "2d" in configurations:
        fold = _first_fold(target / "splits_final.json", len(labelled))
        flag = "" if plans_name == "nnUNetPlans" else f" -p {plans_name}"
        command = f"nnUNetv2_train {dataset_id(dataset)} 2d {fold}{flag}"
        print(f"Next: {command} -tr nnUNetTrainerMIMPretrain")
    return target


def _first_fold(splits: Path, n_labelled: int) -> str:
    """The first fold to train on: without the file nnU-Net draws five, which need as many cases."""
    validated = bool(read_splits(splits)) if splits.is_file() else n_labelled >= NNUNET_FOLDS
    return "0" if n_labelled and validated else "all"


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Say what to do when the machine, not the data, stopped the work."""
    try:
        yield
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"{target}: a worker process died, perhaps for lack of memory. Run the same command again with fewer "
            "processes (-np): it continues where it stopped."
        ) from error
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise RuntimeError(
            f"{target}: writing failed ({error}). Once there is space, or what else was missing, run the same "
            "command again: it continues where it stopped."
        ) from error


# -- the raw dataset -----------------------------------------------------------------------------


def _read_dataset_json(raw: Path) -> dict[str, Any]:
    file = raw / "dataset.json"
    if not file.is_file():
        advice = "nnU-Net needs it."
        if (raw / "convert.json").is_file():
            advice = "the conversion is unfinished, run nnunet-ssp convert again."
        raise FileNotFoundError(f"{file} is missing: {advice}")
    content = read_json(file, dict)
    if "modality" in content:  # nnU-Net's former name, which it still takes
        content.setdefault("channel_names", content["modality"])
    check_dataset(content, str(file), REQUIRED_KEYS)
    return content


def _list_jobs(raw: Path, content: dict[str, Any]) -> list[Job]:
    """Training cases as nnU-Net finds them, then those of `imagesUn`."""
    training: dict[str, Any] = {}
    if "dataset" in content or (raw / "imagesTr").is_dir():
        # nnU-Net completes the paths of its argument in place.
        training = get_filenames_of_train_images_and_targets(
            str(raw), json.loads(json.dumps(content))
        )
    if not training:
        raise ValueError(f"{raw}: no image in imagesTr, and dataset.json lists none in imagesUn.")
    absent = [entry["label"] for entry in training.values() if not Path(entry["label"]).is_file()]
    # Without any class and any mask the dataset is one of unlabelled images only.
    unlabelled = len(absent) == len(training) and len(content["labels"]) == 1
    if absent and not unlabelled:
        raise FileNotFoundError(f"{absent[0]} is missing: every image of imagesTr needs a mask.")
    must_all_be_plain(training, "case", str(raw))
    jobs = {
        case: Job(case, tuple(entry["images"]), None if unlabelled else entry["label"])
        for case, entry in sorted(training.items())
    }
    ending = content["file_ending"]
    channels: dict[str, list[str]] = {}
    for file in sorted((raw / "imagesUn").glob(f"[!.]*_[0-9][0-9][0-9][0-9]{ending}")):
        channels.setdefault(file.name.removesuffix(ending)[:-5], []).append(str(file))
    for case, files in channels.items():
        must_be_plain(case, "case", str(raw / "imagesUn"))
        if case in training and not unlabelled:
            raise ValueError(f"{raw}: case {case} must not be in both imagesTr and imagesUn.")
        jobs[case] = Job(case, tuple(files), None)
    most = max(len(job.images) for job in jobs.values())
    for job in jobs.values():
        if len(job.images) < most:
            raise ValueError(
                f"{raw}: case {job.case} has {len(job.images)} channel(s), but other cases have {most}."
            )
    return list(jobs.values())


def _check_subjects(raw: Path, jobs: Sequence[Job]) -> None:
    """Where there is a `cases.csv`, every case must be in it, and no test subject may be among the cases."""
    table = raw / "cases.csv"
    if not table.is_file():
        return
    cases = read_cases(table)
    tests = {case.subject_key for case in cases.values() if case.split == "test"}
    for job in jobs:
        if job.case not in cases:
            raise ValueError(f"{table}: there is no row for case {job.case} ({job.images[0]}).")
        if cases[job.case].subject_key in tests:
            raise ValueError(
                f"{job.images[0]}: test subject {cases[job.case].subject} must be in imagesTs only, not be trained on."
            )


def _check_folds(raw: Path, target: Path, labelled: Sequence[Job]) -> None:
    """Check that the folds, of which nnUNet_raw has the valid copy if it has one, name cases only."""
    table = raw / "cases.csv"
    known = {job.case for job in labelled}
    if table.is_file():
        known = {name for name, case in read_cases(table).items() if is_trainable(case)}
    for file in (raw / "splits_final.json", target / "splits_final.json"):
        if file.is_file():
            require_known_names(file, read_splits(file), known)
            return


def _copy_labels(labelled: Sequence[Job], target: Path, ending: str) -> None:
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


# -- fingerprint and plans -----------------------------------------------------------------------


def _reader(content: dict[str, Any], image: str) -> str:
    """Name of nnU-Net's class that reads the images."""
    tracebacks = io.StringIO()  # of every reader that was tried
    try:
        with contextlib.redirect_stdout(tracebacks), contextlib.redirect_stderr(tracebacks):
            return str(determine_reader_writer_from_dataset_json(content, image).__name__)
    except RuntimeError:
        raise ValueError(f"{image}: none of nnU-Net's readers can read it.") from None


def _rules(content: dict[str, Any], jobs: Sequence[Job]) -> Rules:
    """What every file must be; the labels are those that masks may have."""
    reader = _reader(content, jobs[0].images[0])
    return Rules(reader, len(content["channel_names"]), label_values(content["labels"]))


def _find_planner(planner: str) -> Any:
    folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
    found = recursive_find_python_class(folder, planner, "nnunetv2.experiment_planning")
    if found is None:
        raise ValueError(
            f"`planner` (={planner}) must be one of nnU-Net's, e.g. nnUNetPlannerResEncM."
        )
    return found


def _plan(
    dataset: str | int, planner: Any, gpu_memory_target: float | None, plans_name: str | None
) -> str:
    """Run nnU-Net's experiment planner.

    Returns:
        The name of the plans.
    """
    # It builds dozens of networks only to count their feature maps; on this device they have no weights to draw. And
    # it takes the number of augmentation workers for a number of threads, which 0 is not.
    with quiet(), torch.device("meta"), environment(nnUNet_n_proc_DA="1"):
        _, name = plan_experiment_dataset(
            dataset_id(dataset), planner, gpu_memory_target, overwrite_plans_name=plans_name
        )
    return str(name)


def _read_plans(target: Path, plans_name: str, configurations: Sequence[str]) -> PlansManager:
    file = target / f"{plans_name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: leave out -p to make plans.")
    plans = read_plans(file)
    for configuration in configurations:
        _require_classes(configuration_of(plans, configuration, str(file)), plans, file)
    if plans["plans_name"] != plans_name:
        raise ValueError(f"{file}: `plans_name` (={plans['plans_name']}) must be that of the file.")
    return PlansManager(plans)


def _require_classes(configuration: dict[str, Any], plans: dict[str, Any], file: Path) -> None:
    """Refuse names of classes that nnU-Net does not have; it would fail at each case, without naming the plans."""
    named = [("preprocessing", "preprocessor_name", configuration.get("preprocessor_name"))]
    named += [("imageio", "image_reader_writer", plans.get("image_reader_writer"))]
    for scheme in configuration["normalization_schemes"]:
        named.append(("preprocessing.normalization", "normalization_schemes", scheme))
    for place, key, name in named:
        folder = os.path.join(nnunetv2.__path__[0], *place.split("."))
        if name and recursive_find_python_class(folder, name, f"nnunetv2.{place}") is None:
            raise ValueError(f"{file}: `{key}` (={name}) must be a class of nnU-Net's.")


def _require_plausible_spacing(plans: PlansManager, configuration: str, rules: Rules) -> None:
    """Refuse to resample every case to an absurd size."""
    spacing = plans.get_configuration(configuration).spacing
    median = [rules.spacing[axis] for axis in plans.transpose_forward] if rules.spacing else spacing
    if text := absurd_spacing(spacing, median[-len(spacing) :]):
        raise ValueError(f"{plans.plans_name}.json, configuration {configuration}: {text}")


# -- preprocessing -------------------------------------------------------------------------------


def _preprocess(
    jobs: Sequence[Job],
    target: Path,
    plans: PlansManager,
    content: dict[str, Any],
    configuration: str,
    workers: int,
    rules: Rules,
) -> list[str]:
    """Bring nnU-Net's folder and, for a 2D configuration, the slice store up to date.

    Returns:
        What is wrong with the cases that failed.
    """
    manager = plans.get_configuration(configuration)
    folder = target / manager.data_identifier
    store = slices.store_folder(target, manager.data_identifier)
    flat = len(manager.patch_size) == 2
    print(
        f"{plans.plans_name} {configuration}: patch {'x'.join(map(str, manager.patch_size))}, "
        f"batch size {manager.batch_size}, spacing {[round(float(s), 3) for s in manager.spacing]} mm, "
        f"{len(manager.network_arch_init_kwargs['features_per_stage'])} stages"
    )
    recipe = _recipe(plans, manager, content)
    try:
        made_by, done = slices.read_index(store)
    except (FileNotFoundError, ValueError):
        made_by, done = recipe, {}
    known = prepared.recorded(target) | done.keys()
    if made_by != recipe:
        print("The plans or labels have changed: all cases are preprocessed again.")
        done = {}
    wanted = [job for job in jobs if flat or job.label]
    done = {
        job.case: entry
        for job in wanted
        if job.case in done
        and done[job.case].source == job.source()
        and (entry := slices.checked(done[job.case], _files(job, folder, store if flat else None)))
    }
    # From here on the index speaks of valid cases only, and no other is there to be trained on.
    slices.write_index(store, recipe, done)
    valid = {
        f"{job.case}{end}" for job in wanted if job.label and job.case in done for end in ENDINGS
    }
    prepared.remove_others(folder, known, REMOVED, valid)
    prepared.remove_others(store, known, (".npy",), {f"{case}.npy" for case in done})
    foreign = sorted(
        file.stem
        for file in folder.glob("*.b2nd")
        if not file.name.endswith(ENDINGS[0]) and file.stem not in known
    )
    if foreign:
        print(
            f"WARNING: {folder} holds {len(foreign)} case(s) that are not of this dataset, e.g. {foreign[0]}. "
            "nnU-Net's fold all would train on them: remove them unless you put them there."
        )

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
    problems: dict[str, str] = {}  # by case
    written = time.monotonic()
    try:
        results = process(run, todo, workers, f"Preprocessing {configuration}", "case")
        for job, result in zip(todo, results, strict=True):
            if isinstance(result, str):
                problems[job.case] = result
                continue
            done[job.case] = result
            if time.monotonic() - written > SECONDS_BETWEEN_INDEXES:
                slices.write_index(store, recipe, done)
                written = time.monotonic()
    except BaseException:
        slices.write_index(store, recipe, done)
        raise
    missing = {**_without_image(target, jobs), **problems} if flat else problems
    slices.write_index(store, recipe, done, missing)
    if flat:
        labelled = sum(bool(job.label) for job in jobs if job.case in done)
        n_slices = sum(entry.shape[0] for entry in done.values())
        print(
            f"Slice store: {len(done)} frames ({labelled} labelled), {n_slices} slices in {store}"
        )
    return list(problems.values())


def _files(job: Job, folder: Path, store: Path | None) -> list[Path]:
    """All that is made of a case: in nnU-Net's folder where it is labelled, in the store where slices are stored."""
    own = [store / f"{job.case}.npy"] if store else []
    return own + [folder / f"{job.case}{ending}" for ending in ENDINGS if job.label]


def _without_image(target: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """The training cases of `cases.csv` that have no image, and what to say of them; prints who they are."""
    table = target / "cases.csv"
    cases = read_cases(table) if table.is_file() else {}
    training = {name for name, case in cases.items() if case.split == "train"}
    absent = training - {job.case for job in jobs}
    if absent:
        print(
            f"WARNING: {table} names cases that have no image, so nobody trains on them: {some(absent)}"
        )
    return dict.fromkeys(sorted(absent), "there is no image of it")


def _recipe(
    plans: PlansManager, manager: ConfigurationManager, content: dict[str, Any]
) -> dict[str, Any]:
    """What decides how preprocessed cases look: that of the images, which trainers check, and that of the masks."""
    configuration = manager.configuration
    names = ("preprocessor_name", "resampling_fn_seg", "resampling_fn_seg_kwargs")
    masks = {name: configuration[name] for name in names}
    masks |= {name: content.get(name) for name in ("labels", "regions_class_order")}
    images = slices.preprocessing_of(plans.plans, configuration)
    return dict(json.loads(json.dumps({**images, "masks": masks})))


def preprocess_case(
    job: Job,
    target: Path,
    plans_file: Path,
    configuration: str,
    content: dict[str, Any],
    rules: Rules,
) -> slices.StoredCase | str:
    """Preprocess one case with nnU-Net's own preprocessor; labelled ones also into nnU-Net's folder.

    Returns:
        Its entry of the slice store or, when it failed, what is wrong in words.

    Raises:
        OSError: there is no space to write to.
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
            data, _, properties = preprocessor.run_case(images, None, plans, manager, content)
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
        _require_space(temporary)
        return f"{job.images[0]}: nnU-Net cannot preprocess it ({in_words(error)})."
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _require_space(folder: Path) -> None:
    """Tell a full disk from a bad case: blosc2 and numpy report it as errors of many kinds.

    Raises:
        OSError: the system's, when there is no space for a case.
    """
    probe = folder / "space"
    try:
        probe.write_bytes(bytes(SPACE_FOR_A_CASE))
    finally:
        probe.unlink(missing_ok=True)
