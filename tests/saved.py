"""Checkpoints that tests look into, opened as weights and numbers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load(file: Path) -> dict[str, Any]:
    """The content of a checkpoint."""
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return content


def final(trainer: Any) -> dict[str, Any]:
    """The content of a finished training's last checkpoint."""
    return load(Path(trainer.output_folder) / "checkpoint_final.pth")
