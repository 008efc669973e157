"""4D masks of `predict` are scored as the frames that they hold."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from nnunet_ssp.dataset_conversion import cine
from nnunet_ssp.evaluation.cine import cine_files, read_frame
from nnunet_ssp.evaluation.command import evaluate
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.files.nifti import write_nifti
from nnunet_ssp.phantom import PhantomSubject, make_subject
from nnunet_ssp.predict.command import Procedure, run
from nnunet_ssp.predict.inputs import find_studies
from nnunet_ssp.predict.results import Output
from tests.predict.conftest import save

NAMES = ("LV", "MYO", "RV")


class TrueMasks:
    """Gives the true masks of the subjects in turn."""

    def __init__(self, subjects: list[PhantomSubject]) -> None:
        self.masks = [subject.labels for subject in subjects]

    def segment(self, voxels: np.ndarray, affine: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        return ((frame, 0.0) for frame in np.moveaxis(self.masks.pop(0), -1, 0))


@pytest.fixture
def predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `predict`, of two subjects that are in dataset 904 under pseudonyms."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    subjects = [make_subject(i, seed=3, matrix=48, frames=8, slices=5) for i in range(2)]
    for subject in subjects:
        # Slices on the first axis: the dataset has them on the third, the mask where the image has them.
        turned = (2, 0, 1, 3)
        affine = subject.affine[:, [2, 0, 1, 3]]
        file = tmp_path / "in" / f"{subject.code}.nii.gz"
        save(subject.image.transpose(turned), file, affine)
        save(subject.mask.transpose(turned), file.with_name(f"{subject.code}_gt.nii.gz"), affine)
    cine.convert(tmp_path / "in", 904, "Cine", workers=1)
    labels = Labels({n: (v,) for v, n in enumerate(NAMES, 1)}, structures={n: n for n in NAMES})
    tasks, _ = find_studies([tmp_path / "in"], False, (), 1)
    masks = TrueMasks(sorted(subjects, key=lambda subject: subject.code))
    (tmp_path / "out").mkdir()
    run(tasks, {}, Output(tmp_path / "out"), Procedure(labels, lambda: masks), {"digest": "m"})
    return tmp_path / "out"


def test_volumes_of_predict_and_evaluate_are_the_same_numbers(predicted, capsys, tmp_path) -> None:
    evaluate(904, [str(predicted)], output=tmp_path / "evaluation", workers=1)
    said = capsys.readouterr().out
    for phase in ("ED", "ES"):
        assert f"{phase} found is 0.0 frames from the labelled one on average, at most 0" in said
    scores = pd.read_csv(tmp_path / "evaluation" / "metrics.csv")
    assert len(scores) == 2 * 2 * 3
    assert (scores["dice"] == 1).all()
    clinical = pd.read_csv(tmp_path / "evaluation" / "clinical.csv")
    figures = clinical.pivot(index="subject", columns="figure", values="predicted")
    with open(predicted / "volumes.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for column, figure in {
        "lv_edv_ml": "LV EDV",
        "lv_esv_ml": "LV ESV",
        "lv_ef_percent": "LV EF",
        "lv_mass_g": "LV mass",
        "rv_ef_percent": "RV EF",
    }.items():
        mine = sorted(float(row[column]) for row in rows)
        np.testing.assert_allclose(mine, sorted(figures[figure]), rtol=2e-5)
    # Pseudonyms stay in the evaluation's files.
    names = [file.name.split("_")[0] for file in predicted.glob("*_seg.nii.gz")]
    assert not any(name in (tmp_path / "evaluation" / "metrics.csv").read_text() for name in names)


def test_a_found_phase_elsewhere_is_said_in_frames(predicted, capsys, tmp_path) -> None:
    table = pd.read_csv(predicted / "phases.csv")
    found = table.index[table["phase"] == "ED"][0]
    n_frames = 8
    start = found - table["frame"][found]
    table.loc[found, "phase"] = None
    table.loc[start + (table["frame"][found] - 3) % n_frames, "phase"] = "ED"
    table.to_csv(predicted / "phases.csv", index=False)
    evaluate(904, [str(predicted)], output=tmp_path / "evaluation", workers=1)
    assert "ED found is 1.5 frames" in capsys.readouterr().out


def test_a_folder_of_other_subjects_is_an_error(predicted, tmp_path) -> None:
    for file in predicted.glob("*_seg.nii.gz"):
        file.rename(predicted / f"other{file.name}")
    with pytest.raises(FileNotFoundError, match="no 4D mask of it is of a subject with references"):
        evaluate(904, [str(predicted)], output=tmp_path / "evaluation", workers=1)


def test_a_frame_has_the_grid_of_a_converted_one(tmp_path: Path) -> None:
    subject = make_subject(1, seed=3, matrix=48, frames=3, slices=4)
    save(subject.labels, tmp_path / "a_seg.nii.gz", subject.affine)
    write_nifti(tmp_path / "a_frame02.nii.gz", subject.labels[..., 2], subject.affine)
    frame, file = read_frame(tmp_path / "a_seg.nii.gz", "a_frame02"), tmp_path / "a_frame02.nii.gz"
    expected = sitk.ReadImage(str(file))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(frame), sitk.GetArrayFromImage(expected))
    for name in ("Spacing", "Origin", "Direction"):
        ours, theirs = (getattr(image, f"Get{name}")() for image in (frame, expected))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    with pytest.raises(ValueError, match="has 3 frames, not frame 7"):
        read_frame(tmp_path / "a_seg.nii.gz", "a_frame07")
    assert nibabel.load(tmp_path / "a_seg.nii.gz").shape[3] == 3


def test_files_are_found_by_the_user_s_name(tmp_path: Path) -> None:
    (tmp_path / "b_seg.nii.gz").write_bytes(b"")
    found = cine_files(tmp_path, ["s1_frame00", "s1_frame05", "s2_frame00", "other"], {
        "s1_frame00": "b", "s1_frame05": "b"})  # fmt: skip
    assert found == {case: tmp_path / "b_seg.nii.gz" for case in ("s1_frame00", "s1_frame05")}
