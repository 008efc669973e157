"""Published results for comparison, from the tables in the folder `published`.

A table has one row per number: `table`; the coordinates `model, fold, test, class` by the names that studies use;
`mean` and `spread` with their printed digits; `source`; and a `note` on how it was read.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from nnunet_ssp.console import nearest


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        mean: Mean as printed.
        spread: Spread as printed; may be empty.
        source: Where it was printed.
        note: How it was read; may be empty.
    """

    mean: str
    spread: str
    source: str
    note: str

    def __str__(self) -> str:
        return f"{self.mean} ± {self.spread}" if self.spread else self.mean


Numbers = dict[tuple[str, str, str, str], Published]


@lru_cache
def read_published(name: str) -> Numbers:
    """Read the numbers of a published table by model, fold, test and class.

    Args:
        name: FILE/TABLE, such as `demooij/table1`.

    Raises:
        ValueError: There is no such table; the message names those there are.
    """
    file, _, table = name.partition("/")
    folder = files("nnunet_ssp.study") / "published"
    known = []
    tables = (path for path in folder.iterdir() if path.name.endswith(".csv"))
    for path in sorted(tables, key=lambda path: path.name):
        stem = path.name.removesuffix(".csv")
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        if stem == file and (found := [row for row in rows if row["table"] == table]):
            return {_place(row): _number(row) for row in found}
        known += [f"{stem}/{other}" for other in dict.fromkeys(row["table"] for row in rows)]
    raise ValueError(
        f"published (={name}) must be one of {', '.join(known)}.{nearest(name, known)}"
    )


def _place(row: dict[str, str]) -> tuple[str, str, str, str]:
    return row["model"], row["fold"], row["test"], row["class"]


def _number(row: dict[str, str]) -> Published:
    return Published(row["mean"], row["spread"], row["source"], row["note"])


def published_settings(name: str) -> dict[str, Any]:
    """Read `published/NAME_settings.yaml`: `source`, and settings by `pretraining` or `models` and name.

    Raises:
        ValueError: There is no such file.
    """
    file = files("nnunet_ssp.study") / "published" / f"{name}_settings.yaml"
    if not file.is_file():
        raise ValueError(
            f"published_settings (={name}): there are no published settings of that name."
        )
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
