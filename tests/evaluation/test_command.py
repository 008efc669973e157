from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases, write_cases
from nnunet_ssp.evaluation import report
from nnunet_ssp.evaluation.command import OUTPUTS
from nnunet_ssp.reporting.page import Page
from tests.evaluation.conftest import (
    SPACING,
    Document,
    heart,
    make_case,
    write_dataset,
    write_dataset_json,
    write_image,
    write_predictions,
)

Predict = Callable[..., Path]


def run(line: str, *more: object) -> int:
    return main(["evaluate", *shlex.split(line), *map(str, more)])


def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict]:
    csvs = (pd.read_csv(folder / f"{name}.csv") for name in ("metrics", "slices", "clinical"))
    return *csvs, json.loads((folder / "summary.json").read_text())


def strict_json(path: Path) -> dict:
    """JSON as the standard has it: without NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures but where a test asks for them: drawing takes longer than all the rest."""
    if not {"reports", "with_page"} & set(request.fixturenames):
        monkeypatch.setattr(report, "evaluation_page", lambda evaluation: Page("no pictures"))


@pytest.fixture
def with_page() -> None:
    """Write the whole page."""


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


def test_dice_agrees_with_nnunets_evaluator_on_the_folder(dataset, predict, tmp_path):
    evaluator = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    predictions = predict("mim", 1.0)
    assert run("114 -np 1", predictions) == 0
    metrics, *_ = tables(tmp_path / "mim_evaluation")
    for path in predictions.iterdir():
        expected = evaluator.compute_metrics(
            str(dataset / "labelsTs" / path.name), str(path), SimpleITKIO(), [1, 2, 3]
        )["metrics"]
        own = metrics[metrics["case"] == path.name.removesuffix(".nii.gz")].set_index("class")
        for label, name in enumerate(("LVBP", "LVM", "RV"), start=1):
            assert own.loc[name, "dice_nan"] == pytest.approx(expected[label]["Dice"], rel=1e-5)


def test_volumes_and_their_errors_are_those_of_the_files(dataset, predict, tmp_path):
    assert run("114 -np 1", predict("mim", 1.0)) == 0
    *_, clinical, _ = tables(tmp_path / "mim_evaluation")
    own = clinical[clinical["subject"] == "T3"].set_index("figure")
    ml = {}
    for folder in ("mim", "nnUNet_raw/Dataset114_MNMs/labelsTs"):
        for frame in (0, 7):
            image = SimpleITK.ReadImage(str(tmp_path / folder / f"T3_frame0{frame}.nii.gz"))
            count = (SimpleITK.GetArrayFromImage(image) == 1).sum()
            ml[Path(folder).name, frame] = count * np.prod(image.GetSpacing()) / 1000
    reference = 100 * (1 - ml["labelsTs", 7] / ml["labelsTs", 0])
    predicted = 100 * (1 - ml["mim", 7] / ml["mim", 0])
    assert own.loc["LV EDV", "reference"] == pytest.approx(ml["labelsTs", 0], rel=1e-5)
    assert own.loc["LV EF", "error"] == pytest.approx(predicted - reference, rel=1e-3, abs=1e-3)


def test_perfect_predictions(dataset, tmp_path):
    shutil.copytree(dataset / "labelsTs", tmp_path / "perfect")
    assert run("114 -np 1", tmp_path / "perfect") == 0
    metrics, slices, clinical, _ = tables(tmp_path / "perfect_evaluation")
    assert (metrics[["dice", "dice_nan"]] == 1).all(axis=None)
    assert (metrics[["hd95_mm", "assd_mm", "missed"]] == 0).all(axis=None)
    assert (slices["dice"] == 1).all()
    assert (clinical["error"] == 0).all()


