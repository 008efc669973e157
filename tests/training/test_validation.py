"""The final validation without worker processes, beside nnU-Net's own."""

from __future__ import annotations

import json
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

from nnunet_ssp.training import validation
from nnunet_ssp.training.validation import needs_no_workers

SCRATCH = "nnUNetTrainerScratch"
SHORT = "num_epochs=1 iterations_per_epoch=1 val_iterations_per_epoch=1"


def contents(trainer: Any) -> dict[str, Any]:
    """Return the files of a validation, arrays of probabilities unpacked."""
    found: dict[str, Any] = {}
    for file in sorted((Path(trainer.output_folder) / "validation").iterdir()):
        found[file.name] = file.read_bytes()
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                found[file.name] = {name: arrays[name].tobytes() for name in arrays}
    return found


@pytest.mark.parametrize("probabilities", [False, True])
def test_files_and_scores_are_nnunets(
    runs, log, no_pictures, monkeypatch: pytest.MonkeyPatch, probabilities: bool
):
    trainer = runs.run(SCRATCH, f"{SHORT} final_validation=no")
    trainer.settings = type(trainer).defaults
    logged: list[tuple[str, float]] = []
    trainer.logger.log_summary = lambda name, value: logged.append((name, value))

    def refuse(*_: Any) -> None:
        raise AssertionError("no process is needed")

    with monkeypatch.context() as context:
        context.setattr(stock.multiprocessing, "get_context", refuse)
        trainer.perform_actual_validation(probabilities)
    ours, said = contents(trainer), log(trainer)
    cases = [name for name in ours if name.endswith(".nii.gz")]
    assert len(cases) == len(trainer.do_split()[1]) > 1
    assert len(ours) == (3 if probabilities else 1) * len(cases) + 1
    assert "Mean Validation Dice" in said and f"predicting {cases[0][:-7]}" in said
    assert len(json.loads(ours["summary.json"])["metric_per_case"]) == len(cases)

    for name in ours:
        (Path(trainer.output_folder) / "validation" / name).unlink()
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(stock, "multiprocessing", threads)
    monkeypatch.setattr(evaluate_predictions, "multiprocessing", threads)
    n_logged = len(logged)
    stock.nnUNetTrainer.perform_actual_validation(trainer, probabilities)
    assert contents(trainer) == ours
    assert logged[n_logged:] == logged[:n_logged] != []


def test_large_cases_ranks_and_cascades_have_nnunets_workers(runs, monkeypatch: pytest.MonkeyPatch):
    trainer = runs.make(SCRATCH, SHORT)
    trainer.initialize()
    assert needs_no_workers(trainer)
    voxels = sum(
        np.prod(
            trainer.dataset_class(trainer.preprocessed_dataset_folder, [name]).load_case(name)[3][
                "shape_before_cropping"
            ]
        )
        for name in trainer.do_split()[1]
    )
    logits = int(voxels) * trainer.label_manager.num_segmentation_heads
    monkeypatch.setattr(validation, "FEW_LOGITS", logits)
    assert needs_no_workers(trainer)
    monkeypatch.setattr(validation, "FEW_LOGITS", logits - 1)
    assert not needs_no_workers(trainer)
    monkeypatch.setattr(validation, "FEW_LOGITS", logits)
    for name in ("is_ddp", "is_cascaded"):
        monkeypatch.setattr(trainer, name, True)
        assert not needs_no_workers(trainer)
        monkeypatch.setattr(trainer, name, False)
    assert needs_no_workers(trainer)
