"""How a trainer computes: precision, memory layout and norms, settled before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import nn

from nnunet_ssp.training.fused import fuse
from nnunet_ssp.training.layout import CHANNELS_LAST, CONTIGUOUS, choose_layout, use_channels_last
from nnunet_ssp.training.precision import PrecisionTrainer, precision_name


class ComputingTrainer(PrecisionTrainer):
    """A trainer that computes as its settings say; `--c` goes on as the run began.

    Attributes:
        memory_format: Layout of the maps in the network.
    """

    memory_format: str = CONTIGUOUS
    # Layout of the run that is resumed, if `auto` is to choose it.
    _began_with: str | None = None

    def computes(self) -> dict[str, str]:
        """Return what `auto` has chosen, by setting."""
        return {
            "precision": precision_name(self.autocast_dtype),
            "memory_format": self.memory_format,
        }

    def computed(self, ssp: Mapping[str, Any]) -> dict[str, str | None]:
        """Return the same of a recorded run; before it was recorded, the layout was contiguous."""
        layout = str(ssp.get("memory_format", CONTIGUOUS))
        return {"precision": self.precision_of(ssp), "memory_format": layout}

    def go_on_as(self, ssp: Mapping[str, Any]) -> None:
        """Let `auto` choose what a resumed run began with."""
        self.go_on_in(self.precision_of(ssp))
        if self.settings.memory_format == "auto":
            self._began_with = self.computed(ssp)["memory_format"]

    def settle_computing(self, planned: nn.Module, suits: bool = True) -> None:
        """Choose before the first step what `auto` computes in, and fuse norms; say all.

        Args:
            planned: The planned network.
            suits: Whether bfloat16 is exact enough here.
        """
        self.settle_precision(planned, suits)
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            self.fuse_norms()
        self._settle_layout(planned)
        if self.memory_format == CHANNELS_LAST:
            if not use_channels_last(self.network):
                said = "has no effect: this network has no 2D convolutions"
                self.print_to_log_file(f"memory_format=channels_last {said}.")
            if not on_cpu:
                self.fuse_norms()

    def fuse_norms(self) -> None:
        """Compute InstanceNorm faster, or with LeakyReLU in less memory, where no compiler does; say so."""
        how = self.settings.fused_norm
        gains = self.device.type == "cpu" or self.memory_format == CHANNELS_LAST
        if how == "no" or not gains or self._do_i_compile():
            return
        if said := fuse(self.network, joined=how == "yes"):
            self.print_to_log_file(said)

    def _settle_layout(self, planned: nn.Module) -> None:
        asked = self.settings.memory_format
        if asked != "auto":
            self.memory_format = asked
            return
        if self._began_with is not None:
            self.memory_format, why = self._began_with, f"the run began in {self._began_with}"
        elif self._do_i_compile():
            self.memory_format, why = CONTIGUOUS, "torch.compile chooses the layout inside"
        else:
            images = [self.batch_size, getattr(self.settings, "chunk_size", None)]
            patch = self.configuration_manager.patch_size
            how = self.settings.fused_norm
            chosen = [
                choose_layout(
                    planned,
                    (min(n for n in images if isinstance(n, int)), self.num_input_channels, *patch),
                    self.device,
                    self.autocast,
                    None if how == "no" else how == "yes",
                )
            ]
            if self.is_ddp:
                dist.broadcast_object_list(chosen)
            self.memory_format, why = chosen[0]
        self.print_to_log_file(f"memory_format=auto computes in {self.memory_format}: {why}.")
