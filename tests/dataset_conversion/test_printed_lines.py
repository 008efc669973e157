"""`convert cine` refuses public sets; the command that it names instead is run as it is printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.nnunet import dataset_folder
from tests.cine_trees import ED, ES, add_acdc, add_mnms, add_mnms2, drawn


def mnms(root: Path) -> None:
    add_mnms(root, "Training/Labeled", "A0S9V9", drawn(ED, ES), ED=ED, ES=ES)


def mnms2(root: Path) -> None:
    add_mnms2(root, 1)


def acdc(root: Path) -> None:
    add_acdc(root, "training", 1)


@pytest.mark.parametrize("place", ["", "inner"])
@pytest.mark.parametrize("make", [mnms, mnms2, acdc])
def test_the_command_for_a_public_set(raw: Path, tmp_path: Path, capfd, make, place: str):
    root = tmp_path / "my data"
    make(root / place)
    assert main(["convert", "cine", "-i", str(root), "-d", "114"]) == 1
    said = capfd.readouterr().err
    words = shlex.split(said.rstrip().partition("Its own converter: ")[2])
    assert words[:3] == ["nnunet-ssp", "convert", make.__name__]
    assert words[-2:] == ["-d", "114"]
    assert main(words[1:]) == 0, capfd.readouterr().err
    assert list((dataset_folder(raw, 114) / "labelsTr").iterdir())


def test_the_command_for_a_part_of_acdc(raw: Path, tmp_path: Path, capfd):
    """`training` alone is laid out as ACDC, too."""
    root = tmp_path / "my data"
    acdc(root)
    assert main(["convert", "cine", "-i", str(root / "training"), "-d", "114"]) == 1
    line = capfd.readouterr().err.rstrip().partition("Its own converter: ")[2]
    assert main(shlex.split(line)[1:]) == 0, capfd.readouterr().err
