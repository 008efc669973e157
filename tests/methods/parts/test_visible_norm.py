from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_ssp.methods.parts.visible_norm import VisibleNorm

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder_of_norms(affine: bool = True) -> nn.Sequential:
    layers = nn.Sequential(nn.InstanceNorm2d(2, affine=affine))
    if affine:
        with torch.no_grad():
            layers[0].weight.copy_(torch.tensor([0.5, 2.0]))
            layers[0].bias.copy_(torch.tensor([1.0, -1.0]))
    return layers


@pytest.mark.parametrize("affine", [True, False])
def test_statistics_of_visible_pixels_against_a_naive_loop(affine):
    layers = encoder_of_norms(affine)
    visible_norm = VisibleNorm(layers)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 6, 8, generator=g) * 3 + 1
    visible = torch.rand(3, 1, 6, 8, generator=g) < 0.4
    visible_norm.visible = visible.float()
    result = layers(x)
    for i in range(3):
        for c in range(2):
            seen = x[i, c][visible[i, 0]]
            expected = (x[i, c] - seen.mean()) / (seen.var(unbiased=False) + 1e-5).sqrt()
            if affine:
                expected = expected * layers[0].weight[c] + layers[0].bias[c]
            torch.testing.assert_close(result[i, c], expected, rtol=1e-5, atol=1e-5)


def test_hidden_values_do_not_reach_visible_ones():
    layers = encoder_of_norms()
    visible_norm = VisibleNorm(layers)
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    visible = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    visible[:, :, :4, :5] = True
    visible_norm.visible = visible.float()
    changed = torch.where(visible, x, x * 50 + 7)
    where = visible.expand_as(x)
    torch.testing.assert_close(layers(x)[where], layers(changed)[where])
    visible_norm.visible = None
    assert not torch.allclose(layers(x)[where], layers(changed)[where])


def test_coarse_maps_weigh_by_the_visible_share():
    layers = encoder_of_norms(affine=False)
    visible_norm = VisibleNorm(layers)
    x = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    visible = torch.zeros(1, 1, 8, 8)
    visible[..., :4, :4], visible[..., :2, 4:] = 1, 1  # shares 1, 1/2, 0, 0
    visible_norm.visible = visible
    values, shares = x.flatten(2), torch.tensor([2 / 3, 1 / 3, 0, 0])
    mean = (values * shares).sum(2, keepdim=True)
    std = ((values - mean).square() * shares).sum(2, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(layers(x).flatten(2), (values - mean) / std)


def test_it_keeps_the_precision_of_the_layer():
    layers = encoder_of_norms().bfloat16()
    visible_norm = VisibleNorm(layers)
    visible_norm.visible = torch.ones(1, 1, 8, 8)
    assert layers(torch.randn(1, 2, 8, 8).bfloat16()).dtype == torch.bfloat16


def test_an_encoder_without_instance_norm_is_refused():
    with pytest.raises(ValueError, match=r"`visible_statistics` \(=yes\) must have InstanceNorm"):
        VisibleNorm(nn.Sequential(nn.BatchNorm2d(2)))
