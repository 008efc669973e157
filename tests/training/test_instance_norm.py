"""InstanceNorm and LeakyReLU in one operation: the same function and gradients in both memory layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nnunet_ssp.training import instance_norm as kernels
from nnunet_ssp.training.instance_norm import instance_norm, is_channels_last

LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
LAYOUTS = {"contiguous": CONTIGUOUS, "channels_last": LAST}


def plain(x: Tensor, weight: Tensor, bias: Tensor, slope: float | None) -> Tensor:
    y = functional.instance_norm(x, weight=weight, bias=bias)
    return y if slope is None else functional.leaky_relu(y, slope)


def fused(x: Tensor, weight: Tensor, bias: Tensor, slope: float | None) -> Tensor:
    return instance_norm(x, weight, bias, 1e-5, slope)


def double(*shape: int, seed: int) -> Tensor:
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_()


@pytest.fixture(params=["own", "sums"])
def operations(request, monkeypatch):
    """The operations of a CPU, and the sums over pixels that other devices compute with channels last."""
    if request.param == "sums":
        monkeypatch.setattr(kernels, "_is_on_cpu", lambda x: False)


WEIGHTS = {
    "inverted": [1.5, -0.3],
    "a channel without weight": [0.0, 0.7],
    "a bias that drowns the weight": [1e-12, 1.0],
}


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("slope", [None, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_gradients_are_exact(weight, slope, layout):
    weight = torch.tensor(weight, dtype=torch.float64, requires_grad=True)
    x, bias = double(3, 2, 3, 4, seed=0), double(2, seed=1)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused(x.contiguous(memory_format=layout), weight, bias, slope)

    assert torch.autograd.gradcheck(function, (x, weight, bias), fast_mode=False)
    grad = double(3, 2, 3, 4, seed=2).detach()
    found = torch.autograd.grad(function(x, weight, bias), (x, weight, bias), grad)
    expected = torch.autograd.grad(plain(x, weight, bias, slope), (x, weight, bias), grad)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slope", [None, 0.01])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_maps_and_gradients_keep_their_layout_and_type(layout, slope, dtype):
    x = torch.randn(3, 4, 6, 5, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    weight, bias = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    y = fused(x, weight, bias, slope)
    # A gradient in the other layout, as a loss on the result may give.
    other = CONTIGUOUS if layout is LAST else LAST
    gradients = torch.autograd.grad(
        y, (x, weight, bias), torch.randn(y.shape, dtype=dtype).contiguous(memory_format=other)
    )
    for made in (y, gradients[0]):
        assert (made.stride(), made.dtype) == (x.stride(), dtype)
    assert [g.dtype for g in gradients[1:]] == [torch.float32] * 2


def test_no_map_changes_its_layout_on_the_way():
    """No operation of a pass makes a map in another layout than channels last."""
    from torch.utils._python_dispatch import TorchDispatchMode

    made: list[Tensor] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(r for r in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(r))
            return result

    x = torch.randn(2, 4, 6, 5).contiguous(memory_format=LAST).requires_grad_()
    weight, bias = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    grad = torch.randn(2, 4, 6, 5).contiguous(memory_format=LAST)
    for slope in (None, 0.01):
        with Watch():
            torch.autograd.grad(fused(x, weight, bias, slope), (x, weight, bias), grad)
    maps = [m for m in made if m.dim() == 4]
    assert len(maps) > 8 and all(is_channels_last(m) for m in maps)


@given(
    (st.floats(-4, 4, width=32) | st.floats(-(2**-9), 2**-9, width=32)).filter(
        lambda weight: weight == 0 or abs(weight) > 1e-30
    ),
    st.floats(-4, 4, width=32),
    st.sampled_from([(torch.float32, 1e-3), (torch.bfloat16, 0.05)]),
    st.integers(0, 99),
    st.sampled_from([CONTIGUOUS, LAST]),
)
def test_rounding_stays_small_whatever_the_weight_has_become(weight, bias, precision, seed, layout):
    """The weight's gradient, which the inversion would ruin where the bias drowns the weight."""
    dtype, tolerance = precision
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 2, 16, 16, generator=generator).to(dtype)
    grad = torch.randn(2, 2, 16, 16, generator=generator).to(dtype)

    def gradient(function: Any, kind: torch.dtype) -> Tensor:
        norm = (
            torch.tensor([weight, 1.0], dtype=kind, requires_grad=True),
            torch.tensor([bias, 0.0]).to(kind),
        )
        inputs = x.to(torch.float64 if kind is torch.float64 else dtype)
        inputs = inputs.contiguous(memory_format=layout)
        y = function(inputs, *norm, 0.3)
        return torch.autograd.grad(y, norm[0], grad.to(y.dtype))[0].double()

    wrong = gradient(fused, torch.float32) - gradient(plain, torch.float64)
    assert wrong.abs().max() <= tolerance * grad.double().norm()
