"""However a cine is stored, `convert cine` makes the same voxels at the same places."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.conversion.geometry import TOWARDS_APEX
from nnunet_ssp.conversion.subjects import Cine
from nnunet_ssp.dataset_conversion.cine import convert, list_tasks, read_subject
from nnunet_ssp.files.grids import SCANNER
from tests.any_cine import (
    UNITS,
    Dicom,
    Header,
    Reference,
    itk_grid,
    itk_grid_at,
    make_affine,
    make_masks,
    rearranged,
    rotation,
    save_dicom,
    save_itk_mask,
    save_mask,
    save_mask_like,
    save_nifti,
    stored_affines,
)

NEAR = 1e-4  # mm
# A quaternion in float32 turns by up to 1e-3 rad where its first component, which is not stored, is nearly 0. The
# files of single slices then contradict each other by that.
NEAR_QFORMS_OF_SLICES = 0.1  # mm
many = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


# -- what must come out ----------------------------------------------------------------------------


def read_one(root: Path) -> Cine:
    """Convert the one subject of a folder."""
    tasks, refused = list_tasks(root, workers=1)
    assert not refused
    (task,) = tasks
    return read_subject(task)


def places_of(
    affine: np.ndarray, shape: tuple[int, ...], reference: np.ndarray, near: float
) -> np.ndarray:
    """Each voxel's index in the reference, where one of its voxels must be within `near` mm."""
    index = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    place = np.linalg.solve(reference[:3, :3], world - reference[:3, 3:])
    nearest = np.rint(place).astype(int)
    off = np.linalg.norm(reference[:3, :3] @ (place - nearest), axis=0).max()
    assert off <= near, f"{off} mm"
    return nearest


def assert_same(
    frames: dict[int, np.ndarray],
    labels: dict[int, np.ndarray],
    affine: np.ndarray,
    reference: Reference,
    *,
    inverted: bool = False,
    near: float = NEAR,
) -> None:
    """Compare with the reference at every place of the world.

    Args:
        frames: `(X, Y, Z)` by time index.
        labels: Those of the labelled frames.
        affine: Of both, (4, 4).
        reference: What is right.
        inverted: Whether a constant may have been added to all voxels.
        near: How far off a place may be, in mm.
    """
    shape = frames[0].shape
    assert sorted(frames) == list(range(reference.n_frames))
    assert np.prod(shape) == np.prod(reference.voxels.shape[:3])
    place = places_of(affine, shape, reference.affine, near)
    assert place.min() >= 0 and (place.max(1) < reference.voxels.shape[:3]).all()
    assert shape[2] == reference.voxels.shape[2]
    through = [matrix[:3, 2] / np.linalg.norm(matrix[:3, 2]) for matrix in (affine, reference.affine)]  # fmt: skip
    assert abs(through[0] @ through[1]) == pytest.approx(1, abs=2e-6)
    found = np.stack([frames[t].reshape(-1) for t in range(reference.n_frames)], -1)
    wanted = reference.voxels[tuple(place)]
    shift = float(found.flat[0]) - wanted.flat[0] if inverted else 0.0
    np.testing.assert_allclose(found - shift, wanted, rtol=1e-6, atol=1e-3)
    assert labels.keys() == reference.masks.keys()
    for t, mask in reference.masks.items():
        np.testing.assert_array_equal(labels[t].reshape(-1), mask[tuple(place)])


def assert_converted(cine: Cine, reference: Reference, **options: Any) -> None:
    assert_same(cine.frames, cine.labels, cine.affine, reference, **options)
    phases = {case.frame: case.phase for case in cine.cases if case.phase}
    if reference.masks:
        first, second = sorted(reference.masks, key=lambda t: -(reference.masks[t] == 1).sum())
        assert phases == {first: "ED", second: "ES"}


# -- any NIfTI -------------------------------------------------------------------------------------

