"""A dry run's look at own cine: its masks are read as the conversion reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.conversion.dicom.short_axis import read_short_axis
from nnunet_ssp.dataset_conversion.cine import make_tasks, read_subject
from nnunet_ssp.dataset_conversion.cine_files import find_cines, find_masks
from nnunet_ssp.dataset_conversion.cine_look import look
from nnunet_ssp.files.nifti import write_nifti
from tests.dicom_files import series

AFFINE = np.diag([1.5, 1.25, 8, 1])
SHAPE = (6, 5, 4)


def drawn(*frames: int, n_frames: int = 10) -> np.ndarray:
    mask = np.zeros((*SHAPE, n_frames), np.uint8)
    mask[1:3, 1:3, 1:3, list(frames)] = 1
    return mask


def seen(root: Path):
    tasks, refused = make_tasks(find_cines(root, root, False, 1, False), root, find_masks(root))
    assert not refused and len(tasks) == 1
    return look(tasks[0])


@pytest.mark.parametrize(
    ("frames", "n_labelled"), [((), 0), ((3,), 1), ((0, 3), 2), ((0, 3, 5), 2)]
)
def test_labelled_frames_are_counted_as_they_will_be_used(
    tmp_path: Path, frames: tuple[int, ...], n_labelled: int
):
    write_nifti(tmp_path / "a.nii.gz", np.arange(1200, dtype=np.int16).reshape(*SHAPE, 10), AFFINE)
    write_nifti(tmp_path / "a_gt.nii.gz", drawn(*frames), AFFINE)
    found = seen(tmp_path)
    assert (found.refused, found.n_frames, found.n_labelled) == ("", 10, n_labelled)


def test_masks_of_a_stack_of_files_of_one_slice_and_frame_are_taken(tmp_path: Path):
    """Its images have one slice, its masks all; the dry run says of both what the conversion does."""
    for z in range(4):
        affine = AFFINE.astype(float)
        affine[2, 3] = 8 * z
        for t in range(3):
            voxels = np.arange(30, dtype=np.int16).reshape(6, 5, 1) + 40 * z + t
            (tmp_path / "a").mkdir(exist_ok=True)
            write_nifti(tmp_path / f"a/s{z}_{t}.nii.gz", voxels, affine)
    write_nifti(tmp_path / "a/a_frame01_gt.nii.gz", drawn(0)[..., 0], AFFINE)
    found = seen(tmp_path)
    assert (found.refused, found.n_frames, found.n_labelled) == ("", 3, 1)


def test_without_masks_none_are_read(tmp_path: Path):
    write_nifti(tmp_path / "a.nii.gz", np.arange(1200, dtype=np.int16).reshape(*SHAPE, 10), AFFINE)
    assert seen(tmp_path).n_labelled is None


@pytest.mark.parametrize(
    ("mask", "name", "words"),
    [
        (drawn(0) * 7, "a_gt", "mask values (=7) must be among [0, 1, 2, 3]"),
        (
            drawn(0, n_frames=9),
            "a_gt",
            "shape (=(6, 5, 4, 9)) must be that of the image (=(6, 5, 4, 10)).",
        ),
        (drawn(0)[..., 0], "a_gt", "called a_frame<TT>_gt.nii.gz"),
        (drawn(0)[..., 0], "a_frame12_gt", "frame (=12) must be within 0 to 9."),
    ],
)
def test_masks_that_the_conversion_refuses_are_refused(
    tmp_path: Path, mask: np.ndarray, name: str, words: str
):
    write_nifti(tmp_path / "a.nii.gz", np.arange(1200, dtype=np.int16).reshape(*SHAPE, 10), AFFINE)
    write_nifti(tmp_path / f"{name}.nii.gz", mask, AFFINE)
    assert words in seen(tmp_path).refused


@pytest.mark.parametrize("frames", [(0, 3), (9,), range(10)])
def test_a_mask_beside_the_images_is_refused_with_its_name(tmp_path: Path, frames: Sequence[int]):
    for name in ("p3", "p4", "p14_sa"):
        image = np.arange(1200, dtype=np.int16).reshape(*SHAPE, 10)
        write_nifti(tmp_path / f"{name}.nii.gz", image, AFFINE)
    write_nifti(tmp_path / "p4_mask.nii.gz", drawn(*frames), AFFINE)
    write_nifti(tmp_path / "p14_sa_ours.nii.gz", drawn(*frames), AFFINE)
    tasks, _ = make_tasks(find_cines(tmp_path, tmp_path, False, 1, False), tmp_path, {})
    refused = {task.subject: look(task).refused for task in tasks}
    assert [name for name, reason in refused.items() if not reason] == ["p14", "p3", "p4"]
    assert refused["p4_mask"].endswith(
        "p4_mask.nii.gz: has only the values 0, 1: this is a mask, no image. Call it p4_gt.nii.gz."
    )
    assert "Call it p14_gt.nii.gz." in refused["p14_sa_ours"]
    (tmp_path / "p4_gt.nii.gz").touch()
    (task,) = (task for task in tasks if task.subject == "p4_mask")
    assert "Names of masks end in _gt" in look(task).refused


def test_masks_of_dicom_are_read_too(tmp_path: Path):
    voxels = series(tmp_path / "a")
    mask = np.zeros(voxels.shape[:3], np.uint8)
    mask[1:3, 1:3] = 9
    affine = read_short_axis(sorted((tmp_path / "a").iterdir()), tmp_path).affine
    file = tmp_path / "a_frame00_gt.nii.gz"
    write_nifti(file, mask, affine)
    assert "mask values (=9)" in seen(tmp_path).refused
    write_nifti(file, mask // 9, affine)
    assert seen(tmp_path).n_labelled == 1
    write_nifti(file, mask // 9, moved(affine))
    assert_refused_alike(tmp_path)


def moved(affine: np.ndarray) -> np.ndarray:
    """The affine 40 mm off."""
    affine = affine.copy()
    affine[0, 3] += 40
    return affine


def assert_refused_alike(root: Path) -> None:
    """A dry run refuses a mask that lies elsewhere, with the words of the conversion."""
    (task,), _ = make_tasks(find_cines(root, root, False, 1, False), root, find_masks(root))
    with pytest.raises(ValueError, match=r"must lie where the image is, .* are 40\.0 mm off"):
        read_subject(task)
    assert look(task).refused.endswith("but its corners are 40.0 mm off.")


@pytest.mark.parametrize("kind", ["4D", "frames", "slices"])
def test_masks_that_lie_elsewhere_are_refused(tmp_path: Path, kind: str):
    image = np.arange(1200, dtype=np.int16).reshape(*SHAPE, 10)
    (tmp_path / "a").mkdir()
    if kind == "4D":
        write_nifti(tmp_path / "a/a.nii.gz", image, AFFINE)
    for t in range(10 * (kind == "frames")):
        write_nifti(tmp_path / f"a/frame{t}.nii.gz", image[..., t], AFFINE)
    for z in range(4 * (kind == "slices")):
        place = AFFINE.copy()
        place[2, 3] = 8 * z
        write_nifti(tmp_path / f"a/slice{z}.nii.gz", image[:, :, z : z + 1], place)
    mask = tmp_path / "a/a_frame3_gt.nii.gz"
    write_nifti(mask, drawn(3)[..., 3], AFFINE)
    assert (seen(tmp_path).refused, seen(tmp_path).n_labelled) == ("", 1)
    write_nifti(mask, drawn(3)[..., 3], moved(AFFINE))
    assert_refused_alike(tmp_path)
