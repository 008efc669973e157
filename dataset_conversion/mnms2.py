"""M&Ms-2 (Martin-Isla et al. 2023): short-axis cine of 360 subjects from three vendors, for the right ventricle.

    nnunet-ssp convert mnms2 -i FOLDER -d 117

FOLDER is the unpacked dataset, or the folder that holds it as `MnM2`:

    FOLDER/dataset_information.csv
    FOLDER/dataset/<number>/<number>_SA_CINE.nii.gz                       4D
    FOLDER/dataset/<number>/<number>_SA_ED.nii.gz, ..._SA_ED_gt.nii.gz    3D, end-diastole (ED)
    FOLDER/dataset/<number>/<number>_SA_ES.nii.gz, ..._SA_ES_gt.nii.gz    3D, end-systole (ES)

Long-axis files are left out. Subjects 201 to 360, the challenge's test part, are test subjects.
Labels: 1 left ventricle, 2 myocardium, 3 right ventricle. Nothing tells which frames of the cine
are ED and ES, so the 3D images are looked up in it. Unpacked files (.nii) are read, too.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssp.conversion.geometry import base_of_stack, compare_grids, place_stack
from nnunet_ssp.conversion.phases import LABELS, frame_number, label_phases, nearest_frame
from nnunet_ssp.conversion.subjects import Cine, Common, Task, make_cases, without_labels
from nnunet_ssp.dataset_conversion import combined, command
from nnunet_ssp.files.grids import Array
from nnunet_ssp.files.nifti import (
    as_cine,
    as_frame,
    check_cine,
    integer_labels,
    read_image,
    unpacked_copies,
    with_ending,
)
from nnunet_ssp.files.tables import check_is_folder, fault_in_listing, find_table, read_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

SOURCE = "mm2"
COLUMNS = ("SUBJECT_CODE", "DISEASE", "VENDOR", "SCANNER", "FIELD")
VENDORS = {  # as M&Ms calls them
    "SIEMENS": "Siemens",
    "PHILIPS MEDICAL SYSTEMS": "Philips",
    "GE MEDICAL SYSTEMS": "GE",
}
FIRST_TEST_SUBJECT = 201


@dataclass(frozen=True)
class Mnms2Task(Task):
    """A subject's row of the CSV; `files` are the cine, then image and mask of ED and of ES."""

    vendor: str
    scanner: str
    field: str
    disease: str
    in_csv: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`, under the same names."""
    command.add_arguments(
        parser,
        folder="the M&Ms-2 folder: with dataset/ and dataset_information.csv",
        name="MNMs2",
        test=f"{FIRST_TEST_SUBJECT} to 360",
    )


def convert(
    input_folder: str | Path,
    dataset_id: int,
    name: str = "MNMs2",
    **common: Unpack[Common],
) -> Path:
    """Convert M&Ms-2; further arguments, result and errors are those of `combined.convert_sources`.

    Args:
        input_folder: See the head of this module.
        dataset_id: Number of the new dataset.
        name: Name of the new dataset.
        common: `test` lists numbers (`007`), by default 201 to 360.
    """
    return combined.convert_sources(
        [combined.open_source("mnms2", input_folder)],
        dataset_id=dataset_id,
        name=name,
        description="Cine of M&Ms-2 (Martin-Isla et al. 2023, 10.1109/JBHI.2023.3267857)",
        **common,
    )


# -- finding the subjects --------------------------------------------------------------------------


def list_tasks(folder: Path) -> tuple[list[Mnms2Task], dict[str, str]]:
    """Match the rows of the CSV and the folders.

    Returns:
        The subjects, and those that cannot be used with the reason.

    Raises:
        FileNotFoundError: The folder or the CSV is missing.
        ValueError: The CSV lacks a column, or there are several.
    """
    root = find_root(folder)
    table = find_table(root)
    rows: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(root):
        rows.setdefault(row["SUBJECT_CODE"], []).append(row)
    places: dict[str, list[str]] = {}
    for entry in sorted((root / "dataset").glob("[!.]*")):
        if entry.is_dir():
            places.setdefault(subject_number(entry.name), []).append(entry.name)
    tasks, refused = [], {}
    for code in sorted({*rows, *places}):
        mine, found = rows.get(code, []), places.get(code, [])
        if not code.isdecimal():
            place = root / "dataset" / found[0] if found else f"{table}, row {mine[0]['row']}"
            refused[code] = f"{place}: the subject (={code}) must be a number."
        elif fault := fault_in_listing(code, mine, found, table, root):
            refused[code] = fault
        elif not (
            cine := with_ending(root / "dataset" / found[0] / f"{found[0]}_SA_CINE.nii.gz")
        ).is_file():
            refused[code] = f"{cine}: the file is missing."
        else:
            row = mine[0] if mine else {}
            vendor = row.get("VENDOR", "")
            tasks.append(
                Mnms2Task(
                    subject=code,
                    split="test" if int(code) >= FIRST_TEST_SUBJECT else "train",
                    files=(
                        cine,
                        *(
                            with_ending(cine.with_name(f"{found[0]}_SA_{phase}{kind}.nii.gz"))
                            for phase in ("ED", "ES")
                            for kind in ("", "_gt")
                        ),
                    ),
                    vendor=VENDORS.get(vendor.upper(), vendor) or "unknown",
                    scanner=row.get("SCANNER", ""),
                    field=row.get("FIELD", ""),
                    disease=row.get("DISEASE", ""),
                    in_csv=bool(mine),
                )
            )
    return tasks, refused


def find_root(folder: Path) -> Path:
    """Return the folder of the dataset: this one, or `MnM2` in it.

    Raises:
        FileNotFoundError: It is neither.
    """
    folder = folder.resolve()
    check_is_folder(folder)
    for root in (folder, folder / "MnM2"):
        if (root / "dataset").is_dir():
            return root
    raise FileNotFoundError(f"{folder}: must hold `dataset`, directly or inside MnM2.")


def read_rows(root: Path) -> list[dict[str, str]]:
    """Read the rows of the CSV that have a number, in its order; numbers get three digits.

    Raises:
        FileNotFoundError: There is no CSV.
        ValueError: It lacks a column, or there are several.
    """
    table = read_table(find_table(root), COLUMNS, numbers=("SUBJECT_CODE", "FIELD"))
    rows = [row for row in table if row["SUBJECT_CODE"]]
    return [row | {"SUBJECT_CODE": subject_number(row["SUBJECT_CODE"])} for row in rows]


def subject_number(text: str) -> str:
    """Return `7`, `007` and `7.0` (from a table with empty rows, saved again) as `007`; leave other texts alone."""
    number = frame_number(text)
    return text if number is None or number < 0 else f"{number:03d}"


# -- reading one subject ---------------------------------------------------------------------------


def read_subject(task: Mnms2Task) -> Cine:
    """Read and check one subject.

    Raises:
        ValueError: The subject cannot be converted; names the file and the rule.
    """
    cine_file = task.files[0]
    stored = read_image(cine_file)
    image = as_cine(stored.voxels)
    check_cine(image, cine_file)
    place = place_stack(stored.grid, image.shape, cine_file)
    corrections = [*place.corrections]
    notes = [*place.notes, *unpacked_copies(task.files)]
    if not task.in_csv:
        notes.append("not in the CSV; disease, vendor and scanner unknown")

    masks: dict[int, Array] = {}
    said = {"ED": "", "ES": ""}
    for phase, frame_file, mask_file in zip(said, task.files[1::2], task.files[2::2], strict=True):
        if not mask_file.is_file():
            notes.append(f"there is no mask of {phase}")
            continue
        stored_mask = read_image(mask_file)
        mask = as_frame(stored_mask.voxels)
        frame = _find_frame(image, frame_file, cine_file)
        if mask.shape != image.shape[:3]:
            raise ValueError(
                f"{mask_file}: shape (={mask.shape}) must be that of a frame (={image.shape[:3]})."
            )
        notes += compare_grids(stored_mask, stored)
        mask = place.move(integer_labels(mask, mask_file, LABELS.values()))
        if frame in masks:
            raise ValueError(f"{frame_file}: must not be the same frame of the cine as ED.")
        if mask.any():
            masks[frame] = mask
            said[phase] = str(frame)
        else:
            notes.append(f"the mask of {phase} is empty")
    phases: dict[int, str] = {}
    if masks:
        phases, corrected, noted = label_phases(
            masks, said["ED"], said["ES"], where="the files' naming"
        )
        corrections += corrected
        notes += noted
    else:
        notes.append(without_labels(task, "no labels", cine_file.parent))

    cases = make_cases(
        task,
        phases,
        image.shape[3],
        source=SOURCE,
        base=base_of_stack(place.affine),
        vendor=task.vendor,
        scanner=task.scanner,
        field=task.field,
        pathology=task.disease,
    )
    image = place.move(image)
    frames = {case.frame: image[..., case.frame] for case in cases}
    labels = {frame: masks[frame] for frame in phases}
    return Cine(frames, labels, place.affine, cases, corrections, notes=list(dict.fromkeys(notes)))


def _find_frame(cine: Array, frame_file: Path, cine_file: Path) -> int:
    frame = as_frame(read_image(frame_file).voxels)
    if frame.shape != cine.shape[:3]:
        raise ValueError(
            f"{frame_file}: shape (={frame.shape}) must be that of a frame (={cine.shape[:3]})."
        )
    nearest, same = nearest_frame(cine, frame)
    if not same:
        raise ValueError(
            f"{frame_file}: must be a frame of {cine_file.name}, but its voxels are those of none (nearest: {nearest})."
        )
    return nearest


if __name__ == "__main__":
    import sys

    sys.exit(command.main(__doc__, add_arguments, convert))
