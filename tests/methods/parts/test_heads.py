from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ssp.methods.parts.heads import DINOHead, Standardise, batchnorm_mlp, mlp


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [True, False])
def test_it_is_batchnorm_without_parameters_and_without_memory(training):
    x = (5 + 0.03 * normal(20, 7)).requires_grad_()
    weight = normal(20, 7, seed=1)
    reference = nn.BatchNorm1d(7, affine=False).train()
    standardise = Standardise().train(training)
    expected, found = reference(x), standardise(x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    (expected_gradient,) = torch.autograd.grad((weight * expected).sum(), x)
    (gradient,) = torch.autograd.grad((weight * found).sum(), x)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-3, rtol=1e-4)
    assert not list(standardise.state_dict())
    # Another batch leaves no trace.
    standardise(100 * normal(9, 7))
    assert torch.equal(standardise(x), found)


def test_eps_is_batchnorms():
    x = 1e-3 * normal(50, 3).double()  # small enough for eps to show
    for eps in (1e-5, 1e-3):
        expected = nn.BatchNorm1d(3, eps=eps, affine=False).double()(x)
        torch.testing.assert_close(Standardise(eps)(x), expected)


def test_equal_rows_become_zero_with_a_finite_gradient():
    x = torch.full((6, 3), 0.7, requires_grad=True)
    found = Standardise()(x)
    assert found.abs().max() < 1e-3
    found.square().sum().backward()
    assert x.grad.isfinite().all()


def test_the_papers_head():
    head = mlp([512, 512, 512, 512])
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU] * 2 + [nn.Linear]
    assert sum(p.numel() for p in head.parameters()) == 787_968
    assert all(layer.bias is not None for layer in head[::2])


def test_a_head_by_hand():
    head = mlp([4, 3, 2])
    x = normal(5, 4)
    a, b = head[0], head[2]
    with torch.no_grad():
        b.bias -= 1
    expected = (x @ a.weight.T + a.bias).clamp_min(0) @ b.weight.T + b.bias
    torch.testing.assert_close(head(x), expected)
    assert (expected < 0).any()  # the last layer has no ReLU
    assert [(m.in_features, m.out_features) for m in head[::2]] == [(4, 3), (3, 2)]
    assert len(mlp([4, 2])) == 1


# -- heads with BatchNorm --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("widths", [(512, 2048, 256, 8192), (6, 16, 5, 11)])
def test_dinos_head_is_lightlys(widths):
    heads = pytest.importorskip("lightly.models.modules.heads")
    oracle = heads.DINOProjectionHead(*widths, batch_norm=True, norm_last_layer=True).train()
    head = DINOHead(*widths)
    with torch.no_grad():
        for layer in (head.mlp[1], head.mlp[4]):  # its own start as 1 and 0
            layer.weight.normal_(1, 0.1)
            layer.bias.normal_(0, 0.1)
        head.mlp[6].bias.normal_(0, 0.1)
        head.prototypes.mul_(3)
        oracle.last_layer.weight_v.copy_(head.prototypes)
    state = {k: v for k, v in head.mlp.state_dict().items() if k not in ("0.bias", "3.bias")}
    missing, unexpected = oracle.layers.load_state_dict(state, strict=False)
    assert not unexpected and all("running" in k or "num_batches" in k for k in missing)
    x = normal(12, widths[0])
    bottleneck, scores = head(x)
    assert (bottleneck.shape, scores.shape) == ((12, widths[2]), (12, widths[3]))
    torch.testing.assert_close(scores, oracle(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(bottleneck.norm(dim=1), torch.ones(12))
    weight = normal(12, widths[3], seed=1)
    (weight * scores).sum().backward()
    (weight * oracle(x)).sum().backward()
    scale = oracle.layers[0].weight.grad.abs().max().item()
    torch.testing.assert_close(
        head.mlp[0].weight.grad, oracle.layers[0].weight.grad, atol=1e-5 * scale, rtol=1e-4
    )
    expected = oracle.last_layer.weight_v.grad
    scale = expected.abs().max().item()
    torch.testing.assert_close(head.prototypes.grad, expected, atol=1e-5 * scale, rtol=1e-4)


def test_only_the_direction_of_prototypes_counts():
    head = DINOHead(6, 16, 5, 11)
    x = normal(12, 6)
    bottleneck, scores = head(x)
    assert scores.abs().max() <= 1 + 1e-6
    expected = F.cosine_similarity(bottleneck[:, None], head.prototypes, dim=2)
    torch.testing.assert_close(scores, expected)
    with torch.no_grad():
        head.prototypes.mul_(torch.linspace(0.01, 100, 11)[:, None])
    torch.testing.assert_close(head(x)[1], scores)


def test_dinos_head_starts_as_the_papers():
    torch.manual_seed(0)
    head = DINOHead(64, 128, 32, 500)
    linear = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(64, 128), (128, 128), (128, 32)]
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert layer.weight.mean().abs() < 1e-3
        assert layer.weight.abs().max() > 0.05  # cut at +-2, far outside, and not at 2 deviations
        assert (layer.bias == 0).all()
    # torch's own for a linear layer: uniform within 1 / sqrt(inputs).
    limit = 32**-0.5
    assert head.prototypes.shape == (500, 32)
    assert 0.99 * limit < head.prototypes.abs().max() <= limit
    assert head.prototypes.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert isinstance(head.prototypes, nn.Parameter) and head.prototypes.requires_grad


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "widths"),
    [("BYOLProjectionHead", (512, 4096, 256)), ("BYOLPredictionHead", (8, 16, 8))],
)
def test_byols_heads_are_lightlys(name, widths):
    oracle = getattr(pytest.importorskip("lightly.models.modules.heads"), name)(*widths).train()
    head = batchnorm_mlp(widths, nn.ReLU)
    with torch.no_grad():
        head[1].weight.normal_(1, 0.1)
        head[1].bias.normal_(0, 0.1)
    state = {k: v for k, v in head.state_dict().items() if k != "0.bias"}
    missing, unexpected = oracle.layers.load_state_dict(state, strict=False)
    assert not unexpected and all("running" in k or "num_batches" in k for k in missing)
    x = normal(12, widths[0])
    found = head(x)
    torch.testing.assert_close(found, oracle(x), atol=1e-6, rtol=1e-5)
    assert (found < 0).any()  # the last layer has no ReLU
    # Theirs has no bias before BatchNorm; ours, which starts as torch's, changes nothing.
    assert (head[0].bias != 0).any()
    with torch.no_grad():
        head[0].bias.fill_(3)
    torch.testing.assert_close(head(x), found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU])
def test_batchnorm_of_a_head_always_takes_the_batch_at_hand(activation):
    head = batchnorm_mlp([4, 6, 6, 3], activation)
    assert [type(layer) for layer in head] == [
        *[nn.Linear, nn.BatchNorm1d, activation] * 2,
        nn.Linear,
    ]
    x = normal(12, 4)
    found = head(x)
    head(100 * normal(12, 4, seed=1))
    assert torch.equal(head.eval()(x), found)
    assert not list(head.buffers())
    assert not torch.allclose(head(x[:6]), found[:6])
