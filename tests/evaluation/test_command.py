from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases, write_cases
from nnunet_ssp.evaluation import report
from nnunet_ssp.evaluation.command import OUTPUTS
from nnunet_ssp.reporting.page import Page
from tests.evaluation.conftest import (
    SPACING,
    heart,
    make_case,
    write_dataset_json,
    write_image,
)
from tests.evaluation.running import Predict, run, strict_json, tables

# -- one model -------------------------------------------------------------------------------------


def test_a_model_from_its_folder_to_its_report(dataset: Path, predict: Predict, capsys):
    predictions = predict("mim", 1.0)
    assert run("114 -np 1", predictions) == 0
    printed = capsys.readouterr().out
    output = predictions.with_name("mim_evaluation")
    assert sorted(path.name for path in output.iterdir()) == sorted(OUTPUTS)
    assert printed.startswith("16 frames (8 ED, 8 ES) of 8 subjects, predicted by mim.\n")
    assert printed.endswith(f"\nReport: {output / 'report.html'}\n")
    assert "LV EF (%)" in printed
    assert "LVBP" not in printed and "MYO" in printed, "the dataset's names are those of the tables"

    metrics, slices, clinical, summary = tables(output)
    assert len(metrics) == 8 * 2 * 3
    assert metrics.duplicated(["model", "seed", "subject", "phase", "class"]).sum() == 0
    assert set(metrics["vendor"]) == {"A", "B"} and set(metrics["phase"]) == {"ED", "ES"}
    assert len(slices) == 8 * 2 * 4 * 3
    assert len(clinical) == 8 * 8

    overall = {row["class"]: row for row in summary["scores"]["all"]}
    of_subject = metrics.groupby(["class", "subject"])["dice"].mean()
    for name in ("LVBP", "LVM", "RV"):
        assert overall[name]["dice_mean"] == pytest.approx(of_subject[name].mean(), rel=1e-4)
    mean = of_subject.groupby("subject").mean()
    assert overall["mean"]["dice_mean"] == pytest.approx(mean.mean(), rel=1e-4)
    assert set(summary["scores"]) == {"all", "phase", "vendor", "centre"}  # no pathology is known
    assert summary["structures"] == {"LV": "LVBP", "MYO": "LVM", "RV": "RV"}
    assert summary["comparisons"] == []
    assert summary == strict_json(output / "summary.json")


def test_a_cross_validation_is_one_model(nnunet, predict, dataset, capsys):
    """The validation folders of two folds, whose references are nnU-Net's own copies."""
    prepared = nnunet / "nnUNet_preprocessed" / dataset.name
    cases = read_cases(dataset / "cases.csv").values()
    train = [make_case(c.subject, c.phase, split="train") for c in cases]
    for folder in (dataset, prepared):
        write_cases(folder / "cases.csv", train)
        (folder / "dataset.json").write_bytes((dataset / "dataset.json").read_bytes())
    (dataset / "labelsTs").rename(prepared / "gt_segmentations")
    val = [[c.case for c in train if int(c.subject[1:]) % 2 == fold] for fold in (0, 1)]
    splits = [{"train": val[1 - fold], "val": val[fold]} for fold in (0, 1)]
    (prepared / "splits_final.json").write_text(json.dumps(splits))
    folders = []
    for fold in (0, 1):
        folder = nnunet / "nnUNet_results/Dataset114_MNMs/T__P__2d" / f"fold_{fold}/validation"
        folders.append(folder)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")  # nnU-Net's own
        for case in val[fold]:
            shutil.copy(prepared / "gt_segmentations" / f"{case}.nii.gz", folder)
    output = nnunet / "out"
    assert run(f"114 T={folders[0]} T={folders[1]} -np 1 -o {output}") == 0
    metrics, *_ = tables(output)
    assert metrics["case"].nunique() == 16 and set(metrics["seed"]) == {0}
    assert run("Dataset114_MNMs -np 1", folders[1]) == 0
    output = folders[1].with_name("validation_evaluation")
    metrics, *_ = tables(output)
    assert set(metrics["model"]) == {"T fold_1"} and metrics["case"].nunique() == 8
    assert (folders[1] / "summary.json").read_text() == "{}"
    capsys.readouterr()
    (folders[0] / f"{val[0][3]}.nii.gz").unlink()
    assert run("114 -np 1", folders[0]) == 1
    assert f"validation has no prediction for 1 case: {val[0][3]}." in capsys.readouterr().err


