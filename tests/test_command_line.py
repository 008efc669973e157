from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.command_line import SOURCES
from nnunet_ssp.dataset_conversion import CONVERTERS


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["cine", "phantom"])
def test_a_path_with_blanks_lacks_its_quotes(tmp_path: Path, monkeypatch, capsys, kind: str):
    (tmp_path / "My own Data").mkdir()
    monkeypatch.chdir(tmp_path)
    words = {
        "cine": ["convert", "cine", "-i", "My", "own", "Data", "-d", "5"],
        "phantom": ["phantom", "My", "own", "Data", "--labelled", "2"],
    }[kind]
    text = said(words, capsys)
    assert (
        "unrecognized arguments: own Data. A path with blanks needs quotes: 'My own Data'" in text
    )


def test_without_such_a_path_nothing_is_added(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Data").mkdir()
    text = said(["convert", "cine", "-i", "My", "Data", "-d", "5"], capsys)
    assert text.endswith("unrecognized arguments: Data")


@pytest.mark.parametrize(
    ("name", "source"),
    [("dicom", "cine"), ("dicom:", "cine"), ("NIfTI", "cine"), ("png", "images"), ("m&ms", "mnms")],
)
def test_the_source_that_is_meant_is_named(capsys, name: str, source: str):
    text = said(["convert", name, "-i", "x", "-d", "5"], capsys)
    assert f"nnunet-ssp convert {source} -i FOLDER -d ID" in text
    with pytest.raises(SystemExit) as end:  # the line's options exist
        main(["convert", source, "-i", "FOLDER", "-d", "ID"])
    assert end.value.code == 2 and "-d: ID is no whole number" in capsys.readouterr().err


def test_the_nearest_choice_is_named(capsys):
    assert said(["evalute", "5"], capsys).endswith(" Perhaps evaluate?")
    assert said(["convert", "mnsm2", "-i", "x", "-d", "5"], capsys).endswith(" Perhaps mnms2?")


def test_the_names_are_of_sources_and_no_source_itself():
    assert {*SOURCES} <= {*CONVERTERS}
    assert not {name for names in SOURCES.values() for name in names.split()} & {*CONVERTERS}
