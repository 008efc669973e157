"""Whether an image or mask file is sound, which nnU-Net's readers do not say.

SimpleITK fills what a truncated NIfTI lacks with zeros, does not see a flipped bit, reads NaN and infinite values of
NIfTI as 0, and a voxel edge of 0 mm as 1 mm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunet_ssp.nifti import is_whole, read_nifti

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how the file that git-lfs leaves begins


def is_lfs_pointer(file: Path) -> bool:
    """Whether git-lfs has left its pointer in place of the file."""
    with open(file, "rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def check_sound(file: Path) -> None:
    """Check that a file is whole and, for NIfTI, that its voxels and its voxel edges are numbers.

    Raises:
        OSError: The file cannot be opened.
        ValueError: Names the file and what is wrong with it.
    """
    if is_lfs_pointer(file):
        raise ValueError(f"{file}: a git-lfs pointer in place of the file: run git lfs pull.")
    if not is_whole(file):
        raise ValueError(f"{file}: the compressed file is truncated or damaged.")
    if not file.name.endswith((".nii", ".nii.gz")):
        return
    voxels, _ = read_nifti(file)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise ValueError(f"{file}: holds NaN or infinite values.")
    edges = _voxel_edges(file)
    if not all(np.isfinite(edge) and edge != 0 for edge in edges):
        listed = " x ".join(f"{edge:g}" for edge in edges)
        raise ValueError(f"{file}: the voxel edges (={listed}) must be numbers other than 0.")


def _voxel_edges(file: Path) -> list[float]:
    """Read the voxel edges of the spatial axes longer than 1 from the header; nibabel would turn a 0 into a 1."""
    import nibabel
    from nibabel.openers import Opener

    header = nibabel.load(file).header
    with Opener(file) as stream:
        start = stream.read(header.sizeof_hdr)
    fields = np.frombuffer(start, header.structarr.dtype, 1)[0]
    shape = header.get_data_shape()[:3]
    return [float(edge) for edge, n in zip(fields["pixdim"][1:], shape, strict=False) if n > 1]
