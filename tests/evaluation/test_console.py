from __future__ import annotations

import json

from nnunet_ssp.evaluation.console import _aligned
from nnunet_ssp.evaluation.labels import structure_of
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


def test_few_subjects_have_no_p_value_and_the_terminal_says_why(dataset, predict, tmp_path, capsys):
    """The test takes six subjects; these are five."""
    models = [predict(name, shift) for name, shift in (("base", 2.0), ("better", 1.0))]
    for folder in (*models, dataset / "labelsTs"):
        for file in folder.glob("*T[567]_frame*"):
            file.unlink()
    assert run("114 -np 1 --no-report -o", tmp_path / "out", *models) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("  better: ") and "missed" not in line)
    assert line.endswith(" of 5 subjects; no p value, which takes 6 subjects")
