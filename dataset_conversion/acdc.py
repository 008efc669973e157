"""ACDC (Bernard et al. 2018): short-axis cine of 150 subjects from one hospital.

    nnunet-ssp convert acdc -i FOLDER -d 118
    nnunet-ssp convert acdc -i FOLDER -d 160 --few           for the study acdc-few

FOLDER is the unpacked dataset, or the folder that holds it as `database`:

    FOLDER/training/patient001/Info.cfg                        ED, ES, Group, NbFrame, ...
    FOLDER/training/patient001/patient001_4d.nii.gz            4D
    FOLDER/training/patient001/patient001_frame01.nii.gz       3D, end-diastole (ED)
    FOLDER/training/patient001/patient001_frame01_gt.nii.gz
    FOLDER/training/patient001/patient001_frame12.nii.gz       3D, end-systole (ES)
    FOLDER/training/patient001/patient001_frame12_gt.nii.gz
    FOLDER/testing/patient101/...                              test

Unpacked files (.nii) are read, too. ACDC counts frames from 1: its `frame01` is `patient001_frame00`
here. Where there are no 4D images, as in some copies, only the labelled frames are converted.
Where the sform has unit scales, as in the files of the challenge, the spacing is that of qform and pixdim.
ACDC's labels are 1 right ventricle, 2 myocardium, 3 left ventricle; they are mapped to the order
of M&Ms (1 left ventricle, 2 myocardium, 3 right ventricle) unless --keep-labels is given. The
affines are nominal, and the base of the heart is the first slice.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_ssp.cohort.few import side_of
from nnunet_ssp.conversion.geometry import compare_grids, place_stack
from nnunet_ssp.conversion.phases import LABELS, frame_number, label_phases, nearest_frame
from nnunet_ssp.conversion.subjects import Cine, Common, Task, make_cases, without_labels
from nnunet_ssp.dataset_conversion import combined, command
from nnunet_ssp.files.grids import Array
from nnunet_ssp.files.nifti import (
    Nifti,
    as_cine,
    as_frame,
    check_cine,
    integer_labels,
    read_image,
    unpacked_copies,
)
from nnunet_ssp.files.tables import find_tree

if TYPE_CHECKING:
    from typing_extensions import Unpack

SOURCE = "acdc"
ACDC_LABELS = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}  # names of nnU-Net's Dataset027_ACDC
TO_COMMON = np.array([0, LABELS["RV"], LABELS["LVM"], LABELS["LVBP"]], np.uint8)  # by ACDC's value
TREE = {"training": "train", "testing": "test"}
FIRST = 1  # number of the first frame


@dataclass(frozen=True)
class AcdcTask(Task):
    """A subject's files, and what its Info.cfg says."""

    # 4D
    cine: Path | None
    # 3D, with the time index from 0
    images: tuple[tuple[int, Path], ...]
    masks: tuple[tuple[int, Path], ...]
    # As in Info.cfg
    ed: str
    es: str
    n_frames: str
    group: str
    has_info: bool
    keep_labels: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`, under the same names."""
    command.add_arguments(
        parser,
        folder="the ACDC folder: with training/ and, or, testing/",
        name="ACDC",
        test="those of testing/",
    )
    parser.add_argument(
        "--keep-labels",
        action="store_true",
        help="ACDC's own order, as nnU-Net's Dataset027_ACDC: 1 RV, 2 myocardium, 3 LV",
    )
    parser.add_argument(
        "--few",
        action="store_true",
        help="for the study acdc-few: the last four of every twenty patients are test subjects, too",
    )


def convert(
    input_folder: str | Path,
    dataset_id: int,
    name: str = "ACDC",
    *,
    keep_labels: bool = False,
    few: bool = False,
    **common: Unpack[Common],
) -> Path:
    """Convert ACDC; further arguments, result and errors are those of `combined.convert_sources`.

    Args:
        input_folder: See the head of this module.
        dataset_id: Number of the new dataset.
        name: Name of the new dataset.
        keep_labels: Keep ACDC's order of the labels; nothing can be added then.
        few: Also test on the report patients of the study `acdc-few`, see `cohort.few`.
        common: `test` lists names, by default those of `testing`.

    Raises:
        ValueError: `few` comes with `test`, or what `combined.convert_sources` refuses.
    """
    source = combined.open_source("acdc", input_folder, keep_labels=keep_labels)
    options = {"keep_labels": keep_labels}
    if few:
        if common.get("test") is not None:
            raise ValueError("--few must not come with --test: it names the test subjects.")
        source = replace(source, tasks=[_as_few(task) for task in source.tasks])
        options["few"] = True
    return combined.convert_sources(
        [replace(source, labels=ACDC_LABELS) if keep_labels else source],
        dataset_id=dataset_id,
        name=name,
        description="Cine of ACDC (Bernard et al. 2018, 10.1109/TMI.2018.2837502)",
        options=options,
        **common,
    )


def _as_few(task: AcdcTask) -> AcdcTask:
    return replace(task, split="test" if side_of(task.subject) == "report" else task.split)


# -- finding the subjects --------------------------------------------------------------------------


def list_tasks(folder: Path, keep_labels: bool = False) -> tuple[list[AcdcTask], dict[str, str]]:
    """Find the subjects, divided as in the tree.

    Returns:
        The subjects, and those that cannot be used with the reason.

    Raises:
        FileNotFoundError: The folder is missing or is not ACDC's.
    """
    root = _find_root(folder)
    places: dict[str, list[str]] = {}
    for place in TREE:
        for entry in sorted((root / place).glob("[!.]*")):
            if entry.is_dir():
                places.setdefault(entry.name, []).append(place)
    tasks, refused = [], {}
    for subject, found in sorted(places.items()):
        task = _list_subject(root / found[0] / subject, TREE[found[0]], keep_labels)
        if len(found) > 1:
            refused[subject] = (
                f"{root}: a subject must be in one folder, not in {' and '.join(found)}."
            )
        elif task.cine is None and not task.images:
            refused[subject] = (
                f"{root / found[0] / subject}: has neither {subject}_4d.nii.gz nor {subject}_frame01.nii.gz or the "
                "like."
            )
        else:
            tasks.append(task)
    return tasks, refused


def _find_root(folder: Path) -> Path:
    return find_tree(folder, [*TREE], "database", "ACDC's")


def _list_subject(folder: Path, split: str, keep_labels: bool) -> AcdcTask:
    # By the name without .gz; of a file that is there in both ways, the last is the compressed one.
    files = {
        file.name.removesuffix(".gz"): file for file in sorted(folder.iterdir()) if file.is_file()
    }
    cine = files.get(f"{folder.name}_4d.nii")
    images: list[tuple[int, Path]] = []
    masks: list[tuple[int, Path]] = []
    pattern = re.compile(re.escape(folder.name) + r"_frame(\d+)(_gt)?\.nii")
    for name, file in files.items():
        if match := pattern.fullmatch(name):
            (masks if match[2] else images).append((int(match[1]) - FIRST, file))
    info = _read_info(folder / "Info.cfg")
    group = info.get("Group", "")
    return AcdcTask(
        subject=folder.name,
        split=split,
        files=(
            *([cine] if cine else []),
            *(file for _, file in images),
            *(file for _, file in masks),
        ),
        cine=cine,
        images=tuple(images),
        masks=tuple(masks),
        ed=info.get("ED", ""),
        es=info.get("ES", ""),
        n_frames=info.get("NbFrame", ""),
        group="" if group.lower() in ("unknown", "nan") else group,
        has_info=bool(info),
        keep_labels=keep_labels,
    )


def _read_info(file: Path) -> dict[str, str]:
    """Read the lines `key: value` of a file; empty without it."""
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


# -- reading one subject ---------------------------------------------------------------------------


def read_subject(task: AcdcTask) -> Cine:
    """Read and check one subject.

    Raises:
        ValueError: The subject cannot be converted; names the file and the rule.
    """
    frames, stored, n_frames = _read_frames(task)
    place = place_stack(stored.grid, stored.voxels.shape, stored.file)
    corrections = [*place.corrections]
    notes = [*place.notes, *unpacked_copies(task.files)]
    if task.cine is None:
        notes.append("no 4D image: only the frames that are there as 3D images")
    where = "Info.cfg"
    if not task.has_info:
        where = ""
        notes.append("no Info.cfg; phases by volume, group unknown")

    masks: dict[int, Array] = {}
    own: dict[int, Array] = {}  # with ACDC's values
    for index, mask_file in task.masks:
        frame = index
        if task.cine is not None:
            frame, corrected, noted = _check_frame(task, index, frames)
            corrections += corrected
            notes += noted
        elif index not in frames:
            raise ValueError(f"{mask_file}: has no image {mask_file.name.replace('_gt', '')}.")
        stored_mask = read_image(mask_file)
        mask = as_frame(stored_mask.voxels)
        if mask.shape != frames[frame].shape:
            raise ValueError(
                f"{mask_file}: shape (={mask.shape}) must be that of the image (={frames[frame].shape})."
            )
        notes += compare_grids(stored_mask, stored)
        mask = integer_labels(mask, mask_file, ACDC_LABELS.values())
        if frame in masks:
            raise ValueError(f"{mask_file}: must not belong to the same frame as another mask.")
        if mask.any():
            own[frame], masks[frame] = mask, TO_COMMON[mask]
    phases: dict[int, str] = {}
    if masks:
        phases, corrected, noted = label_phases(masks, task.ed, task.es, where=where, first=FIRST)
        corrections += corrected
        notes += noted
    else:
        reason = "the masks are empty" if task.masks else "there is no mask"
        notes.append(without_labels(task, reason, task.files[0].parent))

    cases = make_cases(
        task,
        phases,
        n_frames,
        source=SOURCE,
        base="first",  # the affines are nominal and say nothing
        vendor="Siemens",  # Bernard et al. 2018, section III-A: two Siemens scanners in Dijon
        frames=frames,
        first=FIRST,
        centre="Dijon",
        pathology=task.group,
    )
    chosen = own if task.keep_labels else masks
    return Cine(
        {case.frame: place.move(frames[case.frame]) for case in cases},
        {frame: place.move(chosen[frame]) for frame in phases},
        place.affine,
        cases,
        corrections,
        notes=list(dict.fromkeys(notes)),
    )


def _read_frames(task: AcdcTask) -> tuple[dict[int, Array], Nifti, int]:
    """Return the frames `(X, Y, Z)` by time index, a file on their grid, and the number of frames of the cine."""
    if task.cine is not None:
        image = read_image(task.cine)
        cine = as_cine(image.voxels)
        check_cine(cine, task.cine)
        return {t: cine[..., t] for t in range(cine.shape[3])}, image, cine.shape[3]
    if task.images[0][0] < 0:
        raise ValueError(f"{task.images[0][1]}: frames must be counted from {FIRST}.")
    images = {index: read_image(file) for index, file in task.images}
    volumes = {index: as_frame(image.voxels) for index, image in images.items()}
    first = volumes[task.images[0][0]]
    for index, file in task.images:
        shape = volumes[index].shape
        if len(shape) != 3 or shape != first.shape:
            raise ValueError(
                f"{file}: shape (={shape}) must have 3 axes and be that of the other frames (={first.shape})."
            )
        check_cine(volumes[index][..., None], file)
    n_frames = max(frame_number(task.n_frames) or 0, *(index + 1 for index in volumes))
    return volumes, images[task.images[0][0]], n_frames


def _check_frame(
    task: AcdcTask, index: int, frames: dict[int, Array]
) -> tuple[int, list[str], list[str]]:
    """Find a 3D image among the frames of the 4D one; an image that is none of them replaces the frame of its number.

    Returns:
        The time index, corrections, notes.
    """
    name = f"frame{index + FIRST:02d}"
    file = dict(task.images).get(index)
    if file is not None:
        image = as_frame(read_image(file).voxels)
        shape = next(iter(frames.values())).shape
        if image.shape != shape:
            raise ValueError(
                f"{file}: shape (={image.shape}) must be that of a frame of the 4D image (={shape})."
            )
        if index in frames and np.array_equal(image, frames[index]):
            return index, [], []
        nearest, same = nearest_frame(np.stack(list(frames.values()), axis=-1), image)
        if same:
            found = f"{name} is frame {nearest + FIRST} of the 4D image"
            return nearest, [found] if nearest != index else [], []
    if index not in frames:
        raise ValueError(
            f"{task.cine}: {name} must be within its frames, {FIRST} to {len(frames) - 1 + FIRST}."
        )
    if file is None:
        return index, [], []
    check_cine(image[..., None], file)
    frames[index] = image
    return index, [], [f"{name} differs from the 4D image, in which it replaces that frame"]


if __name__ == "__main__":
    import sys

    sys.exit(command.main(__doc__, add_arguments, convert))
