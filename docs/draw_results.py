"""Draw what was measured, from the scores in `docs/results/acdc-few`.

`python docs/draw_results.py` writes `docs/pictures/few-labels.png` (the patients that were reported),
`few-labels-curves.png`, `few-labels-long-curves.png` and `few-labels-length.png` (those on which methods were chosen).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_ssp.evaluation.statistics import MEAN
from nnunet_ssp.reporting.figures import SERIES_COLOURS, legend, render
from nnunet_ssp.study.convergence import SMOOTHED

SCORES = Path(__file__).with_name("results") / "acdc-few"
PICTURES = Path(__file__).with_name("pictures")
MODELS = {
    "from scratch": "scratch",
    "after Dense": "Dense",
    "after its movement alone": "movement-alone",
}
SHOWN = 5  # labelled patients of the curves
# Pretrainings on movement alone, by the images that they saw; both views of a slice count.
LENGTHS = {
    9_600: "movement-alone-short-pretraining",
    50_400: "movement-alone",
    252_000: "movement-alone-long-pretraining",
}
# Folders of the scores by length, and how their trainings computed
MACHINES = {"float32": "float32", "amx": "bfloat16"}


def labels(folder: Path = SCORES) -> bytes:
    """Draw the mean 3D Dice of the reported patients against the number of labelled ones; a dot a seed."""

    def draw(canvas: Figure) -> None:
        axes = _axes(canvas, "labelled patients")
        for (name, file), colour in zip(MODELS.items(), SERIES_COLOURS, strict=False):
            seeds = _seeds(folder / "reported-models" / f"{file}.csv")
            means = seeds.groupby("fold").mean()
            axes.plot(means.index, means, "o-", color=colour, markersize=5, label=name)
            axes.plot(seeds.index.get_level_values("fold"), seeds, ".", color=colour, alpha=0.5)
        axes.set_xticks(means.index)
        n_seeds = seeds.groupby("fold").size()
        axes.set_title(f"ACDC, twelve report patients, {n_seeds.min()} to {n_seeds.max()} seeds")
        legend(canvas, axes.get_legend_handles_labels()[0])

    return render(draw, size=(4.8, 3.2))


def curves(folder: Path = SCORES, ending: str = "") -> bytes:
    """Draw nnU-Net's pseudo Dice of the choosing patients by step: means of the seeds that all models have.

    Args:
        folder: Of the scores.
        ending: Of the models' names, `-long` for those of three times as many steps.
    """

    def draw(canvas: Figure) -> None:
        axes = _axes(canvas, "step")
        axes.set_ylabel("pseudo Dice")
        read = {
            name: pd.read_csv(folder / "models" / f"{file}{ending}-curves.csv")
            for name, file in MODELS.items()
        }
        own = {name: table[table["fold"] == SHOWN] for name, table in read.items()}
        common = set.intersection(*(set(table["seed"]) for table in own.values()))
        for (name, table), colour in zip(own.items(), SERIES_COLOURS, strict=False):
            seeds = table[table["seed"].isin(common)].pivot(
                index="step", columns="seed", values="pseudo_dice"
            )
            smooth = seeds.rolling(SMOOTHED, min_periods=1).mean()
            axes.plot(smooth.index, smooth.mean(axis=1), color=colour, label=name)
            axes.fill_between(
                smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=colour, alpha=0.15
            )
        axes.set_title(f"ACDC, {SHOWN} labelled, nine choosing patients, {len(common)} seeds")
        legend(canvas, axes.lines)

    return render(draw, size=(4.8, 3.2))


def length(folder: Path = SCORES) -> bytes:
    """Draw the mean 3D Dice of the choosing patients against the length of pretraining; a dot a seed."""

    def draw(canvas: Figure) -> None:
        axes = _axes(canvas, "images seen in pretraining")
        scratch, *_ = SERIES_COLOURS
        colour = SERIES_COLOURS[[*MODELS].index("after its movement alone")]
        for (kind, name), line in zip(MACHINES.items(), ("-", "--"), strict=True):
            files = {n: folder / kind / f"{file}.csv" for n, file in LENGTHS.items()}
            seeds = {n: _seeds(file).loc[SHOWN] for n, file in files.items() if file.is_file()}
            control = _seeds(folder / kind / "scratch.csv").loc[SHOWN]
            common = set.intersection(*(set(own.index) for own in (control, *seeds.values())))
            means = [own.loc[[*common]].mean() for own in seeds.values()]
            label = f"movement alone, {name}"
            axes.plot([*seeds], means, f"o{line}", color=colour, markersize=5, label=label)
            for n, own in seeds.items():
                axes.plot([n] * len(common), own.loc[[*common]], ".", color=colour, alpha=0.5)
            mean = control.loc[[*common]].mean()
            axes.axhline(mean, color=scratch, linestyle=line, label=f"from scratch, {name}")
        axes.set_xscale("log")
        axes.set_xticks([*LENGTHS], [f"{n:,}" for n in LENGTHS])
        axes.minorticks_off()
        axes.margins(x=0.15)
        axes.set_title(f"ACDC, {SHOWN} labelled, nine choosing patients, {len(common)} seeds")
        legend(canvas, axes.get_legend_handles_labels()[0])

    return render(draw, size=(4.8, 3.2))


def _seeds(file: Path) -> pd.Series:
    """Return the mean Dice by fold and seed: over subjects, each the mean of its frames."""
    frames = pd.read_csv(file)
    frames = frames[frames["class"] == MEAN]
    subjects = frames.groupby(["fold", "seed", "subject"])["dice"].mean()
    return subjects.groupby(["fold", "seed"]).mean()


def _axes(canvas: Figure, x: str) -> Axes:
    axes = canvas.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel("mean 3D Dice")
    return axes


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder (%(default)s)")
    output = parser.parse_args(arguments).output
    pictures = {
        "few-labels": labels(),
        "few-labels-curves": curves(),
        "few-labels-long-curves": curves(ending="-long"),
        "few-labels-length": length(),
    }
    for name, picture in pictures.items():
        (output / f"{name}.png").write_bytes(picture)
    return 0


if __name__ == "__main__":
    main()
