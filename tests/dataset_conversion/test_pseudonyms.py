"""`convert cine` and who its subjects are: with pseudonyms, names are in the key alone."""

from __future__ import annotations

import csv
import json
import re
import stat
from functools import partial
from pathlib import Path

import pytest

from nnunet_ssp.cohort import pseudonyms
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.privacy import hashed_path
from nnunet_ssp.cohort.pseudonyms import extend_key, key_file, read_key
from nnunet_ssp.conversion import convert as conversion
from nnunet_ssp.dataset_conversion import acdc, cine
from nnunet_ssp.files.atomic import write_json
from tests.cine_trees import ED, ES, add_acdc, drawn, save
from tests.cine_trees import cine as voxels

convert = partial(cine.convert, pseudonyms=True)
NAMES = ("Mustermann-Erika", "PatID4711", "Zimmer-Otto")
PSEUDONYM = re.compile(r"p[0-9a-f]{8}")


@pytest.fixture
def own(raw: Path) -> Path:
    """Three subjects: one with a mask, two without."""
    folder = raw.parent / "Klinikum"
    for number, name in enumerate(NAMES):
        save(voxels(number), folder / f"{name}.nii.gz")
    save(drawn(ED, ES), folder / f"{NAMES[0]}_gt.nii.gz")
    return folder


def key_of(target: Path) -> dict[str, str]:
    return read_key(key_file(target))


def subjects_of(target: Path) -> set[str]:
    return {case.subject for case in read_cases(target / "cases.csv").values()}


def told(target: Path) -> str:
    """All names of files, and the content of all tables, of a dataset."""
    files = sorted(file for file in target.rglob("*") if file.is_file())
    texts = [file.read_text() for file in files if file.suffix in (".json", ".csv")]
    return "\n".join([*(str(file.relative_to(target)) for file in files), *texts])


def test_no_name_and_no_path_in_a_dataset(own: Path, capsys: pytest.CaptureFixture[str]):
    (own / "Schmidt-Anna").mkdir()
    save(voxels()[..., :1], own / "Mueller-Jan_gt.nii.gz")  # a mask without an image
    target = convert(own, 120, test=names_file(own, NAMES[0]), labels=own)
    text = told(target)
    private = [*NAMES, "Schmidt", "Mueller", "Klinikum", str(own.parent)]
    assert [word for word in private if word in text] == []
    key = key_of(target)
    assert subjects_of(target) == {key[name] for name in NAMES}
    assert all(PSEUDONYM.fullmatch(pseudonym) for pseudonym in key.values())
    splits = {case.subject: case.split for case in read_cases(target / "cases.csv").values()}
    assert splits[key[NAMES[0]]] == "test"
    file = key_file(target)
    assert file == target.parent / ".ssp-keys" / "Dataset120_Cine.csv"
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert {row["name"]: row["pseudonym"] for row in rows} == key
    for secret in (file, file.with_suffix(".json")):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    said = capsys.readouterr().out
    assert f"The key is {file}" in said
    assert "Mueller-Jan: " in said, "the user's own names on the user's own screen"
    refused = json.loads(file.with_suffix(".json").read_text())["refused"]
    assert "a mask without an image" in refused["Mueller-Jan"]
    shared = json.loads((target / "convert.json").read_text())
    assert shared["refused"][key["Mueller-Jan"]] == ["see .ssp-keys/Dataset120_Cine.json"]
    assert shared["input"] == hashed_path(str(own.resolve()))


def names_file(own: Path, *names: str) -> Path:
    file = own.parent / "test.txt"
    file.write_text("\n".join(names))
    return file


def test_pseudonyms_are_random_and_sorted(own: Path):
    target = convert(own, 120)
    cases = [case.subject for case in read_cases(target / "cases.csv").values()]
    assert cases == sorted(cases), "the order of names tells nothing"
    key_file(target).unlink()
    first = subjects_of(target)
    assert not first & subjects_of(convert(own, 120, overwrite=True))


def test_another_conversion_of_a_subject_has_its_pseudonym(own: Path):
    """The check for leaks knows it in both datasets; new subjects are added to the key."""
    first = convert(own, 120)
    assert subjects_of(convert(own, 121)) == subjects_of(first)
    before = key_of(first)
    save(voxels(7), own / "Neu-Eva.nii.gz")
    again = convert(own, 120, overwrite=True)
    assert key_of(again).items() > before.items()
    assert len(subjects_of(again)) == 4


def test_an_interrupted_conversion_goes_on(own: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_splits", stop)
        with pytest.raises(RuntimeError, match="writing failed"):
            convert(own, 120)
    target = own.parent / "raw" / "Dataset120_Cine"
    key = key_of(target)
    assert [
        word for word in (*NAMES, "Klinikum") if word in (target / "convert.json").read_text()
    ] == []
    with pytest.raises(FileExistsError, match="another `options`"):
        cine.convert(own, 120)
    assert convert(own, 120) == target
    assert key_of(target) == key and subjects_of(target) == {*key.values()}


def test_conversions_begun_before_keep_names(own: Path):
    """Earlier versions wrote the folder and no word of pseudonyms."""
    options = {"test": None, "labels": str(own), "label_names": list(cine.LABEL_NAMES)}
    target = own.parent / "raw" / "Dataset120_Cine"
    write_json(
        target / "convert.json",
        {"converter": "cine", "input": str(own), "options": options | {"by_patient_id": False}},
    )
    assert convert(own, 120, labels=own) == target
    assert subjects_of(target) == {*NAMES}
    assert not key_file(target).exists()


def test_names_are_kept_otherwise(own: Path):
    target = cine.convert(own, 120)
    assert subjects_of(target) == {*NAMES}
    assert not key_file(target).parent.exists()
    assert str(own) not in (target / "convert.json").read_text()


def test_public_codes_stay_beside_pseudonyms(own: Path):
    for number in (1, 2):
        add_acdc(own.parent / "acdc", "training", number)
    target = acdc.convert(own.parent / "acdc", 122, add=[f"cine:{own}"], pseudonyms=True)
    key = key_of(target)
    assert key.keys() == {*NAMES}
    cases = read_cases(target / "cases.csv").values()
    expected = {"acdc-patient001", "acdc-patient002", *(f"cine-{p}" for p in key.values())}
    assert {case.subject_key for case in cases} == expected
    assert {case.case.partition("_frame")[0] for case in cases} == expected
    assert [word for word in (*NAMES, "Klinikum") if word in told(target)] == []


def test_a_dry_run_writes_no_key(own: Path, capsys: pytest.CaptureFixture[str]):
    target = convert(own, 120, dry_run=True)
    assert not key_file(target).parent.exists()
    output = capsys.readouterr().out
    assert NAMES[1] in output and "Local subjects will get pseudonyms" in output


# -- the key -------------------------------------------------------------------------------------


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
