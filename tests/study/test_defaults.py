from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from nnunet_ssp.settings import override
from nnunet_ssp.study import runs
from nnunet_ssp.study.command import STUDIES
from nnunet_ssp.study.data import digest
from nnunet_ssp.study.defaults import changed, recorded_defaults
from nnunet_ssp.study.runs import find_trainer, study_runs
from nnunet_ssp.study.spec import read_study
from tests.study.test_spec import write

pytestmark = pytest.mark.usefixtures("nnunet_folders")


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        ("demooij", "aae9e4f92af2615f"),
        ("dominic", "0766a3bdc5760146"),
        ("kalapos", "90f2ad45a363dbef"),
        ("phantom", "39bf4a0047744777"),
    ],
)
def test_fingerprints_of_shipped_studies_are_those_of_before_the_record(study, expected):
    found = study_runs(read_study(STUDIES / f"{study}.yaml"), None)
    # Supersets joined dominic later.
    before = [run.folder for part in found for run in part if "superset" not in run.name]
    assert digest(before) == expected


@pytest.mark.parametrize("study", ["demooij", "dominic", "kalapos"])
def test_studies_of_papers_rely_on_no_setting_that_is_not_recorded(study):
    found = read_study(STUDIES / f"{study}.yaml")
    assert found.defaults == "recorded"
    for run in (run for part in study_runs(found, None) for run in part):
        named = dict(word.split("=", 1) for word in run.settings.split())
        resolved = asdict(override(find_trainer(run.trainer).defaults, run.settings)[0])
        assert resolved.keys() == named.keys() | recorded_defaults(run.trainer, named).keys()
        assert changed(run.trainer, named, resolved) == {}


def planned(folder, **changes: Any) -> list[runs.Run]:
    study = read_study(write(folder, **({"folds": {"all": "5-fold-0"}} | changes)))
    return [run for part in study_runs(study, None) for run in part]


def test_a_default_that_changes(tmp_path, monkeypatch):
    trainer = find_trainer("nnUNetTrainerFinetune")
    plain, relying = ({"defaults": kind} for kind in ("current", "recorded"))
    before = planned(tmp_path, **plain)
    assert [run.folder for run in planned(tmp_path, **relying)] == [run.folder for run in before]
    monkeypatch.setattr(trainer, "defaults", replace(trainer.defaults, initial_lr=0.125))
    after = planned(tmp_path, **plain)
    for old, new in zip(before, after, strict=True):
        assert new.settings == old.settings
        # What was trained at the old rate must not pass for a run at the new one.
        assert (new.folder == old.folder) == (old.trainer != "nnUNetTrainerFinetune")
    for old, new in zip(before, planned(tmp_path, **relying), strict=True):
        assert new.folder == old.folder
        tells = old.trainer == "nnUNetTrainerFinetune"
        assert ("initial_lr=0.005" in new.settings) == tells
    # A rate that is named does not depend on any default.
    named = {"settings": {"finetuning": {"initial_lr": 0.03}}}
    ours = planned(tmp_path, **named)
    monkeypatch.setattr(trainer, "defaults", replace(trainer.defaults, initial_lr=0.25))
    assert planned(tmp_path, **named) == ours


def test_a_recipe_stands_for_its_own_defaults():
    deep = recorded_defaults("nnUNetTrainerMIMPretrain", {"recipe": "deep"})
    paper = recorded_defaults("nnUNetTrainerMIMPretrain", {})
    resolved = asdict(override(find_trainer("nnUNetTrainerMIMPretrain").defaults, "recipe=deep")[0])
    assert deep != {name: value for name, value in paper.items() if name != "recipe"}
    assert changed("nnUNetTrainerMIMPretrain", {"recipe": "deep"}, resolved) == {}


def test_a_trainer_from_elsewhere_has_no_record():
    assert recorded_defaults("nnUNetTrainerOurs", {}) == {}
    assert changed("nnUNetTrainerOurs", {}, {"num_epochs": 3}) == {}
