"""A dataset as the fold commands see it: its cases, its folds and where they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nnunet_ssp.cohort.cases import Case, case_files, read_cases
from nnunet_ssp.cohort.folds import Fold
from nnunet_ssp.cohort.membership import is_trainable
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.files.tables import read_table, whole_number
from nnunet_ssp.nnunet import dataset_folder, dataset_id, nnunet_folder


@dataclass(frozen=True)
class Dataset:
    """The tables of a dataset, and its folder in each of nnU-Net's three; only one of the first two must exist."""

    raw: Path
    prepared: Path
    results: Path
    cases: dict[str, Case]
    folds: list[Fold]

    @property
    def home(self) -> Path:
        """The folder that the tables are read from."""
        return self.raw if self.raw.is_dir() else self.prepared

    @cached_property
    def n_slices(self) -> dict[str, int]:
        """Slices of each labelled training frame, as far as its image can be read or the slice store is here."""
        from nnunet_ssp.files.nifti import read_header

        found = {}
        for name, case in self.cases.items():
            if is_trainable(case):
                with suppress(ValueError):  # missing or damaged
                    shape, _ = read_header(case_files(self.raw, case)[0])
                    if len(shape) > 2:
                        found[name] = int(shape[2])
        if not found and any(self.prepared.glob("*_slices/index.json")):
            from nnunet_ssp.slices.store import read_index

            for index in self.prepared.glob("*_slices/index.json"):
                found |= {name: e.n_slices for name, e in read_index(index.parent)[1].items()}
        return found


def open_dataset(dataset: str | int) -> Dataset:
    """Read the cases and folds of a dataset, from nnUNet_raw or else from nnUNet_preprocessed.

    Raises:
        FileNotFoundError: No such dataset, or one without our tables.
        ValueError: A table is wrong.
    """
    raw_base, prepared_base, results_base = (
        nnunet_folder(f"nnUNet_{place}") for place in ("raw", "preprocessed", "results")
    )
    try:
        home = dataset_folder(raw_base, dataset)
    except FileNotFoundError:
        if not any(prepared_base.glob(f"Dataset{dataset_id(dataset):03d}_*")):
            raise
        home = dataset_folder(prepared_base, dataset)
    if not (home / "dataset.json").is_file():
        raise FileNotFoundError(
            f"{home / 'dataset.json'} is missing: the conversion is unfinished, run nnunet-ssp convert again."
        )
    if not (home / "cases.csv").is_file():
        raise FileNotFoundError(
            f"{home}/cases.csv is missing: without it subjects are unknown, and nnU-Net's own folds by case apply. "
            "nnunet-ssp convert writes it."
        )
    cases = read_cases(home / "cases.csv")
    return Dataset(
        raw_base / home.name,
        prepared_base / home.name,
        results_base / home.name,
        cases,
        read_folds(home),
    )


def check_plain(
    raw: Path, subject_pattern: str | None, different: Sequence[Sequence[str]] = ()
) -> bool:
    """Check a dataset of nnU-Net's own, which keeps its folds beside the preprocessed data."""
    from nnunet_ssp.cohort.leaks import report_plain

    prepared = nnunet_folder("nnUNet_preprocessed") / raw.name
    folds = read_folds(prepared) or read_folds(raw)
    return report_plain(raw, prepared, subject_pattern, folds, different)


def read_folds(folder: Path) -> list[Fold]:
    """Read the folds of a dataset's folder, with names and sources as far as `folds.csv` has them."""
    if not (folder / "splits_final.json").is_file():
        return []
    rows: dict[int | None, dict[str, str]] = {}
    if (folder / "folds.csv").is_file():
        table = read_table(folder / "folds.csv", ["fold"], ["name", "source"], numbers=["fold"])
        rows = {whole_number(row["fold"]): row for row in table}
        if None in rows or len(rows) < len(table):
            raise ValueError(f"{folder / 'folds.csv'}: `fold` must be a number from 0, each once.")
    found = []
    for number, sides in enumerate(read_splits(folder / "splits_final.json")):
        row = rows.get(number, {})
        found.append(
            Fold(
                row.get("name") or f"fold-{number}",
                tuple(sides["train"]),
                tuple(sides["val"]),
                row.get("source") or "unknown",
            )
        )
    return found
