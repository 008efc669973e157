"""Names that become paths: of datasets, plans, configurations, cases, subjects, models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.cine_trees import ED, ES, MNMS_CSV, add_mnms, add_mnms_row, cine, drawn, save
from tests.malformed import datasets
from tests.malformed.entry import Entry
from tests.malformed.images import CONVERTED, PREPARED

PLAIN = "plain|letters|path|must be|name"


def words(*arguments: str) -> Callable[[Path], list[str]]:
    """A command on the dataset with a name in it that is none."""

    def make(root: Path) -> list[str]:
        predictions = datasets.predictions(root)
        datasets.prepared(root)
        return [word.replace("PREDICTIONS", str(predictions)) for word in arguments]

    return make


def converted(*arguments: str) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        add_mnms(root / "source", "Training/Labeled", "A1B2C3", drawn(ED, ES))
        return ["convert", "mnms", "-i", str(root / "source"), "-np", "1", *arguments]

    return make


NUMBER = datasets.NUMBER
ON_COMMAND_LINES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "a dataset with a path": (words("prepare", "../../x"), "dataset.*must be"),
    "a dataset's name with a path": (words("prepare", "Dataset907_../../x"), "dataset|Dataset907"),
    "a dataset beyond nnU-Net's": (words("prepare", "1000"), "1000.*999"),
    "a dataset in digits of another script": (
        words("prepare", "\u0669\u0660\u0667"),
        "dataset.*must be",
    ),
    "plans with a path": (
        words("prepare", NUMBER, "-p", "../../x", "-np", "1"),
        rf"x.*({PLAIN}|missing)",
    ),
    "absolute plans": (
        words("prepare", NUMBER, "-p", "/etc/hostname", "-np", "1"),
        f"hostname.*({PLAIN}|missing)",
    ),
    "new plans with a path": (
        words("prepare", NUMBER, "-overwrite_plans_name", "../../escaped", "-np", "1"),
        f"escaped.*({PLAIN})|({PLAIN}).*escaped",
    ),
    "a configuration with a path": (
        words("prepare", NUMBER, "-p", "nnUNetPlans", "-c", "../../x", "-np", "1"),
        "configuration.*x",
    ),
    "a planner with a path": (
        words("prepare", NUMBER, "-pl", "../../x", "-np", "1"),
        "(planner|-pl).*x",
    ),
    "inspect: plans with a path": (
        words("inspect", "none.pth", "-d", NUMBER, "-p", "../x"),
        "none.pth|x",
    ),
    "folds: a fold that is a path": (
        words("folds", NUMBER, "--subsets", "1", "--of", "../../x"),
        "x",
    ),
    "evaluate: a model without a name": (words("evaluate", NUMBER, "=PREDICTIONS"), "NAME=FOLDER"),
    "evaluate: no such baseline": (
        words("evaluate", NUMBER, "PREDICTIONS", "--baseline", "../x"),
        "baseline",
    ),
    "evaluate: a pattern that is none": (
        words("evaluate", NUMBER, "PREDICTIONS", "--subject-pattern", "(", "-np", "1"),
        "subject.pattern.*regular expression",
    ),
    "evaluate: a pattern that never ends": (
        words("evaluate", NUMBER, "PREDICTIONS", "--subject-pattern", "(.+)+$", "-np", "1"),
        "subject.pattern.*repetitions",
    ),
    "convert: a name with a path": (converted("-d", "7", "--name", "../../x"), "name.*must be"),
    "convert: an absolute name": (converted("-d", "7", "--name", "/tmp/escaped"), "name.*must be"),
    "convert: an id of 0": (converted("-d", "0"), "id.*within"),
    "convert: a source that there is not": (
        converted("-d", "7", "--add", "x:y"),
        "add.*SOURCE:FOLDER",
    ),
}


def csv_code(code: str) -> Callable[[Path], list[str]]:
    """A row of M&Ms' CSV beside a good subject, with a folder where its path would lead."""

    def make(root: Path) -> list[str]:
        add_mnms(root / "source", "Training/Labeled", "A1B2C3", drawn(ED, ES))
        add_mnms_row(root / "source", code)
        (root / "elsewhere").mkdir()
        assert (root / "source" / MNMS_CSV).is_file()
        return ["convert", "mnms", "-i", str(root / "source"), "-d", "7", "-np", "1"]

    return make


def cine_name(name: str) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        save(cine(), root / "source" / f"{name}.nii.gz")
        return ["convert", "cine", "-i", str(root / "source"), "-d", "7", "-np", "1"]

    return make


def entries() -> Iterator[Entry]:
    for name, (make, says) in ON_COMMAND_LINES.items():
        # The tables are copied before the plans are read.
        writes = PREPARED if "configuration" in name or "plans" in name else None
        yield Entry(f"name: {name}", make, f"error:.*({says})", writes=writes)
    for name, code in (
        ("a code with a path", "../../../elsewhere"),
        ("a code of dots", ".."),
        ("an absolute code", "/tmp/escaped"),
        ("a code of 300 letters", "x" * 300),
    ):
        yield Entry(
            f"name in M&Ms' CSV: {name}",
            csv_code(code),
            r"REFUSED.*(elsewhere|\.\.|escaped|xxx)",
            exits=1,
            writes=CONVERTED,
        )
    yield Entry(
        "name: a file as long as the file system allows",
        cine_name("x" * 248),
        r"xxx.*(long|characters|name)",
        writes=CONVERTED,
    )


ENTRIES = tuple(entries())
