"""`--c` without settings goes on with those of the checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssp.files.atomic import write_json

FINETUNE, SCRATCH = "nnUNetTrainerFinetune", "nnUNetTrainerScratch"
MIM = "nnUNetTrainerMIMPretrain"
EARLY = Path(__file__).with_name("checkpoints")  # of commit 1893319
# Named when these began, and the losses of the second epoch with which that commit went on.
NAMED = {
    MIM: {"num_epochs": 2, "mask_ratio": 0.6, "initial_lr": 0.02, "batch_size": 4, "seed": 3},
    SCRATCH: {"num_epochs": 2, "initial_lr": 0.02, "seed": 3, "final_validation": False},
}
LOSSES = {MIM: (1.17941, 1.41629), SCRATCH: (1.22302, 1.09553)}
SETTINGS = {
    SCRATCH: "num_epochs=2 iterations_per_epoch=1 val_iterations_per_epoch=1 final_validation=no",
    MIM: "num_epochs=2 iterations_per_epoch=1 batch_size=4",
}

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def latest(trainer: Any) -> Path:
    return Path(trainer.output_folder) / "checkpoint_latest.pth"


def with_settings(file: Path, settings: dict[str, Any]) -> None:
    content = torch.load(file, weights_only=True)
    content["ssp"] = {k: v for k, v in content["ssp"].items() if k != "precision"}
    content["ssp"]["settings"] = settings
    torch.save(content, file)


@pytest.mark.parametrize("trainer", NAMED)
def test_a_checkpoint_of_an_earlier_version(runs, own_copy, log, trainer):
    """Nothing is named; no default of today replaces what the run began with, and it comes to what it came to then."""
    early = EARLY / f"{trainer}.pth"
    content = torch.load(early, weights_only=False)
    plans = content["init_args"]["plans"]
    write_json(own_copy / f"{plans['plans_name']}.json", plans)
    begun = content["ssp"]["settings"]
    assert NAMED[trainer].items() <= begun.items()

    place = latest(runs.make(trainer, plans=plans["plans_name"]))
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(early, place)
    # The one setting that a checkpoint does not decide
    rest = runs.run(trainer, "final_validation=no", plans=plans["plans_name"], resume=True)
    settings = asdict(rest.settings)
    assert {name: settings[name] for name in begun} == begun
    assert settings["fused_norm"] == "no", "what came later computes as nothing did then"
    assert (rest.current_epoch, rest.num_epochs, rest.num_iterations_per_epoch) == (2, 2, 1)
    assert "Settings that were not named come from checkpoint_latest.pth: num_epochs:" in log(rest)
    assert "Goes on with epoch 1." in log(rest)
    final = torch.load(place.with_name("checkpoint_final.pth"), weights_only=False)
    losses = [final["logging"][name] for name in ("train_losses", "val_losses")]
    assert [loss[0] for loss in losses] == [
        content["logging"][name][0] for name in ("train_losses", "val_losses")
    ]
    assert [loss[1] for loss in losses] == pytest.approx(LOSSES[trainer], rel=1e-4)


def test_named_settings_must_be_the_same(runs):
    runs.interrupt(SCRATCH, f"{SETTINGS[SCRATCH]} initial_lr=0.02 weight_decay=0.001")
    with pytest.raises(ValueError, match=r"these differ: initial_lr: 0\.02 -> 0\.1$"):
        runs.make(SCRATCH, "initial_lr=0.1", resume=True)
    rest = runs.make(SCRATCH, "initial_lr=0.02", resume=True)
    assert (rest.initial_lr, rest.weight_decay) == (0.02, 0.001)
    assert rest.optimizer.param_groups[0]["weight_decay"] == 0.001


def test_a_recipe_whose_values_have_changed(runs):
    settings = f"{SETTINGS[MIM]} recipe=deep initial_lr=0.002"
    runs.interrupt(MIM, settings)
    for named in ("", "recipe=deep"):
        assert runs.make(MIM, named, resume=True).settings.initial_lr == 0.002
    with pytest.raises(ValueError, match="recipe: deep -> paper"):
        runs.make(MIM, "recipe=paper", resume=True)


def test_a_checkpoint_does_not_decide_whom_to_trust(runs):
    stopped = runs.interrupt(SCRATCH, SETTINGS[SCRATCH])
    content = torch.load(latest(stopped), weights_only=True)
    with_settings(latest(stopped), content["ssp"]["settings"] | {"trust": True})
    assert not runs.make(SCRATCH, resume=True).settings.trust
    assert runs.make(SCRATCH, "trust=yes", resume=True).settings.trust


def test_settings_that_cannot_be(runs):
    stopped = runs.interrupt(SCRATCH, SETTINGS[SCRATCH])
    with_settings(latest(stopped), {"num_epochs": "many"})
    with pytest.raises(ValueError, match=r"latest\.pth: its settings do not fit .* \(=many\) must"):
        runs.make(SCRATCH, resume=True)


def test_nothing_to_go_on_with_is_said(runs, log):
    trainer = runs.make(SCRATCH, SETTINGS[SCRATCH], resume=True)
    said = log(trainer)
    assert f"WARNING: --c finds no checkpoint in {trainer.output_folder}: this training" in said


def test_the_printed_command_has_what_the_checkpoint_does_not_decide(runs):
    trainer = runs.make(SCRATCH, SETTINGS[SCRATCH])
    assert trainer.kept_settings() == "final_validation=no"
    assert runs.make(SCRATCH, "num_epochs=2").kept_settings() == ""
    assert runs.make(MIM, SETTINGS[MIM] + " chunk_size=none").kept_settings() == "chunk_size=none"


def test_a_variable_for_both_trainings_is_noticed(runs, log):
    said = log(runs.make(SCRATCH, "mask_ratio=0.5 optimizer=adamw"))
    assert (
        "ignored here: mask_ratio. Of the same variable, this training takes: optimizer=adamw"
        in said
    )
    alone = log(runs.make(MIM, "recipe=few"))
    assert "Settings of other trainers, ignored here: recipe=few" in alone
    assert "Of the same variable" not in alone
