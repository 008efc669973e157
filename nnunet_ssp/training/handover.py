"""Hand a shared pretraining to nnU-Net's own loader of `-pretrained_weights`, which opens only files of PyTorch.

nnU-Net initialises our trainer first, and then opens the file that its argument names. While it waits for us, that
argument is replaced by a checkpoint in memory: nnU-Net's code stays as it is, and loads what it would load from a file.
"""

from __future__ import annotations

import ctypes
import inspect
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from torch import Tensor

from nnunet_ssp.files.bundles import is_shared

ARGUMENT = "pretrained_weights_file"  # of nnU-Net's function
TIMM = "timm:"  # before a file of an encoder, in place of a checkpoint


class _InMemory(io.BytesIO):
    """A checkpoint in memory; nnU-Net prints its name."""

    def __init__(self, file: str, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.file = file
        torch.save({"network_weights": dict(weights)}, self)
        self.seek(0)

    def __str__(self) -> str:
        return self.file


def loading_frame() -> FrameType | None:
    """Return the call of nnU-Net's function that initialises a trainer, if it is running."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not maybe_load_checkpoint.__code__:
        frame = frame.f_back
    return frame


def hand_over_shared(weights: Mapping[str, Tensor] | None = None) -> None:
    """Let nnU-Net find a checkpoint where its command line names something else, which was checked before.

    That is a shared pretraining or, with `timm:`, an encoder, whose tensors the network then has already.

    Args:
        weights: The shared pretraining's tensors, where they have been read; none for a network that is filled.
    """
    frame = loading_frame()
    file = None if frame is None or weights is None else frame.f_locals.get(ARGUMENT)
    if frame is None or not isinstance(file, str):
        return
    # A network that is filled needs no file, which nnU-Net would map to the GPU of the rank's number on all machines.
    if weights and not is_shared(Path(file)):  # nnU-Net reads it itself
        return
    frame.f_locals[ARGUMENT] = _InMemory(file, weights or {})
    if sys.version_info < (3, 13):  # where these are a copy
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
