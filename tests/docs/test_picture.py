"""The picture of the methods is drawn by their own code, and small enough for a README."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from tests.docs.scripts import load_script

SCRIPT = Path(__file__).parents[2] / "docs" / "draw_methods.py"


def test_the_picture_of_the_methods(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("draw_methods", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(["--output", str(tmp_path / "new.png")])
    drawn, shown = (
        Image.open(file).convert("L") for file in (tmp_path / "new.png", script.PICTURE)
    )
    assert drawn.size == shown.size
    # The same but for the fonts and rounding of other versions.
    difference = np.abs(np.asarray(drawn, float) - np.asarray(shown, float))
    assert difference.mean() < 5, "run python docs/draw_methods.py"
    assert script.PICTURE.stat().st_size < 300_000


def test_the_pictures_of_the_results_show_the_scores(tmp_path: Path) -> None:
    script = load_script("draw_results")
    script.main(["--output", str(tmp_path)])
    for name in ("few-labels", "few-labels-curves", "few-labels-long-curves", "few-labels-length"):
        drawn, shown = (
            np.asarray(Image.open(folder / f"{name}.png").convert("L"), float)
            for folder in (tmp_path, script.PICTURES)
        )
        assert drawn.shape == shown.shape
        assert np.abs(drawn - shown).mean() < 3, "run python docs/draw_results.py"
