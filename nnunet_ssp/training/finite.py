"""Steps that are not finite: every rank skips them, and too many of them end the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssp.distributed import max_over_ranks

MOST_IN_A_ROW = 5
MOST_SHARE = 0.01  # of all steps so far, in addition to MOST_IN_A_ROW
LOOK_EVERY = 50  # steps on a GPU, where each look waits for the device


@dataclass(frozen=True)
class Skipped:
    """A step that changed nothing.

    Attributes:
        step: Number of the step in the run, from 0.
        cases: Cases of this rank's batch.
        in_a_row: Number of consecutive skipped steps up to this one.
        total: Number of skipped steps so far.
        steps: Number of steps so far.
    """

    step: int
    cases: list[str]
    in_a_row: int
    total: int
    steps: int

    @property
    def too_many(self) -> bool:
        """Whether the training has to end."""
        most = MOST_IN_A_ROW + MOST_SHARE * self.steps
        return self.in_a_row > MOST_IN_A_ROW or self.total > most


class StepGuard:
    """Skip optimiser steps whose loss or gradient is not finite.

    Trained weights, momenta and buffers stay as they were; a momentum teacher still moves towards them. All ranks skip
    the same steps. A step with a finite loss that fp16's scaler skips is part of its search for a scale; it does not
    count unless the scale has fallen below 1.

    Args:
        module: Module whose buffers are restored after a skipped step.
        optimizer: Optimiser that takes the steps.
        scaler: Loss scaler of fp16, or None.
        device: Device of the module.
        tell: Called with each skipped step that counts; raises to end the training.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        device: torch.device,
        tell: Callable[[Skipped], None],
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.scaler = scaler
        self.device = device
        self.tell = tell
        self.look_every = LOOK_EVERY if device.type == "cuda" else 1
        self.in_a_row = self.total = self.steps = 0
        self.skipped: list[int] = []  # in the current epoch, numbered in the run
        self._pending: list[tuple[int, Callable[[], list[str]], Tensor]] = []
        self._buffers: list[Tensor] = []
        self._loss: Tensor | None = None
        self._norm: Tensor | None = None
        self._found: Tensor | None = None
        optimizer.register_step_pre_hook(self._before_update)

    def begin(self) -> None:
        """Remember what a forward pass may change; called before each step."""
        self._loss = self._norm = self._found = None
        self._buffers = [buffer.clone() for buffer in self.module.buffers()]

    def saw(self, loss: Tensor) -> None:
        """Take the loss of the step; called before the optimiser's step."""
        self._loss = loss.detach().float().mean()

    def saw_norm(self, norm: Tensor) -> None:
        """Take the norm of the gradients before clipping, which turns an overflowing norm into 0."""
        self._norm = norm.detach().float()

    def end(self, step: int, cases: Callable[[], list[str]]) -> None:
        """Count a step, and restore the buffers if it was skipped.

        Args:
            step: Number of the step in the run, from 0.
            cases: Returns the cases of its batch; called only if it was skipped.
        """
        if self._found is None:  # the scaler took no step
            lost = self._loss_is_lost()
            self._found = max_over_ranks(torch.stack([lost, torch.ones_like(lost)]))
        lost, bad = self._found.bool()
        undo = bad if self.scaler is None else lost
        for buffer, before in zip(self.module.buffers(), self._buffers, strict=True):
            buffer.copy_(torch.where(undo, before, buffer))
        self._pending.append((step, cases, self._found))
        if len(self._pending) >= self.look_every:
            self.look()

    def look(self) -> None:
        """Count the steps since the last look; waits for the device."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        counts_overflow = self.scaler is None or self.scaler.get_scale() < 1
        flags = torch.stack([found for _, _, found in pending]).tolist()
        for (step, cases, _), (lost, bad) in zip(pending, flags, strict=True):
            self.steps += 1
            if lost or (bad and counts_overflow):
                self.in_a_row, self.total = self.in_a_row + 1, self.total + 1
                self.skipped.append(step)
                self.tell(Skipped(step, cases(), self.in_a_row, self.total, self.steps))
            elif not bad:
                self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """Return the counters for a checkpoint."""
        self.look()
        return {"in_a_row": self.in_a_row, "total": self.total, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the counters of `state_dict`."""
        self.in_a_row, self.total, self.steps = (
            int(state[name]) for name in ("in_a_row", "total", "steps")
        )

    def _loss_is_lost(self) -> Tensor:
        if self._loss is None:
            return torch.zeros((), device=self.device)
        return (~self._loss.isfinite()).float()

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Skip the coming update if it is not finite; fused optimisers are not made to wait for the device."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # Multiplies by exactly 1 where the gradients are finite.
        norm = nn.utils.clip_grad_norm_(parameters, math.inf).to(self.device)
        if self._norm is not None:
            norm = torch.maximum(norm, self._norm.to(self.device))
        lost = self._loss_is_lost()
        bad = torch.maximum(lost, (~norm.isfinite()).float())
        self._found = max_over_ranks(torch.stack([lost, bad]))
        bad = self._found[1]
        if all(group.get("fused") for group in optimizer.param_groups):
            # A fused optimiser decides on the device, by the flag that the scaler uses.
            update: Any = optimizer
            scaled = hasattr(optimizer, "grad_scale")
            update.found_inf = torch.maximum(update.found_inf, bad) if scaled else bad
        elif bad:
            for parameter in parameters:
                parameter.grad = None  # optimisers skip parameters without a gradient


def first_not_finite(
    state: Any, but: Collection[str] = (), name: str = "", seen: set[int] | None = None
) -> str | None:
    """Return the name of the first tensor in a nested state with a value that is not finite, or None.

    Args:
        state: Tensors in mappings and lists.
        but: Names of parts that may hold such values, such as `ssp_state.epoch.outputs`.
        name: Name of the state, for the recursion.
        seen: Tensors looked at already, for the recursion.
    """
    if name in but:
        return None
    seen = set() if seen is None else seen
    if isinstance(state, Tensor):
        if not state.is_floating_point() or id(state) in seen:
            return None
        seen.add(id(state))
        return None if bool(state.isfinite().all()) else name
    if isinstance(state, Mapping):
        items = [(str(key), value) for key, value in state.items()]
    elif isinstance(state, list | tuple):
        items = [(str(number), value) for number, value in enumerate(state)]
    else:
        return None
    for key, value in items:
        found = first_not_finite(value, but, f"{name}.{key}" if name else key, seen)
        if found is not None:
            return found
    return None