headers = st.builds(
    Header,
    qform=st.integers(1, 4),
    sform=st.integers(0, 4),
    unit=st.sampled_from(list(UNITS)),
    big_endian=st.booleans(),
) | st.builds(
    Header,
    qform=st.just(0),
    sform=st.integers(1, 4),
    unit=st.sampled_from(list(UNITS)),
)
as_acdc = st.builds(
    Header, qform=st.integers(1, 2), sform=st.integers(1, 2), unit_scales=st.just(True)
)
nowhere = st.builds(
    Header, qform=st.just(0), sform=st.just(0), unit=st.sampled_from(["mm", "unknown"])
)
storages = st.sampled_from(
    [
        ("uint8", 1.0, 0.0),
        ("int16", 0.0, 0.0),  # 0 says that there is no slope
        ("int16", 1.0, 0.0),
        ("int16", 0.5, -100.0),
        ("uint16", 2.0, 10.0),
        ("int32", 1.0, 0.0),
        ("float32", 1.0, 0.0),
        ("float64", 0.25, 3.0),
    ]
)


def random_cine(
    rng: np.random.Generator, directions: np.ndarray, frames: int, storage: tuple[str, float, float]
) -> Reference:
    dtype, slope, intercept = storage
    shape = (*rng.integers(8, 15, 2), rng.integers(3, 7), frames)
    spacing = (*rng.uniform(1.2, 2.0, 2), rng.uniform(5, 12))
    most = 255 if dtype == "uint8" else 30_000
    stored = (
        rng.integers(0, most + 1, shape)
        if np.prod(shape) > most
        else rng.permutation(most)[: np.prod(shape)].reshape(shape)
    )
    origin = rng.uniform(-80, 80, 3)
    # As a header of DICOM has them: what a file cannot say is no part of the reference.
    spacing = np.round(spacing, 3)
    affine = make_affine(directions, spacing, np.round(origin, 3))
    masks = make_masks(rng, shape[:3], frames) if frames > 1 else {}
    return Reference(stored * (slope or 1.0) + intercept, affine, masks)


@st.composite
def nifti_cines(draw: st.DrawFn) -> dict:
    """A way to store a cine as NIfTI."""
    layout = draw(st.sampled_from(["file", "frames", "slices", "both"]))
    header = draw(
        headers if layout in ("slices", "both") else st.one_of(headers, headers, as_acdc, nowhere)
    )
    masks = ["none", "header", "itk"]
    # nibabel's affine knows no units.
    if header.unit in ("mm", "unknown") and not header.unit_scales:
        masks.append("affine")
    return {
        "layout": layout,
        "header": header,
        "storage": draw(storages),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "mirrored": draw(st.booleans()),
        "axes": draw(st.permutations([0, 1, 2])),
        "flips": draw(st.tuples(*[st.booleans()] * 3)),
        "singleton": draw(st.sampled_from(["none", "last", "fourth"])),
        "frames": draw(st.integers(4, 7)),
        "ending": draw(st.sampled_from([".nii", ".nii.gz"])),
        "place": draw(st.sampled_from(["p1", "p1_sa", "p1/p1", "p1/sa", "p1/any name"])),
        "numbering": draw(st.sampled_from(["vol{:04d}", "{}_cine", "t{}of7", "philips"])),
        "mask": draw(st.sampled_from(masks)),
        "mask_4d": draw(st.booleans()),
        "mask_dtype": draw(st.sampled_from(["uint8", "int16", "float32"])),
        # Without form codes nothing but the order of the axes connects a mask with its image.
        "mask_turned": bool(header.sform or header.qform) and draw(st.booleans()),
    }


