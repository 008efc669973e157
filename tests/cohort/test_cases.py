from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_ssp.cohort.cases import (
    COLUMNS,
    Case,
    case_name,
    read_cases,
    shown_subjects,
    subject_of,
    write_cases,
)


def make_case(subject: str = "A1", frame: int = 0, **changes: object) -> Case:
    case = Case(
        case=case_name(subject, frame),
        subject=subject,
        source="mm1",
        source_frame=frame,
        split="train",
        frame=frame,
        n_frames=25,
        phase="ED",
        base="first",
        vendor="GE",
        centre="1",
        scanner="",
        field="1.5",
        pathology='HCM, "apical"',
    )
    return replace(case, **changes)


def test_importing_the_tables_is_light():
    code = "import sys, nnunet_ssp.cohort.cases; print({'numpy', 'pandas', 'torch'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "set()"


def test_case_names():
    assert case_name("A1D9Z7", 5) == "A1D9Z7_frame05"
    assert case_name("A1D9Z7", 5, source="mm1") == "mm1-A1D9Z7_frame05"
    assert case_name("A1D9Z7", 120) == "A1D9Z7_frame120"


def test_the_subject_of_a_case():
    known = {"A1_frame00": make_case("A1")}
    assert subject_of("A1_frame00", known, "ignored") == "mm1-A1"
    assert subject_of("p7_frame03", {}, None) == "p7_frame03"
    assert subject_of("p7_frame03", {}, "(.+)_frame") == "p7"
    assert subject_of("p7_frame03", {}, "p[0-9]") == "p7"
    with pytest.raises(
        ValueError, match=r"`subject_pattern` \(=x\) must match every case name, not"
    ):
        subject_of("p7_frame03", {}, "x")
    with pytest.raises(
        ValueError, match=r"`subject_pattern` \(=\(\) must be a regular expression: "
    ):
        subject_of("p7_frame03", {}, "(")
    with pytest.raises(ValueError, match="must be a regular expression: "):
        subject_of("A1_frame00", known, "(")  # also where it is not needed
    with pytest.raises(
        ValueError, match=r"`subject_pattern` \(=\(a\+\)\+\$\) must be .* repetitions"
    ):
        subject_of("a" * 100 + "!", {}, "(a+)+$")


def test_subjects_are_shown_with_their_source_where_there_are_several():
    one = {"B_frame00": make_case("B"), "A_frame00": make_case("A")}
    keys = {case.subject_key for case in one.values()} | {"of_no_row"}
    assert shown_subjects(keys, one) == ["A", "B", "of_no_row"]
    both = one | {"mm9-A_frame00": make_case("A", source="mm9")}
    keys = {case.subject_key for case in both.values()}
    assert shown_subjects(keys, both) == sorted(keys) and len(keys) == 3
    assert shown_subjects({"x"}, {}) == ["x"]


def test_columns_are_those_of_the_file_format():
    assert ",".join(COLUMNS) == (
        "case,subject,source,source_frame,split,frame,n_frames,phase,base,"
        "vendor,centre,scanner,field,pathology"
    )


def test_cases_survive_the_file(tmp_path: Path):
    cases = [make_case("B2", 3), make_case("A1", 0, phase="", base="unknown", split="test")]
    write_cases(tmp_path / "cases.csv", cases)
    assert list(read_cases(tmp_path / "cases.csv").values()) == cases
    assert [case.labelled for case in cases] == [True, False]
    assert [file.name for file in tmp_path.iterdir()] == ["cases.csv"]


def test_a_file_saved_by_a_spreadsheet_is_read(tmp_path: Path):
    file = tmp_path / "cases.csv"
    write_cases(file, [make_case()])
    file.write_text(file.read_text().replace("\n", "\r\n"), encoding="utf-8-sig")
    assert read_cases(file) == {"A1_frame00": make_case()}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_a_file_saved_by_a_spreadsheet_of_another_country_is_read(tmp_path: Path, encoding: str):
    case = replace(make_case(), vendor="Klinik Österreich", field="1.5", pathology="")
    file = tmp_path / "cases.csv"
    write_cases(file, [case])
    text = file.read_text(encoding="utf-8").replace(",", ";").replace("1.5", "1,5") + ";;;\n"
    file.write_bytes(text.replace(f";{case.n_frames};", f";{case.n_frames},0;").encode(encoding))
    assert read_cases(file) == {"A1_frame00": case}


def test_lost_leading_zeros_are_noticed(tmp_path: Path):
    file = tmp_path / "cases.csv"
    write_cases(file, [replace(make_case(), case="mm2-007_frame00", subject="7")])
    with pytest.raises(
        ValueError, match=r"row 2: `subject` \(=7\) must keep the leading zeros of 007"
    ):
        read_cases(file)
    write_cases(file, [replace(make_case(), case="mm2-007_frame00", subject="007")])
    assert read_cases(file)["mm2-007_frame00"].subject == "007"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("split", "val", r"cases\.csv, row 3: `split` \(=val\) must be one of train, test"),
        ("phase", "ed", r"row 3: `phase` \(=ed\) must be one of empty, ED, ES"),
        ("base", "", r"row 3: `base` \(=\) must be one of first, last, unknown"),
        ("frame", "1.5", r"row 3: `frame` \(=1.5\) must be a whole number from 0"),
        ("frame", "-1", r"`frame` \(=-1\) must be a whole number"),
        ("frame", "25", r"row 3: `frame` \(=25\) must be below `n_frames` \(=25\)"),
        ("case", "A1_frame00", r"row 3: `case` \(=A1_frame00\) must occur only once"),
        ("subject", "", "row 3: `subject` must not be empty"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, column: str, value: str, message: str):
    file = tmp_path / "cases.csv"
    write_cases(file, [make_case("A1"), make_case("B2")])
    with open(file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[1][column] = value
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ValueError, match=message):
        read_cases(file)


def test_missing_columns_and_short_rows_are_named(tmp_path: Path):
    file = tmp_path / "cases.csv"
    file.write_text("case,subject\nA1_frame00,A1\n")
    with pytest.raises(ValueError, match=r"cases\.csv: column source, source_frame,.* is missing"):
        read_cases(file)
    file.write_text(",".join(COLUMNS) + "\nA1_frame00,A1\n")
    with pytest.raises(ValueError, match="row 2: column source has no value"):
        read_cases(file)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_cases(tmp_path / "nowhere.csv")
