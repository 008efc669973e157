"""A training of the warm runner, beside the same training after a cold start."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssp import launch
from nnunet_ssp.launch import run_logged
from nnunet_ssp.warm import WarmCommand, start_warm, warm_runner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.skipif(sys.platform != "linux", reason="the runner forks on Linux alone"),
]


def test_the_weights_are_the_same(
    preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Bit by bit, also of a second training of the same runner; each writes to its own folder."""
    settings = "num_epochs=1 iterations_per_epoch=2 val_iterations_per_epoch=1 final_validation=no"
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "nnUNet_ssp_settings": f"{settings} seed=3"}
    words = ("nnUNetv2_train", "901", "2d", "0", "-p", "tiny", "-tr", "nnUNetTrainerScratch")

    was_warm = []

    def note(*arguments: Any) -> WarmCommand | None:
        command = start_warm(*arguments)
        was_warm.append(command is not None)
        return command

    monkeypatch.setattr(launch, "start_warm", note)

    def train(name: str) -> dict[str, torch.Tensor]:
        results = tmp_path / name
        results.mkdir()
        with open(tmp_path / f"{name}.log", "wb") as log:
            variables = shared | {"nnUNet_results": str(results)}
            status = run_logged((*words, "-device", "cpu"), log, variables)
        assert status == 0, (tmp_path / f"{name}.log").read_text()
        (file,) = results.rglob("checkpoint_final.pth")
        weights = torch.load(file, weights_only=False)["network_weights"]
        assert isinstance(weights, dict)
        return weights

    with warm_runner(shared):
        warm, again = train("warm"), train("again")
    cold = train("cold")
    assert was_warm == [True, True, False]
    assert warm.keys() == again.keys() == cold.keys()
    for name, tensor in cold.items():
        assert torch.equal(warm[name], tensor) and torch.equal(again[name], tensor), name
