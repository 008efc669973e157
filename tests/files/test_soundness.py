from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_ssp.files.soundness import check_sound, is_lfs_pointer

VOXELS = np.random.default_rng(0).integers(1, 1000, (24, 20, 5)).astype(np.int16)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def write(file: Path, voxels: np.ndarray = VOXELS) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.4, 1.4, 8, 1])), file)
    return file


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_a_sound_file(tmp_path: Path, ending: str, dtype: type):
    check_sound(write(tmp_path / f"a{ending}", VOXELS.astype(dtype)))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_truncated_files(tmp_path: Path, ending: str, share: float):
    file = write(tmp_path / f"a{ending}")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"a{ending}: not a complete NIfTI file"):
        check_sound(file)


def compressed(file: Path) -> Path:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS), str(file), useCompression=True)
    return file


def as_bzip2(file: Path) -> None:
    """A NRRD as teem writes it, which SimpleITK cannot."""
    head, _, voxels = file.read_bytes().partition(b"\n\n")
    head = head.replace(b"encoding: gzip", b"encoding: bzip2")
    file.write_bytes(head + b"\n\n" + bz2.compress(gzip.decompress(voxels)))


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".bz2.nrrd"])
def test_a_wrong_bit_of_a_compressed_file_is_seen(tmp_path: Path, ending: str):
    file = compressed(tmp_path / f"a{ending}")
    if "bz2" in ending:
        as_bzip2(file)
    check_sound(file)
    content = file.read_bytes()
    assert len(content) < VOXELS.nbytes
    head = len(content) - len(content) * 9 // 10
    for n in range(24):
        damaged = bytearray(content)
        damaged[head + n * (len(content) - head) // 24] ^= 1 << n % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="the compressed file is truncated or damaged"):
            check_sound(file)
    for share in (0.3, 0.98):
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match="the compressed file is truncated or damaged"):
            check_sound(file)


@pytest.mark.parametrize("content", [b"", b"NRRD0004\n", b"\n" * 99, b"a" * 10**6, b"a: b\n" * 9])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_header_of_any_text_is_left_to_the_reader(tmp_path: Path, ending: str, content: bytes):
    (tmp_path / f"a{ending}").write_bytes(content)
    check_sound(tmp_path / f"a{ending}")


def test_a_header_whose_voxels_are_elsewhere_is_left_to_the_reader(tmp_path: Path):
    for name, text in (
        ("a.nrrd", "NRRD0004\nencoding: gzip\ndata file: b.raw.gz\n\n"),
        ("a.mha", "CompressedData = True\nElementDataFile = b.zraw\n"),
    ):
        (tmp_path / name).write_text(text)
        check_sound(tmp_path / name)


def test_a_truncated_file_that_was_compressed_afterwards(tmp_path: Path):
    content = write(tmp_path / "a.nii").read_bytes()
    file = tmp_path / "b.nii.gz"
    file.write_bytes(gzip.compress(content[:3000]))
    with pytest.raises(ValueError, match=r"b.nii.gz: not a complete NIfTI file"):
        check_sound(file)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_more_frames_declared_than_held(tmp_path: Path, ending: str):
    content = bytearray(write(tmp_path / "x.nii").read_bytes())
    content[40:50] = np.array([4, 24, 20, 5, 30_000], np.int16).tobytes()
    file = tmp_path / f"a{ending}"
    file.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    with pytest.raises(
        ValueError,
        match=r"declares 144000000 bytes of voxels, (more than it can hold|it holds 4800)",
    ):
        check_sound(file)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
def test_both_versions_and_byte_orders(tmp_path: Path, kind: type, order: str):
    for value, message in ((1.0, ""), (np.nan, "holds NaN")):
        voxels = VOXELS.astype(f"{order}f4")
        voxels[-1, -1, -1] = value
        header = kind.header_class(endianness=order)
        header.set_data_dtype(f"{order}f4")
        nibabel.save(kind(voxels, np.eye(4), header), tmp_path / "a.nii.gz")
        if message:
            with pytest.raises(ValueError, match=message):
                check_sound(tmp_path / "a.nii.gz")
        else:
            check_sound(tmp_path / "a.nii.gz")


