from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_ssp.cli import _parser, main
from nnunet_ssp.launch import find_command
from nnunet_ssp.study.command import (
    KEPT,
    PROFILES,
    STUDIES,
    TO_GO_ON,
    _choose,
    _keep,
    find_profile,
    find_study,
)
from tests.study.test_spec import write

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="Snakemake needs Python 3.11"
)


SMALL = """
title: Two trainings
phantom: {labelled: 5, unlabelled: 1, testing: 2, matrix: 48, frames: 4, slices: 4}
prepare: -gpu_memory_target 0.02 -overwrite_plans_name small
predict: --disable_tta
plans: small
environment: {nnUNet_n_proc_DA: 0, nnUNet_npp: 0, nnUNet_nps: 0}
make_folds: [--subsets 2 --seeds 0]
folds: {few: "5-fold-0-nr2-seed{seed}"}
seeds: [0]
settings:
  pretraining: {num_epochs: 1, iterations_per_epoch: 2, batch_size: 4}
  finetuning: {num_epochs: 2, iterations_per_epoch: 2, val_iterations_per_epoch: 1}
pretraining:
  MIM: {trainer: MIM, fold: 5-fold-0}
models:
  baseline: {trainer: Scratch}
  MIM: {trainer: Finetune, pretraining: MIM}
baseline: baseline
tables:
  - {title: Table 1, rows: folds, columns: models}
figures:
  - {kind: learning, title: Learning curves}
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("nnUNet_"):
            monkeypatch.delenv(name)


def test_the_line_that_goes_on_is_quoted(tmp_path):
    """Dataset and plans are those of the call, also where a folder has a space."""
    folder = tmp_path / "my study"
    folder.mkdir()
    source = write(folder)
    call = SimpleNamespace(source=source, output=folder, size=None, precision="fp32")
    _keep(SimpleNamespace(phantom=None, dataset="114", plans="my plans"), call)
    first, *rest = (folder / KEPT).read_text().splitlines()
    words = shlex.split(first.partition(TO_GO_ON)[2])
    parsed = _parser().parse_args(words[1:])
    assert (parsed.file, parsed.dataset, parsed.plans) == (str(folder / KEPT), "114", "my plans")
    assert parsed.precision == "fp32"
    assert find_study(parsed.file) == folder / KEPT
    # Once more: no second line.
    _keep(SimpleNamespace(phantom=None, dataset="114", plans="my plans"), call)
    assert (folder / KEPT).read_text().splitlines() == [first, *rest]


def study(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `nnunet-ssp study` in a process, as a user does."""
    return subprocess.run(
        [find_command("nnunet-ssp"), "study", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.heavy
def test_from_nothing_to_the_page(tmp_path):
    """Phantom, folds, pretraining, fine-tuning, prediction, evaluation, tables; then again, and with a run missing."""
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    done = study(tmp_path, "small.yaml")
    assert done.returncode == 0, done.stdout
    output = tmp_path / "study_small"
    assert "7 of 7 commands to run" in done.stdout
    assert "[7/7]" in done.stdout
    page = (output / "report.html").read_text()
    assert "Table 1" in page
    (run,) = output.glob("runs/MIM/few/seed0-*")
    record = json.loads((run / "train.json").read_text())
    assert "nnUNetv2_train 998 2d" in record["command"]
    assert "-pretrained_weights pretraining/MIM/seed0-" in record["command"]
    assert record["command"] in (run / "train.log").read_text()
    (settings,) = run.rglob("settings.json")
    assert json.loads(settings.read_text())["pretraining"]["method"] == "MIM"

    # The first line of the file that is kept goes on, from any folder.
    line = (output / "study.yaml").read_text().splitlines()[0].partition(TO_GO_ON)[2]
    program, *words = shlex.split(line)
    assert program == "nnunet-ssp"
    onward = subprocess.run([find_command(program), *words], cwd="/", capture_output=True)
    assert onward.returncode == 0 and str(output / "report.html").encode() in onward.stdout

    # The same command has nothing to do; whoever moves the folder takes everything along.
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(output, tmp_path / "elsewhere" / "study_small"))
    again = study(tmp_path / "elsewhere", str(file))
    assert again.returncode == 0, again.stdout
    assert "to run" not in again.stdout
    assert "Report:" in again.stdout

    # A run that is not there leaves a hole, and is said.
    (moved / run.relative_to(output) / "evaluate.json").unlink()
    hole = study(tmp_path / "elsewhere", str(file), "--results")
    assert hole.returncode == 1
    assert "1 of 3 runs are missing: MIM, few, seed 0" in hole.stdout

    # The file that the study keeps goes on in its folder.
    kept = study(tmp_path / "elsewhere", "study_small/study.yaml", "--results")
    assert "1 of 3 runs are missing: MIM, few, seed 0" in kept.stdout

    # Longer fine-tunings are other runs, of the same pretraining.
    file.write_text(SMALL.replace("num_epochs: 2", "num_epochs: 3"))
    longer = study(tmp_path / "elsewhere", str(file), "--dry-run")
    assert longer.returncode == 0, longer.stdout
    assert "3 runs: 1 pretraining and 2 fine-tunings" in longer.stdout
    assert longer.stdout.rstrip().count("; 1 done.") == 1
    other = study(tmp_path / "elsewhere", str(file), "--results")
    assert "2 of 3 runs are missing" in other.stdout
    # Another phantom is not put over this one.
    file.write_text(SMALL.replace("matrix: 48", "matrix: 64"))
    refused = study(tmp_path / "elsewhere", str(file))
    assert refused.returncode == 1
    assert "holds another phantom" in refused.stdout


@pytest.mark.slow
@pytest.mark.heavy
def test_models_are_chosen_before_any_test_subject_is_predicted(tmp_path):
    file = tmp_path / "small.yaml"
    own = SMALL + "evaluate: choosing\nby_size: {half: {plans: small}}\n"
    planner = "--patch 32 32 --width 0.25 --batch 2 -overwrite_plans_name small"
    file.write_text(own.replace("-gpu_memory_target 0.02 -overwrite_plans_name small", planner))
    alone = study(tmp_path, "small.yaml", "--models", "baseline")
    assert alone.returncode == 0, alone.stdout
    assert "3 of 3 commands to run" in alone.stdout
    output = tmp_path / "study_small_half"
    early = study(tmp_path, "small.yaml", "--report")
    assert early.returncode == 1
    assert "chosen.json is missing" in early.stdout
    assert not list(output.rglob("reported*"))
    assert study(tmp_path, "small.yaml", "--choose", "baseline").returncode == 0
    reported = study(tmp_path, "small.yaml", "--report")
    assert reported.returncode == 0, reported.stdout
    assert "2 of 3 commands to run" in reported.stdout  # the training is there
    page = (output / "reported-report.html").read_text()
    assert "chosen from 1 of this study" in page
    cases = {file.name for file in (output / "nnUNet_raw").rglob("imagesTs/*.nii.gz")}
    (predictions,) = output.rglob("reported/predictions")
    predicted = {f.name.replace(".nii.gz", "_0000.nii.gz") for f in predictions.glob("*.nii.gz")}
    assert predicted == cases
    changed = own.replace("num_epochs: 2", "num_epochs: 3")
    file.write_text(changed.replace("-gpu_memory_target 0.02 -overwrite_plans_name small", planner))
    refused = study(tmp_path, "small.yaml", "--report")
    assert refused.returncode == 1
    assert (
        "since the choice changed: models.baseline.folds.few.settings.num_epochs" in refused.stdout
    )


def test_a_choice_says_how_it_is_reported(tmp_path, monkeypatch, capsys):
    seen: list[str] = []
    made = []
    monkeypatch.setattr(
        "nnunet_ssp.study.examination.choose",
        lambda *given: made.append(given) or {"reported_before": seen},
    )
    results = SimpleNamespace(study=None, pretrainings=[], trainings=[])
    call = SimpleNamespace(output=tmp_path, size=None, choose=["scratch"], chosen=None)
    assert _choose(results, call) == 0
    first, second = tmp_path / "chosen.json", tmp_path / "my choice.json"
    assert capsys.readouterr().out == (
        f"Wrote {first}. Commit it, then add --report to the study's command.\n"
    )
    call.chosen = Path("my choice.json")
    second.touch()
    seen += ["scratch", "MIM"]
    assert _choose(results, call) == 0
    assert capsys.readouterr().out == (
        f"{second} holds this choice already. Commit it, then add --report 'my choice.json' to the study's command.\n"
        "Its report will say that the test subjects had been seen by: scratch, MIM.\n"
    )
    assert [given[5:] for given in made] == [(first, tmp_path), (second, tmp_path)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing"],
            "nothing must be a file, or a study that comes with the package: acdc-few, demooij, dominic",
        ),
        (["phantom", "--profile", "lsf"], r"`--profile` (=lsf) must be a folder, or one of slurm"),
        (["phantom", "--jobs", "0"], "`--jobs` (=0) must be at least 1"),
        (["phantom", "--chosen", "b.json"], "`--chosen` (=b.json) must stand beside --choose"),
        (["demooij"], "names no dataset: give it with -d"),
        (["phantom", "--results"], "study_phantom holds no study: run it first, without --results"),
        (["demooij", "-d", "114"], "nnUNet_raw"),
        (["demooij", "--dry-run", "--bench", "no.json"], "no.json"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_without_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "snakemake", None)
    assert main(["study", "phantom", "-o", str(tmp_path)]) == 1
    assert "snakemake is not installed: pip install 'nnunet-ssp[study]'" in capsys.readouterr().err


def test_names_of_studies_and_profiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_study("phantom") == find_study("phantom.yaml") == STUDIES / "phantom.yaml"
    assert find_profile("slurm") == PROFILES / "slurm"
    own = write(tmp_path)
    assert find_study("study.yaml").resolve() == own
    (tmp_path / "slurm").mkdir()
    assert find_profile("slurm") == PROFILES / "slurm"
    (tmp_path / "own").mkdir()
    assert find_profile("own") == tmp_path / "own"
    # The shell leaves `~` in quotes.
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_study("~/study.yaml") == own
    assert find_profile("~/own") == tmp_path / "own"
