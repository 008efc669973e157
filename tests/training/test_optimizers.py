"""Optimisers by name, momenta that torch's fused SGD would take from unwritten memory, and decay towards the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_ssp.methods.mim import MIMSettings
from nnunet_ssp.settings import FinetuningSettings
from nnunet_ssp.training.optimizers import (
    DecayToStart,
    EpochRates,
    begin_momentum,
    finetuning_optimizer,
    make_optimizer,
)


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


# -- fine-tuning -------------------------------------------------------------------------------


def nnunets(network: nn.Module) -> torch.optim.Optimizer:
    """nnU-Net's own, see nnUNetTrainer.configure_optimizers."""
    parameters = network.parameters()
    return torch.optim.SGD(parameters, 0.01, weight_decay=3e-5, momentum=0.99, nesterov=True)


def test_by_default_it_is_nnunets(make_network):
    optimizer = nnunets(network := make_network())
    assert finetuning_optimizer(optimizer, network, FinetuningSettings()) is optimizer


def test_the_encoder_has_a_rate_of_its_own(make_network):
    network = make_network()
    optimizer = nnunets(network)
    found = finetuning_optimizer(optimizer, network, FinetuningSettings(encoder_lr_factor=0.1))
    assert type(found) is torch.optim.SGD and found.defaults == optimizer.defaults
    decoder, encoder = ({id(p) for p in group["params"]} for group in found.param_groups)
    assert encoder == {id(p) for p in network.encoder.parameters()}
    assert decoder == {id(p) for p in network.parameters()} - encoder
    EpochRates(found, lambda epoch: 0.5 / (epoch + 1)).step(1)
    assert [group["lr"] for group in found.param_groups] == pytest.approx([0.25, 0.025])


@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_adamw_by_the_settings(make_network, factor):
    network = make_network()
    settings = FinetuningSettings(
        optimizer="adamw", initial_lr=1e-3, weight_decay=0.02, encoder_lr_factor=factor
    )
    found = finetuning_optimizer(nnunets(network), network, settings)
    assert type(found) is torch.optim.AdamW
    assert [group["weight_decay"] for group in found.param_groups] == [0.02] * (1 + (factor != 1))
    assert found.param_groups[0]["lr"] == 1e-3
    assert sum(len(group["params"]) for group in found.param_groups) == len([*network.parameters()])


SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, decay: torch.optim.SGD(parameters, weight_decay=decay, **SGD),
    "adamw": lambda parameters, decay: torch.optim.AdamW(parameters, 0.1, weight_decay=decay),
}


def two_tensors() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([3.0]))]


def step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], grad: float) -> None:
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, grad)
    optimizer.step()


def test_the_gradient_of_l2_sp_in_closed_form():
    """Plain SGD: w - lr (g + strength (w - w0)) where w0 is known, else w - lr (g + decay w)."""
    loaded, fresh = parameters = two_tensors()
    start = torch.tensor([0.5, 0.0])
    optimizer = torch.optim.SGD(parameters, lr=0.1, weight_decay=7.0)  # which is switched off
    DecayToStart(optimizer, {loaded: start}, strength=0.4, weight_decay=0.2)
    step(optimizer, parameters, grad=1.0)
    expected = torch.tensor([1 - 0.1 * (1 + 0.4 * 0.5), -2 - 0.1 * (1 + 0.4 * -2)])
    torch.testing.assert_close(loaded.detach(), expected)
    torch.testing.assert_close(fresh.detach(), torch.tensor([3 - 0.1 * (1 + 0.2 * 3)]))


def test_the_penalty_that_l2_sp_adds_to_the_loss():
    """The gradient is that of the paper's penalty by autograd."""
    loaded, fresh = parameters = two_tensors()
    start = torch.tensor([0.5, 0.0])
    penalty = 0.4 / 2 * ((loaded - start) ** 2).sum() + 0.2 / 2 * (fresh**2).sum()
    expected = [
        p.detach() - 0.1 * g
        for p, g in zip(parameters, torch.autograd.grad(penalty, parameters), strict=True)
    ]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    DecayToStart(optimizer, {loaded: start}, strength=0.4, weight_decay=0.2)
    step(optimizer, parameters, grad=0.0)
    torch.testing.assert_close([p.detach() for p in parameters], expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_start_of_zero_is_plain_weight_decay(name):
    results: list[list[Tensor]] = []
    for known in (False, True):
        parameters = two_tensors()
        optimizer = OPTIMIZERS[name](parameters, 0.0 if known else 0.3)
        if known:
            start = {parameters[0]: torch.zeros(2)}
            DecayToStart(optimizer, start, strength=0.3, weight_decay=0.3)
        for number in range(5):
            step(optimizer, parameters, grad=1.0 - number)
        results.append([p.detach() for p in parameters])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_at_their_start_feel_no_decay_and_none_moves_without_a_gradient(name):
    parameters = two_tensors()
    before = [p.detach().clone() for p in parameters]
    optimizer = OPTIMIZERS[name](parameters, 0.0)
    start = dict(zip(parameters, before, strict=True))
    DecayToStart(optimizer, start, strength=10.0, weight_decay=10.0)
    step(optimizer, parameters, grad=0.0)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    start.clear()
    for parameter in parameters:
        parameter.grad = None
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_decoupled_decay_follows_the_groups_rate():
    """AdamW whose gradient is 0 moves by lr * strength * (w - w0) alone."""
    loaded = nn.Parameter(torch.tensor([1.0]))
    optimizer = OPTIMIZERS["adamw"]([loaded], 0.0)
    DecayToStart(optimizer, {loaded: torch.tensor([0.5])}, strength=0.4, weight_decay=9.0)
    optimizer.param_groups[0]["lr"] = 0.25
    step(optimizer, [loaded], grad=0.0)
    assert loaded.item() == pytest.approx(1 - 0.25 * 0.4 * 0.5)
