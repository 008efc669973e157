"""The masks of own cine, brought to the frames and the grid of their images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from nnunet_ssp.conversion.geometry import same_grid
from nnunet_ssp.conversion.phases import LABELS, label_phases
from nnunet_ssp.conversion.stacks import NiftiStack, StackHeader
from nnunet_ssp.dataset_conversion.cine_files import CineTask
from nnunet_ssp.dataset_conversion.frame_numbers import frame_of
from nnunet_ssp.dataset_conversion.mask_names import name_beside
from nnunet_ssp.dataset_conversion.mask_values import to_classes
from nnunet_ssp.dataset_conversion.phase_folders import named_phases
from nnunet_ssp.files.grids import Array, corner_distance
from nnunet_ssp.files.nifti import (
    as_cine,
    as_frame,
    each_frame,
    read_image,
)

MASK_VALUES = (
    8  # at most, in a mask, all of them whole numbers from 0 to 255; MR images have hundreds
)


LEFT_VENTRICLE = ("LVBP", "LV")
Phases = tuple[dict[int, str], list[str], list[str]]


def is_like_a_mask(frame: Array) -> bool:
    """Whether a frame has background and a few small whole numbers, and nothing else."""
    values = np.unique(frame)
    if values.size > MASK_VALUES or values[0] != 0 or values[-1] > 255:
        return False
    return bool((values == np.rint(values)).all())


def refuse_mask(task: CineTask, frames: Iterable[Array] | None = None) -> None:
    """Refuse a mask in place of images. Its frames may be empty, but for one; of images the first frame is enough.

    Args:
        task: The subject.
        frames: Its frames; by default those of its NIfTI files, read as far as necessary.

    Raises:
        ValueError: It is a mask; says how it should be called.
    """
    values: set[float] = set()
    if frames is None:
        frames = chain.from_iterable(map(each_frame, task.images))
    for frame in frames:
        if not is_like_a_mask(frame):
            return
        values.update(np.unique(frame).tolist())
    if len(values) < 2:  # neither an image nor a mask
        return
    shown = ", ".join(f"{value:g}" for value in sorted(values)[:MASK_VALUES])
    name = name_beside(task.place) if task.place.is_file() else ""
    what = f"Call it {name}." if name else "Names of masks end in _gt, see --help."
    raise ValueError(f"{task.place}: has only the values {shown}: this is a mask, no image. {what}")


def read_masks(
    task: CineTask, shape: Sequence[int], affine: Array, nifti: NiftiStack | StackHeader | None
) -> tuple[dict[int, Array], list[str]]:
    """Return the labelled frames, uint8 `(X, Y, Z)` on the image's grid, and what was corrected.

    Args:
        task: The subject.
        shape: `(X, Y, Z, T)`, of the image as it will be written.
        affine: (4, 4), of the image as it will be written.
        nifti: The image, or its headers, if it is not DICOM.

    Raises:
        ValueError: A mask cannot be read, has other values than the labels, or another shape or place than the image,
            or it is not clear which frame it is of.
    """
    shape = tuple(shape)
    n_frames = shape[3]
    several = task.images if nifti and len(task.images) > 1 else ()
    slices = nifti is not None and nifti.source is None
    masks: dict[int, Array] = {}
    turned = False
    for file in task.masks:
        stored = read_image(file)
        mask = as_cine(stored.voxels)
        if slices and 1 in mask.shape[:3]:
            raise ValueError(
                f"{file}: must be a mask of the whole stack, not of one of its slices."
            )
        frame = frame_of(
            file, several, mask.shape, slices=slices, n_frames=n_frames, first=task.frames_from
        )
        if frame is None and n_frames == 1 and mask.ndim == 3:
            frame = 0
        mask = mask if frame is None else as_frame(mask)
        if nifti and nifti.source and same_grid(stored, nifti.source):
            mask = nifti.place.move(mask)
        else:
            mask, moved = _on_grid(mask, stored.grid.affine, affine, file)
            turned |= moved
        expected = shape if frame is None else shape[:3]
        if mask.shape != expected:
            of_one = mask.shape == shape[:3]
            name = f" A mask of one frame is called {task.subject}_frame<TT>_gt.nii.gz." * of_one
            raise ValueError(
                f"{file}: shape (={mask.shape}) must be that of the image (={expected}).{name}"
            )
        _add_labelled(masks, to_classes(mask, file, task), frame, file)
    return masks, ["axes of the masks turned to those of the image"] if turned else []


def find_phases(task: CineTask, masks: Mapping[int, Array], n_frames: int) -> Phases:
    """Find ED and ES among the labelled frames, as the files' names say, else by the left ventricle.

    Args:
        task: The subject.
        masks: The labelled frames by time index.
        n_frames: Frames of the cine.

    Returns:
        The phase of each frame to use, corrections and notes, in which the first frame has the user's number.
    """
    names = task.label_names
    ventricle = [n for n, name in enumerate(names, 1) if name.upper() in LEFT_VENTRICLE]
    others = len(names) + 1
    as_in_mnms = {
        t: np.where(np.isin(mask, ventricle), LABELS["LVBP"], (mask > 0) * others)
        for t, mask in masks.items()
    }
    first = task.frames_from or 0
    told = named_phases(task, n_frames)
    ed, es = (str(told[phase] + first) if phase in told else "" for phase in ("ED", "ES"))
    where = "the name" if told else ""
    return label_phases(as_in_mnms, ed, es, where=where, first=first)


def _add_labelled(masks: dict[int, Array], mask: Array, frame: int | None, file: Path) -> None:
    """Add the labelled frames of a mask to those that were found before; `frame` is None for a mask of all."""
    apart = np.moveaxis(mask.reshape(*mask.shape[:3], -1), 3, 0)
    for t, labelled in enumerate(apart) if frame is None else [(frame, apart[0])]:
        if labelled.any() and t in masks:
            raise ValueError(f"{file}: frame {t} has another mask already.")
        if labelled.any():
            masks[t] = labelled


def _on_grid(mask: Array, mask_affine: Array, affine: Array, file: Path) -> tuple[Array, bool]:
    """Flip and permute a mask's axes to those of the image, and return whether that was necessary."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    axes = io_orientation(np.linalg.inv(affine) @ mask_affine)
    if np.isnan(axes).any() or mask.ndim < 3:
        raise ValueError(f"{file}: must be a 3D or 4D mask with the affine of its image.")
    turned = np.asarray(apply_orientation(mask, axes))
    its_affine = mask_affine @ inv_ornt_aff(axes, mask.shape[:3])
    distance = corner_distance(its_affine, affine, turned.shape[:3])
    if distance > np.linalg.norm(affine[:3, :2], axis=0).min() / 2:
        raise ValueError(
            f"{file}: the mask must lie where the image is, but its corners are {distance:.1f} mm off."
        )
    return turned, not np.array_equal(axes, [[0, 1], [1, 1], [2, 1]])
