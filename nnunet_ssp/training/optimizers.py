"""Optimisers of pretraining and fine-tuning.

Those of pretraining are fused where torch can: a fused step does not wait for the device's fp16 overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssp.network import in_encoder
from nnunet_ssp.settings import FinetuningSettings, PretrainingSettings


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


# -- fine-tuning -------------------------------------------------------------------------------


def finetuning_optimizer(
    nnunets: torch.optim.Optimizer, network: nn.Module, settings: FinetuningSettings
) -> torch.optim.Optimizer:
    """Return nnU-Net's optimiser, or the one that the settings ask for in its place.

    The encoder has a parameter group of its own only if its learning rate differs. The decoder's comes first, because
    nnU-Net logs the rate of the first group.

    Args:
        nnunets: nnU-Net's SGD on all parameters.
        network: The planned network.
        settings: Optimiser, weight decay and the encoder's share of the learning rate.
    """
    s = settings
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if s.encoder_lr_factor != 1:
        named = dict(network.named_parameters())
        encoder = [p for name, p in named.items() if in_encoder(name)]
        decoder = [p for name, p in named.items() if not in_encoder(name)]
        groups = [{"params": decoder}, {"params": encoder, "lr_factor": s.encoder_lr_factor}]
    if s.optimizer == "adamw":
        return torch.optim.AdamW(groups, s.initial_lr, weight_decay=s.weight_decay)
    return type(nnunets)(groups, **nnunets.defaults) if len(groups) > 1 else nnunets


class EpochRates:
    """Set the learning rate of each epoch, in the form that nnU-Net's trainer asks of a scheduler.

    Args:
        optimizer: A group's `lr_factor`, if it has one, multiplies its rate.
        learning_rate: Returns the rate of an epoch, counted from 0.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, learning_rate: Callable[[int], float]
    ) -> None:
        self.optimizer = optimizer
        self.learning_rate = learning_rate

    def step(self, epoch: int) -> None:
        """Set the learning rate of an epoch, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch) * group.get("lr_factor", 1.0)


class DecayToStart:
    """Weight decay towards the weights that a training started from (L2-SP).

    Li et al. 2018, https://arxiv.org/abs/1802.01483: the penalty `strength / 2 * ||w - w0||^2` of a loaded tensor
    replaces its weight decay; the other tensors keep theirs, towards 0. Both act as the optimiser's own weight decay
    does: after the clipping of the gradient, for AdamW apart from it. A parameter without a gradient stays the same.

    Args:
        optimizer: SGD or AdamW; its own weight decay is switched off.
        start: Loaded values `w0` by parameter.
        strength: Decay of the loaded tensors.
        weight_decay: Decay of the others.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        start: Mapping[nn.Parameter, Tensor],
        strength: float,
        weight_decay: float,
    ) -> None:
        self.start = start
        self.strength = strength
        self.weight_decay = weight_decay
        self.decoupled = isinstance(optimizer, torch.optim.AdamW)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        optimizer.register_step_pre_hook(self._before_update)

    @torch.no_grad()
    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                start = self.start.get(parameter)
                way = parameter if start is None else parameter - start
                decay = self.weight_decay if start is None else self.strength
                if self.decoupled:
                    parameter.sub_(way, alpha=group["lr"] * decay)
                else:
                    parameter.grad.add_(way, alpha=decay)
