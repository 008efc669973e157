"""Own short-axis cine from a folder of NIfTI or DICOM, unlabelled or partly labelled.

    nnunet-ssp convert cine -i FOLDER -d 120

Each entry of FOLDER is a subject, named after its file or folder; kinds may be mixed:

    FOLDER/<subject>.nii.gz, <subject>_sa.nii.gz    4D NIfTI: columns, rows, slices, frames
    FOLDER/<subject>_frame<number>.nii.gz           3D NIfTI: one for each frame
    FOLDER/<subject>/...nii.gz                      4D NIfTI: of that name, or sa.nii.gz, or the only one
    FOLDER/<subject>/...nii.gz                      3D NIfTI: one for each frame; names differ in their numbers,
                                                    which give the order (frame2 before frame10), or are NAME,
                                                    NAME_t40, NAME_t80, ... as dcm2niix writes Philips' phases
    FOLDER/<subject>/...nii.gz                      4D NIfTI of one slice each, or 3D of one slice and frame each:
                                                    parallel and evenly spaced, they make one stack
    FOLDER/<subject>_ED/..., <subject>_ES/...       3D NIfTI: one in each, or files of these names: one subject
    FOLDER/<subject>/...                            DICOM: any names, any order, any depth
    FOLDER/...                                      DICOM files directly in FOLDER: subjects by PatientID

From DICOM only the short-axis cine is converted; the summary says what was left out. Where it cannot be told from
another cine, --series names it by a SeriesNumber, a SeriesInstanceUID, or a part of a folder's name. The name holds
for all subjects that have such a series. --by-patient-id tells DICOM subjects apart by PatientID wherever their
files lie. It is also for a FOLDER that is one patient, with a folder for each series. No header value enters the
dataset but manufacturer, model and field strength.

Subjects get random names in place of those of their files, folders or PatientIDs. The key,
nnUNet_raw/.ssp-keys/DatasetXXX_Name.csv, has both. A conversion that goes on, or another of the same subjects, gives
them the same. --test and --series are told the user's names. --keep-ids keeps these, as do conversions begun before;
characters that a file name should not have become `-`.

Masks (NIfTI, named after their image, or <subject>, and `_gt`) are beside the images, or in the folder --labels,
there also in <subject>/:

    <subject>_gt.nii.gz, <subject>_sa_gt.nii.gz     4D, zero except at the labelled frames
    <subject>_frame<TT>_gt.nii.gz                   3D, for frame TT of a 4D image or DICOM, counted from 00; with
                                                    --frames-from 1 from 01, as ACDC and many tools count
    <image>_gt.nii.gz                               3D, for the 3D frame <image>.nii.gz; where the frames are called
                                                    frame<number>, <subject>_frame<number>_gt.nii.gz, too

Of the labelled frames the one with the largest left ventricle is end-diastole (ED), the smallest end-systole
(ES). Mask values are 1 = LV, 2 = MYO, 3 = RV. --label-values 3 2 1 is for masks in which 3 = LV, 2 = MYO, 1 = RV, and
--label-values 85 170 255 for values of that kind; the dataset has 1, 2, 3. Where only some subjects' masks are numbered
so, --label-values-for names these subjects. A warning names those in which MYO does not enclose LV. --label-names is
for other classes.
Columns and rows of DICOM stay as they are, its slices follow the cross product of row and column direction; masks with
flipped or permuted axes are turned.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_ssp.console import count_of, nearest, path, whole
from nnunet_ssp.conversion.geometry import base_of_stack, clean_affine
from nnunet_ssp.conversion.phases import LABELS
from nnunet_ssp.conversion.stacks import NiftiStack, read_nifti_stack
from nnunet_ssp.conversion.subjects import Cine, Common, make_cases, without_labels
from nnunet_ssp.conversion.summary import Remarks
from nnunet_ssp.dataset_conversion import cine_look, combined, command
from nnunet_ssp.dataset_conversion.cine_files import (
    CineTask,
    Found,
    find_cines,
    find_masks,
    keep_series,
    nothing_in,
    refuse_public,
    stem_of,
    with_shared_patients,
)
from nnunet_ssp.dataset_conversion.cine_masks import find_phases, read_masks, refuse_mask
from nnunet_ssp.dataset_conversion.frame_numbers import (
    FIRST,
    refuse_counted_from_one,
    remarks_on_frames,
)
from nnunet_ssp.dataset_conversion.mask_names import (
    remarks_on_masks,
    require_some,
    unlabelled_lines,
)
from nnunet_ssp.dataset_conversion.mask_values import (
    check_values,
    chosen_subjects,
    in_words,
    rule_of_values,
    warn_of_numbering,
)
from nnunet_ssp.dataset_conversion.phase_folders import join_phases
from nnunet_ssp.dataset_conversion.visit_names import remarks_on_visits
from nnunet_ssp.files.grids import Array
from nnunet_ssp.files.nifti import (
    check_cine,
    unpacked_copies,
)
from nnunet_ssp.files.tables import check_is_folder
from nnunet_ssp.parallel import number_of_workers

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nnunet_ssp.conversion.dicom.short_axis import ShortAxis

SOURCE = "cine"
LABEL_NAMES = tuple(name for name in LABELS if name != "background")
# As M&Ms calls them, by the first word of DICOM's manufacturer ("GE MEDICAL SYSTEMS").
VENDORS = {"SIEMENS": "Siemens", "PHILIPS": "Philips", "GE": "GE", "CANON": "Canon"}
HINT = "Perhaps the folders are series of one patient: --by-patient-id."
LONGEST_NAME = 200  # a file system's 255, less what conversion and nnU-Net add


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`, under the same names."""
    command.add_arguments(
        parser, folder="a file or folder for each subject, see above", name="Cine", test="none"
    )
    parser.add_argument(
        "--labels", metavar="FOLDER", type=path, help="the masks, if they are not beside the images"
    )
    parser.add_argument(
        "--label-names",
        metavar="NAME",
        nargs="+",
        default=LABEL_NAMES,
        help=f"of the mask values 1, 2, ... [{' '.join(LABEL_NAMES)}: {in_words(LABEL_NAMES)}]",
    )
    parser.add_argument(
        "--label-values",
        metavar="VALUE",
        nargs="+",
        type=whole,
        default=[],
        help="the values that your masks have for LV, MYO and RV (or --label-names), in this order; they become 1, 2, "
        "... [1 2 3]",
    )
    parser.add_argument(
        "--label-values-for",
        metavar="SUBJECT",
        nargs="+",
        default=[],
        help="the subjects whose masks have the values of --label-values; all others have 1, 2, ... [all]",
    )
    parser.add_argument(
        "--frames-from",
        metavar="0|1",
        type=int,
        choices=FIRST,
        help="the number of a cine's first frame in the names of masks, <subject>_frame<TT>_gt.nii.gz [0]",
    )
    parser.add_argument(
        "--by-patient-id",
        action="store_true",
        help="tell DICOM subjects apart by PatientID, wherever their files lie",
    )
    parser.add_argument(
        "--series",
        metavar="NUMBER|UID|FOLDER",
        nargs="+",
        default=[],
        help="the DICOM series to take as the short axis where a subject has them, by SeriesNumber, "
        "SeriesInstanceUID or a part of their folder's name",
    )


