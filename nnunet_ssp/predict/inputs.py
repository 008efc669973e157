"""New cines, found and read by the code of `convert cine`, and their masks on the grid that they came on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_ssp.dataset_conversion.cine import make_tasks, read_images
from nnunet_ssp.dataset_conversion.cine_files import (
    MASK,
    CineTask,
    Found,
    choose_nifti,
    find_cines,
    holds_one_slice,
    keep_series,
    nothing_in,
    stem_of,
)
from nnunet_ssp.files.atomic import atomic_write
from nnunet_ssp.files.grids import Array
from nnunet_ssp.files.nifti import (
    has_packed_copy,
    read_header,
    read_image,
    stored_header,
    write_like,
    write_nifti,
)

if TYPE_CHECKING:
    from nnunet_ssp.conversion.dicom.headers import Image

UNKNOWN = ("neither sform nor qform", "the affine is the identity")  # notes of `files.grids`


@dataclass(frozen=True)
class InputCine:
    """One cine as read."""

    # (X, Y, Z, T), slices on the third axis
    voxels: Array
    # (4, 4), voxel to world in mm, RAS+
    affine: Array
    # Header of the NIfTI file whose grid holds the whole stack; None where there is none
    header: Any | None
    # Axes of that file, in the order of X, Y, Z
    order: tuple[int, int, int]
    # Beats per minute, and s from frame to frame; None where the header does not tell
    heart_rate: float | None
    frame_time: float | None
    notes: list[str]
    # By slice and frame, the DICOM images; none of NIfTI
    sources: Sequence[Sequence[Image]] = ()

    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing in mm, of X, Y and Z."""
        return tuple(float(edge) for edge in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def spacing_known(self) -> bool:
        """Whether the header tells the spacing."""
        return not any(note.startswith(UNKNOWN) for note in self.notes)


# -- finding ---------------------------------------------------------------------------------------


def find_studies(
    inputs: Sequence[Path], by_patient_id: bool, series: Sequence[str], workers: int
) -> tuple[list[CineTask], dict[str, str]]:
    """Find the subjects of files and folders.

    Args:
        inputs: Each a NIfTI or DICOM file, one subject's folder, or a folder of subjects as `convert cine` takes it.
        by_patient_id: Whether PatientID tells DICOM subjects apart.
        series: The DICOM series to take where a subject has them.
        workers: Number of processes for reading DICOM headers.

    Returns:
        The subjects, and those that cannot be used with the reason.

    Raises:
        FileNotFoundError: An input does not exist, or there is nothing in any.
        ValueError: No subject has a series of `series`.
    """
    found: list[Found] = []
    for path in inputs:
        if path.is_dir():
            found += _in_folder(path, by_patient_id, workers)
        elif path.is_file():
            found.append(Found(stem_of(path) or path.stem, path, (path,)))
        else:
            raise FileNotFoundError(f"{path} does not exist.")
    if not found:
        raise FileNotFoundError(nothing_in(inputs))
    if series:
        found = keep_series(found, series, workers)
    return make_tasks(found, inputs[0], {})


def _in_folder(folder: Path, by_patient_id: bool, workers: int) -> list[Found]:
    from nnunet_ssp.conversion.dicom.headers import first_image

    nifti = [file for file in sorted(folder.iterdir()) if _is_image(file)]
    if nifti and (all(map(_is_frame, nifti)) or (nifti[1:] and all(map(holds_one_slice, nifti)))):
        return [Found(folder.resolve().name, folder, *choose_nifti(folder, nifti))]
    found = find_cines(folder, folder, by_patient_id, workers)
    if len(found) > 1 and all(e.images and not stem_of(e.images[0]) for e in found):
        # The folders of one study's series are one subject. PatientID would not tell: it may be blanked.
        images = [first_image(entry.images[0]) for entry in found]
        studies = {image.study if image else "" for image in images}
        if len(studies) == 1 and "" not in studies:
            files = tuple(sorted(file for entry in found for file in entry.images))
            return [Found(folder.resolve().name, folder, files)]
    return found


def _is_image(file: Path) -> bool:
    stem = stem_of(file)
    return bool(stem) and file.is_file() and not MASK.fullmatch(stem) and not has_packed_copy(file)


def _is_frame(file: Path) -> bool:
    try:
        return len(read_header(file)[0]) == 3
    except ValueError:  # its own subject, whose reading says what is wrong
        return False


# -- reading and writing ---------------------------------------------------------------------------


def read_cine(task: CineTask) -> InputCine:
    """Read and check one subject.

    Raises:
        ValueError: It is no short-axis cine that can be used; names the file and the rule.
    """
    images = read_images(task, one_frame=True)
    stack, dicom = images.nifti, images.dicom
    whole = stack is not None and stack.source is not None
    return InputCine(
        voxels=images.voxels,
        affine=images.affine,
        header=stored_header(task.images[0]) if whole else None,
        order=stack.place.order if stack is not None and whole else (0, 1, 2),
        heart_rate=dicom.heart_rate if dicom else None,
        frame_time=dicom.frame_time if dicom else None,
        notes=[*images.warnings, *images.corrections, *images.notes],  # worst first
        sources=dicom.images if dicom else (),
    )


def write_mask(file: Path, mask: Array, study: InputCine) -> None:
    """Write a mask (X, Y, Z, T) on the grid that the images came on, whole or not at all.

    Under a NIfTI header the mask has the shape and header of its image, so that any tool shows both in one place.
    DICOM gives a NIfTI in patient coordinates, with the columns and rows of the images.
    """
    mask = mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.uint16)
    with atomic_write(file) as temporary:
        if study.header is None:
            write_nifti(temporary, mask, study.affine, study.frame_time or 0.0)
        else:
            stored = mask.transpose(*np.argsort(study.order), 3)
            write_like(temporary, stored, study.header)


def read_mask(file: Path, study: InputCine) -> Array:
    """Read a mask that `write_mask` wrote; returns (X, Y, Z, T).

    Raises:
        ValueError: The file is damaged, or is no mask of these images.
    """
    stored = read_image(file).voxels
    shape = study.voxels.shape
    if stored.size != study.voxels.size:
        raise ValueError(f"{file}: shape (={stored.shape}) must be that of the images (={shape}).")
    expected = (*(shape[axis] for axis in np.argsort(study.order)), shape[3])
    return stored.reshape(expected, order="F").transpose(*study.order, 3)
