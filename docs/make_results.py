"""Write what was measured, from the scores in `docs/results/acdc-few`.

`python docs/make_results.py` writes `nnunet_ssp/training/measured.csv`, the last column of README's table of methods
and the tables of all models in results.md; `--check` only says whether they are current. The scores are the folders
`models` or, where models were chosen and reported, `reported-models` of a study's folder. README and results.md compare
all on the patients of `models`. The folders `float32` (all trainings in float32, on a processor without bfloat16) and
`amx` (in bfloat16, on a processor with AMX) have the same patients; the models of a folder are compared among
themselves. The trials of the demo are in `demo-trials.csv`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from nnunet_ssp.evaluation.signed_rank import signed_rank_p
from nnunet_ssp.evaluation.statistics import DIFFERENCE_DIGITS, MEAN, two_level_interval
from nnunet_ssp.training import evidence

SCORES = Path(__file__).with_name("results") / "acdc-few"
TABLE = Path(evidence.__file__).with_name(evidence.TABLE)
README = Path(__file__).parents[1] / "README.md"
PAGE = Path(__file__).with_name("results.md")
SHOWN = 5  # labelled patients of README's column and of the table
CLASSES = (MEAN, "LVBP", "LVM", "RV")
LONG = "scratch-long"  # three times as many steps
# Rows of the table in results.md, with the file of the scores; the first is what the others are compared with.
ROWS = {
    "from scratch": "scratch",
    "Dense": "Dense",
    "Dense on 9,600 images": "Dense-short-pretraining",
    "Dense on 252,000 images": "Dense-long-pretraining",
    "its contrast of points alone (`movement=0`)": "contrast-alone",
    "movement alone (Dense with `contrast=0`)": "movement-alone",
    "movement alone on 9,600 images": "movement-alone-short-pretraining",
    "movement alone on 252,000 images": "movement-alone-long-pretraining",
    "movement alone on four subjects of Sunnybrook": "movement-alone-Sunnybrook",
    "MIM": "MIM",
    "MIM, `recipe=deep`": "MIM-deep",
    "SimCLR, `precision=bf16`": "SimCLR",
    "PCL, `precision=bf16`": "PCL",
    "DINO, `precision=bf16`": "DINO",
    "BYOL, `precision=bf16`": "BYOL",
    "context prediction": "context-prediction",
    "context restoration": "context-restoration",
    "movement alone, its encoder with a fresh decoder": "movement-alone-fresh-decoder",
    "MIM, its encoder with a fresh decoder": "MIM-fresh-decoder",
    "from scratch, averaged weights": "scratch-averaged",
    "movement alone, averaged weights": "movement-alone-averaged",
    "from scratch, in the teacher's time": "scratch-equal-time",
    "movement alone, in the teacher's time": "movement-alone-equal-time",
    "from scratch, with a teacher": "scratch-teacher",
    "movement alone, with a teacher": "movement-alone-teacher",
    "movement alone, encoder at a tenth of the rate": "movement-alone-slow-encoder",
    "movement alone, loaded weights frozen first": "movement-alone-frozen-first",
    "movement alone, warm-up": "movement-alone-warm-up",
    "movement alone, drawn back to the start (L2-SP)": "movement-alone-L2-SP",
    "from scratch, rate 0.01": "scratch-rate-0.01",
    "movement alone, rate 0.01": "movement-alone-rate-0.01",
    "from scratch, 1,500 steps": LONG,
    "Dense, 1,500 steps": "Dense-long",
    "movement alone, 1,500 steps": "movement-alone-long",
}
BEGIN, END = "<!-- written by make_results.py -->\n", "<!-- end -->"
# Where each table of the page begins, by the folder of its scores.
TABLES = {
    "models": BEGIN,
    "float32": "<!-- of float32, written by make_results.py -->\n",
    "amx": "<!-- of amx, written by make_results.py -->\n",
}
DEMO = "<!-- of the demo, written by make_results.py -->\n"


class Pair(NamedTuple):
    """A model and its control from scratch."""

    method: str
    model: str  # file of its scores, as that of the control
    control: str = "scratch"
    steps: int = 500
    settings: str = ""  # of the pretraining, where they are not the defaults
    pretrained_on: str = evidence.SAME


PAIRS = (
    Pair("Dense", "Dense"),
    Pair("Dense", "Dense-long", "scratch-long", 1500),
    Pair("Dense", "contrast-alone", settings="movement=0"),
    Pair("Dense", "movement-alone", settings="contrast=0"),
    Pair(
        "Dense",
        "movement-alone-Sunnybrook",
        settings="contrast=0",
        pretrained_on="four subjects of another hospital (Sunnybrook)",
    ),
    Pair("Dense", "movement-alone-long", "scratch-long", 1500, settings="contrast=0"),
    Pair("MIM", "MIM"),
    Pair("MIM", "MIM-deep", settings="recipe=deep"),
    Pair("SimCLR", "SimCLR", settings="precision=bf16"),
    Pair("PCL", "PCL", settings="precision=bf16"),
    Pair("DINO", "DINO", settings="precision=bf16"),
    Pair("BYOL", "BYOL", settings="precision=bf16"),
    Pair("ContextPrediction", "context-prediction"),
    Pair("ContextRestoration", "context-restoration"),
    Pair("Inpainting", "context-restoration"),  # another name of it
)
DATA = {
    "reported-models": "12 other patients of ACDC",
    "models": "the 9 patients of ACDC that methods are chosen on",
}
NETWORK = "a network of half widths, patches of 96x96"


def measured(folder: Path = SCORES) -> pd.DataFrame:
    """Compute the table; its scores are mean 3D Dice over seeds and subjects."""
    rows = []
    for pair in PAIRS:
        kind = next(
            (kind for kind in DATA if (folder / kind / f"{pair.model}.csv").is_file()), None
        )
        if kind is None:
            continue
        how = f"{NETWORK}, {pair.steps} steps"
        for labelled, own in _common(folder / kind, pair).groupby("fold"):
            seeds = own.index.get_level_values("seed").nunique()
            means = [f"{value:.3f}" for value in own[["scratch", "pretrained"]].mean()]
            what = [pair.method, pair.settings, pair.pretrained_on, f"{DATA[kind]} ({how})"]
            rows.append([*what, labelled, seeds, *means])
    columns = ["method", "settings", "pretrained_on", "data", "labelled", "seeds", "scratch"]
    columns.append("pretrained")
    return pd.DataFrame(rows, columns=columns)


def with_gains(readme: str, folder: Path = SCORES) -> str:
    """Return README with the gains in the last column of its table of methods.

    A gain is that with `SHOWN` labelled patients and 500 steps on the patients that methods are chosen on, over the
    seeds that every model has, after pretraining on the same dataset.
    """
    pairs = [p for p in PAIRS if p.steps == 500 and p.pretrained_on == evidence.SAME]
    found = {
        pair: _common(folder / "models", pair).xs(SHOWN, level="fold")
        for pair in pairs
        if (folder / "models" / f"{pair.model}.csv").is_file()
    }
    seeds = set.intersection(*(set(table.index) for table in found.values()))
    cells: dict[str, list[str]] = {}
    for pair, table in found.items():
        scratch, pretrained = table.loc[sorted(seeds)].mean()[["scratch", "pretrained"]]
        gain = f"{pretrained - scratch:+.3f}"
        named = f"`{pair.settings}` {gain}" if pair.settings else gain
        cells.setdefault(f"nnUNetTrainer{pair.method}Pretrain", []).append(named)

    def filled(row: re.Match[str]) -> str:
        return f"{row[1]} {', '.join(cells.get(row[2], ['not measured']))} |"

    return re.sub(
        r"^(\|[^|\n]*\| `(nnUNetTrainer\w+Pretrain)`.*\|)[^|\n]*\|$", filled, readme, flags=re.M
    )


def with_tables(page: str, folder: Path = SCORES) -> str:
    """Return results.md with its tables of all models with `SHOWN` labelled patients, and of the demo's trials."""
    for kind, begin in TABLES.items():
        if begin in page:
            page = _with(page, begin, _table(folder / kind))
    return _with(page, DEMO, _trials(folder.parent / "demo-trials.csv")) if DEMO in page else page


