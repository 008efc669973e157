"""Dense pretraining as an nnU-Net trainer."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssp.network import is_output_layer

DENSE = "nnUNetTrainerDensePretrain"
SHORT = "num_epochs=2 iterations_per_epoch=3 batch_size=4 points=12"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_and_its_fine_tuning(runs, log):
    trainer = runs.run(DENSE, SHORT)
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    pictures = sorted(p.name for p in (folder / "movement").iterdir())
    assert pictures == ["epoch_000.png", "epoch_001.png", "epoch_002.png"]
    rows = list(csv.DictReader((folder / "monitor.csv").read_text().splitlines()))
    for column in ("val_points_found", "val_error_over_variance", "train_losses"):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    assert all(float(row["change decoder 1"]) > 0 for row in rows)
    assert "points found: train" in log(trainer)

    file = folder / "checkpoint_final.pth"
    tuned = runs.make("nnUNetTrainerFinetune", "", weights=file)
    weights = torch.load(file, weights_only=True)["network_weights"]
    own = tuned.network.state_dict()
    moved = [key for key in weights if not is_output_layer(key)]
    assert len(moved) > 60
    assert all(torch.equal(own[key], weights[key]) for key in moved)


def test_the_second_frame_is_another_one(runs):
    trainer = runs.make(DENSE, SHORT)
    trainer.initialize()
    trainer.get_dataloaders()
    pairs = np.concatenate([trainer.batches.indices(step) for step in range(20)])
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert (trainer.store.positions[pairs[:, 0]] == trainer.store.positions[pairs[:, 1]]).all()


def test_movement_needs_several_frames(runs, own_copy):
    (own_copy / "cases.csv").unlink()
    with pytest.raises(ValueError, match=r"`movement` \(=1\.0\) must find several frames"):
        runs.run(DENSE, SHORT)
    runs.run(DENSE, SHORT.replace("num_epochs=2", "num_epochs=1 movement=0"))