def store_nifti(root: Path, way: dict) -> Reference:
    """Write the cine; return the reference."""
    rng = np.random.default_rng(way["seed"])
    directions = rotation(rng) * ([1, 1, -1] if way["mirrored"] else 1)
    reference = random_cine(rng, directions, way["frames"], way["storage"])
    voxels, affine = rearranged(reference.voxels, reference.affine, way["axes"], way["flips"])
    options = (way["header"], *way["storage"])
    along = way["axes"].index(2)  # the axis of the slices in the files
    single = {"none": ..., "last": (..., None), "fourth": np.s_[:, :, :, None]}[way["singleton"]]
    images = []

    def save(name: str, part: np.ndarray, its_affine: np.ndarray = affine) -> None:
        file = root / f"{name}{way['ending']}"
        images.append(save_nifti(file, part[single], its_affine, *options))

    if way["layout"] == "file":
        save(way["place"], voxels)
    elif way["layout"] == "frames":
        for t in range(reference.n_frames):
            name = way["numbering"].format(t + way["seed"] % 2)
            if way["numbering"] == "philips":
                name = f"cine_5_t{40 * t}" if t else "cine_5"
            save(f"p1/{name}", voxels[..., t])
    else:
        number = rng.permutation(voxels.shape[along]) + 1
        for z in range(voxels.shape[along]):
            there = affine.copy()
            there[:3, 3] += z * affine[:3, along]
            part = np.take(voxels, [z], along)
            if way["layout"] == "slices":
                save(f"p1/sax_{number[z]}", part, there)
                continue
            for t in range(reference.n_frames):
                save(f"p1/sax_{number[z]}_frame{t:02d}", part[..., t], there)
    if way["mask"] == "none":
        reference.masks = {}
    else:
        store_masks(root, way, reference, images, affine)
    return reference


def store_masks(
    root: Path, way: dict, reference: Reference, images: list[Path], affine: np.ndarray
) -> None:
    """Write the masks beside the images of `images`, whose affine is given."""
    shape = reference.voxels.shape
    whole = np.zeros(shape, np.uint8)
    for t, mask in reference.masks.items():
        whole[..., t] = mask
    stored, _ = rearranged(whole, reference.affine, way["axes"], way["flips"])
    beside = root / "p1" if (root / "p1").is_dir() else root
    files = {
        t: beside / f"p1_frame{t:02d}_gt{way['ending']}" if way["layout"] != "frames"
        else beside / f"{images[t].name.removesuffix('.gz').removesuffix('.nii')}_gt{way['ending']}"
        for t in reference.masks
    }  # fmt: skip
    if way["mask_4d"] and way["layout"] != "frames":
        files = {None: beside / f"p1_gt{way['ending']}"}
    for t, file in files.items():
        mask = stored if t is None else stored[..., t]
        if way["mask"] == "itk":
            one_grid = way["layout"] in ("file", "frames")
            grid = itk_grid(images[0]) if one_grid else itk_grid_at(affine, stored.shape[:3])
            save_itk_mask(file, mask, grid, way["mask_dtype"])
        elif way["mask"] == "affine" or way["layout"] in ("slices", "both"):
            whole_grid = way["layout"] in ("file", "frames")
            its_affine = nibabel.load(images[0]).affine if whole_grid else affine
            if way["mask_turned"]:
                mask, its_affine = rearranged(mask, its_affine, [2, 0, 1], [False, True, False])
            save_mask(file, mask, its_affine, way["mask_dtype"])
        else:
            save_mask_like(file, mask, images[0], way["mask_dtype"])


@settings(many, max_examples=120)
@given(way=nifti_cines())
def test_any_nifti(way: dict):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        reference = store_nifti(root, way)
        cine = read_one(root)
        if way["header"].sform or way["header"].qform:
            assert_near_any(cine, reference, root, way)
        else:
            assert_same_without_place(cine, reference)


def assert_near_any(cine: Cine, reference: Reference, root: Path, way: dict) -> None:
    """Compare at the places of the qform or of the sform, which differ by the rounding to float32."""
    affines = [reference.affine]
    header = way["header"]
    # The qform is taken where both differ by more than rounding to float32 and the sform is not the scanner's.
    by_sform = header.sform and (header.sform == SCANNER or not header.qform)
    near = NEAR if way["layout"] in ("file", "frames") or by_sform else NEAR_QFORMS_OF_SLICES
    if way["layout"] in ("file", "frames"):
        image = min(file for file in root.rglob("*.nii*") if "_gt" not in file.name)
        affines = stored_affines(image)
        if way["header"].unit_scales:  # the sform has directions alone
            affines[1][:3, :3] *= np.linalg.norm(affines[0][:3, :3], axis=0)
        # Back from the axes of the file to those of the reference.
        shape = tuple(reference.voxels.shape[axis] for axis in way["axes"])
        back = [way["axes"].index(axis) for axis in range(3)]
        flips = [way["flips"][axis] for axis in back]
        affines = [rearranged(np.empty(shape), affine, back, flips)[1] for affine in affines]
    failures = []
    for affine in affines:
        try:
            return assert_converted(cine, replace(reference, affine=affine), near=near)
        except AssertionError as error:
            failures.append(error)
    raise failures[0]


