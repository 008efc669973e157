"""What a pretraining gained over training from scratch, as measured with this package.

`measured.csv` is computed by `docs/make_results.py` from the scores that the study `acdc-few` wrote.
"""

from __future__ import annotations

import csv
from importlib.resources import files

TABLE = "measured.csv"
WHERE = "docs/results.md"


def gain_in_words(method: str) -> str:
    """Say what was measured for files of a pretraining method, such as "Dense"."""
    rows = [row for row in read_measured() if row["method"] == method]
    if not rows:
        return f"measured: no gain of {method} over training from scratch yet, see {WHERE}"
    found: dict[str, list[str]] = {}
    for row in rows:
        gain = (
            f"{row['pretrained']} against {row['scratch']} with {row['labelled']} labelled patients"
        )
        found.setdefault(row["data"], []).append(gain)
    gains = "; ".join(f"{', '.join(several)}, on {data}" for data, several in found.items())
    return f"measured: {method}, mean 3D Dice {gains}; yours will differ, see {WHERE}"


def read_measured() -> list[dict[str, str]]:
    """Read the table, one row for each method and number of labelled patients."""
    text = (files(__package__) / TABLE).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