def test_references_are_no_predictions_and_raw_data_no_place_to_write(
    dataset, predict, nnunet, capsys
):
    references = dataset / "labelsTs"
    assert run("114 -np 1", references) == 1
    assert f"{references}: these are the references" in capsys.readouterr().err
    assert run(f"114 -np 1 -o {nnunet / 'out'} --references {references}", references) == 1
    assert "these are the references" in capsys.readouterr().err
    assert run(f"114 -np 1 -o {dataset / 'evaluation'}", predict("model", 1.0)) == 1
    assert "must lie outside nnUNet_raw" in capsys.readouterr().err
    assert not (dataset / "evaluation").exists()
    shutil.copytree(references, nnunet / "copies")
    assert run("114 -np 1", nnunet / "copies") == 0
    assert "WARNING: copies: every prediction is its reference" in capsys.readouterr().out


def test_a_place_that_one_may_not_write_to_is_told_before_scoring(predict, monkeypatch, capsys):
    model = predict("model", 1.0)
    monkeypatch.setattr("os.access", lambda path, how: False)
    assert run("114 -np 1", model) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {model}_evaluation: permission denied. Choose a place of")


def test_a_tilde_in_a_named_folder_is_the_home(dataset, predict, nnunet, monkeypatch):
    monkeypatch.setenv("HOME", str(nnunet))
    folder = predict("model", 1.0)
    assert run(f"114 -np 1 -o ~/out M=~/{folder.relative_to(nnunet)}") == 0
    assert (nnunet / "out" / "report.html").is_file()


# -- other datasets --------------------------------------------------------------------------------


def plain_dataset(nnunet: Path, labels: dict[str, int | list[int]]) -> Path:
    """Write a dataset without cases.csv, four subjects with two frames, and perfect predictions."""
    raw = nnunet / "nnUNet_raw" / "Dataset027_ACDC"
    write_dataset_json(raw, labels)
    for subject in range(4):
        for frame in (1, 12):
            name = f"patient{subject:03d}_frame{frame:02d}.nii.gz"
            write_image(raw / "labelsTs" / name, heart(8 + subject))
    shutil.copytree(raw / "labelsTs", nnunet / "predicted")
    return nnunet / "predicted"


def test_a_plain_dataset_has_no_clinical_metrics_and_takes_a_pattern(nnunet, capsys):
    predicted = plain_dataset(nnunet, {"background": 0, "RV": 1, "MLV": 2, "LVC": 3})
    assert run("27 -np 1", predicted) == 0
    *_, clinical, summary = tables(nnunet / "predicted_evaluation")
    assert summary["n_subjects"] == 8 and clinical.empty
    assert "No clinical metrics: there is no cases.csv that says" in capsys.readouterr().out
    assert run('27 -np 1 --subject-pattern "(.+)_frame"', predicted) == 0
    *_, summary = tables(nnunet / "predicted_evaluation")
    assert summary["n_subjects"] == 4
    assert run("27 -np 1 --subject-pattern X", predicted) == 1
    assert "`subject_pattern` (=X) must match every case name" in capsys.readouterr().err
    assert run("27 -np 1 --subject-pattern (", predicted) == 1
    assert "error: `subject_pattern` (=() must be a regular exp" in capsys.readouterr().err


def test_structures_that_share_a_value_have_no_volumes(nnunet, capsys):
    predicted = plain_dataset(nnunet, {"background": 0, "LV": [1, 2], "MYO": 2, "RV": 3})
    assert run("27 -np 1", predicted) == 0
    *_, clinical, _ = tables(nnunet / "predicted_evaluation")
    assert clinical.empty
    printed = capsys.readouterr().out
    assert "No clinical metrics: LV, which is taken for LV, and MYO, for MYO, share the" in printed


