"""Miniature datasets in the layouts of M&Ms, M&Ms-2 and ACDC, of random voxels."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

MNMS_CSV = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
MNMS_COLUMNS = ["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Pathology"]
MNMS2_CSV = "dataset_information.csv"
MNMS2_COLUMNS = ["SUBJECT_CODE", "DISEASE", "VENDOR", "SCANNER", "FIELD"]
SHAPE = (6, 5, 3, 4)  # columns, rows, slices, frames
ED, ES = 0, 2
# Slices run from base to apex: to the left, to the front and to the feet.
AFFINE = np.array([[1, 0.5, -4, 9], [1, -0.5, 4, 8], [0, -1, -4, 7], [0, 0, 0, 1.0]])


def cine(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16)


def cine_of(code: str) -> np.ndarray:
    """The image of a subject of M&Ms; no two are equal."""
    return cine(zlib.crc32(code.encode()))


def drawn(*frames: int) -> np.ndarray:
    """A mask with all three classes, smaller in each further frame."""
    mask = np.zeros(SHAPE, np.uint8)
    for number, frame in enumerate(frames):
        mask[: 3 - number, :3, :, frame] = [[[1], [2], [3]]]
    return mask


def save(voxels: np.ndarray, file: Path, affine: np.ndarray = AFFINE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.set_qform(None, code=0)
    nibabel.save(image, file)


def add_row(table: Path, columns: Sequence[str], row: dict[str, object]) -> None:
    new = not table.exists()
    with open(table, "a", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        if new:
            writer.writeheader()
        writer.writerow(row)


# -- M&Ms ------------------------------------------------------------------------------------------


def add_mnms(
    root: Path, place: str, code: str, mask: np.ndarray | None = None, **row: object
) -> Path:
    """Add a subject's files and its row in the CSV; return the image's file."""
    image = root / place / code / f"{code}_sa.nii.gz"
    save(cine_of(code), image)
    if mask is not None:
        save(mask, image.with_name(f"{code}_sa_gt.nii.gz"))
    add_mnms_row(root, code, **row)
    return image


def add_mnms_row(root: Path, code: str, **row: object) -> None:
    values = {"VendorName": "GE", "Vendor": "C", "Centre": 1, "ED": ED, "ES": ES}
    add_row(root / MNMS_CSV, MNMS_COLUMNS, {"External code": code} | values | row)


# -- M&Ms-2 ----------------------------------------------------------------------------------------


def add_mnms2(root: Path, number: int, **row: object) -> Path:
    """Add a subject's files and its row in the CSV; return the cine's file."""
    code = f"{number:03d}"
    voxels, mask = cine(number), drawn(ED, ES)
    file = root / "dataset" / code / f"{code}_SA_CINE.nii.gz"
    save(voxels, file)
    for phase, frame in (("ED", ED), ("ES", ES)):
        save(voxels[..., frame], file.with_name(f"{code}_SA_{phase}.nii.gz"))
        save(mask[..., frame], file.with_name(f"{code}_SA_{phase}_gt.nii.gz"))
        save(voxels[..., 0, :1], file.with_name(f"{code}_LA_{phase}.nii.gz"))
    add_mnms2_row(root, number, **row)
    return file


def add_mnms2_row(root: Path, number: object, **row: object) -> None:
    values = {"DISEASE": "ARR", "VENDOR": "SIEMENS", "SCANNER": "Avanto", "FIELD": "1.5"}
    add_row(root / MNMS2_CSV, MNMS2_COLUMNS, {"SUBJECT_CODE": number} | values | row)


# -- ACDC ------------------------------------------------------------------------------------------


def add_acdc(root: Path, place: str, number: int, *, four_d: bool = True, **info: object) -> Path:
    """Add a subject's files with Info.cfg; return its folder."""
    code = f"patient{number:03d}"
    voxels, mask = cine(number), drawn(ED, ES)
    swapped = np.array([0, 3, 2, 1], np.uint8)[mask]  # ACDC: 1 RV, 3 LV
    folder = root / place / code
    if four_d:
        save(voxels, folder / f"{code}_4d.nii.gz", np.diag([1.5, 1.5, 10, 1]))
    for frame in (ED, ES):
        name = f"{code}_frame{frame + 1:02d}"
        save(voxels[..., frame], folder / f"{name}.nii.gz", np.diag([1.5, 1.5, 10, 1]))
        save(swapped[..., frame], folder / f"{name}_gt.nii.gz", np.diag([1.5, 1.5, 10, 1]))
    values = {"ED": ED + 1, "ES": ES + 1, "Group": "DCM", "NbFrame": SHAPE[3]} | info
    lines = [f"{key}: {value}\n" for key, value in values.items()]
    (folder / "Info.cfg").write_text("".join(lines))
    return folder
