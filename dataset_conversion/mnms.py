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
subject is labelled.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ssp.cases import Case, case_name
from nnunet_ssp.conversion import (
    Array,
    Cine,
    Task,
    base_of_stack,
    check_cine,
    clean_affine,
    convert_subjects,
    integer_labels,
    read_nifti,
)

SOURCE = "mm1"
LABELS = {"background": 0, "LVBP": 1, "LVM": 2, "RV": 3}  # names of nnU-Net's Dataset114_MNMs
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


@dataclass(frozen=True)
class MnmsTask(Task):
    """A subject's two files and its row of the CSV; the mask need not exist."""

    place: str  # the folder of the tree: Training/Labeled, ...
    expect_labels: bool
    ed: str  # as in the CSV
    es: str
    vendor: str
    centre: str
    pathology: str
    in_csv: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`, under the same names."""
    parser.add_argument(
        "-i",
        dest="input_folder",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="the M&Ms folder: with Training, Validation, Testing and the CSV, or with dataset/",
    )
    parser.add_argument(
        "-d", dest="dataset_id", metavar="ID", type=int, required=True, help="new dataset's id"
    )
    parser.add_argument("--name", default="MNMs", help="new dataset's name [MNMs]")
    parser.add_argument(
        "--test",
        metavar="FILE",
        type=Path,
        help="codes of the test subjects, one a line, instead of the tree's own division",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete an earlier conversion of this id"
    )
    parser.add_argument(
        "-np", dest="workers", metavar="N", type=int, help="processes [one a core, at most 8]"
    )


def convert(
    input_folder: str | Path,
    dataset_id: int,
    name: str = "MNMs",
    test: str | Path | None = None,
    overwrite: bool = False,
    workers: int | None = None,
) -> Path:
    """Convert a folder of M&Ms to `nnUNet_raw/DatasetXXX_Name`.

    Args:
        input_folder: See the head of this module.
        dataset_id: Number of the new dataset.
        name: Name of the new dataset.
        test: File with the codes of the test subjects. By default those of `Testing`, and none
            in the flattened tree.
        overwrite: Delete an earlier conversion of this id and start again.
        workers: Number of processes.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: The id is taken.
        FileNotFoundError: The folder, the CSV or the subjects are missing.
        RuntimeError: An nnU-Net variable is not set, or writing failed.
        ValueError: The CSV or the list of test subjects is wrong, or all subjects are.
    """
    root = _find_root(Path(input_folder).resolve())
    table = _find_table(root)
    places = _find_subjects(root)
    rows = _read_table(table)
    test_codes = None if test is None else _read_codes(Path(test), places)
    tasks, refused = _list_tasks(root, table, rows, places, test_codes)
    if not tasks:
        reasons = "\n".join(f"  {code}: {reason}" for code, reason in list(refused.items())[:20])
        raise FileNotFoundError(f"{root}: no subject could be used.\n{reasons}")
    return convert_subjects(
        tasks,
        read_subject,
        converter="mnms",
        source=Path(input_folder),
        dataset_id=dataset_id,
        name=name,
        labels=LABELS,
        description="Cine in the layout of M&Ms (Campello et al. 2021, 10.1109/TMI.2021.3090082)",
        options={"test": test_codes},
        refused=refused,
        overwrite=overwrite,
        workers=workers,
    )


# --- finding the subjects ---------------------------------------------------------------------


def _find_root(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder.")
    for root in (folder, folder / "OpenDataset"):
        if any((root / place).is_dir() for place in TREE):
            return root
    raise FileNotFoundError(
        f"{folder}: must hold one of M&Ms' folders ({', '.join(TREE)}), "
        "directly or inside OpenDataset."
    )


def _find_table(root: Path) -> Path:
    tables = sorted(file for file in root.glob("*.csv") if "information" in file.name.lower())
    if not tables:
        raise FileNotFoundError(f"{root}: no CSV with `information` in its name.")
    if len(tables) > 1:
        names = ", ".join(file.name for file in tables)
        raise ValueError(f"{root}: must hold one CSV with `information` in its name, not {names}.")
    return tables[0]


def _find_subjects(root: Path) -> dict[str, list[str]]:
    """The places in the tree of each code, more than one if the code is not unique."""
    found: dict[str, list[str]] = {}
    for place in TREE:
        for folder in sorted((root / place).glob("[!.]*")):
            if folder.is_dir():
                found.setdefault(folder.name, []).append(place)
    return found


def _read_table(table: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of each code, empty where a value is missing or NaN; with the number as `row`."""
    rows: dict[str, list[dict[str, str]]] = {}
    with open(table, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = [c for c in REQUIRED_COLUMNS if c not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{table}: column {', '.join(missing)} is missing.")
        for raw in reader:
            row = {c: (raw.get(c) or "").strip() for c in (*REQUIRED_COLUMNS, "Pathology")}
            row = {c: "" if text.lower() == "nan" else text for c, text in row.items()}
            row["row"] = str(reader.line_num)
            if row["External code"]:
                rows.setdefault(row["External code"], []).append(row)
    return rows


def _read_codes(file: Path, known: Mapping[str, object]) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file.")
    codes = sorted({line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()})
    codes = [code for code in codes if code]
    unknown = [code for code in codes if code not in known]
    if unknown:
        raise ValueError(f"{file}: no subject of this code: {', '.join(unknown)}.")
    return codes


def _list_tasks(
    root: Path,
    table: Path,
    rows: Mapping[str, Sequence[Mapping[str, str]]],
    places: Mapping[str, Sequence[str]],
    test: Sequence[str] | None,
) -> tuple[list[MnmsTask], dict[str, str]]:
    """Match rows and folders; also the codes that cannot be used, with the reason."""
    tasks, refused = [], {}
    for code in sorted({*rows, *places}):
        mine, found = rows.get(code, []), places.get(code, [])
        if not found:
            refused[code] = f"{table}, row {mine[0]['row']}: there is no folder {code}."
        elif len(found) > 1:
            refused[code] = f"{root}: a code must be unique, not in {' and '.join(found)}."
        elif len(mine) > 1:
            numbers = " and ".join(row["row"] for row in mine)
            refused[code] = f"{table}: a code must be unique, not in rows {numbers}."
        elif not (image := root / found[0] / code / f"{code}_sa.nii.gz").is_file():
            refused[code] = f"{image}: the file is missing."
        else:
            row = mine[0] if mine else {}
            split, expect_labels = TREE[found[0]]
            if test is not None:
                split = "test" if code in test else "train"
            tasks.append(
                MnmsTask(
                    subject=code,
                    split=split,
                    files=(image, image.with_name(f"{code}_sa_gt.nii.gz")),
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


# --- reading one subject ----------------------------------------------------------------------


def read_subject(task: MnmsTask) -> Cine:
    """Read and check one subject.

    Raises:
        ValueError: The subject cannot be converted; names the file and the rule.
    """
    image_file, mask_file = task.files
    image, affine = read_nifti(image_file)
    check_cine(image, image_file)
    n_frames = image.shape[3]
    clean, turned = clean_affine(affine, image_file)
    corrections, notes = [], []
    if turned > 0.002:  # degrees; SimpleITK 2.5 refuses from 0.005 (and reads 0.0015)
        corrections.append(f"axes not orthogonal, turned by up to {turned:.2f} degrees")
    if not task.in_csv:
        notes.append("not in the CSV; vendor and centre unknown")

    masks: dict[int, Array] = {}
    if mask_file.is_file():
        mask, mask_affine = read_nifti(mask_file)
        if mask.shape != image.shape:
            raise ValueError(
                f"{mask_file}: shape (={mask.shape}) must be that of the image (={image.shape})."
            )
        if not np.allclose(mask_affine, affine, atol=0.01):  # mm
            notes.append("affines of image and mask differ; their voxels are taken to match")
        mask = integer_labels(mask, mask_file, LABELS.values())
        masks = {t: mask[..., t] for t in range(n_frames) if mask[..., t].any()}
    if masks:
        phases, corrected, noted = label_phases(masks, task.ed, task.es)
        corrections += corrected
        notes += noted
        if not task.expect_labels:
            notes.append(f"has labels although in {task.place}: converted as labelled")
    else:
        phases = {}
        reason = "the mask is empty" if mask_file.is_file() else "there is no mask"
        if task.split == "test":
            raise ValueError(f"{mask_file}: {reason}; a test subject must have labels.")
        if task.expect_labels or mask_file.is_file():
            notes.append(f"{reason}: converted as unlabelled")
        for phase, text in (("ED", task.ed), ("ES", task.es)):
            if text and _frame_number(text) not in range(n_frames):
                notes.append(f"CSV: {phase} (={text}) is not within 0 to {n_frames - 1}; not used")

    base = base_of_stack(clean)
    cases = [
        Case(
            case=case_name(task.subject, frame),
            subject=task.subject,
            source=SOURCE,
            source_frame=frame,
            split=task.split,
            frame=frame,
            n_frames=n_frames,
            phase=phases.get(frame, ""),
            base=base,
            vendor=task.vendor,
            centre=task.centre,
            scanner="",
            field="",
            pathology=task.pathology,
        )
        for frame in range(n_frames)
        if task.split == "train" or frame in phases
    ]
    frames = {case.frame: image[..., case.frame] for case in cases}
    labels = {frame: masks[frame] for frame in phases}
    return Cine(frames, labels, clean, cases, corrections, notes)


def _frame_number(text: str) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def label_phases(
    masks: Mapping[int, Array], ed_text: str, es_text: str
) -> tuple[dict[int, str], list[str], list[str]]:
    """Which labelled frame is ED, which ES: as in the CSV unless the masks contradict it.

    The masks contradict it when a frame it names holds no labels, or when ED is the smaller one.
    Then ED is the labelled frame of largest volume and ES that of smallest. The volume is that of
    the left ventricle, or of all labels if a frame has no left ventricle: the myocardium is in
    some data sets drawn at ED only.

    Args:
        masks: The labelled frames `(X, Y, Z)` by time index, at least one.
        ed_text: ED of the CSV, a number from 0; may be empty or wrong.
        es_text: ES of the CSV.

    Returns:
        The phase of each frame to use (two, or one if only one is labelled), corrections, notes.
    """
    lv = {frame: int((mask == LABELS["LVBP"]).sum()) for frame, mask in masks.items()}
    volume = lv if all(lv.values()) else {t: int((mask > 0).sum()) for t, mask in masks.items()}
    # Largest first; of equal volumes the one that the CSV calls ED.
    ed, es = _frame_number(ed_text), _frame_number(es_text)
    frames = sorted(volume, key=lambda t: (-volume[t], t != ed, t))
    listed = " and ".join(map(str, sorted(frames)))
    if len(frames) == 1:
        phase = "ES" if frames[0] == es != ed else "ED"
        notes = [f"only frame {listed} holds labels, taken as {phase}"]
        wrong = frames[0] not in (ed, es)
        text = f"CSV has ED {ed_text or 'empty'} and ES {es_text or 'empty'}, labels at {listed}"
        return {frames[0]: phase}, [text] if wrong else [], notes

    corrections, notes = [], []
    if ed in volume and es in volume and ed != es and volume[ed] >= volume[es]:
        phases = {ed: "ED", es: "ES"}
    else:
        phases = {frames[0]: "ED", frames[-1]: "ES"}
        corrections.append(
            f"CSV has ED {ed_text or 'empty'} and ES {es_text or 'empty'}, "
            f"labels at {listed}: ED is {frames[0]}, ES is {frames[-1]}"
        )
    if len(frames) > 2:
        used = " and ".join(map(str, sorted(phases)))
        notes.append(f"{len(frames)} frames hold labels; only {used} are used")
    return phases, corrections, notes


if __name__ == "__main__":
    import sys

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    try:
        convert(**vars(parser.parse_args()))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command continues.")
