"""The GPUs and machines on which a study's pretraining runs: what the scheduler was asked for, as a command."""

from __future__ import annotations

import platform
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from nnunet_ssp.launch import find_command


@dataclass(frozen=True)
class Asked:
    """What a profile asks of the scheduler for a job.

    Attributes:
        gpus: On all machines together.
        machines: The profile's `nodes`.
        threads: On each machine.
    """

    gpus: int = 1
    machines: int = 1
    threads: int = 1

    @classmethod
    def read(cls, words: Sequence[str]) -> Asked:
        """Read the three numbers, of which any may be missing at the end."""
        return cls(*map(int, takewhile(str.isdecimal, words[:3])))


def on_gpus(job: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Return a job whose pretraining uses all that was asked for, which changes no result; others use one GPU.

    Args:
        job: With the words of `command` and `resumed`, which begin with `nnUNetv2_train`.
        asked: From the profile.

    Raises:
        FileNotFoundError: Several machines, and no `srun` to reach them.
        ValueError: The GPUs cannot be shared out evenly.
    """
    if job["kind"] != "pretrain" or max(asked.gpus, asked.machines) < 2:
        return job
    both = {name: job[name] for name in ("command", "resumed") if job.get(name)}
    if asked.machines < 2:
        more = ["-num_gpus", str(asked.gpus)]
        return {**job, **{name: [*words, *more] for name, words in both.items()}}
    start = across_machines(asked)
    return {**job, **{name: [*start, *words[1:]] for name, words in both.items()}}


def across_machines(asked: Asked) -> list[str]:
    """Return the words that start `nnunet-ssp train` on every machine of this job of SLURM, before its arguments.

    This process runs on the first of them, where the others meet.
    """
    if asked.gpus % asked.machines:
        raise ValueError(
            f"gpu (={asked.gpus}), the GPUs of all machines, must be a multiple of nodes (={asked.machines})."
        )
    srun = shutil.which("srun")
    if srun is None:
        raise FileNotFoundError(
            f"nodes (={asked.machines}): pretraining on several machines needs SLURM, whose srun is not on the PATH."
        )
    with socket.socket() as free:
        free.bind(("", 0))
        meeting = f"{platform.node()}:{free.getsockname()[1]}"
    machines, gpus = str(asked.machines), asked.gpus // asked.machines
    words = [srun, "--nodes", machines, "--ntasks", machines, "--ntasks-per-node", "1"]
    words += ["--cpus-per-task", str(asked.threads)]
    words += ["--gpus-per-node", str(gpus)] if gpus else []
    words += [find_command("torchrun"), "--nnodes", machines, "--nproc-per-node", str(gpus or 1)]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--no-python"]
    return [*words, find_command("nnunet-ssp"), "train"]
