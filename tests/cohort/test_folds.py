from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.cohort import folds as splits
from nnunet_ssp.cohort.cases import Case, case_name
from nnunet_ssp.cohort.folds import (
    Fold,
    draw_slices,
    draw_subjects,
    is_from,
    make_fold,
    merge,
    restrict,
    subsets,
)
from nnunet_ssp.cohort.membership import shuffled, subjects_of

names = st.sets(st.text("ABC0123456789-", min_size=1, max_size=6), min_size=1, max_size=80)
VENDORS = ("SIEMENS", "Philips Medical Systems", "GE MEDICAL SYSTEMS", "Canon")


def make_cases(
    subjects: dict[str, str],
    source: str = "mm1",
    split: str = "train",
    phases: tuple[str, ...] = ("ED", "", "ES"),
) -> dict[str, Case]:
    """Frames of subjects with the given vendors."""
    return {
        case_name(subject, frame, source): Case(
            case=case_name(subject, frame, source),
            subject=subject,
            source=source,
            source_frame=frame,
            split=split,
            frame=frame,
            n_frames=len(phases),
            phase=phase,
            base="first",
            vendor=vendor,
            centre="1",
            scanner="",
            field="1.5",
            pathology="",
        )
        for subject, vendor in subjects.items()
        for frame, phase in enumerate(phases)
    }


def numbered(n: int) -> dict[str, str]:
    """Subjects of all vendors."""
    return {f"S{number:03}": VENDORS[number % 4] for number in range(n)}


def keys(subjects: dict[str, str]) -> set[str]:
    return {f"mm1-{subject}" for subject in subjects}


# -- drawing ---------------------------------------------------------------------------------------


@given(names, st.integers(0, 2**32 - 1))
def test_the_shuffle_is_numpys_legacy_one_and_touches_no_global_state(
    subjects: set[str], seed: int
):
    before = np.random.get_state()
    order = shuffled(subjects, seed)
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    try:
        np.random.seed(seed)
        expected = sorted(subjects)
        np.random.shuffle(expected)
    finally:
        np.random.set_state(before)
    assert order == expected == shuffled(reversed(sorted(subjects)), seed)


@given(names.filter(lambda subjects: len(subjects) > 1), st.integers(0, 99), st.data())
def test_subsets_of_subjects_are_nested(subjects: set[str], seed: int, data: st.DataObject):
    sizes = sorted(data.draw(st.lists(st.integers(1, len(subjects)), min_size=2)))
    drawn = [set(draw_subjects(subjects, n, seed)) for n in sizes]
    assert [len(chosen) for chosen in drawn] == sizes
    assert all(small <= large for small, large in pairwise(drawn))
    assert drawn[-1] <= subjects


@pytest.mark.parametrize(
    ("vendor", "wanted", "expected"),
    [
        ("GE MEDICAL SYSTEMS", ["GE"], True),
        ("SIEMENS", ["Philips", "siemens"], True),
        ("Philips", ["Siemens"], False),
        ("unknown", [], False),
    ],
)
def test_vendors_are_known_by_their_beginning(vendor: str, wanted: list[str], expected: bool):
    assert is_from(vendor, wanted) is expected


# -- folds made from another -----------------------------------------------------------------------

CASES = make_cases(numbered(12))
BASE = make_fold("base", keys(dict(list(numbered(12).items())[:8])), keys(numbered(12)), CASES, "x")
FOLD = Fold("base", BASE.train, tuple(n for n in BASE.val if n not in BASE.train), "x")


def test_a_fold_holds_labelled_frames_of_training_subjects():
    cases = make_cases({"A": "GE", "B": "GE"}) | make_cases({"T": "GE"}, split="test")
    fold = make_fold("f", {"mm1-A", "mm1-T"}, {"mm1-B"}, cases, "x")
    assert fold.train == ("mm1-A_frame00", "mm1-A_frame02")
    assert make_fold("f", {"mm1-A"}, {"mm1-B"}, cases, "x", "ES").val == ("mm1-B_frame02",)


def test_a_restriction_holds_on_both_sides():
    kept = restrict(FOLD, CASES, ["ge", "Philips"], "ED")
    assert kept.name == "base-ge+Philips-ED"
    assert kept.source == "ge+Philips, ED of base"
    for before, after in ((FOLD.train, kept.train), (FOLD.val, kept.val)):
        chosen = [CASES[name] for name in before]
        assert after == tuple(
            case.case for case in chosen if case.phase == "ED" and case.vendor[:2] in ("GE", "Ph")
        )


