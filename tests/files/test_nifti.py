from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nnunet_ssp.files.nifti import (
    as_cine,
    as_frame,
    check_cine,
    each_frame,
    has_packed_copy,
    integer_labels,
    read_header,
    read_nifti,
    unpacked_copies,
    with_ending,
    write_nifti,
)

FILE = Path("x.nii.gz")


def test_shapes_are_read_from_the_header_alone(tmp_path: Path):
    file = tmp_path / "a.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 999, (20, 20, 5, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)
    file.write_bytes(file.read_bytes()[:2000])
    assert read_header(file)[0] == (20, 20, 5, 3)
    with pytest.raises(ValueError, match=r"b\.nii\.gz: the file is missing"):
        read_header(tmp_path / "b.nii.gz")
    file.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"a\.nii\.gz: not a complete NIfTI"):
        read_header(file)


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "uint16", "int64", "float32", "float64"])
def test_voxels_survive_the_file(tmp_path: Path, dtype: str):
    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    source, copy = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4), dtype=voxels.dtype), source)
    read, affine = read_nifti(source)
    assert read.dtype == (np.float32 if "f" in dtype else np.dtype(dtype).newbyteorder("="))
    write_nifti(copy, read, affine)
    assert sitk.GetArrayFromImage(sitk.ReadImage(copy)).T.tolist() == voxels.tolist()


def test_scaled_integers_become_their_real_values(tmp_path: Path):
    image = nibabel.Nifti1Image(np.array([[[0.0, 0.5, 100.0]]]), np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    voxels, _ = read_nifti(tmp_path / "a.nii.gz")
    assert voxels.dtype == np.float32
    assert voxels.ravel().tolist() == pytest.approx([0, 0.5, 100], abs=0.01)


def test_broken_files_are_named(tmp_path: Path):
    file = tmp_path / "a.nii.gz"
    with pytest.raises(ValueError, match=r"a\.nii\.gz: the file is missing"):
        read_nifti(file)
    voxels = np.random.default_rng(0).integers(0, 999, (20, 20, 5, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"no gzip at all" * 50):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.nii\.gz: not a complete NIfTI file"):
            read_nifti(file)
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.complex64), np.eye(4)), file)
    with pytest.raises(ValueError, match=r"voxels \(=complex64\) must be integers or real"):
        read_nifti(file)


def test_what_is_no_cine_is_refused():
    voxels = np.arange(2 * 2 * 2 * 3, dtype=np.float32).reshape(2, 2, 2, 3)
    check_cine(voxels, FILE)
    with pytest.raises(ValueError, match=r"x.nii.gz: shape \(=\(2, 2, 2\)\) must have 4 axes"):
        check_cine(voxels[..., 0], FILE)
    with pytest.raises(ValueError, match=r"x.nii.gz: frame 1 constant"):
        check_cine(np.where(np.arange(3) == 1, 7, voxels), FILE)
    with pytest.raises(ValueError, match=r"x.nii.gz: all frames constant"):
        check_cine(np.zeros((2, 2, 2, 3)), FILE)
    voxels[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"x.nii.gz: holds NaN or infinite values"):
        check_cine(voxels, FILE)


def test_masks_become_integers():
    mask = integer_labels(np.array([0.0, 1.0004, 2.9996]), FILE, range(4))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [0, 1, 3]
    for bad in (0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"x.nii.gz: mask values must be whole numbers"):
            integer_labels(np.array([0, bad]), FILE, range(4))
    with pytest.raises(ValueError, match=r"mask values \(=-1, 4\) must be among \[0, 1, 2, 3\]"):
        integer_labels(np.array([0, 4, -1]), FILE, range(4))


def test_a_value_between_classes_is_no_class():
    assert integer_labels(np.array([0, 3], np.int16), FILE, (0, 3)).tolist() == [0, 3]
    with pytest.raises(ValueError, match=r"mask values \(=1\) must be among \[0, 3\]"):
        integer_labels(np.array([0, 1, 3], np.uint8), FILE, (0, 3))
    assert integer_labels(np.zeros((0, 2), np.uint8), FILE, (0,)).shape == (0, 2)


