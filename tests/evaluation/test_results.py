from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_ssp.cohort.cases import read_cases, write_cases
from tests.evaluation.conftest import (
    Document,
    make_case,
    write_image,
)
from tests.evaluation.running import run, tables


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
    assert rows["mim", "HD95 (mm), LV"]["n_better"] == 8
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
