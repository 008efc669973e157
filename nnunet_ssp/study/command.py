"""`nnunet-ssp study`: from a YAML file to a workflow that trains, predicts and evaluates, and to tables and figures.

Everything lies below one folder. Finished commands are found again, so the same call goes on after a failure, a kill
or a change of the file. Tables and figures are made anew each time, with gaps where runs are missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssp.console import nearest, path, whole
from nnunet_ssp.files.atomic import atomic_write
from nnunet_ssp.files.lock import locked
from nnunet_ssp.launch import choose_device, command_environment, environment_lines
from nnunet_ssp.study.dry_run import list_runs
from nnunet_ssp.study.precision import OPTION, PRECISIONS, computing_in, emulated
from nnunet_ssp.study.workflow import WORKFLOW, run_workflow, unfinished, write_workflow
from nnunet_ssp.warm import NO_WARM, WARM_HELP, warm_runner

if TYPE_CHECKING:
    from nnunet_ssp.study.data import Data
    from nnunet_ssp.study.jobs import Job
    from nnunet_ssp.study.results import Results
    from nnunet_ssp.study.runs import Runs
    from nnunet_ssp.study.spec import Study

HERE = Path(__file__).parent
STUDIES, PROFILES = HERE / "studies", HERE / "profiles"
KEPT = "study.yaml"  # the study's file as it ran
TO_GO_ON = ", to go on: "  # in the first line of that file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnunet-ssp study`, the keywords of `run`."""
    shipped = ", ".join(sorted(file.name for file in STUDIES.glob("*.yaml")))
    parser.add_argument(
        "file", help=f"the study's file, or one that comes with the package: {shipped}"
    )
    parser.add_argument(
        "-d", dest="dataset", metavar="DATASET", help="dataset id or name, in place of the file's"
    )
    parser.add_argument(
        "-p", dest="plans", metavar="PLANS", help="name of its plans, in place of the file's"
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=path,
        metavar="FOLDER",
        help="where everything is written (default: study_NAME); an earlier call's folder is continued",
    )
    parser.add_argument("--size", help="one of the sizes in the file (default: its first)")
    parser.add_argument(
        OPTION,
        choices=PRECISIONS,
        help="compute in it, in place of what the file says; fp32 where the processor lacks bfloat16",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="run these alone, with what they need (default: all)",
    )
    parser.add_argument(
        "--folds",
        nargs="+",
        metavar="FOLD",
        help="train on these of the study's folds alone, by its own names (default: all)",
    )
    _add_choice(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="list the runs and estimate the hours, start nothing"
    )
    parser.add_argument(
        "--bench",
        type=path,
        metavar="FILE",
        help="estimate with the speeds that nnunet-ssp bench --json FILE measured",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "mps"),
        help="default: cuda when there is a GPU or with --profile",
    )
    parser.add_argument(
        "--jobs",
        type=whole,
        default=1,
        metavar="N",
        help="runs at a time on this machine (default: %(default)s)",
    )
    parser.add_argument(
        "--profile",
        help="run on a cluster: slurm, or the folder of a Snakemake profile of your own",
    )
    parser.add_argument(
        "--results",
        action="store_true",
        help="make the tables and figures of the finished runs, start nothing",
    )
    parser.add_argument(
        "--snakemake",
        default="",
        metavar="ARGUMENTS",
        help='more arguments for Snakemake, such as --snakemake="--retries 2"',
    )
    parser.add_argument(NO_WARM, dest="warm", action="store_false", help=WARM_HELP)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--choose",
        nargs="+",
        metavar="MODEL",
        help="write chosen.json: the models that --report will score on the test subjects; start nothing",
    )
    parser.add_argument(
        "--chosen",
        type=path,
        metavar="FILE",
        help="with --choose: write this file (in the study's folder) in place of chosen.json. A further choice needs "
        "one; it records the choices before it, and which models had seen the test subjects",
    )
    parser.add_argument(
        "--report",
        nargs="?",
        type=path,
        const=Path("chosen.json"),
        metavar="FILE",
        help="score the models of this file (default: the study's chosen.json) on the test subjects, which a study "
        "that chooses does not touch otherwise",
    )