def test_a_class_that_a_model_never_finds(dataset, predict, tmp_path):
    predictions = predict("blind", 0)
    for path in predictions.iterdir():
        stack = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        write_image(path, np.where(stack == 3, 0, stack).astype(np.uint8))
    assert run("114 -np 1", predictions) == 0
    metrics, _, clinical, summary = tables(tmp_path / "blind_evaluation")
    right = metrics[metrics["class"] == "RV"]
    assert (right["dice"] == 0).all() and (right["missed"] == 1).all()
    assert right["hd95_mm"].isna().all()
    row = next(row for row in summary["scores"]["all"] if row["class"] == "RV")
    assert (row["missed"], row["hd95_mm_mean"], row["dice_mean"]) == (16, None, 0)
    rv = clinical[clinical["figure"] == "RV EF"]
    assert rv["predicted"].isna().all() and rv["reference"].notna().all()


@pytest.mark.parametrize(
    ("base", "bins"), [("first", {0, 9}), ("last", {0, 9}), ("unknown", set())]
)
def test_positions_count_from_the_base(dataset, predict, tmp_path, base, bins):
    predictions = predict("mim", 0)
    for path in predictions.iterdir():
        stack = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        stack[1] = 0  # the first slice with labels
        write_image(path, stack)
    cases = read_cases(dataset / "cases.csv").values()
    write_cases(dataset / "cases.csv", [make_case(c.subject, c.phase, base=base) for c in cases])
    assert run("114 -np 1", predictions) == 0
    *_, summary = tables(tmp_path / "mim_evaluation")
    dice = {row["bin"]: row["mean"] for row in summary["slices"] if row["class"] == "LVBP"}
    assert bins <= set(dice)
    if bins:
        assert dice[0 if base == "first" else 9] == 0
        assert dice[9 if base == "first" else 0] == 1
    else:
        assert dice == {}


# -- several models --------------------------------------------------------------------------------


def test_models_are_compared_by_subject(dataset, predict, tmp_path, capsys):
    seeds = {
        name: [str(predict(f"{name}{seed}", pixels, seed)) for seed in range(2)]
        for name, pixels in (("scratch", 2.5), ("mim", 0.7))
    }
    one = predict("one", 1.5, 5)
    options = f"-np 1 -o {tmp_path / 'out'} --baseline scratch"
    named = [f"{name}={folder}" for name, folders in seeds.items() for folder in folders]
    assert run(f"114 {one} {' '.join(named)} {options}") == 0
    metrics, _, _, summary = tables(tmp_path / "out")
    assert list(summary["models"]) == ["one", "scratch", "mim"]
    assert metrics.groupby("model")["seed"].nunique().to_dict() == {
        "one": 1,
        "scratch": 2,
        "mim": 2,
    }

    rows = {(r["model"], r["score"]): r for r in summary["comparisons"]}
    assert {model for model, _ in rows} == {"one", "mim"}
    row = rows["mim", "Dice, mean"]
    means = metrics.groupby(["model", "subject"])["dice"].mean()
    assert row["difference"] == pytest.approx((means["mim"] - means["scratch"]).mean(), rel=1e-3)
    assert row["p"] == 1 / 2**8 and row["n_better"] == 8
    assert row["p_holm"] == pytest.approx(2 * row["p"])
    assert rows["mim", "HD95 (mm), mean"]["difference"] < 0
    assert rows["mim", "HD95 (mm), mean"]["n_better"] == 8
    assert rows["mim", "HD95 (mm), LVBP"]["n_better"] == 8
    assert ("mim", "LV EF (%), absolute error") in rows

    scratch = metrics[metrics["model"] == "scratch"]
    of_seed = scratch.groupby(["seed", "subject"])["dice"].mean().groupby("seed").mean()
    mean = next(
        r for r in summary["scores"]["all"] if (r["model"], r["class"]) == ("scratch", "mean")
    )
    assert mean["dice_sd_seeds"] == pytest.approx(of_seed.std(ddof=1), rel=1e-4)
    printed = capsys.readouterr().out
    assert "predicted by one, scratch (2 seeds) and mim (2 seeds)." in printed
    assert "Mean Dice compared with scratch:\n  one: +" in printed
    assert "better on 8 of 8 subjects; p 0.004, after Holm 0.008" in printed


