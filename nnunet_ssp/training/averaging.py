"""Training whose result is the exponential moving average of the weights: the control of the momentum teacher.

The average alone often beats the trained weights. A method with a momentum teacher, which exports the teacher, is
therefore compared with this trainer (Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor, nn

from nnunet_ssp.methods.parts.momentum import Momentum
from nnunet_ssp.schedules import average_momentum
from nnunet_ssp.settings import AveragedSettings
from nnunet_ssp.training.finetuning import FinetuningTrainer
from nnunet_ssp.training.transfer import to_cpu

TRAINED = "ssp_trained_weights"  # entry of a checkpoint, whose `network_weights` are the average


class AveragedTrainer(FinetuningTrainer):
    """Fine-tune as `FinetuningTrainer` does; validate and export the moving average of the weights.

    Attributes:
        average: The averaged network; None before training.
    """

    defaults = AveragedSettings()
    settings: AveragedSettings
    average: Momentum | None = None

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.average is None:
            self._begin_average()
        self.print_to_log_file(
            "The exponential moving average of the weights is validated and exported, not the trained weights."
        )

    def _begin_average(self) -> None:
        # In inference mode it takes over the running statistics of normalisation layers.
        self.average = Momentum(self.network_module).eval()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        output: dict[str, Any] = super().train_step(batch)
        self._follow(average_momentum(self._last_step, self.settings.average_momentum))
        return output

    def _follow(self, momentum: float) -> None:
        assert self.average is not None
        self.average.update(self.network_module, momentum)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        self._follow(1)  # the running statistics that a skipped last step has restored

    @contextmanager
    def _average_in_place(self) -> Iterator[None]:
        """Exchange trained and averaged weights, so that nnU-Net's own code works with the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        pairs = zip(_tensors(self.network_module), _tensors(self.exported()), strict=True)
        for trained, average in pairs:
            trained.data, average.data = average.data, trained.data

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self._average_in_place():
            output: dict[str, Any] = super().validation_step(batch)
        return output

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with self._average_in_place():
            super().perform_actual_validation(save_probabilities)

    def exported(self) -> nn.Module:
        assert self.average is not None, "made when training starts"
        return self.average.copy

    def record(self) -> dict[str, Any]:
        return {**super().record(), "exported": "average"}

    def checkpoint_entries(self) -> dict[str, Any]:
        trained = to_cpu(self.network_module.state_dict())
        return {**super().checkpoint_entries(), TRAINED: trained}

    def load_entries(self, checkpoint: dict[str, Any]) -> None:
        super().load_entries(checkpoint)
        self._begin_average()  # of the average, which the network has just loaded
        for key, tensor in self.network_module.state_dict().items():
            tensor.copy_(checkpoint[TRAINED][key])


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())


class ScratchAveragedTrainer(AveragedTrainer):
    """The control of `AveragedTrainer`: the same settings and steps, from nnU-Net's own random weights."""

    defaults = AveragedSettings(initial_lr=0.01)
    needs_weights = False
