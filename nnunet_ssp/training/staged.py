"""Fine-tuning in two stages: first some of the loaded tensors hold still, then everything trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssp.network import in_encoder, is_alias
from nnunet_ssp.schedules import EarlyStopping, polynomial
from nnunet_ssp.settings import FrozenSettings, WarmupSettings
from nnunet_ssp.training.finetuning import FinetuningTrainer
from nnunet_ssp.training.freezing import freeze, hold_statistics


class EpochRates:
    """Sets the learning rate of each epoch; what nnU-Net's trainer asks of a scheduler."""

    def __init__(self, trainer: StagedTrainer) -> None:
        self.trainer = trainer

    def step(self, epoch: int) -> None:
        """Set the rate of an epoch, counted from 0."""
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = self.trainer.learning_rate(epoch)


class StagedTrainer(FinetuningTrainer, ABC):
    """A subclass says what holds still, until when, and the learning rate of each epoch.

    Parameters that hold still have no gradient, and their normalisation layers are in inference mode, so they stay as
    they were loaded to the last bit. From scratch nothing was loaded, and only the learning rates remain.

    Attributes:
        held: names of the tensors that hold still in the first stage.
        second_stage: the epoch with which the second stage began, None before.
    """

    held: frozenset[str] = frozenset()
    second_stage: int | None = None

    @abstractmethod
    def holds(self, key: str) -> bool:
        """Whether a tensor that was loaded holds still in the first stage."""

    @abstractmethod
    def first_stage_ends(self) -> bool:
        """Whether the current epoch shall be the second stage's first."""

    @abstractmethod
    def learning_rate(self, epoch: int) -> float:
        """The rate of an epoch, counted from 0."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer, _ = super().configure_optimizers()
        return optimizer, EpochRates(self)

    def weights_loaded(self, loaded: set[str]) -> None:
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
        # As a training of its own: without the momentum and the best loss of the first.
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
            f"{trains.count(False)} of {len(trains)} parameter tensors hold still."
        )
        if self.is_ddp:  # looks at what needs a gradient only when it is built
            devices = [self.local_rank] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network.module, device_ids=devices)

    def _stops_early(self) -> bool:
        return self.second_stage is not None and super()._stops_early()

    def stage_state(self) -> dict[str, Any]:
        """What a resumed run needs to know about the stages."""
        return {"held": sorted(self.held), "second_stage": self.second_stage}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        """Take back `stage_state`."""
        self.held = frozenset(state["held"])
        self.second_stage = state["second_stage"]

    def checkpoint_entries(self) -> dict[str, Any]:
        return {"ssp_stage": self.stage_state()}

    def load_entries(self, checkpoint: dict[str, Any]) -> None:
        self.load_stage_state(checkpoint["ssp_stage"])


class FrozenTrainer(StagedTrainer):
    """Dominic et al.'s freeze-then-finetune: what was loaded holds still at first, then everything trains.

    The first stage has a constant learning rate, the second nnU-Net's polynomial from its own. With
    ``frozen_epochs=auto`` the second starts from the best weights of the first, as theirs.
    """

    defaults = FrozenSettings()
    settings: FrozenSettings
    best: dict[str, Tensor] | None = None  # trained tensors at the best loss of the first stage

    @cached_property
    def frozen_stopping(self) -> EarlyStopping:
        """Ends the first stage with ``frozen_epochs=auto``."""
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
                f"It starts from the weights of the best validation loss, {self.frozen_stopping.best:.4f}. A control "
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
    """Two warm-ups: the decoder alone beside the loaded encoder, then everything; then nnU-Net's polynomial.

    The learning rate rises linearly in each warm-up. Stages of 12,500 steps and the peak of 1e-3 are what users of S3D
    (arXiv 2410.23132) report.
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
    """The control of `FrozenTrainer`: its rules, from nnU-Net's random weights, so that nothing holds still.

    With ``frozen_epochs=auto`` each run ends its first stage by its own loss; for equal learning rates give both the
    number of epochs that the fine-tuning's log names.
    """

    needs_weights = False


class ScratchWarmupTrainer(WarmupTrainer):
    """The control of `WarmupTrainer`: its learning rates, from nnU-Net's random weights; nothing holds still."""

    needs_weights = False
