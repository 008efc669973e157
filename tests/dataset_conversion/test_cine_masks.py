from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.conversion.stacks import read_nifti_stack
from nnunet_ssp.dataset_conversion.cine_files import CineTask
from nnunet_ssp.dataset_conversion.cine_masks import MASK_VALUES, is_like_a_mask, read_masks
from nnunet_ssp.files.nifti import write_nifti
from tests.nifti_headers import save_with

SHAPE = (6, 5, 4, 3)
AFFINE = np.diag([1.5, 1.25, 8, 1])


@pytest.fixture
def task(tmp_path: Path) -> CineTask:
    """A subject of one 4D image, without masks."""
    voxels = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
    image = save(tmp_path / "A" / "sa.nii.gz", voxels)
    return CineTask("A", "train", (image,), (image,), (), image.parent, ("LV", "RV"), (), "")


def save(file: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    return save_with(file, voxels, sform=affine, qform=affine, sform_code=1, qform_code=1)


def drawn(shape: tuple[int, ...] = SHAPE[:3]) -> np.ndarray:
    """A mask that no flip or permutation leaves as it is."""
    mask = np.zeros(shape, np.uint8)
    mask[:3, :2, :1], mask[0, 0, 0] = 1, 2
    return mask


def read(task: CineTask, *masks: Path) -> tuple[dict[int, np.ndarray], list[str]]:
    stack = read_nifti_stack(task.images, task.place)
    return read_masks(replace(task, masks=masks), stack.voxels.shape, stack.place.affine, stack)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3], True),
        (range(MASK_VALUES), True),
        (range(MASK_VALUES + 1), False),
        ([0.0, 1.0], True),
        ([0, 0.5], False),
        ([1, 2], False),
        ([-1, 0], False),
        ([0, 256], False),
    ],
)
def test_masks_are_known_by_their_values(values, expected: bool):
    assert is_like_a_mask(np.array(list(values) * 2).reshape(2, 1, -1)) is expected


def test_a_mask_of_all_frames(task: CineTask, tmp_path: Path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[..., 1] = drawn()
    masks, notes = read(task, save(tmp_path / "A" / "A_gt.nii.gz", mask))
    assert masks.keys() == {1} and notes == []
    assert masks[1].dtype == np.uint8
    assert np.array_equal(masks[1], drawn())


def test_a_mask_of_a_named_frame(task: CineTask, tmp_path: Path):
    files = [save(tmp_path / "A" / f"A_frame0{t}_gt.nii.gz", drawn()) for t in (0, 2)]
    masks, _ = read(task, *files)
    assert masks.keys() == {0, 2}


@pytest.mark.parametrize("flip", [0, 1, 2])
def test_a_flipped_mask_is_turned_to_its_image(task: CineTask, tmp_path: Path, flip: int):
    affine = AFFINE.copy()
    affine[:3, 3] += affine[:3, flip] * (SHAPE[flip] - 1)
    affine[:3, flip] *= -1
    file = save(tmp_path / "A" / "A_frame01_gt.nii.gz", np.flip(drawn(), flip), affine)
    masks, notes = read(task, file)
    assert np.array_equal(masks[1], drawn())
    assert notes == ["axes of the masks turned to those of the image"]


def test_a_mask_of_3d_frames_counts_as_their_names(task: CineTask, tmp_path: Path):
    frames = []
    for number in (1, 2, 3):
        frames.append(tmp_path / "A" / f"frame{number}.nii.gz")
        voxels = np.random.default_rng(number).integers(1, 900, SHAPE[:3]).astype(np.int16)
        write_nifti(frames[-1], voxels, AFFINE)
    task = replace(task, images=tuple(frames))
    by_image = save(tmp_path / "A" / "frame3_gt.nii.gz", drawn())
    by_subject = save(tmp_path / "A" / "A_frame1_gt.nii.gz", drawn())
    assert read(task, by_image, by_subject)[0].keys() == {2, 0}


def beyond(folder: Path) -> list[Path]:
    return [save(folder / "A_frame03_gt.nii.gz", drawn())]


def two_of_a_frame(folder: Path) -> list[Path]:
    whole = np.repeat(drawn()[..., None], 3, 3)
    return [
        save(folder / "A_gt.nii.gz", whole),
        save(folder / "A_frame01_gt.nii.gz", drawn()),
    ]


def unnamed(folder: Path) -> list[Path]:
    return [save(folder / "A_gt.nii.gz", drawn())]


def of_another_shape(folder: Path) -> list[Path]:
    return [save(folder / "A_frame00_gt.nii.gz", drawn((6, 5, 3)))]


def elsewhere(folder: Path) -> list[Path]:
    affine = AFFINE.copy()
    affine[0, 3] = 40
    return [save(folder / "A_frame00_gt.nii.gz", drawn(), affine)]


def of_unknown_classes(folder: Path) -> list[Path]:
    return [save(folder / "A_frame00_gt.nii.gz", drawn() * 2)]


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (beyond, r"A_frame03_gt\.nii\.gz: frame \(=3\) must be within 0 to 2"),
        (two_of_a_frame, r"A_frame01_gt\.nii\.gz: frame 1 has another mask already"),
        (unnamed, r"A_gt.* must be that of the image .* of one frame is called A_frame<TT>_gt"),
        (of_another_shape, r"shape \(=\(6, 5, 3\)\) must be that of the image \(=\(6, 5, 4\)\)\.$"),
        (elsewhere, r"must lie where the image is, but its corners are 40\.0 mm off"),
        (of_unknown_classes, r"mask values \(=.*4.*\) must be among"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_masks_that_do_not_fit_are_refused(task: CineTask, tmp_path: Path, faulty, message: str):
    with pytest.raises(ValueError, match=message):
        read(task, *faulty(tmp_path / "A"))
