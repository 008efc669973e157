"""Table of the settings of a study's trainings, beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nnunet_ssp.reporting.page import GAP
from nnunet_ssp.settings import override
from nnunet_ssp.study.data import Data
from nnunet_ssp.study.published import published_settings
from nnunet_ssp.study.runs import Run, find_trainer
from nnunet_ssp.study.spec import Study

SHOWN = {
    "num_epochs": "epochs",
    "iterations_per_epoch": "steps per epoch",
    "batch_size": "slices per step",
    "peak_lr": "learning rate",
    "lr_schedule": "scheduler",
    "optimizer": "optimiser",
    "momentum": "momentum",
    "nesterov": "Nesterov",
    "weight_decay": "weight decay",
    "precision": "precision",
    "gradient_clip": "gradient clipping",
}
# These are shown as `peak_lr`, stated elsewhere, or without effect on the weights.
HIDDEN = ("initial_lr", "seed", "final_validation", "trust")
# Fixed in nnU-Net's own trainer: its constructor, configure_optimizers and train_step.
NNUNET = {
    **{"lr_schedule": "poly", "optimizer": "sgd", "momentum": 0.99, "nesterov": True},
    **{"weight_decay": 3e-5, "precision": "fp16", "gradient_clip": 12.0},
}
NOTHING: dict[str, Any] = {}


def hyperparameters(
    study: Study, runs: tuple[Sequence[Run], Sequence[Run]], data: Data
) -> tuple[list[str], list[list[str]], str]:
    """List the main settings and those that the study gives, with a column for each pretraining and kind of training.

    Models with equal trainings share a column. Steps are those on the first fold of each.

    Returns:
        The headings, rows and a caption.
    """
    printed = published_settings(study.published_settings) if study.published_settings else NOTHING
    columns: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for run in runs[0]:
        theirs = printed.get("pretraining", NOTHING).get(run.name, NOTHING)
        columns.append((f"{run.name}, pretraining", _settings(run, data), theirs))
    alike: dict[str, list[Run]] = {}
    for run in {run.name: run for run in reversed(runs[1])}.values():
        alike.setdefault(f"{run.trainer} {run.settings_of_all_seeds}", []).insert(0, run)
    for own in reversed(alike.values()):
        theirs = next(
            (t for run in own if (t := printed.get("models", NOTHING).get(run.name))), NOTHING
        )
        columns.append((", ".join(run.name for run in own), _settings(own[0], data), theirs))
    given = (
        word.partition("=")[0] for run in (*runs[0], *runs[1]) for word in run.settings.split()
    )
    others = {name: name for name in given if name not in (*SHOWN, *HIDDEN)}
    rows = []
    for name, title in (SHOWN | others).items():
        cells = [_cell(name, ours, theirs) for _, ours, theirs in columns]
        rows.append([title, *cells])
    caption = "As given to the trainers; the precision is that on a GPU. A dash: the trainer has no such setting."
    if printed:
        caption += f" In brackets: {printed['source']}, where it differs."
    return ["", *(title for title, _, _ in columns)], rows, caption


def _settings(run: Run, data: Data) -> dict[str, Any]:
    """Collect the settings of a run on CUDA, with the values that follow from them."""
    trainer = find_trainer(run.trainer)
    settings = override(trainer.defaults, run.settings)[0]
    if run.hands_on is None:
        own = {"peak_lr": settings.initial_lr, "batch_size": data.batch_size}
        without = ("momentum", "nesterov") if settings.optimizer == "adamw" else ()
        nnunets = {name: value for name, value in NNUNET.items() if name not in without}
        found = {**nnunets, **own, **asdict(settings)}
        return found | ({"precision": NNUNET["precision"]} if settings.precision == "auto" else {})
    found = {"lr_schedule": "cosine", **asdict(settings), "peak_lr": settings.peak_lr}
    found = {name: value for name, value in found.items() if name not in settings.unused}
    if found["precision"] == "auto":
        found["precision"] = trainer.method_class.half_precision
    return found


def _cell(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    text = _text(name, ours[name]) if name in ours else GAP
    same = name not in theirs or (name in ours and theirs[name] == ours[name])
    return text if same else f"{text} ({_text(name, theirs[name])})"


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "one pass" if name == "iterations_per_epoch" else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