def convert(
    input_folder: str | Path,
    dataset_id: int,
    name: str = "Cine",
    *,
    labels: str | Path | None = None,
    label_names: Sequence[str] = LABEL_NAMES,
    label_values: Sequence[int] = (),
    label_values_for: Sequence[str] = (),
    by_patient_id: bool = False,
    series: Sequence[str] = (),
    frames_from: int | None = None,
    **common: Unpack[Common],
) -> Path:
    """Convert own cine; further arguments, result and errors are those of `combined.convert_sources`.

    Args:
        input_folder: See the head of this module.
        dataset_id: Number of the new dataset.
        name: Name of the new dataset.
        labels: Folder of the masks, if they are not beside the images.
        label_names: Names of the mask values 1, 2, ...; one called LVBP or LV gives the phases.
        label_values: The values that the masks have for `label_names`, in this order; by default 1, 2, ...
        label_values_for: The subjects whose masks have `label_values`; by default all.
        by_patient_id: Tell DICOM subjects apart by PatientID, wherever their files lie.
        series: The DICOM series to take where a subject has them, by number, UID or part of a folder's name.
        frames_from: The number of the first frame in the names of masks, 0 or 1; by default 0, with a remark.
        common: `test` lists names; by default there are none.
    """
    source = combined.open_source(
        "cine",
        input_folder,
        labels=labels,
        label_names=label_names,
        label_values=label_values,
        label_values_for=label_values_for,
        by_patient_id=by_patient_id,
        series=series,
        frames_from=frames_from,
        workers=common.get("workers"),
        dataset_id=dataset_id,
    )
    masked = any(task.has_masks for task in source.tasks)
    values = {"background": 0} | {label: value for value, label in enumerate(label_names, 1)}
    return combined.convert_sources(
        [replace(source, labels=values)],
        dataset_id=dataset_id,
        name=name,
        description="Short-axis cine from NIfTI or DICOM files",
        options={
            "labels": None if labels is None else str(Path(labels).resolve()),
            "label_names": list(label_names),
            "by_patient_id": by_patient_id,
            **({"series": list(series)} if series else {}),
            **({} if frames_from is None else {"frames_from": frames_from}),
            **({"label_values": list(label_values)} if label_values else {}),
            **({"label_values_for": sorted({*label_values_for})} if label_values_for else {}),
        },
        remarks=Remarks(
            general=[rule_of_values(label_names, label_values, len({*label_values_for}))] * masked,
            local=[] if labels is None else remarks_on_masks(Path(labels), source.tasks),
            unlabelled=unlabelled_lines(labels, source.tasks, common.get("dry_run", False)),
        ),
        **common,
    )


