from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_ssp.preparation.raw_checks import (
    CheckedReader,
    RefusedError,
    Rules,
    absurd_spacing,
    is_natural,
    label_values,
    problem_lines,
)

SHAPE = (24, 20, 6)
AFFINE = np.diag([1.4, 1.4, 8.0, 1.0])
RULES = Rules("SimpleITKIO", 1, (0, 1, 2))


def write(file: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE, header: Any = None) -> str:
    nibabel.save(nibabel.Nifti1Image(voxels, affine, header), file)
    return str(file)


@pytest.fixture
def image(tmp_path: Path) -> str:
    voxels = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    return write(tmp_path / "a_0000.nii.gz", voxels)


def mask(values: tuple[float, ...] = (1, 2), dtype: type = np.uint8) -> np.ndarray:
    voxels = np.zeros(SHAPE, dtype)
    for number, value in enumerate(values):
        voxels[2 + 4 * number : 6 + 4 * number, 5:10] = value
    return voxels


def read(image: str, file: str, rules: Rules = RULES) -> list[str]:
    reader = CheckedReader(rules)
    reader.read_images([image])
    reader.read_seg(file)
    return reader.notes


@pytest.mark.parametrize("name", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_a_right_case_is_read_as_nnunet_reads_it(tmp_path: Path, image: str, name: str):
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    file = write(tmp_path / "a.nii.gz", mask())
    rules = Rules(name, 1, (0, 1, 2), spacing=(8, 1.4, 1.4))
    ours, stock = CheckedReader(rules), recursive_find_reader_writer_by_name(name)()
    np.testing.assert_array_equal(ours.read_images([image])[0], stock.read_images([image])[0])
    np.testing.assert_array_equal(ours.read_seg(file)[0], stock.read_seg(file)[0])
    assert ours.notes == []


@pytest.mark.parametrize("name", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize(("header", "value"), [(np.uint8, "0.996"), (np.int16, "1.0000")])
def test_masks_that_nnunet_would_misread_are_refused(
    tmp_path: Path, image: str, name: str, header: type, value: str
):
    """nnU-Net truncates 0.996 to the background, and does not find 1.00002 among its classes."""
    integers = nibabel.Nifti1Image(np.zeros(SHAPE, header), AFFINE).header
    file = write(tmp_path / "a.nii.gz", mask(dtype=np.float64), header=integers)
    message = rf"a.nii.gz: mask values must be (exactly )?whole numbers, not {value}.*save the mask"
    with pytest.raises(RefusedError, match=message):
        read(image, file, Rules(name, 1, (0, 1, 2)))


@pytest.mark.parametrize("value", [0.9999, 1.0005, 1.9995, 1e-6, 0.5])
def test_floating_point_masks_off_a_whole_number(tmp_path: Path, image: str, value: float):
    file = write(tmp_path / "a.nii.gz", mask((value, 2), np.float32))
    with pytest.raises(RefusedError, match=r"mask values must be (exactly )?whole numbers, not"):
        read(image, file)


def test_floating_point_masks_of_whole_numbers_are_right(tmp_path: Path, image: str):
    assert read(image, write(tmp_path / "a.nii.gz", mask(dtype=np.float64))) == []


@pytest.mark.parametrize("value", [3, 255, -1])
def test_values_that_dataset_json_does_not_name(tmp_path: Path, image: str, value: int):
    file = write(tmp_path / "a.nii.gz", mask((1, value), np.int16))
    with pytest.raises(RefusedError, match=rf"mask values \(={value}\) must be among \[0, 1, 2\]"):
        read(image, file)


def test_labels_of_regions_and_the_ignore_label():
    labels = {"background": 0, "heart": [1, 2, 3], "LV": (3,), "ignore": 4}
    assert label_values(labels) == (0, 1, 2, 3, 4)
    assert label_values({"background": 0}) == (0,)
    for value in ("1", 1.0, True, [1, None]):
        with pytest.raises(ValueError, match=r"label LV \(=.*\) must be a whole number"):
            label_values({"background": 0, "LV": value})


def test_nan_in_image_and_mask(tmp_path: Path, image: str):
    voxels = mask(dtype=np.float32)
    voxels[0, 0, 0] = np.nan
    file = write(tmp_path / "a.nii.gz", voxels)
    with pytest.raises(RefusedError, match=r"a.nii.gz: holds NaN or infinite values"):
        read(image, file)
    with pytest.raises(RefusedError, match=r"a.nii.gz: holds NaN or infinite values"):
        CheckedReader(RULES).read_images([file])
    picture = SimpleITK.GetImageFromArray(np.full((4, 5, 6), np.inf, np.float32))
    SimpleITK.WriteImage(picture, str(tmp_path / "b_0000.nrrd"))  # where SimpleITK keeps it
    with pytest.raises(RefusedError, match=r"b_0000.nrrd: holds NaN or infinite values"):
        CheckedReader(RULES).read_images([str(tmp_path / "b_0000.nrrd")])


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_the_grid_of_a_mask(tmp_path: Path, image: str, reader: str):
    rules = Rules(reader, 1, (0, 1, 2))
    moved, coarse, turned = AFFINE.copy(), np.diag([1.5, 1.4, 8.0, 1.0]), AFFINE.copy()
    moved[:3, 3] = 0, 5, 0
    turned[:2, :2] *= -1
    for number, (affine, itk) in enumerate(
        [(moved, "origin"), (coarse, "spacing"), (turned, "direction")]
    ):
        notes = read(image, write(tmp_path / f"{number}.nii.gz", mask(), affine), rules)
        name = itk if reader == "SimpleITKIO" or itk == "spacing" else "affine"
        assert any(
            f"{number}.nii.gz: {name} (=" in note and "that of the image" in note for note in notes
        ), notes
    rounded = AFFINE.copy()
    rounded[0, 3] = 4e-4
    assert read(image, write(tmp_path / "r.nii.gz", mask(), rounded), rules) == []
    with pytest.raises(RefusedError, match=r"s.nii.gz: shape \(=\(5, 20, 24\)\) must be that of"):
        read(image, write(tmp_path / "s.nii.gz", mask()[..., 1:]), rules)


def test_an_image_of_equal_voxels(tmp_path: Path):
    black = write(tmp_path / "d_0000.nii.gz", np.zeros(SHAPE, np.int16))
    with pytest.raises(RefusedError, match=r"d_0000.nii.gz: all voxels are equal"):
        CheckedReader(RULES).read_images([black])


def test_files_of_several_volumes(tmp_path: Path, image: str):
    cine = write(tmp_path / "c_0000.nii.gz", np.ones((*SHAPE, 7), np.int16))
    with pytest.raises(RefusedError, match=r"c_0000.nii.gz: holds 7 volumes, but .* 1 channel\."):
        CheckedReader(RULES).read_images([cine])
    voxels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(*SHAPE, 1)
    single = write(tmp_path / "d_0000.nii.gz", voxels)
    assert CheckedReader(RULES).read_images([single])[0].shape == (1, 6, 20, 24)
    assert read(single, write(tmp_path / "d.nii.gz", mask())) == []
    with pytest.raises(RefusedError, match=r"a_0000.nii.gz: the case has 2 channels, but"):
        CheckedReader(RULES).read_images([image, image])
    with pytest.raises(RefusedError, match=r"c_0000.nii.gz: nnU-Net's NibabelIO cannot read it"):
        CheckedReader(Rules("NibabelIO", 1, (0,))).read_images([cine])


def test_channels_that_do_not_fit_are_explained_by_what_nnunet_prints(tmp_path: Path, image: str):
    other = write(tmp_path / "a_0001.nii.gz", np.ones(SHAPE, np.int16), np.diag([2, 2, 8, 1.0]))
    message = r"cannot read it \(ERROR! Not all input images have the same spacing"
    with pytest.raises(RefusedError, match=message):
        CheckedReader(Rules("SimpleITKIO", 2, (0,))).read_images([image, other])


MEDIAN = (8.0, 1.4, 1.4)


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ((8000, 1400, 1400), "1000 times larger.*a factor of 1000 is an error of the unit, metres"),
        ((8e-3, 1.4e-3, 1.4e-3), "1000 times smaller.*a factor of 1000 is an error of the unit"),
        ((8e6, 1.3e6, 1.3e6), "a factor of 1000000 is an error of the unit"),
        ((8, 1.4, 70), "50 times larger.*resample it to an absurd size"),
        ((0, 1.4, 1.4), "must be above 0"),
        ((8, np.nan, 1.4), "must be above 0"),
    ],
)
def test_absurd_spacings(spacing: tuple[float, ...], message: str):
    assert re.search(message, absurd_spacing(spacing, MEDIAN))


@pytest.mark.parametrize(
    "spacing", [MEDIAN, (1.4, 1.4, 1.4), (10, 0.6, 0.6), (1, 3, 3), (999, 1, 1), (1398.6, 1.4, 1.4)]
)
def test_plausible_spacings(spacing: tuple[float, ...]):
    assert absurd_spacing(spacing, MEDIAN) == ""


def test_the_made_up_spacing_of_2d_images():
    assert is_natural((999, 1, 1)) and is_natural((999 * 1.4, 0.7, 1.4))
    assert not is_natural(MEDIAN) and not is_natural((8000, 1.4, 1.4))


def test_long_lists_of_bad_cases_are_cut():
    listed = problem_lines([str(n) for n in range(25)]).splitlines()
    assert len(listed) == 21 and listed[-1] == "  ... and 5 more"
