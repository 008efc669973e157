"""Tables as people have them, and the folders they describe.

A table may be a CSV in UTF-8, UTF-16 or cp1252 with commas, semicolons or tabs, or an Excel workbook. A table with one
meaning is read. Any other is refused with file, row and way out.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ssp.files.workbook import MAGIC, read_workbook

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
ENDINGS = (".csv", ".tsv", ".txt", ".xlsx")  # files of the first ending found are read
WAY_OUT = "save it as CSV UTF-8 from a spreadsheet"
_BOMS = {  # UTF-32 first: it begins as UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_OTHER_FORMATS = {
    b"\xd0\xcf\x11\xe0": "an old or encrypted Excel file",
    b"version https://git-lfs": "a pointer of git-lfs, not the file itself (git lfs pull fetches it)",
}
_NEWLINE = re.compile("\r\n|\r|\n")
# 1,5 has a decimal comma; 1,500 may be fifteen hundred as well as one and a half.
_DECIMAL_COMMA = re.compile(r"^([+-]?[0-9]+),([0-9]{1,2}|[0-9]{4,})$")
_WHOLE = re.compile(r"([0-9]{1,9})(\.0*)?")


@dataclass(frozen=True)
class _Rows:
    """Rows of a file before their columns are known."""

    # How the file was read, for messages
    described: str
    # Number as a spreadsheet shows it, texts; none is empty
    rows: Iterable[tuple[int, list[str]]]
    separator: str = ""


def read_table(
    table: str | Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    numbers: Sequence[str] = (),
    nothing: Sequence[str] = ("nan",),
) -> list[dict[str, str]]:
    """Read the rows of a table, skipping empty ones (spreadsheets can append many).

    Args:
        table: The file; its first row has the names of the columns, in any case, blanks and underscores alike.
        required: Columns that must exist.
        optional: Columns that are empty if they do not exist.
        numbers: Columns in which a decimal comma becomes a point.
        nothing: Texts, in lower case, that mean an empty cell.

    Returns:
        The values of these columns in the file's order, stripped, and the number of the row as `row`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no table, a column is missing or double, or a row has too few or too many values.
    """
    table = Path(table)
    grid, header, rows = _choose_rows(_grids(table), required, table)
    places = _places(header, (*required, *optional), table)
    absent = dict.fromkeys({*optional} - {*places}, "")
    needed = [places[column] for column in required]
    found = []
    for number, values in rows:
        if len(values) != len(header):
            _check_row(values, header, needed, grid, f"{table}, row {number}")
            values += [""] * (len(header) - len(values))
        row = absent | {
            column: "" if (text := values[place].strip()).lower() in nothing else text
            for column, place in places.items()
        }
        for column in numbers:
            if "," in row[column]:
                row[column] = _DECIMAL_COMMA.sub(r"\1.\2", row[column])
        if any(row.values()):
            row["row"] = str(number)
            found.append(row)
    return found


def read_names(file: str | Path) -> list[str]:
    """Read a list of names, one a line or in the only column of a table.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no such list.
    """
    found: dict[str, None] = {}
    grid = _grids(Path(file))[0]
    for number, values in grid.rows:
        names = [text for value in values if (text := value.strip(" \t;"))]
        if len(names) > 1:
            raise ValueError(
                f"{file}, row {number}: must hold one name a line, not {_cut_short(', '.join(names))}."
            )
        found |= dict.fromkeys(names)
    return list(found)


def whole_number(text: str) -> int | None:
    """Read a whole number from 0, also written as `5.0`; None for any other text."""
    match = _WHOLE.fullmatch(text)
    return int(match[1]) if match else None


# -- files to rows ---------------------------------------------------------------------------------


def _grids(table: Path) -> list[_Rows]:
    """Return the rows of a file as each separator, or each sheet, gives them."""
    data = table.read_bytes()
    if data.startswith(MAGIC):
        return [
            _Rows(f"in the sheet {name}", [(n, _in_line(cells)) for n, cells in rows])
            for name, rows in read_workbook(table).items()
        ]
    for start, kind in _OTHER_FORMATS.items():
        if data.startswith(start):
            raise ValueError(f"{table}: is {kind}; must be a table: {WAY_OUT}.")
    text, encoding = _decode(data, table)
    separators: Iterable[str] = SEPARATORS
    # The line in which Excel names the separator, and which it does not show.
    if told := re.match(r'"?sep=([^\w\s"]|\t)"?[,;\t]*(\r\n|\r|\n|$)', text, re.IGNORECASE):
        separators, text = [told[1]], text[told.end() :]
    return [
        _Rows(f"read as {encoding} with {SEPARATORS.get(s, s)}", _csv_rows(text, s, table), s)
        for s in separators
    ]


def _in_line(cells: Mapping[int, str]) -> list[str]:
    return [cells.get(column, "") for column in range(max(cells) + 1)]


def _decode(data: bytes, table: Path) -> tuple[str, str]:
    """Return the text and its encoding.

    Without a mark at its start, a text that is valid UTF-8 throughout is UTF-8. Other encodings are so by accident only
    if the text has few letters beyond ASCII.
    """
    encoding = next((name for mark, name in _BOMS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        encoding = _without_mark(data) or "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        row = _row_at(data[: error.start].decode(encoding, "ignore"))
        if encoding != "utf-8":
            raise ValueError(
                f"{table}, row {row}: not {encoding.upper()} text, though the file begins as such: {WAY_OUT}."
            ) from None
        return _western(data, row, table), "cp1252"
    if (place := text.find("\0")) >= 0:
        raise ValueError(
            f"{table}, row {_row_at(text[:place])}: a NUL byte: the file is damaged or no text; {WAY_OUT}."
        )
    return text, encoding.removesuffix("-sig").upper()


def _without_mark(data: bytes) -> str:
    """Return UTF-16's byte order if the first row is plain ASCII in it, else nothing."""
    for encoding in ("utf-16-le", "utf-16-be"):
        # 16 bits a letter: a cut-off last one is found when all is decoded.
        line = _NEWLINE.split(data[:4096].decode(encoding, "ignore"))[0]
        if line.isascii() and line.replace("\t", " ").isprintable() and line:
            return encoding
    return ""


