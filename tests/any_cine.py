"""One cine, and every way to store it: the reference of a conversion, written from the formats' standards alone."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from tests import dicom_files

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CLASSES = ("LVBP", "LVM", "RV")


@dataclass
class Reference:
    """A cine as it is in the world."""

    # (X, Y, Z, T), real values; Z are the slices.
    voxels: np.ndarray
    # (4, 4), to mm in RAS+.
    affine: np.ndarray
    # (X, Y, Z) by time index.
    masks: dict[int, np.ndarray]

    @property
    def n_frames(self) -> int:
        return self.voxels.shape[3]


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random rotation (3, 3)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def make_affine(directions: np.ndarray, spacing: Sequence[float], origin: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = origin
    return affine


def make_masks(rng: np.random.Generator, shape: Sequence[int], frames: int) -> dict:
    """ED and ES at two random times; the ventricle of ES is the smaller one."""
    ed, es = rng.choice(frames, 2, replace=False)
    at_ed = rng.integers(0, 4, shape).astype(np.uint8)
    at_ed.flat[:8] = 1
    at_es = at_ed.copy()
    ventricle = np.flatnonzero(at_es == 1)
    at_es.flat[ventricle[: max(1, len(ventricle) // 3)]] = 2
    return {int(ed): at_ed, int(es): at_es}


def rearranged(
    array: np.ndarray, affine: np.ndarray, axes: Sequence[int], flips: Sequence[bool]
) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels in the world, with the first three axes in another order and direction."""
    rest = range(3, array.ndim)
    array = array.transpose(*axes, *rest)
    moved = affine[:, [*axes, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            moved[:, 3] += moved[:, axis] * (array.shape[axis] - 1)
            moved[:, axis] *= -1
    return array, moved


# -- NIfTI -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """Way of a NIfTI header to say where the voxels are."""

    # Codes; both 0 is a header that knows spacings alone.
    qform: int = 1
    sform: int = 1
    # unknown, meter, mm or micron.
    unit: str = "mm"
    # An sform with axes of 1 mm beside a true qform, as in ACDC.
    unit_scales: bool = False
    big_endian: bool = False


UNITS = {"unknown": (0, 1.0), "meter": (1, 1e-3), "mm": (2, 1.0), "micron": (3, 1e3)}  # per mm


def save_nifti(
    file: Path,
    values: np.ndarray,
    affine: np.ndarray,
    header: Header,
    dtype: str = "int16",
    slope: float = 1.0,
    intercept: float = 0.0,
) -> Path:
    """Write a NIfTI byte by byte.

    Args:
        file: Ends with `.nii` or `.nii.gz`.
        values: Real values; stored as `(value - intercept) / slope`.
        affine: (4, 4), to mm in RAS+.
        header: How to write the geometry.
        dtype: Of the file.
        slope: `scl_slope`; 0 says that there is none.
        intercept: `scl_inter`.
    """
    order = ">" if header.big_endian else "<"
    code, factor = UNITS[header.unit]
    raw = nibabel.Nifti1Header(endianness=order)
    raw.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    raw.set_data_shape(values.shape)
    scaled = np.diag([factor, factor, factor, 1]) @ affine
    if header.qform or not header.sform:
        raw.set_qform(scaled, code=1)  # also sets the spacings
    else:
        raw["pixdim"][1:4] = np.linalg.norm(scaled[:3, :3], axis=0)
    if not header.qform:
        for field in ("quatern_b", "quatern_c", "quatern_d"):
            raw[field] = 0
        for field in ("qoffset_x", "qoffset_y", "qoffset_z"):
            raw[field] = 0
        raw["pixdim"][0] = 1
    raw["qform_code"] = header.qform
    if header.sform:
        lengths = np.linalg.norm(scaled[:3, :3], axis=0) if header.unit_scales else np.ones(3)
        raw.set_sform(scaled / [*lengths, 1], code=header.sform)
    raw["pixdim"][4] = 0.04
    raw["xyzt_units"] = code + 8  # seconds
    raw["scl_slope"], raw["scl_inter"] = slope, intercept
    raw["magic"], raw["vox_offset"] = b"n+1", 352
    stored = np.rint((values - intercept) / (slope or 1)).astype(raw.get_data_dtype())
    content = raw.binaryblock + bytes(4) + stored.tobytes(order="F")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content, 1) if file.suffix == ".gz" else content)
    return file


