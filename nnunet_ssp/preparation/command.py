"""`nnunet-ssp prepare`: nnU-Net's own fingerprint, plan and preprocessing, then the slice store.

nnU-Net's public classes do everything case by case. Results are renamed into place, so that an interrupted run goes on
where it stopped. (nnU-Net's `DefaultPreprocessor.run` would empty its folder first.) The index of the slice store
records what is done; a case whose files or plans changed is prepared again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.copies import copies_in_dataset
from nnunet_ssp.cohort.membership import count_for_advice
from nnunet_ssp.cohort.repeats import doubts
from nnunet_ssp.cohort.splits import copy_tables, first_fold, read_splits
from nnunet_ssp.console import count_of, writing_failed
from nnunet_ssp.files.atomic import TEMPORARY, atomic_write, remove_half_written
from nnunet_ssp.files.lock import locked_dataset
from nnunet_ssp.files.names import must_be_plain, must_name_plans
from nnunet_ssp.launch import small_plans_hint, training_command
from nnunet_ssp.nnunet import dataset_folder, dataset_id, nnunet_folder
from nnunet_ssp.parallel import number_of_workers
from nnunet_ssp.preparation import imported, prepared
from nnunet_ssp.preparation.fingerprints import make_fingerprint, with_median_spacing
from nnunet_ssp.preparation.moved_plans import install_plans
from nnunet_ssp.preparation.planes import check_plane
from nnunet_ssp.preparation.planners import TIMM
from nnunet_ssp.preparation.planning import (
    Size,
    find_planner,
    plan,
    read_planned,
    require_plausible_spacing,
    rules_of,
)
from nnunet_ssp.preparation.preprocessing import copy_labels, preprocess
from nnunet_ssp.preparation.raw import (
    CaseJob,
    check_folds,
    check_subjects,
    list_jobs,
    read_dataset_json,
)
from nnunet_ssp.preparation.raw_checks import Rules, problem_lines
from nnunet_ssp.recommended import recommended


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
    size: Size = Size(),  # noqa: B008 (immutable)
    plans_from: str | None = None,
) -> Path:
    """Plan and preprocess a dataset, with the same plans for labelled and unlabelled images; print a summary.

    Args:
        dataset: Id or name.
        configurations: nnU-Net's configurations; slices are stored for the 2D ones.
        plans_name: Existing plans to use instead of planning.
        planner: nnU-Net's experiment planner, e.g. nnUNetPlannerResEncM.
        gpu_memory_target: GB, as in nnU-Net.
        overwrite_plans_name: Name of the plans made, as in nnU-Net.
        workers: Processes; by default as many as pay, at most `nnUNet_def_n_proc` or the cores, at most 8.
        overwrite: Replace folds that differ from those that results were trained on.
        any_plane: Accept 2D plans across the stack of slices, or with a patch below 32 x 32 pixels.
        size: Sizes of the 2D plans.
        plans_from: Dataset or zip whose plans are taken; `plans_name` says which, `overwrite_plans_name` names them.

    Returns:
        The dataset's folder in nnUNet_preprocessed.

    Raises:
        FileExistsError: Results were trained on folds that have changed since.
        FileNotFoundError: The dataset, a mask or the plans file is missing, or a conversion is unfinished.
        RuntimeError: A worker died, the disk is full, or another process works on this dataset; a second run continues.
        ValueError: nnU-Net cannot preprocess some cases (all others are done), it would misread labelled cases, a 2D
            plane lies across the slices, or the options contradict each other.
    """
    workers = number_of_workers(workers)
    named = (plans_name, overwrite_plans_name)
    _check_options(plans_from, planner, gpu_memory_target, *named, size)
    usual = (plans_name, plans_from, gpu_memory_target, size) == (None, None, None, Size())
    raw = dataset_folder(nnunet_folder("nnUNet_raw"), dataset)
    target = nnunet_folder("nnUNet_preprocessed") / raw.name
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked_dataset(raw, target, create=target))
        content = read_dataset_json(raw)
        jobs = list_jobs(raw, content)
        labelled = [job for job in jobs if job.label]
        check_subjects(raw, jobs)
        check_folds(raw, target, labelled)
        stack.enter_context(_explained(target))
        copy_tables(raw, target, nnunet_folder("nnUNet_results") / raw.name, overwrite)
        rules = rules_of(content, jobs)
        if plans_from is not None:
            plans_name = install_plans(plans_from, target, configurations, rules, *named)
        planner_class = None if plans_name else size.planner(find_planner(planner))
        if plans_name:
            read_planned(target, plans_name, configurations)
        make_fingerprint(raw, target, labelled or jobs, rules, workers)
        rules = with_median_spacing(rules, target)
        if plans_name is None:
            plans_name = plan(dataset, planner_class, gpu_memory_target, overwrite_plans_name)
            imported.record_import(target, plans_name, None)
        plans = read_planned(target, plans_name, configurations)
        _check_plans(plans, configurations, rules, target, raw, any_plane)
        _begin(raw, target, {job.case for job in jobs})
        if labelled:
            copy_labels(labelled, target, content["file_ending"])
        problems: list[str] = []
        for configuration in configurations:
            problems += preprocess(jobs, target, plans, content, configuration, workers, rules)
        prepared.record(target, {job.case for job in jobs})
        _clear_temporary(target)
    _require_none(problems)
    print("".join(f"{line}\n" for line in _copies(raw, jobs, content, workers)), end="")
    _say_next(target, configurations, jobs, plans_name, usual)
    return target


def _copies(
    raw: Path, jobs: Sequence[CaseJob], content: Mapping[str, Any], workers: int
) -> list[str]:
    """Return warnings of subjects with the same images; pictures of natural things are of nobody."""
    if content.get("natural_images"):
        return []
    ending, table = f"_0000{content['file_ending']}", raw / "cases.csv"
    tests = sorted((raw / "imagesTs").glob(f"[!.]*{ending}"))
    return copies_in_dataset(
        {job.case: Path(job.images[0]) for job in jobs},
        {file.name.removesuffix(ending): file for file in tests},
        read_cases(table) if table.is_file() else {},
        dataset_id(raw.name),
        workers,
        converted=(raw / "convert.json").is_file(),
    )


def _begin(raw: Path, target: Path, cases: set[str]) -> None:
    """Copy the dataset's description, and record the cases before the first file of a new one is written."""
    with atomic_write(target / "dataset.json") as temporary:
        shutil.copyfile(raw / "dataset.json", temporary)
    prepared.record(target, prepared.recorded(target) | cases)


