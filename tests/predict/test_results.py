from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.predict.results import FRAME_COLUMNS, MARKER, SUBJECT_COLUMNS, Output, mean

RECORD = {
    "stamp": ["s"],
    "choices": {},
    "frames": {"lv_ml": [10.0, 4.0], "disagreement_percent": [None, 2.0]},
    "subject": {"n_frames": 2, "ed_frame": 0, "es_frame": 1, "lv_edv_ml": 10.0},
    "flags": {"EF": "3 %"},
    "notes": ["a, b"],
}


@pytest.fixture
def output(tmp_path: Path) -> Output:
    made = Output(tmp_path)
    made.take_over({"digest": "x"}, False)
    write_json(made.record("s"), RECORD)
    made.mask("s").write_bytes(b"mask")
    made.page("s").write_bytes(b"page")
    return made


def test_tables_have_every_subject(output: Output) -> None:
    output.write_tables({"bad": "no cine"})
    frames = (output.folder / "phases.csv").read_text().splitlines()
    assert frames == [",".join(FRAME_COLUMNS), "s,0,ED,10,,,,", "s,1,ES,4,,,,2"]
    header, first, refused = (output.folder / "volumes.csv").read_text().splitlines()
    assert header == ",".join(SUBJECT_COLUMNS)
    assert '1,EF: 3 %,EF: the LV\'s EF is outside of 5 to 85 %,"a, b",' in first
    assert refused.startswith("bad,") and refused.endswith(",no cine")


@pytest.mark.parametrize("damage", ["mask", "text", "part"])
def test_a_damaged_record_counts_as_none(output: Output, damage: str) -> None:
    assert output.read("s") == RECORD
    if damage == "mask":
        output.mask("s").unlink()
    else:
        output.record("s").write_text("{" if damage == "text" else '{"stamp": []}')
    assert output.read("s") is None
    output.write_tables({})
    assert len((output.folder / "volumes.csv").read_text().splitlines()) == 1


def test_means_leave_out_what_is_not_there() -> None:
    assert mean([None, 1.0, 3.0, float("nan")]) == 2
    assert mean([None]) is None


def test_frames_of_an_unknown_model_are_not_used(output: Output) -> None:
    """`rm OUT/*` leaves what begins with a dot."""
    kept = output.frames("t", ["images"])
    kept.open()
    kept.write(0, np.zeros((2, 2, 2), np.uint8), 1.0)
    output.take_over({"digest": "x"}, False)
    assert kept.count() == 1
    for file in output.folder.glob("[!.]*"):
        file.unlink()
    output.take_over({"digest": "y"}, False)
    assert kept.count() == 0 and not kept.folder.exists()


def test_the_folds_are_recorded_beside_the_model(output: Output) -> None:
    """`evaluate` reads them; a folder of an earlier version, without them, is of the same model."""
    assert read_json(output.folder / MARKER, dict)["folds"] == []
    output.take_over({"digest": "x"}, False, ["0", "2"])
    assert read_json(output.folder / MARKER, dict)["folds"] == ["0", "2"]