def run(
    file: str,
    dataset: str | None = None,
    plans: str | None = None,
    output: Path | None = None,
    dry_run: bool = False,
    bench: Path | None = None,
    device: str | None = None,
    jobs: int = 1,
    profile: str | None = None,
    results: bool = False,
    snakemake: str = "",
    size: str | None = None,
    models: Sequence[str] | None = None,
    folds: Sequence[str] | None = None,
    choose: Sequence[str] | None = None,
    chosen: Path | None = None,
    report: Path | None = None,
    precision: str | None = None,
    warm: bool = True,
) -> int:
    """Run a study, or the rest of it, and make its tables and figures.

    Args:
        file: The study's file, or the name of a shipped one.
        dataset: Dataset in place of the file's.
        plans: Name of the plans in place of the file's.
        output: Folder for everything; by default `study_NAME` in the current folder.
        dry_run: List the runs, start nothing.
        bench: File that `nnunet-ssp bench --json` wrote, for an estimate of the hours.
        device: Device of trainings and predictions.
        jobs: Number of runs at a time.
        profile: Name of a shipped Snakemake profile, or the folder of another.
        results: Only make the tables and figures.
        snakemake: More arguments for Snakemake.
        size: One of the sizes in the file.
        models: Models to run, by default all.
        folds: The study's folds to run, by its own names, by default all.
        choose: Models to name for the report; nothing runs.
        chosen: File for these names, seen from the study's folder, by default `chosen.json`.
        report: File that names the models to score on the test subjects, seen from the study's folder.
        precision: Precision of all runs in place of the file's.
        warm: Start the commands from one process that has imported everything, on one machine.

    Returns:
        The exit status: 1 when a run is missing.

    Raises:
        FileExistsError: The file for the chosen models holds others.
        FileNotFoundError: The study's file, its dataset or the profile is missing.
        RuntimeError: A package is missing, or another process works in the folder.
        ValueError: The file does not follow the schema, or does not fit the dataset or `chosen.json`.
    """
    _check_call(jobs, dry_run, None if choose else chosen)
    source = find_study(file)
    study, size = _asked_for(source, size, dataset, plans, models, folds, precision)
    output = (output or _default_output(source, size)).resolve()
    _set_environment(output if study.phantom else None, output, profile)
    if dry_run:
        on_cpu = _is_for_cpu(study, size, device, profile)
        return list_runs(study, output, bench, models, folds, dataset is not None, on_cpu)
    call = _Call(
        source=source,
        output=output,
        size=size,
        device=choose_device(device) if profile is None else device or "cuda",
        jobs=jobs,
        profile=None if profile is None else find_profile(profile),
        only_results=results,
        more=snakemake,
        models=models,
        folds=folds,
        choose=choose,
        chosen=chosen,
        report=None if report is None else output / report,
        precision=precision,
        warm=warm and profile is None,
    )
    return _run_locked(study, call)


def _asked_for(
    source: Path,
    size: str | None,
    dataset: str | None,
    plans: str | None,
    models: Sequence[str] | None,
    folds: Sequence[str] | None,
    precision: str | None = None,
) -> tuple[Study, str | None]:
    """Read a study of a size, with a call's dataset, plans and precision; refuse models and folds that it lacks."""
    from nnunet_ssp.study.spec import first_size, read_study

    study = read_study(source, size)
    if dataset is not None:
        study = study.model_copy(update={"dataset": dataset, "phantom": None})
    if plans is not None:  # the study makes them where they are missing
        renamed = f"{study.prepare} -overwrite_plans_name {shlex.quote(plans)}"
        prepare = renamed if study.prepare and plans != study.plans else study.prepare
        study = study.model_copy(update={"plans": plans, "prepare": prepare})
    if precision is not None:
        study = computing_in(study, precision)
    for option, names, known in (
        ("--models", models, study.models),
        ("--folds", folds, study.folds),
    ):
        for name in names or ():
            if name not in known:
                raise ValueError(
                    f"`{option}` (={name}) must be of {', '.join(known)}.{nearest(name, known)} --dry-run lists the "
                    "runs of each."
                )
    return study, size or first_size(source)


def _is_for_cpu(study: Study, size: str | None, device: str | None, profile: str | None) -> bool:
    """Whether hours are those of a CPU: asked for, or by the name of the size, or a phantom's."""
    if device or profile:
        return device == "cpu"
    return size == "cpu" or study.phantom is not None


def _set_environment(own: Path | None, output: Path, profile: str | None) -> None:
    """Set the variables that nnU-Net reads when it is imported, those of a phantom within the study's folder."""
    os.environ.update(command_environment(own, profile is None))
    os.environ.pop("nnUNet_ssp_settings", None)  # each run has its own
    os.environ.setdefault("nnUNet_results", str(output / "nnUNet_results"))


