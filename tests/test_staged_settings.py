from __future__ import annotations

import re

import pytest

from nnunet_ssp.settings import FinetuningSettings, override
from nnunet_ssp.staged_settings import FrozenSettings, WarmupSettings


@pytest.mark.parametrize("defaults", [FrozenSettings(), WarmupSettings()])
def test_stages_have_learning_rates_of_their_own(defaults):
    override(defaults, "optimizer=adamw weight_decay=0.1 encoder_lr_factor=0.5 l2_sp=0.01")
    with pytest.raises(ValueError, match=r"`warmup_epochs` \(=1\) must be 0 for .* two stages"):
        override(defaults, "warmup_epochs=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transfer=decoder", "`transfer` (=decoder) must be all or encoder."),
        ("frozen_epochs=soon", "`frozen_epochs` (=soon) must be an integer or auto."),
        ("frozen_epochs=-1", "`frozen_epochs` (=-1) must be auto or lie in [0, num_epochs=1000)."),
        (
            "frozen_epochs=5 num_epochs=5",
            "`frozen_epochs` (=5) must be auto or lie in [0, num_epochs=5).",
        ),
        ("frozen_patience=0", "`frozen_patience` (=0) must be at least 1."),
        ("frozen_lr=0", "`frozen_lr` (=0.0) must be positive."),
    ],
)
def test_ranges_of_freezing(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(FrozenSettings(), text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "warmup_decoder_epochs=-1",
            "`warmup_decoder_epochs` (=-1) must be auto or not negative.",
        ),
        ("warmup_all_epochs=-1", "`warmup_all_epochs` (=-1) must be auto or not negative."),
        (
            "num_epochs=5 warmup_decoder_epochs=2 warmup_all_epochs=3",
            "`warmup_decoder_epochs + warmup_all_epochs` (=5) must be below num_epochs=5.",
        ),
        (
            "num_epochs=5 warmup_decoder_epochs=4",
            "`warmup_decoder_epochs + warmup_all_epochs` (=5) must be below num_epochs=5.",
        ),
    ],
)
def test_ranges_of_warming_up(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(WarmupSettings(), text)


@pytest.mark.parametrize(
    ("num_epochs", "frozen", "warmup"),
    [(1000, 500, 50), (2000, 1000, 50), (100, 50, 5), (30, 15, 2), (5, 2, 1), (2, 1, 0), (1, 0, 0)],
)
def test_stages_of_a_length_of_its_own(num_epochs, frozen, warmup):
    """At least one epoch is left for what follows."""
    assert FrozenSettings(num_epochs=num_epochs).longest_frozen == frozen < num_epochs
    assert WarmupSettings(num_epochs=num_epochs).warmups == (warmup, warmup)
    assert 2 * warmup < num_epochs


def test_stages_of_a_given_length():
    frozen, _ = override(FrozenSettings(), "num_epochs=5 frozen_epochs=4")
    assert frozen.longest_frozen == 4
    text = "num_epochs=9 warmup_decoder_epochs=0 warmup_all_epochs=8"
    assert override(WarmupSettings(), text)[0].warmups == (0, 8)


def test_settings_of_the_stages_are_of_other_trainers():
    text = "frozen_epochs=3 warmup_all_epochs=4 transfer=encoder"
    settings, foreign = override(FinetuningSettings(), text)
    assert settings.transfer == "encoder"
    assert foreign == ["frozen_epochs", "warmup_all_epochs"]


def test_the_defaults_are_those_of_the_source():
    assert FrozenSettings().frozen_patience == 10  # Dominic et al.'s code
    assert WarmupSettings().initial_lr == 1e-3 and WarmupSettings().warmups == (50, 50)


def test_few_lowers_the_rates_of_both_stages_for_adamw():
    few = override(FrozenSettings(), "recipe=few")[0]
    assert (few.optimizer, few.frozen_lr, few.initial_lr) == ("adamw", 0.003, 0.003)
