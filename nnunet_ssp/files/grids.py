"""The place of voxels according to a NIfTI header: sform, qform, pixdim and units, weighed against each other.

A header tells a grid up to three times, and the copies may disagree. ACDC's sform has unit scales beside a true
qform and pixdim; M&Ms-2 has unit pixdim beside a true sform. Each tool trusts other fields (`docs/data.md`). Here
what agrees is taken as it is, and a unit scale gives way to a measured one. What is still open is read as SimpleITK,
and so nnU-Net, reads it. A note says what was not unanimous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# By the lowest three bits of xyzt_units; an unknown unit is mm.
UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
EDGES = (0.2, 25.0)  # mm; no image of a heart has voxels with shorter or longer edges
SCANNER = 1  # form code
SAME_SCALE = 1e-3  # relative; headers round to three or four digits
SAME_FORM = 1e-4  # of direction cosines, and in units of the header: as SimpleITK compares


@dataclass(frozen=True)
class Grid:
    """The grid of a NIfTI file, read by evidence.

    `source` is `sform`, `qform` or `pixdim`, with `, scales of pixdim` where those are from elsewhere.
    """

    # (4, 4), from voxel indices to mm in RAS+
    affine: Array
    source: str
    # The affine as nibabel reads it; None where that fails
    nominal: Array | None
    # What is wrong in the header and was set right
    corrections: list[str] = field(default_factory=list)
    # What the user should know
    notes: list[str] = field(default_factory=list)


@np.errstate(all="ignore")  # nothing that is not finite gets through
def read_grid(header: Any) -> Grid:
    """Read the grid of a NIfTI header.

    Args:
        header: A `nibabel.Nifti1Header` or one derived from it, unchanged.

    Raises:
        ValueError: Neither the sform nor pixdim gives a spacing.
    """
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    single = np.array((*header.get_data_shape(), 1, 1, 1)[:3]) == 1
    pixdim[single & (pixdim == 0)] = 1.0  # as all tools read it; an axis of one voxel needs no edge
    known = bool(np.isfinite(pixdim).all() and (pixdim > 0).all())
    sform, qform = _sform(header), _qform(header, pixdim) if known else None
    unit, factor = UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))
    corrections: list[str] = []
    notes: list[str] = []

    affine, source = _choose_form(sform, qform, int(header["sform_code"]))
    if affine is None:
        if not known:
            raise ValueError(f"no sform, and pixdim (={_sizes(pixdim)}) is no spacing")
        # As SimpleITK does; nibabel flips only the first axis, and puts the centre to the origin.
        affine, source = np.diag([-pixdim[0], -pixdim[1], pixdim[2], 1.0]), "pixdim"
        notes.append(
            "neither sform nor qform: the spacing is pixdim's, position and orientation are unknown"
        )
    if sform is not None and not known and source == "sform":
        corrections.append(_why("the sform", "pixdim", pixdim))
    elif sform is not None and known and not _same_scales(_scales(sform), pixdim):
        if _sform_is_right(_scales(sform), pixdim, factor):
            affine, source = sform, "sform"
            corrections.append(_why("the sform", "pixdim", pixdim))
        else:
            affine = _rescaled(affine, pixdim)
            source = source if source == "qform" else f"{source}, scales of pixdim"
            corrections.append(_why("pixdim", "the sform", _scales(sform)))
    elif sform is not None and qform is not None and not _spans_space(sform):
        corrections.append("the sform spans no space: the qform is taken")
    if sform is not None and qform is not None and not source.endswith("scales of pixdim"):
        other = _rescaled(qform if source == "sform" else sform, _scales(affine))
        apart = corner_distance(affine, other, header.get_data_shape())
        if apart > _scales(affine).min() / 2 and not corrections:
            codes = f"sform (code {header['sform_code']}) and qform (code {header['qform_code']})"
            notes.append(f"{codes} place the voxels differently: the {source} is taken")

    if factor != 1 and _possible(_scales(affine)) and not _possible(_scales(affine) * factor):
        corrections.append(f"the header declares {unit}, but its numbers are mm")
    elif factor != 1:
        affine = np.vstack([affine[:3] * factor, affine[3:]])
        notes.append(f"the header is in {unit}")
    notes += _doubtful_scales(affine)
    return Grid(affine, source, _nominal(header), corrections, notes)


def corner_distance(first: Array, second: Array, shape: Sequence[int]) -> float:
    """Return the largest distance between equal corners of two grids of one shape, in the affines' unit."""
    last = np.array((*shape, 1, 1, 1)[:3]) - 1
    corners = np.array(list(np.ndindex(2, 2, 2))) * last
    difference = np.asarray(first, dtype=float) - second
    moved = corners @ difference[:3, :3].T + difference[:3, 3]
    return float(np.linalg.norm(moved, axis=1).max())