def test_colours_and_files_that_are_no_nifti(tmp_path: Path):
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(ValueError, match=r"c.nii: voxels \(=.*\) must be integers or real numbers"):
        check_sound(tmp_path / "c.nii")
    for content in (b"", b"no image" * 99):
        (tmp_path / "n.nii").write_bytes(content)
        with pytest.raises(ValueError, match=r"n.nii: not a complete NIfTI file \(it has no NIfTI"):
            check_sound(tmp_path / "n.nii")


def test_any_flipped_bit_is_seen(tmp_path: Path):
    file = write(tmp_path / "a.nii.gz")
    content = file.read_bytes()
    for place in np.linspace(10, len(content) - 1, 40).astype(int):
        flipped = bytearray(content)
        flipped[place] ^= 4
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"a.nii.gz: not a complete NIfTI file"):
            check_sound(file)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_no_numbers(tmp_path: Path, value: float, dtype: type):
    voxels = VOXELS.astype(dtype)
    voxels[3, 4, 1] = value
    file = write(tmp_path / "a.nii.gz", voxels)
    read = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
    assert read[1, 4, 3] == 0  # which nobody sees
    with pytest.raises(ValueError, match=r"a.nii.gz: holds NaN or infinite values"):
        check_sound(file)


@pytest.mark.parametrize(("edge", "listed"), [(0, "0 x 1.4 x 8"), (np.nan, "nan x 1.4 x 8")])
def test_a_voxel_edge_that_is_none(tmp_path: Path, edge: float, listed: str):
    """SimpleITK and nibabel read 1 mm for 0 mm."""
    content = bytearray(write(tmp_path / "a.nii").read_bytes())
    content[80:84] = np.float32(edge).tobytes()  # NIfTI-1's pixdim[1]
    file = tmp_path / "a.nii.gz"
    file.write_bytes(gzip.compress(content))
    with pytest.raises(
        ValueError, match=rf"a.nii.gz: the voxel edges \(={listed}\) must be numbers"
    ):
        check_sound(file)


def test_an_axis_of_one_voxel_needs_no_edge(tmp_path: Path):
    content = bytearray(write(tmp_path / "a.nii", VOXELS[..., :1]).read_bytes())
    content[88:92] = np.float32(0).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    check_sound(tmp_path / "a.nii")


def test_the_content_tells_whether_a_file_is_compressed(tmp_path: Path):
    """SimpleITK reads uncompressed files under the name of compressed ones."""
    file = write(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)).T, VOXELS)
    check_sound(file)


def test_other_compressed_files_are_read_to_their_end(tmp_path: Path):
    file = tmp_path / "a.vtk.gz"
    file.write_bytes(gzip.compress(bytes(5000)))
    check_sound(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a.vtk.gz: the compressed file is truncated or damaged"):
        check_sound(file)


def test_an_axis_without_voxels(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a.nii: shape \(=\(24, 0, 5\)\) must have no 0"):
        check_sound(write(tmp_path / "a.nii", VOXELS[:, :0]))


def test_a_pointer_of_git_lfs(tmp_path: Path):
    file = tmp_path / "a.nii.gz"
    file.write_text(POINTER)
    assert is_lfs_pointer(file)
    with pytest.raises(ValueError, match=r"a.nii.gz: a git-lfs pointer in place of the file: run"):
        check_sound(file)
    assert not is_lfs_pointer(write(tmp_path / "b.nii.gz"))


def test_other_formats_are_left_to_their_readers(tmp_path: Path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS), str(tmp_path / "a.nrrd"))
    check_sound(tmp_path / "a.nrrd")
