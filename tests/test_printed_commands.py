"""Every command that we print is pasted as it is: from a phantom to an evaluation, in folders with spaces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_ssp.launch import SMALL_PLANS, with_trainers

SETTINGS = "num_epochs=1 iterations_per_epoch=2 batch_size=4 val_iterations_per_epoch=1 final_validation=no"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a line in a new user's shell and return what it prints."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folder = tmp_path / "my data" / name
        folder.mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("nnUNet_extTrainer", with_trainers())
    monkeypatch.setenv("nnUNet_ssp_settings", SETTINGS)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    small = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}
    for name, value in {**small, "nnUNet_compile": "f", "nnUNet_wandb_enabled": "0"}.items():
        monkeypatch.setenv(name, value)

    def run(line: str, status: int = 0) -> str:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == status, f"{line}\n{said}"
        return said

    return run


def after(said: str, words: str) -> list[str]:
    """The lines that a command printed from some words on, without the words."""
    return said[said.rindex(words) + len(words) :].strip().splitlines()


@pytest.mark.heavy
def test_each_printed_command_works_as_it_is(shell, tmp_path: Path):
    said = shell(
        "nnunet-ssp phantom 'my phantom' --labelled 2 --unlabelled 1 --testing 2 --matrix 48 "
        "--frames 3 --slices 4"
    )
    convert = after(said, "Next: ")[0]
    said = shell(convert)
    prepare = after(said, "Next: ")[0]
    if not torch.cuda.is_available():
        small = after(said, "Small ones: ")[0]
        assert small == f"{prepare} {SMALL_PLANS}"
        assert " -p ssp128 " in after(shell(small), "Next: ")[0]
    said = shell(prepare)
    pretrain = after(said, "Next: ")[0]
    assert torch.cuda.is_available() or after(said, "Small ones: ")[0] == small
    finetune = after(shell(pretrain), "Fine-tune with:\n")[0]

    said = shell(finetune)
    assert "Of the same variable, this training takes: num_epochs=1" in said
    predict, evaluate = after(said, "Predict the test subjects with:\n")[:2]
    validate = after(said, "To do it later:\n")[0]
    assert "Mean Validation Dice" in shell(validate)
    shell(predict)
    report = after(shell(evaluate), "Report: ")[0]
    assert (tmp_path / report).is_file()

    said = shell("nnunet-ssp folds 114 --subsets 1 --seeds 0 --of 0")
    scratch = after(said, "To train from scratch on the first: ")[0]
    if not torch.cuda.is_available():
        assert scratch.endswith(" -device cpu")
        refused = shell(scratch.removesuffix(" -device cpu"), status=1)
        scratch = after(refused, "to train on the CPU: ")[0]
        assert scratch.startswith("nnUNet_ssp_settings=")
    shell(scratch)
