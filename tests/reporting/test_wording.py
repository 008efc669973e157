from __future__ import annotations

import math

import pytest

from nnunet_ssp.reporting.page import GAP
from nnunet_ssp.reporting.wording import interval, limits, listing, p_value, rounded


@pytest.mark.parametrize(
    ("words", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_the_last_of_a_list_follows_an_and(words: list[str], text: str):
    assert listing(words) == text


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [(0.85, 3, "0.850"), (12.34, 1, "12.3"), (-0.0004, 3, "0.000"), (-0.0006, 3, "-0.001")],
)
def test_numbers_are_rounded_and_zero_has_no_sign(number: float, digits: int, text: str):
    assert rounded(number, digits) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0009, "<0.001"), (0.001, "0.001"), (0.05, "0.050"), (1.0, "1.000")]
)
def test_small_p_values_are_bounds(value: float, text: str):
    assert p_value(value) == text


def test_the_interval_of_a_difference_has_signs():
    row = {"low": -0.0214, "high": 0.1, "dice_low": 0.8, "dice_high": 0.9006}
    assert interval(row) == "-0.021 to +0.100"
    assert interval(row, "dice") == "0.800–0.901"


def test_a_number_that_is_not_known_is_a_dash():
    unknown = {"low": math.nan, "high": math.nan}
    assert rounded(math.nan, 3) == p_value(math.nan) == interval(unknown) == GAP


def test_limits_of_one_subject_are_a_dash():
    assert limits(-3.14, 4.0) == "-3.1 to 4.0"
    assert limits(math.nan, math.nan) == GAP