def test_a_model_that_misses_a_class_is_compared_on_what_it_has(
    dataset, predict, tmp_path, capsys, with_page
):
    full, blind = predict("full", 1.0), tmp_path / "blind"
    for path in full.iterdir():
        stack = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        if path.name.startswith("T0"):
            stack[stack == 1] = 0  # no LV EDV, so no LV EF
        write_image(blind / path.name, np.where(stack == 3, 0, stack).astype(np.uint8))
    assert run(f"114 {full} {blind} -np 1 -o {tmp_path / 'out'}") == 0
    *_, summary = tables(tmp_path / "out")
    rows = {row["score"]: row for row in summary["comparisons"]}
    mean = rows["HD95 (mm), mean"]
    assert (mean["difference"], mean["n_better"], mean["n_subjects"]) == (0, 0, 8)
    assert (mean["missed"], mean["missed_baseline"]) == (16 + 2, 0)
    assert (rows["ASSD (mm), RV"]["n_subjects"], rows["ASSD (mm), RV"]["difference"]) == (0, None)
    assert rows["Dice, RV"]["difference"] < -0.5
    fraction = rows["LV EF (%), absolute error"]
    assert (fraction["n_subjects"], fraction["missed"]) == (7, 1)
    printed = capsys.readouterr().out
    assert "Mean HD95 (mm) compared with full where neither missed a class:\n  blind: +0" in printed
    assert "after Holm 1.000; missed 18, full 0\n" in printed
    text = " ".join(Document((tmp_path / "out/report.html").read_text("utf-8")).text)
    assert "HD95 (mm), mean blind +0.000" in text and "18 / 0" in text and "nan" not in text


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


# -- other datasets --------------------------------------------------------------------------------


def plain_dataset(nnunet: Path, labels: dict[str, int | list[int]]) -> Path:
    """A dataset without cases.csv: four subjects with two frames, and perfect predictions."""
    raw = nnunet / "nnUNet_raw" / "Dataset027_ACDC"
    write_dataset_json(raw, labels)
    for subject in range(4):
        for frame in (1, 12):
            name = f"patient{subject:03d}_frame{frame:02d}.nii.gz"
            write_image(raw / "labelsTs" / name, heart(8 + subject))
    shutil.copytree(raw / "labelsTs", nnunet / "predicted")
    return nnunet / "predicted"


def test_a_plain_dataset_has_no_clinical_figures_and_takes_a_pattern(nnunet, capsys):
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
    assert "Note: LVM is in no reference at ES, so it is left out there." in printed
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


def test_images_that_do_not_fit_are_left_out_of_the_overlays(dataset, predict, tmp_path, with_page):
    predictions = predict("m$im", 1.0)
    images = sorted((dataset / "imagesTs").iterdir())
    images[0].write_bytes(b"no image")
    for path in images[1:13]:
        write_image(path, heart()[1:])
    assert run("114 -np 1", predictions) == 0
    page = Document((tmp_path / "m$im_evaluation/report.html").read_text("utf-8"))
    (note,) = (text for text in page.text if text.startswith("Note: left out, as the image cannot"))
    assert "T0_frame00" in note or "T0_frame07" in note
    (best,) = (text for text in page.text if text.startswith("Best: "))
    metrics, *_ = tables(tmp_path / "m$im_evaluation")
    own = metrics[metrics["case"].isin([path.name[:10] for path in images[13:]])]
    means = own.groupby("case")["dice"].mean()
    assert best.startswith(f"Best: {means.idxmax()}, E")
    assert f"mean {means.max():.2f}." in best


def test_captions_say_which_seed_is_shown(dataset, predict, tmp_path, with_page):
    first, second = predict("first", 0), predict("second", 2.0)
    assert run(f"114 mim={first} mim={second} -np 1 -o {tmp_path / 'out'}") == 0
    page = Document((tmp_path / "out/report.html").read_text("utf-8"))
    text = " ".join(page.text)
    assert "of all classes, models and seeds; shown is the first seed of each model." in text
    assert "Missed: frames with the class in only one of the two, summed over seeds;" in text
    for title in ("Best", "Median", "Worst"):
        (caption,) = (line for line in page.text if line.startswith(f"{title}: "))
        assert caption.endswith("Dice of LVBP 1.00, LVM 1.00, RV 1.00, mean 1.00.")
    assert "Means over the subjects that have the figure in reference and prediction" in text


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


