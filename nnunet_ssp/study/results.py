"""What the finished runs of a study scored.

The value of one training is the mean over subjects, each the mean of its frames (`evaluation.statistics`: the unit is
the subject). A model on a fold has one value for each seed. A run that is not finished has none: nothing stands for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nnunet_ssp.evaluation.labels import SYNONYMS, Labels, read_labels
from nnunet_ssp.evaluation.statistics import (
    MEAN,
    SCORES,
    compare,
    holm,
    with_mean,
)
from nnunet_ssp.evaluation.volumes import UNITS
from nnunet_ssp.splits import is_from, subjects_of
from nnunet_ssp.study.data import Data
from nnunet_ssp.study.published import published_settings, read_published
from nnunet_ssp.study.record import read_record
from nnunet_ssp.study.runs import Run
from nnunet_ssp.study.spec import AREA, DICE, Figure, Study, Table

TITLES = {
    DICE: "3D Dice",
    "dice_nan": "3D Dice (nnU-Net’s rule for empty classes)",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    AREA: "Pseudo Dice, mean of the learning curve",
    **{name: f"{name}, absolute error ({unit})" for name, unit in UNITS.items()},
}
NUMBERS = {  # columns of metrics.csv and clinical.csv; all others are text
    *(*SCORES, "missed", "reference_ml", "predicted_ml"),
    *("reference", "predicted", "error", "percent_error"),
}
STAGES = {"train": "training", "predict": "prediction", "evaluate": "evaluation"}


class Place(NamedTuple):
    """Where a value belongs, by the study's names."""

    model: str
    fold: str
    test: str = "all"
    class_name: str = MEAN
    score: str = DICE


@dataclass(frozen=True)
class Value:
    """What the trainings of a model on a fold scored.

    Attributes:
        seeds: value by seed, of the finished ones.
        sd_subjects: sample standard deviation over subjects, averaged over seeds (de Mooij et al., appendix B).
        wanted: number of seeds that there should be.
    """

    seeds: dict[int, float]
    sd_subjects: float
    wanted: int

    @property
    def mean(self) -> float:
        """Over seeds; NaN without any."""
        return float(np.mean(list(self.seeds.values()))) if self.seeds else math.nan

    @property
    def sd_seeds(self) -> float:
        """Sample standard deviation over seeds (their Tables 1 to 4); NaN for fewer than two."""
        return float(np.std(list(self.seeds.values()), ddof=1)) if len(self.seeds) > 1 else math.nan


