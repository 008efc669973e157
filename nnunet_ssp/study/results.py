"""The scores of a study's finished runs.

The value of one training is the mean over subjects, each the mean of its frames (`evaluation.statistics`: the unit is
the subject). A model on a fold has one value for each seed. An unfinished run has no value, and nothing replaces it.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd

from nnunet_ssp.cohort.folds import is_from
from nnunet_ssp.cohort.membership import subjects_of
from nnunet_ssp.evaluation.command import add_arguments
from nnunet_ssp.evaluation.files import WITHOUT_SPACING
from nnunet_ssp.evaluation.labels import SYNONYMS, Labels, read_labels
from nnunet_ssp.evaluation.statistics import MEAN, SCORES, with_mean
from nnunet_ssp.evaluation.volumes import UNITS
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.study.convergence import final_dice, late_rise, steps_to_dice
from nnunet_ssp.study.data import ON_TEST, Data
from nnunet_ssp.study.published import published_settings, read_published
from nnunet_ssp.study.record import read_record
from nnunet_ssp.study.runs import Run, scores_folder
from nnunet_ssp.study.slice_scores import slice_ious
from nnunet_ssp.study.spec import (
    AREA,
    CURVE_SCORES,
    DICE,
    IOU,
    RISE,
    STEPS,
    TEST_COLUMNS,
    Figure,
    Study,
    Table,
)

TITLES = {
    DICE: "3D Dice",
    "dice_nan": "3D Dice (nnU-Net’s rule for empty classes)",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    IOU: "IoU of slices",
    AREA: "Pseudo Dice, mean of the learning curve",
    STEPS: "Steps to the final pseudo Dice of the baseline",
    RISE: "Rise of the pseudo Dice in the last fifth of the steps",
    **{name: f"{name}, absolute error ({unit})" for name, unit in UNITS.items()},
}
NUMBERS = {  # columns of metrics.csv and clinical.csv; all others are text
    *(*SCORES, "missed", "reference_ml", "predicted_ml"),
    *("reference", "predicted", "error", "percent_error", "slice", "position"),
}
DISTANCES = tuple(name for name in SCORES if name.endswith("_mm"))
STAGES = {"train": "training", "predict": "prediction", "evaluate": "evaluation"}


class Coordinates(NamedTuple):
    """Coordinates of a value, by the study's names."""

    model: str
    fold: str
    test: str = "all"
    class_name: str = MEAN
    score: str = DICE


@dataclass(frozen=True)
class Value:
    """Score of the trainings of a model on a fold.

    Attributes:
        seeds: Value by seed, for the finished ones.
        sd_subjects: Sample standard deviation over subjects, averaged over seeds (de Mooij et al., appendix B).
        wanted: Planned number of seeds.
        done: Number of seeds whose training is finished; a training that misses a class everywhere has no distance.
        missed: For a distance, how often a frame misses a class or finds an absent one, over all seeds.
    """

    seeds: dict[int, float]
    sd_subjects: float
    wanted: int
    done: int
    missed: int = 0

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        return float(np.mean(list(self.seeds.values()))) if self.seeds else math.nan

    @property
    def sd_seeds(self) -> float:
        """Sample standard deviation over seeds (their Tables 1 to 4); NaN for fewer than two."""
        return float(np.std(list(self.seeds.values()), ddof=1)) if len(self.seeds) > 1 else math.nan


