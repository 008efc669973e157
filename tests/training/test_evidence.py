from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files

import pytest
import yaml

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


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the table hold a recipe of MIM, and Dense as it is and without its contrast."""
    rows = [
        {"method": method, "settings": settings, "data": "nine hearts", "labelled": "5"}
        | {"seeds": "3", "scratch": "0.600", "pretrained": pretrained}
        for method, settings, pretrained in (
            ("MIM", "recipe=deep", "0.610"),
            ("Dense", "", "0.620"),
            ("Dense", "contrast=0", "0.630"),
        )
    ]
    monkeypatch.setattr(evidence, "read_measured", lambda: rows)


@pytest.mark.usefixtures("measured")
def test_a_gain_is_shown_to_runs_of_its_recipe_alone():
    deep = evidence.gain_in_words("MIM", settings_of(MIM, "recipe=deep num_epochs=3 batch_size=4"))
    assert deep.startswith("measured: MIM with recipe=deep, mean 3D Dice 0.610 against 0.600 with")
    assert deep.endswith("yours will differ, see docs/results.md")
    paper = evidence.gain_in_words("MIM", settings_of(MIM))
    assert paper.startswith(
        "measured: no gain of MIM with recipe=paper over training from scratch yet; nearest is MIM with recipe=deep, "
        "mean 3D Dice 0.610 against 0.600"
    )
    assert evidence.gain_in_words("MIM", {}) == paper  # an early file, of the defaults
    assert evidence.gain_in_words("MIM").startswith("measured: MIM with recipe=deep, ")
    assert "recipe=x\\n" in evidence.gain_in_words("MIM", {"recipe": "x\n"})


@pytest.mark.usefixtures("measured")
def test_a_gain_is_shown_to_runs_with_the_settings_that_a_row_names():
    both = evidence.gain_in_words("Dense", settings_of(Dense))
    assert both.startswith("measured: Dense, mean 3D Dice 0.620 against 0.600 with 5 labelled")
    movement = evidence.gain_in_words("Dense", settings_of(Dense, "contrast=0 num_epochs=3"))
    assert movement.startswith("measured: Dense with contrast=0, mean 3D Dice 0.630 against 0.600")
    assert movement.endswith("yours will differ, see docs/results.md")
    other = evidence.gain_in_words("Dense", settings_of(Dense, "contrast=0.5"))
    assert other.startswith(
        "measured: no gain of Dense with contrast=0.5 over training from scratch yet; nearest is Dense, "
        "mean 3D Dice 0.620 against 0.600"
    )
    rows = evidence.read_measured()
    assert len(evidence.rows_of(rows, "Dense", None)) == 2
    assert evidence.rows_of(rows, "Dense", {"contrast": 0.0}) == rows[2:]


@pytest.mark.usefixtures("measured")
def test_of_unknown_settings_each_row_has_its_own():
    assert evidence.gain_in_words("Dense").startswith(
        "measured: Dense, mean 3D Dice 0.620 against 0.600 with 5 labelled patients, on nine hearts; "
        "Dense with contrast=0, mean 3D Dice 0.630 against 0.600 with 5 labelled patients, on nine hearts; yours"
    )


@pytest.mark.usefixtures("measured")
def test_other_settings_than_the_measured_are_named():
    assert "; yours will differ, see" in evidence.gain_in_words("Dense", settings_of(Dense))
    alone = evidence.gain_in_words("Dense", settings_of(Dense, "movement=0 data_fraction=0.5"))
    assert (
        "0.620 against 0.600" in alone and "; not with your data_fraction, movement, see" in alone
    )


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the table hold Dense without its contrast from the same dataset and from another, and MIM."""
    row = {"labelled": "5", "seeds": "3", "scratch": "0.600", "data": "nine hearts"}
    rows = [
        row | {"method": method, "settings": settings, "pretrained_on": on, "pretrained": dice}
        for method, settings, on, dice in (
            ("Dense", "contrast=0", evidence.SAME, "0.630"),
            ("Dense", "contrast=0", "four others", "0.590"),
            ("MIM", "", evidence.SAME, "0.620"),
        )
    ]
    monkeypatch.setattr(evidence, "read_measured", lambda: rows)


OWN = "Dense with contrast=0, pretrained on the same dataset, mean 3D Dice 0.630 against 0.600"
OTHER = "Dense with contrast=0, pretrained on four others, mean 3D Dice 0.590 against 0.600"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("pretrained_on", "dataset", "subjects", "said"),
    [
        ("Dataset161_B", "Dataset160_A", 40, [OTHER, OWN]),
        ("Dataset160_A", "Dataset160_A", 40, ["Dense with contrast=0, mean 3D Dice 0.630"]),
        ("Dataset160_A", "Dataset160_A", 4, [OWN, OTHER]),
        ("Dataset160_A", None, 40, [OWN, OTHER]),
        (None, "Dataset160_A", 40, [OWN, OTHER]),
        (None, None, 4, [OTHER, OWN]),
        ("Dataset161_B", "Dataset160_A", 4, [OTHER, OWN]),
    ],
)
def test_what_other_subjects_gave_is_said_where_it_holds(pretrained_on, dataset, subjects, said):
    record = {
        "method": "Dense",
        "settings": settings_of(Dense, "contrast=0"),
        "counts": {"subjects": subjects},
    }
    text = evidence.gain_of(record, None, pretrained_on, dataset)
    places = [text.index(part) for part in said]
    assert text.startswith(f"measured: {said[0]}") and places == sorted(places)
    assert text.count("mean 3D Dice") == len(said)


