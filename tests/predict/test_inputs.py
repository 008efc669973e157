"""What converts also predicts, and a mask lies where its images do."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from nnunet_ssp.predict.inputs import InputCine, find_studies, read_cine, read_mask, write_mask
from tests.cine_trees import AFFINE, cine
from tests.dicom_files import FRAMES, series
from tests.predict.conftest import save


def studies(*inputs: Path) -> dict[str, InputCine]:
    tasks, refused = find_studies(inputs, False, (), 1)
    assert refused == {}
    return {task.subject: read_cine(task) for task in tasks}


def labels(study: InputCine) -> np.ndarray:
    """A mask that has another value at each end of each axis."""
    mask = np.zeros(study.voxels.shape, np.uint8)
    mask[0], mask[:, 0], mask[:, :, 0], mask[..., 0] = 1, 2, 3, 4
    mask[-1, 0, -1, -1] = 5
    return mask


def test_files_and_folders_are_subjects(tmp_path: Path) -> None:
    save(cine(1), tmp_path / "many" / "a_sa.nii.gz", AFFINE)
    save(cine(2), tmp_path / "many" / "b" / "b.nii.gz", AFFINE)
    save(cine(2)[..., :1] * 0, tmp_path / "many" / "b" / "b_gt.nii.gz", AFFINE)
    for t in range(4):
        save(cine(3)[..., t], tmp_path / "frames" / f"frame{t + 8}.nii.gz", AFFINE)
    single = save(cine(4), tmp_path / "c.nii.gz", AFFINE)
    found = studies(tmp_path / "many", tmp_path / "frames", single)
    assert set(found) == {"a", "b", "frames", "c"}
    np.testing.assert_array_equal(found["frames"].voxels, cine(3))
    np.testing.assert_array_equal(found["c"].voxels, cine(4))


def test_one_frame_is_a_study(tmp_path: Path) -> None:
    file = save(cine(1)[..., 0], tmp_path / "a.nii.gz", AFFINE)
    assert studies(file)["a"].voxels.shape == (*cine().shape[:3], 1)
    assert studies(tmp_path)[tmp_path.name].voxels.shape[3] == 1


def test_the_folders_of_one_study_are_one_subject(tmp_path: Path) -> None:
    voxels = series(tmp_path / "study" / "SA", PatientID="")
    series(tmp_path / "study" / "other", [0], uid="1.5", number=5, frames=1, PatientID="")
    np.testing.assert_array_equal(studies(tmp_path / "study")["study"].voxels, voxels)
    # Two studies under the same blank PatientID are two subjects.
    series(tmp_path / "two" / "a", PatientID="", StudyInstanceUID="1.7")
    series(tmp_path / "two" / "b", PatientID="", StudyInstanceUID="1.8")
    assert set(studies(tmp_path / "two")) == {"a", "b"}


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must hold NIfTI files"):
        find_studies([tmp_path], False, (), 1)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_studies([tmp_path / "none"], False, (), 1)


def test_masks_are_no_images(tmp_path: Path) -> None:
    for name in ("a_gt.nii.gz", "b/b_frame01_gt.nii"):
        save(cine(1)[..., 0], tmp_path / name, AFFINE)
    with pytest.raises(FileNotFoundError) as error:
        find_studies([tmp_path], False, (), 1)
    assert str(error.value) == (
        f"{tmp_path}: holds masks alone (a_gt.nii.gz, b_frame01_gt.nii); give the folder of the images."
    )


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        save(cine(1), tmp_path / folder / "a.nii.gz", AFFINE)
    tasks, refused = find_studies([tmp_path / "x", tmp_path / "y"], False, (), 1)
    assert tasks == [] and "more than one subject is called a" in refused["a"]


# -- the grid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_mask_has_shape_and_header_of_its_image(tmp_path: Path, order: tuple) -> None:
    """Also where the slices are not on the third axis, and for an axis of length 1 between."""
    affine = AFFINE[:, [*order, 3]]
    file = save(cine(1).transpose(*order, 3)[..., None, :], tmp_path / "a.nii.gz", affine)
    study = studies(file)["a"]
    write_mask(tmp_path / "m.nii.gz", labels(study), study)
    image, mask = nibabel.load(file), nibabel.load(tmp_path / "m.nii.gz")
    assert mask.shape == image.shape
    for name in ("pixdim", "srow_x", "srow_y", "srow_z", "qform_code", "sform_code", "xyzt_units"):
        np.testing.assert_array_equal(mask.header[name], image.header[name])
    assert mask.get_data_dtype() == np.uint8
    stored = np.asarray(mask.dataobj)[..., 0, :]
    np.testing.assert_array_equal(stored, labels(study).transpose(*np.argsort(study.order), 3))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", study), labels(study))


def test_a_header_that_tools_mend_is_kept_byte_by_byte(tmp_path: Path) -> None:
    """Scaled grey values, big-endian; a tool that mends such a header does the same to both files."""
    image = nibabel.Nifti1Image(cine(1), AFFINE).header
    header = image.as_byteswapped(">" if image.endianness == "<" else "<")
    header["scl_slope"], header["descrip"], header["cal_max"] = 2.5, b"mine", 900
    header["vox_offset"], header["magic"], header["scl_inter"] = 352, b"n+1", 0
    content = header.binaryblock + bytes(4) + cine(1).astype(header.get_data_dtype()).tobytes("F")
    (tmp_path / "a.nii").write_bytes(content)
    study = studies(tmp_path / "a.nii")["a"]
    write_mask(tmp_path / "m.nii.gz", labels(study), study)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), labels(study))
    assert mask.header["descrip"] == b"mine"
    written = gzip.decompress((tmp_path / "m.nii.gz").read_bytes())
    assert written[76:108] == content[76:108]  # pixdim


def test_frames_in_files_of_their_own_make_a_4d_mask(tmp_path: Path) -> None:
    for t in range(4):
        save(cine(3)[..., t], tmp_path / "s" / f"frame{t}.nii.gz", AFFINE)
    study = studies(tmp_path / "s")["s"]
    write_mask(tmp_path / "m.nii.gz", labels(study), study)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), labels(study))
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)


def test_a_landmark_of_dicom_has_its_place_in_the_mask(tmp_path: Path) -> None:
    """Column 3, row 1 of the third slice at the fifth frame, through pydicom and SimpleITK."""
    series(tmp_path / "s", HeartRate=75)
    study = studies(tmp_path / "s")["s"]
    assert (study.heart_rate, study.frame_time) == (75, 0.04)
    headers = [pydicom.dcmread(file) for file in (tmp_path / "s").iterdir()]
    (header,) = [h for h in headers if h.InstanceNumber == 2 * FRAMES + 4 + 1]
    column, row = 3, 1
    along, down = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
    between_rows, between_columns = map(float, header.PixelSpacing)
    world = np.array(header.ImagePositionPatient, float)  # LPS
    world += column * between_columns * along + row * between_rows * down
    mask = np.zeros(study.voxels.shape, np.uint8)
    mask[study.voxels == header.pixel_array[row, column]] = 1
    mask[..., [t for t in range(FRAMES) if t != 4]] = 0
    write_mask(tmp_path / "m.nii.gz", mask, study)
    image = sitk.ReadImage(str(tmp_path / "m.nii.gz"))
    assert image.GetSpacing()[3] == pytest.approx(0.04)
    frame = image[..., 4]
    assert frame[frame.TransformPhysicalPointToIndex(world.tolist())] == 1


def test_a_mask_of_other_images_is_refused(tmp_path: Path) -> None:
    study = studies(save(cine(1), tmp_path / "a.nii.gz", AFFINE))["a"]
    save(cine(1)[:-1], tmp_path / "m.nii.gz", AFFINE)
    with pytest.raises(ValueError, match="must be that of the images"):
        read_mask(tmp_path / "m.nii.gz", study)


def test_a_spacing_that_no_header_tells_is_unknown(tmp_path: Path) -> None:
    known = studies(save(cine(1), tmp_path / "a.nii.gz", AFFINE))["a"]
    assert known.spacing_known and known.spacing == pytest.approx((2**0.5, 1.5**0.5, 48**0.5))
    unknown = studies(save(cine(1), tmp_path / "b.nii.gz", np.eye(4)))["b"]
    assert not unknown.spacing_known
