"""`nnunet-ssp study --dry-run`: the runs of a study, and an estimate of their hours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssp.console import count_of, some
from nnunet_ssp.nnunet import dataset_folder, dataset_id, datasets_there, nnunet_folder
from nnunet_ssp.study.precision import emulated
from nnunet_ssp.study.workflow import unfinished

if TYPE_CHECKING:
    from nnunet_ssp.study.data import Data
    from nnunet_ssp.study.runs import Run
    from nnunet_ssp.study.spec import Study


def list_runs(
    study: Study,
    output: Path,
    bench: Path | None,
    models: Sequence[str] | None = None,
    folds: Sequence[str] | None = None,
    named: bool = False,
    on_cpu: bool = False,
) -> int:
    """Print every run, or those of some models and folds, and how long all of them take.

    Args:
        study: The study.
        output: Its folder.
        bench: File of `nnunet-ssp bench --json`.
        models: Models to list, by default all.
        folds: The study's folds to list, by default all.
        named: Whether the user named the dataset, which then must exist.
        on_cpu: Whether the study is meant for a CPU.

    Raises:
        FileNotFoundError: The dataset that was named does not exist.
        RuntimeError: It was named, and one of nnU-Net's variables is not set.
        ValueError: The dataset lacks folds that cannot be made.
    """
    if named and study.dataset is not None:
        _require_dataset(study, study.dataset)
    from nnunet_ssp.study.jobs import study_jobs
    from nnunet_ssp.study.preparing import (
        folds_that_cannot_be_made,
        missing_files,
        missing_folds,
        phantom_name,
    )
    from nnunet_ssp.study.results import Results
    from nnunet_ssp.study.runs import only, study_runs

    notes: list[str] = []
    reason = ""
    dataset = phantom_name(study) if study.phantom else study.dataset
    data = _open(study, dataset, notes)
    if dataset is not None and not study.phantom:
        with suppress(FileNotFoundError, RuntimeError):  # noted above
            reason = folds_that_cannot_be_made(study, dataset)
    if data is not None and (missing := missing_folds(study, data)):
        if not reason:
            made = " and ".join(study.make_folds)
            notes.append(f"Folds still to be made, with {made}: {', '.join(missing)}")
        data = None
    pretrainings, trainings = runs = only(study_runs(study, data, output), models, folds)
    notes += missing_files(trainings, output)
    left, untrained = [*pretrainings, *trainings], runs
    if data is not None:
        results = Results(study, *runs, data, output)
        results.check()
        notes += results.notes()
        todo = unfinished(study_jobs(study, runs, data, "cpu"), output)
        records = frozenset(job.record for job in todo)
        results = replace(results, unfinished=records)
        left = [run for run in left if not results.is_done(run)]
        first, second = (
            [run for run in part if f"{run.folder}/train.json" in records] for part in runs
        )
        untrained = first, second
    print("\n".join(_listing(study, pretrainings, trainings)))
    done = len(pretrainings) + len(trainings) - len(left)
    print(f"\n{_counted(len(pretrainings), len(trainings), done)}")
    if on_cpu and (said := emulated([*untrained[0], *untrained[1]])):
        notes.append(said)
    print("\n".join([*notes, *_estimate(study, untrained, data, bench, on_cpu)]))
    if reason:
        raise ValueError(f"this dataset cannot carry the study. {reason}")
    return 0


def _open(study: Study, dataset: str | int | None, notes: list[str]) -> Data | None:
    """Open the study's dataset; where that is not possible, note why."""
    from nnunet_ssp.study.data import open_data
    from nnunet_ssp.study.preparing import plans_to_be_made

    try:
        if dataset is None:
            raise FileNotFoundError("no dataset is named: give it with -d.")
        if plans := plans_to_be_made(study):
            notes += plans
            return None
        data = open_data(dataset, study.plans, study.prepare)
        list(map(data.of, study.plans_of_runs()))  # refuses those that are missing
    except (FileNotFoundError, RuntimeError) as error:
        made = "The study makes its dataset itself, a phantom."
        notes.append(made if study.phantom else f"Without the dataset: {error}")
        return None
    return data


def _counted(pretrainings: int, trainings: int, done: int) -> str:
    return (
        f"{count_of(pretrainings + trainings, 'run')}: {count_of(pretrainings, 'pretraining')} and {trainings} "
        f"fine-tunings or trainings from scratch, each of these with its evaluation; {done} done."
    )


