"""What follows an evaluation: the command by which an evaluated model measures new patients."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from nnunet_ssp.evaluation.provenance import is_validation, read_provenance
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.launch import predictions_folder
from nnunet_ssp.nnunet import results_here

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

    Where a model was trained on a CPU, it predicts without mirroring, which takes a quarter of the time.

    Args:
        dataset: Name of the dataset.
        models: Folders of predictions of each model.
        structures: Class by structure, where the user has named it.
    """
    results = results_here()
    named = [word for key, own in structures.items() if own for word in (f"--{key.lower()}", own)]
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    foreign = True
    for model, places in models.items():
        for place in places:
            origin = read_provenance(place).model or dataset
            foreign &= origin != dataset
            if not re.match(r"Dataset\d{3}_", origin):
                continue
            trained = folds_by_model(results / origin)
            own = model_of(place, origin, trained, len(models) == 1)
            if own is not None:
                classes = named if origin == dataset else []
                name, fold = own
                words = (str(int(origin[7:10])), *classes, *_options(name, fold))
                folds = [fold] if fold else sorted(trained[name])
                words += _quick(results / origin / name / f"fold_{one}" for one in folds)
                found.setdefault(words, (model, "" if fold else _doubt(trained[name])))
                break
    begin = ["nnunet-ssp", "predict", "-i", "FOLDER", "-o", "OUT", "-d"]
    if not found and not foreign and (own_models := folds_by_model(results / dataset)):
        trained_here = [
            results / dataset / name / f"fold_{one}"
            for name, folds in own_models.items()
            for one in folds
        ]
        command = shlex.join([*begin, str(int(dataset[7:10])), *named, *_quick(trained_here)])
        return [f"For new patients, with one of the models that it lists: {command}"]
    return [
        f"For new patients{f', with {model}' if len(models) > 1 else ''}{doubt}: {shlex.join([*begin, *words])}"
        for words, (model, doubt) in [*found.items()][:NAMED]
    ]


def _quick(folds: Iterable[Path]) -> tuple[str, ...]:
    """Return the option that leaves out mirroring, if all trainings ran on a CPU; nnU-Net records their device."""

    def device(fold: Path) -> object:
        try:
            return read_json(fold / "debug.json", dict).get("device")
        except (OSError, ValueError):
            return None

    return ("--disable_tta",) if all(device(fold) == "cpu" for fold in folds) else ()


def _doubt(folds: Collection[str]) -> str:
    """Say that the command averages folds which perhaps were not evaluated together."""
    return (
        f" (the folder does not tell which of the trained folds {', '.join(sorted(folds))} predicted; without -f FOLD "
        "all numbered ones are averaged)"
    )


def folds_by_model(base: Path) -> dict[str, set[str]]:
    """Return the trained folds of each model of a dataset that segments."""
    trained: dict[str, set[str]] = {}
    for file in sorted(base.glob(f"*__*__*/fold_*/{CHECKPOINT}")):
        model, fold = file.parts[-3], file.parts[-2]
        if segments(model) and model.count("__") == 2:
            trained.setdefault(model, set()).add(fold.removeprefix("fold_"))
    return trained


def model_of(
    place: Path, dataset: str, trained: Mapping[str, set[str]], alone: bool
) -> tuple[str, str] | None:
    """Return the model behind predictions and its fold; None where the model cannot be told.

    A validation folder lies in its model. What a fine-tuning's last line names is known by its name; a folder of
    another name may be of the only model, if no other one is evaluated. Its fold is then known if there is only one:
    nnU-Net writes the folds nowhere beside predictions.

    Args:
        place: The folder of predictions.
        dataset: Name of the dataset that the model was trained on.
        trained: Trained folds by model, of this dataset.
        alone: Whether no other model is evaluated.

    Returns:
        Name of the model; number of its fold, `all`, or nothing where it is one of several.
    """
    every = [(model, fold) for model in trained for fold in sorted(trained[model])]
    if is_validation(place):
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
            fitting = [
                (model, "" if len(folds) > 1 else min(folds)) for model, folds in trained.items()
            ]
    return fitting[0] if len(fitting) == 1 else None


def _options(model: str, fold: str) -> tuple[str, ...]:
    """Return the options of `predict` that name a model, and a fold if it is known."""
    trainer, plans, configuration = model.split("__")
    return ("-tr", trainer, "-p", plans, "-c", configuration, *(("-f", fold) if fold else ()))
