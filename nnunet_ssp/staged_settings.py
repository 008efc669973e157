"""Settings of fine-tuning in two stages: first a part of the network, then all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nnunet_ssp.settings import FinetuningSettings, Settings, require


@dataclass(frozen=True)
class FrozenSettings(FinetuningSettings):
    """Settings of freezing, then fine-tuning (Dominic et al.): loaded weights are frozen in the first stage."""

    # Epochs of the first stage; auto: until the validation loss stops improving, at most half of the run.
    frozen_epochs: int | Literal["auto"] = "auto"
    # Epochs without improvement by early_stopping_delta that end the first stage; theirs.
    frozen_patience: int = 10
    # Learning rate of the first stage: nnU-Net's, for new layers. The second stage has initial_lr.
    frozen_lr: float = 0.01

    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        **FinetuningSettings.recipes,
        "few": {**FinetuningSettings.recipes["few"], "frozen_lr": 0.003},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_no_warmup(self)
        epochs = self.frozen_epochs
        require(
            epochs == "auto" or 0 <= epochs < self.num_epochs,
            "frozen_epochs",
            epochs,
            f"be auto or lie in [0, num_epochs={self.num_epochs})",
        )
        patience = self.frozen_patience
        require(patience >= 1, "frozen_patience", patience, "be at least 1")
        require(self.frozen_lr > 0, "frozen_lr", self.frozen_lr, "be positive")

    @property
    def longest_frozen(self) -> int:
        """Number of epochs after which the first stage ends in any case."""
        epochs = self.frozen_epochs
        return self.num_epochs // 2 if epochs == "auto" else epochs


@dataclass(frozen=True)
class WarmupSettings(FinetuningSettings):
    """Settings of warming up the decoder alone, then everything."""

    initial_lr: float = 1e-3
    # Epochs of the two warm-ups; auto: 50 (12,500 steps) each, a twentieth of a run shorter than 1000.
    warmup_decoder_epochs: int | Literal["auto"] = "auto"
    warmup_all_epochs: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_no_warmup(self)
        for name in ("warmup_decoder_epochs", "warmup_all_epochs"):
            epochs = getattr(self, name)
            rule = "be auto or not negative"
            require(epochs == "auto" or epochs >= 0, name, epochs, rule)
        total = sum(self.warmups)
        rule = f"be below num_epochs={self.num_epochs}"
        require(total < self.num_epochs, "warmup_decoder_epochs + warmup_all_epochs", total, rule)

    @property
    def warmups(self) -> tuple[int, int]:
        """Numbers of epochs of the two warm-ups."""
        auto = min(50, math.ceil(self.num_epochs / 20), (self.num_epochs - 1) // 2)
        decoder, everything = self.warmup_decoder_epochs, self.warmup_all_epochs
        return (
            auto if decoder == "auto" else decoder,
            auto if everything == "auto" else everything,
        )


def _require_no_warmup(settings: FinetuningSettings) -> None:
    rule = "be 0 for fine-tuning in two stages, which have learning rates of their own"
    require(settings.warmup_epochs == 0, "warmup_epochs", settings.warmup_epochs, rule)


SETTINGS: tuple[type[Settings], ...] = (FrozenSettings, WarmupSettings)
