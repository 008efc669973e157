"""Predictions of the images that the model was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_ssp.cohort.cases import read_cases, write_cases
from nnunet_ssp.evaluation.files import Pair, References
from nnunet_ssp.evaluation.training_subjects import outdated_notes, training_notes
from tests.evaluation.conftest import Document, make_case, write_predictions
from tests.evaluation.running import Predict, run, tables
from tests.evaluation.test_provenance import beside

HERE = "Dataset114_MNMs"
TUNED = "nnUNetTrainerFinetune__small__2d"
# Four subjects for training, of two frames each; a fold's training side names one frame of each.
CASES = {
    c.case: c for n in range(1, 5) for p in ("ED", "ES") for c in [make_case(f"P{n}", p, "train")]
}
ED = {n: f"P{n}_frame00" for n in range(1, 5)}
ES = {n: f"P{n}_frame07" for n in range(1, 5)}
FOLDS = [
    {"train": [ED[2], ED[3], ED[4]], "val": [ED[1]]},
    {"train": [ED[1], ED[3], ED[4]], "val": [ED[2]]},
]
REFERENCES = References(
    {"T1_frame00": Path("t")}, dict.fromkeys([*ED.values(), *ES.values()], Path("r")), FOLDS, HERE
)
NEW = "their Dice says nothing about new patients."


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make the folders of finished trainings."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))

    def make(*folds: str, model: str = TUNED) -> Path:
        for fold in folds:
            folder = tmp_path / "results" / HERE / model / f"fold_{fold}"
            folder.mkdir(parents=True)
            (folder / "checkpoint_final.pth").touch()
        return tmp_path / "results" / HERE / model

    return make


def said(folder: Path, *scored: str, references: References = REFERENCES, cases=CASES) -> list[str]:
    pairs = [Pair("m", 0, case, folder / f"{case}.nii.gz", Path("r")) for case in scored]
    return training_notes({"m": [folder]}, pairs, references, cases)


def test_the_fold_that_the_folder_names(train, tmp_path: Path):
    """By subject: the ES frame of a subject whose ED frame was trained on counts, too."""
    train("0", "1")
    folder = tmp_path / "nnUNetTrainerFinetune_small_fold_0"
    expected = [f"WARNING: m: 2 of 3 cases are of training subjects of fold 0: {NEW}"]
    assert said(folder, ED[1], ED[2], ES[3]) == expected
    assert said(folder, ED[1], ES[1]) == []
    assert said(folder, "T1_frame00") == []


@pytest.mark.parametrize("folder", ["fold_all/validation", "nnUNetTrainerX_fold_all"])
def test_all_was_trained_on_everything_but_the_test(tmp_path: Path, folder: str):
    expected = [f"WARNING: m: 2 of 2 cases are of training subjects of fold all: {NEW}"]
    assert said(tmp_path / folder, ED[1], ES[4]) == expected
    assert said(tmp_path / folder, "T1_frame00") == []


def test_a_validation_holds_its_subjects_out_unless_it_has_none(tmp_path: Path):
    assert said(tmp_path / "T__P__2d/fold_1/validation", ED[2]) == []
    nobody = [{"train": [ED[1], ED[2]], "val": [ED[1]]}]
    references = References({}, REFERENCES.training, nobody, HERE)
    (note,) = said(tmp_path / "T__P__2d/fold_0/validation", ED[1], references=references)
    assert note == f"WARNING: m: 1 of 1 cases are of training subjects of fold 0: {NEW}"


def test_a_folder_of_ones_own_is_of_the_folds_that_are_trained_here(train, tmp_path: Path):
    folder = tmp_path / "onTr"
    train("0")
    only = f"2 of 2 cases are of training subjects of fold 0, the only one trained here: {NEW}"
    assert said(folder, ED[3], ED[4]) == [f"WARNING: m: {only}"]
    train("0", model="nnUNetTrainerScratch__small__2d")  # one of the two models, of the same fold
    assert said(folder, ED[3], ED[4]) == [f"WARNING: m: {only}"]
    train("1")
    every = f"1 of 2 cases are of training subjects of every fold trained here (0, 1): {NEW}"
    assert said(folder, ED[1], ED[3]) == [f"WARNING: m: {every}"]
    doubt = (
        "m: the folder does not tell which fold predicted. 1 of 1 cases are of training subjects of fold 1 (trained "
        "here): if one of these took part, their Dice says nothing about new patients."
    )
    assert said(folder, ES[1]) == [doubt]


def test_a_model_that_is_not_here_is_of_a_fold_of_the_file(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("nnUNet_results", raising=False)
    (note,) = said(tmp_path / "onTr", ED[3])
    assert "of every fold of splits_final.json (0, 1): their Dice" in note
    without = References({}, REFERENCES.training, (), HERE)
    assert said(tmp_path / "onTr", ED[3], references=without) == []


def test_a_model_of_another_dataset_was_trained_on_others(train, tmp_path: Path):
    train("0")
    folder = beside(tmp_path / "theirs", "Dataset027_ACDC", f"/x/{HERE}/imagesTr")
    assert said(folder, ED[3]) == []


def test_without_cases_csv_a_case_is_a_subject(train, tmp_path: Path):
    train("0")
    assert said(tmp_path / "p", ES[3], cases={}) == []
    assert len(said(tmp_path / "p", ED[3], cases={})) == 1


@pytest.mark.parametrize("named", [False, True])
def test_it_stands_in_terminal_and_page(
    named: bool, nnunet: Path, dataset: Path, predict: Predict, with_page, capsys, train, tmp_path
):
    """Also where the references are named: --references labelsTr."""
    train("0")
    cases = read_cases(dataset / "cases.csv").values()
    split = {f"T{n}": "train" if n < 4 else "test" for n in range(8)}
    write_cases(
        dataset / "cases.csv", [make_case(c.subject, c.phase, split[c.subject]) for c in cases]
    )
    (dataset / "labelsTr").mkdir()
    for case in [c.case for c in cases if split[c.subject] == "train"]:
        shutil.move(dataset / "labelsTs" / f"{case}.nii.gz", dataset / "labelsTr")
    names = [[f"T{n}_frame{frame}" for frame in ("00", "07")] for n in range(4)]
    folds = [{"train": [*names[1], *names[2], *names[3]], "val": names[0]}]
    (dataset / "splits_final.json").write_text(json.dumps(folds))
    folder = write_predictions(nnunet / "onTr2", dataset / "labelsTr", 1.0)
    references = f"--references {dataset / 'labelsTr'}" if named else ""
    assert run(f"114 -np 1 {references}", folder) == 0
    warning = (
        "WARNING: onTr2: 6 of 8 cases are of training subjects of fold 0, the only one trained here: "
        "their Dice says nothing about new patients."
    )
    assert f"\n{warning}\n" in capsys.readouterr().out
    output = folder.with_name("onTr2_evaluation")
    assert warning in Document((output / "report.html").read_text(encoding="utf-8")).text
    *_, summary = tables(output)
    assert summary["notes"][0] == warning


def test_references_that_changed_after_prepare_are_told(tmp_path, monkeypatch):
    """A corrected mask waits in `labelsTr`; the copy of the earlier one is what is scored against."""
    raw, prepared = tmp_path / "raw" / "Dataset007_A", tmp_path / "pre" / "Dataset007_A"
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    for folder, second in ((raw / "labelsTr", b"new"), (prepared / "gt_segmentations", b"old")):
        folder.mkdir(parents=True)
        (folder / "a.nrrd").write_bytes(b"same")
        (folder / "b.nrrd").write_bytes(second)
    copies = prepared / "gt_segmentations"
    pairs = [Pair("m", 0, case, tmp_path / case, copies / f"{case}.nrrd") for case in "ab"]
    (note,) = outdated_notes(pairs, prepared, ".nrrd")
    assert note == (
        "WARNING: 1 reference changed in labelsTr after nnunet-ssp prepare (b): scored here against the earlier, in "
        "gt_segmentations. Run nnunet-ssp prepare again as before, and train again."
    )
    assert outdated_notes(pairs[:1], prepared, ".nrrd") == []
    test = [Pair("m", 0, "b", tmp_path / "b", raw / "labelsTs" / "b.nrrd")]
    assert outdated_notes(test, prepared, ".nrrd") == []


def test_nnunets_joined_validations_hold_out_every_case(train):
    joined = train("0", "1") / "crossval_results_folds_0_1"
    for folder in (joined, joined / "postprocessed"):
        assert said(folder, ED[1], ED[2]) == []


def test_a_copied_validation_of_a_fold_that_was_trained_elsewhere(train, tmp_path: Path):
    """Only the trained fold is here; that the cases are another's validation side leaves it open."""
    train("0")
    assert said(tmp_path / "copy", ED[2]) == [
        "m: the folder does not tell which fold predicted. 1 of 1 cases are of training subjects of fold 0 (trained "
        f"here): if one of these took part, {NEW}"
    ]
    (note,) = said(tmp_path / "copy", ED[2], ED[3])
    assert note.startswith("WARNING: m: 2 of 2 cases are of training subjects of fold 0, the only")
