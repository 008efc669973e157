"""Commands of pretrainings on several GPUs and machines."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from nnunet_ssp.launch import find_command
from nnunet_ssp.study.gpus import Asked, on_gpus

WORDS = ["114", "2d", "0", "-tr", "nnUNetTrainerMIMPretrain"]
JOB = {
    "kind": "pretrain",
    "command": ["nnUNetv2_train", *WORDS, "-pretrained_weights", "a.pth"],
    "resumed": ["nnUNetv2_train", *WORDS, "--c"],
}


def test_the_numbers_of_a_job() -> None:
    assert Asked.read(["8", "2", "12", "--", "3"]) == Asked(8, 2, 12)
    assert Asked.read(["--", "3"]) == Asked()
    assert Asked.read(["0", "1", "4", "--"]) == Asked(0, 1, 4)


def test_several_gpus_of_one_machine() -> None:
    assert on_gpus(JOB, Asked(1)) is JOB and on_gpus(JOB, Asked(0)) is JOB
    found = on_gpus(JOB, Asked(4))
    assert found["command"] == [*JOB["command"], "-num_gpus", "4"]
    assert found["resumed"] == [*JOB["resumed"], "-num_gpus", "4"]


@pytest.mark.parametrize("asked", [Asked(4), Asked(8, 2)])
def test_only_pretraining_takes_them(asked: Asked) -> None:
    job = {**JOB, "kind": "finetune"}
    assert on_gpus(job, asked) is job


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "srun"
    file.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return file


def test_several_machines(srun: Path) -> None:
    found = on_gpus(JOB, Asked(8, 2, 12))
    for name, own in (("command", JOB["command"]), ("resumed", JOB["resumed"])):
        line = " ".join(found[name])
        meeting = re.search(rf"{re.escape(platform.node())}:(\d+)", line)
        assert meeting is not None and 1024 < int(meeting[1]) < 65536
        assert line == (
            f"{srun} --nodes 2 --ntasks 2 --ntasks-per-node 1 --cpus-per-task 12 --gpus-per-node 4 "
            f"{find_command('torchrun')} --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint "
            f"{meeting[0]} --no-python {find_command('nnunet-ssp')} train {' '.join(own[1:])}"
        )


def test_several_machines_without_gpus(srun: Path) -> None:
    line = " ".join(on_gpus(JOB, Asked(0, 3, 2))["command"])
    assert "--nnodes 3 --nproc-per-node 1 " in line and "--gpus-per-node" not in line


def test_what_cannot_be_shared_out(srun: Path) -> None:
    with pytest.raises(ValueError, match=r"gpu \(=5\), .* must be a multiple of nodes \(=2\)"):
        on_gpus(JOB, Asked(5, 2))
    srun.unlink()
    with pytest.raises(FileNotFoundError, match="needs SLURM, whose srun is not on the PATH"):
        on_gpus(JOB, Asked(4, 2))
