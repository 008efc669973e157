from __future__ import annotations

import struct

import pytest
from pydicom.dataset import Dataset

from nnunet_ssp.conversion.dicom.values import (
    brief,
    day_of,
    numbers_of,
    seconds_of,
    texts_of,
    value_of,
)


@pytest.mark.parametrize(
    "value",
    [
        [1.5, 1.25],
        "1.5\\1.25",
        "1.5\\1.25 ",
        " 1.5 \\ 1.25\0",
        "1,5\\1,25",
        "[1.5, 1.25]",
        "[1.5\\1.25]",
        "(1.5; 1.25)",
        "1.5 1.25",
        "1.5,1.25",
        "1,5; 1,25",
        "1.5mm\\1.25 mm",
        "+15e-1\\1.25D0",
        "'1.5'\\'1.25'",
        ["1,5", "1.25"],
        b"1.5\\1.25 ",
        struct.pack("<2d", 1.5, 1.25),
        struct.pack("<2f", 1.5, 1.25),
    ],
)
def test_two_numbers_in_any_spelling(value):
    assert numbers_of(value, 2) == (1.5, 1.25)


@pytest.mark.parametrize(
    "value",
    [
        "1,4",
        "1.5",
        "1.5\\",
        "a\\b",
        "nan\\1",
        "1e999\\1",
        "1_0\\2",
        "١\\٢",
        b"\xff",
        "1.234,5\\1",
        "",
    ],
)
def test_what_can_be_read_in_two_ways_or_none_is_not_read(value):
    assert numbers_of(value, 2) == ()


@pytest.mark.parametrize(
    ("value", "number"), [("3.0", 3), (7, 7), ("1,4", 1.4), (b"12", 12), (b"\x40\x01", 320)]
)
def test_one_number(value, number: float):
    assert numbers_of(value, 1) == (number,)


def test_not_finite_is_no_number():
    assert numbers_of(float("nan"), 1) == numbers_of([1.0, float("inf")], 2) == ()


def test_a_value_of_another_kind_than_its_vr():
    dataset = Dataset()
    dataset.add_new(0x00280030, "UT", "1.5\\1.25")
    assert value_of(dataset, "PixelSpacing") == "1.5\\1.25"
    assert value_of(dataset, "Rows") is None
    dataset.add_new(0x00200010, "SH", "")
    assert value_of(dataset, "StudyID") is None


def test_texts():
    assert texts_of("a\\b ") == texts_of(["a", "b\0"]) == texts_of(b"a\\b") == ["a", "b"]
    assert texts_of(101500.25) == ["101500.25"]


def test_values_in_messages_are_short_and_printable():
    assert brief("x" * 99) == "x" * 37 + "..."
    assert brief("a\nb") == "a?b"
    assert brief([1.5, 0.0]) == "1.5\\0"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("101500.25", 36900.25),
        ("10:15:00.25", 36900.25),
        ("93012,5", 34212.5),
        ("1015", 36900),
        ("noon", None),
        ("", None),
    ],
)
def test_times(text: str, seconds: float | None):
    assert seconds_of(text) == seconds


def test_days():
    assert day_of("20200102") == day_of("2020.01.02") == day_of("20200101") + 1
    assert day_of("20201399") is day_of("") is None
