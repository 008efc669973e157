from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunet_ssp.cli import _parser, main
from nnunet_ssp.command_line import LONGEST, SOURCES
from nnunet_ssp.dataset_conversion import CONVERTERS


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


NEED = ". A path with blanks needs quotes: "
BLANK = {
    "convert cine -i My own Data -d 5": "'My own Data'",
    "phantom My own Data --labelled 2": "'My own Data'",
    # Several values may follow: the parser takes the parts for paths of their own.
    "predict -i My own Data -m model -o out": "'My own Data'",
    "predict -m model -o out -i a My own Data b": "'My own Data'",
    "predict -i a -m My own Data -o out": "'My own Data'",
    "evaluate 114 My own Data": "'My own Data'",
    "evaluate 114 mine=My own Data theirs=x": "'mine=My own Data'",
    "evaluate 114 x --references My own Data": "'My own Data'",
    "folds 114 --from My own Data": "'My own Data'",
    "inspect My own.pth": "'My own.pth'",
    "inspect x.pth My own.pth": "'My own.pth'",
    "export My own.pth -o x": "'My own.pth'",
    "import My own.pth -d 114": "'My own.pth'",
    "prepare 114 --plans-from My own.pth": "'My own.pth'",
    "study kalapos --bench My own.pth": "'My own.pth'",
    "train 114 2d 0 -tr X -pretrained_weights My own.pth": "'My own.pth'",
    "demo --data My own Data": "'My own Data'",
    # What a command makes is not there yet.
    "predict -i a -m model -o the new place": "'the new place'",
    "export x.pth -o the new place": "'the new place'",
    "phantom the new place --labelled 2": "'the new place'",
    "inspect x.pth --strip the new.pth": "'the new.pth'",
}


@pytest.mark.parametrize("line", BLANK)
def test_a_path_with_blanks_lacks_its_quotes(tmp_path: Path, monkeypatch, capsys, line: str):
    (tmp_path / "My own Data").mkdir()
    (tmp_path / "My own.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert said(line.split(), capsys).endswith(NEED + BLANK[line])


def test_parts_that_exist_by_themselves_are_meant(tmp_path: Path, monkeypatch):
    for name in ("a", "b", "a b", "114 a"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    parsed = _parser().parse_args(["evaluate", "114", "a", "b"])
    assert parsed.predictions == ["a", "b"]
    assert _parser().parse_args(["predict", "-i", "a b", "-o", "x"]).inputs == [Path("a b")]


def test_each_word_is_looked_up_once(tmp_path: Path, monkeypatch):
    """A shell puts hundreds of paths in place of an asterisk."""
    monkeypatch.chdir(tmp_path)
    names = [f"model{n}" for n in range(60)]
    for name in names:
        (tmp_path / name).mkdir()
    asked: list[str] = []
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: asked.append(path) or exists(path))
    assert _parser().parse_args(["evaluate", "114", *names]).predictions == names
    assert sorted(path for path in asked if path.startswith("model")) == sorted(names)
    asked.clear()
    _parser().parse_args(["evaluate", "114", *["no-such-model"] * 400])
    assert max(map(len, asked)) <= LONGEST


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


def test_a_forgotten_dataset_is_named(tmp_path: Path, capsys):
    said = "he dataset comes first: nnunet-ssp evaluate DATASET FOLDER"
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path)])
    assert f"required: FOLDER. T{said}" in capsys.readouterr().err
    for word in (str(tmp_path), f"mim={tmp_path}"):
        assert main(["evaluate", word, str(tmp_path)]) == 1
        assert f"{word}: a folder, and t{said}" in capsys.readouterr().err
