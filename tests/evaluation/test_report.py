from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nnunet_ssp.evaluation import report
from tests.browser import WIDTHS, measured, seen
from tests.evaluation.conftest import (
    Document,
    heart,
    write_dataset,
    write_image,
    write_predictions,
)
from tests.evaluation.running import run, tables


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
    assert text.count("LVBP") == 1 and "say LVBP for LV, LVM for MYO." in text
    assert "Missed: frames with the class in only one of the two, summed over seeds;" in text
    for title in ("Best", "Median", "Worst"):
        (caption,) = (line for line in page.text if line.startswith(f"{title}: "))
        assert caption.endswith("Dice of LV 1.00, MYO 1.00, RV 1.00, mean 1.00.")
    assert "Means over the subjects that have the metric in reference and prediction" in text


def test_few_subjects_have_no_pictures_that_say_nothing(dataset, predict, tmp_path, with_page):
    predictions = predict("mim", 1.0)
    few, references = tmp_path / "few", tmp_path / "references"
    for folder in (few, references):
        folder.mkdir()
    for n, path in enumerate(sorted(predictions.iterdir())[:2], 1):
        shutil.copy(path, few)
        shutil.copy(dataset / "labelsTs" / path.name, references)
        assert run(f"114 {few} --references {references} -np 1") == 0
        html = (tmp_path / "few_evaluation/report.html").read_text("utf-8")
        assert ("<h2>Best and worst</h2>" in html) == (n == 2)
        assert ("<h2>The only frame</h2>" in html) == (n == 1)
        assert "Median" not in html and "Bland-Altman plot of" not in html
        left_out = (
            "95 % CI, 95 % limits of agreement, r and p values take 6 subjects and are left out"
        )
        assert f"{left_out}: this is 1." in html
        assert ("and Bland-Altman plot: they take 6 subjects with the metric" in html) == (n == 2)


def test_plots_of_agreement_name_the_model_where_there_are_several(monkeypatch):
    names = []
    monkeypatch.setattr(report, "bland_altman", lambda *given: names.append(given[3]))
    numbers = {"reference": 100.0, "predicted": 101.0, "error": 1.0}
    clinical = pd.DataFrame({"model": [*"AAABBB"], "figure": "EDV", **numbers})
    line = {"lower": -1.0, "bias": 0.0, "upper": 1.0, "n_subjects": 6, "unit": "ml"}
    agreement = pd.DataFrame({"model": [*"AB"], "figure": "EDV", **line})
    for models in ("AB", "A"):
        evaluation = SimpleNamespace(clinical=clinical, agreement=agreement, models={*models})
        assert len([*report._bland_altman_plots(evaluation, "A")]) == 1
    assert names == ["EDV, A", "EDV"]


def test_positions_have_a_curve_for_each_phase(dataset, predict, tmp_path, with_page, monkeypatch):
    drawn = {}
    draw = report.curves_with_bands
    monkeypatch.setattr(
        report,
        "curves_with_bands",
        lambda curves, *words: drawn.update({words[-1]: curves}) or draw(curves, *words),
    )
    one, two = predict("one", 1.0), predict("two", 2.0)
    assert run("114 -np 1", one) == 0
    assert {title: [*curves] for title, curves in drawn.items()} == {
        name: ["ED", "ES"] for name in ("LV", "MYO", "RV")
    }
    drawn.clear()
    assert run(f"114 {one} {two} -np 1 -o {tmp_path / 'out'}") == 0
    titles = [f"{name}, {phase}" for name in ("LV", "MYO", "RV") for phase in ("ED", "ES")]
    assert {title: [*curves] for title, curves in drawn.items()} == {
        title: ["one", "two"] for title in titles
    }
    for curves in drawn.values():
        for places, means, _ in curves.values():
            assert len(places) == len(means) > 2 and (np.diff(places) > 0).all()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the reports of one model and of two, with an overlay for each."""
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
        heads = re.findall("<h2>(.*?)</h2>", html.replace("<wbr>", ""))
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
        assert len(document.all("img")) == 1 + overlays + (8 + 3) * models


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_a_desktop_and_a_phone(reports, tmp_path, width):
    """Only boxes that scroll are wider than the page."""
    for path in reports.values():
        page = seen(path, width, tmp_path)
        assert page["width"] <= page["room"] <= width
        assert page["drawn"] == page["all"] > 0
        assert page["text"] >= 14
        assert page["hidden"] == 0  # a table that scrolls has a bar
        assert page["wide"] > 0 or width > 400


@pytest.mark.slow
def test_a_phone_shows_predictions_and_references_without_scrolling(reports, tmp_path):
    """Of a single model; the names of two take the place of the references."""
    script = """
      const table = [...page.querySelectorAll('.scroll')]
        .find(box => box.querySelector('th').textContent === 'Metric');
      return {room: table.getBoundingClientRect().right, heads: [...table.querySelectorAll('th')]
        .map(head => [head.textContent, head.getBoundingClientRect().right])};
    """
    html = reports["m0_evaluation"].read_text("utf-8")
    found = measured(html, 400, tmp_path, script)
    seen_at_once = [name for name, right in found["heads"] if right <= found["room"]]
    assert seen_at_once[:3] == ["Metric", "Predicted", "Reference"]
