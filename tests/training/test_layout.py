"""Maps with the channels of a pixel side by side, and when `memory_format=auto` takes them."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_ssp.training import layout, trials
from nnunet_ssp.training.fused import fuse
from nnunet_ssp.training.instance_norm import is_channels_last
from nnunet_ssp.training.layout import choose_layout, layout_gain, use_channels_last
from tests.gradients import relative_error
from tests.training.test_fused import gradients_of

CPU = torch.device("cpu")
SINGLE = partial(torch.autocast, "cpu", enabled=False)
SHAPE = (2, 1, 16, 16)


@pytest.mark.parametrize("how", ["no", "auto", "yes"])
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_network_computes_and_learns_the_same(make_network, kind, how):
    network = make_network(kind).double()
    other = copy.deepcopy(network)
    if how != "no":
        fuse(other, joined=how == "yes")
    maps: list[torch.Tensor] = []
    for module in other.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, y: maps.extend((*inputs, y)))
    handles = use_channels_last(other)
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    expected, found = gradients_of(network, x), gradients_of(other, x)
    assert relative_error(found, expected) < 1e-10
    # One pixel or one channel is both layouts; else every map of the network is channels last.
    wide = [m for m in maps if m.shape[1] > 1 and m.shape[2:].numel() > 1]
    assert len(wide) > 10 and all(is_channels_last(m) for m in wide)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), network.eval()(x))
    for tensor in (*other.parameters(), *found.values()):
        assert tensor.is_contiguous(), "what the optimiser and checkpoints see stays"
    assert list(network.state_dict()) == list(other.state_dict())
    maps.clear()
    for handle in handles:
        handle.remove()
    other(x)
    assert all(m.is_contiguous() for m in maps)


@pytest.mark.parametrize("how", ["auto", "yes"])
@pytest.mark.parametrize("last", [False, True])
def test_the_prediction_is_that_of_nnunets_modules(make_network, how, last):
    network = make_network("plain").eval()
    other = copy.deepcopy(network)
    fuse(other, joined=how == "yes")
    if last:
        use_channels_last(other)
    with torch.no_grad():
        x = torch.randn(2, 1, 32, 32)
        expected, found = network(x)[0].softmax(0), other(x)[0].softmax(0)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(other(x), network(x), rtol=1e-5, atol=1e-5)


def test_batch_statistics_and_draws_are_those_of_one_layout(make_network):
    """BatchNorm stays, its running statistics too, and the random numbers that follow a step."""
    network = make_network(norm=nn.BatchNorm2d)
    other = copy.deepcopy(network)
    said = fuse(other, joined=True)
    assert said.startswith("fused_norm: left as they are: ") and " BatchNorm2d." in said
    use_channels_last(other)
    x, streams = torch.randn(3, 1, 16, 16), []
    for one in (network, other):
        torch.manual_seed(5)
        gradients_of(one, x)
        streams.append(torch.get_rng_state())
    assert torch.equal(*streams)
    for mine, theirs in zip(other.buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


# -- auto ------------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch, make_network):
    """A network that counts as large, with its norms fused as on a CPU."""
    monkeypatch.setattr(trials, "FEWEST_PARAMETERS", 0)
    network = make_network()
    fuse(network, joined=False)
    return network


@pytest.mark.parametrize(
    ("gain", "said", "found"),
    [
        (1.0499, "1.04", "contiguous"),
        (1.05, "1.05", "channels_last"),
        (0.6, "0.60", "contiguous"),
    ],
)
def test_the_trial_decides(large, monkeypatch, gain, said, found):
    seen: list[Any] = []
    monkeypatch.setattr(layout, "layout_gain", lambda *given: seen.append(given[:3]) or gain)
    name, why = choose_layout(large, (128, 1, 16, 16), CPU, SINGLE, False)
    assert name == found
    assert f"takes {said} times as long in contiguous as in channels_last, timed in 0" in why
    assert seen == [(large, large, (4, 1, 16, 16))], "a few images on a CPU"


def never(*_):
    pytest.fail("no trial is needed")


def test_no_trial_where_it_would_say_nothing(large, make_network, monkeypatch):
    monkeypatch.setattr(layout, "layout_gain", never)
    for shape in ((2, 1, 16, 16, 16), SHAPE):
        name, why = choose_layout(large, shape, CPU, SINGLE, False)
        assert (name, "only 2D networks" in why) == ("contiguous", True)
        monkeypatch.setattr(trials, "FEWEST_PARAMETERS", 10**9)
    monkeypatch.setattr(trials, "FEWEST_PARAMETERS", 0)
    assert "mps" in choose_layout(large, SHAPE, torch.device("mps"), SINGLE, False)[1]
    assert "InstanceNorm" in choose_layout(make_network(), SHAPE, CPU, SINGLE, None)[1]
    large.encoder.stages[0].append(nn.Dropout(0.5))
    assert "dropout" in choose_layout(large, SHAPE, CPU, SINGLE, False)[1]


def test_other_devices_time_a_copy_with_other_norms(make_network, monkeypatch):
    monkeypatch.setattr(trials, "FEWEST_PARAMETERS", 0)
    network, seen = make_network(), []
    monkeypatch.setattr(layout, "layout_gain", lambda *given: seen.append(given[:3]) or 2.0)
    cuda = torch.device("cuda")
    assert choose_layout(network, (128, 1, 16, 16), cuda, SINGLE, True)[0] == "channels_last"
    (ours, other, shape), norms = seen[0], nn.InstanceNorm2d
    assert ours is network and shape == (32, 1, 16, 16)
    assert any(type(m) is norms for m in network.modules())
    assert not any(type(m) is norms for m in other.modules())


def test_both_layouts_are_timed(large, monkeypatch):
    def timed(image: torch.Tensor, ways: Any) -> dict[str, float]:
        strides = []
        large.encoder.stages[0].register_forward_hook(lambda *c: strides.append(c[-1].stride(1)))
        for network, context in ways.values():
            with context():
                network(image)
        assert list(ways) == ["contiguous", "channels_last"]
        assert strides == [16 * 16, 1]
        return {"contiguous": 3.0, "channels_last": 2.0}

    monkeypatch.setattr(trials, "shortest_times", timed)
    assert layout_gain(large, large, SHAPE, CPU, SINGLE) == 1.5
    assert not large.encoder.stages[0]._forward_pre_hooks
    assert not any(m._forward_pre_hooks for m in large.modules())


# -- on a GPU --------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["auto", "yes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_the_same_with_channels_last(make_network, how, dtype):
    network = make_network("plain").cuda()
    other = copy.deepcopy(network)
    fuse(other, joined=how == "yes")
    use_channels_last(other)
    x = torch.randn(3, 1, 32, 32, device="cuda")
    with torch.autocast("cuda", dtype, enabled=dtype is not torch.float32):
        expected, found = gradients_of(network, x), gradients_of(other, x)
    assert relative_error(found, expected) < (1e-2 if dtype is torch.float32 else 0.1)


@pytest.mark.gpu
def test_a_gpu_does_not_wait_for_fused_norms(make_network):
    network = make_network("plain").cuda()
    fuse(network, joined=True)
    use_channels_last(network)
    x = torch.randn(3, 1, 32, 32, device="cuda")
    gradients_of(network, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients_of(network, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_trial_on_a_gpu(make_network, monkeypatch):
    monkeypatch.setattr(trials, "FEWEST_PARAMETERS", 0)
    network = make_network("plain").cuda()
    half = partial(torch.autocast, "cuda", torch.float16)
    name, why = choose_layout(network, (64, 1, 64, 64), torch.device("cuda"), half, False)
    assert name in ("contiguous", "channels_last") and "a step takes " in why
