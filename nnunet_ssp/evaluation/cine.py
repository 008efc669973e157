"""4D masks of `nnunet-ssp predict` as predictions: the labelled frames are picked out of them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssp.cohort.cases import Case
from nnunet_ssp.console import count_of

ENDING = "_seg.nii.gz"
PHASES = "phases.csv"
_CASE = re.compile(r"(?P<subject>.+)_frame(?P<frame>\d{2,6})")


def holds_cines(folder: Path) -> bool:
    """Whether a folder is one of `nnunet-ssp predict`."""
    return (folder / PHASES).is_file() and any(folder.glob(f"*{ENDING}"))


def subject_names(known: Mapping[str, Case], key: Mapping[str, str]) -> dict[str, str]:
    """Return the user's name of each case's subject.

    Args:
        known: The cases of `cases.csv`.
        key: Pseudonyms by the user's name.
    """
    own = {pseudonym: name for name, pseudonym in key.items()}
    return {case: own.get(row.subject, row.subject) for case, row in known.items()}


def cine_files(folder: Path, cases: Iterable[str], names: Mapping[str, str]) -> dict[str, Path]:
    """Find the 4D masks that hold cases.

    Args:
        folder: A folder of `nnunet-ssp predict`.
        cases: Cases with a reference; those without a mask are left out.
        names: The user's name of each case's subject; otherwise the case's name tells it.
    """
    found = {}
    for case in cases:
        match = _CASE.fullmatch(case)
        if match and (file := folder / f"{names.get(case, match['subject'])}{ENDING}").is_file():
            found[case] = file
    return found


def read_frame(file: Path, case: str) -> Any:
    """Read the frame of a case from a 4D mask, as a `SimpleITK.Image` on the grid that `convert` gives its images.

    Raises:
        ValueError: The file is damaged or has no such frame.
    """
    import SimpleITK

    from nnunet_ssp.conversion.geometry import place_stack
    from nnunet_ssp.files.nifti import as_cine, read_image

    stored = read_image(file)
    voxels, match = as_cine(stored.voxels), _CASE.fullmatch(case)
    voxels = voxels[..., None] if voxels.ndim == 3 else voxels
    frame = int(match["frame"]) if match else 0
    if frame >= voxels.shape[3]:
        raise ValueError(
            f"{file}: has {count_of(voxels.shape[3], 'frame')}, not frame {frame} of {case}."
        )
    place = place_stack(stored.grid, voxels.shape, file)
    image = SimpleITK.GetImageFromArray(place.move(voxels)[..., frame].transpose(2, 1, 0))
    spacing = np.linalg.norm(place.affine[:3, :3], axis=0)
    directions = np.diag([-1, -1, 1]) @ (place.affine[:3, :3] / spacing)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(directions.ravel().tolist())
    image.SetOrigin((place.affine[:3, 3] * [-1, -1, 1]).tolist())
    return image


def phase_notes(
    model: str, folders: Sequence[Path], masks: Mapping[str, Path], known: Mapping[str, Case]
) -> list[str]:
    """Say how far ED and ES that `predict` found are from the labelled ones, in frames.

    Args:
        model: Name of the model.
        folders: Its folders.
        masks: The predicted file of each case.
        known: The cases of `cases.csv`.
    """
    notes = []
    for folder in filter(holds_cines, folders):
        found = _found_phases(folder / PHASES)
        for phase in ("ED", "ES"):
            apart = []
            for case, file in masks.items():
                row = known.get(case)
                subject = file.name.removesuffix(ENDING)
                if file.parent != folder or row is None or row.phase != phase:
                    continue
                if (subject, phase) in found:
                    distance = abs(found[subject, phase] - row.frame)
                    apart.append(min(distance, row.n_frames - distance))
            if apart:
                notes.append(
                    f"{model}: {phase} found is {np.mean(apart):.1f} frames from the labelled one on average, at most "
                    f"{max(apart)} ({count_of(len(apart), 'subject')})."
                )
    return notes


def _found_phases(file: Path) -> dict[tuple[str, str], int]:
    with open(file, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {
        (row["subject"], row["phase"]): int(row["frame"])
        for row in rows
        if row.get("subject") and row.get("phase") and str(row.get("frame", "")).isdecimal()
    }
