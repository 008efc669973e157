"""CSV files: those of M&Ms and M&Ms-2, `cases.csv`, `folds.csv`, and lists of test subjects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.cine_trees import ED, ES, MNMS2_CSV, MNMS_CSV, add_mnms, add_mnms2, drawn
from tests.malformed import datasets
from tests.malformed.entry import ANY_FILE, Damage, Entry, replaced
from tests.malformed.images import CONVERTED

LONG = "x" * 200_000  # beyond what Python's reader takes for a field


def edited(change: Callable[[str], str], encoding: str = "utf-8") -> Damage:
    def damage(file: Path) -> None:
        file.write_bytes(change(file.read_text("utf-8")).encode(encoding))

    return damage


def line(number: int, change: Callable[[str], str]) -> Damage:
    """Another text in one row, the header being 0."""

    def edit(text: str) -> str:
        lines = text.splitlines(keepends=True)
        lines[number] = change(lines[number])
        return "".join(lines)

    return edited(edit)


def value(number: int, column: str, text: str) -> Damage:
    """Another value in one row of a table without quotes."""

    def edit(content: str) -> str:
        rows = [row.split(",") for row in content.splitlines()]
        rows[number][rows[0].index(column)] = text
        return "\n".join(map(",".join, rows)) + "\n"

    return edited(edit)


# Damages of any table whose rows are read.
OF_TABLES: dict[str, tuple[Damage, str]] = {
    **{
        name: (damage, "column|empty|web page|git-lfs|NUL|not a")
        for name, damage in ANY_FILE.items()
    },
    "an encoding that is none": (
        replaced(b"\xff\xfe\x81\x00\xd8" * 99 + b"\xff"),
        "encoding|UTF|column|not a",
    ),
    "a NUL among the letters": (
        line(1, lambda row: row.replace(",", ",\0", 1)),
        "NUL|zero byte|column|character",
    ),
    "a field of 200 kB": (line(1, lambda row: f"{LONG},{row}"), "field|long|characters"),
    "a quote that is not closed": (line(1, lambda row: f'"{row}'), "quote"),
    "no column names": (edited(lambda text: text.split("\n", 1)[1]), "column"),
    "a column twice": (
        line(0, lambda row: row.strip() + "," + row),
        "column.*(twice|once|unique)|(twice|once|unique).*column",
    ),
}


def of_mnms(spoil: Damage) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        for code in ("A1B2C3", "D4E5F6"):
            add_mnms(root / "source", "Training/Labeled", code, drawn(ED, ES))
        spoil(root / "source" / MNMS_CSV)
        return ["convert", "mnms", "-i", str(root / "source"), "-d", "7", "-np", "1"]

    return make


def of_mnms2(spoil: Damage) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        add_mnms2(root / "source", 1)
        spoil(root / "source" / MNMS2_CSV)
        return ["convert", "mnms2", "-i", str(root / "source"), "-d", "7", "-np", "1"]

    return make


def of_cases(spoil: Damage, *command: str, file: str = "cases.csv") -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        predictions = datasets.predictions(root)
        datasets.prepared(root)
        for place in ("raw", "preprocessed"):
            spoil(root / place / datasets.NAME / file)
        return [word.replace("PREDICTIONS", str(predictions)) for word in command]

    return make


FOLDS = ("folds", datasets.NUMBER)
PREPARE = ("prepare", datasets.NUMBER, "-p", "nnUNetPlans", "-np", "1")
EVALUATE = ("evaluate", datasets.NUMBER, "PREDICTIONS", "-np", "1")
STUDY = ("study", "demooij", "-d", datasets.NUMBER, "--dry-run")

OF_CASES: dict[str, tuple[Damage, str]] = {
    "a row that is too short": (
        line(2, lambda row: "A_frame02,A\n"),
        "row 3.*too short|row 3.*no value",
    ),
    "a row that is too long": (
        line(2, lambda row: row.strip() + ",x,y,z\n"),
        "row 3.*(long|values|columns)",
    ),
    "a case twice": (
        line(2, lambda row: row.replace("A_frame02", "A_frame00")),
        "row 3.*only once",
    ),
    "no case": (value(2, "case", ""), "row 3.*empty"),
    "no subject": (value(2, "subject", ""), "row 3.*empty"),
    "a split that there is not": (value(2, "split", "holdout"), "row 3.*split.*one of"),
    "a phase that there is not": (value(2, "phase", "mid"), "row 3.*phase.*one of"),
    "a negative frame": (value(2, "frame", "-1"), "row 3.*frame.*whole number"),
    "a frame in words": (value(2, "frame", "two"), "row 3.*frame.*whole number"),
    "a frame beyond the last": (value(2, "frame", "4"), "row 3.*frame.*below"),
    "a frame in digits of another script": (
        value(2, "frame", "\u0662"),
        "row 3.*frame.*whole number",
    ),
    "a frame of 5,000 digits": (value(2, "frame", "1" * 5000), "row 3.*frame"),
    "a case with a path": (
        value(2, "case", "../../escaped"),
        "row 3.*case.*(plain|path|letters|name)",
    ),
    "a subject with a path": (
        value(2, "subject", "../../escaped"),
        "row 3.*subject.*(plain|path|letters|name)",
    ),
    "an absolute case": (
        value(2, "case", "/tmp/escaped"),
        "row 3.*case.*(plain|path|letters|name)",
    ),
}


def entries() -> Iterator[Entry]:
    for name, (spoil, rule) in OF_TABLES.items():
        made = {
            f"M&Ms' CSV: {name}": (of_mnms(spoil), "Dataset_information", CONVERTED),
            f"M&Ms-2's CSV: {name}": (of_mnms2(spoil), "dataset_information", CONVERTED),
            f"cases.csv: {name}": (of_cases(spoil, *FOLDS), "cases", None),
        }
        for full, (make, file, writes) in made.items():
            yield Entry(full, make, rf"error:.*{file}\w*\.csv.*({rule})", writes=writes)
    for name, (spoil, rule) in OF_CASES.items():
        says = rf"error:.*cases\.csv.*({rule})"
        yield Entry(f"cases.csv: {name}", of_cases(spoil, *FOLDS), says)
    for what, command in (("prepare", PREPARE), ("evaluate", EVALUATE)):
        for name in ("a split that there is not", "a case with a path", "a case twice"):
            spoil, rule = OF_CASES[name]
            says = rf"error:.*cases\.csv.*({rule})"
            yield Entry(f"cases.csv in {what}: {name}", of_cases(spoil, *command), says)
    for name in ("a field of 200 kB", "a quote that is not closed", "zeros"):
        spoil, rule = OF_TABLES[name]
        if name == "a quote that is not closed":
            spoil = line(1, lambda row: row.replace(",", ',"', 1))
        make = of_cases(spoil, *FOLDS, file="folds.csv")
        yield Entry(f"folds.csv: {name}", make, rf"error:.*folds\.csv.*({rule})")

    def without_file(root: Path) -> list[str]:
        words = of_mnms(lambda file: file.unlink())(root)
        return words

    def two_files(root: Path) -> list[str]:
        return of_mnms(lambda file: file.with_name("information2.csv").write_text("a,b\n"))(root)

    yield Entry("M&Ms' CSV: none", without_file, r"error:.*source.*no CSV", writes=CONVERTED)
    yield Entry(
        "M&Ms' CSV: two", two_files, r"error:.*source.*one CSV.*information2", writes=CONVERTED
    )

    def tests(content: bytes) -> Callable[[Path], list[str]]:
        def make(root: Path) -> list[str]:
            words = of_mnms(lambda file: None)(root)
            (root / "tests.txt").write_bytes(content)
            return [*words, "--test", str(root / "tests.txt")]

        return make

    for name, content, rule in (
        ("an unknown code", b"A1B2C3\nZ9Z9Z9\n", "Z9Z9Z9"),
        ("an encoding that is none", b"\x81\x8d\x9d\n", "encoding|UTF|text|no subject"),
        ("a folder's name", b"../../x\n", "no subject"),
    ):
        yield Entry(
            f"list of test subjects: {name}",
            tests(content),
            rf"error:.*tests\.txt.*({rule})",
            writes=CONVERTED,
        )


ENTRIES = tuple(entries())
