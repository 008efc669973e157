"""Pretrainings that predicted, and different models under one name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_ssp.evaluation.trained_models import model_notes
from tests.evaluation.conftest import Document
from tests.evaluation.running import Predict, run
from tests.evaluation.test_provenance import HERE, beside

DENSE = "nnUNetTrainerDensePretrain"


def said(*folders: Path) -> list[str]:
    return model_notes({"a": folders}, HERE)


@pytest.mark.parametrize("end", ["_small_fold_0", "_fold_all", "_small_2d_resenc_fold_3"])
def test_a_pretraining_is_known_by_the_name_of_the_folder(tmp_path: Path, end: str):
    assert said(tmp_path / f"{DENSE}{end}") == [
        f"WARNING: a: by the folder's name these are predictions of {DENSE}, a pretraining, which segments nothing; "
        "fine-tune it first, then predict with the fine-tuning."
    ]
    assert said(tmp_path / f"nnUNetTrainerFinetune{end}") == []
    assert said(tmp_path / DENSE) == []


def test_where_there_are_pretrainings_alone_one_may_have_predicted(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    folder = beside(tmp_path / "p")
    assert said(folder) == []
    for name in (f"{DENSE}__small__2d", "nnUNetTrainerFinetune__small__2d"):
        fold = tmp_path / "results" / HERE / name / "fold_0"
        fold.mkdir(parents=True)
        (fold / "checkpoint_final.pth").touch()
        notes = said(folder)
        assert len(notes) == (DENSE in name)
        assert not notes or notes[0].startswith(
            f"a: in nnUNet_results {HERE} has pretrainings alone ({DENSE}__small__2d), which"
        )
        assert said(tmp_path / "of another program") == []


def test_trainers_under_one_name_are_no_seeds(tmp_path: Path):
    names = ("nnUNetTrainerFinetune_small", "nnUNetTrainerScratch_small")
    tuned, scratch = (tmp_path / f"{name}_fold_0" for name in names)
    expected = (
        f"WARNING: a: its folders were predicted by different models ({', '.join(names)}), yet folders of one name are "
        "taken for seeds or folds of one model, and averaged. Give each model a name of its own."
    )
    assert said(tuned, scratch) == [expected]
    assert said(tuned, tmp_path / "seed1" / tuned.name, tmp_path / f"{names[0]}_fold_1") == []
    assert said(tuned, tmp_path / "seed1") == []  # of a name of one's own
    assert model_notes({"a": [tuned], "b": [scratch]}, HERE) == []
    validations = [
        tmp_path / f"nnUNetTrainer{kind}__small__2d" / "fold_0" / "validation"
        for kind in ("Finetune", "Scratch")
    ]
    assert said(*validations) == [expected]
    assert said(validations[0], tuned) == []


def test_plans_under_one_name_are_no_seeds(tmp_path: Path):
    folders = [beside(tmp_path / name) for name in ("s0", "s1")]
    assert said(*folders) == []
    plans = {"dataset_name": HERE, "plans_name": "small"}
    (folders[1] / "plans.json").write_text(json.dumps(plans))
    (warning,) = said(*folders)
    assert "were predicted by models of different plans (nnUNetPlans, small), yet" in warning
    (folders[1] / "plans.json").write_bytes(b"[]")
    assert said(*folders) == []
    theirs = {"dataset_name": "Dataset027_ACDC", "plans_name": "nnUNetPlans"}
    (folders[1] / "plans.json").write_text(json.dumps(theirs))
    (warning,) = said(*folders)
    assert "(nnUNetPlans, nnUNetPlans of Dataset027_ACDC)" in warning


def test_both_stand_in_terminal_and_page(predict: Predict, with_page, capsys, tmp_path: Path):
    folders = [predict(f"{name}_fold_0", 1.0) for name in (DENSE, "nnUNetTrainerScratch")]
    given = [f"a={folder}" for folder in folders]
    assert run(f"114 -np 1 -o {tmp_path / 'out'}", *given) == 0
    printed = capsys.readouterr().out
    page = Document((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    for words in (
        f"WARNING: a, {DENSE}_fold_0: by the folder's name these are predictions of {DENSE},",
        f"WARNING: a: its folders were predicted by different models ({DENSE}, nnUNetTrainerScratch),",
    ):
        assert words in printed
        assert any(text.startswith(words) for text in page.text)
