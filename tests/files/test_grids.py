from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ssp.conversion.geometry import place_stack
from nnunet_ssp.files.grids import Grid
from nnunet_ssp.files.nifti import read_header, read_image, write_nifti
from tests.nifti_headers import (
    PER_MM,
    affine_of,
    affines,
    codes,
    origins,
    rotations,
    save_with,
    units,
)

VOXELS = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3)
TRUE = affine_of((0.9, 0.1, 0.2, 0.3), (1.4, 1.4, 8.0), 1)
OTHER = affine_of((0.7, -0.3, 0.2, 0.1), (1.4, 1.4, 8.0), -1, (50, 60, 70))


def as_simpleitk(file: Path) -> np.ndarray:
    """The affine that SimpleITK reads, in RAS+."""
    image = sitk.ReadImage(file)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


def unit_scales(affine: np.ndarray) -> np.ndarray:
    result = affine.copy()
    result[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    return result


def grid(tmp_path: Path, **fields: object) -> Grid:
    return read_header(save_with(tmp_path / "a.nii.gz", VOXELS, **fields))[1]


def test_what_agrees_is_taken_without_a_word(tmp_path: Path):
    for sform_code, qform_code in ((1, 1), (2, 1), (1, 0), (2, 0), (4, 0), (0, 1), (0, 3)):
        found = grid(tmp_path, sform=TRUE, qform=TRUE, sform_code=sform_code, qform_code=qform_code)
        assert found.affine == pytest.approx(TRUE, abs=1e-4)
        assert found.source == ("sform" if sform_code else "qform")
        assert found.corrections == found.notes == []


def test_acdc_as_distributed(tmp_path: Path):
    """qform and pixdim agree, while the sform has unit scales; nnU-Net's issue 2741."""
    qform, sform = np.diag([-1.4, -1.4, 10, 1]), np.diag([-1.0, -1, 1, 1])
    found = grid(tmp_path, sform=sform, qform=qform, sform_code=2, qform_code=1)
    assert found.affine == pytest.approx(qform, abs=1e-6)
    assert found.corrections == ["the spacing is that of pixdim; the sform has unit scales"]
    # The same without a qform, and with the sform in the scanner's frame.
    for codes_ in ((2, 0), (1, 1)):
        found = grid(
            tmp_path,
            sform=unit_scales(TRUE),
            qform=TRUE,
            sform_code=codes_[0],
            qform_code=codes_[1],
        )
        assert found.affine == pytest.approx(TRUE, abs=1e-4)
        assert found.source == "sform, scales of pixdim"
        assert "sform has unit scales" in found.corrections[0]


@pytest.mark.parametrize("qform_code", [0, 1])
def test_mnms2_as_distributed(tmp_path: Path, qform_code: int):
    """The sform is right, while nobody set pixdim, which a qform would share."""
    for sform_code in (1, 2):
        found = grid(
            tmp_path, sform=TRUE, qform=np.eye(4), sform_code=sform_code, qform_code=qform_code
        )
        assert found.affine == pytest.approx(TRUE, abs=1e-5)
        assert found.source == "sform"
        assert found.corrections == ["the spacing is that of the sform; pixdim has unit scales"]


def test_scales_that_are_both_possible_are_read_as_simpleitk_reads_them(tmp_path: Path):
    sform = TRUE * [2, 2, 1, 1]
    found = grid(tmp_path, sform=sform, qform=TRUE, sform_code=1, qform_code=1)
    assert found.affine == pytest.approx(as_simpleitk(tmp_path / "a.nii.gz"), abs=1e-4)
    assert found.corrections == ["the spacing is that of pixdim; the sform says 2.8 x 2.8 x 8"]


@pytest.mark.parametrize("pixdim", [(0, 0, 0), (9000, 9000, 9000), (np.nan, 1, 1), (1.4, 0.001, 8)])
def test_scales_that_no_heart_has_give_way(tmp_path: Path, pixdim: tuple[float, ...]):
    found = grid(tmp_path, sform=TRUE, pixdim=pixdim, sform_code=1)
    assert found.affine == pytest.approx(TRUE, abs=1e-5)
    found = grid(tmp_path, sform=TRUE * [1e4, 1e4, 1e4, 1], qform=TRUE, sform_code=1, qform_code=1)
    assert found.affine == pytest.approx(TRUE, abs=1e-4)


@pytest.mark.parametrize(("sform_code", "source"), [(1, "sform"), (2, "qform"), (4, "qform")])
def test_forms_in_different_places_are_read_as_simpleitk_reads_them(
    tmp_path: Path, sform_code: int, source: str
):
    found = grid(tmp_path, sform=OTHER, qform=TRUE, sform_code=sform_code, qform_code=1)
    assert found.source == source
    assert found.affine == pytest.approx(as_simpleitk(tmp_path / "a.nii.gz"), abs=1e-3)
    codes_ = f"sform (code {sform_code}) and qform (code 1)"
    assert found.notes == [f"{codes_} place the voxels differently: the {source} is taken"]


def test_without_forms_only_the_spacing_is_known(tmp_path: Path):
    found = grid(tmp_path, pixdim=(1.4, 1.4, 8))
    assert found.affine == pytest.approx(np.diag([-1.4, -1.4, 8, 1]))
    assert found.affine == pytest.approx(as_simpleitk(tmp_path / "a.nii.gz"))
    assert found.source == "pixdim"
    assert "neither sform nor qform: the spacing is pixdim's" in found.notes[0]
    with pytest.raises(ValueError, match=r"a\.nii\.gz: .*no sform, and pixdim \(=nan x 1 x 1\)"):
        grid(tmp_path, pixdim=(np.nan, 1, 1))


def test_a_broken_sform_gives_way_to_a_qform(tmp_path: Path):
    for broken in (np.zeros((4, 4)), np.full((4, 4), np.nan)):
        found = grid(tmp_path, sform=broken, qform=TRUE, sform_code=1, qform_code=1)
        assert found.affine == pytest.approx(TRUE, abs=1e-4)
        assert len(found.corrections) == 1


def test_a_quaternion_longer_than_one_is_a_half_turn(tmp_path: Path):
    file = save_with(tmp_path / "a.nii", VOXELS, qform=np.diag([-1.4, 1.4, -8, 1]), qform_code=1)
    content = bytearray(file.read_bytes())
    content[260:264] = np.float32(1.001).tobytes()  # quatern_c
    file.write_bytes(content)
    found = read_header(file)[1]
    assert found.nominal is None  # nibabel refuses it
    assert found.affine == pytest.approx(as_simpleitk(file), abs=1e-3)


@pytest.mark.parametrize(("unit", "name"), [("meter", "metres"), ("micron", "micrometres")])
def test_units_are_converted_where_that_is_sensible(tmp_path: Path, unit: str, name: str):
    scaled = TRUE.copy()
    scaled[:3] *= PER_MM[unit]
    found = grid(tmp_path, sform=scaled, qform=scaled, sform_code=1, qform_code=1, unit=unit)
    assert found.affine == pytest.approx(TRUE, abs=1e-3)
    assert (found.corrections, found.notes) == ([], [f"the header is in {name}"])
    found = grid(tmp_path, sform=TRUE, qform=TRUE, sform_code=1, qform_code=1, unit=unit)
    assert found.affine == pytest.approx(TRUE, abs=1e-4)
    assert found.corrections == [f"the header declares {name}, but its numbers are mm"]


def test_a_thick_slice_or_a_mouse_is_no_wrong_unit(tmp_path: Path):
    thick = np.diag([1.4, 1.4, 30, 1])
    found = grid(tmp_path, sform=thick, sform_code=1, unit="meter")
    assert found.affine == pytest.approx(thick, abs=1e-5)
    found = grid(tmp_path, sform=np.diag([100, 100, 1000, 1]), sform_code=1, unit="micron")
    assert found.affine == pytest.approx(np.diag([0.1, 0.1, 1, 1]))


@pytest.mark.parametrize("factor", [0.001, 0.1, 4, 1000])
def test_an_implausible_spacing_is_spoken_of(tmp_path: Path, factor: float):
    found = grid(tmp_path, sform=np.diag([1.4, 1.4, 8, 1 / factor]) * factor, sform_code=1)
    assert len(found.notes) == 1 and "mm is implausible for a heart" in found.notes[0]


@pytest.mark.parametrize("sform_code", [0, 1])
def test_an_identity_is_spoken_of(tmp_path: Path, sform_code: int):
    found = grid(tmp_path, sform=np.eye(4), sform_code=sform_code)
    assert "the affine is the identity" in found.notes[-1]


@given(affine=affines, sform_code=codes, qform_code=codes, unit=units)
@settings(max_examples=100, deadline=None)
def test_consistent_headers_are_read_as_simpleitk_reads_them(
    affine: np.ndarray, sform_code: int, qform_code: int, unit: str
):
    affine = affine.copy()
    affine[:3] *= PER_MM[unit]
    with tempfile.TemporaryDirectory() as folder:
        file = save_with(
            Path(folder) / "a.nii",
            VOXELS,
            sform=affine,
            qform=affine,
            sform_code=sform_code,
            qform_code=qform_code,
            unit=unit,
        )
        found = read_header(file)[1]
        assert found.affine == pytest.approx(as_simpleitk(file), abs=1e-3)
        assert found.corrections == []


scales = st.tuples(*[st.sampled_from([0.05, 1.0, 1.0, 1.4, 3.0, 8.0, 30.0])] * 3)
forms = st.builds(affine_of, rotations, scales, st.sampled_from([1, -1]), origins)
noise = st.lists(st.floats(-0.02, 0.02), min_size=9, max_size=9)


@given(forms, forms, st.booleans(), scales, st.booleans(), noise, codes, codes, units)
@settings(max_examples=200, deadline=None)
def test_written_files_are_read_alike_whatever_came_in(
    sform, qform, same, pixdim, own_pixdim, noise, sform_code, qform_code, unit
):
    """Every tool reads the same place from written files, and the voxels move with it."""
    sform = sform.copy()
    if same:
        qform = sform.copy()
    sform[:3, :3] *= 1 + np.reshape(noise, (3, 3))
    with tempfile.TemporaryDirectory() as folder:
        file = save_with(
            Path(folder) / "a.nii",
            VOXELS,
            sform=sform,
            qform=qform,
            pixdim=pixdim if own_pixdim else None,
            sform_code=sform_code,
            qform_code=qform_code,
            unit=unit,
        )
        image = read_image(file)
        place = place_stack(image.grid, VOXELS.shape, file)
        written = Path(folder) / "b.nii.gz"
        write_nifti(written, place.move(image.voxels), place.affine)
        ours = nibabel.load(written)
        assert ours.affine == pytest.approx(as_simpleitk(written), abs=1e-4, rel=1e-5)
        assert ours.affine == pytest.approx(place.affine, abs=1e-4, rel=1e-5)
        assert ours.header.get_zooms() == pytest.approx(
            np.linalg.norm(place.affine[:3, :3], axis=0)
        )
        # Each voxel is where it was before its axes were exchanged and made orthogonal.
        corner = place.affine[:3, 3] == pytest.approx(image.grid.affine[:3, 3])
        assert corner and np.sign(np.linalg.det(place.affine)) == np.sign(
            np.linalg.det(image.grid.affine)
        )


def test_a_size_has_no_exponent(tmp_path: Path):
    found = grid(tmp_path, sform=np.diag([1367.188, 1367.188, 10000, 1]), sform_code=1)
    assert "a spacing of 1367 x 1367 x 10000 mm" in found.notes[0]


def test_an_edge_of_0_mm_is_no_spacing(tmp_path: Path):
    """nibabel and SimpleITK make 1 mm of it."""
    file = save_with(tmp_path / "a.nii", VOXELS, sform=TRUE, qform=TRUE, sform_code=1, qform_code=1)
    content = bytearray(file.read_bytes())
    content[88:92] = bytes(4)  # pixdim[3]
    file.write_bytes(content)
    found = read_header(file)[1]
    assert found.affine == pytest.approx(TRUE, abs=1e-4)
    assert found.source == "sform"
    assert found.corrections == ["the spacing is that of the sform; pixdim says 1.4 x 1.4 x 0"]
    content[254:256] = bytes(2)  # sform_code
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a\.nii: .*no sform, and pixdim \(=1.4 x 1.4 x 0\) is no"
    ):
        read_header(file)


def test_an_axis_of_one_voxel_needs_no_edge(tmp_path: Path):
    file = save_with(tmp_path / "a.nii", VOXELS[..., :1], qform=TRUE, qform_code=1)
    content = bytearray(file.read_bytes())
    content[88:92] = bytes(4)
    file.write_bytes(content)
    found = read_header(file)[1]
    assert np.linalg.norm(found.affine[:3, :3], axis=0) == pytest.approx([1.4, 1.4, 1])
