from __future__ import annotations

import pytest

from nnunet_ssp.study.command import STUDIES
from nnunet_ssp.study.hyperparameters import SHOWN, hyperparameters
from nnunet_ssp.study.published import published_settings
from nnunet_ssp.study.runs import study_runs
from nnunet_ssp.study.spec import read_study
from tests.study.test_runs import planned


def column(table, heading):
    headings, rows, _ = table
    place = next(i for i, name in enumerate(headings) if name == heading)
    return {row[0]: row[place] for row in rows}


def test_trainers_have_the_settings_of_appendix_a(tmp_path, data):
    """Our defaults beside those of de Mooij et al.: MIM in another half precision, fine-tuning in one."""
    study = read_study(STUDIES / "demooij.yaml")
    folds = dict.fromkeys(study.folds, "5-fold-0")
    study = study.model_copy(update={"folds": folds})
    table = hyperparameters(study, study_runs(study, data), data)
    for method, epochs, rate, batch in (
        ("SimCLR", "100", "0.1", "224"),
        ("PCL", "100", "0.1", "64"),
        ("DINO", "100", "0.0075", "64"),
        ("MIM", "100", "0.01", "128"),
    ):
        own = column(table, f"{method}, pretraining")
        assert (own["epochs"], own["slices per step"]) == (epochs, batch)
        assert own["learning rate"] == rate
        for setting in ("scheduler", "optimiser", "momentum", "Nesterov", "weight decay"):
            assert "(" not in own[setting], (method, setting)
    assert column(table, "MIM, pretraining")["precision"] == "bf16 (fp16)"
    assert column(table, "PCL, pretraining")["precision"] == "fp32"
    assert column(table, "baseline")["learning rate"] == "0.01"
    assert column(table, "baseline")["precision"] == "fp16 (fp32)"
    assert column(table, "baseline")["scheduler"] == "poly"
    shared = column(table, "SimCLR, PCL, DINO, MIM")
    assert shared["learning rate"] == "0.005"
    assert shared["slices per step"] == "4 (32)"  # the plan's here, theirs in brackets
    assert "Appendix A" in table[2]


def test_settings_of_the_runs(tmp_path, data):
    settings = {
        "pretraining": {"num_epochs": 3, "optimizer": "adamw"},
        "finetuning": {"num_epochs": 2},
    }
    study, *runs = planned(tmp_path, data, settings=settings)
    table = hyperparameters(study, (runs[0], runs[1]), data)
    assert table[0] == ["", "MIM, pretraining", "baseline", "MIM"]
    assert [row[0] for row in table[1]] == list(SHOWN.values())
    assert "brackets" not in table[2]
    own = column(table, "MIM, pretraining")
    assert (own["epochs"], own["optimiser"], own["steps per epoch"]) == ("3", "adamw", "one pass")
    own = column(table, "MIM")
    assert (own["epochs"], own["optimiser"], own["slices per step"]) == ("2", "sgd", "4")


def test_settings_without_effect_are_not_shown_and_those_that_are_given_are(tmp_path, data):
    pretraining = {"MIM": {"trainer": "MIM", "fold": "all"}}
    pretraining["MIM"]["settings"] = {"optimizer": "adamw", "mask_ratio": 0.6}
    models = {"baseline": {"trainer": "Scratch"}, "MIM": {"trainer": "FinetuneFrozen"}}
    models["MIM"] |= {"pretraining": "MIM", "settings": {"frozen_lr": 0.003}}
    study, *runs = planned(tmp_path, data, pretraining=pretraining, models=models)
    table = hyperparameters(study, (runs[0], runs[1]), data)
    own = column(table, "MIM, pretraining")
    assert (own["optimiser"], own["momentum"], own["Nesterov"]) == ("adamw", "–", "–")
    assert (own["mask_ratio"], own["frozen_lr"]) == ("0.6", "–")
    own = column(table, "MIM")
    assert (own["mask_ratio"], own["frozen_lr"], own["momentum"]) == ("–", "0.003", "0.99")
    assert not {"seed", "final_validation"} & set(own)


def test_the_optimiser_of_a_fine_tuning(tmp_path, data):
    settings = {"finetuning": {"optimizer": "adamw", "weight_decay": 0.01}}
    study, *runs = planned(tmp_path, data, settings=settings)
    own = column(hyperparameters(study, (runs[0], runs[1]), data), "MIM")
    assert (own["optimiser"], own["weight decay"]) == ("adamw", "0.01")
    assert (own["momentum"], own["Nesterov"]) == ("–", "–")


def test_published_settings_that_there_are_not():
    with pytest.raises(ValueError, match=r"published_settings \(=nobody\)"):
        published_settings("nobody")
