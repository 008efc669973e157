"""Converted datasets are ordinary datasets of nnU-Net: it checks, plans, preprocesses and trains them by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssp.dataset_conversion import load_converter
from tests import cine_trees
from tests.cine_trees import ED, ES, add_acdc, add_mnms, add_mnms2, drawn, save

pytestmark = pytest.mark.slow


def acdc_tree(folder: Path) -> Path:
    for number in (1, 2):
        add_acdc(folder, "training", number)
    return folder


def mnms2_tree(folder: Path) -> Path:
    for number in (101, 102, 281):
        add_mnms2(folder, number)
    return folder


def both_trees(folder: Path) -> list[Path]:
    for code in ("A1", "A2", "A3"):
        add_mnms(folder / "mm1", "Training/Labeled", code, drawn(ED, ES))
    return [folder / "mm1", mnms2_tree(folder / "mm2")]


def cine_tree(folder: Path) -> Path:
    for subject in ("S1", "S2"):
        save(cine_trees.cine(), folder / f"{subject}.nii.gz")
        save(drawn(ED, ES), folder / f"{subject}_gt.nii.gz")
    save(cine_trees.cine(), folder / "U1.nii.gz")
    return folder


TREES: dict[str, Callable[[Path], Path | list[Path]]] = {
    "acdc": acdc_tree,
    "mnms2": mnms2_tree,
    "mnms+mnms2": both_trees,
    "cine": cine_tree,
}


@pytest.mark.parametrize("converter", TREES)
def test_nnunet_finds_nothing_wrong(
    converter: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = load_converter(converter).convert(TREES[converter](tmp_path / "source"), 118)
    verify_dataset_integrity(str(target), num_processes=1)
    assert "verify_dataset_integrity Done." in capsys.readouterr().out


@pytest.mark.heavy
def test_nnunet_trains_by_itself(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
):
    monkeypatch.setattr(cine_trees, "SHAPE", (48, 40, 3, 4))
    target = load_converter("acdc").convert(acdc_tree(tmp_path / "source"), 118)
    extract_fingerprints([118], num_processes=1)
    plan_experiments([118], gpu_memory_target_in_gb=0.1)
    preprocess([118], configurations=["2d"], num_processes=[1])

    for name in ("nnUNet_n_proc_DA", "nnUNet_compile"):
        monkeypatch.setenv(name, "0")
    folder = tmp_path / "preprocessed" / target.name
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    network = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [4] * network["n_stages"]
    dataset = json.loads((folder / "dataset.json").read_text())
    trainer = nnUNetTrainer(
        plans | {"continue_training": False}, "2d", 0, dataset, torch.device("cpu")
    )
    trainer.num_epochs = 1
    trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 2
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    assert json.loads((folder / "splits_final.json").read_text()) == json.loads(
        (target / "splits_final.json").read_text()
    )
