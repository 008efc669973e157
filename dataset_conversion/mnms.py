"""M&Ms (Campello et al. 2021): multi-centre, multi-vendor short-axis cine of 345 subjects.

    nnunet-ssp convert mnms -i FOLDER -d 114

FOLDER is the official tree, or the flattened one of de Mooij et al.; both may be inside a folder
`OpenDataset`:

    FOLDER/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv
    FOLDER/Training/Labeled/<code>/<code>_sa.nii.gz, <code>_sa_gt.nii.gz      training
    FOLDER/Training/Unlabeled/<code>/...                                      training
    FOLDER/Validation/<code>/...                                              training
    FOLDER/Testing/<code>/...                                                 test
    FOLDER/dataset/<code>/...                                                 the flattened tree

Image and mask are 4D; the mask is zero except at end-diastole (ED) and end-systole (ES). Labels:
1 left ventricle, 2 myocardium, 3 right ventricle. The mask, not the folder, decides whether a
subject is labelled. Unpacked files (.nii) are read, too.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssp.conversion.geometry import base_of_stack, compare_grids, place_stack
from nnunet_ssp.conversion.phases import LABELS, frame_number, label_phases
from nnunet_ssp.conversion.subjects import Cine, Common, Task, make_cases, without_labels
from nnunet_ssp.dataset_conversion import combined, command
from nnunet_ssp.files.grids import Array
from nnunet_ssp.files.nifti import (
    as_cine,
    check_cine,
    integer_labels,
    read_image,
    unpacked_copies,
    with_ending,
)
from nnunet_ssp.files.tables import fault_in_listing, find_table, find_tree, read_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

SOURCE = "mm1"
# Each folder of subjects: the split its subjects join, and whether they should be labelled.
TREE = {
    "Training/Labeled": ("train", True),
    "Training/Unlabeled": ("train", False),
    "Validation": ("train", True),
    "Testing": ("test", True),
    "dataset": ("train", True),  # the flattened tree
}
# Older releases have no Pathology, some copies no Height and Weight.
REQUIRED_COLUMNS = ("External code", "VendorName", "Centre", "ED", "ES")
OPTIONAL_COLUMNS = ("Vendor", "Pathology")


@dataclass(frozen=True)
class MnmsTask(Task):
    """A subject's two files and its row of the CSV; the mask need not exist."""

    # The folder of the tree: Training/Labeled, ...
    place: str
    expect_labels: bool
    # As in the CSV
    ed: str
    es: str
    vendor: str
    centre: str
    pathology: str
    in_csv: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`, under the same names."""
    command.add_arguments(
        parser,
        folder="the M&Ms folder: with Training, Validation, Testing and the CSV, or with dataset/",
        name="MNMs",
        test="the tree's own division",
    )


def convert(
    input_folder: str | Path,
    dataset_id: int,
    name: str = "MNMs",
    **common: Unpack[Common],
) -> Path:
    """Convert M&Ms; further arguments, result and errors are those of `combined.convert_sources`.

    Args:
        input_folder: See the head of this module.
        dataset_id: Number of the new dataset.
        name: Name of the new dataset.
        common: `test` lists codes; by default those of `Testing`, and none in the flattened tree.
    """
    return combined.convert_sources(
        [combined.open_source("mnms", input_folder)],
        dataset_id=dataset_id,
        name=name,
        description="Cine in the layout of M&Ms (Campello et al. 2021, 10.1109/TMI.2021.3090082)",
        **common,
    )


# -- finding the subjects --------------------------------------------------------------------------


def list_tasks(folder: Path) -> tuple[list[MnmsTask], dict[str, str]]:
    """Match the rows of the CSV and the folders, divided as in the tree.

    Returns:
        The subjects, and the codes that cannot be used with the reason.

    Raises:
        FileNotFoundError: The folder or the CSV is missing.
        ValueError: The CSV lacks a column, or there are several.
    """
    root = find_root(folder)
    table = find_table(root)
    rows: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(root):
        rows.setdefault(row["External code"], []).append(row)
    places = _find_subjects(root)
    tasks, refused = [], {}
    for code in sorted({*rows, *places}):
        mine, found = rows.get(code, []), places.get(code, [])
        if fault := fault_in_listing(code, mine, found, table, root, places):
            refused[code] = fault
        elif not (image := with_ending(root / found[0] / code / f"{code}_sa.nii.gz")).is_file():
            refused[code] = f"{image}: the file is missing."
        else:
            row = mine[0] if mine else {}
            split, expect_labels = TREE[found[0]]
            tasks.append(
                MnmsTask(
                    subject=code,
                    split=split,
                    files=(image, with_ending(image.with_name(f"{code}_sa_gt.nii.gz"))),
                    place=found[0],
                    expect_labels=expect_labels,
                    ed=row.get("ED", ""),
                    es=row.get("ES", ""),
                    vendor=row.get("VendorName") or "unknown",
                    centre=row.get("Centre", ""),
                    pathology=row.get("Pathology", ""),
                    in_csv=bool(mine),
                )
            )
    return tasks, refused


def find_root(folder: Path) -> Path:
    """Return the folder of the tree: this one, or `OpenDataset` in it.

    Raises:
        FileNotFoundError: It is neither.
    """
    return find_tree(folder, [*TREE], "OpenDataset", "M&Ms'")


def read_rows(root: Path) -> list[dict[str, str]]:
    """Read the rows of the CSV that have a code, in its order.

    Raises:
        FileNotFoundError: There is no CSV.
        ValueError: It lacks a column, or there are several.
    """
    rows = read_table(
        find_table(root), REQUIRED_COLUMNS, OPTIONAL_COLUMNS, numbers=("Centre", "ED", "ES")
    )
    return [row for row in rows if row["External code"]]


def _find_subjects(root: Path) -> dict[str, list[str]]:
    """Return the places of each code in the tree, more than one if the code is not unique."""
    found: dict[str, list[str]] = {}
    for place in TREE:
        for folder in sorted((root / place).glob("[!.]*")):
            if folder.is_dir():
                found.setdefault(folder.name, []).append(place)
    return found


# -- reading one subject ---------------------------------------------------------------------------


def read_subject(task: MnmsTask) -> Cine:
    """Read and check one subject.

    Raises:
        ValueError: The subject cannot be converted; names the file and the rule.
    """
    image_file, mask_file = task.files
    stored = read_image(image_file)
    image = as_cine(stored.voxels)
    check_cine(image, image_file)
    n_frames = image.shape[3]
    place = place_stack(stored.grid, image.shape, image_file)
    corrections = [*place.corrections]
    notes = [*place.notes, *unpacked_copies(task.files)]
    if not task.in_csv:
        notes.append("not in the CSV; vendor and centre unknown")

    masks: dict[int, Array] = {}
    if mask_file.is_file():
        stored_mask = read_image(mask_file)
        mask = as_cine(stored_mask.voxels)
        if mask.shape != image.shape:
            raise ValueError(
                f"{mask_file}: shape (={mask.shape}) must be that of the image (={image.shape})."
            )
        notes += compare_grids(stored_mask, stored)
        mask = place.move(integer_labels(mask, mask_file, LABELS.values()))
        masks = {t: mask[..., t] for t in range(n_frames) if mask[..., t].any()}
    if masks:
        phases, corrected, noted = label_phases(
            masks, task.ed, task.es, where="CSV" if task.in_csv else ""
        )
        corrections += corrected
        notes += noted
        if not task.expect_labels:
            notes.append(f"has labels although in {task.place}: converted as labelled")
    else:
        phases = {}
        reason = "the mask is empty" if mask_file.is_file() else "there is no mask"
        if task.split == "test" or task.expect_labels or mask_file.is_file():
            notes.append(without_labels(task, reason, mask_file))
        for phase, text in (("ED", task.ed), ("ES", task.es)):
            if text and frame_number(text) not in range(n_frames):
                notes.append(f"CSV: {phase} (={text}) is not within 0 to {n_frames - 1}; not used")

    cases = make_cases(
        task,
        phases,
        n_frames,
        source=SOURCE,
        base=base_of_stack(place.affine),
        vendor=task.vendor,
        centre=task.centre,
        pathology=task.pathology,
    )
    image = place.move(image)
    frames = {case.frame: image[..., case.frame] for case in cases}
    labels = {frame: masks[frame] for frame in phases}
    return Cine(frames, labels, place.affine, cases, corrections, notes=notes)


if __name__ == "__main__":
    import sys

    sys.exit(command.main(__doc__, add_arguments, convert))
