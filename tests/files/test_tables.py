from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.files.tables import (
    fault_in_listing,
    find_table,
    find_tree,
    read_names,
    read_table,
    whole_number,
)
from tests.table_files import csv_text, workbook

HEADER = ["External code", "Vendor", "ED"]
ROWS = [["A0S9V9", "Siemens", "0"], ["B2C3D4", "Klinik Österreich", "7"]]
READ = [
    {"External code": "A0S9V9", "Vendor": "Siemens", "ED": "0", "row": "2"},
    {"External code": "B2C3D4", "Vendor": "Klinik Österreich", "ED": "7", "row": "3"},
]


def test_tables_are_read_in_order_and_without_empty_rows(tmp_path: Path):
    table = tmp_path / "t.csv"
    table.write_text("\ufeff, a ,b,c\n0,2, x,\n,,,\n\n , ,\n1,1,NaN\n", encoding="utf-8")
    assert read_table(table, ["a", "b"], ["c", "d"]) == [
        {"a": "2", "b": "x", "c": "", "d": "", "row": "2"},
        {"a": "1", "b": "", "c": "", "d": "", "row": "6"},
    ]
    with pytest.raises(ValueError, match=r"t\.csv: column x, y is missing"):
        read_table(table, ["x", "a", "y"])


# -- however it was saved --------------------------------------------------------------------------

ENCODINGS = ("utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_dialect_of_a_spreadsheet(
    tmp_path: Path, encoding: str, separator: str, newline: str
):
    text = csv_text([HEADER, *ROWS], separator, newline)
    for start in ("", f"sep={separator}{newline}", f'"sep={separator}"{separator}{newline}'):
        (tmp_path / "t.csv").write_bytes((start + text).encode(encoding))
        assert read_table(tmp_path / "t.csv", HEADER) == READ


def test_a_byte_order_mark_of_the_other_kind(tmp_path: Path):
    (tmp_path / "t.csv").write_bytes(("\ufeff" + csv_text([HEADER, *ROWS])).encode("utf-16-be"))
    assert read_table(tmp_path / "t.csv", HEADER) == READ


def test_workbooks_are_told_by_their_content(tmp_path: Path):
    for name in ("t.xlsx", "t.csv"):
        workbook(tmp_path / name, {"Notes": [["hello"]], "Data & more": [HEADER, *ROWS]})
        assert read_table(tmp_path / name, HEADER) == READ
    workbook(tmp_path / "two.xlsx", {"One": [HEADER, *ROWS], "Two": [HEADER]})
    with pytest.raises(ValueError, match=r"two\.xlsx: .* in the sheet One and in the sheet Two"):
        read_table(tmp_path / "two.xlsx", HEADER)
    with pytest.raises(ValueError, match=r"two\.xlsx: column Age is missing.*, in the sheet One, "):
        read_table(tmp_path / "two.xlsx", [*HEADER, "Age"])


def test_columns_in_other_case_and_with_blanks(tmp_path: Path):
    (tmp_path / "t.csv").write_text(" external  Code ,VENDOR,ed\nA,B,1\n")
    assert read_table(tmp_path / "t.csv", ["External code", "Vendor"], ["ED"]) == [
        {"External code": "A", "Vendor": "B", "ED": "1", "row": "2"}
    ]
    (tmp_path / "t.csv").write_text("Subject code\n7\n")
    assert read_table(tmp_path / "t.csv", ["SUBJECT_CODE"])[0]["SUBJECT_CODE"] == "7"


def test_decimal_commas_become_points_in_columns_of_numbers(tmp_path: Path):
    (tmp_path / "t.csv").write_text("code;field;n\n1,5;1,5;5,0\n2,5;3;1,000\n")
    rows = read_table(tmp_path / "t.csv", ["code", "field", "n"], numbers=["field", "n"])
    assert [(row["code"], row["field"], row["n"]) for row in rows] == [
        ("1,5", "1.5", "5.0"),
        ("2,5", "3", "1,000"),  # one or a thousand: left to be refused
    ]


def test_rows_are_counted_as_a_spreadsheet_does(tmp_path: Path):
    (tmp_path / "t.csv").write_text('sep=;\na;b\n"one\ntwo";1\n\n2;3\n')
    rows = read_table(tmp_path / "t.csv", ["a", "b"])
    assert [(row["a"], row["row"]) for row in rows] == [("one\ntwo", "2"), ("2", "4")]


def test_missing_values_at_the_end_of_rows(tmp_path: Path):
    """Excel leaves out the separators there, and adds some where columns were deleted."""
    (tmp_path / "t.csv").write_text("a,b,c,,\n1,2\n3,4,5,,,\n")
    rows = read_table(tmp_path / "t.csv", ["a", "b"], ["c"])
    assert [row["c"] for row in rows] == ["", "5"]