@pytest.mark.parametrize(("ending", "part"), [(".tif", slice(None)), (".png", 2)])
def test_files_without_spacing_have_neither_distances_nor_volumes(
    nnunet, capsys, ending, part, with_page
):
    raw = nnunet / "nnUNet_raw" / "Dataset027_Plain"
    write_dataset_json(raw, {"background": 0, "LV": 1, "MYO": 2, "RV": 3}, ending)
    for i in range(2):
        for folder, spacing in ((raw / "labelsTs", (1, 1, 1)), (nnunet / "predicted", SPACING)):
            folder.mkdir(exist_ok=True)
            image = SimpleITK.GetImageFromArray(heart(8 + i)[part])
            image.SetSpacing([float(value) for value in spacing[: image.GetDimension()]])
            SimpleITK.WriteImage(image, str(folder / f"a{i}{ending}"))
    shutil.copytree(raw / "labelsTs", raw / "imagesTs")
    for path in (raw / "imagesTs").iterdir():
        path.rename(path.with_name(f"{path.stem}_0000{ending}"))
    assert run("27 -np 1", nnunet / "predicted") == 0
    metrics, _, clinical, _ = tables(nnunet / "predicted_evaluation")
    assert (metrics["dice"] == 1).all() and clinical.empty
    assert metrics[["hd95_mm", "assd_mm", "reference_ml", "predicted_ml"]].isna().all(axis=None)
    printed = capsys.readouterr().out
    assert f"Note: {ending} files hold no spacing: there are no distances and no vol" in printed
    assert f"No clinical metrics: {ending} files hold no spacing, so there are no vol" in printed
    html = (nnunet / "predicted_evaluation/report.html").read_text()
    # Of two cases none is both the best and the median.
    assert "Best: a" in html and "Worst: a" in html and "Median: " not in html


def test_regions_overlap_and_an_ignore_label_forbids_volumes(nnunet, capsys):
    labels: dict[str, int | list[int]] = {"background": 0, "heart": [1, 2, 3], "LV": 1, "RV": 3}
    predicted = plain_dataset(nnunet, labels | {"ignore": 4})
    assert run("27 -np 1", predicted) == 0
    metrics, *_ = tables(nnunet / "predicted_evaluation")
    own = metrics.set_index(["case", "class"])["reference_ml"].unstack()
    assert (own["heart"] > own["LV"] + own["RV"]).all()
    assert "No clinical metrics: the dataset has an ignore label" in capsys.readouterr().out


def test_nominal_spacing_has_no_distances_and_no_volumes(
    dataset, predict, tmp_path, capsys, with_page
):
    assert run("114 -np 1 --spacing-unknown", predict("mim", 1.0)) == 0
    metrics, _, clinical, summary = tables(tmp_path / "mim_evaluation")
    assert metrics[["hd95_mm", "assd_mm", "reference_ml", "predicted_ml"]].isna().all(axis=None)
    assert metrics["dice"].notna().all()
    assert clinical.empty
    assert "nominal" in summary["clinical_refused"]["all"]
    printed = capsys.readouterr().out
    assert "No clinical metrics: the spacing is nominal (--spacing-unknown)" in printed
    html = (tmp_path / "mim_evaluation/report.html").read_text()
    assert "HD95 (mm)" not in html and "None: the spacing is nominal" in html


def test_subjects_without_es_are_refused_with_the_reason(dataset, predict, tmp_path, capsys):
    (dataset / "labelsTs" / "T2_frame07.nii.gz").unlink()
    assert run("114 -np 1", predict("mim", 1.0)) == 0
    *_, clinical, summary = tables(tmp_path / "mim_evaluation")
    assert "T2" not in set(clinical["subject"])
    assert summary["clinical_refused"] == {"T2": "no ES frame"}
    assert "No clinical metrics of T2: no ES frame." in capsys.readouterr().out


def test_classes_that_were_not_labelled_are_left_out_and_said_so(
    dataset, predict, tmp_path, capsys
):
    predictions = predict("mim", 1.0)
    for path in (dataset / "labelsTs").iterdir():
        stack = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        stack[stack == 3] = 0
        if "frame07" in path.name:
            stack[stack == 2] = 0
        write_image(path, stack)
    assert run("114 -np 1", predictions) == 0
    metrics, _, clinical, _ = tables(tmp_path / "mim_evaluation")
    found = metrics.groupby("class")["phase"].unique().map(sorted).to_dict()
    assert found == {"LVBP": ["ED", "ES"], "LVM": ["ED"]}
    assert set(clinical["figure"]) == {"LV EDV", "LV ESV", "LV SV", "LV EF", "LV mass"}
    printed = capsys.readouterr().out
    assert "Note: MYO is in no reference at ES, so it is left out there." in printed
    assert "there. It is in 8 of 8 predictions." in printed
    assert (
        "Note: RV is in no reference, so it is left out. It is in 16 of 16 predictions" in printed
    )


def test_references_without_any_label_are_refused(dataset, predict, capsys):
    predictions = predict("mim", 1.0)
    for path in (dataset / "labelsTs").iterdir():
        write_image(path, np.zeros_like(heart()))
    assert run("114 -np 1", predictions) == 1
    assert "error: No reference holds any class of the dataset" in capsys.readouterr().err


