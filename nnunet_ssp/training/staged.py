"""Fine-tuning in two stages: some loaded tensors are frozen first, then everything trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssp.network import in_encoder, is_alias
from nnunet_ssp.schedules import EarlyStopping, polynomial
from nnunet_ssp.staged_settings import FrozenSettings, WarmupSettings
from nnunet_ssp.training.finetuning import FinetuningTrainer
from nnunet_ssp.training.freezing import freeze, hold_statistics
from nnunet_ssp.training.optimizers import EpochRates


class StagedTrainer(FinetuningTrainer, ABC):
    """Fine-tune in two stages; a subclass says what is frozen, until when, and the learning rate of each epoch.

    Frozen parameters have no gradient and their normalisation layers are in inference mode, so they keep their loaded
    values to the last bit. From scratch nothing is loaded, so only the learning rates remain.

    Attributes:
        held: Names of the tensors that are frozen in the first stage.
        second_stage: First epoch of the second stage, None before.
    """

    held: frozenset[str] = frozenset()
    second_stage: int | None = None

    @abstractmethod
    def holds(self, key: str) -> bool:
        """Whether a loaded tensor is frozen in the first stage."""

    @abstractmethod
    def first_stage_ends(self) -> bool:
        """Whether the second stage begins with the current epoch."""

    @abstractmethod
    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer, _ = super().configure_optimizers()
        return optimizer, EpochRates(optimizer, self.learning_rate)

    def weights_loaded(self, loaded: set[str]) -> None:
        super().weights_loaded(loaded)
        self.held = frozenset(key for key in loaded if self.holds(key))

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.second_stage is None and not self.first_stage_ends():
            self._train_all_but(self.held)

    def on_train_epoch_start(self) -> None:
        if self.second_stage is None and self.first_stage_ends():
            self._begin_second_stage()
        super().on_train_epoch_start()
        if self.second_stage is None:
            hold_statistics(self.network_module, self.held)

    def _begin_second_stage(self) -> None:
        self.second_stage = self.current_epoch
        self.print_to_log_file(f"The second stage begins with epoch {self.current_epoch}.")
        self._train_all_but(frozenset())
        # The second stage is a training of its own, without the momentum and the best loss of the first.
        self.optimizer.state.clear()
        settings = self.settings
        self.early_stopping = EarlyStopping(settings.early_stopping, settings.early_stopping_delta)

    def _train_all_but(self, held: frozenset[str]) -> None:
        if not self.held:
            return
        module = self.network_module
        freeze(module, held)
        trains = [parameter.requires_grad for parameter in module.parameters()]
        self.print_to_log_file(
            f"{trains.count(False)} of {len(trains)} parameter tensors are frozen."
        )
        if self.is_ddp:  # DDP notes only at construction which parameters need a gradient
            devices = [self.device] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network.module, device_ids=devices)

    def _stops_early(self) -> bool:
        return self.second_stage is not None and super()._stops_early()

    def stage_state(self) -> dict[str, Any]:
        """Return what a resumed run needs to know about the stages."""
        return {"held": sorted(self.held), "second_stage": self.second_stage}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        """Restore `stage_state`."""
        self.held = frozenset(state["held"])
        self.second_stage = state["second_stage"]

    def checkpoint_entries(self) -> dict[str, Any]:
        return {**super().checkpoint_entries(), "ssp_stage": self.stage_state()}

    def load_entries(self, checkpoint: dict[str, Any]) -> None:
        super().load_entries(checkpoint)
        self.load_stage_state(checkpoint["ssp_stage"])


class FrozenTrainer(StagedTrainer):
    """Dominic et al.'s freeze-then-finetune: loaded weights are frozen first, then everything trains.

    The first stage has a constant learning rate, the second nnU-Net's polynomial from an initial rate of its own. With
    `frozen_epochs=auto` the second stage starts from the best weights of the first, as theirs does.
    """

    defaults = FrozenSettings()
    settings: FrozenSettings
    # Trained tensors at the best loss of the first stage.
    best: dict[str, Tensor] | None = None

    @cached_property
    def frozen_stopping(self) -> EarlyStopping:
        """The rule that ends the first stage with `frozen_epochs=auto`."""
        s = self.settings
        patience = s.frozen_patience if s.frozen_epochs == "auto" else None
        return EarlyStopping(patience, s.early_stopping_delta)

    def holds(self, key: str) -> bool:
        return True

    def first_stage_ends(self) -> bool:
        longest = self.settings.longest_frozen
        return self.frozen_stopping.should_stop or self.current_epoch >= longest

    def _begin_second_stage(self) -> None:
        super()._begin_second_stage()
        if self.best:
            self.print_to_log_file(
                f"It starts from the weights with the best validation loss, {self.frozen_stopping.best:.4f}. A control "
                f"with the same learning rates has frozen_epochs={self.current_epoch}."
            )
        state = self.network_module.state_dict()
        for key, tensor in (self.best or {}).items():
            state[key].copy_(tensor)
        self.best = None

    def learning_rate(self, epoch: int) -> float:
        if self.second_stage is None:
            return self.settings.frozen_lr
        length = self.num_epochs - self.second_stage
        return polynomial(epoch - self.second_stage, length, self.initial_lr)

    def on_epoch_end(self) -> None:
        loss = float(self.logger.get_value("val_losses", step=-1))
        if self.second_stage is None and self.settings.frozen_epochs == "auto":
            self.frozen_stopping.update(loss)
            if self.frozen_stopping.stale_epochs == 0:
                self.best = {
                    key: tensor.to("cpu", copy=True)
                    for key, tensor in self.network_module.state_dict().items()
                    if key not in self.held and not is_alias(key)
                }
        super().on_epoch_end()

    def stage_state(self) -> dict[str, Any]:
        stopping = self.frozen_stopping.state_dict()
        return {**super().stage_state(), "stopping": stopping, "best": self.best}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        super().load_stage_state(state)
        self.frozen_stopping.load_state_dict(state["stopping"])
        self.best = state["best"]


class WarmupTrainer(StagedTrainer):
    """Warm up the decoder on the frozen encoder, then everything; then follow nnU-Net's polynomial.

    The learning rate rises linearly in each warm-up. Users of S3D (https://arxiv.org/abs/2410.23132) report stages of
    12,500 steps and a peak of 1e-3.
    """

    defaults = WarmupSettings()
    settings: WarmupSettings

    def holds(self, key: str) -> bool:
        return in_encoder(key)

    def first_stage_ends(self) -> bool:
        return self.current_epoch >= self.settings.warmups[0]

    def learning_rate(self, epoch: int) -> float:
        s = self.settings
        for length in s.warmups:
            if epoch < length:
                return self.initial_lr * (epoch + 1) / length
            epoch -= length
        return polynomial(epoch, self.num_epochs - sum(s.warmups), self.initial_lr)


class ScratchFrozenTrainer(FrozenTrainer):
    """The control of `FrozenTrainer`: its rules, from nnU-Net's random weights, so nothing is frozen.

    With `frozen_epochs=auto` each run ends its first stage by its own loss. For equal learning rates, set
    `frozen_epochs` of the control to the number that the fine-tuning's log names.
    """

    needs_weights = False


class ScratchWarmupTrainer(WarmupTrainer):
    """The control of `WarmupTrainer`: its learning rates, from nnU-Net's random weights; nothing is frozen."""

    needs_weights = False
