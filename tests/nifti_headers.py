"""NIfTI files with any header that says where the voxels lie."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from hypothesis import strategies as st

rotations = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)
spacings = st.tuples(st.floats(0.8, 3), st.floats(0.8, 3), st.floats(6, 12))
origins = st.tuples(*[st.floats(-300, 300)] * 3)
codes = st.integers(0, 4)
units = st.sampled_from(["unknown", "mm", "meter", "micron"])
PER_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1e-3, "micron": 1e3}


def affine_of(
    quaternion: tuple[float, ...],
    spacing: tuple[float, ...],
    flip: int,
    origin: tuple[float, ...] = (10, -20, 30),
) -> np.ndarray:
    a, b, c, d = np.array(quaternion) / np.linalg.norm(quaternion)
    affine = np.eye(4)
    affine[:3, :3] = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
    ]
    affine[:3, :3] *= np.array(spacing) * [1, 1, flip]
    affine[:3, 3] = origin
    return affine


affines = st.builds(affine_of, rotations, spacings, st.sampled_from([1, -1]), origins)


def save_with(
    file: Path,
    voxels: np.ndarray,
    *,
    sform: np.ndarray | None = None,
    qform: np.ndarray | None = None,
    pixdim: tuple[float, ...] | None = None,
    sform_code: int = 0,
    qform_code: int = 0,
    unit: str = "mm",
) -> Path:
    """Save voxels under a header with exactly these fields, in the unit.

    Args:
        file: The file to write.
        voxels: Any shape.
        sform: (4, 4), or none for zeros.
        qform: (4, 4) with orthogonal axes, or none for zeros; gives the pixdim, too.
        pixdim: Of three axes; by default as set by the qform, else by the sform.
        sform_code: Of the sform.
        qform_code: Of the qform.
        unit: As nibabel names it.
    """
    image = nibabel.Nifti1Image(voxels, None, dtype=voxels.dtype)
    header = image.header
    if sform is not None:
        header.set_sform(sform, code=1)
        header["pixdim"][1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    if qform is not None:
        header.set_qform(qform, code=1)
    if pixdim is not None:
        header["pixdim"][1:4] = pixdim
    header.set_xyzt_units(unit, "sec")
    # nibabel keeps the forms of an image that is made without affine, but for these codes.
    header["sform_code"], header["qform_code"] = sform_code, qform_code
    image = nibabel.Nifti1Image(voxels, None, header, dtype=voxels.dtype)
    image.header["sform_code"], image.header["qform_code"] = sform_code, qform_code
    image.header["pixdim"] = header["pixdim"]
    file.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(file)
    return file
