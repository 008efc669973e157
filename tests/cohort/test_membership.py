"""Subjects that pretrain, that are held out, and that are tested on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.cohort import membership
from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.cohort.membership import (
    Sides,
    held_out,
    is_trainable,
    members_in_words,
    pretraining_cases,
    share_of,
    sides,
    subjects_by_case,
    subjects_of,
    superset_of,
)


def case(subject: str, frame: int, phase: str = "", split: str = "train") -> Case:
    return Case(
        case=f"{subject}_frame{frame:02d}",
        subject=subject,
        source="mm1",
        source_frame=frame,
        split=split,
        frame=frame,
        n_frames=3,
        phase=phase,
        base="first",
        vendor="Siemens",
        centre="1",
        scanner="",
        field="1.5",
        pathology="",
    )


# A and B are labelled at ED and have other frames, U is unlabelled only, T is for the test.
ROWS = [
    *(case("A", i, "ED" if i == 0 else "") for i in range(3)),
    *(case("B", i, "ED" if i == 0 else "") for i in range(3)),
    *(case("U", i) for i in range(2)),
    case("T", 0, "ED", "test"),
]
CASES = {row.case: row for row in ROWS}
STORED = [name for name, row in CASES.items() if row.split == "train"]


def test_a_fold_holds_out_every_frame_of_its_validation_subjects():
    chosen = sides(STORED, ["B_frame00"], CASES)
    assert chosen.train == ["A_frame00", "A_frame01", "A_frame02", "U_frame00", "U_frame01"]
    assert chosen.val == ["B_frame00", "B_frame01", "B_frame02"]
    assert (chosen.held_out, chosen.drawn) == ({"mm1-B"}, {"mm1-A", "mm1-U"})


def test_subjects_without_labels_train_in_every_fold():
    for validation in (["A_frame00"], ["B_frame00"], ["A_frame00", "B_frame00"]):
        assert {"U_frame00", "U_frame01"} <= set(sides(STORED, validation, CASES).train)


def test_a_fold_with_few_labels_still_pretrains_on_everyone_else():
    # The label subset's training side does not matter: only who is validated on is left out.
    few, all_labels = (sides(STORED, ["B_frame00"], CASES) for _ in range(2))
    assert few.train == all_labels.train


def test_fold_all_holds_nobody_out():
    chosen = sides(STORED, (), CASES)
    assert chosen.train == STORED
    assert chosen.val == []


def test_without_a_table_each_case_is_a_subject():
    chosen = sides(["x_1", "x_2", "y_1"], ["x_1"], {})
    assert (chosen.train, chosen.val) == (["x_2", "y_1"], ["x_1"])


def test_a_pattern_tells_who_is_who_without_a_table():
    chosen = sides(["x_1", "x_2", "y_1"], ["x_1"], {}, pattern="(.+)_")
    assert (chosen.train, chosen.val) == (["y_1"], ["x_1", "x_2"])


def test_the_table_comes_before_the_pattern():
    assert subjects_by_case(["A_frame00"], CASES, "nothing here") == {"A_frame00": "mm1-A"}


def test_a_pattern_that_finds_nobody_is_refused():
    with pytest.raises(ValueError, match="must match"):
        sides(["x_1"], (), {}, pattern="(z+)_")


def test_test_subjects_are_found_in_a_store():
    assert membership.test_subjects(CASES) == {"mm1-T"}
    membership.check_stored(subjects_by_case(STORED, CASES), CASES, Path("store"))
    with pytest.raises(ValueError, match="store: test subject T must not be in the slice store"):
        membership.check_stored(subjects_by_case(CASES, CASES), CASES, Path("store"))


def test_stored_cases_must_be_known_where_there_is_a_table():
    with pytest.raises(ValueError, match=r"store: x is not in cases.csv \(2 such cases\): run"):
        membership.check_stored(
            {"x": "x", "y": "y", **dict.fromkeys(STORED, "A")}, CASES, Path("store")
        )
    membership.check_stored({"x": "x"}, {}, Path("store"))


def test_a_fold_may_hold_labelled_training_frames():
    assert [name for name, row in CASES.items() if is_trainable(row)] == ["A_frame00", "B_frame00"]
    assert subjects_of(["A_frame01", "U_frame00"], CASES) == {"mm1-A", "mm1-U"}


subjects = st.dictionaries(st.text("abc123_", min_size=1, max_size=6), st.sampled_from("ABCDE"))


@given(subjects, st.sets(st.sampled_from("ABCDE")))
def test_nobody_is_on_two_sides(subject: dict[str, str], excluded: set[str]):
    drawn = set(subject.values()) - excluded
    chosen = Sides(subject, excluded, drawn)
    assert sorted([*chosen.train, *chosen.val]) == sorted(subject)
    assert not {subject[name] for name in chosen.train} & {subject[name] for name in chosen.val}
    assert chosen.train == pretraining_cases(subject, excluded)


@given(st.sets(st.text("abc", min_size=1), min_size=1), st.integers(0, 5))
def test_shares_are_nested(people: set[str], seed: int):
    parts = [share_of(people, fraction, seed) for fraction in (0.01, 0.3, 0.7, 1.0)]
    assert [len(part) for part in parts] == [
        max(1, round(f * len(people))) for f in (0.01, 0.3, 0.7, 1)
    ]
    assert all(small <= large for small, large in pairwise(parts))
    assert parts[-1] == people


def test_supersets_hold_the_labelled_and_are_nested():
    people = [f"p{n}" for n in range(12)]
    own = people[:4]
    parts = [superset_of(own, people, factor, 0) for factor in (1, 1.5, 2, 3)]
    assert [len(part) for part in parts] == [4, 6, 8, 12]
    assert parts[0] == set(own)
    assert all(small < large for small, large in pairwise(parts))
    assert len({frozenset(superset_of(own, people, 1.5, seed)) for seed in range(9)}) > 1
    # Labelled subjects who are held out are not drawn.
    assert superset_of(own, people[1:], 1, 0) == set(people[1:4])
    with pytest.raises(ValueError, match=r"asks for 12 subjects besides the 4 .*the most is 3\."):
        superset_of(own, people, 4, 0)
    with pytest.raises(ValueError, match=r"besides the 0 with labels.*without labels none"):
        superset_of([], people, 1, 0)


def test_a_pretraining_sees_the_superset_of_its_fold():
    chosen = sides(STORED, ["B_frame00"], CASES, superset=1, labelled=["A_frame00"])
    assert chosen.drawn == {"mm1-A"}
    said = members_in_words(chosen, dict.fromkeys(STORED, 10), CASES, 0, Path("store"))
    assert said[1] == "data_superset=1: 1 of 2 training subjects, drawn with seed=0"
    assert sides(STORED, ["B_frame00"], CASES, superset=2, labelled=["A_frame00"]).drawn == {
        "mm1-A",
        "mm1-U",
    }


def test_held_out_subjects_are_those_of_the_list():
    assert held_out(["A_frame00", "B_frame00", "A_frame01"], CASES) == {"mm1-A", "mm1-B"}


def test_the_log_says_who_is_in_and_who_is_out():
    chosen = sides(STORED, ["B_frame00"], CASES, fraction=0.5, seed=3)
    said = members_in_words(chosen, dict.fromkeys(STORED, 10), CASES, 0, Path("store"))
    (drawn,) = chosen.drawn
    frames = len(chosen.train)
    assert said[0] == "Slice store store: 3 subjects, 8 frames, 80 slices"
    assert said[1] == "data_fraction=0.5: 1 of 2 training subjects, drawn with seed=3"
    assert said[2] == f"Fold 0 trains on 1 subject, {frames} frames, {10 * frames} slices"
    assert any(line.endswith(f": {drawn.removeprefix('mm1-')}") for line in said[3:5])
    assert said[5:] == [
        "  left out for validation: B (1 subject, 3 frames, 30 slices)",
        "  test subjects, never in the store: T",
    ]


def test_the_log_of_a_plain_dataset():
    said = members_in_words(sides(["x", "y"], (), {}), {"x": 1, "y": 2}, {}, "all", Path("store"))
    assert said == [
        "Slice store store: 2 subjects, 2 frames, 3 slices",
        "Fold all trains on 2 subjects, 2 frames, 3 slices",
        "  left out for validation: nobody",
        "  test subjects, never in the store: none known",
    ]


def test_the_labels_of_a_fold_are_counted_by_subject():
    from nnunet_ssp.cohort.membership import count_for_advice

    cases = ["a", "b", "c", "d", "e", "f"]
    splits = [{"train": ["a", "b", "x"], "val": ["c"]}]
    assert count_for_advice(0, cases, splits, {}) == (2, False)
    assert count_for_advice("all", cases, splits, {}) == (6, False)
    assert count_for_advice("0", cases, [], {}) == (4, False)  # nnU-Net's own five folds