def _say_next(
    target: Path,
    configurations: Sequence[str],
    jobs: Sequence[CaseJob],
    plans_name: str,
    usual: bool,
) -> None:
    """Print the commands that train: from the weights that the plans came with, and from none.

    Where there is no GPU and the plans are the usual ones, it says how to plan smaller.
    """
    print(f"Prepared {target}")
    shared = imported.recorded_import(target, plans_name)
    own = "2d" in configurations
    if not own and (shared is None or shared.configuration not in configurations):
        return
    labelled = {job.case for job in jobs if job.label}
    splits, table = target / "splits_final.json", target / "cases.csv"
    fold = first_fold(splits, len(labelled))
    folds = read_splits(splits) if splits.is_file() else []
    cases = read_cases(table) if table.is_file() else {}
    if not cases:
        print("".join(f"{doubt}\n" for doubt in _doubts(fold, labelled, folds)), end="")
    n_labelled, frames = count_for_advice(fold, labelled, folds, cases)
    advice = recommended(n_labelled, len(jobs) - len(labelled), frames)
    number, lines = dataset_id(target.name), []
    if shared is not None and shared.configuration in configurations:
        lines = imported.next_lines(
            shared, number, fold, plans_name, bool(labelled), advice.finetuning
        )
        print("\n".join(lines))
    if own:
        command = training_command(target, fold, advice.trainer, plans_name, advice.settings)
        hint = small_plans_hint(number) if usual else ""
        reason = f"{advice.reason}\n" if advice.reason else ""
        again = any(line.startswith("Next") for line in lines)
        print(f"{hint}{reason}{'Or, without these weights' if again else 'Next'}: {command}")


def _doubts(
    fold: str, labelled: Collection[str], folds: Sequence[Mapping[str, Sequence[str]]]
) -> list[str]:
    """Say which cases of a fold may be one subject, where no table tells: the count of subjects would be too high."""
    if fold == "all":
        return []
    if not folds:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        folds = generate_crossval_split(sorted(labelled))
    return doubts(folds[int(fold)]["train"], folds[int(fold)]["val"])


def _require_none(problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(
            f"{count_of(len(problems), 'case')} not preprocessed, all others are done:\n{problem_lines(problems)}"
        )


def _check_options(
    plans_from: str | None,
    planner: str,
    gpu_memory_target: float | None,
    plans_name: str | None,
    overwrite_plans_name: str | None,
    size: Size,
) -> None:
    """Refuse options of `prepare` that contradict each other or that nnU-Net would misread."""
    if plans_from is not None:
        if (planner, gpu_memory_target, size) != ("ExperimentPlanner", None, Size()):
            raise ValueError(
                f"--plans-from {plans_from} takes existing plans, so it must not come with options of a planner "
                "(-pl, -gpu_memory_target, --patch, --width, --batch)."
            )
        return
    size.check(overwrite_plans_name)
    if plans_name is not None and (gpu_memory_target, overwrite_plans_name) != (None, None):
        raise ValueError(
            f"-p {plans_name} takes existing plans, so it must not come with options of a planner "
            "(-gpu_memory_target, -overwrite_plans_name)."
        )
    if gpu_memory_target is not None and not gpu_memory_target > 0:
        raise ValueError(f"`gpu_memory_target` (={gpu_memory_target}) must be above 0 GB.")
    if plans_name is not None:
        must_be_plain(plans_name, "-p")
    if overwrite_plans_name is not None:
        must_name_plans(overwrite_plans_name, "-overwrite_plans_name")
    must_be_plain(planner.removeprefix(TIMM), "-pl")


def _check_plans(
    plans: PlansManager,
    configurations: Sequence[str],
    rules: Rules,
    target: Path,
    raw: Path,
    any_plane: bool,
) -> None:
    """Refuse plans with an absurd spacing or plane; print the warnings of `check_plane`."""
    ours = (raw / "cases.csv").is_file()
    for configuration in configurations:
        require_plausible_spacing(plans, configuration, rules)
        for line in check_plane(plans, configuration, target, ours, any_plane):
            print(f"WARNING: {line}")


def _clear_temporary(target: Path) -> None:
    """Delete the temporary files of this run and of killed ones."""
    shutil.rmtree(target / TEMPORARY, ignore_errors=True)
    remove_half_written(target)  # tables that a killed run was writing


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Explain what to do if the machine, not the data, stopped the work."""
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
        raise RuntimeError(writing_failed(target, error)) from error
