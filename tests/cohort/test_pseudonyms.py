from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from nnunet_ssp.cohort import pseudonyms
from nnunet_ssp.cohort.pseudonyms import extend_key, key_file, read_key, shorten_key, write_log

ROOT = Path(__file__).parents[2]


def test_a_pseudonym_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn_ones = iter(["00000001", "00000001", "00000002", "00000001", "00000002", "00000003"])
    monkeypatch.setattr(pseudonyms.secrets, "token_hex", lambda _: next(drawn_ones))
    file = tmp_path / ".ssp-keys" / "a.csv"
    assert extend_key(file, ["x", "y"]) == {"x": "p00000001", "y": "p00000002"}
    assert extend_key(file.with_name("b.csv"), ["z", "x"]) == {"x": "p00000001", "z": "p00000003"}


@pytest.mark.parametrize("rows", ["p1,a\np1,b\n", "p1,a\np2,a\n", "p1,\n"])
def test_a_damaged_key_is_refused(tmp_path: Path, rows: str):
    (tmp_path / "a.csv").write_text(f"pseudonym,name\n{rows}")
    with pytest.raises(ValueError, match=r"a.csv, row \d: `name` .* must occur once each"):
        extend_key(tmp_path / "a.csv", ["c"])


def test_the_key_lies_beside_the_datasets_for_its_owner_alone(tmp_path: Path):
    file = key_file(tmp_path / "Dataset120_Own")
    assert file == tmp_path / ".ssp-keys" / "Dataset120_Own.csv"
    assert read_key(file) == {}
    extend_key(file, ["b", "a"])
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_key_grows_and_keeps_what_it_has(tmp_path: Path):
    file = key_file(tmp_path / "Dataset120_Own")
    first = extend_key(file, ["b", "a"])
    content = file.read_bytes()
    assert extend_key(file, ["a"]) == read_key(file) == first
    assert file.read_bytes() == content
    grown = extend_key(file, ["c, d"])
    assert grown.keys() == {"a", "b", "c, d"}
    assert first.items() <= grown.items()
    assert all(re.fullmatch("p[0-9a-f]{8}", pseudonym) for pseudonym in grown.values())
    assert len({*grown.values()}) == 3


def test_a_shortened_key_ends_with_its_last_name(tmp_path: Path):
    file = key_file(tmp_path / "Dataset120_Own")
    key = extend_key(file, ["a", "b"])
    shorten_key(file, ["b", "unknown"])
    assert read_key(file) == {"a": key["a"]}
    extend_key(file.with_name("other.csv"), ["c"])
    shorten_key(file, ["a"])
    assert [entry.name for entry in file.parent.iterdir()] == ["other.csv"]
    shorten_key(file.with_name("other.csv"), ["c"])
    assert not file.parent.exists()


def test_conversions_and_evaluate_alone_know_keys():
    """A dataset has no names, so nothing that trains on it, up to checkpoints and logs, can tell them.

    `evaluate` finds the 4D masks of `predict`, whose names are the input's.
    """
    files = [
        file
        for folder in ("nnunet_ssp", "dataset_conversion", "trainers")
        for file in (ROOT / folder).rglob("*.py")
        if re.search(r"import pseudonyms|cohort\.pseudonyms", file.read_text(encoding="utf-8"))
    ]
    places = {f"{file.parent.name}/{file.name}" for file in files}
    assert places == {
        "dataset_conversion/combined.py",
        "conversion/convert.py",
        "conversion/record.py",
        "evaluation/command.py",
    }


def test_the_log_has_the_name_of_the_key(tmp_path: Path):
    log = write_log(tmp_path / "Dataset120_Own.csv", {"notes": {"a": ["so"]}})
    assert log == tmp_path / "Dataset120_Own.json"
    assert json.loads(log.read_text()) == {"notes": {"a": ["so"]}}
    if os.name == "posix":
        assert log.stat().st_mode & 0o777 == 0o600


def test_names_with_outer_blanks_do_not_lock_the_key_out(tmp_path):
    file = tmp_path / "a.csv"
    key = extend_key(file, ["patient 1 ", " b"])
    assert extend_key(file, ["patient 1 ", " b"]) == key
    assert read_key(file) == {"patient 1": key["patient 1 "], "b": key[" b"]}
    assert extend_key(file, ["b"])["b"] == key[" b"]
    with pytest.raises(
        ValueError, match=r"a\.csv: the names of two subjects, b  and b, must differ"
    ):
        extend_key(file, ["b", "b "])
