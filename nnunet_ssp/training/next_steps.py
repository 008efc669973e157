"""The commands that follow a training, each as it can be pasted into the shell."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from nnunet_ssp.cohort.membership import count_for_advice
from nnunet_ssp.cohort.splits import read_copy
from nnunet_ssp.files.nnunet import NATURAL
from nnunet_ssp.launch import moving_command, predicting_command, predictions_folder
from nnunet_ssp.recommended import FEW, FEW_SETTINGS, finetuning_settings
from nnunet_ssp.settings import typed_before

FINETUNING = "nnUNetTrainerFinetune"


def finetuning_command(trainer: Any, file: Path) -> str:
    """Return the command that fine-tunes from a pretraining's file, with the settings for so many labels.

    Args:
        trainer: A `PretrainingTrainer`.
        file: Its checkpoint.
    """
    prepared = Path(trainer.preprocessed_dataset_folder_base)
    splits = read_copy(prepared) or []
    ending = trainer.dataset_json["file_ending"]
    masks = (prepared / "gt_segmentations").glob(f"*{ending}")
    labelled = {file.name.removesuffix(ending) for file in masks}
    n_labelled, _ = count_for_advice(trainer.fold, labelled, splits, trainer.cases)
    return str(
        trainer.command(
            *("-pretrained_weights", str(file)),
            trainer=FINETUNING,
            settings=finetuning_settings(n_labelled),
        )
    )


def finetuned_before(folder: Path) -> str:
    """Return a sentence on the folder that the fine-tuning will have, where it holds one of other weights, perhaps.

    Args:
        folder: The pretraining's, `TRAINER__PLANS__CONFIGURATION/fold_F`.
    """
    own = folder.parent.name.partition("__")[2]
    other = folder.parents[1] / f"{FINETUNING}__{own}" / folder.name
    if not any(other.glob("checkpoint_*.pth")):
        return ""
    return (
        f" {other} holds a fine-tuning; one from other weights is refused there: move it away first, or set another "
        "nnUNet_results."
    )


def next_step(trainer: Any, file: Path) -> str:
    """Return the last words of a pretraining.

    Args:
        trainer: A `PretrainingTrainer`.
        file: Its checkpoint.
    """
    labels = trainer.label_manager
    if not (labels.foreground_labels or labels.has_regions):
        return f"Pretraining done. {finetuning_elsewhere(trainer, file)}"
    before = finetuned_before(Path(trainer.output_folder))
    return f"Pretraining done.{before} Fine-tune with:\n{finetuning_command(trainer, file)}"


def finetuning_elsewhere(trainer: Any, file: Path) -> str:
    """Return how to fine-tune from a pretraining whose dataset has no labels.

    Args:
        trainer: A `PretrainingTrainer`.
        file: Its checkpoint.
    """
    plans = trainer.plans_manager
    words = "-pretrained_weights", str(file)
    bare = f"{plans.dataset_name} has no labels"
    if plans.plans.get("image_reader_writer") == NATURAL:  # whose plans are another dataset's
        command = trainer.command(*words, trainer=FINETUNING, fold="0", dataset="ID")
        return f"{bare}. With the dataset whose plans it was prepared under in place of ID, fine-tune with:\n{command}"
    configuration = trainer.configuration_name
    prepare, own = moving_command("ID", int(trainer.dataset), plans.plans_name, configuration)
    command = trainer.command(*words, trainer=FINETUNING, fold="0", dataset="ID", plans=own)
    return (
        f"{bare}. With the id of a labelled dataset in place of ID, prepare it under the same plans, and fine-tune; "
        f"with at most {FEW} labelled subjects put {typed_before(FEW_SETTINGS)}before the second line:\n{prepare}\n"
        f"{command}"
    )


def after_finetuning(
    dataset: str, folder: Path, fold: int | str, device: str, validated: bool = True
) -> str:
    """Return the commands that predict and evaluate the test subjects, or evaluate the validation subjects.

    Args:
        dataset: Name of the dataset.
        folder: The training's, `TRAINER__PLANS__CONFIGURATION/fold_F`.
        fold: Number of the fold, or `all`.
        device: As in nnU-Net's `-device`.
        validated: Whether the validation has ended; one that was stopped has predicted a part of its subjects.
    """
    number = str(int(dataset[7:10]))
    raw = Path(os.environ.get("nnUNet_raw", "")) / dataset
    if not any((raw / "imagesTs").glob("*")):
        validation = folder / "validation"
        if not validated or not any(validation.glob("*")) or fold == "all":
            return ""
        words = ["nnunet-ssp", "evaluate", number, str(validation)]
        return f"Evaluate the validation subjects with:\n{shlex.join(words)}"
    output = predictions_folder(dataset, folder.parent.name, fold)
    lines = [predicting_command(dataset, folder.parent.name, fold, raw / "imagesTs", device)]
    if any((raw / "labelsTs").glob("*")):
        lines.append(shlex.join(["nnunet-ssp", "evaluate", number, output]))
    return "\n".join(["Predict the test subjects with:", *lines])