def test_an_empty_restriction_is_refused():
    with pytest.raises(
        ValueError, match=r"`vendors` \(=Toshiba\) must be among those of fold base: Canon, GE MED"
    ):
        restrict(FOLD, CASES, ["Siemens", "Toshiba"])
    fold = Fold("f", FOLD.train, tuple(n for n in FOLD.val if CASES[n].phase == "ED"), "x")
    with pytest.raises(ValueError, match="ES of f: no validation frame would be left"):
        restrict(fold, CASES, phase="ES")


@given(
    st.lists(st.integers(1, 8) | st.floats(0.01, 1.0), min_size=1, max_size=4),
    st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
)
def test_subsets_keep_the_validation_and_whole_subjects(
    amounts: list[int | float], seeds: list[int]
):
    for fold in subsets(FOLD, CASES, amounts, seeds):
        assert fold.val == FOLD.val
        chosen = subjects_of(fold.train, CASES)
        assert fold.train == tuple(n for n in FOLD.train if CASES[n].subject_key in chosen)
        n = int(fold.name.split("-nr")[1].split("-")[0])
        assert len(chosen) == n
        seed = int(fold.name.rpartition("seed")[2])
        assert sorted(chosen) == draw_subjects(subjects_of(FOLD.train, CASES), n, seed)


def test_fractions_round_like_those_of_kalapos():
    """Their 1,498 slices: .001 .002 .005 .01 .02 .05 .1 .2 .5 1 are 1, 3, 7, ... slices."""
    fractions = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    parts = [splits.part_of(fraction, 1498) for fraction in fractions]
    assert parts == [1, 3, 7, 15, 30, 75, 150, 300, 749, 1498]
    assert splits.part_of(0.01, 8) == 1


@given(
    st.dictionaries(st.text("ABC", min_size=1, max_size=5), st.integers(1, 20), min_size=1),
    st.integers(0, 99),
    st.data(),
)
def test_slices_come_in_whole_frames_and_nested(
    n_slices: dict[str, int], seed: int, data: st.DataObject
):
    total = sum(n_slices.values())
    few, many = sorted(data.draw(st.tuples(st.integers(1, total), st.integers(1, total))))
    small, large = (draw_slices(n_slices, n, seed) for n in (few, many))
    assert set(small) <= set(large)
    for n, drawn in ((few, small), (many, large)):
        held = sum(n_slices[name] for name in drawn)
        last = shuffled(n_slices, seed)[len(drawn) - 1]
        assert held - n_slices[last] < n <= held
    assert draw_slices(n_slices, total, seed) == sorted(n_slices)


def test_subsets_by_slices_are_named_by_slices():
    n_slices = {name: 10 for name in FOLD.train}
    made = subsets(FOLD, CASES, [0.1, 16, 25], [0], n_slices)
    assert [(fold.name, len(fold.train)) for fold in made] == [
        ("base-slices16-seed0", 2),
        ("base-slices25-seed0", 3),
    ]
    assert made[0].source == "16 slices of base, seed 0 (20 held, in whole frames)"


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (9, r"a subset \(=9\) must be within 1 to 8, the number of training subjects"),
        (0, r"a subset \(=0\) must be within 1 to 8"),
        (0.0, r"a fraction \(=0.0\) must be above 0 and at most 1"),
        (1.5, r"a fraction \(=1.5\) must be above 0 and at most 1"),
    ],
)
def test_impossible_subsets_are_refused(amount: int | float, message: str):
    with pytest.raises(ValueError, match=message):
        subsets(FOLD, CASES, [amount], [0])


def test_too_many_slices_are_refused():
    with pytest.raises(ValueError, match=r"\(=161\) must be within 1 to 160, the number of train"):
        subsets(FOLD, CASES, [161], [0], {name: 10 for name in FOLD.train})


def test_folds_are_appended_and_replaced_only_when_told():
    first, second = Fold("a", ("x",), ("y",), "1"), Fold("b", ("x",), ("y",), "1")
    other = Fold("a", ("y",), ("x",), "2")
    assert merge([first], [second]) == [first, second]
    # The same cases from elsewhere are no change.
    assert merge([first], [Fold("a", ("x",), ("y",), "2"), second]) == [first, second]
    with pytest.raises(ValueError, match="the name a is taken by fold 0, which has other cases"):
        merge([first], [second, other])
    assert merge([first, second], [other], overwrite=True) == [other, second]


# -- nnU-Net's own folds ---------------------------------------------------------------------------
