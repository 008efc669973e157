"""Names of subjects in `convert cine`: the key alone has them."""

from __future__ import annotations

import csv
import gzip
import json
import re
import stat
from pathlib import Path

import pytest

from nnunet_ssp.cli import main
from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.privacy import hashed_path
from nnunet_ssp.cohort.pseudonyms import key_file, read_key
from nnunet_ssp.conversion import convert as conversion
from nnunet_ssp.dataset_conversion import acdc, cine
from nnunet_ssp.files.atomic import TEMPORARY, write_json
from tests.cine_trees import ED, ES, add_acdc, drawn, save
from tests.cine_trees import cine as voxels
from tests.dicom_files import series

convert = cine.convert
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


def contents(target: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of all files of a dataset, by name."""
    files = sorted(file for file in target.rglob("*") if file.is_file())
    return {
        str(file.relative_to(target)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in files
    }


def told(target: Path) -> str:
    """All names of files, and the content of all tables, headers and images, of a dataset."""
    texts = []
    for name, (content, _) in contents(target).items():
        texts += [name, content.decode("latin-1")]
        if name.endswith(".gz"):
            texts.append(gzip.decompress(content).decode("latin-1"))
    return "\n".join(texts)


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
    """The leak check knows it in both datasets; new subjects are added to the key."""
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
    with pytest.raises(FileExistsError, match="without --keep-ids, now with it"):
        convert(own, 120, keep_ids=True)
    assert convert(own, 120) == target
    assert key_of(target) == key and subjects_of(target) == {*key.values()}


def test_conversions_begun_before_keep_names(own: Path, capsys: pytest.CaptureFixture[str]):
    """Earlier versions wrote the folder, but nothing about pseudonyms."""
    options = {"test": None, "labels": str(own), "label_names": list(cine.LABEL_NAMES)}
    target = own.parent / "raw" / "Dataset120_Cine"
    write_json(
        target / "convert.json",
        {"converter": "cine", "input": str(own), "options": options | {"by_patient_id": False}},
    )
    assert convert(own, 120, labels=own) == target
    assert subjects_of(target) == {*NAMES}
    assert not key_file(target).parent.exists()
    assert "began with the subjects' names and keeps them" in capsys.readouterr().out


def test_finished_datasets_keep_names(own: Path, capsys: pytest.CaptureFixture[str]):
    target = convert(own, 120, keep_ids=True)
    before = contents(target)
    capsys.readouterr()
    assert convert(own, 120) == target
    assert contents(target) == before, "nothing is converted twice"
    assert "converted before, nothing to do. This conversion began" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="a finished dataset; --overwrite"):
        convert(own, 120, by_patient_id=True)
    assert contents(target) == before
    assert not key_file(target).parent.exists()
    (target / TEMPORARY).mkdir()  # as a run leaves it that was killed at its end
    assert convert(own, 120) == target
    assert contents(target) == before
    assert not (target / TEMPORARY).exists()


def test_an_overwritten_dataset_gets_pseudonyms(own: Path, capsys: pytest.CaptureFixture[str]):
    convert(own, 120, keep_ids=True)
    capsys.readouterr()
    target = convert(own, 120, overwrite=True)
    assert subjects_of(target) == {*key_of(target).values()}
    assert "WARNING: Dataset120_Cine has subjects of this dataset under" in capsys.readouterr().out


def test_other_datasets_with_the_other_kind_of_name_are_named(
    own: Path, capsys: pytest.CaptureFixture[str]
):
    """Checks for leaks compare names, so they would be blind."""
    convert(own, 120, keep_ids=True)
    assert "WARNING: " not in capsys.readouterr().out
    add_acdc(own.parent / "acdc", "training", 1)
    acdc.convert(own.parent / "acdc", 121, add=[f"cine:{own}"])
    assert (
        "WARNING: Dataset120_Cine has subjects of this dataset under their names, so no check"
        in (capsys.readouterr().out)
    )
    convert(own, 122, keep_ids=True, dry_run=True)
    assert "WARNING: Dataset121_ACDC has subjects of this dataset under their pseudonyms" in (
        capsys.readouterr().out
    )


def test_names_are_kept_on_demand(own: Path):
    target = convert(own, 120, keep_ids=True)
    assert subjects_of(target) == {*NAMES}
    assert not key_file(target).parent.exists()
    assert str(own) not in (target / "convert.json").read_text()


def test_public_codes_stay_beside_pseudonyms(own: Path):
    for number in (1, 2):
        add_acdc(own.parent / "acdc", "training", number)
    target = acdc.convert(own.parent / "acdc", 122, add=[f"cine:{own}"])
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
    assert NAMES[1] in output and "Local subjects will get pseudonyms; --keep-ids" in output


def test_a_refused_conversion_leaves_no_key(own: Path):
    for name in NAMES:
        (own / f"{name}.nii.gz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"no subject could be converted(.|\n)*{NAMES[1]}"):
        convert(own, 120)
    assert [*(own.parent / "raw").iterdir()] == []


def test_a_refused_conversion_takes_back_its_own_names_alone(own: Path):
    key = key_of(convert(own, 120))
    for name in NAMES:
        (own / f"{name}.nii.gz").unlink()
    (own / "Neu-Eva.nii.gz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no subject could be converted"):
        convert(own, 120, overwrite=True)
    assert key_of(own.parent / "raw" / "Dataset120_Cine") == key, "weights may know them"


def test_a_damaged_key_deletes_nothing(own: Path):
    target = convert(own, 120)
    before = contents(target)
    key_file(target).with_name("other.csv").write_text("pseudonym,name\np1,a\np1,b\n")
    with pytest.raises(ValueError, match=r"other\.csv, row \d: .* must occur once each"):
        convert(own, 120, overwrite=True)
    assert contents(target) == before


def test_dicom_subjects_are_not_named_after_patients(own: Path):
    series(own / "study 1", PatientID="ID-815", PatientName="Schulze^Ida")
    series(own / "study 2", PatientID="ID-816", PatientName="Schulze^Eva", uid="1.2.5")
    target = convert(own, 120, by_patient_id=True)
    assert key_of(target).keys() == {*NAMES, "ID-815", "ID-816"}
    private = [*NAMES, "ID-81", "Schulze", "study", "Klinikum"]
    assert [word for word in private if word in told(target)] == []


def test_the_command_line_gives_pseudonyms(own: Path, capsys: pytest.CaptureFixture[str]):
    command = ["convert", "cine", "-i", str(own), "-np", "1", "-d"]
    assert main([*command, "120"]) == 0
    assert main([*command, "121", "--keep-ids"]) == 0
    raw = own.parent / "raw"
    assert subjects_of(raw / "Dataset120_Cine") == {*key_of(raw / "Dataset120_Cine").values()}
    assert subjects_of(raw / "Dataset121_Cine") == {*NAMES}
