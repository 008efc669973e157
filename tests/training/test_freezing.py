from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnunet_ssp.methods.parts.momentum import Momentum
from nnunet_ssp.network import in_encoder
from nnunet_ssp.training.freezing import freeze, hold_statistics

pytestmark = pytest.mark.usefixtures("one_thread")
every_kind = pytest.mark.parametrize("kind", ["plain", "residual"])
IMAGES = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make(make_network):
    """Networks with deep supervision: every tensor has a say in the loss."""

    def supervised(kind: str = "plain", norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
        network = make_network(kind, norm=norm)
        network.decoder.deep_supervision = True
        return network.train()

    return supervised


def keys_of(network: nn.Module, side: str) -> set[str]:
    """All names, aliases too, of the tensors of the encoder or of the rest."""
    return {key for key in network.state_dict() if in_encoder(key) == (side == "encoder")}


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def changed(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {k for k, tensor in network.state_dict().items() if not torch.equal(tensor, before[k])}


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """nnU-Net's: its momentum and weight decay would move a parameter that has no say in the loss."""
    return torch.optim.SGD(network.parameters(), 0.1, 0.99, weight_decay=1e-2, nesterov=True)


def loss(network: nn.Module) -> Tensor:
    return torch.stack([output.square().mean() for output in network(IMAGES)]).sum()


def step(network: nn.Module, optimizer: torch.optim.Optimizer, times: int = 2) -> None:
    for _ in range(times):
        optimizer.zero_grad(set_to_none=True)
        loss(network).backward()
        optimizer.step()


@every_kind
@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, nn.BatchNorm2d])
def test_what_is_held_does_not_change_and_all_else_does(make, kind, side, norm):
    network = make(kind, norm)
    held = keys_of(network, side)
    before = copied(network)
    freeze(network, held)
    hold_statistics(network, held)
    step(network, sgd(network))
    assert changed(network, before) == before.keys() - held


@every_kind
def test_every_alias_is_of_one_mind(make, kind):
    """nnU-Net's decoder holds the encoder: a module-wise freeze of one is a freeze of both."""
    network = make(kind)
    freeze(network, keys_of(network, "decoder"))
    for name, parameter in network.named_parameters(remove_duplicate=False):
        assert parameter.requires_grad == in_encoder(name), name


def test_nothing_named_trains_everything(make):
    network = make()
    held = keys_of(network, "encoder")
    freeze(network, held)
    hold_statistics(network, held)
    step(network, sgd(network))
    freeze(network, set())
    network.train()
    before = copied(network)
    step(network, sgd(network))
    assert changed(network, before) == before.keys()


def test_freezing_in_the_middle_leaves_no_grip(make):
    """Neither the momentum of earlier steps nor a gradient that waits moves a parameter."""
    network = make(norm=nn.InstanceNorm2d)
    optimizer = sgd(network)
    step(network, optimizer)
    loss(network).backward()
    held = keys_of(network, "encoder")
    before = copied(network)
    freeze(network, held)
    optimizer.step()
    step(network, optimizer)
    assert changed(network, before) == before.keys() - held


def test_only_what_was_loaded_holds(make):
    """Single tensors, not whole modules: a layer may have come without its normalisation."""
    network = make()
    one = {k for k in network.state_dict() if k.startswith("encoder.stages.1.0.convs.0.conv.")}
    freeze(network, one)
    still = {k for k, parameter in network.named_parameters() if not parameter.requires_grad}
    assert still == one and len(one) == 2


def test_training_mode_wakes_statistics_up(make):
    """This is why `hold_statistics` is called after every `train()`."""
    network = make()
    held = keys_of(network, "encoder")
    freeze(network, held)
    hold_statistics(network, held)
    before = copied(network)
    network.train()
    step(network, sgd(network))
    moved = changed(network, before) & held
    assert moved and all("running_" in key or "num_batches" in key for key in moved)


def test_layers_without_statistics_stay_in_training_mode(make):
    network = make(norm=nn.InstanceNorm2d)
    hold_statistics(network, network.state_dict().keys())
    assert all(module.training for module in network.modules())


def test_a_moving_average_of_a_held_network_is_the_network(make):
    network = make()
    held = keys_of(network, "encoder")
    freeze(network, held)
    hold_statistics(network, held)
    average = Momentum(network).eval()
    optimizer = sgd(network)
    before = copied(average.copy)
    for _ in range(3):
        step(network, optimizer, times=1)
        average.update(network, 0.99)
    assert changed(average.copy, before) == before.keys() - held


def test_a_compiled_network_follows(make):
    """Its graph was traced with other parameters at rest."""
    network = make()
    compiled = torch.compile(network, backend="aot_eager")
    optimizer = sgd(network)
    held = keys_of(network, "encoder")
    for still in (held, set()):
        freeze(network, still)
        compiled.train()
        hold_statistics(network, still)
        before = copied(network)
        step(compiled, optimizer)
        assert changed(network, before) == before.keys() - still
    torch._dynamo.reset()
