"""Folders that hold no predictions: references, images, the folder of a training; with what to give in their place."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_ssp.evaluation.files import find_references, label_files
from nnunet_ssp.evaluation.for_new_patients import folds_by_model, segments
from nnunet_ssp.launch import (
    device_flag,
    predicting_command,
    predictions_folder,
    validating_command,
)
from nnunet_ssp.nnunet import results_here

REFERENCES = ("labelsTs", "labelsTr", "gt_segmentations")  # nnU-Net's folders of them
_CHANNEL = re.compile(r".+_\d{4}")  # nnU-Net's names of images; the first channel ends in _0000


def refuse_mistaken(
    dataset: str,
    homes: Sequence[Path | None],
    ending: str,
    folders: Mapping[str, Sequence[Path]],
    references: Path | None,
    output: Path | None,
) -> None:
    """Refuse folders that hold something else than predictions.

    Args:
        dataset: Name of the dataset.
        homes: Its folders in nnUNet_raw and nnUNet_preprocessed, None where there is none.
        ending: Of its files.
        folders: Folders of each model, absolute.
        references: Folder of the references that the user has named.
        output: Folder to write to that the user has named.

    Raises:
        ValueError: The message says what a folder holds, and how to go on.
    """
    for folder in (folder for model in folders.values() for folder in model):
        own = references is not None and folder == references.resolve()
        if own or folder.name in REFERENCES:
            raise ValueError(
                f"{folder}: these are the references, which agree with themselves; give the folder of predictions, "
                "as nnUNetv2_predict -o named it."
            )
        found = label_files(folder, ending)
        if not found and folder.is_dir():
            _refuse_empty_validation(folder)
        if not found:
            _refuse_training(dataset, folder, folders, output, ending)
        elif all(map(_CHANNEL.fullmatch, found)) and any(case.endswith("_0000") for case in found):
            known = find_references(homes[0], homes[1], ending, references)
            if not any(case in known.test or case in known.training for case in found):
                raise ValueError(
                    f"{folder}: these are images, as their names end in _0000, not predictions. "
                    f"{_how_to_predict(dataset, homes[0], folder)}"
                )


def _how_to_predict(dataset: str, raw: Path | None, images: Path) -> str:
    """Return the line that predicts images with a trained model, of the test subjects where there are any."""
    if raw is not None and images.parent == raw and any((raw / "imagesTs").glob("*")):
        images = raw / "imagesTs"
    trained = folds_by_model(results_here() / dataset)
    if not trained:
        return (
            f"No model of {dataset} is fine-tuned in nnUNet_results yet. The last lines of a fine-tuning are the "
            "commands that predict and evaluate."
        )
    model = next(iter(trained))
    others = f", or with another of {', '.join(trained)}" if len(trained) > 1 else ""
    fold = min(trained[model])
    line = predicting_command(
        dataset, model, fold, images, device_flag().removeprefix(" -device ") or "cuda"
    )
    out = predictions_folder(dataset, model, fold)
    return (
        f"Predict them{others}, and then evaluate {out}:\n{line}\n"
        f"{shlex.join(['nnunet-ssp', 'evaluate', str(int(dataset[7:10])), out])}"
    )


def _refuse_empty_validation(folder: Path) -> None:
    """Refuse the validation folder of a fold in which nothing is, as it was interrupted or has not begun."""
    line = validating_command(folder.parent) if folder.name == "validation" else ""
    if line and segments(folder.parents[1].name):
        raise ValueError(
            f"{folder}: holds no prediction; the validation was interrupted or has not begun. It is made by:\n{line}"
        )


def _refuse_training(
    dataset: str,
    folder: Path,
    folders: Mapping[str, Sequence[Path]],
    output: Path | None,
    ending: str,
) -> None:
    """Refuse a fold, or the folder of a trainer, whose predictions lie further down."""
    alone = folder.is_dir() and folder.name.startswith("fold_")
    folds = sorted(folder.glob("fold_*")) or [folder] * alone
    if not folds or folds[0].parent.name.count("__") != 2:  # not of nnU-Net
        return
    trainer, _, _ = folds[0].parent.name.partition("__")
    if not segments(trainer):
        raise ValueError(
            f"{folder}: this is a pretraining, which segments nothing. Fine-tune from its checkpoint: the last line of "
            "its log is the command."
        )
    held = [fold / "validation" for fold in folds if label_files(fold / "validation", ending)]
    if not held:
        line = validating_command(folds[0])
        raise ValueError(
            f"{folder}: this is the folder of a training, and its validation, which holds predictions, is not there. "
            f"It is made at the end of nnUNetv2_train, or {f'by:{chr(10)}{line}' if line else 'with --val.'}"
        )
    words = [
        f"{name}={place}" if name != own.name or len(folders) > 1 or len(held) > 1 else str(place)
        for name, given in folders.items()
        for own in given
        for place in (held if own == folder else [own])
    ]
    if output is None and len(words) > 1:
        output = Path("evaluation")
    command = ["nnunet-ssp", "evaluate", str(int(dataset[7:10])), *words]
    command += [] if output is None else ["-o", str(output)]
    raise ValueError(
        f"{folder}: this is the folder of a training; its predictions are in {held[0].relative_to(folder)}"
        f"{', ...' if len(held) > 1 else ''}:\n{shlex.join(command)}"
    )
