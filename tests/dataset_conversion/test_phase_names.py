from __future__ import annotations

import pytest

from nnunet_ssp.dataset_conversion.phase_names import (
    are_two_phases,
    is_of_frame,
    phase_of,
    time_of,
    without_frame,
)


@pytest.mark.parametrize(
    ("name", "phase", "rest"),
    [
        ("alice_ED", "ED", "alice"),
        ("alice_es", "ES", "alice"),
        ("alice-end-diastole", "ED", "alice"),
        ("alice end_systole", "ES", "alice"),
        ("alice_EndSystolic_sa", "ES", "alice_sa"),
        ("dia_p1", "ED", "p1"),
        ("p1.sys", "ES", "p1"),
        ("p01ED", "ED", "p01"),
        ("aliceES", "ES", "alice"),
        ("ED", "ED", ""),
        ("alice_frame01", "", "alice"),
        ("alice_ES_frame12", "ES", "alice"),
        ("edward", "", "edward"),
        ("mercedes", "", "mercedes"),
        ("MERCEDES", "", "MERCEDES"),
        ("diana_1", "", "diana_1"),
        ("p1_ED_ES", "", "p1_ED_ES"),
        ("timeframes1", "", "timeframes1"),
    ],
)
def test_phases_of_names(name: str, phase: str, rest: str):
    assert (phase_of(name), without_frame(name)) == (phase, rest)
    assert is_of_frame(name) == (rest != name)


def test_names_are_ordered_by_frame_then_by_phase():
    assert sorted(["a_ES", "a_ED"], key=time_of) == ["a_ED", "a_ES"]
    assert sorted(["a_frame12_ED", "a_frame2_ES"], key=time_of) == ["a_frame2_ES", "a_frame12_ED"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_ES", "a_ED"], True),
        (["a_ED", "b_ES"], False),
        (["a_ED", "a_ED"], False),
        (["a_ED", "a_ES", "a_ES"], False),
        (["a_ED", "a"], False),
    ],
)
def test_two_phases_of_one_name(names: list[str], expected: bool):
    assert are_two_phases(names) is expected