def stored_affines(file: Path) -> list[np.ndarray]:
    """Affines (mm, RAS+) that the fields of a header with form codes hold, after their rounding to float32."""
    raw = nibabel.load(file).header
    scale = {code: factor for code, factor in UNITS.values()}[int(raw["xyzt_units"]) & 7]
    found = []
    if raw["qform_code"]:
        b, c, d = (float(raw[f"quatern_{letter}"]) for letter in "bcd")
        rest = 1 - b * b - c * c - d * d
        a = np.sqrt(max(0.0, rest))
        if rest < 1e-7:  # nifti1_io.c, nifti_quatern_to_mat44: a half turn, written with rounding
            a, (b, c, d) = 0.0, (value / np.sqrt(1 - rest) for value in (b, c, d))
        turn = [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
        spacing = [float(v) for v in raw["pixdim"][1:4]]
        spacing[2] *= -1 if raw["pixdim"][0] < 0 else 1
        offset = np.array([float(raw[f"qoffset_{axis}"]) for axis in "xyz"])
        found.append(make_affine(np.array(turn), spacing, offset))
    if raw["sform_code"]:
        found.append(np.vstack([*(raw[f"srow_{axis}"] for axis in "xyz"), [0, 0, 0, 1]]))
    return [np.diag([1 / scale, 1 / scale, 1 / scale, 1]) @ affine for affine in found]


# -- masks -----------------------------------------------------------------------------------------


def save_mask(file: Path, mask: np.ndarray, affine: np.ndarray, dtype: str) -> None:
    """Write a mask as scripts with nibabel do."""
    image = nibabel.Nifti1Image(mask.astype(dtype), affine)
    nibabel.save(image, file)


def save_mask_like(file: Path, mask: np.ndarray, image: Path, dtype: str) -> None:
    """Write a mask `(X, Y, Z)` or `(X, Y, Z, T)` on an image's grid with the image's header."""
    header = nibabel.load(image).header.copy()
    header["scl_slope"] = np.nan
    header.set_data_dtype(dtype)
    nibabel.save(nibabel.Nifti1Image(mask.astype(dtype), None, header), file)


def itk_grid(image: Path) -> sitk.Image:
    """The grid of an image's first frame as ITK reads it."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # of headers as ACDC has them
    grid = sitk.ReadImage(str(image))
    sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    while grid.GetDimension() > 3:
        size = list(grid.GetSize())
        size[-1] = 0
        grid = sitk.Extract(grid, size, [0] * len(size))
    return grid


def itk_grid_at(affine: np.ndarray, shape: Sequence[int]) -> sitk.Image:
    """A grid of ITK at an affine."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    grid = sitk.Image(list(map(int, shape)), sitk.sitkUInt8)
    grid.SetSpacing(spacing.tolist())
    grid.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    grid.SetOrigin(lps[:3, 3].tolist())
    return grid


def save_itk_mask(file: Path, mask: np.ndarray, grid: sitk.Image, dtype: str) -> None:
    """Write a mask `(X, Y, Z)` or `(X, Y, Z, T)` on a grid as ITK-SNAP, Slicer and nnU-Net do."""
    frames = np.moveaxis(mask.reshape(*mask.shape[:3], -1), 3, 0)
    volumes = []
    for frame in frames:
        volume = sitk.GetImageFromArray(np.ascontiguousarray(frame.T.astype(dtype)))
        volume.CopyInformation(grid)
        volumes.append(volume)
    joined = sitk.JoinSeries(volumes) if mask.ndim == 4 else volumes[0]
    sitk.WriteImage(joined, str(file))


# -- DICOM -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dicom:
    """Form of a written DICOM study."""

    # classic or enhanced: one file, or one for each slice or frame.
    form: str = "classic"
    # explicit, implicit, big or rle.
    syntax: str = "explicit"
    # preamble; none: without the 128 bytes and DICM; bare: also without group 2.
    start: str = "preamble"
    monochrome1: bool = False
    bits: int = 16
    signed: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    # trigger, temporal (position), dimension (index, enhanced) or number.
    clock: str = "trigger"
    # one, or one for each slice, frame or file.
    study_uid: str = "one"
    series_uid: str = "one"
    # plain, dcm or deep.
    names: str = "plain"


SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "rle": RLELossless,
}


