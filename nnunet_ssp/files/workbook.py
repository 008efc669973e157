"""Excel workbooks (.xlsx) as rows of texts, read from three kinds of XML files in an archive."""

from __future__ import annotations

import posixpath
import re
import zipfile
from pathlib import Path
from xml.etree.ElementTree import XMLParser

Cells = dict[int, str]  # column from 0 -> text; empty cells are left out

MAGIC = b"PK\x03\x04"
MAX_BYTES = 64 << 20  # of one part, unpacked: an archive of 100 kB may unpack to gigabytes
MAX_COLUMNS = 16384  # Excel's


def read_workbook(file: Path) -> dict[str, list[tuple[int, Cells]]]:
    """Read the cells of every sheet.

    Returns:
        By the sheets' names, in their order: the rows that are not empty, each with its number from 1.

    Raises:
        ValueError: The file is no workbook, is damaged, or unpacks to more than `MAX_BYTES`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            strings = _Strings()
            if "xl/sharedStrings.xml" in archive.namelist():
                _parse_part(archive, "xl/sharedStrings.xml", strings)
            sheets = {}
            for name, part in _sheets(archive).items():
                cells = _Sheet(strings.found)
                _parse_part(archive, part, cells)
                sheets[name] = cells.rows
            return sheets
    except OSError:
        raise
    # Damaged archives raise errors of compression, structure or text.
    except Exception as error:
        raise ValueError(
            f"{file}: a zip archive, but not an Excel workbook that can be read "
            f"({type(error).__name__}): save the table as CSV UTF-8."
        ) from error


def _sheets(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the part of the archive that holds each sheet."""
    book, relations = _Attributes("sheet"), _Attributes("Relationship")
    _parse_part(archive, "xl/workbook.xml", book)
    _parse_part(archive, "xl/_rels/workbook.xml.rels", relations)
    # A target is relative to xl/, or begins with a slash.
    parts = {r["Id"]: posixpath.join("/xl", r["Target"]).lstrip("/") for r in relations.found}
    return {sheet["name"]: parts[sheet["id"]] for sheet in book.found}


def _parse_part(archive: zipfile.ZipFile, part: str, target: _Target) -> None:
    parser = XMLParser(target=target)
    left = MAX_BYTES
    with archive.open(part) as stream:
        while chunk := stream.read(1 << 16):
            left -= len(chunk)
            if left < 0:
                raise ValueError(f"{part} unpacks to more than {MAX_BYTES} bytes")
            parser.feed(chunk)
    parser.close()


class _Target:
    """Target of a parser's events, which keeps nothing but what a subclass keeps."""

    def doctype(self, *_: object) -> None:
        # Workbooks have no document type; entities that expand each other need one.
        raise ValueError("a document type in a workbook")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.opened(_local(tag), attributes)

    def end(self, tag: str) -> None:
        self.closed(_local(tag))

    def data(self, text: str) -> None: ...

    def opened(self, tag: str, attributes: dict[str, str]) -> None: ...

    def closed(self, tag: str) -> None: ...

    def close(self) -> None: ...


class _Attributes(_Target):
    """Attributes of all elements of one name."""

    def __init__(self, tag: str):
        self.tag = tag
        self.found: list[dict[str, str]] = []

    def opened(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == self.tag:
            self.found.append({_local(name): value for name, value in attributes.items()})


class _Strings(_Target):
    """Texts `<t>` inside `<si>` or `<is>`, without the pronunciation `<rPh>` of Japanese."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.text: list[str] = []
        self.inside = self.spoken = False

    def opened(self, tag: str, attributes: dict[str, str]) -> None:
        self.inside = tag == "t" and not self.spoken
        self.spoken |= tag == "rPh"
        if tag in ("si", "is"):
            self.text = []

    def data(self, text: str) -> None:
        if self.inside:
            self.text.append(text)

    def closed(self, tag: str) -> None:
        self.inside = False
        self.spoken &= tag != "rPh"
        if tag == "si":
            self.found.append("".join(self.text))


class _Sheet(_Strings):
    """Rows of cells; `strings` are the texts that cells of type `s` refer to by number."""

    def __init__(self, strings: list[str]):
        super().__init__()
        self.strings = strings
        self.rows: list[tuple[int, Cells]] = []
        self.row, self.column, self.kind = 0, -1, ""
        self.cells: Cells = {}

    def opened(self, tag: str, attributes: dict[str, str]) -> None:
        super().opened(tag, attributes)
        self.inside |= tag == "v"
        if tag == "row":
            # Numbers and places are optional: without them each follows the one before.
            self.row, self.column = int(attributes.get("r", self.row + 1)), -1
            self.cells = {}
        elif tag == "c":
            self.column = _column(attributes["r"]) if "r" in attributes else self.column + 1
            self.kind, self.text = attributes.get("t", "n"), []
            if self.column >= MAX_COLUMNS:
                raise ValueError(f"more than {MAX_COLUMNS} columns")

    def closed(self, tag: str) -> None:
        super().closed(tag)
        if tag == "c" and (text := self._shown("".join(self.text))):
            self.cells[self.column] = text
        elif tag == "row" and self.cells:
            self.rows.append((self.row, self.cells))

    def _shown(self, text: str) -> str:
        if self.kind == "s" and text:
            return self.strings[int(text)]
        if self.kind == "b":
            return {"1": "TRUE", "0": "FALSE"}[text]
        # 1.1 may be stored as 1.1000000000000001; Excel shows 15 digits.
        if self.kind == "n" and "." in text:
            return format(float(text), ".15g")
        return text


def _column(place: str) -> int:
    """Return the column from 0 of a cell such as `AB12`."""
    letters = re.match("[A-Z]{1,3}", place)
    if letters is None:
        raise ValueError(f"no cell is called {place}")
    number = 0
    for letter in letters[0]:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _local(name: str) -> str:
    """Return a name without its namespace, which differs between the two versions of the format."""
    return name.rpartition("}")[2]