def find_study(name: str) -> Path:
    """Find a study's file: a path, or the name of a shipped one, with or without its ending.

    Raises:
        FileNotFoundError: There is none.
    """
    for file in (path(name), STUDIES / name, STUDIES / f"{name}.yaml"):
        if file.is_file():
            return file
    shipped = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
    raise FileNotFoundError(
        f"{name} must be a file, or a study that comes with the package: {shipped}."
    )


def _default_output(source: Path, size: str | None) -> Path:
    """Choose the folder of a study; for the file that a study keeps, it is the folder of that file."""
    if source.name == KEPT and (source.parent / WORKFLOW).is_file():
        return source.parent
    return Path(f"study_{source.stem}" + (f"_{size}" if size else ""))


def find_profile(name: str) -> Path:
    """Find the folder of a Snakemake profile: a path, or the name of a shipped one.

    Raises:
        FileNotFoundError: There is none.
    """
    shipped = ", ".join(sorted(folder.name for folder in PROFILES.iterdir()))
    for folder in (PROFILES / name, path(name)):
        if folder.is_dir():
            return folder.resolve()
    raise FileNotFoundError(f"`--profile` (={name}) must be a folder, or one of {shipped}.")


def _check_call(jobs: int, dry_run: bool, chosen: Path | None) -> None:
    """Refuse a call without a job at a time, with a file for nothing, or without Snakemake, which a dry run lacks."""
    if jobs < 1:
        raise ValueError(f"`--jobs` (={jobs}) must be at least 1.")
    if chosen is not None:
        raise ValueError(
            f"`--chosen` (={chosen}) must stand beside --choose, whose file it names. To report it: --report {chosen}"
        )
    if dry_run:
        return
    try:
        import snakemake  # noqa: F401
    except ImportError:
        raise RuntimeError(
            "snakemake is not installed: pip install 'nnunet-ssp[study]' (from a checkout: pip install '.[study]') "
            "with Python 3.11 or newer"
        ) from None


# -- running ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """Requests of a call besides its study; the fields are arguments of `run`."""

    source: Path
    output: Path
    size: str | None
    device: str
    jobs: int
    profile: Path | None
    only_results: bool
    more: str
    models: Sequence[str] | None
    folds: Sequence[str] | None
    choose: Sequence[str] | None
    chosen: Path | None
    report: Path | None
    precision: str | None
    warm: bool


def _run_locked(study: Study, call: _Call) -> int:
    """Keep other processes out of the folder, but for tables and figures, which are also made while it runs."""
    with nullcontext() if call.only_results else locked(call.output, create=True):
        return _run(study, call)


def _run(study: Study, call: _Call) -> int:
    from nnunet_ssp.study.data import open_data
    from nnunet_ssp.study.jobs import study_jobs
    from nnunet_ssp.study.preparing import (
        link_validation_images,
        make_folds,
        make_phantom,
        make_plans,
    )
    from nnunet_ssp.study.results import Results
    from nnunet_ssp.study.runs import only, study_runs
    from nnunet_ssp.study.spec import CHOOSING

    output = call.output
    if call.only_results and not (output / WORKFLOW).is_file():
        raise FileNotFoundError(f"{output} holds no study: run it first, without --results.")
    if study.phantom is not None:
        study = study.model_copy(update={"dataset": make_phantom(study, output)})
    if study.dataset is None:
        raise ValueError(f"{call.source} names no dataset: give it with -d.")
    if not call.only_results:
        if call.report is None:  # before hours of preparation
            asked = only(study_runs(study, None, output), call.models, call.folds)
            _must_have_files(asked, output)
        make_plans(study)
    data = open_data(study.dataset, study.plans, study.prepare)
    data = data if call.only_results else make_folds(study, data)
    runs = study_runs(study, data, output)
    results = Results(study, *runs, data, output)
    results.check()
    if call.choose is not None:
        return _choose(results, call)
    whole = study
    study, runs, said = _examined(study, runs, data, call)
    results = replace(results, study=study, pretrainings=runs[0], trainings=runs[1])
    for note in results.notes():
        print(f"Note: {note}", flush=True)
    every = study_jobs(study, runs, data, call.device)
    asked = only(runs, call.models, call.folds)
    if not call.only_results:
        _must_have_files(asked, output)
    planned = study_jobs(study, asked, data, call.device)
    arguments = shlex.split(call.more)
    only_planned = bool({"-n", "--dry-run", "--dryrun"} & set(arguments))
    todo = unfinished(planned, output, forget=not (call.only_results or only_planned))
    if only_planned:
        print(f"{len(todo)} of {len(planned)} commands would run in {output}", flush=True)
        write_workflow(planned, output)
        return int(not run_workflow(output, call.jobs, call.profile, arguments))
    if not call.only_results:
        _refuse_emulated(asked, todo, call)
        _keep(whole, call)
        if study.evaluate == CHOOSING:
            link_validation_images(runs[1], data, output)
        if todo:
            print(f"{len(todo)} of {len(planned)} commands to run in {output}", flush=True)
            write_workflow(planned, output)
            with warm_runner(os.environ, call.warm, partial(print, flush=True)):
                done = run_workflow(output, call.jobs, call.profile, arguments)
            if not done:
                log = output / ".snakemake" / "log"
                print(f"Snakemake ended with errors; its own log is in {log}")
    from nnunet_ssp.study.report import write_results

    setup = environment_lines(output) if study.phantom else ['eval "$(nnunet-ssp env)"']
    missing = unfinished(every, output)
    records = frozenset(job.record for job in missing)
    page = write_results(replace(results, unfinished=records), setup, said)
    wanted = {job.record for job in planned}
    if missing := [job for job in missing if job.record in wanted]:
        titles = list(dict.fromkeys(job.title for job in missing))
        listed = "; ".join(titles[:5] + ["..."] * (len(titles) > 5))
        print(
            f"\n{len(titles)} of {sum(map(len, asked))} runs are missing: {listed}. "
            "Run the same command to go on."
        )
    print(f"\nReport: {page}")
    return int(bool(missing))