def save_dicom(folder: Path, reference: Reference, kind: Dicom, rng: np.random.Generator) -> None:
    """Write a reference whose values are what the file stores, rescaled: see `stored_values`."""
    n_slices, n_frames = reference.voxels.shape[2:]
    stored = stored_values(reference.voxels, kind)
    every = list(itertools.product(range(n_slices), range(n_frames)))
    order = [every[i] for i in rng.permutation(len(every))]
    groups = {
        "classic": [[one] for one in order],
        "enhanced": [order],
        "enhanced-slices": [[one for one in order if one[0] == z] for z in range(n_slices)],
        "enhanced-frames": [[one for one in order if one[1] == t] for t in range(n_frames)],
    }[kind.form]
    uids = {name: [generate_uid() for _ in every] for name in ("study", "series")}
    # An InstanceNumber that tells the time within each slice, slices first or times first.
    slices_first = rng.random() < 0.5
    by_slice = kind.form in ("classic", "enhanced-slices")
    for number, members in enumerate(groups):
        z, t = members[0]
        pixels = np.stack([stored[:, :, z, t].T for z, t in members])
        which = {"one": 0, "slice": z, "frame": t, "file": number}
        along = z * n_frames + t if slices_first else t * n_slices + z
        tags = {
            "StudyInstanceUID": uids["study"][which[kind.study_uid]],
            "SeriesInstanceUID": uids["series"][which[kind.series_uid]],
            "SeriesNumber": 7,
            "AcquisitionDate": "20200101",
            # A breath-hold for each slice, unless a file has images of several.
            "AcquisitionTime": f"1010{z if by_slice else 0:02d}.000000",
            # Without meaning where another clock tells the time.
            "InstanceNumber": along + 1 if kind.clock == "number" else int(rng.integers(1e6)),
            "PhotometricInterpretation": "MONOCHROME1" if kind.monochrome1 else "MONOCHROME2",
            "BitsStored": kind.bits,
            "HighBit": kind.bits - 1,
            "PixelRepresentation": int(kind.signed),
        }
        if kind.form == "classic":
            tags |= _classic_tags(reference, z, t, kind)
        else:
            tags |= _enhanced_tags(reference, members, kind)
        dataset = dicom_files.header(**tags)
        dataset.Rows, dataset.Columns = pixels.shape[1:]
        name = {
            "plain": f"IM{number}",
            "dcm": f"{generate_uid()}.dcm",
            "deep": f"S{z}/{rng.integers(9)}/{number:04d}.IMA",
        }[kind.names]
        _save_as(folder / name, dataset, pixels if kind.form != "classic" else pixels[0], kind)


def stored_values(voxels: np.ndarray, kind: Dicom) -> np.ndarray:
    """Pixels as in the file: `voxels = pixels * slope + intercept`, of MONOCHROME1 all but for the sign."""
    pixels = np.rint((voxels - kind.intercept) / kind.slope).astype(np.int64)
    if kind.monochrome1:
        pixels = 2**kind.bits - 1 - pixels
    return pixels.astype(np.int16 if kind.signed else np.uint16)


def _position(reference: Reference, z: int) -> list[float]:
    return [round(float(v), 6) for v in (LPS @ reference.affine @ [0, 0, z, 1])[:3]]


