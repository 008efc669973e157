from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from nnunet_ssp.conversion.dicom.inventory import Inventory, inventory_lines
from nnunet_ssp.conversion.dicom.short_axis import choose_short_axis
from tests.dicom_files import FOUR_CHAMBER, series


def test_what_was_found_and_taken(tmp_path: Path):
    series(tmp_path / "SA")
    series(tmp_path / "LA", [0], directions=FOUR_CHAMBER, uid="1.5", number=5)
    series(tmp_path / "few", [0], frames=3, uid="1.6", number=6, StudyInstanceUID="1.2.4")
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert choose_short_axis(files, tmp_path).inventory == Inventory(
        images=4 * 10 + 10 + 3,
        studies=2,
        series=3,
        taken=1,
        scanner="Maker Model, 1.5 T",
        size="4 slices x 10 frames",
        left_out={"long axis": 1, "fewer than 10 frames": 1},
    )


def test_subjects_are_summed_up():
    one = Inventory(53, 2, 3, 1, "Siemens Aera, 1.5 T", "4 slices x 10 frames", {"long axis": 2})
    other = Inventory(40, 1, 1, 1, "GE, 3 T", "4 slices x 10 frames")
    assert inventory_lines([asdict(one), asdict(other), asdict(one)], ["a", "b", "a"]) == [
        "",
        "DICOM of 3 subjects (2 PatientIDs): 5 studies, 7 series, 146 images",
        "  scanner: Siemens Aera, 1.5 T (2 subjects), GE, 3 T (1 subject)",
        "  short axis, from 3 series: 4 slices x 10 frames (3 subjects)",
        "  left out: 4 series (long axis)",
    ]
    lines = inventory_lines([asdict(other)], [""])
    assert lines[1].startswith("DICOM of 1 subject (no PatientID): 1 study, 1 series, 40 images")
    assert lines[-1] == "  left out: nothing"
    assert inventory_lines([], []) == []