# -- what is refused, and how ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the table is empty"),
        (b"\xef\xbb\xbf\r\n \r\n", "the table is empty"),
        (b"a,b\n1,x\n2,y,z\n", "row 3: must have 2 values like the first row, not z in addition"),
        (b"a,b,,\n1,x,y\n", "row 2: must have 2 values like the first row, not y"),
        (b"a,b\n1,x\n2\n", "row 3: column b has no value: the row is too short"),
        (b"a,b,A\n1,2,3\n", "the column a must not be there twice"),
        (b'a,b\n1,"x\n2,y\n3,z\n', r'row 2: a quote \("\) opens and does not end'),
        (b'a,b\n1,"x\n2,"y"\n3,z\n', r'row 2: a quote \("\) opens and does not end'),
        (b'a,b,c\n1,"x,1\n2,y,2\n3,z",3\n', "row 2: a value in quotes holds whole rows"),
        (b"a,b\n1," + b"x" * 200_000, r"row 2: more than \d+ characters in a value"),
        (b"a,b\n1,x\0y\n", "row 2: a NUL byte: the file is damaged or no text"),
        (b"a,b\n1,caf\xe9 f\xc3\xbcr\n", "row 2: the encoding is part UTF-8, part not"),
        ("a,b\n1,Москва\n".encode("cp1251"), "row 2: the encoding is neither UTF-8 nor cp1252"),
        ("a,b\n1,x\n2,b\x81\n".encode("latin-1"), "row 3: the encoding is neither"),
        (
            "\ufeffa,b\n1,x\n".encode("utf-16-le")[:-1],
            "row 2: not UTF-16 text, though the file begins as such",
        ),
        (b"a|b\n1|x\n", r"column a, b is missing. The first row, .*, is: a\|b"),
        (b"x;\x1b[31mb\n", r"column a, b is missing. .* with semicolons, is: x \| \?\[31mb"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), "is an old or encrypted Excel file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of git-lfs"),
        (b"PK\x03\x04nothing", "a zip archive, but not an Excel workbook"),
        (b'"a,b\n', r'row 1: a quote \("\) opens and does not end'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"t\.csv(, |: ){message}"):
        read_table(tmp_path / "t.csv", ["a", "b"])


def test_two_ways_to_read_a_table_are_refused(tmp_path: Path):
    (tmp_path / "t.csv").write_text('a,"x;a;x"\n')
    with pytest.raises(ValueError, match=r"t\.csv: has these columns .*commas and .*semicolons"):
        read_table(tmp_path / "t.csv", ["a"])
    (tmp_path / "t.csv").write_text("a\n1\n")  # alike with each separator
    assert read_table(tmp_path / "t.csv", ["a"]) == [{"a": "1", "row": "2"}]


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_table(tmp_path / "nowhere.csv", ["a"])


# -- any table, any bytes --------------------------------------------------------------------------

# Letters of Western Europe, which alone are never UTF-8 when saved as cp1252, and what CSV gives a meaning.
letters = st.text('abzAZ019 .-_,;\t"\n&<>éüßÇø', max_size=8).map(str.strip)


def plain(value: str) -> bool:
    """Such text must not pass for several rows or another script's letters."""
    lines = value.split("\n")
    run = any(not value[i : i + 3].isascii() for i in range(len(value) - 2))
    return not run and not any(line.count(s) for line in lines[1:] for s in ",;\t")


@given(
    rows=st.lists(st.tuples(*[letters.filter(plain)] * 3), max_size=5),
    separator=st.sampled_from(",;\t"),
    newline=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from([*ENCODINGS, "xlsx"]),
    told=st.booleans(),
    tail=st.integers(0, 2),
)
def test_any_table_reads_back_equal(rows, separator, newline, encoding, told, tail):
    content = [["code", "a b", "C"], *rows]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.csv"
        if encoding == "xlsx":
            workbook(file, {"S": content})
        else:
            text = f"sep={separator}{newline}" if told else ""
            text += csv_text([(*row, *[""] * tail) for row in content], separator, newline)
            file.write_bytes((text + newline * tail).encode(encoding))
        read = read_table(file, ["code", "a b", "C"], nothing=())
    expected = [
        {"code": a, "a b": b, "C": c, "row": str(number)}
        for number, (a, b, c) in enumerate(rows, 2)
        if a or b or c
    ]
    assert read == expected


