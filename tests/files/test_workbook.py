from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.files import workbook
from nnunet_ssp.files.workbook import read_workbook
from tests.table_files import archive
from tests.table_files import workbook as write

BOOK = '<workbook xmlns:r="r"><sheets><sheet name="S" r:id="a"/></sheets></workbook>'
LINKS = '<Relationships><Relationship Id="a" Target="/xl/s.xml"/></Relationships>'
STRINGS = "<sst><si><r><t>Ja</t></r><rPh><t>no</t></rPh><r><t>pan</t></r></si></sst>"


def sheet(rows: str, head: str = "") -> dict[str, str]:
    return {
        "xl/workbook.xml": BOOK,
        "xl/_rels/workbook.xml.rels": LINKS,
        "xl/sharedStrings.xml": STRINGS,
        "xl/s.xml": f"{head}<worksheet><sheetData>{rows}</sheetData></worksheet>",
    }


def test_sheets_rows_and_places(tmp_path: Path):
    file = write(tmp_path / "t.xlsx", {"A & <B>": [["x", "", "1"], [], ["007"]], "Empty": []})
    assert read_workbook(file) == {"A & <B>": [(1, {0: "x", 2: "1"}), (3, {0: "007"})], "Empty": []}


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('<c t="s"><v>0</v></c>', "Japan"),  # without its pronunciation
        ('<c t="inlineStr"><is><r><t>in</t></r><r><t>line</t></r></is></c>', "inline"),
        ('<c t="str"><f>A1&amp;B1</f><v>result</v></c>', "result"),
        ('<c t="b"><v>1</v></c>', "TRUE"),
        ('<c t="e"><v>#N/A</v></c>', "#N/A"),
        ("<c><v>1.1000000000000001</v></c>", "1.1"),
        ("<c><v>100000</v></c>", "100000"),
    ],
)
def test_kinds_of_cells(tmp_path: Path, cell: str, text: str):
    file = archive(tmp_path / "t.xlsx", sheet(f'<row><c r="AB1"/>{cell}</row>'))
    assert read_workbook(file) == {"S": [(1, {28: text})]}


ROW = '<row><c t="inlineStr"><is><t>&lol;</t></is></c></row>'
ENTITY = '<!DOCTYPE x [<!ENTITY lol "lol">]>'


@pytest.mark.parametrize(
    "parts",
    [
        {"readme.txt": "hello"},
        sheet("<row>"),
        sheet(ROW, ENTITY),
        sheet('<row><c t="s"><v>7</v></c></row>'),
        sheet('<row><c r="1A"><v>7</v></c></row>'),
        sheet('<row><c r="ZZZ1"><v>7</v></c></row>'),
        sheet('<row><c r="A1"><v>1.1.1</v></c></row>'),
        sheet("") | {"xl/workbook.xml": BOOK.replace('id="a"', 'id="b"')},
    ],
    ids=["other", "cut", "entities", "string", "place", "column", "number", "part"],
)
def test_what_is_no_workbook_is_refused(tmp_path: Path, parts: dict[str, str]):
    file = archive(tmp_path / "t.xlsx", parts)
    with pytest.raises(ValueError, match=r"t\.xlsx: a zip archive, but not an Excel workbook that"):
        read_workbook(file)


def test_a_workbook_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = archive(tmp_path / "t.xlsx", sheet("<row/>" * 50_000))
    assert file.stat().st_size < 5000
    assert read_workbook(file) == {"S": []}
    monkeypatch.setattr(workbook, "MAX_BYTES", 200_000)
    with pytest.raises(ValueError, match=r"t\.xlsx: .* \(ValueError\): save the table as CSV"):
        read_workbook(file)


def test_every_cut_and_every_wrong_byte_of_a_workbook_is_read_or_refused(tmp_path: Path):
    whole = write(tmp_path / "t.xlsx", {"S": [["a", "b"], ["1", "x"]]}).read_bytes()
    file = tmp_path / "damaged.xlsx"
    for place in range(4, len(whole), 5):
        for damaged in (whole[:place], whole[:place] + b"\xa5" + whole[place + 1 :]):
            file.write_bytes(damaged)
            try:
                read_workbook(file)
            except ValueError as error:
                assert str(file) in str(error)