@dataclass(frozen=True, eq=False)
class Results:
    """Results of a study, read on demand.

    Attributes:
        study: The study.
        pretrainings: Its pretrainings.
        trainings: Its trainings.
        data: Its dataset.
        output: Its folder.
        unfinished: Records of commands that must run, or run again; these do not count.
    """

    study: Study
    pretrainings: Sequence[Run]
    trainings: Sequence[Run]
    data: Data
    output: Path
    unfinished: Collection[str] = frozenset()
    _values: dict[Coordinates, pd.DataFrame] = field(init=False, default_factory=dict, repr=False)
    _curves: dict[str, pd.DataFrame | None] = field(init=False, default_factory=dict, repr=False)

    def check(self) -> None:
        """Refuse now what would otherwise fail only after everything has run.

        Raises:
            ValueError: There are no test subjects, or a part names a class, score, argument of nnunet-ssp evaluate or
                published number that does not exist here.
        """
        if self.study.evaluate in ON_TEST and not self.data.test_cases:
            raise ValueError(
                f"{self.data.dataset.home} must have labelled test subjects; without any, evaluate: validation scores "
                "each fold's validation subjects."
            )
        parts: list[Table | Figure] = [*self.study.tables, *self.study.figures]
        for part in parts:
            for name in part.classes:
                self.class_of(name)
            for score in part.scores:
                self._check_score(score, part.title)
            if isinstance(part, Table) and part.published:
                read_published(part.published)
        if self.study.published_settings:
            published_settings(self.study.published_settings)

    def _check_score(self, score: str, title: str) -> None:
        in_space = score in (*DISTANCES, *UNITS)
        if in_space and (self.evaluation.spacing_unknown or self._ending in WITHOUT_SPACING):
            raise ValueError(
                f"{title}: scores (={score}) must not be in mm or ml without a spacing."
            )
        if score not in UNITS:
            return
        structure = "MYO" if score == "LV mass" else score.split()[0]
        if structure not in self.labels.structures:
            raise ValueError(
                f"{title}: scores (={score}) must have a class {structure} in {self._json}; name it in the study's "
                f"evaluation: --{structure.lower()} NAME."
            )
        ignored = "" if self.labels.ignore is None else "there is an ignore label"
        if why := self.labels.overlap or ignored:
            raise ValueError(f"{title}: scores (={score}) must be volumes of whole classes: {why}.")

    def notes(self) -> list[str]:
        """List what may be a mistake but may also be intended."""
        tested = [
            self.data.tested(self.study.evaluate, run.fold)
            for run in {run.fold: run for run in self.trainings}.values()
        ]
        names = sorted(set().union(*tested))
        cases = pd.DataFrame(self.data.about(names), columns=["case", *TEST_COLUMNS]).astype(str)
        return [
            f"no tested case belongs to the test {test}: what is tested on it stays empty. Look at its values in the "
            "study's file and in cases.csv."
            for test in self.study.tests
            if names and self._of_test(cases, test).empty
        ]

    @cached_property
    def evaluation(self) -> argparse.Namespace:
        """The study's arguments of `nnunet-ssp evaluate`.

        Raises:
            ValueError: It lacks one of them.
        """
        parser = _Parser(prog="evaluation", add_help=False)
        add_arguments(parser)
        return parser.parse_args(["0", "predictions", *shlex.split(self.study.evaluation)])

    @property
    def _json(self) -> Path:
        return self.data.dataset.home / "dataset.json"

    @property
    def _ending(self) -> str:
        return str(self.data.description["file_ending"])

    # -- which runs are done -----------------------------------------------------------------------

    def is_done(self, run: Run) -> bool:
        """Whether a run has left all that it must."""
        if run.hands_on is not None:
            return bool(self.record(run, "train"))
        tables = self._scores(run, "metrics.csv")
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
        """Describe how far an unfinished run has come, with the log of where it ended, below the study's folder."""
        for stage in ["train"] if run.hands_on else STAGES:
            if stage == "predict" and self.study.evaluate == "validation":
                continue  # nnU-Net's training predicts the validation cases
            if self.record(run, stage):
                continue
            if (self.output / self.folder(run, stage) / f"{stage}.json").is_file():
                return f"{STAGES[stage]} is outdated", None
            log = f"{self.folder(run, stage)}/{stage}.log"
            if (self.output / log).is_file():
                return f"{STAGES[stage]} did not end", log
            break
        if run.weights is not None and not run.weights.file and not self.is_done(run.weights):
            return f"waits for the pretraining {run.weights.name}", None
        return f"{STAGES[stage]} not begun", None

    def record(self, run: Run, stage: str) -> dict[str, Any]:
        """Read command, seconds, end and machine of a stage; empty if it is not done."""
        name = f"{self.folder(run, stage)}/{stage}.json"
        return {} if name in self.unfinished else read_record(self.output / name)

    def settings(self, run: Run) -> dict[str, Any]:
        """Read the `settings.json` of a training; empty if there is none."""
        file = self.output / run.fold_folder(self.data) / "settings.json"
        return read_json(file, dict) if file.is_file() else {}

    def folder(self, run: Run, stage: str) -> str:
        """Return the folder of a stage's record and log, below the study's folder."""
        return run.folder if stage == "train" else scores_folder(self.study, run)

    def _scores(self, run: Run, name: str) -> Path:
        return self.output / scores_folder(self.study, run) / "evaluation" / name

    @cached_property
    def anchors(self) -> dict[tuple[str, str], str]:
        """Names on the page of the rows of a model's runs on a fold."""
        return {key: f"run-{number}" for number, key in enumerate(self.done, 1)}

    # -- what they scored --------------------------------------------------------------------------

    def value(self, place: Coordinates, seeds: Sequence[int] | None = None) -> Value:
        """Compute the value at a place.

        Args:
            place: Coordinates of the value.
            seeds: Seeds that count; by default the study's.

        Raises:
            ValueError: The study names an unknown class.
        """
        wanted = self.study.seeds if seeds is None else seeds
        table = self.seed_values(place)
        table = table[table["seed"].isin(wanted)]
        known = table.dropna(subset="value")
        values = dict(zip(known["seed"].tolist(), known["value"].tolist(), strict=True))
        spread = float(table["sd_subjects"].mean())
        return Value(values, spread, len(wanted), len(table), int(table["missed"].sum()))

    def seed_values(self, place: Coordinates) -> pd.DataFrame:
        """Compute the values of the finished trainings.

        Returns:
            One row per seed: `seed, value, sd_subjects, n_subjects, missed`, and `run`, the run's folder.
        """
        if place not in self._values:
            self._values[place] = self._seed_values(place)
        return self._values[place]

    def _seed_values(self, place: Coordinates) -> pd.DataFrame:
        runs = self.done.get((place.model, place.fold), {})
        rows = []
        subjects = None if place.score in CURVE_SCORES else self.subject_values(place)
        for seed, run in runs.items():
            row: dict[str, Any] = {"seed": seed, "run": run.folder, "missed": 0}
            if subjects is None:
                if (value := self._of_curve(run, place.score)) is None:
                    continue
                row |= {"value": value, "n_subjects": 0}
            else:
                own = subjects[subjects["seed"] == seed]["value"].dropna()
                row |= {"value": own.mean(), "sd_subjects": own.std(), "n_subjects": len(own)}
            if place.score in DISTANCES:
                frames = self._frames(place)
                row["missed"] = int(frames.loc[frames["seed"] == seed, "missed"].sum())
            rows.append(row)
        names = ["seed", "value", "sd_subjects", "n_subjects", "missed", "run"]
        return pd.DataFrame(rows, columns=names)

    def _frames(self, place: Coordinates) -> pd.DataFrame:
        """Select the rows of `metrics.csv` at a place, or with the scores of slices."""
        tables = self.ious if place.score == IOU else self.frames
        frames = self._of_test(tables[place.model, place.fold], place.test)
        return frames[frames["class"] == self.class_of(place.class_name)]

    def subject_values(self, place: Coordinates) -> pd.DataFrame:
        """Compute the values of the subjects, each the mean of its frames.

        Returns:
            One row per seed and subject: `seed, subject, value`. For a clinical metric the value is the absolute error.

        Raises:
            ValueError: The study names an unknown class.
        """
        frames = self._frames(place)
        if place.score in UNITS:
            clinical = self.clinical[place.model, place.fold]
            clinical = clinical[clinical["figure"] == place.score]
            shown = clinical[clinical["subject"].isin(frames["subject"])]
            return shown.assign(value=shown["error"].astype(float).abs())[
                ["seed", "subject", "value"]
            ]
        means = frames.groupby(["seed", "subject"], sort=False)[place.score].mean()
        # Without any run the column is not numeric.
        return means.astype(float).rename("value").reset_index()

    def dice(self, run: Run) -> float:
        """Compute the mean Dice of a finished training over all tested subjects."""
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
    def ious(self) -> dict[tuple[str, str], pd.DataFrame]:
        """IoU of all finished trainings, by model and fold: one row per frame and class, the mean over its slices.

        It follows from the Dice D of a slice: D / (2 - D). Slices are those from the first to the last with a label.
        """
        return {
            key: slice_ious(self._read_all(runs.values(), "slices.csv"))
            for key, runs in self.done.items()
        }

    @cached_property
    def clinical(self) -> dict[tuple[str, str], pd.DataFrame]:
        """`clinical.csv` of all finished trainings, by model and fold."""
        return {
            key: self._read_all(runs.values(), "clinical.csv") for key, runs in self.done.items()
        }

    def _read_all(self, runs: Iterable[Run], name: str) -> pd.DataFrame:
        tables = []
        for run in runs:
            file = self._scores(run, name)
            columns = _read_own(file, nrows=0).columns
            # Codes such as 04 and NA are text, and an empty text is no missing number.
            table = _read_own(
                file,
                dtype={c: str for c in columns if c not in NUMBERS},
                keep_default_na=False,
                na_values={c: [""] for c in columns if c in NUMBERS},
            )
            if name == "metrics.csv":
                table = with_mean(table)
            tables.append(table.assign(model=run.name, seed=run.seed))
        if not tables:
            names = ["seed", "subject", "class", "figure", "error", "missed", *SCORES]
            return pd.DataFrame(columns=[*names, "phase", "vendor"])
        return pd.concat(tables, ignore_index=True)

    def _of_test(self, frames: pd.DataFrame, test: str) -> pd.DataFrame:
        """Select the rows of a table that belong to a test of the study."""
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
        given = self.evaluation
        return read_labels(self._json, {"LV": given.lv, "MYO": given.myo, "RV": given.rv})

    def class_of(self, name: str) -> str:
        """Find the dataset's name of a class; the study names it so, or LV, MYO or RV.

        Raises:
            ValueError: There is no such class.
        """
        labels = self.labels
        if name == MEAN or name in labels.classes:
            return name
        if name in labels.structures:
            return labels.structures[name]
        known = ", ".join(labels.classes)
        raise ValueError(f"classes (={name}) must be {MEAN}, {', '.join(SYNONYMS)} or of {known}.")

    def structure_of(self, name: str) -> str:
        """Return LV, MYO or RV for a class that is one of them; others keep their name."""
        if name in SYNONYMS:
            return name
        return next((s for s, own in self.labels.structures.items() if own == name), name)

    # -- how they learned --------------------------------------------------------------------------

    def learning_curve(self, run: Run) -> pd.DataFrame | None:
        """Read `learning_curve.csv` of a training; None if there is none."""
        if run.folder not in self._curves:
            file = self.output / run.fold_folder(self.data) / "learning_curve.csv"
            curve = _read_own(file) if file.is_file() else pd.DataFrame()
            self._curves[run.folder] = curve if len(curve) else None
        return self._curves[run.folder]

    def _of_curve(self, run: Run, score: str) -> float | None:
        """Compute a score of a learning curve; None if a curve that it takes is not there."""
        curve = self.learning_curve(run)
        if curve is None or score == AREA:
            return None if curve is None else float(curve["pseudo_dice_area"].iloc[-1])
        if score == RISE:
            return late_rise(curve)
        baseline = self.study.baseline_of(run.name) or run.name
        control = self.done.get((baseline, run.label), {}).get(run.seed)
        reference = None if control is None else self.learning_curve(control)
        return None if reference is None else steps_to_dice(curve, final_dice(reference))

    def steps(self, run: Run) -> int | None:
        """Count the optimiser steps of a training as it ran."""
        curve = self.learning_curve(run)
        return None if curve is None else int(curve["step"].iloc[-1])

    # -- on how much data --------------------------------------------------------------------------

    def labelled(self, fold: str) -> tuple[float, float]:
        """Count labelled subjects and slices of a fold, as the mean over the seeds' folds."""
        names = dict.fromkeys(run.fold for run in self.trainings if run.label == fold)
        cases = self.data.dataset.cases
        subjects = [len(subjects_of(self.data.fold(name)[1].train, cases)) for name in names]
        slices = [self.data.labelled_slices(name) for name in names]
        return float(np.mean(subjects)), float(np.mean(slices))

    def unlabelled_slices(self, model: str) -> int | None:
        """Count the slices that a model's pretraining saw; 0 from scratch, None if it is not done."""
        if self.study.models[model].pretraining is None:
            return 0
        return self._pretrained(model, "counts").get("slices")

    def pretraining_epochs(self, model: str) -> int | None:
        """Count the epochs of pretraining behind a model; 0 from scratch, None if the pretraining is not done."""
        part = self.study.models[model]
        if part.pretraining is None or part.snapshot is not None:
            return part.snapshot or 0
        return self._pretrained(model, "settings").get("num_epochs")

    def _pretrained(self, model: str, entry: str) -> dict[str, int]:
        """Read an entry of the `settings.json` of a model's pretraining; empty if it is not done."""
        name = self.study.models[model].pretraining
        run = next((run for run in self.pretrainings if run.name == name), None)
        return {} if run is None else self.settings(run).get(entry, {})


class _Parser(argparse.ArgumentParser):
    """Parser that raises an error where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"evaluation must be arguments of nnunet-ssp evaluate: {message}")


def _read_own(file: Path, **options: Any) -> pd.DataFrame:
    """Read a table that a run of the study wrote; unlike those of pandas, errors name the file."""
    try:
        return pd.DataFrame(pd.read_csv(file, **options))
    except ValueError as error:
        raise ValueError(
            f"{file}: must be the table that the study's run wrote; delete it and run the study again."
        ) from error
