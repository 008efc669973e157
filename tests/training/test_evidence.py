from __future__ import annotations

from dataclasses import asdict

from nnunet_ssp.methods import METHODS, MIM, Dense
from nnunet_ssp.methods.base import Method
from nnunet_ssp.settings import override
from nnunet_ssp.training import evidence


def test_what_was_measured_is_said_with_its_data(monkeypatch):
    row = {"method": "Dense", "settings": "", "data": "nine hearts", "seeds": "3"}
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


def settings_of(method: type[Method], text: str = "") -> dict[str, object]:
    return asdict(override(method.settings_class(), text)[0])


def test_a_gain_is_shown_to_runs_of_its_recipe_alone():
    deep = evidence.gain_in_words("MIM", settings_of(MIM, "recipe=deep num_epochs=3 batch_size=4"))
    assert deep.startswith("measured: MIM with recipe=deep, mean 3D Dice 0.717 against 0.671 with")
    assert deep.endswith("yours will differ, see docs/results.md")
    paper = evidence.gain_in_words("MIM", settings_of(MIM))
    assert paper.startswith(
        "measured: no gain of MIM with recipe=paper over training from scratch yet; nearest is MIM with recipe=deep, "
        "mean 3D Dice 0.717 against 0.671"
    )
    assert evidence.gain_in_words("MIM", {}) == paper  # an early file, of the defaults
    assert evidence.gain_in_words("MIM").startswith("measured: MIM with recipe=deep, ")
    assert "recipe=x\\n" in evidence.gain_in_words("MIM", {"recipe": "x\n"})


def test_other_settings_than_the_measured_are_named():
    assert "; yours will differ, see" in evidence.gain_in_words("Dense", settings_of(Dense))
    alone = evidence.gain_in_words("Dense", settings_of(Dense, "movement=0 data_fraction=0.5"))
    assert (
        "0.673 against 0.625" in alone and "; not with your data_fraction, movement, see" in alone
    )


def test_the_record_of_a_file_decides():
    record = {"method": "MIM", "settings": settings_of(MIM)}
    assert evidence.gain_of(record) == evidence.gain_in_words("MIM", record["settings"])
    assert evidence.gain_of({"method": "MIM", "settings": 5}) == evidence.gain_in_words("MIM")


def test_the_table_names_known_methods_and_real_scores():
    rows = evidence.read_measured()
    assert {row["method"] for row in rows} <= {method.__name__ for method in METHODS}
    assert {row["method"] for row in rows} >= {"Dense"}
    for row in rows:
        assert 0 < float(row["scratch"]) < 1 and 0 < float(row["pretrained"]) < 1
