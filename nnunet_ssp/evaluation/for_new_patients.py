"""What follows an evaluation: the command by which an evaluated model measures new patients."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

NAMED = 3  # models whose commands are printed
CHECKPOINT = "checkpoint_final.pth"


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
    base = Path(os.environ.get("nnUNet_results") or os.devnull) / dataset
    trained = _trained(base)
    words = ["nnunet-ssp", "predict", "-i", "FOLDER", "-o", "OUT", "-d", str(int(dataset[7:10]))]
    for structure, own in structures.items():
        words += [f"--{structure.lower()}", own] if own else []
    found: dict[tuple[str, ...], str] = {}
    for model, places in models.items():
        options = (_options(place, trained) for place in places)
        if known := next((option for option in options if option is not None), None):
            found.setdefault(known, model)
    if trained and not found:
        return [f"For new patients, with one of the models that it lists: {shlex.join(words)}"]
    return [
        f"For new patients{f', with {model}' if len(models) > 1 else ''}: {shlex.join([*words, *options])}"
        for options, model in [*found.items()][:NAMED]
    ]


def _trained(base: Path) -> dict[str, set[str]]:
    """Return the trained folds of each model of a dataset that segments."""
    trained: dict[str, set[str]] = {}
    for file in sorted(base.glob(f"*__*__*/fold_*/{CHECKPOINT}")):
        model, fold = file.parts[-3], file.parts[-2]
        if segments(model) and model.count("__") == 2:
            trained.setdefault(model, set()).add(fold.removeprefix("fold_"))
    return trained


def _options(place: Path, trained: Mapping[str, set[str]]) -> tuple[str, ...] | None:
    """Return the options that name the model behind predictions; None where it cannot be told.

    A validation folder lies in its model. What a fine-tuning's last line names begins with the trainer.
    """
    inside = re.fullmatch(r"fold_(all|\d+)", place.parent.name)
    named = re.fullmatch(r"(.+)_fold_(all|\d+)", place.name)
    fitting, fold = list(trained), ""
    if inside and place.name == "validation":
        fitting, fold = [n for n in trained if n == place.parents[1].name], inside[1]
    elif named and any(n.startswith(f"{named[1]}__") for n in trained):
        fitting, fold = [n for n in trained if n.startswith(f"{named[1]}__")], named[2]
    if len(fitting) != 1 or (fold and fold not in trained[fitting[0]]):
        return None
    trainer, plans, configuration = fitting[0].split("__")
    folds = ("-f", fold) if fold else ()
    return ("-tr", trainer, "-p", plans, "-c", configuration, *folds)
