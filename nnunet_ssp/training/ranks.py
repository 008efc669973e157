"""What processes that train together must have in common: software, settings, data, and where they begin."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

import nnunet_ssp
from nnunet_ssp.setting_values import as_word
from nnunet_ssp.training.loop import WITHOUT_EFFECT


def run_of_rank(trainer: Any) -> dict[str, Any]:
    """Describe a run before anything is built.

    Args:
        trainer: A `PretrainingTrainer`.
    """
    settings = asdict(trainer.settings).items()
    return {
        "nnunet_ssp": nnunet_ssp.__version__,
        "nnunetv2": version("nnunetv2"),
        "torch": str(torch.__version__),
        "trainer": type(trainer).__name__,
        "fold": trainer.fold,
        "--c": trainer.goes_on,
        "device": trainer.device.type,
        **{name: as_word(value) for name, value in settings if name not in WITHOUT_EFFECT},
        "configuration": _digest(trainer.configuration_manager.configuration),
        "dataset.json": _digest(trainer.dataset_json),
    }


def data_of_rank(trainer: Any) -> dict[str, Any]:
    """Describe what a run draws from, and where it goes on.

    Args:
        trainer: A `PretrainingTrainer` with its batches.
    """
    shown = trainer.batches.pictured().slices.cpu().numpy()
    return {
        "epochs done": trainer.current_epoch,
        "steps done": len(trainer.outputs),
        "cases to train on": list(trainer.store.names),
        "slices": len(trainer.store),
        "pixels": hashlib.sha256(shown.tobytes()).hexdigest()[:12],
    }


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
