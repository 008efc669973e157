"""The dataset of a study: the numbers of folds, their sizes, the plans."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_ssp.cohort.dataset import Dataset, open_dataset
from nnunet_ssp.cohort.folds import Fold, part_of, subset_name
from nnunet_ssp.cohort.membership import (
    held_out,
    pretraining_cases,
    subjects_by_case,
    subjects_of,
    tested_cases,
)
from nnunet_ssp.files.digests import add_file
from nnunet_ssp.files.names import must_be_plain
from nnunet_ssp.files.nnunet import configuration_of, read_dataset, read_plans
from nnunet_ssp.launch import planning_command
from nnunet_ssp.nnunet import dataset_folder, dataset_id, nnunet_folder
from nnunet_ssp.slices.store import StoredCase, read_index, store_folder

USED = ("patch_size", "batch_size", "data_identifier")  # keys of the configuration
CONFIGURATION = "2d"
ON_TEST = ("test", "report")  # kinds of scores of the test subjects


@dataclass(frozen=True)
class OtherDataset:
    """Another prepared dataset, without folds of its own, that is only pretrained on.

    Attributes:
        name: Its full name.
        configuration: 2d configuration of the plans.
        stored: The cases of its slice store.
    """

    name: str
    configuration: dict[str, Any]
    stored: dict[str, StoredCase]

    @property
    def n_slices(self) -> int:
        """All slices."""
        return sum(entry.shape[0] for entry in self.stored.values())

    @property
    def fingerprint(self) -> str:
        """Hash of all that a pretraining draws from."""
        shapes = {name: entry.shape for name, entry in self.stored.items()}
        return digest([self.name, self.configuration, shapes])


@dataclass(frozen=True)
class Data:
    """A prepared dataset, with the folds that the study names."""

    dataset: Dataset
    plans_name: str
    # 2d configuration of the plans.
    configuration: dict[str, Any]

    @property
    def number(self) -> str:
        """The dataset's number, as nnU-Net's commands take it."""
        return str(dataset_id(self.dataset.home.name))

    @property
    def name(self) -> str:
        """The dataset's full name."""
        return self.dataset.home.name

    @property
    def patch_size(self) -> tuple[int, int]:
        """Rows and columns of the planned patch."""
        rows, columns = self.configuration["patch_size"]
        return rows, columns

    @property
    def batch_size(self) -> int:
        """Batch size of fine-tuning."""
        return int(self.configuration["batch_size"])

    @property
    def test_cases(self) -> list[str]:
        """The labelled cases of the test subjects."""
        return tested_cases(self.dataset.cases)

    def tested(self, evaluate: str, fold: str) -> list[str]:
        """List the cases on which a training on a fold is scored; `evaluate` as in `Study`, or `report`."""
        return self.test_cases if evaluate in ON_TEST else sorted(self.fold(fold)[1].val)

    def validation_images(self, fold: str) -> str:
        """Return the folder of links to a fold's validation images, below the study's folder."""
        return f"choosing/{digest(sorted(self.fold(fold)[1].val))[:8]}"

    def about(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of `cases.csv` for some cases."""
        return [vars(self.dataset.cases[name]) for name in names]

    @cached_property
    def description(self) -> dict[str, Any]:
        """The dataset's `dataset.json`."""
        file = self.dataset.home / "dataset.json"
        return read_dataset(file)

    @property
    def results_folder(self) -> str:
        """The end of a trainer's folder name in nnUNet_results."""
        return f"__{self.plans_name}__{CONFIGURATION}"

    def fold(self, name: str) -> tuple[int, Fold]:
        """Find number and content of a fold.

        Args:
            name: Name as in `folds.csv`. A label subset may have a fraction in place of its number, as
                `paper-nr0.1-seed0`.

        Raises:
            ValueError: There is none of that name.
        """
        name = self._with_number(name)
        for number, fold in enumerate(self.dataset.folds):
            if fold.name == name:
                return number, fold
        raise ValueError(
            f"{self.dataset.home} must have a fold called {name}; nnunet-ssp folds {self.number} lists them."
        )

    def has_fold(self, name: str) -> bool:
        """Whether there is a fold of that name."""
        try:
            self.fold(name)
        except ValueError:
            return False
        return True

    def _with_number(self, name: str) -> str:
        """Replace the fraction in the name of a label subset by the number that it stands for."""
        found = re.fullmatch(r"(.+)-(nr|slices)(0\.\d+)-seed(\d+)", name)
        if found is None:
            return name
        base, kind, fraction, seed = found.groups()
        train = self.fold(base)[1].train
        unit = "slices" if kind == "slices" else "subjects"
        total = len(subjects_of(train, self.dataset.cases))
        if unit == "slices":
            total = sum(self.dataset.n_slices[case] for case in train)
        return subset_name(base, part_of(float(fraction), total), seed, unit)

    @cached_property
    def stored(self) -> dict[str, StoredCase]:
        """The cases of the slice store."""
        folder = store_folder(self.dataset.prepared, self.configuration["data_identifier"])
        return read_index(folder)[1]

    def of(self, plans: str) -> Data:
        """Return the same folds with other plans; itself for none.

        Raises:
            FileNotFoundError: The dataset is not prepared with these plans.
        """
        if plans in ("", self.plans_name):
            return self
        if plans not in self._others:
            self._others[plans] = replace(open_data(self.name, plans), dataset=self.dataset)
        return self._others[plans]

    @cached_property
    def _others(self) -> dict[str, Data]:
        return {}

    def source(self, dataset: int) -> OtherDataset:
        """Open another dataset that is pretrained on, prepared with plans of the same name.

        Raises:
            FileNotFoundError: There is no such dataset, or it has no such plans.
        """
        if dataset not in self._sources:
            prepared = nnunet_folder("nnUNet_preprocessed")
            try:
                folder = dataset_folder(prepared, dataset)
            except FileNotFoundError:  # it is only converted
                folder = prepared / dataset_folder(nnunet_folder("nnUNet_raw"), dataset).name
            file = folder / f"{self.plans_name}.json"
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} is missing: nnunet-ssp prepare {dataset} --plans-from {self.number} -p {self.plans_name}"
                )
            configuration = _configuration(file)
            _, stored = read_index(store_folder(folder, configuration["data_identifier"]))
            self._sources[dataset] = OtherDataset(folder.name, configuration, stored)
        return self._sources[dataset]

    @cached_property
    def _sources(self) -> dict[int, OtherDataset]:
        return {}

    def labelled_slices(self, fold: str) -> int:
        """Count the slices of a fold's training side.

        Raises:
            ValueError: The dataset has changed since the slice store was made.
        """
        names = self.fold(fold)[1].train
        self._check_prepared(names, self.stored)
        return sum(self.stored[name].n_slices for name in names)

    def pretraining_slices(self, fold: str) -> int:
        """Count the slices that a pretraining on a fold draws from.

        Raises:
            ValueError: The dataset has changed since the slice store was made.
        """
        return sum(self.stored[name].n_slices for name in self._drawn_from(fold))

    def labelled_share(self, fold: str) -> float:
        """Return the subjects whose labels a fold trains on, as a share of those that it may pretrain on."""
        cases = self.dataset.cases
        return len(subjects_of(self.fold(fold)[1].train, cases)) / len(
            subjects_of(self._drawn_from(fold), cases)
        )

    def fingerprint(self, fold: str) -> str:
        """Hash all that a training on a fold learns from, so that trainings on other data are told apart."""
        number, found = self.fold(fold)
        labels = self.description["labels"]
        return digest([self.name, number, labels, self.configuration, found.train, found.val])

    def unlabelled_fingerprint(self, fold: str) -> str:
        """Hash all that a pretraining on a fold draws from."""
        stored = {name: self.stored[name].shape for name in self._drawn_from(fold)}
        number, found = self.fold(fold)
        return digest([self.name, number, self.configuration, stored, found.val])

    def _drawn_from(self, fold: str) -> list[str]:
        """List the cases of the slice store that a pretraining on a fold draws from."""
        cases = self.dataset.cases
        self._check_prepared(self.stored, cases)
        subjects = subjects_by_case(self.stored, cases)
        return pretraining_cases(subjects, held_out(self.fold(fold)[1].val, cases))

    def _check_prepared(self, names: Iterable[str], known: Container[str]) -> None:
        if missing := next((name for name in names if name not in known), None):
            raise ValueError(
                f"{self.dataset.prepared} was prepared before the dataset changed ({missing} is in only one of "
                f"cases.csv and slice store). Prepare it again: nnunet-ssp prepare {self.number} -p {self.plans_name}"
            )