def _refuse_emulated(asked: Runs, todo: Sequence[Job], call: _Call) -> None:
    """Refuse trainings in bfloat16 on a processor that would emulate it, unless the call asks for that."""
    if call.device != "cpu" or call.profile is not None or call.precision is not None:
        return
    records = {job.record for job in todo}
    left = [run for part in asked for run in part if f"{run.folder}/train.json" in records]
    if said := emulated(left):
        raise ValueError(said)


def _must_have_files(runs: Runs, output: Path) -> None:
    from nnunet_ssp.study.preparing import missing_files

    for said in missing_files(runs[1], output):
        raise FileNotFoundError(said)


def _choose(results: Results, call: _Call) -> int:
    from nnunet_ssp.study.examination import CHOSEN, SEEN, choose

    runs = [*results.pretrainings], [*results.trainings]
    done = {run.name for run in results.trainings if results.is_done(run)}
    file = call.output / (call.chosen or CHOSEN)
    there = file.is_file()
    content = choose(results.study, call.size, runs, call.choose or (), done, file, call.output)
    which = "" if call.chosen is None else f" {shlex.quote(str(call.chosen))}"
    begun = f"{file} holds this choice already." if there else f"Wrote {file}."
    print(f"{begun} Commit it, then add --report{which} to the study's command.")
    if seen := content.get(SEEN):
        print(f"Its report will say that the test subjects had been seen by: {', '.join(seen)}.")
    return 0


def _examined(study: Study, runs: Runs, data: Data, call: _Call) -> tuple[Study, Runs, list[str]]:
    """Return the study and its runs, for a report those of the chosen models, with words about the choice."""
    from nnunet_ssp.study.examination import (
        choice_in_words,
        only_chosen,
        read_chosen,
        split_in_words,
    )
    from nnunet_ssp.study.spec import CHOOSING

    if call.report is not None:
        content = read_chosen(study, call.size, runs, call.report)
        said = choice_in_words(content, call.report, call.output)
        print(said, flush=True)
        study, runs = only_chosen(study, runs, [*content["models"]])
        return study, runs, [*split_in_words(study, runs, data), said]
    return study, runs, split_in_words(study, runs, data) if study.evaluate == CHOOSING else []


def _keep(study: Study, call: _Call) -> None:
    """Copy the study's file as it ran, with the command that continues it."""
    source, file = call.source, call.output / KEPT
    text = re.sub(rf"\A# .*{TO_GO_ON}.*\n", "", source.read_text(encoding="utf-8"))
    words = ["nnunet-ssp", "study", str(file)]
    words += [] if study.phantom else ["-d", str(study.dataset), "-p", study.plans]
    words += ["--size", call.size] if call.size else []
    words += [OPTION, call.precision] if call.precision else []
    with atomic_write(file) as temporary:
        temporary.write_text(f"# {source.name}{TO_GO_ON}{shlex.join(words)}\n{text}", "utf-8")