# -- finding the subjects --------------------------------------------------------------------------


def list_tasks(
    folder: Path,
    labels: str | Path | None = None,
    label_names: Sequence[str] = LABEL_NAMES,
    by_patient_id: bool = False,
    series: Sequence[str] = (),
    workers: int | None = None,
    dataset_id: int | None = None,
    label_values: Sequence[int] = (),
    label_values_for: Sequence[str] = (),
    frames_from: int | None = None,
) -> tuple[list[CineTask], dict[str, str]]:
    """Find the subjects, all of them for training.

    Args:
        folder: Like all arguments as for `convert`.
        labels: Folder of the masks.
        label_names: Names of the mask values.
        by_patient_id: Whether PatientID tells DICOM subjects apart.
        series: The DICOM series to take.
        workers: Number of processes for reading DICOM headers.
        dataset_id: For messages.
        label_values: The values that the masks have for `label_names`; by default 1, 2, ...
        label_values_for: The subjects whose masks have these; by default all.
        frames_from: The number of the first frame in the names of masks.

    Returns:
        The subjects, and those that cannot be used with the reason.

    Raises:
        FileNotFoundError: A folder does not exist, or there is nothing in it, or no mask in `labels`.
        ValueError: The names or values of the labels are empty or not unique, no subject has a series of `series`
            or a name of `label_values_for`, or frames seem to be counted from 1 and `frames_from` is None.
    """
    if not label_names or len({*label_names, "background"}) <= len(label_names):
        raise ValueError(
            f"`label_names` (={', '.join(label_names)}) must be unique names of classes."
        )
    if frames_from not in (None, *FIRST):
        raise ValueError(f"`frames_from` (={frames_from}) must be 0 or 1.")
    if label_values:
        check_values(label_values, label_names)
    root, masks_in = Path(folder), Path(folder if labels is None else labels)
    for needed in (root, masks_in):
        check_is_folder(needed)
    refuse_public(root, label_names is not LABEL_NAMES, dataset_id)  # the same names count if given
    found = find_cines(root, masks_in, by_patient_id, number_of_workers(workers), one_frame=False)
    found = join_phases(found, root)
    if not found:
        raise FileNotFoundError(nothing_in([root]))
    if series:
        found = keep_series(found, series, number_of_workers(workers))
    tasks, refused = make_tasks(found, root, find_masks(masks_in), label_names, label_values)
    known = {*refused, *(task.subject for task in tasks)}
    if chosen := chosen_subjects(label_values_for, known, label_values, f"{SOURCE}-"):
        tasks = [t if t.subject in chosen else replace(t, label_values=()) for t in tasks]
    if frames_from is not None:
        tasks = [replace(task, frames_from=frames_from) for task in tasks]
    refuse_counted_from_one(tasks)
    if labels is not None:
        require_some(masks_in, tasks)
    return tasks, refused


def make_tasks(
    found: Sequence[Found],
    root: Path,
    masks: dict[str, list[Path]],
    label_names: Sequence[str] = LABEL_NAMES,
    label_values: Sequence[int] = (),
) -> tuple[list[CineTask], dict[str, str]]:
    """Name the subjects found, and refuse those that cannot be used.

    Args:
        found: The subjects' images.
        root: The folder that they were found in, for messages.
        masks: Masks of each subject; those that are taken are removed.
        label_names: Names of the mask values.
        label_values: These values, if they are not 1, 2, ...

    Returns:
        The subjects, all of them for training, and those that cannot be used with the reason.
    """
    shared = with_shared_patients(found, root)
    names = [_as_file_name(entry.name) for entry in found]
    tasks, refused = [], {}
    for subject, entry in zip(names, found, strict=True):
        mine = tuple(masks.pop(entry.name, []) or masks.pop(subject, []))
        mine += tuple(mask for other in entry.others for mask in masks.pop(other, []))
        notes = [entry.note] if entry.note else []
        notes += unpacked_copies((*entry.images, *mine))
        if subject != entry.name and not entry.by_id:
            notes.append("renamed: - replaces characters that a file name should not have")
        if names.count(subject) > 1:
            refused[subject] = f"{root}: more than one subject is called {subject}."
        elif not subject:
            refused["?"] = f"{entry.place}: no name to call the subject by."
        elif len(subject) > LONGEST_NAME:
            refused[f"{subject[:40]}..."] = (
                f"{entry.place}: the subject's name has {len(subject)} characters; {LONGEST_NAME} are the most "
                "that the names of its files leave room for."
            )
        elif not entry.images:
            refused[subject] = f"{entry.place}: {entry.note}"
        else:
            tasks.append(
                CineTask(
                    subject=subject,
                    split="train",
                    files=(*entry.images, *mine),
                    images=entry.images,
                    masks=mine,
                    place=entry.place,
                    label_names=tuple(label_names),
                    notes=tuple(notes),
                    hint=HINT if entry.name in shared else "",
                    chosen=entry.chosen,
                    label_values=tuple(label_values),
                )
            )
    for subject, files in masks.items():
        more = f" (and {len(files) - 1} more)" * (len(files) > 1)
        near = nearest(subject, {*names, *(entry.name for entry in found)})
        refused.setdefault(
            _as_file_name(subject),
            f"{files[0]}{more}: a mask without an image: no subject is called {subject}.{near}",
        )
    return sorted(tasks, key=lambda task: task.subject), refused


