"""The pictures of results.md show the scores in `docs/results`."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.docs.scripts import load_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Let the pictures be figures, not their pixels."""
    script = load_script("draw_results")

    def drawn(draw, size):
        figure = Figure(size)
        draw(figure)
        return figure

    monkeypatch.setattr(script, "render", drawn)
    return script


def test_each_curve_is_a_model_and_its_points_are_means_over_patients_and_seeds(script: ModuleType):
    (axes,) = script.labels().axes
    curves = {line.get_label(): line for line in axes.lines if line.get_label() in script.MODELS}
    measured = pd.read_csv(script.SCORES.parents[2] / "nnunet_ssp/training/measured.csv")
    measured = measured[measured["data"].str.startswith("12 other")]
    for name, column, settings in (
        ("from scratch", "scratch", "contrast=0"),
        ("after its movement alone", "pretrained", "contrast=0"),
        ("after Dense", "pretrained", ""),
    ):
        rows = measured[measured["settings"].fillna("") == settings]
        assert list(curves[name].get_xdata()) == list(rows["labelled"]) == [2, 5, 10]
        assert np.allclose(curves[name].get_ydata(), rows[column], atol=0.0005)


@pytest.mark.parametrize(("ending", "steps"), [("", 500), ("-long", 1500)])
def test_the_learning_curves_end_at_the_last_step(script: ModuleType, ending: str, steps: int):
    (axes,) = script.curves(ending=ending).axes
    assert [line.get_label() for line in axes.lines] == [*script.MODELS]
    assert {line.get_xdata()[-1] for line in axes.lines} == {steps}
    ends = [line.get_ydata()[-1] for line in axes.lines]
    assert ends[0] == min(ends)  # scratch, as the table says


@pytest.mark.parametrize(
    ("kind", "lengths"), [("float32", (9_600, 50_400)), ("amx", (50_400, 252_000))]
)
def test_the_gain_by_length_is_that_of_the_table(
    script: ModuleType, kind: str, lengths: tuple[int, ...]
):
    """Means over the seeds that all lengths and the control have, as in the tables."""
    (axes,) = script.length().axes
    lines = {line.get_label(): line for line in axes.lines}
    page = (script.PICTURES.parent / "results.md").read_text(encoding="utf-8")
    rows = page.partition(f"<!-- of {kind}")[2].partition("<!-- end")[0].splitlines()
    table = {row.split("|")[1].strip(): float(row.split("|")[3].split("±")[0]) for row in rows[3:]}
    name = script.MACHINES[kind]
    scratch, curve = lines[f"from scratch, {name}"], lines[f"movement alone, {name}"]
    assert np.allclose(scratch.get_ydata(), table["from scratch"], atol=0.0006)
    assert tuple(curve.get_xdata()) == lengths
    named = {50_400: "movement alone (Dense with `contrast=0`)"}
    wanted = [table[named.get(n, f"movement alone on {n:,} images")] for n in lengths]
    assert np.allclose(curve.get_ydata(), wanted, atol=0.0006)
