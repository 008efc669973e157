"""The intersection over union of single slices, as 2D studies score (Kalapos and Gyires-Tóth 2022, section 4)."""

from __future__ import annotations

import pandas as pd

from nnunet_ssp.evaluation.statistics import MEAN
from nnunet_ssp.study.spec import IOU, TEST_COLUMNS


def slice_ious(slices: pd.DataFrame) -> pd.DataFrame:
    """Return the mean IoU over the slices of each frame and class, and of the class `mean`.

    Args:
        slices: `slices.csv`, with the columns of the cases.

    Returns:
        One row per frame and class, with the score in column `iou`.
    """
    if slices.empty:
        return slices.assign(**{IOU: 0.0})
    dice = slices["dice"].astype(float)
    table = slices.assign(**{IOU: dice / (2 - dice)})
    about = [n for n in ("seed", "subject", "case", *TEST_COLUMNS) if n in table]
    keys = list(dict.fromkeys(about))
    classes = table.groupby([*keys, "class"], sort=False, dropna=False)[IOU].mean().reset_index()
    means = classes.groupby(keys, sort=False, dropna=False)[IOU].mean().reset_index()
    return pd.concat([classes, means.assign(**{"class": MEAN})], ignore_index=True)
