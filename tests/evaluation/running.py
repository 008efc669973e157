"""Calls of `nnunet-ssp evaluate` in tests, and what they wrote."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from nnunet_ssp.cli import main

Predict = Callable[..., Path]


def run(line: str, *more: object) -> int:
    return main(["evaluate", *shlex.split(line), *map(str, more)])


def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict]:
    csvs = (pd.read_csv(folder / f"{name}.csv") for name in ("metrics", "slices", "clinical"))
    return *csvs, json.loads((folder / "summary.json").read_text())


def strict_json(path: Path) -> dict:
    """Read JSON by the standard, which has no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)