@pytest.mark.usefixtures("elsewhere")
def test_where_nothing_was_measured_on_other_subjects_it_is_said():
    settings = settings_of(MIM)
    assert evidence.gain_in_words("MIM", settings, elsewhere=True).endswith(
        "yours will differ: the measured were pretrained on the same dataset, yours on another, see docs/results.md"
    )
    assert "another" not in evidence.gain_in_words("MIM", settings)
    # The nearest of what was not measured is that of the same dataset alone.
    other = evidence.gain_in_words("Dense", settings_of(Dense, "contrast=0.5"), elsewhere=True)
    assert "nearest is Dense with contrast=0, mean 3D Dice 0.630" in other and "0.590" not in other


def test_the_loss_on_four_subjects_of_another_hospital_is_told():
    """As docs/results.md has it: 0.004 below scratch, where ACDC's own patients gained."""
    settings = settings_of(Dense, "contrast=0")
    said = evidence.gain_in_words("Dense", settings, elsewhere=True)
    four = "measured: Dense with contrast=0, pretrained on four subjects of another hospital (Sunnybrook), "
    assert said.startswith(four + "mean 3D Dice 0.666 against 0.671")
    assert "Sunnybrook" not in evidence.gain_in_words("Dense", settings, elsewhere=False)


def test_the_record_of_a_file_decides():
    record = {"method": "MIM", "settings": settings_of(MIM)}
    assert evidence.gain_of(record) == evidence.gain_in_words("MIM", record["settings"])
    assert evidence.gain_of({"method": "MIM", "settings": 5}) == evidence.gain_in_words("MIM")


@pytest.mark.parametrize(
    ("method", "change", "epochs", "drawn"),
    [
        ("MIM", {"num_epochs": 1, "iterations_per_epoch": 10}, None, 240),
        ("Dense", {"num_epochs": 42, "iterations_per_epoch": 50, "batch_size": 12}, 42, 25_200),
        ("MIM", {"num_epochs": 42, "iterations_per_epoch": 50}, 21, 25_200),
        ("MIM", {"num_epochs": 3, "iterations_per_epoch": None}, None, 3 * 732),
        ("DINO", {"num_epochs": 3, "iterations_per_epoch": None}, 2, 2 * 732),
        ("MIM", {"num_epochs": "3"}, None, None),
    ],
)
def test_the_slices_that_a_run_has_drawn(method, change, epochs, drawn):
    record = {"method": method, "settings": {"batch_size": 24} | change, "counts": {"slices": 732}}
    assert evidence.slices_drawn(record, epochs) == drawn
    record["settings"].pop("iterations_per_epoch", None)  # an early file
    assert evidence.slices_drawn(record) is None


@pytest.mark.usefixtures("measured")
def test_a_short_run_is_told_how_short_it_is():
    settings = settings_of(MIM, "recipe=deep num_epochs=1 iterations_per_epoch=10 batch_size=24")
    record = {"method": "MIM", "settings": settings}
    said = evidence.gain_of(record)
    assert "; yours will differ; yours drew 240 slices, the measured one 50,400, see docs" in said
    settings |= {"num_epochs": 42, "iterations_per_epoch": 25}  # half as many are enough
    assert "yours drew" not in evidence.gain_of(record)
    assert "yours drew 24,600 slices" in evidence.gain_of(record, epochs=41)
    paper = settings_of(MIM, "num_epochs=1 iterations_per_epoch=10 batch_size=24")
    said = evidence.gain_of({"method": "MIM", "settings": paper})
    assert "no gain of MIM with recipe=paper" in said and "; yours drew 240 slices" in said


def test_the_measured_length_is_that_of_the_study():
    study = files("nnunet_ssp.study") / "studies" / "acdc-few.yaml"
    spec = yaml.safe_load(study.read_text(encoding="utf-8"))
    run = spec["settings"]["pretraining"] | spec["by_size"]["cpu"]["settings"]["pretraining"]
    for name in ("MIM", "Dense", "DINO"):
        own = spec["by_size"]["cpu"]["pretraining"].get(name, {"settings": {}})
        record = {"method": name, "settings": run | own["settings"]}
        views = 2 if name in evidence.TWO_VIEWS else 1
        assert evidence.slices_drawn(record) * views == evidence.SLICES


def test_the_table_names_known_methods_and_real_scores():
    rows = evidence.read_measured()
    assert {row["method"] for row in rows} <= {method.__name__ for method in METHODS}
    assert {row["method"] for row in rows} >= {"Dense"}
    for row in rows:
        assert 0 < float(row["scratch"]) < 1 and 0 < float(row["pretrained"]) < 1