def _require_dataset(study: Study, dataset: str | int) -> None:
    """Refuse a dataset that has no folder, prepared or not.

    Raises:
        FileNotFoundError: There is none; says how to make it.
        RuntimeError: One of nnU-Net's variables is not set.
    """
    number = dataset_id(dataset)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        with suppress(FileNotFoundError):
            dataset_folder(nnunet_folder(variable), dataset)
            return
    raise FileNotFoundError(
        f"`-d` (={dataset}) must be a dataset in {nnunet_folder('nnUNet_raw')} or nnUNet_preprocessed. "
        f"{datasets_there(str(dataset))} To make it: {_conversion(study, number)}. "
        "Without -d, a dry run needs no dataset."
    )


def _conversion(study: Study, number: int) -> str:
    """Return the commands that make a dataset which can have the study's folds."""
    wanted = {word for arguments in study.make_folds for word in arguments.split()}
    if "--few" in wanted:  # the study makes its plans
        return f"nnunet-ssp convert acdc -i FOLDER -d {number} --few"
    if "--paper" in wanted:
        both = f"nnunet-ssp convert mnms+mnms2 -i MNMS MNMS2 -d {number}"
        return f"{both} && nnunet-ssp prepare {number}"
    return (
        f"nnunet-ssp convert acdc -i FOLDER -d {number} && nnunet-ssp prepare {number} (or another converter of those "
        "that nnunet-ssp convert --help lists)"
    )


def _listing(study: Study, pretrainings: Sequence[Run], trainings: Sequence[Run]) -> list[str]:
    """Write a line for each pretraining, and for each model and fold."""
    lines = [study.title, ""]
    for run in pretrainings:
        where = f"{run.dataset}, fold {run.fold}" if run.dataset else f"fold {run.fold}"
        weights = f" from {run.weights.name}" if run.weights else ""
        lines.append(f"pretrain  {run.name}: {run.trainer}{weights}, {where}; {run.settings}")
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in trainings:
        groups.setdefault((run.name, run.label), []).append(run)
    for (name, label), runs in groups.items():
        seeds = " ".join(str(run.seed) for run in runs)
        weights = f" from {runs[0].weights.name}" if runs[0].weights else ""
        lines.append(
            f"train     {name} on {label}: {runs[0].trainer}{weights}, fold {study.folds[label]}, seeds {seeds}; "
            f"{runs[0].settings_of_all_seeds}"
        )
    return lines


def _estimate(
    study: Study,
    untrained: tuple[list[Run], list[Run]],
    data: Data | None,
    bench: Path | None,
    on_cpu: bool,
) -> list[str]:
    from nnunet_ssp.study.estimate import SHIPPED, SHIPPED_CPU, hours, method_of, read_speeds

    measure = (
        "nnunet-ssp bench --json bench.json measures the speeds here; then add --bench bench.json."
    )
    speeds = read_speeds(bench or (SHIPPED_CPU if on_cpu else SHIPPED))
    unknown = {method_of(run) for run in untrained[0]} - speeds.methods.keys()
    if bench is None and unknown:
        return [f"Hours: unknown for {some(unknown)}. {measure}"]
    found = hours(study, untrained, data, speeds)
    if found is None:
        return [f"Hours: unknown without the dataset. {measure}"]
    pretraining, finetuning = found
    sizes = "" if data else ", with the sizes that the file gives"
    others = len(untrained[1]) * speeds.each / 3600
    parts = (pretraining + finetuning + others, pretraining, finetuning, others)
    total, first, second, third = map(_hours, parts)
    unit = "hour" if total == "1" else "hours"
    said = f"About {total} {unit} of one {speeds.device}{sizes}: {first} of pretraining, {second} of training"
    if speeds.each:
        said += (
            f", {third} of predictions, evaluations and starts, for what is not done. --jobs N on as many free cores "
            "divides them by N."
        )
    else:
        said += (
            " for what is not done. Validations, predictions and evaluations are not included. Early stopping takes "
            "less, and so do nnU-Net's worker processes, which the bench does not use."
        )
    return [said, *([] if bench else [f"That is an estimate from {speeds.source}; {measure}"])]


def _hours(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
