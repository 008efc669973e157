"""InstanceNorm and LeakyReLU in one operation: the same function and gradients, with less kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ssp.training.fused import Fused, FusedNorm, fuse
from tests.gradients import relative_error

# -- whole networks --------------------------------------------------------------------------------


def gradients_of(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    network.zero_grad(set_to_none=True)
    outputs = network(x)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    torch.stack([y.float().square().mean() for y in outputs]).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_network_computes_and_learns_the_same(make_network, kind, joined):
    network = make_network(kind).double()
    other = copy.deepcopy(network)
    said = fuse(other, joined)
    norms = [m for m in other.modules() if isinstance(m, FusedNorm)]
    together = sum(norm.slope is not None for norm in norms)
    assert said.startswith(f"fused_norm: {len(norms)} InstanceNorms computed as group norm")
    assert not any(type(m) is nn.InstanceNorm2d for m in other.modules())
    # A residual block activates after its sum.
    if not joined:
        assert together == 0
    else:
        assert (0 < together < len(norms)) if kind == "residual" else together == len(norms)
    assert list(network.state_dict()) == list(other.state_dict())
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    expected, found = gradients_of(network, x), gradients_of(other, x)
    assert relative_error(found, expected) < 1e-10
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), network.eval()(x))
    assert fuse(other, joined) == ""


def test_a_copy_has_weights_of_its_own(make_network):
    network = make_network("plain")
    fuse(network, joined=True)
    other, x = copy.deepcopy(network), torch.randn(1, 1, 16, 16)
    before = network(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)
    assert not torch.equal(torch.stack([*other(x)]), torch.stack([*before]))


def kept_bytes(network: nn.Module, x: Tensor, dtype: torch.dtype | None) -> int:
    """Bytes of all that a forward pass keeps besides the parameters, each storage once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
    ):
        network(x)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)


def test_a_third_of_the_activations_is_kept(planned_network):
    """With bfloat16; 0.6 in float32, and not a half, because skip connections are copied."""
    other, x = copy.deepcopy(planned_network), torch.randn(4, 1, 64, 64)
    fuse(other, joined=True)
    before = kept_bytes(planned_network, x, None)
    assert kept_bytes(other, x, None) < 0.62 * before
    assert kept_bytes(other, x, torch.bfloat16) < 0.35 * before


@pytest.fixture
def planned_network() -> nn.Module:
    """A network as nnU-Net plans it, of a quarter of its widths."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    torch.manual_seed(0)
    return PlainConvUNet(
        input_channels=1,
        n_stages=4,
        features_per_stage=(8, 16, 32, 64),
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=(1, 2, 2, 2),
        n_conv_per_stage=2,
        num_classes=4,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def losses(network: nn.Module) -> Tensor:
    """Losses of 50 steps in bfloat16 with fixed data, a running mean of ten."""
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    found = []
    for _ in range(50):
        x = torch.randn(2, 1, 32, 32, generator=generator).cumsum(-1)
        with torch.autocast("cpu", torch.bfloat16):
            output = network(x)[0]
        loss = (output[:, :1].float() - functional.avg_pool2d(x, 3, 1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found).unfold(0, 10, 1).mean(-1)


def test_a_training_in_bfloat16_goes_the_same_way(planned_network):
    other = copy.deepcopy(planned_network)
    fuse(other, joined=True)
    torch.testing.assert_close(losses(other), losses(planned_network), rtol=0.02, atol=0)


# -- what is left alone ----------------------------------------------------------------------------

OTHERS: dict[str, list[nn.Module]] = {
    "BatchNorm": [nn.BatchNorm2d(2), nn.LeakyReLU()],
    "a group norm": [nn.GroupNorm(1, 2), nn.LeakyReLU()],
    "no parameters": [nn.InstanceNorm2d(2), nn.LeakyReLU()],
    "running statistics": [
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
        nn.LeakyReLU(),
    ],
    "volumes": [nn.InstanceNorm3d(2, affine=True), nn.LeakyReLU()],
}


@pytest.mark.parametrize("layers", OTHERS.values(), ids=OTHERS)
def test_other_layers_stay_and_are_named(layers):
    before = [type(layer) for layer in layers]
    said = f"fused_norm: left as they are: 1 {before[0].__name__}."
    assert fuse(nn.Sequential(*layers), joined=True) == said
    assert [type(layer) for layer in layers] == before


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.GELU(),
        nn.LeakyReLU(0.0),
        nn.Sequential(nn.LeakyReLU()),
        nn.Dropout(0.0),  # between the norm and its activation
    ],
    ids=str,
)
def test_a_norm_before_another_layer_is_a_group_norm(activation):
    network = nn.Sequential(nn.InstanceNorm2d(2, affine=True), activation, nn.LeakyReLU())
    x = torch.randn(2, 2, 4, 4)
    expected = network(x)
    said = fuse(network, joined=True)
    assert ", 0 of them together with LeakyReLU;" in said
    assert not isinstance(activation, Fused)
    torch.testing.assert_close(network(x), expected)


def test_what_has_hooks_is_left_as_it_is():
    """`visible_statistics` takes its statistics from what such a hook sees."""
    norm = nn.InstanceNorm2d(2, affine=True)
    norm.register_forward_hook(lambda *called: None)
    said = "fused_norm: left as they are: 1 InstanceNorm2d."
    assert fuse(nn.Sequential(norm, nn.LeakyReLU()), joined=True) == said
    watched = nn.Sequential(nn.InstanceNorm2d(2, affine=True), nn.LeakyReLU())
    watched[1].register_forward_hook(lambda *called: None)
    assert ", 0 of them together" in fuse(watched, joined=True)


def test_what_several_norms_share_is_left_as_it_is():
    activation, norm = nn.LeakyReLU(0.1), nn.InstanceNorm2d(2, affine=True)
    shared = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.InstanceNorm2d(2, affine=True), activation),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.InstanceNorm2d(2, affine=True), activation),
        nn.Sequential(norm, nn.LeakyReLU()),
        nn.Sequential(norm, nn.ReLU()),
        nn.Sequential(nn.InstanceNorm2d(2, affine=True), nn.LeakyReLU()),
    )
    x = torch.randn(2, 2, 5, 5)
    expected = shared(x)
    assert fuse(shared, joined=True).count(", 1 of them together with LeakyReLU;")
    torch.testing.assert_close(shared(x), expected)


@pytest.mark.parametrize("joined", [True, False])
def test_a_map_of_one_pixel_is_refused_as_before(joined):
    network = nn.Sequential(nn.InstanceNorm2d(2, affine=True), nn.LeakyReLU())
    fuse(network, joined)
    with pytest.raises(ValueError, match="more than one pixel"):
        network(torch.randn(3, 2, 1, 1))
    network.eval()(torch.randn(3, 2, 1, 1))