def assert_same_without_place(cine: Cine, reference: Reference) -> None:
    """Compare voxels and spacing where the header tells neither direction nor place."""
    spacing = np.linalg.norm(cine.affine[:3, :3], axis=0)
    expected = np.linalg.norm(reference.affine[:3, :3], axis=0)
    found = np.stack([cine.frames[t] for t in range(reference.n_frames)], -1)
    for turned, flips in itertools.product([(0, 1, 2), (1, 0, 2)], itertools.product([0, 1], repeat=3)):  # fmt: skip
        axes = [axis for axis in range(3) if flips[axis]]
        wanted = np.flip(reference.voxels.transpose(*turned, 3), axes)
        if found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-6):
            np.testing.assert_allclose(spacing, expected[list(turned)], atol=NEAR)
            assert cine.labels.keys() == reference.masks.keys()
            for t, mask in reference.masks.items():
                np.testing.assert_array_equal(
                    cine.labels[t], np.flip(mask.transpose(*turned), axes)
                )
            return
    raise AssertionError(f"other voxels, shape {found.shape}")


# -- any DICOM -------------------------------------------------------------------------------------


@st.composite
def dicom_kinds(draw: st.DrawFn) -> Dicom:
    form = draw(
        st.sampled_from(["classic", "classic", "enhanced", "enhanced-slices", "enhanced-frames"])
    )
    clocks = ["trigger", "temporal", "number" if form == "classic" else "dimension"]
    clock = draw(st.sampled_from(clocks))
    signed = draw(st.booleans())
    slope, intercept = draw(st.sampled_from([(1.0, 0.0), (1.0, -500.0), (0.25, 0.0), (2.5, 10.0)]))
    # Frames that only their number orders need the series that it counts in.
    uids = ["one"] if clock == "number" else ["one", "slice", "frame", "file"]
    if form != "classic":  # a file has one UID of each
        uids = ["one", "file"]
    start = draw(st.sampled_from(["preamble", "preamble", "none", "bare"]))
    # Without group 2 nothing tells a transfer syntax but the bytes themselves.
    syntaxes = ["explicit", "implicit"] + ([] if start == "bare" else ["big", "rle"])
    return Dicom(
        form=form,
        syntax=draw(st.sampled_from(syntaxes)),
        start=start,
        monochrome1=not signed and draw(st.booleans()),
        bits=draw(st.sampled_from([12, 16])),
        signed=signed,
        slope=slope,
        intercept=intercept,
        clock=clock,
        study_uid=draw(st.sampled_from(uids)),
        series_uid=draw(st.sampled_from(uids)),
        names=draw(st.sampled_from(["plain", "dcm", "deep"])),
    )


def heart_directions(rng: np.random.Generator) -> np.ndarray:
    """Row, column and normal of a short axis within 40 degrees of the usual one, RAS+."""
    normal = np.asarray(TOWARDS_APEX) * rng.choice([-1, 1])
    normal = normal + np.tan(np.radians(rng.uniform(0, 40))) * _across(normal, rng)
    normal /= np.linalg.norm(normal)
    row = _across(normal, rng)
    # Of slices that follow the cross product of row and column, or go against it.
    return np.column_stack([row, np.cross(normal, row), normal * rng.choice([-1, 1])])


