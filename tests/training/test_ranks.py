"""What ranks must have in common; `tests/test_distributed.py` lets them differ."""

from __future__ import annotations

import numpy as np

from nnunet_ssp.training.ranks import data_of_rank, run_of_rank

MIM = "nnUNetTrainerMIMPretrain"


def test_settings_that_change_the_result_count(runs):
    first, same = (run_of_rank(runs.make(MIM, s)) for s in ("seed=1", "seed=1 data_device=host"))
    other = run_of_rank(runs.make(MIM, "seed=2"))
    assert first == same
    assert {name for name in first if first[name] != other[name]} == {"seed"}


def test_data_are_told_apart_by_their_pixels(runs, monkeypatch, no_pictures):
    trainer = runs.make(MIM, "num_epochs=1 iterations_per_epoch=1 batch_size=4")
    trainer.run_training()
    before = data_of_rank(trainer)
    assert before["slices"] == len(trainer.store) and before["cases to train on"]
    read = trainer.batches._shown.read
    monkeypatch.setattr(trainer.batches._shown, "read", lambda i: read(i) + np.float32(1))
    after = data_of_rank(trainer)
    assert {name for name in before if before[name] != after[name]} == {"pixels"}