# -- what users get wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("999 mim", "no dataset 999 here"),
        ("114 nowhere", "nowhere is not a folder."),
        ("114 a= -o x", "`predictions` (=a=) must be FOLDER or NAME=FOLDER."),
        ("114 mim ./mim -o x", "`predictions` (=./mim) must have a name of its own, mim is taken"),
        ("114 mim x=./mim -o x", "`predictions` (=x=./mim) must be a folder that is not given twi"),
        ("114 mim mim2", "`-o` must name the folder to write to"),
        ("114 mim -o mim", "`-o` (=mim) must be another folder than the label maps'."),
        ("114 mim --baseline x", "`--baseline` (=x) must be one of mim."),
        ("114 mim --lv heart", "`--lv` (=heart) must be a class of "),
        ("114 mim --references nowhere", "nowhere is not a folder."),
        ("114 mim -np 0", "`workers` (=0) must be at least 1."),
    ],
)
def test_what_users_get_wrong(dataset, predict, monkeypatch, capsys, line, message):
    monkeypatch.chdir(predict("mim", 1.0).parent)
    assert run(line) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not list(Path().glob("*_evaluation"))


def test_predictions_one_folder_below_are_named(dataset, predict, capsys):
    folder = predict("mim", 1.0)
    above = folder.parent / "predictions"
    for name in ("f1", "f0", "empty"):
        (above / name).mkdir(parents=True)
    for name in ("f1", "f0"):
        for file in folder.glob("*.nii.gz"):
            shutil.copy(file, above / name)
    assert run("114", above) == 1
    said = capsys.readouterr().err
    assert (
        f"{above} holds no .nii.gz file. Its folders hold some: f0, f1. Give {above / 'f0'}."
        in said
    )


def test_missing_and_foreign_predictions_are_named(dataset, predict, capsys):
    predictions = predict("mim", 1.0)
    path = predictions / "T5_frame00.nii.gz"
    stack = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    write_image(path, stack, spacing=(8, 1, 1))
    assert run("114 -np 1", predictions) == 1
    message = "mim/T5_frame00.nii.gz (spacing=(1.0, 1.0, 8.0)) must have the spacing of "
    assert message in capsys.readouterr().err
    path.unlink()
    assert run("114 -np 1", predictions) == 1
    assert "mim has no prediction for 1 case: T5_frame00." in capsys.readouterr().err


def test_nothing_is_written_if_the_page_fails(dataset, predict, tmp_path, monkeypatch):
    def fail(evaluation: object) -> Page:
        raise ValueError("no page")

    monkeypatch.setattr(report, "evaluation_page", fail)
    assert run("114 -np 1", predict("mim", 1.0)) == 1
    assert not (tmp_path / "mim_evaluation").exists()


def test_folders_are_known_by_where_they_are(dataset, predict, tmp_path, monkeypatch):
    monkeypatch.chdir(predict("mim", 1.0))
    assert run("114 . -np 1") == 0
    *_, summary = tables(tmp_path / "mim_evaluation")
    assert summary["models"] == {"mim": [str(tmp_path / "mim")]}


def test_a_dataset_without_dataset_json_is_named(dataset, predict, capsys):
    (dataset / "dataset.json").unlink()
    assert run("114 -np 1", predict("mim", 1.0)) == 1
    assert f"error: {dataset / 'dataset.json'} is missing." in capsys.readouterr().err


def test_a_folder_may_have_an_equals_sign_in_its_name(dataset, predict, tmp_path):
    assert run("114 -np 1", predict("lr=0.1", 1.0)) == 0
    metrics, *_ = tables(tmp_path / "lr=0.1_evaluation")
    assert set(metrics["model"]) == {"lr=0.1"}


def test_cases_that_cases_csv_does_not_know_are_named(dataset, predict, capsys):
    write_cases(dataset / "cases.csv", list(read_cases(dataset / "cases.csv").values())[:-1])
    assert run("114 -np 1", predict("mim", 1.0)) == 1
    assert "cases.csv must have a row for T7_frame07." in capsys.readouterr().err


