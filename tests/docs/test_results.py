"""`measured.csv` says what the scores in `docs/results` say."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from tests.docs.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("make_results")


def write(file: Path, dice: dict[tuple[int, int, str, str], float]) -> None:
    """Write the scores of a model, by fold, seed, subject and phase."""
    rows = [(*key, kind, value) for key, value in dice.items() for kind in ("mean", "LV")]
    table = pd.DataFrame(rows, columns=["fold", "seed", "subject", "phase", "class", "dice"])
    table.loc[table["class"] == "LV", "dice"] = 0.99  # must not count
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)


def test_the_table_is_current(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0, "run python docs/make_results.py"


def test_means_over_frames_subjects_and_the_seeds_that_both_have(
    script: ModuleType, tmp_path: Path
) -> None:
    frames = {(5, 0, "a", "ED"): 0.5, (5, 0, "a", "ES"): 0.7, (5, 0, "b", "ED"): 0.2}
    write(tmp_path / "models/scratch.csv", frames | {(5, 1, "a", "ED"): 0.9})
    write(tmp_path / "models/Dense.csv", {key: value + 0.1 for key, value in frames.items()})
    (row,) = script.measured(tmp_path).to_dict("records")
    # scratch: (mean of 0.5 and 0.7, then of that and 0.2)
    assert (row["method"], row["labelled"], row["seeds"]) == ("Dense", 5, 1)
    assert row["pretrained_on"] == "the same dataset"
    assert (row["scratch"], row["pretrained"]) == ("0.400", "0.500")
    assert "chosen on" in row["data"]
    write(tmp_path / "reported-models/scratch.csv", frames)
    write(tmp_path / "reported-models/Dense.csv", frames)
    (row,) = script.measured(tmp_path).to_dict("records")
    assert (row["scratch"], row["pretrained"]) == ("0.400", "0.400") and "other" in row["data"]
    for control in ("scratch-long", "Dense-long"):
        write(tmp_path / f"models/{control}.csv", {(5, 0, "a", "ED"): 0.8})
    _, long = script.measured(tmp_path).to_dict("records")
    assert (long["scratch"], long["pretrained"]) == ("0.800", "0.800")
    assert "chosen on" in long["data"] and "1500 steps" in long["data"]


def test_readme_has_the_gains_over_the_seeds_that_all_models_have(
    script: ModuleType, tmp_path: Path
) -> None:
    def scores(gain: float, seeds: int) -> dict[tuple[int, int, str, str], float]:
        return {(5, seed, "a", "ED"): 0.5 + 0.1 * seed + gain for seed in range(seeds)}

    models = {"scratch": (0, 5), "Dense": (0.04, 5), "MIM": (0.01, 3), "MIM-deep": (-0.02, 3)}
    models["movement-alone-Sunnybrook"] = (-0.03, 3)  # of another dataset, which must not count
    for name, (gain, seeds) in models.items():
        rows = scores(gain, seeds)
        if name == "Dense":  # seeds 3 and 4, which MIM lacks, must not count
            rows |= {(5, 3, "a", "ED"): 0.0, (5, 4, "a", "ED"): 0.0}
        write(tmp_path / f"models/{name}.csv", rows | {(2, 0, "a", "ED"): 0.1})
    names = ("MIM", "Dense", "SimCLR")
    rows = "".join(f"| name | `nnUNetTrainer{name}Pretrain` | a | b | old |\n" for name in names)
    other = "| name | `nnUNetTrainerFinetune` | old |\n"
    cells = ("+0.010, `recipe=deep` -0.020", "+0.040", "not measured")
    wanted = rows
    for cell in cells:
        wanted = wanted.replace("| old |", f"| {cell} |", 1)
    assert script.with_gains(rows + other, tmp_path) == wanted + other


def test_the_page_has_all_models_over_the_seeds_of_all(script: ModuleType, tmp_path: Path) -> None:
    def frames(gain: float, seeds: int) -> pd.DataFrame:
        """Seven patients, each with a gain of its own; the second seed is 0.1 better, RV 0.2 worse."""
        rows = [
            (
                5,
                seed,
                f"p{n}",
                phase,
                name,
                0.5 + 0.1 * seed + 0.01 * n * gain - 0.2 * (name == "RV"),
            )
            for seed in range(seeds)
            for n in range(1, 8)
            for phase in ("ED", "ES")
            for name in ("LVBP", "LVM", "RV", "mean")
        ]
        other = [(2, 0, "p1", "ED", "mean", 0.0)]  # with other labels, which must not count
        return pd.DataFrame(
            rows + other, columns=["fold", "seed", "subject", "phase", "class", "dice"]
        )

    (tmp_path / "models").mkdir()
    models = (("scratch", 0, 3), ("Dense", 1, 3), ("MIM-deep", -1, 2), ("scratch-long", 2, 3))
    for name, gain, seeds in models:
        frames(gain, seeds).to_csv(tmp_path / f"models/{name}.csv", index=False)
    page = f"before\n{script.BEGIN}old\n{script.END}\nafter\n"
    lines = script.with_tables(page, tmp_path).splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    scratch, dense, mim, longer = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:8]
    )
    # Seeds 0 and 1: 0.5 and 0.6; gains of 0.01 to 0.07, so 0.04 in the mean.
    assert scratch[:6] == ["from scratch", "2", "0.550 ± 0.071", "0.550", "0.550", "0.350"]
    assert scratch[6:] == ["", "", "", "", "", "-0.080"]  # three times as many steps gain 0.08
    assert dense[:4] == ["Dense", "2", "0.590 ± 0.071", "0.590"] and dense[6] == "+0.040"
    assert dense[8:] == ["7 of 7", "2 of 2", f"{2**-7:.2g}", "-0.040"]  # all seven signs by chance
    assert mim[6] == "-0.040" and mim[8:] == ["0 of 7", "0 of 2", "1", "-0.120"]
    assert (longer[0], longer[6], longer[-1]) == ("from scratch, 1,500 steps", "+0.080", "")
    low, high = map(float, dense[7].split(" to "))
    assert 0.01 < low < 0.04 < high < 0.07

    # Of float32 there is another table, of its own control, here without one of more steps.
    (tmp_path / "float32").mkdir()
    for name, gain in (("scratch", 2), ("Dense", 1)):
        frames(gain, 2).to_csv(tmp_path / f"float32/{name}.csv", index=False)
    both = page + f"{script.TABLES['float32']}{script.END}\n"
    *lines, end = script.with_tables(both, tmp_path).splitlines()
    assert "minus" not in lines[-4] and lines[-5] == script.TABLES["float32"].strip()
    scratch, dense = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[-2:])
    assert end == script.END and (scratch[2], dense[2]) == ("0.630 ± 0.071", "0.590 ± 0.071")
    assert (
        scratch[6:] == [""] * 5 and dense[6] == "-0.040" and dense[8:] == ["0 of 7", "0 of 2", "1"]
    )


def test_the_trials_of_the_demo_are_listed_with_their_differences(
    script: ModuleType, tmp_path: Path
) -> None:
    head = "seed,widths,patch,unlabelled,pretraining_steps,labelled,finetuning_steps"
    (tmp_path / "demo-trials.csv").write_text(
        f"{head},fine_tuned,scratch\n7,1/4,64x64,36,1050,3,150,0.5,0.61\n", encoding="utf-8"
    )
    page = script.with_tables(f"{script.DEMO}old\n{script.END}", tmp_path / "acdc-few")
    begin, head, line, row, end = page.splitlines()
    assert (begin + "\n", end) == (script.DEMO, script.END)
    assert head.count("|") == line.count("|") == row.count("|")
    assert row == "| 7 | 1/4 | 64x64 | 36 | 1,050 | 3 | 150 | 0.500 | 0.610 | -0.110 |"


def test_an_outdated_table_is_noticed_and_written_anew(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    current = script.TABLE.read_text(encoding="utf-8")
    table = tmp_path / "measured.csv"
    table.write_text("method\n", encoding="utf-8")
    monkeypatch.setattr(script, "TABLE", table)
    readme = tmp_path / "README.md"
    whole = script.README.read_text(encoding="utf-8")
    readme.write_text(re.sub(r"[+-]0\.\d{3} \|$", "+9.999 |", whole, flags=re.M), encoding="utf-8")
    monkeypatch.setattr(script, "README", readme)
    page = tmp_path / "results.md"
    results = script.PAGE.read_text(encoding="utf-8")
    page.write_text(results.replace("| from scratch | ", "| from scratch | 9"), encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", page)
    assert script.main(["--check"]) == 1
    files = (table, readme, page)
    wanted = [f"{file} is not current: run python docs/make_results.py" for file in files]
    assert capsys.readouterr().err.splitlines() == wanted
    assert script.main([]) == 0
    assert table.read_text(encoding="utf-8") == current
    assert readme.read_text(encoding="utf-8") == whole
    assert page.read_text(encoding="utf-8") == results
