"""Optimisers of pretraining, fused where torch can: a fused step does not wait for the device's fp16 overflow."""

from __future__ import annotations

from typing import Any

import torch

from nnunet_ssp.settings import PretrainingSettings


def make_optimizer(
    groups: list[dict[str, Any]], settings: PretrainingSettings
) -> torch.optim.Optimizer:
    """Build the optimiser that the settings name; the method gives the learning rate of each step.

    Args:
        groups: Parameter groups in torch's form, see `Method.parameter_groups`.
        settings: Optimiser, first learning rate, momentum or betas, and weight decay.
    """
    s, decay = settings, settings.weight_decay
    if s.optimizer in ("adam", "adamw"):
        adam = torch.optim.Adam if s.optimizer == "adam" else torch.optim.AdamW
        return adam(groups, s.initial_lr, (s.beta1, s.beta2), weight_decay=decay, fused=True)
    momentum: dict[str, Any] = {"momentum": s.momentum, "nesterov": s.nesterov}
    if s.optimizer == "lars":
        from timm.optim import Lars

        # LARS also does not adapt groups without weight decay. Trust as in Kalapos and Gyires-Tóth's solo-learn.
        trust = {"trust_coeff": 0.02, "trust_clip": True}
        lars: torch.optim.Optimizer = Lars(
            groups, s.initial_lr, weight_decay=decay, **momentum, **trust
        )
        return lars
    sgd = torch.optim.SGD(groups, s.initial_lr, weight_decay=decay, fused=True, **momentum)
    begin_momentum(sgd)
    return sgd


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter of an SGD that lacks a momentum one of 0, with which plain SGD begins.

    Torch's fused step would use uninitialised memory if the first gradients of fp16 overflow. It also needs the momenta
    of all parameters of a group or of none, and parameters that are frozen at first have none.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            state.setdefault("momentum_buffer", torch.zeros_like(parameter))
