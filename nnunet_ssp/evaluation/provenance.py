"""Where predictions come from, by the files that nnU-Net writes beside them.

`nnUNetv2_predict` writes three files into its output folder. They are of the last run only: masks of an earlier run
into the same folder are replaced where a case has the same name, and stay otherwise.

* `plans.json`: `dataset_name` is the dataset that the model was trained on. There is no trainer and no fold.
* `dataset.json`: `labels` are the names and values of the masks.
* `predict_from_raw_data_args.json`: `list_of_lists_or_source_folder` is the folder of the images, as it was typed.
  It does not hold the options of the command that decide about the labels: mirroring, step size, folds.

`nnunet-ssp predict` writes `predict.json`, with mirroring, folds and postprocessing; its step
size is nnU-Net's default.

The validation folder of a fold has none of them. Two levels up are the training's `plans.json` and `dataset.json`,
and its images are those of the same dataset, predicted with mirroring, by one fold. One level up is `settings.json`,
if the training was ours.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from nnunet_ssp.cohort.membership import SEEN
from nnunet_ssp.console import count_of
from nnunet_ssp.evaluation.labels import Labels, structure_of
from nnunet_ssp.files.contents import is_whole, read_json, shown
from nnunet_ssp.files.nnunet import check_dataset
from nnunet_ssp.reporting.wording import listing

ARGUMENTS = "predict_from_raw_data_args.json"
OURS = "predict.json"  # of `nnunet-ssp predict`
_DATASET = re.compile(r"Dataset\d{3}_.+")


@dataclass(frozen=True)
class Provenance:
    """What the files beside predictions say; empty where they say nothing."""

    # Name of the dataset that the model was trained on
    model: str = ""
    # Name of the dataset that the images are of
    images: str = ""
    # Values by the name of each class, as `Labels.classes`
    classes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    # Whether they are of a training's validation
    validates: bool = False
    # How many of its subjects the pretraining has seen
    seen: int = 0
    # Names of files that cannot be read
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How predictions were made, in words; empty where nothing tells."""

    mirroring: str = ""
    folds: str = ""
    postprocessing: str = ""


def read_options(folder: Path) -> Options:
    """Read how predictions were made; what is missing or damaged says nothing.

    Args:
        folder: Of predictions, or the validation folder of a fold.
    """
    if is_validation(folder):
        return _options(True, 1, 0)
    try:
        found = read_json(folder / OURS, dict)
    except (OSError, ValueError):
        return Options()
    model, folds = found.get("model"), found.get("folds")
    model = model if isinstance(model, dict) else {}
    steps = model.get("postprocessing")
    return _options(
        model.get("mirror"),
        len(folds) if isinstance(folds, list) else None,
        len(steps) if isinstance(steps, list) else None,
    )


def _options(mirror: object, folds: int | None, steps: int | None) -> Options:
    mirroring = {True: "with mirroring", False: "without mirroring (--disable_tta)"}
    return Options(
        mirroring[mirror] if isinstance(mirror, bool) else "",
        f"by {count_of(folds, 'fold')}" if folds else "",
        "" if steps is None else "with postprocessing" if steps else "without postprocessing",
    )


def option_notes(folders: Mapping[str, Sequence[Path]]) -> list[str]:
    """Say where models that are compared were not predicted alike, or where this cannot be known.

    Args:
        folders: Folders of predictions of each model.
    """
    if len(folders) < 2:
        return []
    read = {name: [read_options(folder) for folder in own] for name, own in folders.items()}
    notes = []
    for option in fields(Options):
        said = {
            name: " or ".join(sorted({getattr(one, option.name) for one in own} - {""}))
            for name, own in read.items()
        }
        known = {name: words for name, words in said.items() if words}
        if len({*known.values()}) > 1:
            each = "; ".join(f"{name} {words}" for name, words in known.items())
            notes.append(
                f"The models were not predicted alike: {each}. A part of their difference comes from this."
            )
    untold = [
        name
        for name, own in folders.items()
        if any((place / ARGUMENTS).is_file() and not is_validation(place) for place in own)
    ]
    if untold and len(untold) < len(folders):  # else it would be said of most comparisons
        notes.append(
            f"nnUNetv2_predict does not record mirroring (--disable_tta), step size and folds of {listing(untold)}: "
            "not checked whether all models were predicted alike."
        )
    return notes


def is_validation(folder: Path) -> bool:
    """Whether a folder is nnU-Net's for the validation of a fold, `fold_F/validation`, by its name."""
    return folder.name == "validation" and folder.parent.name.startswith("fold_")


