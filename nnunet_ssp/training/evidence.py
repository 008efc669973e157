"""What a pretraining gained over training from scratch, as measured with this package.

`measured.csv` is computed by `docs/make_results.py` from the scores that the study `acdc-few` wrote. A row holds for a
method with its default settings, but for those that the row names and for the length of the run; and for what it was
pretrained on, beside what it was fine-tuned on.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from nnunet_ssp.console import some
from nnunet_ssp.files.contents import is_whole, shown
from nnunet_ssp.methods import METHODS
from nnunet_ssp.setting_values import as_word
from nnunet_ssp.settings import LENGTH_AND_MACHINE, Settings, override, setting_types

TABLE = "measured.csv"
WHERE = "docs/results.md"
# Slices that the pretrainings of the table have drawn, as `acdc-few` with `--size cpu` makes them: of methods that make
# two views of a slice half as many, so that all see as many images.
SLICES = 50_400
TWO_VIEWS = ("Dense", "SimCLR", "PCL", "DINO", "BYOL")
SAME = "the same dataset"  # what most rows were pretrained on; others name what it was
FEW_SUBJECTS = 10  # pretrainings on fewer are compared with the row on four subjects, too


def gain_in_words(
    method: str,
    settings: Mapping[str, Any] | None = None,
    seen: int | None = None,
    elsewhere: bool | None = None,
    few_subjects: bool = False,
) -> str:
    """Say what was measured for files of a pretraining method, such as "Dense".

    Args:
        method: Name of the method.
        settings: Those that the pretraining recorded; None where the file does not say.
        seen: Slices that it has drawn; None where the file does not say.
        elsewhere: Whether it was on another dataset than the one to fine-tune on; None where one is not known.
        few_subjects: Whether it was on few subjects.
    """
    measured = SLICES // (2 if method in TWO_VIEWS else 1)
    few = seen is not None and 2 * seen < measured
    short = f"; yours drew {seen:,} slices, the measured one {measured:,}" if few else ""
    rows = [row for row in read_measured() if row["method"] == method]
    if not rows:
        return f"measured: no gain of {method} over training from scratch yet, see {WHERE}"
    fitting = rows_of(rows, method, settings)
    if not fitting:
        nearest = [row for row in rows if row["settings"] == rows[0]["settings"] and _is_same(row)]
        own, theirs = (
            _telling(rows, method, given)
            for given in (settings, _as_measured(method, rows[0]["settings"]))
        )
        mine = ", ".join(f"{name}={own[name]}" for name in own if own[name] != theirs[name])
        return (
            f"measured: no gain of {method} with {mine} over training from scratch yet; "
            f"nearest is {_named(method, nearest)}, {_gains(nearest)}{short}, see {WHERE}"
        )
    other = _others(method, fitting[0]["settings"], settings)
    differ = f"not with your {some(other, 3)}" if other else "yours will differ"
    if elsewhere is False and not few_subjects:
        fitting = [row for row in fitting if _is_same(row)] or fitting
    elif elsewhere or (few_subjects and elsewhere is None):
        fitting = sorted(fitting, key=_is_same)
    if elsewhere and all(map(_is_same, fitting)):
        differ += f": the measured were pretrained on {SAME}, yours on another"
    kinds: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in fitting:
        kinds.setdefault((row["settings"], _source(row)), []).append(row)
    where = len({source for _, source in kinds}) > 1 or not _is_same(fitting[0])
    gains = "; ".join(
        f"{_named(method, kind)}{f', pretrained on {source}' if where else ''}, {_gains(kind)}"
        for (_, source), kind in kinds.items()
    )
    return f"measured: {gains}; {differ}{short}, see {WHERE}"


def gain_of(
    record: Mapping[str, Any],
    epochs: int | None = None,
    pretrained_on: str | None = None,
    dataset: str | None = None,
) -> str:
    """Say what was measured for a pretraining, by the record in its file.

    Args:
        record: The record.
        epochs: Epochs that are finished; by default all.
        pretrained_on: Full name of its dataset; None where the file does not say.
        dataset: Full name of the dataset to fine-tune on; None where it is not known.
    """
    settings, method = record.get("settings"), shown(record["method"])
    elsewhere = None if None in (pretrained_on, dataset) else pretrained_on != dataset
    subjects = (record.get("counts") or {}).get("subjects")
    few = isinstance(subjects, int) and subjects < FEW_SUBJECTS
    if not isinstance(settings, dict):
        return gain_in_words(method, elsewhere=elsewhere, few_subjects=few)
    return gain_in_words(method, settings, slices_drawn(record, epochs), elsewhere, few)


def slices_drawn(record: Mapping[str, Any], epochs: int | None = None) -> int | None:
    """Return how many slices a pretraining has drawn, with repeats; None where its record does not say.

    Args:
        record: Of the pretraining.
        epochs: Epochs that are finished; by default all.
    """
    settings, counts = (record.get(name) or {} for name in ("settings", "counts"))
    epochs = settings.get("num_epochs") if epochs is None else epochs
    steps, batch = settings.get("iterations_per_epoch"), settings.get("batch_size")
    # Without a number of steps, an epoch shows each slice once.
    factors = (epochs, counts.get("slices")) if steps is None else (epochs, steps, batch)
    if "iterations_per_epoch" not in settings or not all(map(is_whole, factors)):
        return None
    return math.prod(factors)


def rows_of(
    rows: Sequence[Mapping[str, str]], method: str, settings: Mapping[str, Any] | None
) -> list[Mapping[str, str]]:
    """Return the rows of a method that hold for a run; all where its settings are unknown.

    Those hold whose telling settings are the run's: the recipe, and whatever a row of the method names.
    """
    mine = [row for row in rows if row["method"] == method]
    if settings is None:
        return mine
    own = _telling(mine, method, settings)
    return [
        row for row in mine if _telling(mine, method, _as_measured(method, row["settings"])) == own
    ]


def _telling(
    rows: Sequence[Mapping[str, str]], method: str, settings: Mapping[str, Any] | None
) -> dict[str, str]:
    """Return the settings by which rows of a method are told apart, as words; defaults where a run names none."""
    defaults = _as_measured(method, "")
    named = {word.partition("=")[0] for row in rows for word in row["settings"].split()}
    names = sorted(({"recipe"} & {*defaults}) | named)
    return {name: shown(as_word((settings or {}).get(name, defaults.get(name)))) for name in names}


def _others(method: str, row: str, settings: Mapping[str, Any] | None) -> list[str]:
    """Return the method's own settings, and those of its optimiser, that are not as in a row."""
    defaults = _defaults(method)
    if defaults is None or settings is None:
        return []
    compared = {*setting_types(type(defaults))} - LENGTH_AND_MACHINE
    measured = _as_measured(method, row)
    return sorted(
        n for n in compared if as_word(settings.get(n, measured[n])) != as_word(measured[n])
    )


