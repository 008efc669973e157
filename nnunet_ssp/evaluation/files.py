"""Search for the files to compare: the predictions of each model, and the reference of each case."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.console import some
from nnunet_ssp.evaluation.cine import ENDING, cine_files, holds_cines, read_frame
from nnunet_ssp.evaluation.provenance import whose
from nnunet_ssp.files.names import must_all_be_plain
from nnunet_ssp.files.soundness import check_sound
from nnunet_ssp.launch import validating_command

# nnU-Net's formats for natural images and TIFF stacks; it does not read their resolution.
WITHOUT_SPACING = (".png", ".bmp", ".tif", ".tiff")
THE_REST = (
    "To score the others alone, copy their references to a folder and name it with --references."
)


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference."""

    model: str
    # Number of the model's training, from 0.
    seed: int
    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class References:
    """Reference label maps of a dataset by case."""

    # A folder of predictions with one of these cases must have all of them.
    test: dict[str, Path]
    training: dict[str, Path] = field(default_factory=dict)
    # Folds of splits_final.json.
    folds: Sequence[Mapping[str, Sequence[str]]] = ()
    # Name of the dataset, if known
    dataset: str = ""


def label_files(folder: Path, ending: str) -> dict[str, Path]:
    """List the files of a folder by case; none if there is no such folder.

    Raises:
        ValueError: A case's name is not UTF-8, or otherwise not plain.
    """
    files = sorted(folder.glob(f"*{ending}"))
    found = {f.name.removesuffix(ending): f for f in files if not f.name.startswith(".")}
    must_all_be_plain(found, "case", str(folder))  # else no report could name it
    return found


def find_references(
    raw: Path | None, prepared: Path | None, ending: str, folder: Path | None = None
) -> References:
    """Look up the reference label maps of a dataset.

    Args:
        raw: The dataset's folder in nnUNet_raw, if there is one: `labelsTs` and `labelsTr`.
        prepared: Its folder in nnUNet_preprocessed, if there is one: `gt_segmentations`.
        ending: File ending.
        folder: Folder that the user names instead.

    Raises:
        FileNotFoundError: `folder` holds no such file.
    """
    places = [f for f in (prepared, raw) if f is not None]
    name = places[0].name if places else ""
    if folder is not None:
        return References(_require_files(folder, ending), dataset=name)
    splits = [f / "splits_final.json" for f in places if (f / "splits_final.json").is_file()]
    training: dict[str, Path] = {}
    if raw is not None:
        training |= label_files(raw / "labelsTr", ending)
    if prepared is not None:
        training |= label_files(prepared / "gt_segmentations", ending)
    return References(
        test=label_files(raw / "labelsTs", ending) if raw is not None else {},
        training=training,
        folds=read_splits(splits[0]) if splits else [],
        dataset=name,
    )


def find_pairs(
    models: Mapping[str, Sequence[Path]],
    references: References,
    ending: str,
    names: Mapping[str, str] | None = None,
) -> tuple[list[Pair], list[str]]:
    """Match the predictions of all models with their references.

    Folders of a model with the same cases are its seeds. Folders with different cases are the folds of a
    cross-validation, and together make one seed. All seeds, and all models, must have predicted the same cases.

    Args:
        models: Folders of predictions of each model.
        references: References from `find_references`.
        ending: File ending.
        names: The user's name of each case's subject, where `predict` named its masks after it.

    Returns:
        The pairs, and notes on files that are left out.

    Raises:
        FileNotFoundError: A folder holds no label map, or a case has no prediction or reference.
        ValueError: The cases of the folders do not fit each other.
    """
    pairs: list[Pair] = []
    notes: list[str] = []
    cases_of: dict[str, set[str]] = {}
    for model, folders in models.items():
        found = []
        for folder in folders:
            if holds_cines(folder):
                files = cine_files(folder, references.test, names or {})
                files = files or cine_files(folder, references.training, names or {})
                if not files:
                    raise FileNotFoundError(
                        f"{folder}: no 4D mask of it is of a subject with references; masks are called "
                        f"<subject>{ENDING}."
                    )
            else:
                files = _require_files(folder, ending)
            expected = _expected(folder, files, references)
            if missing := [case for case in expected if case not in files]:
                raise FileNotFoundError(
                    f"{folder} has no prediction for {case_list(missing)}. {_how_to_complete(folder)}"
                )
            if extra := [case for case in files if case not in expected]:
                # By name: the page, which is shared, has no paths.
                where = model if len(folders) == 1 else f"{model}, {folder.name}"
                notes.append(
                    f"{where}: left out, as no reference is asked for: {case_list(extra)}."
                )
            found.append({case: (files[case], expected[case]) for case in expected})
        for seed, folder_files in zip(_seeds(model, found), found, strict=True):
            pairs += [Pair(model, seed, case, *files) for case, files in folder_files.items()]
        cases_of[model] = set().union(*found)
    for (one, cases), (other, others) in combinations(cases_of.items(), 2):
        if different := sorted(cases ^ others):
            raise ValueError(
                f"{one} and {other} must have predicted the same cases; only one of them has "
                f"{case_list(different)}. {THE_REST}"
            )
    return pairs, notes


