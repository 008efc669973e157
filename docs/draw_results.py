"""Draw the pictures of results.md from the scores in `docs/results/acdc-few`.

`python docs/draw_results.py` writes `docs/pictures/few-labels.png` and `few-labels-curves.png`, as a study draws them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nnunet_ssp.reporting.figures import render
from nnunet_ssp.study.figures import SIZE, draw_labels, draw_learning, mean_curve
from nnunet_ssp.study.plots import styles
from nnunet_ssp.study.results import Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = Path(__file__).with_name("results") / "acdc-few" / "models"
PICTURES = Path(__file__).with_name("pictures")
MODELS = ("scratch", "Dense")
CURVES_ON = 5  # labelled patients
TITLE = "ACDC, nine choosing patients, small network, 500 steps"


def points(model: str) -> list[tuple[float, Value]]:
    """Return the number of labelled patients and the mean Dice by seed, each the mean over patients."""
    frames = pd.read_csv(SCORES / f"{model}.csv")
    frames = frames[frames["class"] == "mean"]
    patients = frames.groupby(["fold", "seed", "subject"])["dice"].mean()
    means = patients.groupby(["fold", "seed"]).mean()
    found = []
    for labelled in sorted(means.index.unique("fold")):
        seeds = {int(seed): float(value) for seed, value in means.loc[labelled].items()}
        n = len(seeds)
        found.append((float(labelled), Value(seeds, float("nan"), n, n)))
    return found


def curves(model: str) -> list[pd.DataFrame]:
    """Return the learning curve of each seed."""
    table = pd.read_csv(SCORES / f"{model}-curves.csv")
    return [own for _, own in table[table["fold"] == CURVES_ON].groupby("seed")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder (%(default)s)")
    output = parser.parse_args(arguments).output
    by_curve = styles(MODELS)
    labels = draw_labels(
        {model: points(model) for model in MODELS}, by_curve, "labelled subjects", "3D Dice", ""
    )
    learning = draw_learning(
        {model: mean_curve(curves(model)) for model in MODELS},
        by_curve,
        f"with {CURVES_ON} labelled patients",
    )
    for name, draw in (("few-labels", labels), ("few-labels-curves", learning)):

        def titled(figure: Figure, draw=draw) -> None:  # type: ignore[no-untyped-def]
            draw(figure)
            figure.suptitle(TITLE, fontsize="medium")

        (output / f"{name}.png").write_bytes(render(titled, size=SIZE))


if __name__ == "__main__":
    main()