def read_provenance(folder: Path) -> Provenance:
    """Read what nnU-Net wrote beside predictions; a damaged file of it is named and says nothing.

    Args:
        folder: Of predictions, or the validation folder of a fold.
    """
    validates = is_validation(folder)
    place = folder.parents[1] if validates else folder
    found: dict[str, dict[str, Any]] = {}
    unread = []
    for name in ("plans.json", "dataset.json", ARGUMENTS):
        try:
            found[name] = read_json(place / name, dict)
            if name == "dataset.json":
                check_dataset(found[name], name)
        except FileNotFoundError:
            found[name] = {}
        except (OSError, ValueError):
            found[name] = {}
            unread.append(name)
    model = _as_text(found["plans.json"].get("dataset_name"))
    typed = _as_text(found[ARGUMENTS].get("list_of_lists_or_source_folder"))
    # Typed on another machine, perhaps.
    parts = (PureWindowsPath if "\\" in typed else PurePosixPath)(typed).parts
    images = next((part for part in reversed(parts) if _DATASET.fullmatch(part)), "")
    classes = {
        name: tuple(value) if isinstance(value, list) else (value,)
        for name, value in found["dataset.json"].get("labels", {}).items()
        if name != "ignore" and value != 0
    }
    seen = _seen(folder.parent) if validates else 0
    return Provenance(
        model, model if validates else images, classes, validates, seen, tuple(unread)
    )


def _seen(fold: Path) -> int:
    """Return how many validation subjects pretraining has seen, as a fine-tuning's fold records; 0 if it does not."""
    try:
        found: Any = read_json(fold / "settings.json", dict).get(SEEN)
    except (OSError, ValueError):
        return 0
    return int(found) if is_whole(found) else 0


def whose(folder: Path, asked: str = "") -> str:
    """Return the sentence on the other dataset that predictions are of, with a blank before it; empty if none is known.

    Args:
        folder: Of predictions, or the validation folder of a fold.
        asked: Name of the dataset on which they were to be scored.
    """
    said = read_provenance(folder)
    dataset = said.images or said.model
    if dataset == asked or not _DATASET.fullmatch(dataset):
        return ""
    of = f"images of {said.images}" if said.images else "images of an unknown dataset"
    by = f" by a model of {shown(said.model)}" if said.model else ""
    command = shlex.join(["nnunet-ssp", "evaluate", str(int(dataset[7:10])), str(folder)])
    return f" By the files beside them these are predictions{by} on {of}. On {dataset}: {command}"


def provenance_notes(
    folders: Mapping[str, Sequence[Path]], dataset: str, labels: Labels
) -> list[str]:
    """Compare where predictions come from with the dataset that they are scored on.

    A model of another dataset that predicted this dataset's images is a test of how far it carries: a note. Images of
    another dataset, or of an unknown one by a model of another, are a warning.

    Args:
        folders: Folders of predictions of each model.
        dataset: Name of the dataset.
        labels: Its labels.

    Returns:
        Notes, those that begin with WARNING first.

    Raises:
        ValueError: A structure has other values in the predictions than in the dataset.
    """
    warnings: list[str] = []
    notes: list[str] = []
    for name, own in folders.items():
        for folder in own:
            # By name: the page, which is shared, has no paths.
            who = name if len(own) == 1 else f"{name}, {folder.name}"
            said = read_provenance(folder)
            _refuse_other_labels(folder, said, dataset, labels)
            model = shown(said.model) if said.model else "an unknown dataset"
            if said.unread:
                notes.append(
                    f"{who}: {', '.join(said.unread)} beside the masks cannot be read: not checked whose they are."
                )
            if said.seen:
                warnings.append(
                    f"WARNING: {who}: pretraining has seen {count_of(said.seen, 'subject')} of the validation set of "
                    f"{shown(folder.parent.name)}, so these figures are too good. Pretrain on the same fold for a "
                    "clean validation."
                )
            if said.validates and said.images and said.images != dataset:
                warnings.append(
                    f"WARNING: {who}: this is the validation of a training on {model}; its masks are scored here on "
                    f"{dataset}. Evaluate {model}, or predict the images of {dataset}."
                )
            elif said.images and said.images != dataset:
                warnings.append(
                    f"WARNING: {who}: nnU-Net predicted last into this folder from the images of "
                    f"{shown(said.images)}, with a model of {model}; they are scored here on {dataset}. Masks of the "
                    "same names that lay there before were replaced. Predict again into a folder of its own."
                )
            elif said.model and said.model != dataset and not said.images:
                warnings.append(
                    f"WARNING: {who}: nnU-Net predicted last into this folder with a model of {model}; the masks are "
                    f"scored here on {dataset}. If its images were not the ones predicted, predict again into a "
                    "folder of its own."
                )
            elif said.model and said.model != dataset:
                notes.append(f"{who}: the model was trained on {model}.")
    return [*dict.fromkeys(warnings), *dict.fromkeys(notes), *option_notes(folders)]


def _refuse_other_labels(folder: Path, said: Provenance, dataset: str, labels: Labels) -> None:
    """Refuse predictions in which a structure has none of the values that it has in the dataset."""
    known = {structure: labels.classes[name] for structure, name in labels.structures.items()}
    for name, values in said.classes.items():
        # A class before a structure: the user may have named another class than LV as the LV.
        true = labels.classes.get(name, known.get(structure_of(name), values))
        if not {*values} & {*true}:
            numbers = [" ".join(map(str, each)) for each in (values, true)]
            raise ValueError(
                f"{folder}: {shown(name)} is label {numbers[0]} in these predictions (dataset.json, a model of "
                f"{shown(said.model) if said.model else 'an unknown dataset'}) and {numbers[1]} in {dataset}: they "
                "cannot be scored on its references. Predict with a model of these labels, or renumber the masks."
            )


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else ""
