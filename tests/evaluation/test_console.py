from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd

from nnunet_ssp.evaluation.console import _aligned, without_agreement
from nnunet_ssp.evaluation.labels import structure_of
from nnunet_ssp.reporting.page import GAP
from tests.evaluation.running import run


def test_columns_are_aligned_with_two_of_them_flush_left():
    rows = [["model", "class", "Dice"], ["a", "LV", "0.9"], ["longer", "mean", "0.85"]]
    assert _aligned(rows) == ["model   class  Dice", "a       LV      0.9", "longer  mean   0.85"]


def test_the_terminal_has_the_numbers_of_the_summary(dataset, predict, tmp_path, capsys):
    models = [predict(name, shift) for name, shift in (("base", 2.0), ("better", 1.0))]
    assert run("114 -np 1 -o", tmp_path / "out", *models) == 0
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert lines[0].startswith(f"{summary['n_frames']} frames (")
    assert lines[0].endswith(f" of {summary['n_subjects']} subjects, predicted by base and better.")
    # The first line of a model and class is that of the scores.
    words = [line.split() for line in reversed(lines)]
    shown = {(one, two): three for one, two, three, *_ in (w for w in words if len(w) > 2)}
    for row in summary["scores"]["all"]:
        assert shown[row["model"], structure_of(row["class"])] == f"{row['dice_mean']:.3f}"
    (row,) = (row for row in summary["comparisons"] if row["score"] == "Dice, mean")
    (line,) = (line for line in lines if line.startswith("  better: ") and "missed" not in line)
    assert line.startswith(f"  better: {row['difference']:+.3f} (")
    assert f"better on {row['n_better']} of {row['n_subjects']} subjects; p " in line


def test_five_subjects_have_no_interval_limits_r_and_p_and_the_terminal_says_why(
    dataset, predict, tmp_path, capsys
):
    """All of them take six subjects."""
    models = [predict(name, shift) for name, shift in (("base", 2.0), ("better", 1.0))]
    for folder in (*models, dataset / "labelsTs"):
        for file in folder.glob("*T[567]_frame*"):
            file.unlink()
    assert run("114 -np 1 --no-report -o", tmp_path / "out", *models) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("  better: ") and "missed" not in line)
    assert line.endswith(" of 5 subjects; no 95 % CI and no p value, which take 6 subjects")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    note = "95 % CI, 95 % limits of agreement, r and p values take 6 subjects and are left out: these are 5."
    assert note in summary["notes"] and f"Note: {note}" in lines
    for row in summary["scores"]["all"]:
        assert row["dice_low"] is row["dice_high"] is None and 0 < row["dice_mean"] < 1
    for row in summary["agreement"]:
        assert row["lower"] is row["upper"] is row["correlation"] is None and row["sd"] >= 0
    for row in summary["comparisons"]:
        assert row["low"] is row["high"] is row["p"] is None
    (difference,) = (row for row in summary["comparisons"] if row["score"] == "Dice, mean")
    assert line.startswith(f"  better: {difference['difference']:+.3f}, better on ")
    (edv,) = (words for words in map(str.split, lines) if words[:3] == ["base", "LV", "EDV"])
    assert edv[4] == "5" and edv[-2:] == [GAP, GAP]


def test_what_one_model_lacks_is_said_to_be_its():
    table = pd.DataFrame(
        [("A", "EDV", 5), ("A", "EF", 1), ("B", "EDV", 9), ("B", "EF", 2), ("B", "ESV", 6)],
        columns=["model", "figure", "n_subjects"],
    )
    no = "No 95 % limits of agreement, r and Bland-Altman plot"
    why = "they take 6 subjects with the metric, and there are fewer."
    both = SimpleNamespace(agreement=table, models={"A": [], "B": []})
    assert [*without_agreement(both)] == [
        f"{no} of EDV and EF for A: {why}",
        f"{no} of EF for B: {why}",
    ]
    alone = SimpleNamespace(agreement=table[table["model"] == "B"], models={"B": []})
    assert [*without_agreement(alone)] == [f"{no} of EF: {why}"]
