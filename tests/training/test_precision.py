"""Which precision a training computes in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nnunet_ssp.training import precision, trials
from nnunet_ssp.training.precision import (
    InPrecision,
    PrecisionTrainer,
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
    monkeypatch.setattr(trials, "FEWEST_PARAMETERS", 0)
    return make_network()


@pytest.mark.parametrize(
    ("gain", "said", "dtype"),
    [(1.2499, "1.24", None), (1.25, "1.25", torch.bfloat16), (0.4, "0.40", None)],
)
def test_the_trial_decides(large, monkeypatch, gain, said, dtype):
    monkeypatch.setattr(precision, "bf16_gain", lambda network, shape: gain)
    found, why = choose_on_cpu(large, (1, 16, 16))
    assert found is dtype
    assert f"takes {said} times as long in float32 as in bfloat16" in why


def never(*_):
    pytest.fail("no trial is needed")


def test_no_trial_where_it_would_say_nothing(large, monkeypatch):
    monkeypatch.setattr(precision, "bf16_gain", never)
    assert choose_on_cpu(large, (1, 16, 16, 16))[0] is None
    monkeypatch.setattr(trials, "FEWEST_PARAMETERS", 10**9)
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


def test_the_gain_is_float32_over_bfloat16(make_network, monkeypatch):
    monkeypatch.setattr(trials, "shortest_times", lambda *_: {None: 6.0, torch.bfloat16: 2.0})
    assert bf16_gain(make_network(), (1, 16, 16)) == 3.0


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize(("asked", "device"), [("bf16", CPU), ("fp32", CPU), ("bf16", CUDA)])
def test_emulated_bfloat16_is_told(monkeypatch, has, asked, device):
    """Who asks for it on a processor without it waits many times as long, and has to know why."""
    monkeypatch.setattr(precision, "has_bf16", lambda: has)
    said: list[str] = []
    trainer = SimpleNamespace(
        settings=SimpleNamespace(precision=asked), device=device, print_to_log_file=said.append
    )
    PrecisionTrainer.settle_precision(trainer, None, True)
    if (asked, device, has) == ("bf16", CPU, False):
        assert "WARNING: precision=bf16: this processor has no instructions" in said[0]
    else:
        assert not said


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
