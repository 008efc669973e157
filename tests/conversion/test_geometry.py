from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ssp.conversion.geometry import (
    base_of_stack,
    clean_affine,
    compare_grids,
    place_stack,
    same_grid,
    slice_axis,
)
from nnunet_ssp.files.grids import Grid
from nnunet_ssp.files.nifti import read_image, read_nifti, write_nifti
from tests.nifti_headers import affine_of, affines, rotations, save_with

FILE = Path("x.nii.gz")


@given(
    rotations,
    st.tuples(*[st.floats(0.5, 10)] * 3),
    st.sampled_from([1, -1]),
    st.lists(st.floats(-0.05, 0.05), min_size=9, max_size=9),
)
def test_clean_affines_are_orthogonal_and_near(quaternion, spacing, flip, noise):
    affine = affine_of(quaternion, spacing, flip)
    assert clean_affine(affine, FILE)[0] == pytest.approx(affine, abs=1e-6)
    sheared = affine.copy()
    sheared[:3, :3] *= 1 + np.reshape(noise, (3, 3))
    clean, turned = clean_affine(sheared, FILE)
    norms = np.linalg.norm(sheared[:3, :3], axis=0)
    assert clean[:3, :3].T @ clean[:3, :3] == pytest.approx(np.diag(norms**2), abs=1e-6)
    assert np.sign(np.linalg.det(clean)) == flip
    assert clean[:3, 3].tolist() == [10, -20, 30]
    assert turned < 5


def test_simpleitk_reads_what_it_refused(tmp_path: Path):
    affine = np.diag([1.5, 1.5, 8, 1])
    affine[1, 0] = 0.02
    file = tmp_path / "a.nii.gz"
    image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.int16), affine)
    image.set_qform(None, code=0)
    nibabel.save(image, file)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(file)
    voxels, read = read_nifti(file)
    clean, turned = clean_affine(read, file)
    assert 0.1 < turned < 1
    write_nifti(file, voxels, clean)
    assert sitk.ReadImage(file).GetSpacing() == pytest.approx((1.5, 1.5, 8), abs=1e-3)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_an_affine_that_spans_nothing_is_refused(value: float):
    with pytest.raises(ValueError, match=r"x.nii.gz: the affine must have three axes"):
        clean_affine(np.diag([1.0, 1.0, value, 1.0]), FILE)


@pytest.mark.parametrize(
    ("normal", "base"),
    [
        ((-1, 1, -1), "first"),  # towards left, front and feet: from base to apex
        ((-0.5, 0.6, -0.7), "first"),
        ((1, -1, 1), "last"),
        ((0.73, -0.67, 0.2), "last"),  # as in a real, rather horizontal heart
        ((0, 0, 1), "unknown"),  # nominal, like ACDC's
        ((0, 0, -1), "unknown"),
        ((1, 1, 0), "unknown"),
    ],
)
def test_the_affine_tells_the_base(normal: tuple[float, ...], base: str):
    affine = np.diag([1.5, 1.5, 1, 1])
    affine[:3, 2] = 8 * np.array(normal)
    assert base_of_stack(affine) == base


# -- the axis of the slices ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "shape", "axis", "sure"),
    [
        ((1.4, 1.4, 8), (60, 64, 7), 2, True),
        ((8, 1.4, 1.4), (7, 60, 64), 0, True),
        ((1.4, 8, 1.4), (60, 7, 64), 1, True),
        ((1.4, 8, 1.9), (6, 7, 7), 1, True),  # a cut-out with as many slices as rows
        ((1.5, 1.5, 2), (160, 160, 60), 2, True),
        ((2, 1.5, 1.5), (30, 160, 160), 0, True),
        ((1.4, 1.4, 1), (256, 256, 12), 2, True),  # slices thinner than pixels
        ((1.5, 1.5, 1.5), (160, 160, 50), 2, True),
        ((1.5, 1.5, 1.5), (160, 160, 160), 2, False),
        ((1, 1, 1), (12, 256, 256), 2, False),  # the shape alone is no evidence
        ((8, 1.4, 1.4), (256, 200, 12), 2, True),  # nor is a spacing that the shape contradicts
        ((1.4, 1.4, 1.4), (1, 60, 64), 0, True),
        ((8, 1.4, 1.4), (60, 64, 1), 2, True),
    ],
)
def test_spacing_and_shape_show_the_axis_of_the_slices(
    spacing: tuple[float, ...], shape: tuple[int, ...], axis: int, sure: bool
):
    found, notes = slice_axis(spacing, (*shape, 12))
    assert found == axis
    assert bool(notes) != sure