def _western(data: bytes, row: int, table: Path) -> str:
    """Decode text in cp1252 (Windows) where it can be no other encoding.

    Letters above ASCII stand alone or in pairs there; Cyrillic, Chinese and Japanese texts have runs of them. Text of
    UTF-8 in the same file means that two encodings are mixed.
    """
    mixed = not data.decode("utf-8", "ignore").isascii()
    try:
        if not mixed and not re.search(rb"[\x80-\xff]{3}", data) and b"\0" not in data:
            return data.decode("cp1252")
    except UnicodeDecodeError:
        pass
    kind = "part UTF-8, part not" if mixed else "neither UTF-8 nor cp1252"
    raise ValueError(f"{table}, row {row}: the encoding is {kind}: {WAY_OUT}.")


def _row_at(before: str) -> int:
    return len(_NEWLINE.split(before))


def _csv_rows(text: str, separator: str, table: Path) -> Iterator[tuple[int, list[str]]]:
    """Split a text into rows that are not empty."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True
    )
    number, width = 0, 0
    while True:
        number, lines_before = number + 1, reader.line_num
        try:
            values = next(reader, None)
        except csv.Error as error:
            if "limit" in str(error):
                longest = csv.field_size_limit()
                fault = f'more than {longest} characters in a value, perhaps because a quote (") has no end'
            else:
                fault = 'a quote (") opens and does not end with the value'
            raise ValueError(
                f"{table}, row {number}: {fault}; write quotes inside twice."
            ) from None
        if values is None:
            return
        if not any(value.strip() for value in values):
            continue
        width = width or len(values)
        # Two stray quotes may make one value of several rows.
        if width > 2 and reader.line_num > lines_before + 1:
            lines = [line for value in values for line in _NEWLINE.split(value)[1:]]
            if any(line.count(separator) >= width - 1 for line in lines):
                raise ValueError(
                    f'{table}, row {number}: a value in quotes holds whole rows: a quote (") is missing or too many.'
                )
        yield number, values


# -- rows to columns -------------------------------------------------------------------------------


def _choose_rows(
    grids: Iterable[_Rows], required: Sequence[str], table: Path
) -> tuple[_Rows, list[str], Iterator[tuple[int, list[str]]]]:
    """Return the reading whose first row has the required columns, with that row and those after it."""
    seen, fitting, faults = [], [], []
    for grid in grids:
        rows = iter(grid.rows)
        try:
            header = next(rows, (0, [""]))[1]
        except ValueError as error:  # quotes that do not fit this separator
            faults.append(error)
            continue
        while header and not header[-1].strip():
            header = header[:-1]
        if header:
            seen.append((grid.described, header))
            if {*map(_column_key, required)} <= {*map(_column_key, header)}:
                fitting.append((grid, header, rows))
    if not seen:
        raise faults[0] if faults else ValueError(f"{table}: the table is empty.")
    if not fitting:
        raise ValueError(f"{table}: {_missing(required, seen)}.")
    # A table of one column reads alike with every separator; two sheets are two tables.
    if len(fitting) > 1 and (len(fitting[0][1]) > 1 or not fitting[0][0].separator):
        ways = " and ".join(grid.described for grid, *_ in fitting)
        raise ValueError(f"{table}: has these columns {ways}; must be one table: {WAY_OUT}.")
    return fitting[0]


def _column_key(column: str) -> str:
    return re.sub(r"[\s_]+", " ", column.strip()).casefold()


def _places(header: Sequence[str], wanted: Sequence[str], table: Path) -> dict[str, int]:
    """Return the place of each column that exists."""
    keys = [_column_key(name) for name in header]
    for column in wanted:
        if keys.count(_column_key(column)) > 1:
            raise ValueError(f"{table}: the column {column} must not be there twice.")
    return {
        column: keys.index(_column_key(column)) for column in wanted if _column_key(column) in keys
    }


def _missing(required: Sequence[str], first: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Say which columns a table lacks, in the reading that has most of them."""

    def found(header: Sequence[str]) -> int:
        return len({*map(_column_key, header)} & {*map(_column_key, required)})

    described, header = max(first, key=lambda one: (found(one[1]), len(one[1])))
    keys = {*map(_column_key, header)}
    names = ", ".join(column for column in required if _column_key(column) not in keys)
    return f"column {names} is missing. The first row, {described}, is: {_cut_short(' | '.join(header))}"