def _as_file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")


# -- reading one subject ---------------------------------------------------------------------------

look = cine_look.look


def remarks_on(tasks: Sequence[CineTask]) -> list[str]:
    """Return what the user should know about the subjects together; it names them."""
    return [*remarks_on_frames(tasks), *remarks_on_visits(task.subject for task in tasks)]


@dataclass(frozen=True)
class Images:
    """The images of one subject as read and checked."""

    # (X, Y, Z, T), slices on the third axis
    voxels: Array
    # (4, 4), voxel to world in mm, RAS+
    affine: Array
    # One of the two is None
    nifti: NiftiStack | None
    dicom: ShortAxis | None
    # As in `Cine`
    corrections: list[str]
    warnings: list[str]
    notes: list[str]


def read_images(task: CineTask, one_frame: bool = False) -> Images:
    """Read and check the images of one subject.

    Args:
        task: The subject.
        one_frame: Whether a 3D file is taken as a cine of one frame.

    Raises:
        ValueError: They are no short-axis cine that can be used; names the file and the rule.
    """
    from nnunet_ssp.conversion.dicom.short_axis import read_short_axis

    nifti: NiftiStack | None = None
    stack: ShortAxis | None = None
    corrections: list[str] = []
    warnings: list[str] = []
    notes = list(task.notes)
    if stem_of(task.images[0]):
        refuse_mask(task)
        nifti = read_nifti_stack(task.images, task.place, one_frame)
        voxels, affine = nifti.voxels, nifti.place.affine
        corrections += nifti.place.corrections
        notes += nifti.place.notes
    else:
        stack = read_short_axis(
            task.images, task.place, task.hint, chosen=task.chosen, masks=bool(task.masks)
        )
        voxels = stack.voxels
        affine, _ = clean_affine(stack.affine, task.place)  # header texts are rounded
        warnings += stack.warnings
        notes += stack.notes
        refuse_mask(task, np.moveaxis(voxels, -1, 0))
        check_cine(voxels, task.images[0] if len(task.images) == 1 else task.place)
    if voxels.shape[2] < 3 and not warnings:
        warnings.append(f"only {count_of(voxels.shape[2], 'slice')}")
    return Images(voxels, affine, nifti, stack, corrections, warnings, notes)


def read_subject(task: CineTask) -> Cine:
    """Read and check one subject.

    Raises:
        ValueError: The subject cannot be converted; names the file and the rule.
    """
    images = read_images(task)
    voxels, affine, stack = images.voxels, images.affine, images.dicom
    corrections, notes = images.corrections, images.notes
    vendor = stack.vendor if stack else ""
    masks, turned_masks = read_masks(task, voxels.shape, affine, images.nifti)
    corrections += turned_masks
    phases: dict[int, str] = {}
    warnings = [*images.warnings, *warn_of_numbering(masks.values(), task)]
    if masks:
        phases, corrected, noted = find_phases(task, masks, voxels.shape[3])
        corrections += corrected
        notes += noted
    elif task.masks or task.split == "test":
        reason = "the masks are empty" if task.masks else "there is no mask"
        notes.append(without_labels(task, reason, task.place))

    cases = make_cases(
        task,
        phases,
        voxels.shape[3],
        source=SOURCE,
        base=base_of_stack(affine),
        vendor=VENDORS.get(vendor.upper().split(" ")[0], vendor) or "unknown",
        scanner=stack.scanner if stack else "",
        field=stack.field_strength if stack else "",
    )
    frames = {case.frame: voxels[..., case.frame] for case in cases}
    labels = {frame: masks[frame] for frame in phases}
    patient = stack.patient if stack else ""
    found = asdict(stack.inventory) if stack else {}
    told = (corrections, warnings, notes, patient, found)
    return Cine(frames, labels, affine, cases, *told)


if __name__ == "__main__":
    import sys

    sys.exit(command.main(__doc__, add_arguments, convert))
