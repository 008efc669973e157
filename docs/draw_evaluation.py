"""Draw the page of an evaluation: two made-up models on the phantom.

`python docs/draw_evaluation.py` writes `docs/pictures/evaluation.png` with playwright (`pip install playwright`) and
Chromium: the first screens of the page, side by side.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from PIL import Image
from scipy import ndimage

from nnunet_ssp.cli import main as nnunet_ssp

PICTURE = Path(__file__).parent / "pictures" / "evaluation.png"
WIDTH, HEIGHT = 700, 920  # pixels of each screen
MODELS = {"Model A": 2.0, "Model B": 0.7}  # standard deviation in pixels by which masks are moved
COLOURS = 256


def predict(references: Path, folder: Path, pixels: float) -> None:
    """Write the references, each slice moved at random, more towards the last one."""
    folder.mkdir()
    for seed, file in enumerate(sorted(references.iterdir())):
        mask = SimpleITK.ReadImage(str(file))
        draw = np.random.default_rng(seed)
        moved = [
            ndimage.shift(labels, draw.normal(0, pixels, 2) * (1 + z / 4), order=0)
            for z, labels in enumerate(SimpleITK.GetArrayFromImage(mask))
        ]
        made = SimpleITK.GetImageFromArray(np.stack(moved))
        made.CopyInformation(mask)
        SimpleITK.WriteImage(made, str(folder / file.name))


def make_page(base: Path) -> Path:
    """Make data, two models and their evaluation below a folder; return the page."""
    for name in ("raw", "preprocessed", "results"):
        (base / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(base / name)
    few = ["--labelled", "2", "--unlabelled", "1"]
    size = ["--testing", "8", "--matrix", "160", "--frames", "8", "--slices", "8"]
    nnunet_ssp(["phantom", str(base / "phantom"), *few, *size])
    nnunet_ssp(["convert", "mnms", "-i", str(base / "phantom"), "-d", "7", "-np", "1"])
    references = base / "raw" / "Dataset007_MNMs" / "labelsTs"
    for name, pixels in MODELS.items():
        predict(references, base / name, pixels)
    named = [f"{name}={base / name}" for name in MODELS]
    nnunet_ssp(["evaluate", "7", *named, "-np", "1", "-o", str(base / "evaluation")])
    return base / "evaluation" / "report.html"


def screens(page: Path) -> Image.Image:
    """Return the top of the page, and the pictures of the best frame, side by side."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.goto(page.as_uri())
        for words in (None, "Best, median and worst"):
            if words:
                tab.evaluate(
                    "words => [...document.querySelectorAll('h2')]"
                    ".find(h => h.textContent === words).scrollIntoView()",
                    words,
                )
            found.append(Image.open(io.BytesIO(tab.screenshot())))
        browser.close()
    both = Image.new("RGB", (2 * WIDTH, HEIGHT), "white")
    for place, screen in enumerate(found):
        both.paste(screen, (place * WIDTH, 0))
    return both


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture.

    Args:
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="an evaluation's page, in place of a new one")
    parser.add_argument("--output", type=Path, default=PICTURE, help="by default %(default)s")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        picture = screens((given.page or make_page(Path(folder))).resolve())
    picture.quantize(COLOURS, kmeans=2).save(given.output, optimize=True)


if __name__ == "__main__":
    main()
