"""Folders of nnU-Net's own for the tests of a module that run its commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def use_own_folders(
    patch: pytest.MonkeyPatch, base: Path, command: Callable[..., str], processes: int
) -> None:
    """Make nnU-Net's three folders in `base`, and let commands use them, our trainers and few processes."""
    for name in ("raw", "preprocessed", "results"):
        (base / name).mkdir()
        patch.setenv(f"nnUNet_{name}", str(base / name))
    patch.setenv("nnUNet_n_proc_DA", "0")
    patch.setenv("nnUNet_def_n_proc", str(processes))
    patch.setenv("nnUNet_compile", "f")
    patch.setenv("nnUNet_extTrainer", command("nnunet-ssp", "env").strip().partition("=")[2])
