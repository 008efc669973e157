from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_ssp.study.results import Coordinates
from nnunet_ssp.study.spec import Table
from nnunet_ssp.study.tables import Filled, fill_table, latex, markdown, tidy

HOSTILE = r"50% & $x_1$ #2 {a} ~b ^c \d <e> |f| “g” – ±"


def target(place: Coordinates) -> str:
    return f"../report.html#{place.model}-{place.fold}"


def filled(mini, **parts: object) -> Filled:
    content = {"title": "Table 1", "rows": "folds", "columns": "models"} | parts
    return fill_table(Table.model_validate(content), mini.results)


def rows(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table without its rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [line for line in cells if not set(line[-1]) <= set("-:")]


def test_values_stand_above_the_published_ones_and_link_to_their_runs(miniature):
    text = markdown(filled(miniature().finish(), published="demooij/table1"), target)
    assert rows(text) == [
        ["Trained on", "baseline", "MIM"],
        [
            "all",
            "[0.704 ± 0.010](../report.html#baseline-all)<br>*0.89 ± 0.001*",
            "[0.804 ± 0.010](../report.html#MIM-all)<br>*0.89 ± 0.001*",
        ],
        [
            "10",
            "[0.504 ± 0.010](../report.html#baseline-10)<br>*0.82 ± 0.009*",
            "[0.604 ± 0.010](../report.html#MIM-10)<br>*0.86 ± 0.007*",
        ],
    ]
    assert text.startswith("# Table 1\n")
    assert "In italics: de Mooij, Pluim and Scannell 2024, arXiv 2409.18100, Table 1." in text


def test_holes_stay_and_missing_seeds_are_counted(miniature):
    mini = miniature()
    mini.finish([mini.run("MIM", "10", 0), mini.run("MIM", "10", 2), mini.run("MIM", "all", 1)])
    table = filled(mini, published="demooij/table1")
    assert [table.texts(i) for i in range(2)] == [
        ["–", "0.804 (1 of 3 seeds)"],
        ["–", "0.604 ± 0.014 (2 of 3 seeds)"],
    ]
    assert "[–](../report.html#baseline-10)<br>*0.82 ± 0.009*" in markdown(table, target)
    numbers = tidy(table).set_index(["model", "fold"])
    assert numbers["n_seeds"].tolist() == [0, 1, 0, 2]
    assert set(numbers["wanted_seeds"]) == {3}
    assert numbers["mean"].isna().tolist() == [True, False, True, False]
    assert numbers.loc[("MIM", "10"), "runs"] == "runs/MIM/10/seed0-bb;runs/MIM/10/seed2-bb"
    assert numbers.loc[("baseline", "10"), "runs"] == ""


def test_frames_without_a_distance_are_counted(miniature):
    mini = miniature(seeds=[0, 1]).finish()
    for seed in (0, 1):
        file = Path(mini.output, mini.run("MIM", "10", seed).folder, "evaluation", "metrics.csv")
        metrics = pd.read_csv(file)
        lost = (metrics["class"] == "RV") & (metrics["subject"].isin(["T0", "T1"]) | (seed == 1))
        metrics.loc[lost, ["hd95_mm", "missed"]] = np.nan, 1
        metrics.to_csv(file, index=False)
    table = filled(mini, scores="hd95_mm", classes="RV", folds="10", rows="scores", digits=1)
    assert table.texts(0) == ["9.5 ± 0.0", "9.4 (a value in 1 of 2, 20 missed)"]
    assert "has no distance: it is left out, and counted as missed, over all seeds" in table.caption
    (mini.output / mini.run("MIM", "10", 0).folder / "evaluate.json").unlink()
    table = filled(mini, scores="hd95_mm", classes="RV", folds="10", rows="scores", digits=1)
    assert table.texts(0) == ["9.5 ± 0.0", "– (1 of 2 seeds, 16 missed)"]
    numbers = tidy(table).set_index("model")
    assert numbers["missed"].to_dict() == {"baseline": 0, "MIM": 16}
    assert numbers.loc["MIM", "runs"] == "runs/MIM/10/seed1-bb"


def test_whether_trainings_still_improved_has_a_column(miniature):
    mini = miniature(seeds=[0, 1]).finish()
    for seed, slope in ((0, 0.01), (1, 0.02)):
        file = mini.output / mini.run("MIM", "10", seed).fold_folder(mini.data)
        points = pd.DataFrame({"epoch": range(10), "step": range(20, 220, 20)})
        points["pseudo_dice"] = points["pseudo_dice_area"] = slope * points["epoch"]
        points.to_csv(file / "learning_curve.csv", index=False)
    table = filled(mini, rows="models", columns="folds", scores="rise", models="MIM")
    assert table.texts(0) == ["–", "0.030 ± 0.014"]
    assert "; below 0.005 a training no longer improves;" in table.caption


def test_one_seed_has_no_spread(miniature):
    table = filled(miniature(seeds=[5]).finish())
    assert table.texts(0) == ["0.744", "0.844"]
    assert "seed 5 alone." in table.caption
    assert "±" not in table.caption


def test_a_table_may_have_seeds_of_its_own(miniature):
    mini = miniature(tables=[{"title": "T", "rows": "folds", "columns": "models", "seeds": [4]}])
    table = fill_table(mini.study.tables[0], mini.finish().results)
    assert table.texts(0) == ["0.734", "0.834"]


def test_the_spread_over_subjects_is_that_of_the_appendix(miniature):
    table = filled(
        miniature().finish(),
        rows="classes",
        classes=["LV", "LVM", "RV"],
        folds="all",
        spread="subjects",
        published="demooij/appendixB",
    )
    assert table.texts(0) == ["0.734 ± 0.010", "0.834 ± 0.010"]
    printed = [[str(entry.published) for entry in line] for line in table.entries]
    # The dataset's own name of the myocardium also finds the paper's MYO.
    assert printed[1] == ["0.85 ± 0.055", "0.85 ± 0.053"]
    assert "± sample standard deviation over subjects, mean over seeds." in table.caption


def test_several_axes_make_combined_rows_and_columns(miniature):
    table = filled(
        miniature().finish(),
        rows=["folds", "models"],
        columns=["tests", "scores"],
        tests=["all", "ED"],
        scores=["dice", "LV EF"],
        digits=2,
    )
    assert table.rows == [("all", "baseline"), ("all", "MIM"), ("10", "baseline"), ("10", "MIM")]
    assert table.columns[1] == ("all", "LV EF")
    assert table.texts(0) == ["0.70 ± 0.01", "2.00 ± 1.00", "0.71 ± 0.01", "2.00 ± 1.00"]
    head = rows(markdown(table, target))[0]
    assert head[:3] == ["Trained on", "Model", "all, 3D Dice"]
    assert head[3] == "all, LV EF (%)"
    assert "absolute errors of the clinical metrics; mean over subjects" in table.caption
    lines = latex(table, "t").splitlines()
    assert r" &  & \multicolumn{2}{c}{all} & \multicolumn{2}{c}{ED} \\" in lines


def test_published_numbers_are_of_dice_alone(miniature):
    mini = miniature().finish()
    table = filled(mini, scores="hd95_mm", published="demooij/table1")
    assert all(entry.published is None for line in table.entries for entry in line)
    assert table.sources == ""
    assert "a class that a frame misses, or finds where it is not, has no distance" in table.caption


def test_captions_state_the_matching_with_the_steps_as_they_ran(miniature):
    mini = miniature().finish()
    assert (
        "Matched by steps: trainings on folds of different size take equally many. 60 steps as run."
        in (filled(mini).caption)
    )
    for seed in range(3):
        run = mini.run("MIM", "10", seed)
        file = mini.output / run.fold_folder(mini.data) / "learning_curve.csv"
        lines = file.read_text().splitlines()
        file.write_text("\n".join(lines[: 2 + min(seed, 1)]) + "\n")
    mini.study = mini.study.model_copy(update={"match": "epochs"})
    caption = filled(mini, models="MIM").caption
    assert "Matched by epochs: the steps of an epoch are in proportion to the labelled" in caption
    assert "Steps as run: all: 60; 10: 20 to 40." in caption
    assert "in labelled subjects (slices): all: 6 (120); 10: 2 (40)." in caption


def test_captions_say_what_the_values_are(miniature):
    caption = filled(miniature().finish(), caption="What  it\nis.", tests="C+D").caption
    assert caption.startswith(
        "What it is. 3D Dice; mean over classes; test subjects, C+D only; mean over subjects, each the mean of its "
        "frames; mean over 3 seeds (0, 1, 2); ± sample standard deviation over seeds. Matched by steps: "
    )
    area = filled(miniature().finish(), scores="area").caption
    assert area.startswith(
        "Pseudo Dice, mean of the learning curve; all test subjects; mean over 3"
    )


def test_tidy_tables_have_the_numbers_unrounded(miniature):
    numbers = tidy(filled(miniature().finish(), published="demooij/table1"))
    row = numbers.iloc[3]
    assert row[["model", "fold", "test", "class", "score"]].tolist() == [
        *("MIM", "10", "all", "mean", "dice")
    ]
    assert row[["mean", "spread"]].tolist() == pytest.approx([0.604, 0.01])
    assert row["published_mean"], row["published_spread"] == ("0.86", "0.007")
    assert row["published_source"].endswith("Table 1")


def test_latex_is_escaped(miniature):
    models = {HOSTILE: {"trainer": "Scratch"}, "[b]": {"trainer": "Scratch"}}
    mini = miniature(models=models, baseline=None).finish()
    text = latex(filled(mini, title=HOSTILE, rows="models", columns="folds"), HOSTILE)
    escaped = (
        r"50\% \& \$x\_1\$ \#2 \{a\} \textasciitilde{}b \textasciicircum{}c \textbackslash{}d "
        r"\textless{}e\textgreater{} \textbar{}f\textbar{} ``g'' -- $\pm$"
    )
    assert f"{escaped} & 0.704 $\\pm$ 0.010 & 0.504 $\\pm$ 0.010 \\\\" in text
    assert f"\\caption{{{escaped}. " in text
    assert "{}[b] & " in text
    assert re.search(r"\\label\{tab:[A-Za-z0-9-]+\}", text)
    assert text.isascii()


def test_latex_has_the_published_numbers_in_rows_of_their_own(miniature):
    table = filled(miniature().finish(), published="demooij/table1", models="MIM")
    body = latex(table, "a").partition("\\midrule\n")[2].splitlines()[:4]
    assert body == [
        r"all & 0.804 $\pm$ 0.010 \\",
        r"\quad paper & \footnotesize 0.89 $\pm$ 0.001 \\",
        r"10 & 0.604 $\pm$ 0.010 \\",
        r"\quad paper & \footnotesize 0.86 $\pm$ 0.007 \\",
    ]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_latex_compiles(miniature, tmp_path):
    models = {HOSTILE: {"trainer": "Scratch"}, "[b]": {"trainer": "Scratch"}}
    mini = miniature(models=models, baseline=None).finish()
    tables = [
        latex(filled(mini, title=HOSTILE, rows="models", columns="folds"), HOSTILE),
        latex(filled(mini, columns=["models", "tests"], tests=["all", "ED"]), "two"),
    ]
    preamble = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}"
    content = "\n".join([preamble, *tables, "\\end{document}"])
    (tmp_path / "a.tex").write_text(content, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_markdown_is_escaped(miniature):
    models = {"a|b_c*": {"trainer": "Scratch"}}
    mini = miniature(models=models, baseline=None).finish()
    text = markdown(filled(mini, title="# <b>"), lambda place: "#x")
    assert text.startswith("# \\# \\<b\\>\n")
    assert "| Trained on | a\\|b\\_c\\* |" in text


def test_an_unknown_table_of_published_numbers_is_refused(miniature):
    with pytest.raises(ValueError, match=r"published \(=demooij/table9\) must be one of demooij/t"):
        filled(miniature(), published="demooij/table9")
