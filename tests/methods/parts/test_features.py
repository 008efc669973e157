from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ssp.methods.parts.features import (
    COLLAPSED_RANK,
    COLLAPSED_SPREAD,
    alignment,
    collapse_warning,
    effective_rank,
    relative_alignment,
    spread,
    uniformity,
)


def normal(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_equal_rows_have_collapsed():
    x = torch.tensor([[3.0, -4.0, 12.0]]).repeat(7, 1)
    assert spread(x).item() == pytest.approx(0, abs=1e-6)
    assert alignment(x, x) == 0
    assert uniformity(x).item() == pytest.approx(0, abs=1e-5)
    assert effective_rank(x).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_orthonormal_rows(n):
    x = torch.linalg.qr(normal(n, n).double()).Q.float() if n > 5 else torch.eye(n)
    assert uniformity(x).item() == pytest.approx(-4, abs=1e-5)  # all at distance sqrt(2)
    assert alignment(x, x.roll(1, 0)).item() == pytest.approx(2, abs=1e-5)
    assert alignment(x, -x).item() == pytest.approx(4, abs=1e-5)
    assert effective_rank(x).item() == pytest.approx(n - 1, rel=1e-5)  # their mean takes one away


@pytest.mark.parametrize("n", [2, 5, 64])
def test_the_spread_of_unit_vectors(n):
    # Each coordinate is 1 once and 0 otherwise.
    assert spread(torch.eye(n)).item() == pytest.approx(math.sqrt((n - 1) / n), rel=1e-5)


@pytest.mark.parametrize("width", [16, 128])
def test_uniform_features_have_spread_one_and_full_rank(width):
    x = normal(3000, width)
    assert spread(x).item() == pytest.approx(1, abs=0.02)
    assert effective_rank(x).item() > 0.95 * width
    # E exp(-2 |a - b|^2) = exp(-4) E exp(4 cos), and cos has variance 1 / width
    assert uniformity(x).item() == pytest.approx(-4 + 8 / width, abs=0.1)


def test_a_few_percent_of_content_on_a_common_direction():
    x = torch.ones(500, 64) + 0.02 * normal(500, 64)
    assert spread(x).item() == pytest.approx(0.02, rel=0.05)
    assert -0.01 < uniformity(x).item() < 0
    # Centred: the common direction hides nothing.
    assert effective_rank(x).item() == pytest.approx(
        effective_rank(x - torch.ones(500, 64)).item(), rel=1e-3
    )
    assert effective_rank(x).item() > 50


@pytest.mark.parametrize(("n", "width"), [(6, 40), (40, 6), (12, 12)])
@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], [4.0, 1.0, 0.5, 1e-3]])
def test_the_rank_of_known_singular_values(n, width, values):
    s = torch.tensor(values, dtype=torch.float64)
    # Left vectors orthogonal to ones, so that centring changes nothing.
    basis = torch.cat([torch.ones(n, 1), normal(n, len(s))], 1).double()
    left = torch.linalg.qr(basis).Q[:, 1:]
    right = torch.linalg.qr(normal(width, len(s), 1).double()).Q
    x = left @ torch.diag(s) @ right.T + 5
    share = s / s.sum()
    expected = (-(share * share.log()).sum()).exp().item()
    assert effective_rank(x).item() == pytest.approx(expected, rel=1e-4)
    if len(set(values)) == 1:
        assert expected == pytest.approx(len(s))


@settings(deadline=None)
@given(n=st.integers(2, 12), width=st.integers(1, 12), seed=st.integers(0, 99))
def test_figures_stay_in_their_ranges(n, width, seed):
    x, y = normal(n, width, seed), normal(n, width, seed + 100)
    assert 0 <= spread(x) <= 1 + 1e-6
    assert 0 <= alignment(x, y) <= 4 + 1e-5
    assert -8 - 1e-4 <= uniformity(x) <= 1e-5
    assert 1 - 1e-6 <= effective_rank(x) <= min(n - 1, width) + 1e-6


@settings(deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_scale_and_order_change_nothing(scale, seed):
    x, y = normal(9, 5, seed), normal(9, 5, seed + 100)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    for figure in (spread, uniformity, effective_rank):
        torch.testing.assert_close(figure(scale * x[order]), figure(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alignment(scale * x[order], y[order]), alignment(x, y))


def test_alignment_is_the_squared_distance_of_directions():
    first, second = normal(5, 3), normal(5, 3, 1)
    cosine = F.cosine_similarity(first, second)
    torch.testing.assert_close(alignment(first, second), (2 - 2 * cosine).mean())


def test_uniformity_is_the_log_of_a_mean_over_pairs():
    z = F.normalize(normal(6, 3), dim=1)
    pairs = [(-2 * (z[i] - z[j]).square().sum()).exp() for i in range(6) for j in range(i)]
    torch.testing.assert_close(uniformity(z), torch.stack(pairs).mean().log())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    x = (100 * normal(40, 512)).to(dtype)  # the sum of squares leaves float16's range
    for figure in (spread, uniformity, effective_rank):
        torch.testing.assert_close(figure(x), figure(x.float()))
    torch.testing.assert_close(
        alignment(x, x.roll(1, 0)), alignment(x.float(), x.float().roll(1, 0))
    )


def test_a_collapse_is_said_in_words():
    assert collapse_warning(COLLAPSED_SPREAD, COLLAPSED_RANK, 0.9) is None
    for figures in ((COLLAPSED_SPREAD - 0.01, 100.0), (0.9, COLLAPSED_RANK - 0.1)):
        warning = collapse_warning(*figures, 0.5)
        assert warning is not None
        assert f"spread {figures[0]:.3f}" in warning
        assert f"effective rank {figures[1]:.1f}" in warning
        assert warning.startswith("WARNING: the features have collapsed")
    # What never was a number is no sign of health.
    assert "not finite" in str(collapse_warning(math.nan, 5.0, 0.5))
    assert "not finite" in str(collapse_warning(0.9, math.nan, 0.5))


def test_partners_like_strangers_are_said_to_have_learned_nothing():
    warning = collapse_warning(0.8, 20.0, 0.99)
    assert warning is not None and "nothing is learned yet" in warning and "0.990" in warning
    assert collapse_warning(0.8, 20.0, math.nan) is not None


def test_relative_alignment_is_alignment_over_the_distance_of_any_two_rows():
    torch.manual_seed(0)
    first = torch.randn(20, 8)
    second = first + 0.3 * torch.randn(20, 8)
    z = F.normalize(torch.cat([first, second]), dim=1)
    distance = torch.cdist(z, z).square().sum() / (40 * 39)
    expected = alignment(first, second) / distance
    torch.testing.assert_close(relative_alignment(first, second), expected)
    assert relative_alignment(first, first) == 0
    strangers = relative_alignment(torch.randn(400, 8), torch.randn(400, 8))
    assert strangers == pytest.approx(1, abs=0.1)
    # Drawing all features together lowers the alignment and not this.
    together = torch.tensor([50.0] * 8)
    near = relative_alignment(first + together, second + together)
    assert alignment(first + together, second + together) < 0.01 * alignment(first, second)
    assert 0.3 * relative_alignment(first, second) < near < 3 * relative_alignment(first, second)