def _with(page: str, begin: str, lines: Sequence[str]) -> str:
    before, after = page.split(begin)
    return before + begin + "\n".join(lines) + "\n" + after[after.index(END) :]


def _trials(file: Path) -> list[str]:
    """List the trials of the demo, each with the difference of its two models."""
    trials = pd.read_csv(file)
    difference = trials["fine_tuned"] - trials["scratch"]
    table = trials.assign(difference=[f"{value:+.3f}" for value in difference])
    table["pretraining_steps"] = [f"{value:,}" for value in trials["pretraining_steps"]]
    for model in ("fine_tuned", "scratch"):
        table[model] = [f"{value:.3f}" for value in trials[model]]
    head = ["seed", "widths", "patch", "unlabelled subjects", "steps of pretraining"]
    head += ["labelled subjects", "steps of fine-tuning", "fine-tuned", "from scratch"]
    head += ["difference"]
    rows = [f"| {' | '.join(map(str, row))} |" for row in table.itertuples(index=False)]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *rows]


def _table(folder: Path) -> list[str]:
    """Compare each model with training from scratch, and with three times as many steps from scratch, where they ran.

    All are compared on the seeds that every model has. p values are not corrected.
    """
    files = {name: folder / f"{file}.csv" for name, file in ROWS.items()}
    scores = {name: _scores(file) for name, file in files.items() if file.is_file()}
    control, *_ = scores.values()
    longer = next((table for name, table in scores.items() if ROWS[name] == LONG), None)
    head = ["model", "seeds", "mean", "LV", "MYO", "RV"]
    head += ["difference", "95 % over seeds and patients", "better on", "seeds better", "p"]
    n_compared = len(head) - 1
    head += [] if longer is None else ["minus scratch, 1,500 steps"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---|' * (len(head) - 1)}"]
    seeds = sorted(
        set.intersection(*(set(table.index.unique("seed")) for table in scores.values()))
    )
    for name, table in scores.items():
        own = table.loc[seeds]
        spread = own[MEAN].groupby("seed").mean().std()
        cells = [str(len(seeds)), f"{own[MEAN].mean():.3f} ± {spread:.3f}"]
        cells += [f"{own[label].mean():.3f}" for label in CLASSES[1:]]
        if table is not control:
            gains = (own[MEAN] - control.loc[seeds, MEAN]).unstack("subject")
            low, high = two_level_interval(gains.to_numpy())
            patients = gains.mean().to_numpy().round(DIFFERENCE_DIGITS)
            better, better_seeds = (int(np.sum(gains.mean(axis=axis) > 0)) for axis in (0, 1))
            cells += [f"{gains.to_numpy().mean():+.3f}", f"{low:+.3f} to {high:+.3f}"]
            cells += [f"{better} of {len(patients)}", f"{better_seeds} of {len(seeds)}"]
            cells += [f"{signed_rank_p(patients):.2g}"]
        cells += [""] * (n_compared - len(cells))
        if longer is not None:
            ahead = own[MEAN].mean() - longer.loc[seeds, MEAN].mean()
            cells += ["" if table is longer else f"{ahead:+.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _scores(file: Path) -> pd.DataFrame:
    """Return the Dice with `SHOWN` labelled patients by seed and subject, the mean of the frames; a column a class."""
    frames = pd.read_csv(file)
    frames = frames[frames["fold"] == SHOWN]
    return frames.groupby(["seed", "subject", "class"])["dice"].mean().unstack("class")


def _common(folder: Path, pair: Pair) -> pd.DataFrame:
    """Return the mean Dice of both models by fold and seed, where both have it."""
    scratch, pretrained = (_means(folder / f"{model}.csv") for model in (pair.control, pair.model))
    return pd.concat({"scratch": scratch, "pretrained": pretrained}, axis=1).dropna()


def _means(file: Path) -> pd.Series:
    """Return the mean Dice of every fold and seed: over subjects, each the mean of its frames."""
    frames = pd.read_csv(file)
    frames = frames[frames["class"] == MEAN]
    subjects = frames.groupby(["fold", "seed", "subject"])["dice"].mean()
    return subjects.groupby(["fold", "seed"]).mean()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all three, or check them; 1 if one is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    texts = {
        TABLE: measured().to_csv(index=False, lineterminator="\n"),
        README: with_gains(README.read_text(encoding="utf-8")),
        PAGE: with_tables(PAGE.read_text(encoding="utf-8")),
    }
    outdated = [file for file, text in texts.items() if file.read_text(encoding="utf-8") != text]
    for file in outdated:
        if check:
            print(f"{file} is not current: run python docs/make_results.py", file=sys.stderr)
        else:
            file.write_text(texts[file], encoding="utf-8")
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