def _check_row(
    values: Sequence[str], header: Sequence[str], required: Sequence[int], grid: _Rows, where: str
) -> None:
    if more := [value for value in values[len(header) :] if value.strip()]:
        raise ValueError(
            f"{where}: must have {len(header)} values like the first row, not {_cut_short(more[0])} in addition: a "
            f"value with the separator inside needs quotes ({grid.described})."
        )
    # Excel leaves out separators after the last value of a row, so only the required values must exist. The cells of a
    # workbook are always in their columns.
    short = [header[place] for place in required if place >= len(values)]
    if short and grid.separator:
        raise ValueError(f"{where}: column {short[0].strip()} has no value: the row is too short.")


def _cut_short(text: str, longest: int = 200) -> str:
    """Return a text of a file for a message: without control characters, cut short."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: longest + 1])
    return text if len(text) <= longest else f"{text[:longest]} ..."


# -- the dataset around a table --------------------------------------------------------------------


def find_tree(folder: Path, places: Sequence[str], wrapper: str, whose: str) -> Path:
    """Return the folder of a public dataset's tree: this one, or `wrapper` in it.

    Args:
        folder: The folder that the user named.
        places: Folders of the tree, of which one must be there.
        wrapper: Name of the folder that the download may put around them.
        whose: Name of the dataset, for the message.

    Raises:
        FileNotFoundError: It is neither; names the right folder if the user named one inside it.
    """
    folder = folder.resolve()
    check_is_folder(folder)
    for root in (folder, folder / wrapper):
        if any((root / place).is_dir() for place in places):
            return root
    message = (
        f"{folder}: must hold one of {whose} folders ({', '.join(places)}), directly or inside "
        f"{wrapper}."
    )
    for root in folder.parents[:3]:
        if any(
            (root / place).is_dir() and folder.is_relative_to(root / place.split("/")[0])
            for place in places
        ):
            message += f" Perhaps -i {root}"
            break
    raise FileNotFoundError(message)


def check_is_folder(folder: Path) -> None:
    """Check that the input is a folder.

    Raises:
        FileNotFoundError: It does not exist.
        NotADirectoryError: It is a file.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: must be a folder, not a file.")


def find_table(folder: Path) -> Path:
    """Find the one table of a folder with `information` in its name: a CSV, or else a workbook.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There are several.
    """
    named = [
        file
        for file in sorted(folder.iterdir())
        # macOS leaves ._NAME beside a table, Excel ~$NAME and LibreOffice .~lock.NAME.
        if "information" in file.name.lower() and not file.name.startswith((".", "~$"))
    ]
    for ending in ENDINGS:
        if tables := [file for file in named if file.suffix.lower() == ending]:
            break
    else:
        raise FileNotFoundError(f"{folder}: no CSV with `information` in its name.")
    if len(tables) > 1:
        names = ", ".join(file.name for file in tables)
        raise ValueError(
            f"{folder}: must hold one CSV with `information` in its name, not {names}."
        )
    return tables[0]


def fault_in_listing(
    subject: str,
    rows: Sequence[Mapping[str, str]],
    places: Sequence[str],
    table: Path,
    root: Path,
    folders: Iterable[str] = (),
) -> str:
    """Say why a subject's rows and folders do not belong together; empty if they do.

    Args:
        subject: Its name.
        rows: Its rows in the table.
        places: Where its folders are.
        table: The table.
        root: The folder of the dataset.
        folders: Names of all subjects that have one.
    """
    if not places:
        alike = [name for name in folders if name.casefold() == subject.casefold()]
        but = f", but {' and '.join(alike)}, which differs in case" if alike else ""
        return f"{table}, row {rows[0]['row']}: there is no folder {subject}{but}."
    if len(places) > 1:
        return f"{root}: a code must be unique, not in {' and '.join(places)}."
    if len(rows) > 1:
        numbers = " and ".join(row["row"] for row in rows)
        return f"{table}: a code must be unique, not in rows {numbers}."
    return ""
