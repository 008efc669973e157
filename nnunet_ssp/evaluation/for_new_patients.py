"""What follows an evaluation: the command by which an evaluated model measures new patients."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_ssp.evaluation.provenance import read_provenance
from nnunet_ssp.launch import predictions_folder

NAMED = 3  # models whose commands are printed
CHECKPOINT = "checkpoint_final.pth"
# Folders that name a training, as `predictions_folder` makes them
PRINTED = re.compile(r"nnUNetTrainer.*_fold_(all|\d+)")


def segments(name: str) -> bool:
    """Whether a folder of results is of a trainer that segments, as far as its name tells."""
    return not name.partition("__")[0].endswith("Pretrain")


def prediction_lines(
    dataset: str, models: Mapping[str, Sequence[Path]], structures: Mapping[str, str | None]
) -> list[str]:
    """Return the lines that predict new patients with the evaluated models; none where no trained model is here.

    Args:
        dataset: Name of the dataset.
        models: Folders of predictions of each model.
        structures: Class by structure, where the user has named it.
    """
    results = Path(os.environ.get("nnUNet_results") or os.devnull)
    named = [word for key, own in structures.items() if own for word in (f"--{key.lower()}", own)]
    found: dict[tuple[str, ...], str] = {}
    foreign = True
    for model, places in models.items():
        for place in places:
            origin = read_provenance(place).model or dataset
            foreign &= origin != dataset
            if not re.match(r"Dataset\d{3}_", origin):
                continue
            options = _options(place, origin, folds_by_model(results / origin), len(models) == 1)
            if options is not None:
                classes = named if origin == dataset else []
                found.setdefault((str(int(origin[7:10])), *classes, *options), model)
                break
    begin = ["nnunet-ssp", "predict", "-i", "FOLDER", "-o", "OUT", "-d"]
    if not found and not foreign and folds_by_model(results / dataset):
        command = shlex.join([*begin, str(int(dataset[7:10])), *named])
        return [f"For new patients, with one of the models that it lists: {command}"]
    return [
        f"For new patients{f', with {model}' if len(models) > 1 else ''}: {shlex.join([*begin, *words])}"
        for words, model in [*found.items()][:NAMED]
    ]


def folds_by_model(base: Path) -> dict[str, set[str]]:
    """Return the trained folds of each model of a dataset that segments."""
    trained: dict[str, set[str]] = {}
    for file in sorted(base.glob(f"*__*__*/fold_*/{CHECKPOINT}")):
        model, fold = file.parts[-3], file.parts[-2]
        if segments(model) and model.count("__") == 2:
            trained.setdefault(model, set()).add(fold.removeprefix("fold_"))
    return trained


def _options(
    place: Path, dataset: str, trained: Mapping[str, set[str]], alone: bool
) -> tuple[str, ...] | None:
    """Return the options that name the model behind predictions; None where it cannot be told.

    A validation folder lies in its model. What a fine-tuning's last line names is known by its name; a folder of
    another name may be of the only model, if no other one is evaluated.

    Args:
        place: The folder of predictions.
        dataset: Name of the dataset that the model was trained on.
        trained: Trained folds by model, of this dataset.
        alone: Whether no other model is evaluated.
    """
    every = [(model, fold) for model in trained for fold in sorted(trained[model])]
    if place.name == "validation" and place.parent.name.startswith("fold_"):
        own = place.parents[1].name, place.parent.name.removeprefix("fold_")
        fitting = [pair for pair in every if pair == own]
    else:
        fitting = [
            pair for pair in every if Path(predictions_folder(dataset, *pair)).name == place.name
        ]
        # As it was printed before: by the trainer alone.
        fitting = fitting or [
            (model, fold)
            for model, fold in every
            if f"{model.partition('__')[0]}_fold_{fold}" == place.name
        ]
        if not fitting and alone and not PRINTED.fullmatch(place.name):
            fitting = [(model, "") for model in trained]
    if len(fitting) != 1:
        return None
    ((model, fold),) = fitting
    trainer, plans, configuration = model.split("__")
    return ("-tr", trainer, "-p", plans, "-c", configuration, *(("-f", fold) if fold else ()))
