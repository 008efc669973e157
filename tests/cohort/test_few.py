from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.cohort.few import SEEDS, SIZES, draw_evenly, few_folds, number_of, side_of
from nnunet_ssp.cohort.membership import held_out, pretraining_cases, subjects_by_case


def name(number: int) -> str:
    return f"patient{number:03d}"


def acdc(last: int = 60) -> dict[str, Case]:
    """Return ED and ES of ACDC's first patients, divided as `convert acdc --few` does."""
    cases = [
        Case(
            **{"case": f"{name(n)}_frame{frame:02d}", "subject": name(n), "source": "acdc"},
            **{"source_frame": frame + 1, "frame": frame, "n_frames": 20, "base": "first"},
            **dict.fromkeys(("vendor", "centre", "scanner", "field", "pathology"), ""),
            phase=phase,
            split="test" if side_of(name(n)) == "report" else "train",
        )
        for n in range(1, last + 1)
        for frame, phase in ((0, "ED"), (9, "ES"))
    ]
    return {case.case: case for case in cases}


def numbers(names: tuple[str, ...], cases: dict[str, Case]) -> set[int]:
    return {number_of(cases[case].subject) for case in names}


def test_the_sides_of_the_sixty_patients():
    sides = {
        side: [n for n in range(1, 61) if side_of(name(n)) == side]
        for side in ("train", "choose", "report")
    }
    assert sides["train"] == [*range(1, 14), *range(21, 34), *range(41, 54)]
    assert sides["choose"] == [14, 15, 16, 34, 35, 36, 54, 55, 56]
    assert sides["report"] == [17, 18, 19, 20, 37, 38, 39, 40, 57, 58, 59, 60]


def test_the_patients_of_the_challenges_test_are_reported_on():
    assert {side_of(name(n)) for n in range(101, 151)} == {"report"}
    whole = few_folds(acdc(150))
    assert len(numbers(whole[0].train, acdc(150))) == 65
    assert len(numbers(whole[0].val, acdc(150))) == 15


def test_the_folds():
    cases = acdc()
    whole, *subsets = few_folds(cases)
    assert whole.name == "few"
    assert numbers(whole.train, cases) == {n for n in range(1, 61) if side_of(name(n)) == "train"}
    assert [fold.name for fold in subsets] == [
        f"few-nr{n}-seed{seed}" for n in SIZES for seed in SEEDS
    ]
    for fold in subsets:
        assert fold.val == whole.val
        assert set(fold.train) < set(whole.train)
        assert len(fold.train) == 2 * len(numbers(fold.train, cases))


def test_a_subset_that_was_drawn_before_stays_as_it_is():
    drawn = {fold.name: numbers(fold.train, acdc()) for fold in few_folds(acdc())}
    assert drawn["few-nr5-seed0"] == {9, 23, 26, 42, 51}


def test_pretraining_sees_no_choosing_and_no_report_patient():
    cases = acdc()
    whole = few_folds(cases)[0]
    stored = [case.case for case in cases.values() if case.split == "train"]
    subjects = subjects_by_case(stored, cases)
    seen = pretraining_cases(subjects, held_out(whole.val, cases))
    assert {side_of(cases[case].subject) for case in seen} == {"train"}


@given(st.sets(st.integers(1, 100), min_size=1), st.integers(0, 2**32 - 1))
def test_subsets_are_nested_and_even(patients: set[int], seed: int):
    subjects = {name(n) for n in patients}
    order = draw_evenly(subjects, seed)
    assert sorted(order) == sorted(subjects)
    assert order == draw_evenly(sorted(subjects, reverse=True), seed)
    available = Counter((n - 1) // 20 for n in patients)
    for n in range(1, len(order) + 1):
        drawn = Counter((number_of(subject) - 1) // 20 for subject in order[:n])
        most = max(drawn.values())
        # A block has one patient less than the others only if it comes later, and fewer only if it has no more.
        assert all(drawn[b] >= min(most - 1, available[b]) for b in available)


def test_the_seed_decides():
    assert len({tuple(draw_evenly(map(name, range(1, 61)), seed)[:5]) for seed in range(5)}) == 5


def test_what_is_no_dataset_for_this_split():
    cases = acdc()
    one = next(case for case in cases.values() if case.subject == name(17))
    with pytest.raises(ValueError, match=r"patient017 must be test subjects.*acdc --few"):
        few_folds(cases | {one.case: replace(one, split="train")})
    with pytest.raises(
        ValueError, match="made for ACDC, by its patients' numbers; this dataset is of M&Ms"
    ):
        few_folds(cases | {one.case: replace(one, source="mm1")})
    with pytest.raises(ValueError, match="must have labelled patients"):
        few_folds(acdc(13))
    with pytest.raises(ValueError, match=r"A1B2: the split `few` is made for ACDC"):
        side_of("A1B2")