def test_combined_sources_tell_their_subjects_apart(dataset, predict, tmp_path):
    cases = [make_case(c.subject, c.phase) for c in read_cases(dataset / "cases.csv").values()]
    renamed = [type(c)(**(vars(c) | {"source": "mm2"})) if c.subject < "T4" else c for c in cases]
    write_cases(dataset / "cases.csv", renamed)
    assert run("114 -np 1", predict("mim", 1.0)) == 0
    metrics, *_ = tables(tmp_path / "mim_evaluation")
    assert sorted(metrics["subject"].unique())[::4] == ["mm1-T4", "mm2-T0"]


def moved(source: Path, target: Path, name: str) -> None:
    """Write a label map moved by two pixels, on the same grid."""
    image = SimpleITK.ReadImage(str(source))
    array = np.roll(SimpleITK.GetArrayFromImage(image), 2, axis=2)
    prediction = SimpleITK.GetImageFromArray(array)
    prediction.CopyInformation(image)
    target.mkdir(exist_ok=True)
    SimpleITK.WriteImage(prediction, str(target / name))


def test_real_sunnybrook_has_what_its_labels_allow(real_data: Path, nnunet: Path, capsys):
    source = str(real_data / "sunnybrook_mnms")
    assert main(["convert", "mnms", "-i", source, "-d", "120", "--name", "S", "-np", "2"]) == 0
    raw = nnunet / "nnUNet_raw" / "Dataset120_S"
    for path in (raw / "labelsTr").iterdir():
        moved(path, nnunet / "moved", path.name)
    capsys.readouterr()
    assert run("120 -np 1", nnunet / "moved") == 0
    metrics, _, clinical, summary = tables(nnunet / "moved_evaluation")
    found = metrics.groupby("class")["phase"].unique().map(sorted).to_dict()
    assert found == {"LVBP": ["ED", "ES"], "LVM": ["ED"]}
    assert set(clinical["figure"]) == {"LV EDV", "LV ESV", "LV SV", "LV EF", "LV mass"}
    fractions = clinical.loc[clinical["figure"] == "LV EF", "reference"]
    assert fractions.between(5, 45).all()  # heart failure with infarct
    volumes = clinical.loc[clinical["figure"] == "LV EDV", "reference"]
    assert volumes.between(100, 500).all()
    assert 0.7 < summary["scores"]["all"][0]["dice_mean"] < 1
    printed = capsys.readouterr().out
    assert "Note: MYO is in no reference at ES" in printed and "Note: RV is in no" in printed


def test_real_acdc_has_nominal_spacing(real_data: Path, nnunet: Path, capsys):
    raw = nnunet / "nnUNet_raw" / "Dataset027_ACDC"
    write_dataset_json(raw, {"background": 0, "RV": 1, "MLV": 2, "LVC": 3})
    (raw / "labelsTs").mkdir()
    masks = sorted((real_data / "acdc60" / "training").glob("*/*_gt.nii.gz"))[:20]
    for path in masks:
        name = path.name.replace("_gt", "")
        shutil.copy(path, raw / "labelsTs" / name)
        moved(path, nnunet / "moved", name)
    line = '27 -np 1 --spacing-unknown --subject-pattern "(.+)_frame"'
    assert run(line, nnunet / "moved") == 0
    metrics, _, clinical, summary = tables(nnunet / "moved_evaluation")
    assert (len(metrics), summary["n_subjects"]) == (60, 10)
    assert clinical.empty and metrics["hd95_mm"].isna().all()
    assert summary["structures"] == {"LV": "LVC", "MYO": "MLV", "RV": "RV"}
    assert "No clinical metrics: the spacing is nominal" in capsys.readouterr().out


def test_without_a_report_there_is_none_of_before(
    dataset: Path, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    output = tmp_path / "out"
    output.mkdir()
    (output / "report.html").write_text("of other predictions")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # nothing is drawn
    assert run(f"114 {predict('full', 1.0)} -np 1 --no-report -o {output}") == 0
    assert {file.name for file in output.iterdir()} == {*OUTPUTS} - {"report.html"}
    assert capsys.readouterr().out.endswith(f"\nTables: {output}\n")


def test_a_full_disk_leaves_the_earlier_files(
    dataset: Path, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    output = tmp_path / "out"
    line = f"114 {predict('full', 1.0)} -np 1 -o {output}"
    assert run(line) == 0
    before = {file.name: file.read_bytes() for file in output.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(output / "report.html"))

    monkeypatch.setattr(Page, "write", full)
    for file in output.iterdir():
        file.write_bytes(b"earlier")
    assert run(line) == 1
    assert f"error: {output / 'report.html'}: no space left." in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in output.iterdir()} == dict.fromkeys(
        before, b"earlier"
    )
