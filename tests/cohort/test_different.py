"""Subjects that look alike: what the figure means, and how to say that they are different people."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.cohort.different import MEANING, declared, lines_on_pairs

A, B, C = (("A", Path("/x/a.nii.gz")), ("B b", Path("/my x/b.nii.gz")), ("C", Path("c.nii.gz")))


def test_threshold_meaning_images_and_the_way_out():
    meaning, *looks, way = lines_on_pairs([(A, B), (A, C)], "Dataset114_M", None, [("C", "D")])
    assert meaning == MEANING
    assert "0.75 or more is taken for one heart" in MEANING
    assert "two patients had at most 0.62, two phases of one patient at least 0.90" in MEANING
    assert looks == [
        "look at both, in a viewer such as ITK-SNAP: /x/a.nii.gz '/my x/b.nii.gz'",
        "look at both, in a viewer such as ITK-SNAP: /x/a.nii.gz c.nii.gz",
    ]
    assert way == (
        "A and B b are different people, or one? If different: nnunet-ssp folds Dataset114_M --check "
        "--different C D --different A 'B b'"
    )
    assert "--check --subject-pattern '(.)'" in lines_on_pairs([(A, B)], "x", "(.)", [])[-1]
    assert lines_on_pairs([], "x", None, []) == []


def test_many_pairs_are_not_all_shown():
    assert len(lines_on_pairs([(A, B)] * 9, "x", None, [])) == 5


def test_a_name_must_be_a_subject():
    assert declared([("A", "B")], {"A", "B", "C"}) == {frozenset("AB")}
    with pytest.raises(ValueError, match=r"--different mm1-X: no subject is called so\. Perhaps"):
        declared([("mm1-A", "mm1-X")], {"mm1-A"})
    with pytest.raises(ValueError, match=r"^--different A A: the two must be different subjects\."):
        declared([("A", "B"), ("A", "A")], {"A", "B"})