def _defaults(method: str) -> Settings | None:
    return next((m.settings_class() for m in METHODS if m.__name__ == method), None)


def _as_measured(method: str, row: str) -> dict[str, Any]:
    """Return the settings of a method that a row names, with the defaults of the others."""
    defaults = _defaults(method)
    return {} if defaults is None else asdict(override(defaults, row)[0])


def _source(row: Mapping[str, str]) -> str:
    """Return what a row was pretrained on."""
    return row.get("pretrained_on") or SAME


def _is_same(row: Mapping[str, str]) -> bool:
    """Whether a row was pretrained on the dataset that it was fine-tuned on."""
    return _source(row) == SAME


def _named(method: str, rows: Sequence[Mapping[str, str]]) -> str:
    settings = ", ".join(dict.fromkeys(row["settings"] for row in rows if row["settings"]))
    return f"{method} with {settings}" if settings else method


def _gains(rows: Sequence[Mapping[str, str]]) -> str:
    found: dict[str, list[str]] = {}
    for row in rows:
        gain = (
            f"{row['pretrained']} against {row['scratch']} with {row['labelled']} labelled patients"
        )
        found.setdefault(row["data"], []).append(gain)
    gains = "; ".join(f"{', '.join(several)}, on {data}" for data, several in found.items())
    return f"mean 3D Dice {gains}"


def read_measured() -> list[dict[str, str]]:
    """Read the table, one row for each method, its settings and number of labelled patients."""
    text = (files(__package__) / TABLE).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
