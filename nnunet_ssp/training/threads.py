"""Threads of a training on CPUs: those that the user asks for."""

from __future__ import annotations

import os

import torch

from nnunet_ssp.console import count_of

THREADS = "OMP_NUM_THREADS"


def follow_threads(device: torch.device) -> str | None:
    """Compute with as many threads as `OMP_NUM_THREADS` says; nnU-Net's command takes all cores of the machine.

    So two trainings of one thread each can share two cores. Threads beyond the cores wait for each other longer than
    they work.

    Args:
        device: Device of the network; on others than the CPU nothing changes.

    Returns:
        A line for the log, None where the variable is not set.
    """
    asked = os.environ.get(THREADS, "").split(",")[0].strip()
    if device.type != "cpu" or not (asked.isascii() and asked.isdecimal()) or not int(asked):
        return None
    torch.set_num_threads(int(asked))
    return f"{count_of(int(asked), 'thread')}, as {THREADS} says."
