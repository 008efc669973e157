"""A fine-tuning of the user's own, as docs/adding-a-method.md has it: found, and trained a step."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
SHORT = "num_epochs=1 iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no"


@pytest.fixture
def own_trainers(preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's file in a folder of its own, which nnUNet_extTrainer names beside ours."""
    found = re.search(
        r"^```python\n# own_trainers/(\S+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found
    (tmp_path / "own_trainers").mkdir()
    (tmp_path / "own_trainers" / found[1]).write_text(found[2])
    both = [os.environ["nnUNet_extTrainer"], str(tmp_path / "own_trainers")]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(both))


@pytest.mark.parametrize("name", ["nnUNetTrainerFinetuneSmooth", "nnUNetTrainerScratchSmooth"])
def test_a_trainer_of_ones_own(runs: Any, pretrained: Path, own_trainers: None, name: str) -> None:
    weights = pretrained if "Finetune" in name else None
    trainer = runs.run(name, SHORT, weights=weights)
    assert trainer.loss.loss.ce.label_smoothing == 0.1
    transforms = [
        made.get_training_transforms((32, 32), (0, 0), None, (0, 1), False).transforms
        for made in (trainer, nnUNetTrainer)
    ]
    gammas = [sum("Gamma" in repr(one) for one in some) for some in transforms]
    assert gammas == [0, 2] and len(transforms[0]) == len(transforms[1]) - 2
    record = trainer.record()
    assert record["trainer"] == name
    assert ("chain" in record) == (weights is not None)
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
