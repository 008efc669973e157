"""Trainings of networks with BatchNorm, as `BatchNormPlanner` plans them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunet_ssp.training.snapshots import snapshot_file
from tests.saved import load

BYOL, FINETUNE = "nnUNetTrainerBYOLPretrain", "nnUNetTrainerFinetune"
PRETRAIN = (
    "num_epochs=1 iterations_per_epoch=2 batch_size=4 head_width=16 head_out=8 predictor_width=16"
)
SHORT = "num_epochs=1 iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no"

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture
def plans(own_copy: Path) -> str:
    """Plans `tiny` with BatchNorm."""
    content = json.loads((own_copy / "tiny.json").read_text())
    kwargs = content["configurations"]["2d"]["architecture"]["arch_kwargs"]
    kwargs["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"
    content["plans_name"] = "tinybn"
    (own_copy / "tinybn.json").write_text(json.dumps(content))
    return "tinybn"


def test_chunks_are_refused_with_what_to_do(runs, plans):
    with pytest.raises(
        ValueError, match=r"`chunk_size` \(=2\) must be none or auto: .*lower batch_size, or take"
    ):
        runs.run(BYOL, f"{PRETRAIN} chunk_size=2", plans=plans)


def test_statistics_go_into_snapshots_and_fine_tuning(runs, plans, log):
    trainer = runs.run(BYOL, f"{PRETRAIN} snapshot_epochs=1 recipe=paper", plans=plans)
    assert "the whole batch at once, because these plans use BatchNorm" in log(trainer)
    file = snapshot_file(trainer.output_folder, 1)
    weights = load(file)["network_weights"]
    means = [key for key in weights if key.endswith("running_mean") and ".all_modules." not in key]
    assert means and all(weights[key].abs().max() > 0 for key in means)
    tuned = runs.make(FINETUNE, SHORT, plans=plans, weights=file)
    state = tuned.network_module.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in weights.items())
    # The decoder starts with statistics of its own, which are fresh.
    assert state["decoder.stages.0.convs.0.norm.running_mean"].abs().max() == 0
