"""Tables that come with a data set, and the folders they describe."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def check_is_folder(folder: Path) -> None:
    """Check the input.

    Raises:
        FileNotFoundError: It does not exist.
        NotADirectoryError: It is a file.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: must be a folder, not a file.")


def find_table(folder: Path) -> Path:
    """The one CSV of a folder with `information` in its name.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There are several.
    """
    tables = sorted(file for file in folder.glob("*.csv") if "information" in file.name.lower())
    if not tables:
        raise FileNotFoundError(f"{folder}: no CSV with `information` in its name.")
    if len(tables) > 1:
        names = ", ".join(file.name for file in tables)
        raise ValueError(
            f"{folder}: must hold one CSV with `information` in its name, not {names}."
        )
    return tables[0]


def read_table(
    table: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Read the rows of a CSV, without the empty ones, of which spreadsheets may add a million.

    Args:
        table: The file; its first row has the names of the columns.
        required: Columns that must be there.
        optional: Columns that are empty where they are not there.

    Returns:
        In the file's order the values of these columns, empty where they are missing or NaN, and
        the number of the row as `row`.

    Raises:
        ValueError: A required column is missing.
    """
    with open(table, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        header = [name.strip() for name in next(reader, [])]
        missing = [column for column in required if column not in header]
        if missing:
            raise ValueError(f"{table}: column {', '.join(missing)} is missing.")
        rows = []
        for values in reader:
            if any(values):
                raw = dict(zip(header, values, strict=False))
                row = {c: raw.get(c, "").strip() for c in (*required, *optional)}
                row = {c: "" if text.lower() == "nan" else text for c, text in row.items()}
                if any(row.values()):
                    rows.append(row | {"row": str(reader.line_num)})
    return rows


def fault_in_listing(
    subject: str, rows: Sequence[Mapping[str, str]], places: Sequence[str], table: Path, root: Path
) -> str:
    """Why a subject's rows and folders do not belong together; empty if they do.

    Args:
        subject: Its name.
        rows: Its rows in the table.
        places: Where its folders are.
        table: The table.
        root: The folder of the data set.
    """
    if not places:
        return f"{table}, row {rows[0]['row']}: there is no folder {subject}."
    if len(places) > 1:
        return f"{root}: a code must be unique, not in {' and '.join(places)}."
    if len(rows) > 1:
        numbers = " and ".join(row["row"] for row in rows)
        return f"{table}: a code must be unique, not in rows {numbers}."
    return ""