def _across(normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    vector = np.cross(normal, rng.normal(size=3))
    return vector / np.linalg.norm(vector)


def store_dicom(root: Path, kind: Dicom, seed: int, mask: str, mask_4d: bool) -> Reference:
    """Write the study of subject p1; return the reference."""
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(10, 13))
    directions = heart_directions(rng)
    reference = random_cine(rng, directions, frames, ("int16", 1.0, 0.0))
    most = 2 ** (kind.bits - kind.signed) - 1
    shape = reference.voxels.shape
    reference.voxels = rng.integers(0, min(most, 30_000), shape) * kind.slope + kind.intercept
    save_dicom(root / "p1", reference, kind, rng)
    if mask == "none":
        reference.masks = {}
        return reference
    whole = np.zeros(shape, np.uint8)
    for t, drawn in reference.masks.items():
        whole[..., t] = drawn
    names = {t: f"p1_frame{t:02d}_gt.nii.gz" for t in reference.masks}
    for t, name in ({None: "p1_gt.nii.gz"} if mask_4d else names).items():
        content = whole if t is None else whole[..., t]
        if mask == "itk":
            grid = itk_grid_at(reference.affine, shape[:3])
            save_itk_mask(root / name, content, grid, "uint8")
        else:
            save_mask(root / name, content, reference.affine, "uint8")
    return reference


@settings(many, max_examples=40)
@given(
    kind=dicom_kinds(),
    seed=st.integers(0, 2**32 - 1),
    mask=st.sampled_from(["none", "itk", "nibabel"]),
    mask_4d=st.booleans(),
)
def test_any_dicom(kind: Dicom, seed: int, mask: str, mask_4d: bool):
    with tempfile.TemporaryDirectory() as folder:
        reference = store_dicom(Path(folder), kind, seed, mask, mask_4d)
        assert_converted(read_one(Path(folder)), reference, inverted=kind.monochrome1)


# -- the whole command -----------------------------------------------------------------------------


@settings(many, max_examples=8, phases=[Phase.explicit, Phase.generate])  # shrinking takes long
@given(way=nifti_cines(), kind=dicom_kinds(), seed=st.integers(0, 2**32 - 1))
def test_nibabel_and_simpleitk_read_the_same_places_in_what_was_written(
    way: dict, kind: Dicom, seed: int
):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        first = store_nifti(root / "one", way)
        store_dicom(root / "two", kind, seed, "itk", mask_4d=False)
        cines = {"p1": read_one(root / "one"), "p2": read_one(root / "two")}
        (root / "input").mkdir()
        store_as(root / "one", "p1", root / "input")
        store_as(root / "two", "p2", root / "input")
        target = convert(root / "input", 901, workers=1, keep_ids=True)
        cases = read_cases(target / "cases.csv").values()
        assert {case.subject for case in cases} == {"p1", "p2"}
        assert len([c for c in cases if c.subject == "p1"]) == first.n_frames
        for case in cases:
            cine = cines[case.subject]
            kinds = [("imagesTr" if case.phase else "imagesUn", "_0000", cine.frames[case.frame])]
            if case.phase:
                kinds.append(("labelsTr", "", cine.labels[case.frame]))
            for place, ending, voxels in kinds:
                assert_written(target / place / f"{case.case}{ending}.nii.gz", voxels, cine.affine)


def store_as(folder: Path, subject: str, target: Path) -> None:
    """Move a subject p1 and its masks to a folder of several, under another name."""
    for entry in folder.iterdir():
        entry.rename(target / entry.name.replace("p1", subject, 1))
    for file in (target / subject).glob("p1*"):
        file.rename(file.with_name(file.name.replace("p1", subject, 1)))


def assert_written(file: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    image = nibabel.load(file)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), voxels)
    seen = sitk.ReadImage(str(file))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(seen).T, voxels)
    corners = list(itertools.product(*[(0, n - 1) for n in voxels.shape]))
    for corner in corners:
        place = affine @ [*corner, 1]
        assert np.linalg.norm(image.affine @ [*corner, 1] - place) <= NEAR
        lps = seen.TransformContinuousIndexToPhysicalPoint([float(i) for i in corner])
        assert np.linalg.norm(np.array(lps) * [-1, -1, 1] - place[:3]) <= NEAR
