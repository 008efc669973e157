from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nnunet_ssp.evaluation import signed_rank
from nnunet_ssp.evaluation.signed_rank import signed_rank_p


def by_enumeration(gains: list[int]) -> Fraction:
    """Compute the p value by counting all 2^n signs of the gains other than 0."""
    sizes = [abs(gain) for gain in gains if gain]
    # A mean rank, counted twice: twice those below, and those equal plus one.
    ranks = [2 * sum(s < size for s in sizes) + sizes.count(size) + 1 for size in sizes]
    observed = sum(r for r, gain in zip(ranks, filter(None, gains), strict=True) if gain > 0)
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in product((0, 1), repeat=len(ranks))
    ]
    return Fraction(sum(s >= observed for s in sums), len(sums))


@given(st.lists(st.integers(-4, 4), max_size=11))
def test_ties_and_zeros_are_exact(gains: list[int]):
    assert signed_rank_p(np.array(gains, float)) == pytest.approx(
        float(by_enumeration(gains)), rel=1e-12
    )


@pytest.mark.parametrize("n", [6, 14, 30, 50])
def test_without_ties_it_is_scipys_exact_test(n: int):
    gains = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.wilcoxon(gains, alternative="greater", method="exact").pvalue
    assert signed_rank_p(gains) == pytest.approx(expected, rel=1e-9)


def test_one_tied_pair_does_not_change_the_method():
    """14 subjects that all gain have one sign pattern of 2^14, whatever their ties."""
    gains = np.arange(1.0, 15)
    gains[3] = gains[4]
    assert signed_rank_p(gains) == 2**-14
    assert stats.wilcoxon(gains, alternative="greater").pvalue > 5 * 2**-14  # approximate


def test_no_gain_at_all():
    assert signed_rank_p(np.zeros(8)) == 1
    assert signed_rank_p(np.array([])) == 1


def test_many_subjects_take_the_approximation_which_agrees(monkeypatch: pytest.MonkeyPatch):
    gains = np.round(np.random.default_rng(1).normal(0.1, 1, 400), 1)
    exact = signed_rank_p(gains)
    monkeypatch.setattr(signed_rank, "EXACT", 100)
    assert signed_rank_p(gains) == pytest.approx(exact, rel=0.02)
    assert signed_rank_p(gains) == pytest.approx(
        stats.wilcoxon(gains, alternative="greater", correction=False, method="asymptotic").pvalue
    )
