"""Tables as spreadsheets save them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
LINKS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"


def csv_text(rows: Sequence[Sequence[str]], separator: str = ",", newline: str = "\n") -> str:
    """Rows as CSV (RFC 4180), with quotes where they are needed."""

    def cell(value: str) -> str:
        special = {'"', "\r", "\n", separator} & {*value}
        return '"' + value.replace('"', '""') + '"' if special else value

    return "".join(separator.join(map(cell, row)) + newline for row in rows)


def workbook(file: Path, sheets: Mapping[str, Sequence[Sequence[str]]]) -> Path:
    """Write a workbook as Excel does: texts shared, numbers as such, empty cells left out."""
    strings: dict[str, int] = {}
    names, links, parts = "", "", {}
    for number, (name, rows) in enumerate(sheets.items(), 1):
        body = ""
        for r, row in enumerate(rows, 1):
            cells = ""
            for c, value in enumerate(row):
                place = f"{chr(65 + c)}{r}"
                if value.isascii() and value.isdecimal() and value == str(int(value)):
                    cells += f'<c r="{place}"><v>{value}</v></c>'
                elif value:
                    index = strings.setdefault(value, len(strings))
                    cells += f'<c r="{place}" t="s"><v>{index}</v></c>'
            body += f'<row r="{r}">{cells}</row>'
        parts[f"xl/worksheets/sheet{number}.xml"] = (
            f'<worksheet xmlns="{MAIN}"><sheetData>{body}</sheetData></worksheet>'
        )
        names += f'<sheet name={quoteattr(name)} sheetId="{number}" r:id="rId{number}"/>'
        links += f'<Relationship Id="rId{number}" Target="worksheets/sheet{number}.xml"/>'
    texts = "".join(f'<si><t xml:space="preserve">{escape(text)}</t></si>' for text in strings)
    parts["xl/sharedStrings.xml"] = f'<sst xmlns="{MAIN}">{texts}</sst>'
    parts["xl/workbook.xml"] = (
        f'<workbook xmlns="{MAIN}" xmlns:r="{LINKS}"><sheets>{names}</sheets></workbook>'
    )
    parts["xl/_rels/workbook.xml.rels"] = (
        f'<Relationships xmlns="{RELATIONS}">{links}</Relationships>'
    )
    return archive(file, parts)


def archive(file: Path, parts: Mapping[str, str]) -> Path:
    """Write a zip archive of texts."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, text in parts.items():
            out.writestr(name, text)
    return file
