"""Estimate of a study's hours, from the speeds that `nnunet-ssp bench --json` measured."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ssp.files.contents import read_json
from nnunet_ssp.nnunet import dataset_id
from nnunet_ssp.settings import override
from nnunet_ssp.study.data import Data
from nnunet_ssp.study.runs import Run, find_trainer
from nnunet_ssp.study.spec import Study
from nnunet_ssp.training.finetuning import STOCK_ITERATIONS

# Speeds of a GPU that were not measured with this package, and of a CPU core; the files say where they come from.
SHIPPED = Path(__file__).parent / "speeds.json"
SHIPPED_CPU = Path(__file__).parent / "speeds_cpu.json"
STAGE_WIDTH = 32  # features of the first stage that nnU-Net plans


@dataclass(frozen=True)
class Speeds:
    """Images per second of training, end to end.

    Attributes:
        device: Device of the measurement, in words.
        side: Rows and columns of the measured images.
        methods: Speed by method.
        finetuning: Speed of fine-tuning.
        source: Origin of the numbers, in words; empty for measured ones.
        width: Features of the measured networks, as a multiple of nnU-Net's; None if they are those of the plans.
        each: Seconds that each training takes besides, for its prediction and evaluation, and to start; 0 if unknown.
    """

    device: str
    side: int
    methods: dict[str, float]
    finetuning: float
    source: str = ""
    width: float | None = None
    each: float = 0.0


def read_speeds(file: Path) -> Speeds:
    """Read the metrics of `nnunet-ssp bench --json`.

    Raises:
        ValueError: The file is of another kind, or of an older version.
    """
    try:
        content = read_json(file, dict)
        setting = content["setting"]
        methods = content["methods"].items()
        return Speeds(
            device=f"{setting['name']}, {setting['date']}",
            side=setting["side"],
            methods={name: float(f["end_to_end_images_per_s"]) for name, f in methods},
            finetuning=float(content["finetuning_images_per_s"]),
            source=str(setting.get("source", "")),
            width=setting.get("width"),
            each=float(setting.get("seconds_of_each_training", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} must be what nnunet-ssp bench --json writes: {error} is missing or wrong."
        ) from None


def hours(
    study: Study, runs: tuple[Sequence[Run], Sequence[Run]], data: Data | None, speeds: Speeds
) -> tuple[float, float] | None:
    """Estimate the hours of all pretrainings and of all fine-tunings, without predictions and evaluations.

    Time is in proportion to the number of pixels, since the bench's images may differ from the planned patch, and where
    the table's networks are of other widths, to the square of these.

    Returns:
        The hours; None where the sizes of the data are unknown.

    Raises:
        ValueError: A method was not measured.
    """
    patch = data.patch_size if data else study.sizes.patch_size if study.sizes else None
    if patch is None:
        return None
    pixels = math.prod(patch) / speeds.side**2
    if speeds.width is not None:
        pixels *= (_width(study, data) / speeds.width) ** 2
    pretraining, finetuning = runs
    known = study.sizes.other_datasets if study.sizes else {}
    if data is None and any(run.dataset and run.dataset not in known for run in pretraining):
        return None
    seconds = [0.0, 0.0]
    for run in pretraining:
        if (method := method_of(run)) not in speeds.methods:
            raise ValueError(f"`--bench` must hold the speed of {method}: leave out --methods.")
        seconds[0] += _pretraining_images(study, run, data) / speeds.methods[method]
    for run in finetuning:
        seconds[1] += _finetuning_images(study, run, data) / speeds.finetuning
    return seconds[0] * pixels / 3600, seconds[1] * pixels / 3600


def _width(study: Study, data: Data | None) -> float:
    """Return the features of the planned network as a multiple of nnU-Net's."""
    if data is not None:
        arguments = data.configuration.get("architecture", {}).get("arch_kwargs", {})
        features = arguments.get("features_per_stage", [STAGE_WIDTH])
        return float(features[0]) / STAGE_WIDTH
    words = shlex.split(study.prepare)
    return float(words[words.index("--width") + 1]) if "--width" in words else 1.0


def _pretraining_images(study: Study, run: Run, data: Data | None) -> float:
    """Count the slices that a pretraining shows in all epochs."""
    settings = override(find_trainer(run.trainer).defaults, run.settings)[0]
    sizes = study.sizes
    if data and run.dataset:
        n = data.source(dataset_id(run.dataset)).n_slices
    elif sizes and run.dataset:
        n = sizes.other_datasets[run.dataset]
    else:
        n = data.pretraining_slices(run.fold) if data else sizes.pretraining_slices if sizes else 0
        if data and settings.data_superset is not None:  # in proportion to the subjects
            n = round(n * min(1.0, settings.data_superset * data.labelled_share(run.fold)))
    n = round(n * settings.data_fraction)
    steps = settings.iterations_per_epoch or n // settings.batch_size
    return float(settings.num_epochs * steps * settings.batch_size)


def _finetuning_images(study: Study, run: Run, data: Data | None) -> float:
    settings = override(find_trainer(run.trainer).defaults, run.settings)[0]
    batch = data.batch_size if data else study.sizes.batch_size if study.sizes else 0
    steps = settings.iterations_per_epoch or STOCK_ITERATIONS
    asked = getattr(settings, "unlabelled_batch_size", 0)
    # Each is an image to train on and, for the teacher, a forward pass: a third of a step.
    unlabelled = (batch if asked == "auto" else asked) * 4 / 3
    return float(settings.num_epochs * steps * (batch + unlabelled))


def method_of(run: Run) -> str:
    """Return the name of a pretraining's method, as the bench has it."""
    found = re.fullmatch(r"nnUNetTrainer(\w+)Pretrain", run.trainer)
    return found[1] if found else run.trainer
