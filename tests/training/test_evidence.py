from __future__ import annotations

from nnunet_ssp.methods import METHODS
from nnunet_ssp.training import evidence


def test_what_was_measured_is_said_with_its_data(monkeypatch):
    row = {"method": "Dense", "data": "nine hearts", "seeds": "3"}
    rows = [
        {**row, "labelled": "2", "scratch": "0.400", "pretrained": "0.500"},
        {**row, "labelled": "5", "scratch": "0.600", "pretrained": "0.650"},
        {**row, "data": "two", "labelled": "5", "scratch": "0.700", "pretrained": "0.710"},
    ]
    monkeypatch.setattr(evidence, "read_measured", lambda: rows)
    assert evidence.gain_in_words("Dense") == (
        "measured: Dense, mean 3D Dice 0.500 against 0.400 with 2 labelled patients, "
        "0.650 against 0.600 with 5 labelled patients, on nine hearts; "
        "0.710 against 0.700 with 5 labelled patients, on two; yours will differ, see docs/results.md"
    )
    assert evidence.gain_in_words("PCL") == (
        "measured: no gain of PCL over training from scratch yet, see docs/results.md"
    )


def test_the_table_names_known_methods_and_real_scores():
    rows = evidence.read_measured()
    assert {row["method"] for row in rows} <= {method.__name__ for method in METHODS}
    assert {row["method"] for row in rows} >= {"Dense"}
    for row in rows:
        assert 0 < float(row["scratch"]) < 1 and 0 < float(row["pretrained"]) < 1
