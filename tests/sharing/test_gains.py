"""Measured gains on the card of a pretraining; `tests/study/test_exports.py` takes those of a study's own table."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.sharing.gains import (
    COLUMNS,
    COMPARISONS,
    OTHERS,
    REPORTED,
    STUDY,
    THESE,
    measured_gains,
)

FILE = "pretraining/MIM/seed0-aa/results/fold_0/checkpoint_final.pth"
ROW = dict.fromkeys(COLUMNS, "0.5") | {
    "pretraining": FILE,
    "n_subjects": "8",
    "settings": "num_epochs=5 subject_pattern=Alice(.*)",
    "p": "",
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / STUDY).touch()
    return tmp_path


def write(file: Path, *rows: dict[str, str]) -> None:
    lines = [COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]
    file.write_text("".join(f"{','.join(line)}\n" for line in lines))


def test_the_rows_of_these_weights_count(study: Path) -> None:
    write(study / COMPARISONS, ROW, ROW | {"pretraining": FILE.replace("seed0-aa", "seed1-bb")})
    write(study / f"{REPORTED}{COMPARISONS}", ROW | {"difference": "0.25"})
    found = measured_gains(study / FILE, "MIM")
    assert found["of"] == THESE
    first, second = found["rows"]
    assert (first["difference"], second["difference"]) == (0.25, 0.5)
    assert first["n_subjects"] == 8 and "p" not in first
    assert first["settings"] == "num_epochs=5"


def test_intervals_of_few_subjects_are_not_on_the_card(study: Path) -> None:
    """An earlier version wrote them into the study's table."""
    write(study / COMPARISONS, ROW | {"n_subjects": "6"}, ROW | {"n_subjects": "5"})
    enough, few = measured_gains(study / FILE, "MIM")["rows"]
    assert enough["low"] == enough["high_seeds"] == enough["p_holm"] == 0.5
    assert few == {
        name: value for name, value in enough.items() if not name.startswith(("low", "high", "p"))
    } | {"n_subjects": 5}


def test_without_a_study_the_method_counts(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = {"method": "MIM", "settings": "recipe=deep", "scratch": "0.600"}
    rows = [{"method": "Dense", "settings": "", "scratch": "0.700"}, deep]
    monkeypatch.setattr("nnunet_ssp.sharing.gains.read_measured", lambda: rows)
    elsewhere = study / "fold_0" / "checkpoint_final.pth"
    found = measured_gains(elsewhere, "Dense")
    assert found == {"of": OTHERS, "rows": [{"settings": "", "scratch": "0.700"}]}
    assert measured_gains(elsewhere, "PCL") == {}
    assert measured_gains(elsewhere, "MIM", {"recipe": "paper"}) == {}
    assert len(measured_gains(elsewhere, "MIM", {"recipe": "deep"})["rows"]) == 1
    write(study / COMPARISONS)
    assert measured_gains(study / FILE, "PCL") == {}


def test_a_table_that_was_edited_is_named(study: Path) -> None:
    write(study / COMPARISONS, ROW | {"difference": "much"})
    with pytest.raises(ValueError, match=rf"{COMPARISONS}, difference \(=much\) must be a number"):
        measured_gains(study / FILE, "MIM")