def digest(content: object) -> str:
    """Hash content that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(place: Path) -> str:
    """Hash the content of a file, or of the files of a folder; empty where there is nothing."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    if not files:
        return ""
    whole = hashlib.sha256()
    for file in files:
        name = file.relative_to(place).as_posix()
        whole.update(f"{name} {file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        add_file(whole, file)
    return whole.hexdigest()[:16]


def open_data(dataset: str | int, plans_name: str, how: str = "") -> Data:
    """Open a prepared dataset.

    Args:
        dataset: Id or name.
        plans_name: Name of its plans.
        how: Arguments of `nnunet-ssp prepare` that make them, see `planning_command`.

    Raises:
        FileNotFoundError: There is no such dataset, or it is not prepared with these plans.
        RuntimeError: One of nnU-Net's variables is not set.
        ValueError: One of its tables is wrong.
    """
    found = open_dataset(dataset)
    file = found.prepared / f"{must_be_plain(plans_name, 'plans')}.json"
    if not file.is_file():
        line = planning_command(dataset_id(found.home.name), plans_name, how)
        raise FileNotFoundError(f"{file} is missing; name other plans with -p, or make it: {line}")
    configuration = _configuration(file)
    return Data(found, plans_name, configuration)


def planned(dataset: str | int, plans_name: str) -> bool:
    """Whether a dataset has plans of this name; false where there is no such dataset."""
    try:
        folder = open_dataset(dataset).prepared
    except (FileNotFoundError, RuntimeError):
        return False
    return (folder / f"{must_be_plain(plans_name, 'plans')}.json").is_file()


def _configuration(file: Path) -> dict[str, Any]:
    """Read the 2d configuration."""
    return configuration_of(read_plans(file), CONFIGURATION, str(file), USED)
