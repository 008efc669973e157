from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.setting_values import as_word, parse_value

KINDS = int | float | bool | Literal["auto"] | None


@given(
    st.one_of(
        st.integers(-(10**17), 10**17),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
    )
)
def test_what_is_written_is_read_again(value):
    kind = type(value)
    found = parse_value("x", as_word(value), kind)
    assert found == value
    assert type(found) is kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none", None), ("YES", True), ("no", False), ("auto", "auto"), ("7", 7), ("7.", 7.0)],
)
def test_a_union_takes_the_first_kind_that_fits(text, expected):
    found = parse_value("x", text, KINDS)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["1_0", "inf", "nan", "\u0663", "1e400", "", "0x10", "maybe"])
def test_what_is_no_number_is_refused_by_name(text):
    with pytest.raises(
        ValueError, match=r"`x` \(=.*\) must be an integer or a number or yes or no or auto or none"
    ):
        parse_value("x", text, KINDS)