def _sform(header: Any) -> Array | None:
    if header["sform_code"] <= 0:
        return None
    rows = [header[name] for name in ("srow_x", "srow_y", "srow_z")]
    return np.vstack([np.asarray(rows, dtype=float), [0, 0, 0, 1]])


def _qform(header: Any, pixdim: Array) -> Array | None:
    """Return the qform, computed as the standard says; nibabel refuses quaternions that rounding made longer than 1."""
    if header["qform_code"] <= 0:
        return None
    b, c, d = (float(header[f"quatern_{name}"]) for name in "bcd")
    offset = [float(header[f"qoffset_{name}"]) for name in "xyz"]
    squares = b * b + c * c + d * d
    if not np.isfinite([squares, *offset]).all():
        return None
    if squares > 1 - 1e-7:
        a, (b, c, d) = 0.0, (value / np.sqrt(squares) for value in (b, c, d))
    else:
        a = np.sqrt(1 - squares)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * pixdim * [1, 1, -1 if header["pixdim"][0] < 0 else 1]
    affine[:3, 3] = offset
    return affine


def _choose_form(
    sform: Array | None, qform: Array | None, sform_code: int
) -> tuple[Array | None, str]:
    """Choose between the forms, as SimpleITK does; it then takes the scales from pixdim."""
    if qform is None or sform is None:
        return (sform, "sform") if qform is None else (qform, "qform")
    if not _spans_space(sform):
        return qform, "qform"
    directions = sform[:3, :3] / _scales(sform)
    orthogonal = np.allclose(directions.T @ directions, np.eye(3), atol=SAME_FORM)
    equal = np.allclose(sform, qform, rtol=0, atol=SAME_FORM)
    if orthogonal and (equal or sform_code == SCANNER):
        return sform, "sform"  # it is rounded less
    return qform, "qform"


def _sform_is_right(sform: Array, pixdim: Array, factor: float) -> bool:
    """Whether the scales of the sform are right where those of pixdim differ, which the qform shares."""
    believed = [any(_plausible(s * f) for f in (1, factor)) for s in (sform, pixdim)]
    if believed[0] != believed[1]:
        return believed[0]
    return _are_units(pixdim[_differ(sform, pixdim)])


def _why(taken: str, other: str, scales: Array) -> str:
    fault = "has unit scales" if _are_units(scales) else f"says {_sizes(scales)}"
    return f"the spacing is that of {taken}; {other} {fault}"


def _doubtful_scales(affine: Array) -> list[str]:
    """Say what is strange about an affine in mm."""
    if np.allclose(affine, np.eye(4)) or np.allclose(affine, np.diag([-1, -1, 1, 1])):
        return ["the affine is the identity: probably neither spacing nor position is known"]
    if not _plausible(_scales(affine)):
        return [
            f"a spacing of {_sizes(_scales(affine))} mm is implausible for a heart: is its unit right?"
        ]
    return []


def _nominal(header: Any) -> Array | None:
    from nibabel.spatialimages import HeaderDataError

    try:
        mended = type(header)(header.binaryblock, header.endianness)  # as nibabel does on opening
        return np.asarray(mended.get_best_affine(), dtype=float)
    except (HeaderDataError, ValueError):
        return None


def _scales(affine: Array) -> Array:
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _rescaled(affine: Array, scales: Array) -> Array:
    result = affine.copy()
    result[:3, :3] *= scales / np.maximum(_scales(affine), 1e-9)
    return result


def _differ(first: Array, second: Array) -> Array:
    return np.asarray(np.abs(first - second) > SAME_SCALE * np.maximum(first, second))


def _same_scales(first: Array, second: Array) -> bool:
    return not _differ(first, second).any()


def _are_units(scales: Array) -> bool:
    return bool(np.allclose(scales, 1, atol=1e-6))


def _spans_space(affine: Array) -> bool:
    scales = _scales(affine)
    return bool(
        np.isfinite(affine).all()
        and (scales > 0).all()
        and abs(np.linalg.det(affine[:3, :3] / scales)) > 0.5
    )


def _plausible(scales: Array) -> bool:
    return bool(((scales >= EDGES[0]) & (scales <= EDGES[1])).all())


def _possible(scales: Array) -> bool:
    """Whether anybody measures with such edges, a mouse or a thick slice; a wrong unit is a factor of 1,000."""
    return bool(((scales >= EDGES[0] / 10) & (scales <= EDGES[1] * 10)).all())


def _sizes(scales: Array) -> str:
    """Write sizes with four digits and no exponent."""
    texts = [
        np.format_float_positional(value, precision=4, fractional=False, trim="-")
        for value in scales
    ]
    return " x ".join(texts)
