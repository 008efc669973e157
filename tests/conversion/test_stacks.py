from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_ssp.conversion.stacks import look_at_nifti_stack, read_nifti_stack
from tests.nifti_headers import affines, save_with

CINE = np.random.default_rng(0).integers(0, 900, (6, 5, 4, 3)).astype(np.int16)
AFFINE = np.array([[1, 0.5, -4, 9], [1, -0.5, 4, 8], [0, -1, -4, 7], [0, 0, 0, 1.0]])


def at(z: float, affine: np.ndarray = AFFINE) -> np.ndarray:
    """The affine of a slice."""
    result = affine.copy()
    result[:3, 3] += affine[:3, 2] * z
    return result


def save(file: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    return save_with(file, voxels, sform=affine, qform=affine, sform_code=1, qform_code=1)


def slices(folder: Path, order: list[int] | None = None) -> list[Path]:
    """A file for each slice; those of `order` in the order of their names."""
    return [
        save(folder / f"cine_{number}.nii.gz", CINE[:, :, z : z + 1], at(z))
        for number, z in enumerate(order or range(4))
    ]


def assert_seen_as_read(files: list[Path]) -> None:
    """The headers alone tell what reading finds."""
    seen, stack = look_at_nifti_stack(files), read_nifti_stack(files, files[0])
    assert seen.shape == stack.voxels.shape
    assert np.array_equal(seen.place.affine, stack.place.affine)
    assert (seen.source and seen.source.file) == (stack.source and stack.source.file)


def test_one_file(tmp_path: Path):
    file = save(tmp_path / "a.nii.gz", CINE)
    stack = read_nifti_stack([file], tmp_path)
    assert np.array_equal(stack.voxels, CINE)
    assert stack.place.affine == pytest.approx(AFFINE, abs=1e-5)
    assert_seen_as_read([file])


@pytest.mark.parametrize("shape", [(6, 5, 4, 1, 3), (6, 5, 4, 3, 1), (6, 5, 4, 1, 3, 1, 1)])
def test_axes_of_length_one_are_no_axes(tmp_path: Path, shape: tuple[int, ...]):
    file = save(tmp_path / "a.nii.gz", CINE.reshape(shape))
    assert np.array_equal(read_nifti_stack([file], tmp_path).voxels, CINE)
    assert_seen_as_read([file])


@pytest.mark.parametrize("extra", [(), (1,), (1, 1)])
def test_a_file_for_each_frame(tmp_path: Path, extra: tuple[int, ...]):
    files = [
        save(tmp_path / f"{t}.nii.gz", CINE[..., t].reshape(6, 5, 4, *extra)) for t in range(3)
    ]
    stack = read_nifti_stack(files, tmp_path)
    assert np.array_equal(stack.voxels, CINE)
    assert stack.source is not None and stack.source.file == files[0]
    assert_seen_as_read(files)


def test_a_file_for_each_frame_of_one_slice(tmp_path: Path):
    files = [save(tmp_path / f"{t}.nii.gz", CINE[:, :, :1, t]) for t in range(3)]
    assert np.array_equal(read_nifti_stack(files, tmp_path).voxels, CINE[:, :, :1])
    assert_seen_as_read(files)


@given(affine=affines, order=st.permutations(range(4)), axis=st.integers(0, 2))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_file_for_each_slice(tmp_path: Path, affine: np.ndarray, order: list[int], axis: int):
    """In any order of names, on any axis."""
    ring = np.roll([0, 1, 2], axis)
    files = []
    for number, z in enumerate(order):
        voxels = CINE[:, :, z : z + 1].transpose(*ring, 3)
        files.append(save(tmp_path / f"{number}.nii", voxels, at(z, affine)[:, [*ring, 3]]))
    stack = read_nifti_stack(files, tmp_path)
    assert np.array_equal(stack.voxels, CINE)
    assert stack.place.affine == pytest.approx(affine, abs=1e-3)
    assert "one stack of 4 slices, each in a file of its own" in stack.place.notes
    assert_seen_as_read(files)


@pytest.mark.parametrize(
    ("name", "slices_first"),
    [("z{z}_t{t}", True), ("t{t}_z{z}", False), ("{n:02}", True), ("{m:02}", False)],
)
def test_a_file_for_each_slice_and_frame(tmp_path: Path, name: str, slices_first: bool):
    files = []
    for z, t in np.ndindex(4, 3):
        file = tmp_path / f"{name.format(z=z, t=t, n=3 * z + t, m=4 * t + z)}.nii.gz"
        files.append(save(file, CINE[:, :, z : z + 1, t], at(z)))
    stack = read_nifti_stack(sorted(files), tmp_path)
    assert (sorted(files) == files) == slices_first
    assert np.array_equal(stack.voxels, CINE)
    assert stack.place.affine == pytest.approx(AFFINE, abs=1e-4)
    assert_seen_as_read(sorted(files))


def change(files: list[Path], number: int, z: float, **other: np.ndarray) -> None:
    voxels = other.get("voxels", CINE[:, :, :1])
    save(files[number], voxels, at(z, other.get("affine", AFFINE)))


TURNED = AFFINE[:, [2, 0, 1, 3]] / [6.93 / 1.41, 1, 1 / 5.66, 1]
NARROW = AFFINE / [1.2, 1, 1, 1]
SIDE = AFFINE + np.pad(AFFINE[:, :1] * 2, ((0, 0), (3, 0)))

REFUSED: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "gap": (
        lambda files: change(files, 3, 4),
        r"cine_2.nii.gz and cine_3.nii.gz: the slices are 13.9 mm apart, and must be evenly spaced \(others 6.9",
    ),
    "twice": (
        lambda files: change(files, 3, 1),
        "cine_1.nii.gz and cine_3.nii.gz must not show the same slice",
    ),
    "turned": (
        lambda files: change(files, 2, 2, affine=TURNED),
        r"cine_2.nii.gz: must be parallel to cine_0.nii.gz, not turned by \d+ degrees",
    ),
    "pixels": (
        lambda files: change(files, 2, 2, affine=NARROW),
        r"cine_2.nii.gz: the pixel spacing must be that of cine_0.nii.gz",
    ),
    "beside": (
        lambda files: change(files, 2, 2, affine=SIDE),
        r"cine_2.nii.gz: must lie behind cine_0.nii.gz, not beside it",
    ),
    "frames": (
        lambda files: change(files, 2, 2, voxels=CINE[:, :, :1, :2]),
        r"cine_2.nii.gz: shape \(=\(6, 5, 1, 2\)\) must be that of cine_0.nii.gz \(=\(6, 5, 1, 3\)\)",
    ),
    "a whole stack": (
        lambda files: change(files, 2, 2, voxels=CINE),
        r"cine_2.nii.gz: shape \(=\(6, 5, 4, 3\)\) must be that of cine_0.nii.gz",
    ),
    "two long axes": (
        lambda files: change(files, 2, 2, voxels=CINE[..., None] * np.ones(2, np.int16)),
        r"cine_2.nii.gz: shape \(=\(6, 5, 4, 3, 2\)\) must have 3 or 4 axes longer than 1",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_slices_that_make_no_stack_are_refused(tmp_path: Path, fault: str):
    damage, message = REFUSED[fault]
    files = slices(tmp_path)
    damage(files)
    for read in (look_at_nifti_stack, lambda files: read_nifti_stack(files, tmp_path)):
        with pytest.raises(ValueError, match=message):
            read(files)


def test_files_of_one_slice_and_frame_must_be_complete(tmp_path: Path):
    files = [
        save(tmp_path / f"z{z}_t{t}.nii.gz", CINE[:, :, z : z + 1, t], at(z))
        for z in range(4)
        for t in range(3)
    ]
    with pytest.raises(
        ValueError, match=r"z3_t0.nii.gz: its slice has 2 files, that of z0_t0.nii.gz 3"
    ):
        read_nifti_stack(files[:-1], tmp_path)
    with pytest.raises(
        ValueError, match=r"z0_t0.nii.gz and z1_t0.nii.gz lie in different places, and each"
    ):
        read_nifti_stack(files[::3], tmp_path)
    for number, file in enumerate(files):
        files[number] = file.rename(tmp_path / f"{'abcdefghijkl'[number]}_9.nii.gz")
    with pytest.raises(
        ValueError, match=r"a_9.nii.gz, b_9.nii.gz: the numbers in the names must tell"
    ):
        read_nifti_stack(files, tmp_path)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ([(0, 1), (1, 2), (2, 1), (3, 1)], r"a frame is missing before z0_t2.nii.gz"),
        (
            [(0, 0), (1, 4), (2, 4), (3, 4)],
            r"z0_t1.nii.gz: its slice has frames 1 to 4, that of z1_t0.nii.gz 0 to 3; each must",
        ),
    ],
)
def test_slices_of_other_frames_are_not_mixed(
    tmp_path: Path, left_out: list[tuple[int, int]], message: str
):
    files = [
        save(tmp_path / f"z{z}_t{t}.nii.gz", CINE[:, :, z : z + 1, t % 3] + t, at(z))
        for z in range(4)
        for t in range(5)
        if (z, t) not in left_out
    ]
    for read in (look_at_nifti_stack, lambda files: read_nifti_stack(files, tmp_path)):
        with pytest.raises(ValueError, match=message):
            read(files)


