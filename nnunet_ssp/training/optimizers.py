"""Optimisers of pretraining, fused where torch has that: no step then waits for the device to see fp16 overflow."""

from __future__ import annotations

from typing import Any

import torch

from nnunet_ssp.settings import PretrainingSettings


def make_optimizer(
    groups: list[dict[str, Any]], settings: PretrainingSettings
) -> torch.optim.Optimizer:
    """Build the optimiser that the settings name; the method sets the learning rate of each step.

    Args:
        groups: Parameter groups in torch's form, see `Method.parameter_groups`.
        settings: Give optimiser, first learning rate, momentum or betas, and weight decay.
    """
    s, decay = settings, settings.weight_decay
    if s.optimizer in ("adam", "adamw"):
        adam = torch.optim.Adam if s.optimizer == "adam" else torch.optim.AdamW
        return adam(groups, s.initial_lr, (s.beta1, s.beta2), weight_decay=decay, fused=True)
    momentum: dict[str, Any] = {"momentum": s.momentum, "nesterov": s.nesterov}
    if s.optimizer == "lars":
        from timm.optim import Lars

        # Groups without weight decay are not adapted, either. Trust as in Kalapos and Gyires-Tóth's solo-learn.
        trust = {"trust_coeff": 0.02, "trust_clip": True}
        lars: torch.optim.Optimizer = Lars(
            groups, s.initial_lr, weight_decay=decay, **momentum, **trust
        )
        return lars
    sgd = torch.optim.SGD(groups, s.initial_lr, weight_decay=decay, fused=True, **momentum)
    begin_momentum(sgd)
    return sgd


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter of an SGD without a momentum one of 0, which is what plain SGD begins with.

    Torch's fused step would take memory as it finds it, and leave it so when the first gradients of fp16 overflow; and
    it wants all momenta of a group or none, which parameters that are frozen at first do not have.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            state.setdefault("momentum_buffer", torch.zeros_like(parameter))
