"""What an evaluation found, and the tables made of it."""

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
    Better,
    bootstrap_interval,
    compare,
    subject_means,
    summarise,
    with_mean,
)
from nnunet_ssp.evaluation.volumes import agreement

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("phase", "vendor", "centre", "pathology")
POSITION_BINS = 10


@dataclass(frozen=True)
class Evaluation:
    """One or more models on the same cases."""

    dataset: str
    models: Mapping[str, Sequence[Path]]  # the folders of each model's seeds or folds
    baseline: str  # the model that the others are compared with
    labels: Labels
    pairs: Sequence[Pair]
    images: Mapping[str, Path]  # by case; some may be missing
    frames: pd.DataFrame  # `Scores.frames` with the case's columns of cases.csv
    slices: pd.DataFrame  # `Scores.slices`, likewise
    figures: pd.DataFrame  # from `clinical_figures`; empty where there are none
    refused: Mapping[str, str]  # why subjects have no clinical figures; key `all` for everyone
    notes: Sequence[str]

    @property
    def classes(self) -> list[str]:
        """The classes that were scored, then `mean`."""
        return [*self.frames["class"].unique(), MEAN]

    @property
    def phases(self) -> list[str]:
        """Which of ED and ES there are."""
        return [phase for phase in ("ED", "ES") if (self.frames["phase"] == phase).any()]

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
        """`summarise` by each column of `GROUPS` that says anything."""
        return {
            column: summarise(self.scores[self.scores[column] != ""], [column])
            for column in GROUPS
            if (self.scores[column] != "").any()
        }

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """How clinical figures agree with the reference."""
        return agreement(self.figures)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """Every model against the baseline: `score`, and the columns of `compare`.

        The mean Dice comes first, then the Dice of the classes, the mean distances, and the
        absolute errors of the clinical figures.
        """
        import pandas as pd

        compared: list[tuple[str, pd.DataFrame, Better]] = []
        for name in (MEAN, *self.classes[:-1]):
            own = self.scores[self.scores["class"] == name]
            compared.append((f"Dice, {name}", subject_means(own, "dice"), "higher"))
        own = self.scores[self.scores["class"] == MEAN]
        for score, title in (("hd95_mm", "HD95 (mm)"), ("assd_mm", "ASSD (mm)")):
            if own[score].notna().any():
                compared.append((f"{title}, {MEAN}", subject_means(own, score), "lower"))
        errors = self.figures.assign(error=self.figures["error"].abs())
        for figure, own in errors.groupby("figure", sort=False):
            title = f"{figure} ({own['unit'].iloc[0]}), absolute error"
            compared.append((title, subject_means(own, "error"), "lower"))
        return pd.concat(
            [
                compare(table, self.baseline, better).assign(score=title, better=better)
                for title, table, better in compared
            ],
            ignore_index=True,
        )

    @cached_property
    def positions(self) -> pd.DataFrame:
        """Dice of slices from base (0) to apex (1), in `POSITION_BINS` equal parts.

        Slices with the class in neither label map are left out, and so are stacks of which it is
        not known where the base is.

        Returns:
            One row per `model, class, bin`: `n_subjects`, `mean` over subjects and `low, high`,
            its 95 % bootstrap interval.
        """
        import pandas as pd

        known = self.slices.dropna(subset=["position", "dice_nan"])
        bins = np.minimum(known["position"] * POSITION_BINS, POSITION_BINS - 1).astype(int)
        keys = ["model", "class", "bin"]
        subjects = known.assign(bin=bins).groupby([*keys, "subject"], sort=False)["dice_nan"].mean()
        rows = []
        for key, own in subjects.groupby(keys, sort=False):
            ((low,), (high,)) = bootstrap_interval(own.to_numpy()[:, None])
            numbers = {"n_subjects": len(own), "mean": own.mean(), "low": low, "high": high}
            rows.append(dict(zip(keys, key, strict=True)) | numbers)
        return pd.DataFrame(rows, columns=[*keys, "n_subjects", "mean", "low", "high"])

    def summary(self) -> dict[str, Any]:
        """Everything for `summary.json`; what is not known is None."""
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


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, numbers to six digits; NaN, which JSON does not know, becomes None."""

    def plain(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return None if math.isnan(value) else float(f"{value:.6g}")

    rows = table.to_dict("records")
    return [{str(column): plain(value) for column, value in row.items()} for row in rows]
