"""What highdicom's own reader finds in the objects, and what an archive needs to file them."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.conversion.dicom.opening import tolerant
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.predict import dicom_seg
from nnunet_ssp.predict.dicom_seg import read_sources, write_segmentations
from nnunet_ssp.predict.inputs import InputCine, find_studies, read_cine
from tests.dicom_files import COLUMNS, FRAMES, GAP, ROWS, edit, enhanced, file_of, series
from tests.predict.conftest import save

hd = pytest.importorskip("highdicom", reason="needs the extra `dicom`")

FRAME_OF_REFERENCE = "1.2.840.9"
STRUCTURES = {"LV": "cavity", "MYO": "wall", "RV": "right"}
# Not in the order of the segments, one of two values, and a class that is none of the three
LABELS = Labels({"right": (1,), "wall": (2, 4), "cavity": (3,), "atrium": (5,)}, None, STRUCTURES)
SEGMENT = {0: 0, 3: 1, 2: 2, 4: 2, 1: 3, 5: 0}


def study_in(folder: Path) -> InputCine:
    tasks, refused = find_studies([folder], False, (), 1)
    assert refused == {}
    return read_cine(tasks[0])


def segmented(study: InputCine, folder: Path) -> tuple[np.ndarray, list]:
    """Write a random mask; returns its segment numbers (X, Y, Z, T), and the objects as highdicom reads them."""
    mask = np.random.default_rng(0).integers(0, 6, study.voxels.shape).astype(np.uint8)
    mask[:, :, 0] = 0  # a slice without any
    mask[..., 2] = 0  # and a frame
    write_segmentations(folder, mask, read_sources(study), LABELS)
    with tolerant():
        read = [hd.seg.segread(file) for file in sorted(folder.iterdir())]
    return np.vectorize(SEGMENT.get)(mask), read


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """Each image a file, with a formally wrong date of birth, as de-identified files have."""
    tags = {"FrameOfReferenceUID": FRAME_OF_REFERENCE, "PatientBirthDate": "00000000"}
    series(tmp_path / "s", StudyDate="20120000", PatientSex="unknown", **tags)
    return tmp_path / "s"


def test_highdicom_reads_each_frame_back_by_its_source_images(single, tmp_path) -> None:
    study = study_in(single)
    expected, objects = segmented(study, tmp_path / "out")
    assert len(objects) == FRAMES
    for t, found in enumerate(objects):
        uids = [row[t].uid for row in study.sources]
        pixels = found.get_pixels_by_source_instance(
            uids, combine_segments=True, assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(pixels.transpose(2, 1, 0), expected[..., t])


def test_an_enhanced_file_is_referred_to_by_its_frames(tmp_path: Path) -> None:
    enhanced(tmp_path / "e" / "all.dcm")
    edit(tmp_path / "e" / "all.dcm", FrameOfReferenceUID=FRAME_OF_REFERENCE)
    study = study_in(tmp_path / "e")
    expected, objects = segmented(study, tmp_path / "out")
    (uid,) = {image.uid for row in study.sources for image in row}
    for t, found in enumerate(objects):
        (referred,) = found.ReferencedSeriesSequence
        assert [i.ReferencedSOPInstanceUID for i in referred.ReferencedInstanceSequence] == [uid]
        assert (
            found.SourceImageSequence[0].ReferencedSOPClassUID.name == "Enhanced MR Image Storage"
        )
        pixels = found.get_pixels_by_source_frame(
            uid,
            [row[t].frame + 1 for row in study.sources],
            combine_segments=True,
            assert_missing_frames_are_empty=True,
        )
        np.testing.assert_array_equal(pixels.transpose(2, 1, 0), expected[..., t])


def test_an_object_belongs_to_patient_study_and_place(single, tmp_path) -> None:
    study = study_in(single)
    _, objects = segmented(study, tmp_path / "out")
    source = pydicom.dcmread(next(single.iterdir()))
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "PatientSex"):
        assert {o[keyword].value for o in objects} == {source[keyword].value}
    first = objects[0]
    assert (first.PatientBirthDate, first.StudyDate) == ("00000000", "20120000")
    assert first.FrameOfReferenceUID == FRAME_OF_REFERENCE
    assert len({o.SeriesInstanceUID for o in objects}) == 1
    assert len({o.SOPInstanceUID for o in objects}) == FRAMES
    assert [o.InstanceNumber for o in objects] == [*range(1, FRAMES + 1)]
    assert (first.Rows, first.Columns) == (ROWS, COLUMNS)
    assert first.ContentCreatorName == ""  # of type 2: must be there, may be empty
    geometry = first.get_volume_geometry()
    np.testing.assert_allclose(geometry.spacing, (GAP, *map(float, source.PixelSpacing)), atol=1e-3)
    assert {item.SeriesInstanceUID for item in first.ReferencedSeriesSequence} == {"1.2.3.4"}


def test_segments_have_the_codes_of_the_standard(single, tmp_path) -> None:
    _, objects = segmented(study_in(single), tmp_path / "out")
    found = [
        (item.SegmentLabel, item.SegmentedPropertyTypeCodeSequence[0])
        for item in objects[0].SegmentSequence
    ]
    assert [(label, code.CodeValue, code.CodingSchemeDesignator) for label, code in found] == [
        ("left ventricle", "87878005", "SCT"),
        ("myocardium", "49848007", "SCT"),
        ("right ventricle", "53085002", "SCT"),
    ]
    categories = {
        item.SegmentedPropertyCategoryCodeSequence[0].CodeValue
        for item in objects[0].SegmentSequence
    }
    assert categories == {"91723000"}


def test_a_header_that_cannot_be_referred_to_is_refused_by_name(single) -> None:
    first_slice = [file_of(single, 0, t) for t in range(FRAMES)]
    for file in first_slice:
        edit(file, StudyInstanceUID="1.2.840.10")
    with pytest.raises(ValueError, match="2 StudyInstanceUIDs; a DICOM Segmentation is of one"):
        read_sources(study_in(single))
    for file in first_slice:
        edit(file, StudyInstanceUID="1.2.3", SOPInstanceUID=None)
    with pytest.raises(ValueError, match="no SOPInstanceUID, which a DICOM Segmentation needs"):
        read_sources(study_in(single))


def test_images_without_frame_of_reference_have_objects(single, tmp_path) -> None:
    for file in single.iterdir():
        edit(file, FrameOfReferenceUID=None)
    _, objects = segmented(study_in(single), tmp_path / "out")
    assert all(found.FrameOfReferenceUID for found in objects)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def go(make_model: Callable[..., Path], tmp_path: Path, one_thread: None) -> Callable[..., int]:
    model = make_model(tmp_path / "model")

    def start(*words: object) -> int:
        fixed = ["-m", model, "-o", tmp_path / "out", "-device", "cpu", "--disable_tta"]
        return main([*map(str, ["predict", *words, *fixed])])

    return start


def test_objects_are_added_to_what_is_done(go, single, tmp_path, monkeypatch, capsys) -> None:
    assert go("-i", single) == 0
    folder = tmp_path / "out" / "s_seg_dicom"
    assert not folder.exists()
    monkeypatch.setattr("nnunet_ssp.predict.network.Segmenter", None)  # nothing is segmented again
    assert go("-i", single, "--dicom-seg") == 0
    names = sorted(file.name for file in folder.iterdir())
    assert names == [f"frame_{t:03d}.dcm" for t in range(FRAMES)]
    capsys.readouterr()
    assert go("-i", single, "--dicom-seg") == 0
    assert "1 subject done before" in capsys.readouterr().out
    (folder / names[3]).unlink()
    assert go("-i", single, "--dicom-seg") == 0
    assert sorted(file.name for file in folder.iterdir()) == names


def refusals(out: Path) -> dict[str, str]:
    with open(out / "volumes.csv", newline="") as stream:
        return {row["subject"]: row["refused"] for row in csv.DictReader(stream)}


def test_nifti_keeps_its_results_and_dicom_goes_on(go, single, subject, tmp_path, capsys) -> None:
    file = save(subject.image, tmp_path / "n.nii.gz", subject.affine)
    assert go("-i", single, file) == 0
    assert go("-i", single, file, "--dicom-seg") == 1
    said = "n: no DICOM Segmentations. " + str(file) + ": NIfTI, and `--dicom-seg` needs DICOM"
    assert said in capsys.readouterr().out
    assert refusals(tmp_path / "out") == {"n": "", "s": ""}
    assert (tmp_path / "out" / "s_seg_dicom").is_dir()


def test_an_error_of_highdicom_is_that_of_one_subject(
    go, single, tmp_path, monkeypatch, capsys
) -> None:
    series(tmp_path / "u", PatientID="U")
    real = dicom_seg._segmentation

    def refuse(pixels: np.ndarray, sources: list, *rest: object, **described: object) -> object:
        if sources[0].header.PatientID != "U" and described["instance_number"] == 2:
            raise AttributeError("no such tag")
        return real(pixels, sources, *rest, **described)

    monkeypatch.setattr(dicom_seg, "_segmentation", refuse)
    assert go("-i", single, tmp_path / "u", "--dicom-seg") == 1
    said = capsys.readouterr().out
    assert f"s: no DICOM Segmentations. {single}: highdicom says AttributeError('no such" in said
    assert refusals(tmp_path / "out") == {"s": "", "u": ""}
    assert [folder.name for folder in (tmp_path / "out").glob("*_dicom")] == ["u_seg_dicom"]


def test_objects_of_other_structures_are_removed(go, single, tmp_path) -> None:
    folder = tmp_path / "out" / "s_seg_dicom"
    assert go("-i", single, "--dicom-seg") == 0
    assert go("-i", single, "--frames", 0, 2) == 0
    assert folder.is_dir()
    assert go("-i", single, "--lv", "RV", "--rv", "LV") == 0
    assert not folder.exists()


def test_without_highdicom_nothing_is_begun(go, single, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(dicom_seg.importlib.util, "find_spec", lambda name: None)
    assert go("-i", single, "--dicom-seg") == 1
    assert "pip install 'nnunet-ssp[dicom]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("NNUNET_SSP_REAL_DATA" not in os.environ, reason="needs NNUNET_SSP_REAL_DATA")
def test_objects_of_a_real_study(tmp_path: Path) -> None:
    """Formally invalid dates, empty tags, and another frame of reference in each image, as GE and OsiriX left it."""
    root = Path(os.environ["NNUNET_SSP_REAL_DATA"]) / "sunnybrook_dicom"
    study = study_in(root)
    expected, objects = segmented(study, tmp_path / "out")
    for t, found in list(enumerate(objects))[::7]:
        uids = [row[t].uid for row in study.sources]
        pixels = found.get_pixels_by_source_instance(
            uids, combine_segments=True, assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(pixels.transpose(2, 1, 0), expected[..., t])
        assert found.PatientID == "SCD0000301"
