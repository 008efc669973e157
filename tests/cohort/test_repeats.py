from __future__ import annotations

import pytest

from nnunet_ssp.cohort.repeats import continuing_names, doubts, shared_prefixes


@pytest.mark.parametrize(
    ("train", "val", "shared"),
    [
        (
            ["patient_001_frame01"],
            ["patient_001_frame09"],
            [],
        ),  # one subject: nothing to compare with
        (["p_001_f1", "p_002_f1"], ["p_001_f9", "p_003_f1"], ["p_001"]),
        (["p_001", "p_002"], ["p_003", "p_004"], []),  # a habit of naming, not a subject
        (["a-1", "b-1"], ["a-2", "c-1"], ["a"]),
        (["x"], ["y"], []),
    ],
)
def test_shared_prefixes(train, val, shared):
    assert shared_prefixes(train, val) == shared


@pytest.mark.parametrize(
    ("end", "way"),
    [("_frame0{}", "subject_pattern=(.+)_frame in nnUNet"), ("_{}", "(docs/data.md)")],
)
def test_a_shared_prefix_is_spoken_of_with_the_way_out(end: str, way: str):
    (said,) = doubts(["p1" + end.format(1), "p2" + end.format(4)], ["p1" + end.format(7)])
    assert "share a prefix, e.g. p1 (1 such prefix)" in said and way in said


GENIUS = ("genius_0800", "genius_0801")


@pytest.mark.parametrize(
    ("train", "val", "pairs"),
    [
        (["genius_0800"], ["genius_0801"], [GENIUS]),
        (["genius_0800", "genius_0900"], ["genius_0801", "genius_0950"], [GENIUS]),
        (["genius_0801", "genius_0900"], ["genius_0800"], [GENIUS[::-1]]),
        (["genius_0800_rest"], ["genius_0801_rest"], [("genius_0800_rest", "genius_0801_rest")]),
        (["genius_0800", "genius_0801"], ["genius_0900", "genius_0901"], []),  # one side each
        (["genius_0800"], ["ingenius_0801"], []),
        ([f"p_{n:03d}" for n in range(1, 9)], ["p_009", "p_010"], []),  # a habit of numbering
        ([f"patient{n}" for n in range(101, 141)], [f"patient{n}" for n in range(141, 151)], []),
        ([f"s{n}" for n in range(1, 150, 2)], [f"s{n}" for n in range(2, 150, 2)], []),
        (["s1_frame00"], ["s1_frame07"], []),  # found by its prefix where others have none
        (["a", "b"], ["c"], []),
        ([], [], []),
    ],
)
def test_names_that_continue(train: list[str], val: list[str], pairs: list[tuple[str, str]]):
    assert continuing_names(train, val) == pairs


def test_numbers_by_chance_tell_nothing():
    """A subset of 60 of 200 numbers, drawn by chance: some follow each other."""
    import numpy as np

    for seed in range(20):
        numbers = np.random.default_rng(seed).permutation(200)[:60] + 1
        names = [f"case_{n:03d}" for n in numbers]
        assert continuing_names(names[:48], names[48:]) == []
