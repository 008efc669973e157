from __future__ import annotations

import pytest

from nnunet_ssp.dataset_conversion.visit_names import remarks_on_visits, without_visit


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("PAT1_2019", "PAT1"),
        ("PAT1_20210304", "PAT1"),
        ("2021-03-04 PAT1", "PAT1"),
        ("sub-01_ses-02", "sub-01"),
        ("p1.Visit2", "p1"),
        ("p1_follow-up", "p1"),
        ("p1_FU_12", "p1"),
        ("p1_pre", "p1"),
        ("p1_v2", "p1"),
        # No visits
        ("patient001", "patient001"),
        ("S2_3", "S2_3"),
        ("precious_1", "precious_1"),
        ("p12019", "p12019"),
        ("1234", "1234"),
        ("2019", "2019"),
        ("v1", "v1"),
    ],
)
def test_what_tells_a_visit(name: str, rest: str):
    assert without_visit(name) == rest


def test_visits_of_a_patient_are_named():
    (said,) = remarks_on_visits(["PAT1_2019", "PAT1_2021", "PAT2_2019", "q_baseline", "q"])
    assert "visits of one patient: PAT1_2019, PAT1_2021; q_baseline, q. Each" in said
    names = [f"p{n}_v{visit}" for n in range(8) for visit in (1, 2)]
    assert "p4_v1, p4_v2; and 3 more." in remarks_on_visits(names)[0]


def test_no_visits_no_warning():
    assert (
        remarks_on_visits(["2019", "2020", "v1", "v2", "p1", "p2", "PAT1_2019", "PAT2_2019"]) == []
    )
