"""Optimisers by name, and momenta that torch's fused SGD would take from unwritten memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_ssp.methods.mim import MIMSettings
from nnunet_ssp.training.optimizers import begin_momentum, make_optimizer


def groups() -> list[dict[str, object]]:
    torch.manual_seed(0)
    return [{"params": list(nn.Linear(3, 2).parameters())}]


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW"), ("lars", "Lars")]
)
def test_the_settings_name_the_optimizer(name: str, kind: str):
    settings = MIMSettings(optimizer=name, initial_lr=0.2, weight_decay=0.03)
    optimizer = make_optimizer(groups(), settings)
    assert type(optimizer).__name__ == kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.2, 0.03)
    assert group.get("betas", (settings.beta1, settings.beta2)) == (settings.beta1, settings.beta2)
    assert group.get("momentum", settings.momentum) == settings.momentum


def test_fused_sgd_begins_with_momenta_of_zero():
    settings = MIMSettings(optimizer="sgd", momentum=0.9, nesterov=False, weight_decay=0.0)
    optimizer = make_optimizer(groups(), settings)
    parameters = optimizer.param_groups[0]["params"]
    assert [float(optimizer.state[p]["momentum_buffer"].abs().max()) for p in parameters] == [0, 0]
    before = [p.detach().clone() for p in parameters]
    for _ in range(2):
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
    # v1 = 1, v2 = 0.9 + 1: two steps move by 2.9 learning rates.
    for old, new in zip(before, parameters, strict=True):
        torch.testing.assert_close(old - new, torch.full_like(old, 2.9 * settings.initial_lr))


def test_momenta_that_are_there_stay():
    optimizer = make_optimizer(groups(), MIMSettings(optimizer="sgd"))
    weight = optimizer.param_groups[0]["params"][0]
    optimizer.state[weight]["momentum_buffer"].fill_(2.0)
    begin_momentum(optimizer)
    assert float(optimizer.state[weight]["momentum_buffer"].min()) == 2.0


def test_other_optimizers_are_left_alone():
    optimizer = make_optimizer(groups(), MIMSettings(optimizer="adamw"))
    begin_momentum(optimizer)
    assert not optimizer.state