def _orientation(reference: Reference) -> list[float]:
    axes = (LPS @ reference.affine)[:3, :2]
    return [round(float(v), 10) for v in (axes / np.linalg.norm(axes, axis=0)).T.ravel()]


def _spacing(reference: Reference) -> list[float]:
    along_row, along_column = np.linalg.norm(reference.affine[:3, :2], axis=0)
    return [round(float(along_column), 8), round(float(along_row), 8)]


def _classic_tags(reference: Reference, z: int, t: int, kind: Dicom) -> dict[str, object]:
    tags: dict[str, object] = {
        "ImagePositionPatient": _position(reference, z),
        "ImageOrientationPatient": _orientation(reference),
        "PixelSpacing": _spacing(reference),
        "SliceThickness": 6.0,
    }
    if kind.clock == "trigger":
        tags["TriggerTime"] = round(12.5 + 38.25 * t, 2)
    if kind.clock == "temporal":
        tags["TemporalPositionIdentifier"] = t + 1
        tags["NumberOfTemporalPositions"] = reference.n_frames
    if (kind.slope, kind.intercept) != (1, 0):
        tags |= {"RescaleSlope": kind.slope, "RescaleIntercept": kind.intercept}
    return tags


def _enhanced_tags(
    reference: Reference, members: Sequence[tuple[int, int]], kind: Dicom
) -> dict[str, object]:
    groups = []
    for z, t in members:
        content: dict[str, object] = {"StackID": "1", "InStackPositionNumber": z + 1}
        if kind.clock == "temporal":
            content["TemporalPositionIndex"] = t + 1
        if kind.clock == "dimension":
            content["DimensionIndexValues"] = [z + 1, t + 1]
        of_frame: dict[str, dict[str, object]] = {
            "PlanePositionSequence": {"ImagePositionPatient": _position(reference, z)},
            "FrameContentSequence": content,
            "PixelValueTransformationSequence": {
                "RescaleSlope": kind.slope,
                "RescaleIntercept": kind.intercept,
                "RescaleType": "US",
            },
        }
        if kind.clock == "trigger":
            of_frame["CardiacSynchronizationSequence"] = {
                "NominalCardiacTriggerDelayTime": 38.25 * t
            }
        groups.append(dicom_files.nested(**of_frame))
    shared = dicom_files.nested(
        PlaneOrientationSequence={"ImageOrientationPatient": _orientation(reference)},
        PixelMeasuresSequence={"PixelSpacing": _spacing(reference), "SliceThickness": 6.0},
    )
    tags: dict[str, object] = {
        "SOPClassUID": EnhancedMRImageStorage,
        "NumberOfFrames": len(members),
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": groups,
    }
    if kind.clock == "dimension":
        pointers = []
        for keyword in ("InStackPositionNumber", "TemporalPositionIndex"):
            pointer = Dataset()
            pointer.DimensionIndexPointer = pydicom.datadict.tag_for_keyword(keyword)
            pointer.FunctionalGroupPointer = pydicom.datadict.tag_for_keyword(
                "FrameContentSequence"
            )
            pointers.append(pointer)
        tags["DimensionIndexSequence"] = pointers
    return tags


def _save_as(file: Path, dataset: Dataset, pixels: np.ndarray, kind: Dicom) -> None:
    syntax = SYNTAXES[kind.syntax]
    file.parent.mkdir(parents=True, exist_ok=True)
    order = ">" if kind.syntax == "big" else "<"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    if kind.syntax == "rle":
        dataset.compress(RLELossless, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    if kind.start == "preamble":
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
        return
    dataset.preamble = None
    if kind.start == "bare":
        del dataset.file_meta
        pydicom.dcmwrite(
            file,
            dataset,
            enforce_file_format=False,
            implicit_vr=kind.syntax == "implicit",
            little_endian=True,
        )
    else:
        pydicom.dcmwrite(file, dataset, enforce_file_format=False)