@pytest.mark.parametrize("number", [lambda z, t: 3 * z + t, lambda z, t: 40 + 4 * t + z])
def test_numbers_that_go_on_from_slice_to_slice(tmp_path: Path, number: Callable[[int, int], int]):
    files = {
        number(z, t): save(tmp_path / f"i{number(z, t)}.nii.gz", CINE[:, :, z : z + 1, t], at(z))
        for z in range(4)
        for t in range(3)
    }
    stack = read_nifti_stack([files[n] for n in sorted(files)], tmp_path)
    assert np.array_equal(stack.voxels, CINE)


@pytest.mark.parametrize("n_frames", [2, 3])
def test_whole_cines_do_not_make_one(tmp_path: Path, n_frames: int):
    files = [save(tmp_path / "2019.nii", CINE), save(tmp_path / "2021.nii", CINE[..., :n_frames])]
    said = rf"2019.nii and 2021.nii are two cines, of shapes \(6, 5, 4, 3\) and \(6, 5, 4, {n_frames}\)"
    for read in (look_at_nifti_stack, lambda files: read_nifti_stack(files, tmp_path)):
        with pytest.raises(ValueError, match=said):
            read(files)


def test_cines_of_one_slice_do_not_make_one(tmp_path: Path):
    files = [save(tmp_path / f"{n}.nii.gz", CINE[:, :, :1]) for n in range(2)]
    with pytest.raises(ValueError, match=r"1\.nii\.gz must not show the same slice as 0\.nii"):
        read_nifti_stack(files, tmp_path)
