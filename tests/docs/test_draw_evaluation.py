"""The picture of an evaluation's page is that of the commands as they are, and of the page as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_ssp.cli import _parser
from nnunet_ssp.evaluation import report
from nnunet_ssp.files.nifti import read_image, write_nifti
from nnunet_ssp.reporting.page import Page
from tests.docs.scripts import load_script
from tests.evaluation.conftest import heart

script = load_script("draw_evaluation")
AFFINE = np.diag([1.5, 1.5, 8, 1])
# `screens` scrolls to this heading
OVERLAYS = "Best, median and worst"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let the script's commands be parsed in place of run; converting writes two masks."""
    words: list[list[str]] = []

    def parsed(line: list[str]) -> None:
        given = _parser().parse_args(line)
        words.append(line)
        if line[0] == "convert":
            raw = given.input_folder.parent / "raw"
            (raw / "Dataset007_MNMs" / "labelsTs").mkdir(parents=True)
            for name in ("a", "b"):
                mask = np.moveaxis(heart(), 0, -1)
                write_nifti(raw / "Dataset007_MNMs" / "labelsTs" / f"{name}.nii.gz", mask, AFFINE)

    monkeypatch.setattr(script, "nnunet_ssp", parsed)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", "elsewhere")
    return words


def test_its_commands_are_ours_and_its_models_differ(commands, tmp_path: Path) -> None:
    page = script.make_page(tmp_path)
    assert [words[0] for words in commands] == ["phantom", "convert", "evaluate"]
    assert page == tmp_path / "evaluation" / "report.html"
    assert f"Model A={tmp_path / 'Model A'}" in commands[-1]
    reference = np.moveaxis(heart(), 0, -1)
    wrong = {}
    for name in script.MODELS:
        masks = [read_image(file).voxels for file in sorted((tmp_path / name).iterdir())]
        assert len(masks) == 2 and not np.array_equal(masks[0], masks[1])
        wrong[name] = np.mean([mask != reference for mask in masks])
    assert wrong["Model A"] > wrong["Model B"] > 0


def test_the_picture_is_there_and_small_enough() -> None:
    with Image.open(script.PICTURE) as shown:
        assert shown.size == (2 * script.WIDTH, script.HEIGHT)
    assert script.PICTURE.stat().st_size < 300_000


def test_the_page_has_the_heading_that_it_shows() -> None:
    titles = report._best_median_worst(["a", "b", "c"])
    assert report.listing([*titles]).capitalize() == OVERLAYS


@pytest.mark.slow
def test_both_screens_are_in_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if shutil.which("chromium") is None:
        pytest.skip("no Chromium here: the page is not looked at")
    page = Page("The top")
    for n in range(80):
        page.paragraph(f"Line {n}")
    page.heading(OVERLAYS)
    Image.new("L", (600, 600)).save(tmp_path / "black.png")
    page.image(tmp_path / "black.png", alt="A black square", wide=True)
    page.write(tmp_path / "report.html")
    script.main(["--page", str(tmp_path / "report.html"), "--output", str(tmp_path / "new.png")])
    with Image.open(tmp_path / "new.png") as picture:
        drawn = np.asarray(picture.convert("L"))
    assert drawn.shape == (script.HEIGHT, 2 * script.WIDTH)
    top, overlays = drawn[:, : script.WIDTH], drawn[:, script.WIDTH :]
    assert (top < 50).mean() < 0.1 and (overlays < 50).mean() > 0.3
