"""README, docs/choosing.md, what is printed and what was measured give one advice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nnunet_ssp.methods.dense import Dense
from nnunet_ssp.recommended import (
    FEW,
    FEW_SETTINGS,
    MANY,
    MOVEMENT,
    MOVEMENT_SETTINGS,
    finetuning_settings,
    recommended,
)
from nnunet_ssp.settings import FinetuningSettings, override
from nnunet_ssp.training.evidence import SLICES, TWO_VIEWS, read_measured

ROOT = Path(__file__).parents[1]
DENSE, MIM = "nnUNetTrainerDensePretrain", "nnUNetTrainerMIMPretrain"


@pytest.mark.parametrize(
    ("labelled", "frames", "trainer", "settings", "finetuning"),
    [
        (0, True, DENSE, MOVEMENT_SETTINGS, ""),  # labels come later: nothing to count the steps by
        (1, True, DENSE, MOVEMENT_SETTINGS, FEW_SETTINGS),
        (FEW, True, DENSE, MOVEMENT_SETTINGS, FEW_SETTINGS),
        (FEW, False, MIM, "", FEW_SETTINGS),  # no second frames to compare
        (FEW + 1, True, MIM, "", ""),
        (MANY + 1, True, MIM, "", ""),
    ],
)
def test_the_rule(labelled: int, frames: bool, trainer: str, settings: str, finetuning: str):
    found = recommended(labelled, 100, frames)
    assert (found.trainer, found.settings, found.finetuning) == (trainer, settings, finetuning)


def test_the_reason_is_said():
    assert "5 labelled subjects to train on" in recommended(5, 9).reason
    assert "expect less" not in recommended(5, 9).reason
    assert "no unlabelled images" in recommended(1, 0).reason
    assert recommended(FEW + 1, 9).reason == recommended(0, 9).reason == ""
    assert "nnUNetTrainerScratch" in recommended(MANY + 1, 9).reason


def test_the_settings_for_few_labels_are_those_that_were_measured():
    settings, ignored = override(FinetuningSettings(), FEW_SETTINGS)
    assert not ignored
    assert settings.num_epochs * settings.iterations_per_epoch == 1500
    assert (settings.optimizer, settings.initial_lr) == ("adamw", 0.003)
    assert finetuning_settings(FEW) == FEW_SETTINGS


def test_the_pretraining_for_few_labels_is_as_long_as_the_measured_one():
    settings, ignored = override(Dense.settings_class(), MOVEMENT_SETTINGS)
    assert not ignored and settings.contrast == 0
    steps = settings.num_epochs * settings.iterations_per_epoch
    assert "Dense" in TWO_VIEWS and 2 * steps * settings.batch_size == SLICES


def gains_in_readme() -> dict[tuple[str, str], float]:
    """Return the gains of README's table, all on the same patients and seeds, by trainer and settings."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|\n]*\| `(nnUNetTrainer\w+Pretrain)`.*\|([^|\n]*)\|$", readme, re.M)
    assert rows
    return {
        (trainer, settings): float(gain)
        for trainer, cell in rows
        for settings, gain in re.findall(r"(?:`([^`]*)` )?([+-]\d\.\d+)", cell)
    }


def test_the_rule_follows_what_was_measured():
    gains = gains_in_readme()
    assert gains[DENSE, MOVEMENT] == max(gains.values()) > 0
    single = {trainer: gain for (trainer, settings), gain in gains.items() if trainer != DENSE}
    alone = recommended(FEW, 1, frames=False)
    assert gains[alone.trainer, alone.settings] == max(gains[MIM, ""], *single.values()) > 0
    labelled = {int(row["labelled"]) for row in read_measured() if row["method"] == "Dense"}
    assert max(labelled) == FEW


def test_the_pages_agree_with_the_rule():
    choosing = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]*label[^|]*|\d+ to \d+|more) \| ([^|]*) \|", choosing, re.M))
    few, some, many = (
        rows[key] for key in (f"up to {FEW} labelled subjects", f"{FEW + 1} to {MANY}", "more")
    )
    assert few.split("`")[1] == recommended(FEW, 1).trainer and FEW_SETTINGS.split()[0] in few
    assert f"`{DENSE}` with `{MOVEMENT}`" in few and f"`{MIM}`" in few
    assert some.split("`")[1] == recommended(FEW + 1, 1).trainer
    assert "nnUNetTrainerScratch" in many and recommended(MANY + 1, 1).trainer in many
    control = (
        f'nnUNet_ssp_settings="{FEW_SETTINGS}" nnUNetv2_train 114 2d 0 -tr nnUNetTrainerScratch'
    )
    assert f"\n{control}\n" in choosing  # run by test_printed_commands.py
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (bullet,) = re.findall(r"^\* \*\*Ten labelled patients or fewer.*$", readme, re.M)
    assert f'nnUNet_ssp_settings="{MOVEMENT_SETTINGS}" nnUNetv2_train' in bullet and DENSE in bullet
    assert f'nnUNet_ssp_settings="{FEW_SETTINGS}"' in bullet
    (third,) = re.findall(r"^nnUNetv2_train 114 2d 0 -tr (\w+)$", readme, re.M)
    assert third == recommended(MANY + 1, 1).trainer  # of M&Ms' 150