# -- the page --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of one model and of two, with an overlay for each."""
    folder = tmp_path_factory.mktemp("reports")
    raw = folder / "raw" / "Dataset114_MNMs"
    write_dataset(raw)
    models = [
        write_predictions(folder / f"m{i}", raw / "labelsTs", 1.0 + i / 4, i) for i in range(2)
    ]
    line = " ".join(f"model-with-a-long-name-{path.name}={path}" for path in models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(raw.parent))
        patch.setattr(report, "MODELS_PER_OVERLAY", 1)
        assert run("114 -np 1", models[0]) == 0
        assert run(f"114 {line} -np 1 -o {folder / 'two'}") == 0
    return {name: folder / name / "report.html" for name in ("m0_evaluation", "two")}


def test_the_page_has_every_part_and_asks_for_nothing(reports):
    for name, path in reports.items():
        html = path.read_text(encoding="utf-8")
        document = Document(html)
        heads = re.findall("<h2>(.*?)</h2>", html)
        compared = ["Compared with model-with-a-long-name-m0"] * (name == "two")
        assert heads == [
            "Overlap and distance",
            *compared,
            "Best, median and worst",
            "Clinical metrics",
            "From base to apex",
            "By phase, vendor, centre and pathology",
            "Subjects",
            "How it was measured",
        ]
        for image in document.all("img") + document.all("source"):
            assert (image.get("src") or image["srcset"]).startswith("data:image/png;base64,")
            assert image.get("alt") or "srcset" in image
        assert "http://" not in html and "https://" not in html
        after = document.text[document.text.index("3D Dice") + 1 :]
        assert after[0] == "nnU-Net’s"
        assert after.index("Missed") < after.index("HD95 (mm)")
        models, overlays = (2, 6) if name == "two" else (1, 3)
        assert len(document.all("img")) == 1 + overlays + 8 * models + 3


def test_the_page_fits_a_phone(reports, tmp_path):
    """In a headless browser, where there is one: nothing but boxes that scroll is wider than it."""
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("there is no Chromium here")
    measure = """<script>onload = () => {
      const page = document.querySelector('iframe').contentDocument, root = page.documentElement;
      const images = [...page.images];
      document.body.textContent = JSON.stringify({width: root.scrollWidth, room: root.clientWidth,
        drawn: images.filter(i => i.complete && i.naturalWidth > 0).length, all: images.length,
        text: parseFloat(page.defaultView.getComputedStyle(page.querySelector('td')).fontSize)});
    }</script>"""
    for number, path in enumerate(reports.values()):
        inner = path.read_text(encoding="utf-8").replace('"', "&quot;")
        page = f'{measure}<iframe width="360" height="800" style="border: 0" srcdoc="{inner}">'
        outer = tmp_path / f"outer{number}.html"
        outer.write_text(f'<!doctype html><meta charset="utf-8">{page}</iframe>', encoding="utf-8")
        command = [browser, "--headless=new", "--disable-gpu", "--virtual-time-budget=10000"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", outer.as_uri()]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.insert(1, "--no-sandbox")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        body = done.stdout.partition("<body>")[2].partition("</body>")[0]
        seen = json.loads(body)
        assert seen["width"] <= seen["room"] <= 360
        assert seen["drawn"] == seen["all"] > 0
        assert seen["text"] >= 14


# -- real masks ------------------------------------------------------------------------------------


def moved(source: Path, target: Path, name: str) -> None:
    """A label map moved by two pixels, on the same grid."""
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
    assert "Note: LVM is in no reference at ES" in printed and "Note: RV is in no" in printed


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
