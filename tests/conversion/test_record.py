from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_ssp.cohort.cases import Case, write_cases
from nnunet_ssp.cohort.privacy import hashed_path
from nnunet_ssp.cohort.pseudonyms import extend_key, key_file
from nnunet_ssp.cohort.splits import FOLD_SOURCE
from nnunet_ssp.conversion.record import (
    NewDataset,
    appended_folds,
    check_folder,
    differing_options,
    in_own_names,
    made_otherwise,
    was_finished,
    with_hashed_paths,
    without_folder,
    without_texts,
)
from nnunet_ssp.conversion.subjects import Outcome, Task, make_cases
from nnunet_ssp.files.atomic import write_json

NEW = NewDataset(
    dataset_id=901,
    name="Toy",
    labels={"background": 0},
    description="toy",
    converter="toy",
    source=Path("input"),
    options={"test": None, "by_patient_id": True},
)


def test_the_marker_of_a_conversion_is_checked(tmp_path):
    write_json(tmp_path / "convert.json", {"deleted_folds": "all"})
    with pytest.raises(ValueError, match=r"`deleted_folds` \(=all\) must be a list of text"):
        appended_folds(tmp_path)


def test_settings_hold_hashes_of_folders(tmp_path: Path):
    options = {"masks": str(tmp_path / "m"), "add": [f"acdc:{tmp_path}"], "keep_labels": False}
    settings = replace(NEW, source=tmp_path, options=options).settings()
    assert str(tmp_path) not in json.dumps(settings)
    assert settings["converter"] == "toy"
    assert settings["input"] == hashed_path(str(tmp_path.resolve()))
    assert settings["options"] == {
        "masks": hashed_path(str(tmp_path / "m")),
        "add": [f"acdc:{hashed_path(str(tmp_path))}"],
        "keep_labels": False,
    }
    assert with_hashed_paths(settings) == settings


def test_texts_name_files_from_the_input_folder_on(tmp_path: Path):
    text = f"{tmp_path}/S1/sa.nii.gz: damaged; see {tmp_path.parent}/other/b.nii.gz"
    shared = without_folder(text, tmp_path)
    assert shared.startswith("S1/sa.nii.gz: damaged")
    assert str(tmp_path.parent) not in shared and shared.endswith("b.nii.gz")


def test_own_names_are_for_the_user_alone():
    outcomes = [Outcome("p1", "train", notes=["a note"]), Outcome("acdc-1", "test")]
    named = in_own_names(outcomes, {"p1": "Erika"})
    assert [o.subject for o in named] == ["Erika", "acdc-1"]
    assert [o.notes for o in named] == [["a note"], []]
    log = {"remarks": ["all"], "notes": {"p1": ["of Erika"], "acdc-1": ["public"]}}
    assert without_texts(log, {"p1": "Erika"}, "see the key") == {
        "remarks": ["all"],
        "notes": {"p1": ["see the key"], "acdc-1": ["public"]},
    }


def test_a_new_or_an_empty_folder_is_taken(tmp_path: Path):
    check_folder(tmp_path / "none", NEW.settings(), overwrite=False)
    (tmp_path / ".ssp-tmp").mkdir()
    check_folder(tmp_path, NEW.settings(), overwrite=False)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="it is not ours to continue or overwrite"):
            check_folder(tmp_path, NEW.settings(), overwrite)


def test_only_equal_settings_continue(tmp_path: Path):
    write_json(tmp_path / "convert.json", NEW.settings())
    check_folder(tmp_path, NEW.settings(), overwrite=False)
    other = replace(NEW, options={"test": ["A"]}).settings()
    with pytest.raises(FileExistsError, match="unfinished conversion with other settings: without"):
        check_folder(tmp_path, other, overwrite=False)
    check_folder(tmp_path, other, overwrite=True)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"test": ["A"]}, "without --test, now with it"),
        ({"test": "path:fd6f23"}, {"test": None}, "with --test, now without"),
        ({"test": "path:fd6f23"}, {"test": "path:fd6f24"}, "another --test"),
        ({"test": ["A"]}, {"test": ["A", "B"]}, "--test A, now A, B"),
        ({"label_values": [3, 2, 1]}, {}, "with --label-values 3, 2, 1, now without"),
        ({}, {"frames_from": 0}, "without --frames-from, now with it"),
        ({"frames_from": 1}, {"frames_from": 0}, "--frames-from 1, now 0"),
        ({"by_patient_id": True}, {"by_patient_id": False}, "with --by-patient-id, now without"),
        ({"pseudonyms": True}, {}, "without --keep-ids, now with it"),
        ({}, {"pseudonyms": True}, "with --keep-ids, now without"),
        ({"add": ["acdc:/a"]}, {"add": ["acdc:/b"]}, "another --add"),
        ({"mnms2": "/a"}, {"mnms2": "/b"}, "another second folder -i"),
    ],
)
def test_differences_are_said_in_options(before: dict, after: dict, words: str):
    one, other = (replace(NEW, options=options).settings() for options in (before, after))
    assert differing_options(one, other) == [words]
    assert differing_options(one, one) == []


def test_a_finished_dataset_of_another_folder_is_named(tmp_path: Path):
    target = tmp_path / "raw" / "Dataset901_Toy"
    write_json(target / "convert.json", NEW.settings())
    write_json(target / "dataset.json", {})
    other = replace(NEW, source=Path("elsewhere")).settings()
    assert made_otherwise(target, NEW.settings()) == ""
    assert made_otherwise(target, other) == "made from another folder"
    key = extend_key(key_file(target), ["Erika"])
    write_cases(target / "cases.csv", [make_case(key["Erika"], 0), make_case("zoe", 0)])
    named = made_otherwise(target, replace(NEW, converter="other").settings())
    assert named.startswith("made by convert toy with 2 subjects (")
    assert "Erika" in named and "zoe" in named and key["Erika"] not in named
    with pytest.raises(
        FileExistsError, match=r"a finished dataset, made from another folder.* Choose"
    ):
        check_folder(target, other, overwrite=False)
    (target / "dataset.json").unlink()
    assert made_otherwise(target, other) == ""


def make_case(subject: str, frame: int) -> Case:
    task = Task(subject, "train", ())
    row, *_ = make_cases(task, {}, 2, source="cine", base="first", vendor="GE", frames=[frame])
    return row


def test_a_finished_dataset_is_refused(tmp_path: Path):
    write_json(tmp_path / "convert.json", NEW.settings())
    write_json(tmp_path / "dataset.json", {})
    with pytest.raises(
        FileExistsError,
        match="mended subjects: this deletes the converted dataset, never your files",
    ):
        check_folder(tmp_path, NEW.settings(), overwrite=False)
    assert not was_finished(tmp_path, NEW.settings())
    (tmp_path / ".ssp-tmp").mkdir()  # killed while it removed what is temporary
    assert was_finished(tmp_path, NEW.settings())
    assert not was_finished(tmp_path, replace(NEW, converter="other").settings())


def test_appended_folds_are_those_of_another_source(tmp_path: Path):
    write_json(tmp_path / "convert.json", {"deleted_folds": ["fold 9 (old: me)"]})
    assert appended_folds(tmp_path) == ["fold 9 (old: me)"]
    rows = f'0,5-fold-0,"{FOLD_SOURCE}"\n5,mine,me\n6,other,\n'
    (tmp_path / "folds.csv").write_text(f"fold,name,source\n{rows}")
    assert appended_folds(tmp_path) == [
        "fold 9 (old: me)",
        "fold 5 (mine: me)",
        "fold 6 (other: unknown)",
    ]
