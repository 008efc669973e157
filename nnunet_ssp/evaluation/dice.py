"""3D Dice per class, on arrays and on folders of segmentations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

EmptyRule = Literal["one", "nan"]


def dice_per_class(
    prediction: np.ndarray[Any, Any],
    reference: np.ndarray[Any, Any],
    classes: Sequence[int],
    empty: EmptyRule = "one",
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Dice, 2|A∩B| / (|A| + |B|), of each class over the whole array.

    A class in only one of the two arrays scores 0 under both rules for empty classes.

    Args:
        prediction: Label map of any shape.
        reference: Label map of the same shape.
        classes: Label values to score.
        empty: The score of a class that is in neither array: "one" gives 1, as in the papers
            (de Mooij et al., Dominic et al.); "nan" gives NaN, as in nnU-Net's evaluator, whose
            means then leave the case out.

    Returns:
        Dice in [0, 1] or NaN, in the order of `classes`. Shape: (len(classes),).

    Raises:
        ValueError: The shapes differ, or `empty` is neither "one" nor "nan".
    """
    if empty not in ("one", "nan"):
        raise ValueError(f"`empty` (={empty!r}) must be 'one' or 'nan'.")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"`prediction` (shape={prediction.shape}) must have the shape of `reference` "
            f"(shape={reference.shape})."
        )
    scores = np.full(len(classes), 1.0 if empty == "one" else np.nan)
    for position, label in enumerate(classes):
        predicted, true = prediction == label, reference == label
        size = np.count_nonzero(predicted) + np.count_nonzero(true)
        if size > 0:
            scores[position] = 2 * np.count_nonzero(predicted & true) / size
    return scores


def read_label_map(path: Path) -> np.ndarray[Any, Any]:
    """Read an image file.

    Args:
        path: File in any format SimpleITK reads.

    Returns:
        Voxel values. Shape: (slices, rows, columns) for a 3D file.

    Raises:
        ValueError: The file cannot be read; the message names it.
    """
    import SimpleITK

    try:
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except RuntimeError as error:
        # The last line holds the reason, the ones before it the place in SimpleITK's source.
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path} cannot be read as an image: {reason}") from error


def score_folder(
    predictions: Path,
    references: Path,
    labels: Mapping[str, int],
    *,
    cases: Collection[str] | None = None,
    empty: EmptyRule = "one",
    file_ending: str = ".nii.gz",
) -> pd.DataFrame:
    """3D Dice of every reference case in a folder, one row per case and class.

    Files are matched by name, `CASE` + `file_ending`. Predictions without a reference are ignored.

    Args:
        predictions: Folder of predicted label maps, as `nnUNetv2_predict` writes it.
        references: Folder of reference label maps, such as labelsTs.
        labels: Name and value of each class, as in dataset.json; the value 0 (background) is
            left out.
        cases: Score only these cases of `references`; None scores all.
        empty: The score of a class in neither file, see `dice_per_class`.
        file_ending: Ending of the files in both folders.

    Returns:
        Columns `case` (str), `class` (str) and `dice` (float), sorted by case, classes in the
        order of `labels`.

    Raises:
        FileNotFoundError: A folder is missing or holds no such file, or a case has no prediction
            or no reference; the message names the cases.
        ValueError: A file cannot be read, or the two files of a case differ in shape.
    """
    predicted, true = _files(predictions, file_ending), _files(references, file_ending)
    scored = sorted(true if cases is None else cases)
    for folder, files in ((references, true), (predictions, predicted)):
        if missing := [case for case in scored if case not in files]:
            raise FileNotFoundError(f"{folder} has no file for {_listed(missing)}.")

    foreground = {name: value for name, value in labels.items() if value != 0}
    rows: list[tuple[str, str, float]] = []
    for case in scored:
        prediction, reference = read_label_map(predicted[case]), read_label_map(true[case])
        if prediction.shape != reference.shape:
            raise ValueError(
                f"{predicted[case]} (shape={prediction.shape}) must have the shape of "
                f"{true[case]} (shape={reference.shape})."
            )
        scores = dice_per_class(prediction, reference, list(foreground.values()), empty)
        rows += [(case, name, float(dice)) for name, dice in zip(foreground, scores, strict=True)]
    return pd.DataFrame(rows, columns=["case", "class", "dice"])


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """The files of a folder by case name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    files = {path.name.removesuffix(ending): path for path in folder.glob(f"*{ending}")}
    if not files:
        raise FileNotFoundError(f"{folder} holds no {ending} file.")
    return files


def _listed(cases: Sequence[str], limit: int = 10) -> str:
    """`1 case: a` or `12 cases: a, b, ... and 2 more`."""
    more = f" and {len(cases) - limit} more" if len(cases) > limit else ""
    noun = "case" if len(cases) == 1 else "cases"
    return f"{len(cases)} {noun}: {', '.join(cases[:limit])}{more}"