def _how_to_complete(folder: Path) -> str:
    """Return what to do about missing predictions."""
    if folder.name == "validation" and (line := validating_command(folder.parent)):
        return f"{THE_REST} The whole validation is made by:\n{line}"
    if holds_cines(folder):
        return f"Run the same nnunet-ssp predict with their images in its folder. {THE_REST}"
    return f"The same command of nnU-Net with --continue_prediction predicts the missing alone. {THE_REST}"


def _expected(folder: Path, files: Collection[str], references: References) -> dict[str, Path]:
    """Find the references of the cases that a folder should hold, judged by those that it does hold."""
    folder = folder.resolve()  # a fold is known by its path, also from inside it or through a link
    if any(case in references.test for case in files):
        return references.test
    fold = re.fullmatch(r"fold_(\d+)", folder.parent.name)
    cases: Iterable[str] = [case for case in files if case in references.training]
    if fold and folder.name == "validation" and int(fold[1]) < len(references.folds):
        cases = sorted(references.folds[int(fold[1])]["val"])
        if missing := [case for case in cases if case not in references.training]:
            raise FileNotFoundError(f"{folder}: there is no reference for {case_list(missing)}.")
    if not cases:
        there = sorted(references.test) or sorted(references.training)
        known = f"There are some for {case_list(there, 3)}. " if there else "There is none at all. "
        raise FileNotFoundError(
            f"{folder}: there is no reference for any of {case_list(sorted(files))}. {known}References are "
            "looked up in labelsTs, gt_segmentations and labelsTr; --references names another "
            f"folder.{whose(folder, references.dataset)}"
        )
    return {case: references.training[case] for case in cases}


def _seeds(model: str, found: Sequence[Mapping[str, object]]) -> list[int]:
    """Assign a seed to each folder: the first seed that has none of its cases yet."""
    seeds: list[set[str]] = []
    numbers = []
    for cases in found:
        free = (number for number, held in enumerate(seeds) if held.isdisjoint(cases))
        numbers.append(next(free, len(seeds)))
        if numbers[-1] == len(seeds):
            seeds.append(set())
        seeds[numbers[-1]] |= cases.keys()
    for number, held in enumerate(seeds):
        if different := sorted(held ^ seeds[0]):
            raise ValueError(
                f"{model}: its folders must hold the same cases (seeds) or different ones (folds, "
                f"all of them for each seed); only one of seeds 0 and {number} has "
                f"{case_list(different)}. {THE_REST}"
            )
    return numbers


