"""Write `nnunet_ssp/training/measured.csv` from the scores in `docs/results/acdc-few`.

`python docs/make_results.py` writes the table; `--check` only says whether it is current. The scores are the folders
`models` or, where models were chosen and reported, `reported-models` of a study's folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nnunet_ssp.evaluation.statistics import MEAN
from nnunet_ssp.training import evidence

SCORES = Path(__file__).with_name("results") / "acdc-few"
TABLE = Path(evidence.__file__).with_name(evidence.TABLE)
# Method of the pretraining, file of the model, file of its control, steps of both.
PAIRS = (
    ("Dense", "Dense", "scratch", 500),
    ("Dense", "Dense-long", "scratch-long", 1500),
    ("MIM", "MIM-deep", "scratch", 500),
)
DATA = {
    "reported-models": "12 other patients of ACDC",
    "models": "the 9 patients of ACDC that methods are chosen on",
}
NETWORK = "a network of half widths, patches of 96x96"


def measured(folder: Path = SCORES) -> pd.DataFrame:
    """Compute the table: `method, data, labelled, seeds, scratch, pretrained`; mean 3D Dice over seeds and subjects."""
    rows = []
    for method, name, control, steps in PAIRS:
        kind = next((kind for kind in DATA if (folder / kind / f"{name}.csv").is_file()), None)
        if kind is None:
            continue
        scratch, pretrained = (_means(folder / kind / f"{model}.csv") for model in (control, name))
        both = pd.concat({"scratch": scratch, "pretrained": pretrained}, axis=1).dropna()
        for labelled, own in both.groupby("fold"):
            seeds = own.index.get_level_values("seed").nunique()
            means = [f"{value:.3f}" for value in own[["scratch", "pretrained"]].mean()]
            data = f"{DATA[kind]} ({NETWORK}, {steps} steps)"
            rows.append([method, data, labelled, seeds, *means])
    columns = ["method", "data", "labelled", "seeds", "scratch", "pretrained"]
    return pd.DataFrame(rows, columns=columns)


def _means(file: Path) -> pd.Series:
    """Return the mean Dice of every fold and seed: over subjects, each the mean of its frames."""
    frames = pd.read_csv(file)
    frames = frames[frames["class"] == MEAN]
    subjects = frames.groupby(["fold", "seed", "subject"])["dice"].mean()
    return subjects.groupby(["fold", "seed"]).mean()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, or check it; 1 if it is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    text = measured().to_csv(index=False, lineterminator="\n")
    if not check:
        TABLE.write_text(text, encoding="utf-8")
    elif TABLE.read_text(encoding="utf-8") != text:
        print(f"{TABLE} is not current: run python docs/make_results.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