# -- damaged and odd files -------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).integers(0, 999, (20, 18, 5, 3)).astype(np.int16)
    file = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 8, 1])), file)
    return file


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_flipped_bit_is_refused_or_harmless(whole: Path, place: float, bit: int):
    right, _ = read_nifti(whole)
    content = bytearray(whole.read_bytes())
    position = int(place * len(content))
    content[position] ^= 1 << bit
    file = whole.with_name("b.nii.gz")
    file.write_bytes(content)
    try:
        voxels, _ = read_nifti(file)
    except ValueError as error:
        assert "b.nii.gz: not a complete NIfTI file (" in str(error)
    else:
        # In gzip's header, or in the code of a byte that the file has not.
        assert np.array_equal(voxels, right)


@given(place=st.floats(0, 1, exclude_max=True))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(place=0.999999)
def test_a_truncated_file_is_refused(whole: Path, place: float):
    for name in ("b.nii.gz", "b.nii"):
        content = whole.read_bytes() if name.endswith("gz") else gzip.decompress(whole.read_bytes())
        file = whole.with_name(name)
        file.write_bytes(content[: int(place * len(content))])
        with pytest.raises(ValueError, match=r"b\.nii(\.gz)?: not a complete NIfTI file"):
            read_nifti(file)


def test_gzip_in_parts_and_with_padding_is_whole(whole: Path):
    right, _ = read_nifti(whole)
    content = gzip.decompress(whole.read_bytes())
    parts = [gzip.compress(content[start : start + 1000]) for start in range(0, len(content), 1000)]
    whole.write_bytes(b"".join(parts) + bytes(512))
    assert np.array_equal(read_nifti(whole)[0], right)
    whole.write_bytes(b"".join(parts) + b"something else")
    with pytest.raises(ValueError, match=r"a\.nii\.gz: not a complete NIfTI file \(Not a gzipped"):
        read_nifti(whole)


@pytest.mark.parametrize(("name", "packed"), [("b.nii.gz", False), ("b.nii", True)])
def test_the_content_tells_whether_a_file_is_compressed(whole: Path, name: str, packed: bool):
    right, _ = read_nifti(whole)
    content = gzip.decompress(whole.read_bytes())
    whole.with_name(name).write_bytes(gzip.compress(content) if packed else content)
    assert np.array_equal(read_nifti(whole.with_name(name))[0], right)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("frames", [4, 30000])
def test_a_header_that_declares_too_much_is_refused(whole: Path, packed: bool, frames: int):
    content = bytearray(gzip.decompress(whole.read_bytes()))
    content[48:50] = frames.to_bytes(2, "little")  # dim[4]
    content[46:48] = (5 if frames == 4 else 30000).to_bytes(2, "little")  # dim[3]
    whole.write_bytes(gzip.compress(content) if packed else content)
    rule = r"a\.nii\.gz: not a complete NIfTI file \(its header declares \d+ bytes of voxels"
    with pytest.raises(ValueError, match=rule):
        read_nifti(whole)


@pytest.mark.parametrize("offset", [0, 100, -8])
def test_voxels_do_not_begin_within_the_header(whole: Path, offset: int):
    """nibabel reads the header as voxels where the offset is 0, SimpleITK the extension after it."""
    content = bytearray(gzip.decompress(whole.read_bytes()))
    content[108:112] = np.float32(offset).tobytes()
    whole.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a\.nii\.gz: not a complete NIfTI file \(.*offset|begin at byte"
    ):
        read_nifti(whole)


