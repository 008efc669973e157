"""Synthetic short-axis cine MRI with labels, for tests and for a demo without patient data.

A left ventricle (LV), myocardium and right ventricle (RV) of analytic shape beat in a chest with fat, lung, liver,
bowel, spine and aorta. Four "vendors" image it, with different contrast, shading, noise, blur, spacing, matrix and
slice gap. From a distance it looks like cine MRI; results on it say nothing about patients.

Axes in this file: T frames, S slices, X and Y pixels. Distances are mm, negative inside.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nnunet_ssp.heart import OUTFLOW, Anatomy, Heart, Shape, borders, draw_shape, radii

Array = npt.NDArray[Any]

LV, MYO, RV = 1, 2, 3  # M&Ms' label values
CSV_NAME = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
CSV_HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"
GROUPS = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")  # M&Ms' folders
BASE_TO_APEX = (-0.65, 0.62, -0.42)  # RAS; mean of real short-axis stacks: left, anterior, inferior


class _Vendor(NamedTuple):
    """Imaging by one vendor; signal in units of the brightest vendor's blood."""

    centres: tuple[str, ...]
    # At matrix 96, mm per pixel; X and Y in 24ths of the matrix; mm between slice centres.
    spacing: float
    shape: tuple[int, int]
    gap: float
    blood: float
    myo: float
    fat: float
    liver: float
    # Standard deviation per channel of the complex signal, and of the point spread in mm.
    noise: float
    blur: float
    # Log signal lost per 100 mm from the chest wall; grey values per unit of signal.
    bias: float
    scale: float
    # Zeros outside the inscribed ellipse, as in many GE images.
    round_view: bool


# Chosen to look unlike each other; pixels larger than M&Ms' 1.2 mm, so that 96 of them suffice.
VENDORS = {
    "A": _Vendor(("1",), 2.2, (24, 24), 9.6, 1.00, 0.36, 1.05, 0.42, 0.03, 0.9, 0.5, 420, False),
    "B": _Vendor(("2", "3"), 2.4, (22, 22), 10, 0.85, 0.43, 0.80, 0.50, 0.03, 1.4, 0.3, 260, False),
    "C": _Vendor(("4",), 2.35, (20, 23), 8.0, 0.95, 0.28, 1.15, 0.33, 0.05, 0.8, 0.7, 800, True),
    "D": _Vendor(("5",), 2.5, (24, 20), 8.8, 0.80, 0.34, 0.90, 0.36, 0.07, 1.2, 0.6, 1500, False),
}

# Uniform ranges of `Heart`'s numbers: the first five by disease (as in M&Ms, after textbooks), the others for all.
PATHOLOGIES = {
    "NOR": ((22, 27), (7, 9), (0.52, 0.68), (24, 32), (0.45, 0.6)),
    "DCM": ((27, 33), (6.5, 8.5), (0.25, 0.40), (26, 36), (0.3, 0.45)),
    "HCM": ((20, 24), (11, 15), (0.60, 0.72), (22, 28), (0.45, 0.6)),
    "ARV": ((21, 25), (7, 9), (0.48, 0.62), (34, 40), (0.2, 0.35)),
}
ALL_HEARTS = ((78, 98), (7, 14), (0.32, 0.42), (-0.12, 0.04), (0.78, 0.95), (-0.25, 0.45))


@dataclass(frozen=True)
class PhantomSubject:
    """One subject: a 4D cine, its masks, where papillary muscles count as LV, as in M&Ms, and its volumes."""

    code: str
    vendor: str
    # (X, Y, Z, T); the mask has 1 LV, 2 myocardium, 3 RV; it is 0 except at `ed` and `es`.
    image: npt.NDArray[np.int16]
    mask: npt.NDArray[np.uint8]
    # (4, 4): pixel index to RAS mm; column 2 tells base from apex.
    affine: npt.NDArray[np.float64]
    # Frames of end-diastole and end-systole, from 0.
    ed: int
    es: int
    centre: str
    pathology: str
    # (X, Y, Z, T): as `mask`, but of every frame.
    labels: npt.NDArray[np.uint8]
    # (3, T): ml of LV, myocardium and RV, as areas by formula times the slice gap.
    volumes: Array
    # Its `body` is the volume that no slices cut.
    anatomy: Anatomy


