from __future__ import annotations

import argparse

import pytest

from nnunet_ssp.cohort.arguments import add_arguments


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser


def test_sizes_are_numbers_and_fractions(parser: argparse.ArgumentParser):
    assert parser.parse_args(["114", "--subsets", "50", "0.1", "1.0"]).amounts == [50, 0.1, 1.0]


def test_pairs_of_different_people_add_up(parser: argparse.ArgumentParser):
    words = ["114", "--check", "--different", "A", "B", "--different", "C", "D"]
    assert parser.parse_args(words).different == [["A", "B"], ["C", "D"]]


def test_what_is_no_size(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parser.parse_args(["114", "--subsets", "x"])
    assert "x is neither a number nor a fraction" in capsys.readouterr().err