@given(affines, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_a_stack_turned_in_any_way_is_put_upright(affine, order, backwards):
    """Its slices become planes of the third axis, in the same places and with the same handedness."""
    voxels = np.arange(7 * 6 * 4 * 2).reshape(7, 6, 4, 2)
    signs = np.where(backwards, -1, 1)
    axes = np.column_stack([order, signs]).astype(float)
    turned = nibabel.orientations.apply_orientation(voxels, axes)
    its_affine = affine @ nibabel.orientations.inv_ornt_aff(axes, voxels.shape[:3])
    place = place_stack(grid_of(its_affine), turned.shape, FILE)
    moved = place.move(turned)
    assert moved.shape[2] == 4
    assert np.sign(np.linalg.det(place.affine)) == np.sign(np.linalg.det(its_affine))
    assert bool(place.corrections) == (turned.shape[2] != 4)
    for index in ((0, 0, 0), (6, 0, 3), (2, 5, 1)):
        there = np.linalg.inv(place.affine) @ affine @ (*index, 1)
        assert moved[tuple(np.rint(there[:3]).astype(int))].tolist() == voxels[index].tolist()


def grid_of(affine: np.ndarray) -> Grid:
    return Grid(affine, "sform", affine)


# -- equal grids -----------------------------------------------------------------------------------

VOXELS = np.ones((5, 4, 3), np.uint8)
TRUE = affine_of((0.9, 0.1, 0.2, 0.3), (1.4, 1.4, 8.0), 1)
OTHER = affine_of((0.7, -0.3, 0.2, 0.1), (1.4, 1.4, 8.0), -1, (50, 60, 70))


@pytest.mark.parametrize("unit", ["unknown", "meter", "micron"])
@pytest.mark.parametrize("sform_code", range(5))
@pytest.mark.parametrize("qform_code", range(3))
def test_a_mask_drawn_with_any_tool_is_on_the_grid_of_its_image(
    tmp_path: Path, sform_code: int, qform_code: int, unit: str
):
    factor = {"unknown": 1, "meter": 1e-3, "micron": 1e3}[unit]
    sform, qform = (np.diag([factor, factor, factor, 1]) @ affine for affine in (OTHER, TRUE))
    file = save_with(
        tmp_path / "a.nii.gz",
        VOXELS,
        sform=sform,
        qform=qform,
        sform_code=sform_code,
        qform_code=qform_code,
        unit=unit,
    )
    image = read_image(file)
    with_simpleitk = sitk.ReadImage(file)
    sitk.WriteImage(with_simpleitk, tmp_path / "b.nii.gz")
    with_nibabel = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(VOXELS, with_nibabel.affine), tmp_path / "c.nii.gz")
    nibabel.save(nibabel.Nifti1Image(VOXELS, None, with_nibabel.header), tmp_path / "d.nii.gz")
    for name in "bcd":
        mask = read_image(tmp_path / f"{name}.nii.gz")
        assert same_grid(mask, image), name
        assert compare_grids(mask, image) == []


@pytest.mark.parametrize("unit", ["mm", "meter", "micron"])
def test_grids_apart_differ_in_any_unit(tmp_path: Path, unit: str):
    factor = {"mm": 1, "meter": 1e-3, "micron": 1e3}[unit]
    images = []
    for number, moved in enumerate((0, 0.5, 1.0)):  # mm, of 1.4
        affine = TRUE.copy()
        affine[0, 3] += moved
        affine[:3] *= factor
        file = tmp_path / f"{number}.nii"
        images.append(read_image(save_with(file, VOXELS, sform=affine, sform_code=1, unit=unit)))
    assert [same_grid(images[0], image) for image in images] == [True, True, False]


def test_grids_of_other_shape_or_place_differ(tmp_path: Path):
    image = read_image(save_with(tmp_path / "a.nii", VOXELS, sform=TRUE, sform_code=1))
    moved = TRUE.copy()
    moved[:3, 3] += 1
    for voxels, affine in ((VOXELS[1:], TRUE), (VOXELS, moved), (VOXELS, OTHER)):
        other = read_image(save_with(tmp_path / "b.nii", voxels, sform=affine, sform_code=1))
        assert not same_grid(other, image)
        if affine is not TRUE:
            assert "affines of image and mask differ" in compare_grids(other, image)[0]
    sheared = TRUE * [[1, 1.1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]  # SimpleITK refuses
    other = read_image(
        save_with(tmp_path / "b.nii", VOXELS, sform=sheared + moved - TRUE, sform_code=1)
    )
    assert not same_grid(other, image)
    assert sitk.ProcessObject.GetGlobalWarningDisplay()