def test_no_memory_is_an_error_in_words(whole: Path, monkeypatch: pytest.MonkeyPatch):
    def empty(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", empty)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: its voxels need more memory than there is"):
        read_nifti(whole)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a git-lfs pointer"),
        (b"<html>" * 200, "it has no NIfTI header"),
        (b"", "it has no NIfTI header"),
        ((348).to_bytes(4, "little") + bytes(400), "data code 0 not supported"),
    ],
)
def test_what_is_no_nifti_is_named(tmp_path: Path, content: bytes, reason: str):
    file = tmp_path / "a.nii.gz"
    file.write_bytes(content)
    for read in (read_nifti, read_header):
        with pytest.raises(
            ValueError, match=rf"a\.nii\.gz: not a complete NIfTI file \(.*{reason}"
        ):
            read(file)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", ">f4"])
def test_voxels_are_those_that_nibabel_reads(tmp_path: Path, kind: type, dtype: str):
    header = kind.header_class(endianness=dtype[0])
    header.set_data_dtype(dtype)
    voxels = np.random.default_rng(0).normal(50, 20, (4, 5, 3, 2))
    image = kind(voxels, np.diag([1.5, 1.5, 8, 1]), header)
    nibabel.save(image, tmp_path / "a.nii.gz")
    read, affine = read_nifti(tmp_path / "a.nii.gz")
    expected = nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(read, np.asanyarray(expected.dataobj).astype(np.float32))
    assert np.allclose(affine, expected.affine)


# -- axes of length 1, and endings -----------------------------------------------------------------


def test_axes_of_length_one_are_dropped():
    shapes = {
        (4, 3, 2): ((4, 3, 2), (4, 3, 2)),
        (4, 3, 2, 1): ((4, 3, 2), (4, 3, 2, 1)),
        (4, 3, 2, 1, 1): ((4, 3, 2), (4, 3, 2, 1)),
        (4, 3, 1, 5): ((4, 3, 1, 5), (4, 3, 1, 5)),
        (4, 3, 2, 1, 5): ((4, 3, 2, 5), (4, 3, 2, 5)),
        (4, 3, 2, 5, 1, 1): ((4, 3, 2, 5), (4, 3, 2, 5)),
        (4, 3, 2, 5, 2): ((4, 3, 2, 5, 2), (4, 3, 2, 5, 2)),
    }
    for shape, (frame, cine) in shapes.items():
        voxels = np.arange(np.prod(shape)).reshape(shape)
        assert as_frame(voxels).shape == frame
        assert as_cine(voxels).shape == cine
        assert as_cine(voxels).ravel().tolist() == voxels.ravel().tolist()


def test_the_packed_file_is_taken_and_the_other_spoken_of(tmp_path: Path):
    packed, unpacked = tmp_path / "a.nii.gz", tmp_path / "a.nii"
    assert with_ending(packed) == packed
    unpacked.touch()
    assert with_ending(packed) == unpacked
    assert not has_packed_copy(unpacked)
    assert unpacked_copies([unpacked]) == []
    packed.touch()
    assert with_ending(packed) == packed
    assert has_packed_copy(unpacked) and not has_packed_copy(packed)
    assert unpacked_copies([packed]) == ["left out a.nii: .nii.gz is there, too"]
    assert "a.nii and 1 more" in unpacked_copies([packed, packed])[0]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"a\.nii\.gz: .*no regular file"):
        read_nifti(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("value", "said"), [(9e32, "9e\\+32"), (1e-9, "1e-09")])
def test_intensities_that_no_image_has(tmp_path, value, said):
    voxels = np.zeros((3, 3, 2, 2), np.float32)
    voxels[0] = value
    with pytest.raises(ValueError, match=rf"a\.nii: the largest value \(={said}\) must be within"):
        check_cine(voxels, tmp_path / "a.nii")


def test_frames_are_read_one_by_one(tmp_path: Path):
    voxels = np.random.default_rng(0).integers(0, 900, (6, 5, 4, 3)).astype(np.int16)
    write_nifti(tmp_path / "a.nii.gz", voxels, np.eye(4))
    frames = list(each_frame(tmp_path / "a.nii.gz"))
    assert np.array_equal(np.stack(frames, axis=-1), voxels)