@dataclass(frozen=True, eq=False)
class Results:
    """The results of a study, read when they are asked for.

    Attributes:
        study: the study.
        pretrainings: of it.
        trainings: of it.
        data: its dataset.
        output: its folder.
    """

    study: Study
    pretrainings: Sequence[Run]
    trainings: Sequence[Run]
    data: Data
    output: Path
    _values: dict[Place, pd.DataFrame] = field(default_factory=dict, repr=False)
    _curves: dict[str, pd.DataFrame | None] = field(default_factory=dict, repr=False)

    def check(self) -> None:
        """Refuse what would only be missed when everything has run.

        Raises:
            ValueError: there are no test subjects, a class that the dataset does not have, or numbers that were not
                published.
        """
        if self.study.evaluate == "test" and not self.data.test_cases:
            raise ValueError(
                f"{self.data.dataset.home} must have labelled test subjects; without any, evaluate: validation scores "
                "each fold's validation subjects."
            )
        parts: list[Table | Figure] = [*self.study.tables, *self.study.figures]
        for part in parts:
            for name in part.classes:
                self.class_of(name)
            if isinstance(part, Table) and part.published:
                read_published(part.published)
        if self.study.published_settings:
            published_settings(self.study.published_settings)

    # -- which runs are done --------------------------------------------------------------------

    def is_done(self, run: Run) -> bool:
        """Whether a run has left all that it shall."""
        if run.hands_on is not None:
            return bool(self.record(run, "train"))
        tables = self._file(run, "evaluation/metrics.csv")
        return bool(self.record(run, "evaluate")) and tables.is_file()

    @cached_property
    def done(self) -> dict[tuple[str, str], dict[int, Run]]:
        """The finished trainings by model and fold, then by seed."""
        found: dict[tuple[str, str], dict[int, Run]] = {}
        for run in self.trainings:
            own = found.setdefault((run.name, run.label), {})
            if self.is_done(run):
                own[run.seed] = run
        return found

    def state(self, run: Run) -> tuple[str, str | None]:
        """How far a run that is not done has come, and the log of where it ended, below the study's folder."""
        for stage in ["train"] if run.hands_on else STAGES:
            if stage == "predict" and self.study.evaluate == "validation":
                continue  # nnU-Net's training predicts the validation cases
            if self.record(run, stage):
                continue
            log = f"{stage}.log"
            if self._file(run, log).is_file():
                return f"{STAGES[stage]} did not end", f"{run.folder}/{log}"
            break
        if run.weights is not None and not self.is_done(run.weights):
            return f"waits for the pretraining {run.weights.name}", None
        return f"{STAGES[stage]} not begun", None

    def record(self, run: Run, stage: str) -> dict[str, Any]:
        """Command, seconds, end and machine of a stage; empty where it is not done."""
        return read_record(self._file(run, f"{stage}.json"))

    def settings(self, run: Run) -> dict[str, Any]:
        """The `settings.json` of a training; empty where there is none."""
        return _read_json(self.output / run.fold_folder(self.data) / "settings.json")

    def _file(self, run: Run, name: str) -> Path:
        return self.output / run.folder / name

    @cached_property
    def anchors(self) -> dict[tuple[str, str], str]:
        """What the page calls the row of a model's runs on a fold."""
        return {key: f"run-{number}" for number, key in enumerate(self.done, 1)}

    # -- what they scored -----------------------------------------------------------------------

    def value(self, place: Place, seeds: Sequence[int] | None = None) -> Value:
        """The value at a place.

        Args:
            place: the place.
            seeds: those that count; by default the study's.

        Raises:
            ValueError: the study names a class that there is not.
        """
        wanted = self.study.seeds if seeds is None else seeds
        table = self.seed_values(place)
        table = table[table["seed"].isin(wanted)].dropna(subset="value")
        values = dict(zip(table["seed"].tolist(), table["value"].tolist(), strict=True))
        return Value(values, float(table["sd_subjects"].mean()), len(wanted))

    def seed_values(self, place: Place) -> pd.DataFrame:
        """The values of the finished trainings.

        Returns:
            One row per seed: `seed, value, sd_subjects, n_subjects, run`; the run is its folder.
        """
        if place not in self._values:
            self._values[place] = self._seed_values(place)
        return self._values[place]

    def _seed_values(self, place: Place) -> pd.DataFrame:
        runs = self.done.get((place.model, place.fold), {})
        rows = []
        subjects = None if place.score == AREA else self.subject_values(place)
        for seed, run in runs.items():
            row: dict[str, Any] = {"seed": seed, "sd_subjects": math.nan, "n_subjects": 0}
            if subjects is None:
                curve = self.learning_curve(run)
                row["value"] = math.nan if curve is None else curve["pseudo_dice_area"].iloc[-1]
            else:
                own = subjects[subjects["seed"] == seed]["value"].dropna()
                row |= {"value": own.mean(), "sd_subjects": own.std(), "n_subjects": len(own)}
            rows.append(row | {"run": run.folder})
        return pd.DataFrame(rows, columns=["seed", "value", "sd_subjects", "n_subjects", "run"])

    def subject_values(self, place: Place) -> pd.DataFrame:
        """The values of the subjects, each the mean of its frames.

        Returns:
            One row per seed and subject: `seed, subject, value`. Of a clinical figure it is the absolute error.

        Raises:
            ValueError: the study names a class that there is not.
        """
        frames = self._of_test(self.frames[place.model, place.fold], place.test)
        if place.score in UNITS:
            figures = self.figures[place.model, place.fold]
            figures = figures[figures["figure"] == place.score]
            shown = figures[figures["subject"].isin(frames["subject"])]
            return shown.assign(value=shown["error"].astype(float).abs())[
                ["seed", "subject", "value"]
            ]
        own = frames[frames["class"] == self.class_of(place.class_name)]
        means = own.groupby(["seed", "subject"], sort=False)[place.score].mean()
        # Without any run there are no numbers either.
        return means.astype(float).rename("value").reset_index()

    def dice(self, run: Run) -> float:
        """The mean Dice of a finished training over all tested subjects."""
        frames = self.frames[run.name, run.label]
        own = frames[(frames["seed"] == run.seed) & (frames["class"] == MEAN)]
        return float(own.groupby("subject")[DICE].mean().mean())

    @cached_property
    def frames(self) -> dict[tuple[str, str], pd.DataFrame]:
        """`metrics.csv` of all finished trainings with the class `mean`, by model and fold."""
        return {
            key: self._read_all(runs.values(), "metrics.csv") for key, runs in self.done.items()
        }

    @cached_property
    def figures(self) -> dict[tuple[str, str], pd.DataFrame]:
        """`clinical.csv` of all finished trainings, by model and fold."""
        return {
            key: self._read_all(runs.values(), "clinical.csv") for key, runs in self.done.items()
        }

    def _read_all(self, runs: Iterable[Run], name: str) -> pd.DataFrame:
        tables = []
        for run in runs:
            file = self._file(run, f"evaluation/{name}")
            columns = pd.read_csv(file, nrows=0).columns
            # Codes such as 04 and NA are text, and an empty place is no missing number.
            table = pd.read_csv(
                file,
                dtype={c: str for c in columns if c not in NUMBERS},
                keep_default_na=False,
                na_values={c: [""] for c in columns if c in NUMBERS},
            )
            if name == "metrics.csv":
                table = with_mean(table)
            tables.append(table.assign(model=run.name, seed=run.seed))
        if not tables:
            names = ["seed", "subject", "class", "figure", "error", *SCORES]
            return pd.DataFrame(columns=[*names, "phase", "vendor"])
        return pd.concat(tables, ignore_index=True)

    def _of_test(self, frames: pd.DataFrame, test: str) -> pd.DataFrame:
        """The rows of a table that a test of the study counts."""
        for column, wanted in self.study.tests[test].items():
            if frames.empty:
                break
            if column == "vendor":
                kept = frames[column].map({v: is_from(v, wanted) for v in frames[column].unique()})
            else:
                kept = frames[column].isin(wanted)
            frames = frames[kept.astype(bool)]
        return frames

    @cached_property
    def labels(self) -> Labels:
        """The classes of the dataset."""
        return read_labels(self.data.dataset.home / "dataset.json")

    def class_of(self, name: str) -> str:
        """The dataset's name of a class that the study calls by it, or by LV, MYO or RV.

        Raises:
            ValueError: there is no such class.
        """
        if name == MEAN or name in self.labels.classes:
            return name
        if name in self.labels.structures:
            return self.labels.structures[name]
        known = ", ".join(self.labels.classes)
        raise ValueError(f"classes (={name}) must be {MEAN}, {', '.join(SYNONYMS)} or of {known}.")

    def structure_of(self, name: str) -> str:
        """LV, MYO or RV for a class that is one of them; others keep their name."""
        if name in SYNONYMS:
            return name
        return next((s for s, own in self.labels.structures.items() if own == name), name)

    def tests_without_subjects(self) -> list[str]:
        """The tests of the study that none of the tested cases belongs to."""
        tables = [table for table in self.frames.values() if len(table)]
        return [
            test
            for test in self.study.tests
            if tables and all(self._of_test(table, test).empty for table in tables)
        ]

    # -- how they learned -----------------------------------------------------------------------

    def learning_curve(self, run: Run) -> pd.DataFrame | None:
        """`learning_curve.csv` of a training, None where there is none."""
        if run.folder not in self._curves:
            file = self.output / run.fold_folder(self.data) / "learning_curve.csv"
            curve = pd.read_csv(file) if file.is_file() else pd.DataFrame()
            self._curves[run.folder] = curve if len(curve) else None
        return self._curves[run.folder]

    def steps(self, run: Run) -> int | None:
        """Optimiser steps of a training as it ran."""
        curve = self.learning_curve(run)
        return None if curve is None else int(curve["step"].iloc[-1])

    # -- on how much data -----------------------------------------------------------------------

    def labelled(self, fold: str) -> tuple[float, float]:
        """Labelled subjects and slices of a fold, the mean over the seeds' folds."""
        names = dict.fromkeys(run.fold for run in self.trainings if run.label == fold)
        cases = self.data.dataset.cases
        subjects = [len(subjects_of(self.data.fold(name)[1].train, cases)) for name in names]
        slices = [self.data.labelled_slices(name) for name in names]
        return float(np.mean(subjects)), float(np.mean(slices))

    def unlabelled_slices(self, model: str) -> int | None:
        """Slices that a model's pretraining saw; 0 from scratch, None where it is not done."""
        name = self.study.models[model].pretraining
        if name is None:
            return 0
        run = next((run for run in self.pretrainings if run.name == name), None)
        counts = {} if run is None else self.settings(run).get("counts", {})
        return counts.get("slices")

    # -- who is better --------------------------------------------------------------------------

    def comparisons(self, fold: str) -> pd.DataFrame:
        """The mean Dice of every model against the study's baseline, on the seeds that both have.

        Subjects are compared by their mean over frames and seeds. p values are corrected for the number of models.

        Returns:
            The columns of `evaluation.statistics.compare`, and `n_seeds`. No row where the baseline is not done.
        """
        baseline = self.study.baseline
        tables = []
        for (model, label), runs in self.done.items():
            if label != fold or model == baseline or baseline is None:
                continue
            seeds = [seed for seed in runs if seed in self.done.get((baseline, fold), {})]
            if not seeds:
                continue
            both = pd.concat([self.frames[baseline, fold], self.frames[model, fold]])
            both = both[both["seed"].isin(seeds) & (both["class"] == MEAN)]
            table = compare(both, DICE, baseline)
            tables.append(table.assign(n_seeds=len(seeds)))
        if not tables:
            return pd.DataFrame()
        table = pd.concat(tables, ignore_index=True)
        return table.assign(p_holm=holm(table["p"].to_numpy()))


def _read_json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
