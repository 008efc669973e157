"""Every command that takes a dataset takes its full name, as nnU-Net's do."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

from nnunet_ssp.cli import _parser, main
from tests.training.conftest import DATASET

STUDY = """title: Small
folds: {all: 4-fold-0}
seeds: [0]
models: {baseline: {trainer: Scratch}}
baseline: baseline
tables: [{title: Dice, rows: folds, columns: models}]
"""
# The arguments of each command, and its exit status; `predict` finds no model.
LINES = {
    "convert": ("mnms -i {source} -d Dataset131_Foo --dry-run", 0),
    "phantom": ("out --labelled 2 --frames 2 -d Dataset131_Foo", 0),
    "folds": ("{name}", 0),
    "prepare": ("{name} -p tiny -np 1", 0),
    "inspect": ("{checkpoint} -d {name} -p tiny", 0),
    "import": ("{shared} -d {name} -p tiny --adapt", 0),
    "predict": ("-i {source} -d {name} -p tiny -tr nnUNetTrainerFinetune -o out", 1),
    "evaluate": ("{name} {predictions} --no-report -np 1 -o scores", 0),
    "study": ("{study} -d {name} -p tiny --dry-run", 0),
}
ELSEWHERE = {"train": "tests/training/test_launched.py::test_one_process_trains_as_nnunets_command"}
WITHOUT = {"env", "doctor", "export", "demo", "bench"}  # take no dataset


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def takes_a_dataset(parser: argparse.ArgumentParser) -> bool:
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    parsers = [parser, *(inner for action in nested for inner in action.choices.values())]
    return any("-d" in a.option_strings or a.dest == "dataset" for p in parsers for a in p._actions)


def test_no_command_is_forgotten():
    found = {name for name, parser in commands().items() if takes_a_dataset(parser)}
    assert found == {*LINES, *ELSEWHERE}
    assert found | WITHOUT == commands().keys()


@pytest.mark.slow
@pytest.mark.parametrize("command", LINES)
def test_a_full_name_is_taken(
    command, prepared, own_copy, pretrained_once, tmp_path, monkeypatch, capsys
):
    shutil.copytree(prepared / "raw", tmp_path / "raw")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.chdir(tmp_path)
    checkpoint, shared = pretrained_once(), tmp_path / "heart.zip"
    if command == "import":
        assert main(["export", str(checkpoint), "-o", str(shared)]) == 0
    shutil.copytree(tmp_path / "raw" / DATASET / "labelsTs", tmp_path / "predictions")
    (tmp_path / "small.yaml").write_text(STUDY)
    places = {
        **{"source": prepared / "source", "checkpoint": checkpoint, "shared": shared},
        **{"predictions": "predictions", "study": "small.yaml", "name": DATASET},
    }
    line, status = LINES[command]
    capsys.readouterr()
    assert main([command, *(word.format(**places) for word in line.split())]) == status
    said = capsys.readouterr()
    assert status == 0 or DATASET in said.err
    assert command not in {"convert", "phantom"} or "Dataset131_Foo" in said.out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "import"])
def test_another_name_of_the_number_is_refused(
    command, own_copy, pretrained_once, tmp_path: Path, capsys
):
    file = pretrained_once()
    if command == "import":
        assert main(["export", str(file), "-o", str(tmp_path / "heart.zip")]) == 0
        file = tmp_path / "heart.zip"
    assert main([command, str(file), "-d", "Dataset901_Other"]) == 1
    assert "Dataset901_Other" in capsys.readouterr().err
