"""nnU-Net's final validation in this process, where its worker processes would take longer to start than to work.

nnU-Net starts a pool to write the predictions and another one to score them, and each worker imports nnU-Net again.
The files are the same byte by byte.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import subfiles
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

# Logits (voxels times classes) of all cases that this process writes in the time in which two workers start.
FEW_LOGITS = 10**8


def needs_no_workers(trainer: nnUNetTrainer) -> bool:
    """Whether the validation cases are few enough, on one rank, of a configuration without a next stage."""
    configuration = trainer.configuration_manager
    if trainer.is_ddp or trainer.is_cascaded or configuration.next_stage_names is not None:
        return False
    cases = _cases(trainer)
    classes = trainer.label_manager.num_segmentation_heads
    shapes = (cases.load_case(name)[3]["shape_before_cropping"] for name in cases.identifiers)
    return sum(float(np.prod(shape)) * classes for shape in shapes) <= FEW_LOGITS


def validate_here(trainer: nnUNetTrainer, save_probabilities: bool = False) -> None:
    """Predict and score the validation cases as `nnUNetTrainer.perform_actual_validation` does, without workers.

    Args:
        trainer: A trained one, for which `needs_no_workers` holds.
        save_probabilities: Also write each case's probabilities.
    """
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(verbose=False, allow_tqdm=False, device=trainer.device)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    folder = Path(trainer.output_folder) / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    cases = _cases(trainer)
    for name in cases.identifiers:
        trainer.print_to_log_file(f"predicting {name}")
        data, _, _, properties = cases.load_case(name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writ")
            slices = torch.from_numpy(data[:])
        trainer.print_to_log_file(f"{name}, shape {slices.shape}, rank {trainer.local_rank}")
        export_prediction_from_logits(
            predictor.predict_sliding_window_return_logits(slices).cpu(),
            properties,
            trainer.configuration_manager,
            trainer.plans_manager,
            trainer.dataset_json,
            str(folder / name),
            save_probabilities,
        )
    _score(trainer, folder)
    trainer.set_deep_supervision_enabled(True)
    compute_gaussian.cache_clear()


def _cases(trainer: nnUNetTrainer) -> Any:
    return trainer.dataset_class(trainer.preprocessed_dataset_folder, trainer.do_split()[1])


def _score(trainer: nnUNetTrainer, folder: Path) -> None:
    """Score all predictions in a folder, write `summary.json`, and log the mean Dice."""
    labels = trainer.label_manager
    classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    references = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    reader = trainer.plans_manager.image_reader_writer_class()
    cases = [
        compute_metrics(
            str(references / name), str(folder / name), reader, classes, labels.ignore_label
        )
        for name in subfiles(str(folder), suffix=trainer.dataset_json["file_ending"], join=False)
    ]
    metrics = list(cases[0]["metrics"][classes[0]])
    means = {
        c: {m: np.nanmean([case["metrics"][c][m] for case in cases]) for m in metrics}
        for c in classes
    }
    overall = {m: np.mean([means[c][m] for c in classes if c != 0]) for m in metrics}
    for part in (*cases, means, overall):
        recursive_fix_for_json_export(part)
    result = {"metric_per_case": cases, "mean": means, "foreground_mean": overall}
    save_summary_json(result, str(folder / "summary.json"))
    for c in means:
        trainer.logger.log_summary(f"final_val/class_{c}_dice", means[c]["Dice"])
    trainer.logger.log_summary("final_val/foreground_dice", overall["Dice"])
    trainer.print_to_log_file("Validation complete", also_print_to_console=True)
    trainer.print_to_log_file("Mean Validation Dice: ", overall["Dice"], also_print_to_console=True)
