"""Which precision a training computes in."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from nnunet_ssp.training import precision
from nnunet_ssp.training.precision import (
    InPrecision,
    bf16_gain,
    choose_on_cpu,
    choose_precision,
    has_bf16,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "native", "device", "dtype"),
    [
        ("auto", True, CPU, None),
        ("fp32", True, CUDA, None),
        ("bf16", True, CPU, torch.bfloat16),
        ("auto", True, CUDA, torch.bfloat16),
        ("auto", False, CUDA, torch.float16),
        ("fp16", False, CUDA, torch.float16),
    ],
)
def test_the_type_to_compute_in(asked, native, device, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_precision(asked, "bf16", device) is dtype


def test_auto_takes_what_the_method_prefers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_precision("auto", "fp16", CUDA) is torch.float16


def test_half_precision_needs_its_scaler():
    with pytest.raises(ValueError, match=r"`precision` \(=fp16\) must be used on CUDA"):
        choose_precision("fp16", "bf16", CPU)


# -- auto on a CPU ---------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch, make_network):
    """A network that counts as large, on a processor with bfloat16."""
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    monkeypatch.setattr(precision, "FEWEST_PARAMETERS", 0)
    return make_network()


@pytest.mark.parametrize(("gain", "dtype"), [(1.24, None), (1.25, torch.bfloat16), (0.4, None)])
def test_the_trial_decides(large, monkeypatch, gain, dtype):
    monkeypatch.setattr(precision, "bf16_gain", lambda network, shape: gain)
    found, why = choose_on_cpu(large, (1, 16, 16))
    assert found is dtype
    assert f"takes {gain:.2f} times as long in float32 as in bfloat16" in why


def never(*_):
    pytest.fail("no trial is needed")


def test_no_trial_where_it_would_say_nothing(large, monkeypatch):
    monkeypatch.setattr(precision, "bf16_gain", never)
    assert choose_on_cpu(large, (1, 16, 16, 16))[0] is None
    monkeypatch.setattr(precision, "FEWEST_PARAMETERS", 10**9)
    assert choose_on_cpu(large, (1, 16, 16))[0] is None
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    assert choose_on_cpu(large, (1, 16, 16)) == (
        None,
        "this processor has no instructions for bfloat16",
    )


@pytest.mark.parametrize(
    ("instructions", "has"),
    [((), False), (("_is_amx_tile_supported",), True), (("_is_avx512_bf16_supported",), True)],
)
def test_the_processor_is_asked(monkeypatch, instructions, has):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions, raising=False)
    assert has_bf16() is has


def test_a_torch_that_cannot_tell(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_bf16()


def test_the_gain_is_that_of_the_shortest_times(make_network, monkeypatch):
    """Steps of 9, 3, 4 and 6 s in float32 and of 9, 8, 2 and 5 s in bfloat16; the first do not count."""
    durations = [9.0, 9.0, 3.0, 8.0, 4.0, 2.0, 6.0, 5.0]
    clock = itertools.chain.from_iterable((0.0, seconds) for seconds in durations)
    monkeypatch.setattr(precision.time, "process_time", lambda: next(clock))
    assert bf16_gain(make_network(), (1, 16, 16)) == 3.0 / 2.0


def test_the_trial_leaves_the_run_alone(make_network):
    network = make_network(norm=nn.BatchNorm2d)
    network.encoder.stages[0].append(nn.Dropout(0.5))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    assert bf16_gain(network, (1, 16, 16)) > 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("outer", [None, torch.bfloat16])
def test_a_network_in_one_precision_whatever_surrounds_it(make_network, dtype, outer):
    network, x = make_network(), torch.randn(2, 1, 16, 16)
    seen = []
    network.encoder.stages[0].register_forward_hook(lambda *called: seen.append(called[-1].dtype))
    wrapped = InPrecision(network, lambda: torch.autocast("cpu", dtype, enabled=dtype is not None))
    with torch.autocast("cpu", outer, enabled=outer is not None):
        output = wrapped(x)
    assert seen == [dtype or torch.float32]
    assert output.dtype == torch.float32
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in network.parameters()}
    if dtype is None:
        assert torch.equal(output, network(x))
