"""A look at one subject of own cine, for a dry run: headers of the images, and the masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from nnunet_ssp.console import count_of
from nnunet_ssp.conversion.convert import look_at_headers
from nnunet_ssp.conversion.geometry import clean_affine
from nnunet_ssp.conversion.stacks import StackHeader, look_at_nifti_stack
from nnunet_ssp.conversion.subjects import Look, without_labels
from nnunet_ssp.dataset_conversion.cine_files import CineTask, stem_of
from nnunet_ssp.dataset_conversion.cine_masks import find_phases, read_masks, refuse_mask
from nnunet_ssp.dataset_conversion.mask_values import warn_of_numbering
from nnunet_ssp.files.grids import Array


def look(task: CineTask) -> Look:
    """Look at one subject: headers of its images, for DICOM up to the choice of the stack, and its masks."""
    first = task.images[0]
    # Sides of NIfTI images and their masks are compared below, where files may be of one slice each
    seen = look_at_headers(task, alike=not stem_of(first))
    seen.notes += task.notes
    if seen.refused:
        return seen
    if stem_of(task.images[0]):
        try:
            refuse_mask(task)
            stack = look_at_nifti_stack(task.images)
            place = stack.place
            notes = dict.fromkeys([*seen.notes, *place.corrections, *place.notes])
            known = replace(seen, n_frames=stack.shape[3], notes=list(notes))
            return _with_masks(task, known, stack.shape, place.affine, stack)
        except ValueError as error:
            return replace(seen, refused=str(error))
    from nnunet_ssp.conversion.dicom.short_axis import choose_short_axis
    from nnunet_ssp.conversion.dicom.volumes import affine_of

    try:
        choice = choose_short_axis(
            task.images, task.place, task.hint, chosen=task.chosen, masks=bool(task.masks)
        )
        size = f"{count_of(len(choice.runs), 'slice')} x {count_of(choice.n_frames, 'frame')}"
        chosen = replace(
            seen,
            n_frames=choice.n_frames,
            warnings=choice.warnings,
            notes=[f"short axis of {size}", *seen.notes, *choice.notes],
            patient=choice.patient,
            inventory=asdict(choice.inventory),
        )
        rows, columns = choice.runs[0].images[0].shape
        shape = (columns, rows, len(choice.runs), choice.n_frames)
        affine, _ = clean_affine(affine_of(choice.runs), task.place)
        return _with_masks(task, chosen, shape, affine, None)
    except ValueError as error:
        return replace(seen, refused=str(error))


def _with_masks(
    task: CineTask, seen: Look, shape: Sequence[int], affine: Array, nifti: StackHeader | None
) -> Look:
    """Read the masks of a subject, too; arguments as for `read_masks`.

    Raises:
        ValueError: They cannot be used.
    """
    if not task.masks:
        return seen
    masks, _ = read_masks(task, shape, affine, nifti)
    if not masks:
        note = without_labels(task, "the masks are empty", task.place)
        return replace(seen, n_labelled=0, notes=[*seen.notes, note])
    warnings = [*seen.warnings, *warn_of_numbering(masks.values(), task)]
    phases, _, _ = find_phases(task, masks, shape[3])
    return replace(seen, n_labelled=len(phases), warnings=warnings)