class _View(NamedTuple):
    """The field of view of the scanner, base first, in mm."""

    vendor: _Vendor
    # (T,): 0 relaxed, 1 end-systole.
    contraction: Array
    # (S,): from the end-diastolic valve plane towards the apex; `gap` lies between slices.
    z: Array
    gap: float
    spacing: float
    # (S, X, Y): from the LV's axis to the patient's left and back, and downwards.
    a: Array
    b: Array

    def noise(self, rng: np.random.Generator, length: float) -> Array:
        """Draw a random field (S, X, Y) of unit variance, smooth over `length` mm; slices share half."""
        white = rng.standard_normal(self.a.shape) + rng.standard_normal(self.a.shape[1:])
        field = _smooth(white, length / self.spacing).real
        return ((field - field.mean()) / field.std()).astype(np.float32)

    def inside(self, distance: Array, edge: Array | float = 0.0) -> Array:
        """Compute the part of each pixel inside; `edge` is the mm that an oblique wall moves within the slice."""
        return np.clip(0.5 - distance / np.hypot(np.float32(self.spacing), edge), 0, 1)


def make_subject(
    index: int,
    *,
    seed: int = 0,
    vendor: str | None = None,
    matrix: int = 96,
    frames: int = 12,
    slices: int | None = None,
) -> PhantomSubject:
    """Make one subject, which depends on these arguments only, not on how many others are made.

    Args:
        index: Which subject, from 0.
        seed: Which population, from 0.
        vendor: A, B, C or D; by default they take turns.
        matrix: Pixels of the longest side of any vendor, at least 32; the field of view stays.
        frames: Frames of the cycle, at least 2.
        slices: Slices from base to apex, at least 3; by default 6 to 12, by the vendor's gap.

    Raises:
        ValueError: An argument is outside its range.
    """
    _at_least(index=(index, 0))
    _check(seed, matrix, frames, slices)
    letter = "ABCD"[index % 4] if vendor is None else vendor
    if letter not in VENDORS:
        raise ValueError(f"`vendor` (={vendor!r}) must be one of {', '.join(VENDORS)}.")
    v = VENDORS[letter]
    rng = np.random.default_rng((seed, index))
    pathology = str(rng.choice(list(PATHOLOGIES)))
    heart = Heart(*(rng.uniform(*limits) for limits in (*PATHOLOGIES[pathology], *ALL_HEARTS)))
    # Most scans start at end-diastole, some are triggered late (as Sunnybrook's).
    ed = 0 if rng.random() < 0.7 else frames - 1 - int(rng.integers(0, 1 + frames // 10))
    contraction = _contraction((np.arange(frames) - ed) % frames / frames, heart.systole)
    es = int(contraction.argmax())
    # Base first: the first slice lies just above or below the valve plane, the last at the apex.
    n = slices or int(np.clip(round(heart.length / v.gap + 0.8), 6, 12))
    gap = v.gap if slices is None else heart.length / slices
    z = gap * (np.arange(n) + rng.uniform(-0.6, 0.4))
    size = [matrix * part // 24 for part in v.shape]
    spacing = v.spacing * 96 / matrix
    turn = float(rng.normal(0, 0.45))  # radians: of the field of view on the patient
    centre = rng.normal((-14, 4), 10)  # mm: of the field of view, between LV and RV
    x, y = np.meshgrid(*(spacing * (np.arange(k) - (k - 1) / 2) for k in size), indexing="ij")
    breath = rng.normal(0, 1, (2, n, 1, 1))  # mm: each slice is another breath-hold
    a = (centre[0] + math.cos(turn) * x - math.sin(turn) * y + breath[0]).astype(np.float32)
    b = (centre[1] + math.sin(turn) * x + math.cos(turn) * y + breath[1]).astype(np.float32)
    view = _View(v, contraction, z, gap, spacing, a, b)
    signal, label, shape = _beat(rng, heart, view, _chest(rng, view))
    image = _acquire(rng, signal, view).transpose(2, 3, 1, 0)
    labels = label.transpose(2, 3, 1, 0)
    mask = np.zeros(image.shape, np.uint8)
    mask[..., [ed, es]] = labels[..., [ed, es]]
    anatomy = Anatomy(heart, shape, contraction)
    step = 1 if rng.random() < 0.7 else -1  # some stacks start at the apex
    return PhantomSubject(
        code=_code(index, seed),
        vendor=letter,
        image=np.ascontiguousarray(image[:, :, ::step]),
        mask=np.ascontiguousarray(mask[:, :, ::step]),
        affine=_affine(rng, turn, centre, size, spacing, step * gap, z[::step][0]),
        ed=ed,
        es=es,
        centre=str(rng.choice(v.centres)),
        pathology=pathology,
        labels=np.ascontiguousarray(labels[:, :, ::step]),
        volumes=anatomy.volumes(z, gap),
        anatomy=anatomy,
    )


def write_mnms(
    folder: Path,
    *,
    labelled: int,
    unlabelled: int = 0,
    validation: int = 0,
    testing: int = 0,
    seed: int = 0,
    matrix: int = 96,
    frames: int = 12,
    slices: int | None = None,
) -> Path:
    """Write subjects in the layout of the M&Ms challenge: folder tree, 4D NIfTI and CSV.

    In each group the vendors take turns; a group's subjects do not depend on the others' sizes.
    Files of the same name are overwritten, other files in `folder` stay.

    Args:
        folder: Where to write; made if absent.
        labelled: Subjects of `Training/Labeled`, at least 1.
        unlabelled: Subjects of `Training/Unlabeled`, written without masks.
        validation: Subjects of `Validation`.
        testing: Subjects of `Testing`.
        seed: Population, as in `make_subject`.
        matrix: Pixels, as in `make_subject`.
        frames: Frames of the cycle.
        slices: Slices from base to apex.

    Returns:
        `folder`.

    Raises:
        ValueError: An argument is outside its range; nothing is written then.
    """
    import nibabel as nib
    from tqdm import tqdm

    counts = {"unlabelled": unlabelled, "validation": validation, "testing": testing}
    _at_least(labelled=(labelled, 1), **{name: (count, 0) for name, count in counts.items()})
    _check(seed, matrix, frames, slices)
    folder = Path(folder)
    # 100,000 indices per group, so that enlarging one leaves the others as they were.
    jobs = [
        (group, 100_000 * g + i)
        for g, (group, count) in enumerate(zip(GROUPS, [labelled, *counts.values()], strict=True))
        for i in range(count)
    ]
    rows: list[list[Any]] = [CSV_HEADER.split(",")]
    for group, index in tqdm(jobs, desc="phantom", unit="subject", disable=len(jobs) < 5):
        s = make_subject(index, seed=seed, matrix=matrix, frames=frames, slices=slices)
        target = folder / group / s.code
        target.mkdir(parents=True, exist_ok=True)
        volumes: dict[str, Array] = {"sa": s.image, "sa_gt": s.mask}
        if group == "Training/Unlabeled":
            del volumes["sa_gt"]
        for suffix, volume in volumes.items():
            nifti = nib.Nifti1Image(volume, s.affine)
            nifti.header.set_xyzt_units("mm", "sec")
            nifti.header["pixdim"][4] = 0.9 / frames  # s: 67 beats per minute
            nib.save(nifti, target / f"{s.code}_{suffix}.nii.gz")
        rng = np.random.default_rng((seed, index, 1))  # apart from the image's numbers
        age, sex = rng.integers(18, 80), "FM"[rng.integers(2)]
        # M&Ms lacks some heights and weights.
        build = rng.integers((155, 50), (190, 100)).tolist() if rng.random() < 0.8 else ["", ""]
        row = [s.code, f"Phantom {s.vendor}", s.vendor, s.centre, s.ed, s.es, age, s.pathology, sex]
        rows.append([len(rows) - 1, *row, *build])
    with (folder / CSV_NAME).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return folder


def _at_least(**limits: tuple[int, int]) -> None:
    for name, (value, low) in limits.items():
        if value < low:
            raise ValueError(f"`{name}` (={value}) must be at least {low}.")


def _check(seed: int, matrix: int, frames: int, slices: int | None) -> None:
    _at_least(seed=(seed, 0), frames=(frames, 2))
    _at_least(matrix=(matrix, 32))  # coarser pixels are as large as the wall
    _at_least(slices=(3 if slices is None else slices, 3))  # fewer may all miss the LV's middle


def _code(index: int, seed: int) -> str:
    """Make a code of letter and digit, three times; unique among the first 260^3 indices of a seed."""
    # The factor shares no divisor with 260, so multiplying permutes the codes.
    number = (7_654_321 * (index + 1) + 1_234_567 * seed) % 260**3
    pairs = [number // 260**k % 260 for k in range(3)]
    return "".join(f"{chr(ord('A') + pair // 10)}{pair % 10}" for pair in pairs)


def _contraction(phase: Array, systole: float) -> Array:
    """Compute the contraction (0 relaxed, 1 end-systole) at parts of the cycle in [0, 1) from end-diastole."""
    rise = np.sin(np.pi / 2 * phase / systole) ** 2
    # The power makes early filling fast and late filling slow.
    fall = np.cos(np.pi / 2 * (np.maximum(phase - systole, 0) / (1 - systole)) ** 0.6) ** 2
    return np.where(phase < systole, rise, fall)


def _ellipse(a: Array, b: Array, centre: Sequence[Any], half_axes: tuple[Any, Any]) -> Array:
    """Compute the signed distance (mm, exact at the shorter axis) to an ellipse."""
    scaled = np.hypot((a - centre[0]) / half_axes[0], (b - centre[1]) / half_axes[1])
    return (scaled - 1) * np.minimum(*half_axes).astype(np.float32)


def _smooth(field: Array, sigma: float) -> Array:
    """Smooth the last two axes with a Gaussian through k-space; `sigma` in pixels."""
    kx, ky = (np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(k)) ** 2) for k in field.shape[-2:])
    return np.fft.ifft2(np.fft.fft2(field) * (kx[:, None] * ky))


def _over(signal: Any, paint: Any, inside: Array) -> Array:
    """Paint the given part of each pixel."""
    return signal + inside * (paint - signal)


def _chest(rng: np.random.Generator, view: _View) -> Array:
    """Draw the signal (S, X, Y) of everything but the heart; it does not move."""
    v, a, b, inside = view.vendor, view.a, view.b, view.inside
    fine, folds, slow = (view.noise(rng, length) for length in (2.5, 5, 18))
    muscle, wall, fat = 0.8 * v.myo, rng.uniform(9, 14), rng.uniform(8, 24)
    tilt = float(rng.normal(-0.6, 0.12))  # the chest wall rises from lower left to upper right
    along, depth = math.cos(tilt) * a + math.sin(tilt) * b, math.cos(tilt) * b - math.sin(tilt) * a
    body = _ellipse(along, depth, (20, 40 + rng.normal(0, 6)), (165, 122 + fat)) + 3 * slow
    signal = _over(np.full_like(a, 0.015), v.fat, inside(body))  # air, then skin and fat
    signal = _over(signal, muscle, inside(body + fat))
    ribs = abs(body + fat + wall / 2) + 2 - 6 * np.cos(along / rng.uniform(5.5, 7))
    signal = _over(signal, 0.6 * v.fat, inside(ribs))
    vessels = np.clip(1.5 * fine - 2.2, 0, 1)
    lung = _over(0.06, 0.6 * v.blood, vessels)
    signal = _over(signal, lung, inside(body + fat + wall))

    # The heart rests on the diaphragm; below it liver, stomach and bowel in fat.
    rest = rng.uniform(34, 44) - 0.15 * view.z[:, None, None].astype(np.float32)
    below = np.maximum(rest + (a - 10) ** 2 / 260 + 2 * slow - b, body + fat + wall + 2)
    signal = _over(signal, v.fat * 0.8, inside(below))
    liver = v.liver * (1 + 0.06 * slow) + 0.3 * v.blood * vessels
    bowel = v.fat * (0.45 + 0.35 * np.tanh(2 * folds))
    border = inside(a - rng.normal(10, 15) - 0.3 * b + 6 * slow)
    signal = _over(signal, _over(bowel, liver, border), inside(below + 3))
    stomach = _ellipse(a, b, rng.normal((44, 66), 6).tolist(), (24, 17)) + 3 * slow
    signal = _over(signal, muscle, inside(stomach))
    signal = _over(signal, rng.choice([0.1, 0.9]) * v.blood, inside(stomach + 4))  # gas or a meal

    # Behind the heart: spine, and the aorta as bright and as round as the LV.
    spine, aorta = (rng.normal(place, 4).tolist() for place in ((92, 58), (70, 34)))
    signal = _over(signal, 0.7 * v.fat, inside(_ellipse(a, b, spine, (22, 19))))
    vessel = _ellipse(a, b, aorta, (12, 12))
    signal = _over(signal, muscle, inside(vessel - 2.5))
    return _over(signal, v.blood, inside(vessel))


def _beat(
    rng: np.random.Generator, heart: Heart, view: _View, chest: Array
) -> tuple[Array, Array, Shape]:
    """Draw signal and labels (T, S, X, Y) of the heart that beats in a chest (S, X, Y), with its shape."""
    v, z, inside = view.vendor, view.z[:, None, None], view.inside
    beat = view.contraction[:, None, None, None].astype(np.float32)
    inner, outer, u = radii(heart, view.contraction, view.z)
    shape = draw_shape(rng)
    # A slice is nearly as thick as the gap; where the wall runs obliquely its edge is smeared.
    near, far = (radii(heart, view.contraction, view.z + k * view.gap) for k in (-0.4, 0.4))
    inner_edge, outer_edge = (np.minimum(abs(far[i] - near[i]), 15) for i in (0, 1))

    # Heart axes: p from septum to lateral wall, q across it.
    lean, drift = shape.lean, shape.drift
    a, b = (
        (w - lean[i] * (z - 0.4 * heart.length) - drift[i] * beat).astype(np.float32)
        for i, w in enumerate((view.a, view.b))
    )
    cos, sin = math.cos(heart.turn), math.sin(heart.turn)
    p, q = cos * a + sin * b, cos * b - sin * a
    rho = np.hypot(p, q)
    angle = (p + 1j * q) / np.maximum(rho, 1e-3)  # unit numbers: their powers are the harmonics
    walls = borders(heart, shape, view.contraction, (inner, outer, u), angle)
    lv, epi = rho - walls.lv_radius, rho - walls.epi_radius
    rv = _ellipse(p, q + shape.skew * p, *walls.rv)
    outflow = _ellipse(p, q, *walls.outflow)

    label = np.zeros(rho.shape, np.uint8)
    label[(rv < 0) & (epi > 0) & (u > heart.rv_start)] = RV
    label[(epi <= 0) & (u >= 0) & ~((outflow < 0) & (u < OUTFLOW))] = MYO
    label[(lv < 0) & (u >= 0)] = LV

    fine, ragged, slow, flow_0, flow_1 = (view.noise(rng, k) for k in (2.5, 2.5, 12, 7, 7))
    cycle = 2 * np.pi * np.arange(len(beat))[:, None, None, None] / len(beat)
    swirl = (flow_0 * np.cos(cycle) + flow_1 * np.sin(cycle)).astype(np.float32)
    blood, muscle = v.blood * (1 + 0.07 * swirl), v.myo * (1 + 0.08 * fine)

    def cavity(wall: Array, reach: float) -> Array:  # blood with ragged muscle near the wall
        return _over(blood, muscle, np.clip(1 + wall / reach, 0, 1) * np.clip(1.5 * ragged, 0, 0.8))

    pool = cavity(lv, 4)
    for side in (-1, 1):  # papillary muscles, off the lateral wall
        where = side * float(rng.uniform(0.6, 1.2))
        cos, sin = math.cos(where), math.sin(where)
        thin = rng.uniform(2.8, 4.5) * np.sqrt(np.clip(1 - ((u - 0.45) / 0.3) ** 2, 1e-4, 1))
        middle = (rng.uniform(0.6, 0.85) * np.maximum(inner, 0), 0)
        half_axes = (rng.uniform(1, 1.7) * thin, thin)
        spot = _ellipse(cos * p + sin * q, cos * q - sin * p, middle, half_axes)
        pool = _over(pool, muscle, inside(spot) * (thin > 1))

    hull = np.minimum(epi, rv)
    pad = 2 + 3 * slow + np.clip(-p / 10, 0, 5)  # mm of fat, more of it around the RV
    signal = _over(chest, v.fat * (0.75 + 0.15 * flow_0), inside(hull - pad))
    signal = _over(signal, muscle, inside(rv - 3))  # free wall, 3 mm
    signal = _over(signal, cavity(rv, 9), inside(rv))
    signal = _over(signal, muscle, inside(epi, outer_edge))
    signal = _over(signal, pool, inside(lv, inner_edge))
    signal = _over(signal, blood, inside(outflow) * (u < OUTFLOW))
    return signal * (1 + 0.04 * fine), label, shape


def _acquire(rng: np.random.Generator, signal: Array, view: _View) -> npt.NDArray[np.int16]:
    """Image a signal (T, S, X, Y): shading, blur, Rician noise, grey values."""
    v, a, b = view.vendor, view.a / 100, view.b / 100
    fall = rng.uniform(0.4, 1) * a + rng.uniform(0.4, 1) * b  # the coil lies on the chest
    shading = np.exp(-v.bias * fall + rng.normal(0, 0.15) * a * b)
    noise = v.noise * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    # Noise enters before the blur, as in a zero-filled k-space: neighbours share some of it.
    shown = abs(_smooth(signal * shading + noise[0] + 1j * noise[1], v.blur / view.spacing))
    if v.round_view:
        axes = (np.linspace(-1, 1, k) for k in shown.shape[-2:])
        shown *= np.hypot(*np.meshgrid(*axes, indexing="ij")) < 1.02
    return np.clip(np.rint(v.scale * rng.uniform(0.8, 1.25) * shown), 0, 32767).astype(np.int16)


def _affine(
    rng: np.random.Generator,
    turn: float,
    centre: Array,
    size: list[int],
    spacing: float,
    gap: float,
    first: float,
) -> npt.NDArray[np.float64]:
    """Make the matrix from pixel index to RAS mm of an oblique stack.

    `turn` (radians) leads from `_View`'s a and b to the pixel axes; `centre` (mm) is the middle of the view in a and b.
    `first` (mm) is the depth of the first stored slice below the valve plane. `gap` (mm) is negative if the stored
    slices run towards the base.
    """

    def unit(vector: Array) -> Array:
        return vector / np.linalg.norm(vector)

    normal = unit(np.array(BASE_TO_APEX) + rng.normal(0, 0.08, 3))
    down = unit(np.array([0, 0, -1]) + normal * normal[2])
    left = np.cross(normal, down)  # to the patient's left and back
    cos, sin = math.cos(turn), math.sin(turn)
    x, y = cos * left + sin * down, cos * down - sin * left
    valve = rng.normal((-25, 15, 10), 10)  # mm: to the left, front and top of the isocentre
    corner = valve + centre[0] * left + centre[1] * down + first * normal
    corner -= spacing * ((size[0] - 1) / 2 * x + (size[1] - 1) / 2 * y)
    affine = np.eye(4)
    affine[:3] = np.stack([spacing * x, spacing * y, gap * normal, corner], axis=1)
    return affine