pieces = st.sampled_from(
    [
        b"sep=,",
        b"a,b\n",
        b"a;b\n",
        b"a\0,\0b\0\n\0",
        b"\xef\xbb\xbf",
        b"1,2\n",
        b"\x81",
        b"a",
        b"b",
        b",",
        b";",
        b"\t",
        b'"',
        b"\n",
        b"\r",
        b"\0",
        b"\xff\xfe",
        b"\xe9",
        b"\xc3\xa9",
        b"PK\x03\x04",
    ]
)


@given(st.lists(pieces | st.binary(max_size=4), max_size=12).map(b"".join))
def test_any_bytes_are_read_or_refused_by_name(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.csv"
        file.write_bytes(content)
        for read in (lambda: read_table(file, ["a", "b"]), lambda: read_names(file)):
            try:
                read()
            except ValueError as error:
                assert str(file) in str(error)
                assert "codec" not in str(error) and "delimiter" not in str(error)


# -- lists, numbers and listings -------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"B1\nA1\n",
        b"\xef\xbb\xbfB1\r\n\r\n A1 \r\nB1",
        "B1;\nA1;\n".encode("utf-16"),
        b"B1,,\nA1,,\n",
        b'"B1"\n"A1"\n',
    ],
)
def test_lists_of_names(tmp_path: Path, content: bytes):
    (tmp_path / "test.txt").write_bytes(content)
    assert read_names(tmp_path / "test.txt") == ["B1", "A1"]


def test_lists_of_names_in_workbooks_and_lines_of_several(tmp_path: Path):
    workbook(tmp_path / "test.xlsx", {"Sheet1": [["B1"], [], ["A1"]]})
    assert read_names(tmp_path / "test.xlsx") == ["B1", "A1"]
    (tmp_path / "test.txt").write_text("A1\nB1, C1\n")
    with pytest.raises(
        ValueError, match=r"test\.txt, row 2: must hold one name a line, not B1, C1"
    ):
        read_names(tmp_path / "test.txt")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("5", 5), ("05", 5), ("5.0", 5), ("5.", 5), ("5.5", None), ("-1", None), ("", None)),
        *(("1_0", None), ("\u0663", None), ("9" * 5000, None), ("1e3", None), (" 5", None)),
    ],
)
def test_whole_numbers(text: str, number: int | None):
    assert whole_number(text) == number


def test_the_table_is_the_one_with_information(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no CSV with `information`"):
        find_table(tmp_path)
    (tmp_path / "results.csv").touch()
    (tmp_path / "Dataset_Information.XLSX").touch()
    assert find_table(tmp_path).name == "Dataset_Information.XLSX"
    for beside in ("._dataset_information.csv", "~$Dataset_Information.csv", "information.txt"):
        (tmp_path / beside).touch()
    (tmp_path / "Dataset_Information.CSV").touch()
    assert find_table(tmp_path).name == "Dataset_Information.CSV"
    (tmp_path / "information2.csv").touch()
    with pytest.raises(ValueError, match=r"must hold one CSV .*Dataset_Information.CSV, inf"):
        find_table(tmp_path)


def test_faults_in_listings():
    one, two = [{"row": "2"}], [{"row": "2"}, {"row": "7"}]
    table, root = Path("t.csv"), Path("tree")
    assert fault_in_listing("A", one, ["x"], table, root) == ""
    assert fault_in_listing("A", [], ["x"], table, root) == ""
    assert fault_in_listing("A", one, [], table, root) == "t.csv, row 2: there is no folder A."
    assert fault_in_listing("A", one, ["x", "y"], table, root).endswith("not in x and y.")
    assert fault_in_listing("A", two, ["x"], table, root).endswith("not in rows 2 and 7.")
    other = fault_in_listing("a1", one, [], table, root, folders=["A1", "B1"])
    assert other == "t.csv, row 2: there is no folder a1, but A1, which differs in case."


@pytest.mark.parametrize("inside", ["Training", "Training/Labeled", "Training/Labeled/A1"])
def test_who_names_a_folder_inside_the_tree_is_told_the_tree(tmp_path: Path, inside: str):
    (tmp_path / "Training/Labeled/A1").mkdir(parents=True)
    places = ["Training/Labeled", "Testing"]
    assert find_tree(tmp_path, places, "Data", "X's") == tmp_path
    assert find_tree(tmp_path.parent, places, tmp_path.name, "X's") == tmp_path
    message = r"must hold one of X's folders \(Training/Labeled, Testing\), .* inside Data\."
    with pytest.raises(FileNotFoundError, match=rf"{message} Perhaps -i {tmp_path}$"):
        find_tree(tmp_path / inside, places, "Data", "X's")
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{message}$"):
        find_tree(tmp_path / "other", places, "Data", "X's")
