"""The numbers of a study as small tables, to be kept where its folder is not."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from nnunet_ssp.evaluation.statistics import SCORES
from nnunet_ssp.sharing.gains import COLUMNS
from nnunet_ssp.study.results import Results
from nnunet_ssp.study.runs import slug

SCORE_COLUMNS = ("fold", "seed", "subject", "phase", "class", *SCORES, "missed")
CURVE_COLUMNS = ("fold", "seed", "step", "pseudo_dice")


def model_tables(results: Results) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the tables of each model with a finished training, with their names.

    `NAME` has a row for every fold, seed, frame and class, `NAME-curves` one for every point of the learning curves.
    """
    for model in dict.fromkeys(model for model, _ in results.done):
        scores, curves = [], []
        for (name, fold), runs in results.done.items():
            if name != model:
                continue
            scores.append(results.frames[model, fold].assign(fold=fold))
            for seed, run in runs.items():
                curve = results.learning_curve(run)
                if curve is not None:
                    curves.append(curve.assign(fold=fold, seed=seed))
        for ending, tables, columns in (
            ("", scores, SCORE_COLUMNS),
            ("-curves", curves, CURVE_COLUMNS),
        ):
            filled = [table[[*columns]] for table in tables if len(table)]
            if filled:
                yield f"{slug(model)}{ending}", pd.concat(filled, ignore_index=True)


def comparison_table(results: Results, compared: pd.DataFrame) -> pd.DataFrame:
    """Return comparisons with what was compared, as `nnunet-ssp export` puts them on the card of a pretraining.

    Args:
        results: Results of the study.
        compared: From `comparisons`.
    """
    rows = []
    for row in compared.to_dict("records"):
        fold = row["fold"]
        own, theirs = (
            next(iter(results.done[row[name], fold].values())) for name in ("model", "baseline")
        )
        rows.append(
            {
                **row,
                "labelled_subjects": results.labelled(fold)[0],
                "scored_on": results.study.evaluate,
                "pretraining": own.start(results.data) if own.weights else "",
                "trainer": own.trainer,
                "settings": own.settings_of_all_seeds,
                "trainer_baseline": theirs.trainer,
                "settings_baseline": theirs.settings_of_all_seeds,
            }
        )
    return pd.DataFrame(rows, columns=[*COLUMNS])
