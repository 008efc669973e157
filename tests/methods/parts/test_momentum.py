from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnunet_ssp.methods.parts.momentum import Momentum

pytestmark = pytest.mark.usefixtures("one_thread")


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def change(module: nn.Module, seed: int) -> None:
    """As an optimiser's step would, in place."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g))


def test_it_starts_as_a_copy_with_memory_of_its_own():
    network = small()
    network(torch.randn(8, 3))  # statistics that are no longer those of a fresh layer
    before = values(network)
    teacher = Momentum(network)
    torch.testing.assert_close(values(teacher.copy), before, atol=0, rtol=0)
    x = torch.randn(8, 3)
    assert torch.equal(teacher(x), network(x))
    kept = {k: v.clone() for k, v in teacher.copy.named_parameters()}
    change(network, seed=1)
    for key, value in teacher.copy.named_parameters():
        assert torch.equal(value, kept[key]), key
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.filterwarnings("ignore")
def test_it_is_lightlys_momentum_update():
    utils = pytest.importorskip("lightly.models.utils")
    network = small()
    teacher, oracle = Momentum(network), copy.deepcopy(network)
    for step, momentum in enumerate((0.996, 0.5, 0.99, 0.0, 1.0, 0.9)):
        change(network, seed=step)
        teacher.update(network, momentum)
        utils.update_momentum(network, oracle, momentum)
        for mine, expected in zip(teacher.copy.parameters(), oracle.parameters(), strict=True):
            torch.testing.assert_close(mine, expected, atol=2e-7, rtol=1e-6)


def test_the_update_by_hand_and_its_two_ends():
    network = small()
    teacher = Momentum(network)
    change(network, seed=1)
    old = {k: v.clone() for k, v in teacher.copy.named_parameters()}
    new = dict(network.named_parameters())
    teacher.update(network, 1)
    for key, value in teacher.copy.named_parameters():
        assert torch.equal(value, old[key]), key
    teacher.update(network, 0.9)
    for key, value in teacher.copy.named_parameters():
        torch.testing.assert_close(value, 0.9 * old[key] + 0.1 * new[key].detach())
    teacher.update(network, 0)
    for key, value in teacher.copy.named_parameters():
        assert torch.equal(value, new[key]), key


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_tensors_with_several_names_move_once(make_network, kind):
    encoder, other = make_network(kind).encoder, make_network(kind, seed=1).encoder
    teacher = Momentum(encoder)
    old = values(encoder)
    teacher.update(other, 0.75)
    assert any(".all_modules." in key for key in old)
    for key, value in teacher.copy.state_dict().items():
        torch.testing.assert_close(value, 0.75 * old[key] + 0.25 * other.state_dict()[key])


def test_no_gradient_ever():
    network = small()
    teacher = Momentum(network)
    x = torch.randn(8, 3, requires_grad=True)
    output = teacher(x)
    assert not output.requires_grad
    (network(x) * output).sum().backward()
    teacher.update(network, 0.9)
    for parameter in teacher.parameters():
        assert (parameter.requires_grad, parameter.grad, parameter.grad_fn) == (False, None, None)
    assert all(p.grad is not None for p in network.parameters())
    # Nor when a whole method is told to train.
    teacher.train()
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("momentum", [-0.01, 1.01, float("nan")])
def test_a_momentum_outside_its_range_is_refused_and_changes_nothing(momentum):
    network = small()
    teacher = Momentum(network)
    before = values(teacher)
    change(network, seed=1)
    with pytest.raises(ValueError, match=r"`momentum` \(=.*\) must lie in \[0, 1\]"):
        teacher.update(network, momentum)
    torch.testing.assert_close(values(teacher), before, atol=0, rtol=0)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        Momentum(small()).update(small()[:2], 0.9)


def test_statistics_are_its_own_in_training_and_the_networks_in_evaluation():
    network = small()
    teacher = Momentum(network)
    for _ in range(3):
        network(torch.randn(8, 3))
    teacher(5 + torch.randn(8, 3))
    own = {k: v.clone() for k, v in teacher.copy.named_buffers()}
    theirs = dict(network.named_buffers())
    assert own["1.num_batches_tracked"] == 1
    teacher.update(network, 0.9)
    for key, value in teacher.copy.named_buffers():
        assert torch.equal(value, own[key]), key
        assert not torch.equal(value, theirs[key]), key
    teacher.eval()
    teacher(5 + torch.randn(8, 3))
    teacher.update(network, 0.9)
    for key, value in teacher.copy.named_buffers():
        assert torch.equal(value, theirs[key]), key
    network(torch.randn(8, 3))  # a copy, not the same memory
    assert teacher.copy[1].num_batches_tracked == 3


def test_it_moves_with_the_module_that_holds_it():
    holder = nn.ModuleDict({"student": small()})
    holder["teacher"] = Momentum(holder["student"])
    holder.to(torch.float64)
    change(holder["student"].float(), seed=1)
    holder.to(torch.float64)
    holder["teacher"].update(holder["student"], 0.9)
    assert {p.dtype for p in holder["teacher"].parameters()} == {torch.float64}
    assert holder["teacher"](torch.randn(8, 3).double()).dtype == torch.float64
    holder.to("meta")
    assert {p.device.type for p in holder["teacher"].parameters()} == {"meta"}


def test_the_state_dict_holds_all_of_it():
    network = small()
    teacher = Momentum(network)
    change(network, seed=1)
    teacher.update(network, 0.3)
    teacher(torch.randn(8, 3))
    state = values(teacher)
    assert state.keys() == {f"copy.{key}" for key in network.state_dict()}
    other = Momentum(small(seed=5))
    other.load_state_dict(state)
    torch.testing.assert_close(values(other), state, atol=0, rtol=0)
    assert not any(p.requires_grad for p in other.parameters())


def test_deep_copies_are_independent():
    network = small()
    teacher = Momentum(network)
    other = copy.deepcopy(teacher)
    before = values(other)
    change(network, seed=1)
    teacher.update(network, 0.5)
    torch.testing.assert_close(values(other), before, atol=0, rtol=0)
    assert not any(p.requires_grad for p in other.parameters())
