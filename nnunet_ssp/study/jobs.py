"""The commands of a study's trainings, their predictions and evaluations."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from nnunet_ssp.nnunet import dataset_id
from nnunet_ssp.study.data import CONFIGURATION, Data
from nnunet_ssp.study.precision import in_one_precision
from nnunet_ssp.study.runs import Run, Runs, key_of, scores_folder
from nnunet_ssp.study.spec import CHOOSING, Study

Kind = Literal["pretrain", "finetune", "predict", "evaluate"]
FINAL = "checkpoint_final.pth"


@dataclass(frozen=True)
class Job:
    """One command of the workflow.

    Attributes:
        kind: Rule of the Snakefile.
        record: File that states that it is done, and how. Like all paths here it lies below the study's folder.
        needs: Records of the jobs before it.
        title: Title of the run.
        variables: Environment variables besides those of all jobs.
        command: Words of the command.
        resumed: Words of the command if `latest` exists.
        latest: Checkpoint of an interrupted training.
        makes: File or folder that must exist afterwards.
        log: Log of the command's output.
        results: Folder of its results.
        key: Changes whenever the result would; for a training with the run's folder.
    """

    kind: Kind
    record: str
    needs: tuple[str, ...]
    title: str
    variables: Mapping[str, str]
    command: tuple[str, ...]
    makes: str
    log: str
    results: str
    key: str
    resumed: tuple[str, ...] | None = None
    latest: str | None = None

    @property
    def line(self) -> str:
        """The command as typed in a shell, in the study's folder."""
        variables = (f"{name}={shlex.quote(value)}" for name, value in self.variables.items())
        return " ".join([*variables, shlex.join(self.command)])


def study_jobs(study: Study, runs: Runs, data: Data, device: str) -> list[Job]:
    """List the commands of all runs, each after those that it needs."""
    pretrainings, trainings = runs
    jobs = [_train_job("pretrain", run, data, device) for run in pretrainings]
    for run in trainings:
        jobs += _model_jobs(study, run, data, device)
    shared = {name: str(value) for name, value in study.environment.items()}
    return [replace(job, variables={**shared, **job.variables}) for job in jobs]


def _train_job(kind: Kind, run: Run, data: Data, device: str) -> Job:
    folder = run.fold_folder(data)
    dataset = str(dataset_id(run.dataset)) if run.dataset else data.number
    where = (dataset, CONFIGURATION, str(run.fold_number(data)), "-p", run.plans or data.plans_name)
    command = ("nnUNetv2_train", *where, "-tr", run.trainer, "-device", device)
    weights: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    if run.weights is not None:
        weights = ("-pretrained_weights", run.start(data))
        needs = () if run.weights.file else (f"{run.weights.folder}/train.json",)
    return Job(
        kind=kind,
        record=f"{run.folder}/train.json",
        needs=needs,
        title=run.title,
        variables={
            "nnUNet_results": f"{run.folder}/results",
            "nnUNet_ssp_settings": in_one_precision(run.settings, device),
        },
        command=(*command, *weights),
        makes=f"{folder}/{FINAL}",
        log=f"{run.folder}/train.log",
        results=f"{run.folder}/results",
        key=key_of([run.folder]),
        # nnU-Net accepts no weights when it continues.
        resumed=(*command, "--c"),
        latest=f"{folder}/checkpoint_latest.pth",
    )


def _model_jobs(study: Study, run: Run, data: Data, device: str) -> Iterator[Job]:
    """Yield training, prediction and evaluation of a model."""
    train = _train_job("finetune", run, data, device)
    yield train
    before, predictions = train, f"{run.fold_folder(data)}/validation"
    tested = data.tested(study.evaluate, run.fold)
    place = scores_folder(study, run)
    if study.evaluate != "validation":
        predictions = f"{place}/predictions"
        images = str(data.dataset.raw / "imagesTs")
        if study.evaluate == CHOOSING:
            images = data.validation_images(run.fold)
        number = str(data.fold(run.fold)[0])
        plans = run.plans or data.plans_name
        model = ("-d", data.number, "-c", CONFIGURATION, "-f", number, "-p", plans)
        where = ("-tr", run.trainer, "-i", images, "-o", predictions)
        before = Job(
            kind="predict",
            record=f"{place}/predict.json",
            needs=(train.record,),
            title=run.title,
            variables={"nnUNet_results": f"{run.folder}/results"},
            command=(
                "nnUNetv2_predict",
                *model,
                *where,
                *shlex.split(study.predict),
                "-device",
                device,
            ),
            makes=predictions,
            log=f"{place}/predict.log",
            results=predictions,
            key=key_of([run.folder, study.predict, tested]),
        )
        yield before
    folder = f"{place}/evaluation"
    what = (data.number, f"{run.name}={predictions}", "-o", folder)
    yield Job(
        kind="evaluate",
        record=f"{place}/evaluate.json",
        needs=(before.record,),
        title=run.title,
        variables={},
        command=("nnunet-ssp", "evaluate", *what, *shlex.split(study.evaluation)),
        makes=f"{folder}/metrics.csv",
        log=f"{place}/evaluate.log",
        results=folder,
        key=key_of([before.key, study.evaluation, data.about(tested)]),
    )