def _require_files(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    files = label_files(folder, ending)
    if not files:
        below = [f.name for f in sorted(folder.iterdir()) if f.is_dir() and label_files(f, ending)]
        where = f" Its folders hold some: {some(below)}. Give {folder / below[0]}." if below else ""
        raise FileNotFoundError(f"{folder} holds no {ending} file.{where}")
    return files


def find_image_files(raw: Path | None, ending: str) -> dict[str, Path]:
    """List the first channel of the test and training images by case."""
    folders = [] if raw is None else [raw / "imagesTr", raw / "imagesTs"]
    return {
        case: path
        for folder in folders
        for case, path in label_files(folder, f"_0000{ending}").items()
    }


def case_list(cases: Sequence[str], limit: int = 10) -> str:
    """List cases: `1 case: a` or `12 cases: a, b, ... and 2 more`."""
    more = f" and {len(cases) - limit} more" if len(cases) > limit else ""
    noun = "case" if len(cases) == 1 else "cases"
    return f"{len(cases)} {noun}: {', '.join(cases[:limit])}{more}"


# -- reading ---------------------------------------------------------------------------------------


def read_sitk_image(path: Path) -> Any:
    """Read a 3D image file as a `SimpleITK.Image`; a natural image (PNG, ...) becomes a single slice.

    Raises:
        ValueError: The file is damaged, holds NaN, cannot be read or is not 3D; the message names it.
    """
    import SimpleITK

    if path.is_file():
        check_sound(path)
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        # The last line holds the reason, the ones before it the place in SimpleITK's source.
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path} cannot be read as an image: {reason}") from error
    if image.GetDimension() == 2 and path.suffix in WITHOUT_SPACING:
        image = SimpleITK.JoinSeries(image)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{path} (size={image.GetSize()}) must be a 3D image of one channel.")
    return image


def read_array(path: Path) -> npt.NDArray[Any]:
    """Read the voxel values of a 3D image file, of shape (slices, rows, columns)."""
    import SimpleITK

    return SimpleITK.GetArrayFromImage(read_sitk_image(path))


def read_label_map(path: Path) -> npt.NDArray[Any]:
    """Read the labels of a scored file as whole numbers, of shape (slices, rows, columns)."""
    return np.rint(read_array(path)).astype(np.int32)


def read_prediction(pair: Pair) -> Any:
    """Read the prediction of a pair as a `SimpleITK.Image`: a file of its own, or a frame of a 4D mask."""
    if pair.prediction.name.endswith(ENDING) and holds_cines(pair.prediction.parent):
        return read_frame(pair.prediction, pair.case)
    return read_sitk_image(pair.prediction)


def read_predicted_labels(pair: Pair) -> npt.NDArray[Any]:
    """Read the predicted labels of a pair, as `read_label_map` does those of a file."""
    import SimpleITK

    return np.rint(SimpleITK.GetArrayFromImage(read_prediction(pair))).astype(np.int32)


def read_pair(pair: Pair) -> tuple[npt.NDArray[Any], npt.NDArray[Any], tuple[float, ...]]:
    """Read both label maps of a pair and check that they lie on the same grid.

    Returns:
        Prediction and reference, of shape (slices, rows, columns), and the spacing in mm in the same order.

    Raises:
        ValueError: A file cannot be read, or the grids differ.
    """
    import SimpleITK

    prediction, reference = read_prediction(pair), read_sitk_image(pair.reference)
    # The tolerances allow for the rounding of header formats: 1e-3 mm, and 1e-4 of all else.
    grid = [("Size", 0), ("Spacing", 1e-3), ("Origin", 1e-3), ("Direction", 1e-3)]
    for name, tolerance in grid[: 1 if pair.reference.suffix in WITHOUT_SPACING else None]:
        ours, theirs = (getattr(image, f"Get{name}")() for image in (prediction, reference))
        if not np.allclose(ours, theirs, rtol=1e-4 if tolerance else 0, atol=tolerance):
            raise ValueError(
                f"{pair.prediction} ({name.lower()}={_rounded(ours)}) must have the {name.lower()} "
                f"of {pair.reference} ({_rounded(theirs)})."
            )
    arrays = (SimpleITK.GetArrayFromImage(image) for image in (prediction, reference))
    return *arrays, tuple(reference.GetSpacing()[::-1])


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
