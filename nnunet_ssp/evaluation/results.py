"""The results of an evaluation, and the tables made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_ssp import __version__
from nnunet_ssp.evaluation.files import Pair
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.evaluation.statistics import (
    MEAN,
    SCORES,
    Better,
    bootstrap_interval,
    compare_models,
    summarise,
    with_mean,
)
from nnunet_ssp.evaluation.volumes import agreement

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("phase", "vendor", "centre", "pathology")
POSITION_BINS = 10
COMPARED = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)"}


@dataclass(frozen=True)
class Evaluation:
    """Results of one or more models on the same cases."""

    dataset: str
    # The folders of each model's seeds or folds.
    models: Mapping[str, Sequence[Path]]
    # The model that the others are compared with.
    baseline: str
    labels: Labels
    pairs: Sequence[Pair]
    # Images by case; some may be missing.
    images: Mapping[str, Path]
    # `Scores.frames` with the case's columns of cases.csv.
    frames: pd.DataFrame
    # `Scores.slices`, likewise.
    slices: pd.DataFrame
    # Table from `clinical_metrics`; may be empty.
    clinical: pd.DataFrame
    # Why subjects have no clinical metrics; key `all` for everyone.
    refused: Mapping[str, str]
    notes: Sequence[str]

    @property
    def classes(self) -> list[str]:
        """The classes that were scored, then `mean`."""
        return [*self.frames["class"].unique(), MEAN]

    @property
    def phases(self) -> list[str]:
        """Those of ED and ES that occur."""
        return [phase for phase in ("ED", "ES") if (self.frames["phase"] == phase).any()]

    @property
    def has_seeds(self) -> bool:
        """Whether any model was trained more than once."""
        return bool(self.frames["seed"].nunique() > 1)

    @property
    def has_distances(self) -> bool:
        """Whether any distance is known."""
        return bool(self.frames["hd95_mm"].notna().any())

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The frames' scores with the mean over classes."""
        return with_mean(self.frames)

    @cached_property
    def overall(self) -> pd.DataFrame:
        """`summarise` over all frames."""
        return summarise(self.scores)

    @cached_property
    def groups(self) -> dict[str, pd.DataFrame]:
        """`summarise` by each column of `GROUPS` that is not empty."""
        return {
            column: summarise(self.scores[self.scores[column] != ""], [column])
            for column in GROUPS
            if (self.scores[column] != "").any()
        }

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """Agreement of the clinical metrics with the reference."""
        return agreement(self.clinical)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """Every model against the baseline: `score`, and the columns of `compare_models`.

        Dice and the distances come first, each for the mean and for the classes. The absolute errors of the clinical
        metrics follow; there `missed` counts the metrics that a model lacks.
        """
        import pandas as pd

        compared: list[pd.DataFrame] = []

        def add(title: str, table: pd.DataFrame, score: str, better: Better) -> None:
            rows = compare_models(table, score, self.baseline, better)
            compared.append(rows.assign(score=title, better=better))

        for score, title in COMPARED.items():
            if self.frames[score].notna().any():
                add(f"{title}, {MEAN}", self.frames, score, SCORES[score])
                for name, own in self.frames.groupby("class", sort=False):
                    add(f"{title}, {self.labels.shown(str(name))}", own, score, SCORES[score])
        errors = self.clinical.assign(
            error=self.clinical["error"].abs(),
            missed=self.clinical["reference"].notna() & self.clinical["predicted"].isna(),
            case=self.clinical["subject"],
        ).rename(columns={"figure": "class"})
        for metric, own in errors.groupby("class", sort=False):
            title = f"{metric} ({own['unit'].iloc[0]}), absolute error"
            add(title, own, "error", "lower")
        return pd.concat(compared, ignore_index=True)

    @cached_property
    def positions(self) -> pd.DataFrame:
        """Dice of slices from base (0) to apex (1), in `POSITION_BINS` equal parts, at each phase.

        Slices with the class in neither label map are left out, as are stacks whose base is unknown.

        Returns:
            One row per `model, class, phase, bin`, by rising bin: `n_subjects`, `mean` over subjects, and its 95 %
            bootstrap interval `low, high`.
        """
        import pandas as pd

        known = self.slices.dropna(subset=["position", "dice_nan"])
        bins = np.minimum(known["position"] * POSITION_BINS, POSITION_BINS - 1).astype(int)
        keys = ["model", "class", "phase", "bin"]
        subjects = known.assign(bin=bins).groupby([*keys, "subject"], sort=False)["dice_nan"].mean()
        rows = []
        for key, own in subjects.groupby(keys, sort=False):
            ((low,), (high,)) = bootstrap_interval(own.to_numpy()[:, None])
            numbers = {"n_subjects": len(own), "mean": own.mean(), "low": low, "high": high}
            rows.append(dict(zip(keys, key, strict=True)) | numbers)
        table = pd.DataFrame(rows, columns=[*keys, "n_subjects", "mean", "low", "high"])
        # Stable: models, classes and phases keep their order.
        return table.sort_values("bin", kind="stable", ignore_index=True)

    def summary(self) -> dict[str, Any]:
        """Return the content of `summary.json`; unknown values are None."""
        groups = {"all": self.overall} | self.groups
        return {
            "dataset": self.dataset,
            "version": __version__,
            "models": {name: list(map(str, folders)) for name, folders in self.models.items()},
            "classes": {name: list(values) for name, values in self.labels.classes.items()},
            "structures": self.labels.structures,
            "n_subjects": int(self.frames["subject"].nunique()),
            "n_frames": int(self.frames["case"].nunique()),
            "notes": list(self.notes),
            "scores": {name: _records(table) for name, table in groups.items()},
            "slices": _records(self.positions),
            "agreement": _records(self.agreement),
            "clinical_refused": dict(self.refused),
            "comparisons": _records(self.comparisons) if len(self.models) > 1 else [],
        }


def said_once(notes: Sequence[str]) -> list[str]:
    """Make one note of those that say the same of several models or folders, in the order of the first.

    >>> said_once(["WARNING: a: too good.", "WARNING: b: too good.", "a: too good.", "c"])
    ['WARNING: a; b: too good.', 'a: too good.', 'c']
    """
    whose: dict[tuple[str, str, str], list[str]] = {}
    for note in notes:
        kind = "WARNING: " if note.startswith("WARNING: ") else ""
        who, colon, said = note.removeprefix(kind).partition(": ")
        whose.setdefault((kind, "" if colon else who, f"{colon}{said}"), []).append(who)
    return [
        f"{kind}{'; '.join(dict.fromkeys(who))}{said}" for (kind, _, said), who in whose.items()
    ]


def worst_first(notes: Sequence[str]) -> list[str]:
    """Sort notes: warnings first, each kind in its order.

    >>> worst_first(["b is left out.", "WARNING: a", "c"])
    ['WARNING: a', 'b is left out.', 'c']
    """
    return sorted(notes, key=lambda note: not note.startswith("WARNING"))


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, with six digits; NaN becomes None, since JSON has no NaN."""

    def plain(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return None if math.isnan(value) else float(f"{value:.6g}")

    rows = table.to_dict("records")
    return [{str(column): plain(value) for column, value in row.items()} for row in rows]
