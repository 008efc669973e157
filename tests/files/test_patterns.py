from __future__ import annotations

import re

import pytest

from nnunet_ssp.files.patterns import compile_pattern, is_pattern


@pytest.mark.parametrize(
    "text",
    [
        *("", "(.+)_frame", r"^(\w+)-(\d+)_frame\d{2,}$", "(?:mm1|mm2)-(.+?)_", "(mm1-|mm2-)?.+"),
        *(r"(?P<subject>[^_*+]+)_", r"(?i)p[0-9]{3}", r"(?<=a)b+", r"(\d{3})+", r"([*+?]){3}"),
        *(r"(\*\+\?)+", r"[]*](a)+", r"(a)(b+)c", r"((a+))_", "(abc){2,}", "[(]+(a)+"),
        *("a*b*c*d*e*f*", "x{3}" * 20, ".{0,9}_"),
    ],
)
def test_patterns_of_names_are_taken(text: str):
    assert is_pattern(text) and compile_pattern(text) == re.compile(text)


@pytest.mark.parametrize(
    "text",
    [
        *("(a+)+$", "(a*)*", "(.*.*)*x", "((a+)b)*c", "(?:a+)+", "(a+){9}", "(a?){40}a{40}"),
        *("(a|a)*b", "(?:a|b|ab)+c", "((a|b))+", "(a{1,9}){1,9}", r"(\w+\s?)*$", "(?=(a+)+)b"),
        *("a*" * 7, "a" * 201, ".*" * 50, "a?" * 60, r"([\]a]+)+", r"(\(a+)+"),
    ],
)
def test_what_could_take_long_is_refused(text: str):
    re.compile(text)
    assert not is_pattern(text)
    with pytest.raises(ValueError, match="at most 200 characters and 6 repetitions, without"):
        compile_pattern(text)


@pytest.mark.parametrize("text", ["(", "*", "a{2,1}", "(?P<1>x)", "[", "(" * 200])
def test_what_is_none_is_refused(text: str):
    with pytest.raises(ValueError, match=r"^a regular expression: "):
        compile_pattern(text)


@pytest.mark.parametrize("value", [None, 3, ["a"], b"a"])
def test_only_text_is_a_pattern(value: object):
    assert not is_pattern(value)
