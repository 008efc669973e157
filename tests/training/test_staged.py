"""Learning rates and decisions of the two stages, without a run; runs are in trainers/test_staged.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_ssp.network import in_encoder
from nnunet_ssp.schedules import EarlyStopping, polynomial
from nnunet_ssp.staged_settings import FrozenSettings, WarmupSettings
from nnunet_ssp.training.optimizers import EpochRates
from nnunet_ssp.training.staged import (
    FrozenTrainer,
    ScratchFrozenTrainer,
    ScratchWarmupTrainer,
    StagedTrainer,
    WarmupTrainer,
)

TRAINERS = [FrozenTrainer, WarmupTrainer]


def bare(cls: type[StagedTrainer], settings: Any) -> Any:
    """A trainer that knows its settings and nothing of a dataset."""
    trainer = cls.__new__(cls)
    trainer.settings = settings
    trainer.num_epochs, trainer.initial_lr = settings.num_epochs, settings.initial_lr
    trainer.current_epoch, trainer.second_stage, trainer.held = 0, None, frozenset()
    if isinstance(trainer, FrozenTrainer):
        trainer.frozen_stopping = EarlyStopping(settings.frozen_patience)
    return trainer


def nnunets(num_epochs: int, peak: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = PolyLRScheduler(optimizer, peak, num_epochs)
    rates = []
    for epoch in range(num_epochs):
        scheduler.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(("num_epochs", "peak"), [(1, 0.01), (7, 0.005), (1000, 1e-3)])
def test_the_polynomial_is_nnunets(num_epochs, peak):
    ours = [polynomial(epoch, num_epochs, peak) for epoch in range(num_epochs)]
    assert ours == pytest.approx(nnunets(num_epochs, peak), rel=1e-12)
    assert ours[0] == peak and ours[-1] > 0
    assert all(type(rate) is float for rate in ours)


def test_frozen_rates_are_constant_and_then_nnunets_of_a_run_of_its_own():
    trainer = bare(FrozenTrainer, FrozenSettings(num_epochs=10, frozen_epochs=4))
    assert [trainer.learning_rate(epoch) for epoch in range(4)] == [0.01] * 4
    trainer.second_stage = 4
    rates = [trainer.learning_rate(epoch) for epoch in range(4, 10)]
    assert rates == pytest.approx(nnunets(6, 0.005), rel=1e-12)


def test_warmup_rates_rise_twice():
    settings = WarmupSettings(num_epochs=12, warmup_decoder_epochs=2, warmup_all_epochs=4)
    trainer = bare(WarmupTrainer, settings)
    rates = [trainer.learning_rate(epoch) for epoch in range(12)]
    assert rates[:6] == pytest.approx([0.0005, 0.001, 0.00025, 0.0005, 0.00075, 0.001])
    assert rates[6:] == pytest.approx(nnunets(6, 1e-3), rel=1e-12)


def test_a_warmup_of_no_epochs_is_none():
    settings = WarmupSettings(num_epochs=5, warmup_decoder_epochs=0, warmup_all_epochs=0)
    trainer = bare(WarmupTrainer, settings)
    assert trainer.first_stage_ends()
    rates = [trainer.learning_rate(epoch) for epoch in range(5)]
    assert rates == pytest.approx(nnunets(5, 1e-3), rel=1e-12)


@pytest.mark.parametrize("num_epochs", [1, 2, 3, 4, 19, 100, 1000])
@pytest.mark.parametrize("cls", TRAINERS)
def test_every_epoch_of_every_length_has_a_rate(cls, num_epochs):
    trainer = bare(cls, type(cls.defaults)(num_epochs=num_epochs))
    rates = []
    for epoch in range(num_epochs):
        trainer.current_epoch = epoch
        if trainer.second_stage is None and trainer.first_stage_ends():
            trainer.second_stage = epoch
        rates.append(trainer.learning_rate(epoch))
    assert trainer.second_stage is not None, "everything trains at last"
    assert min(rates) > 0 and max(rates) <= max(trainer.initial_lr, 0.01)


def test_the_first_stage_ends_by_the_number_or_by_the_loss():
    fixed = bare(FrozenTrainer, FrozenSettings(num_epochs=10, frozen_epochs=3))
    auto = bare(FrozenTrainer, FrozenSettings(num_epochs=10, frozen_patience=2))
    assert [_ends(fixed, epoch) for epoch in range(5)] == [False] * 3 + [True] * 2
    assert [_ends(auto, epoch) for epoch in range(7)] == [False] * 5 + [True] * 2
    for loss in (1.0, 1.0, 1.0):
        auto.frozen_stopping.update(loss)
    assert _ends(auto, 3)


def _ends(trainer: Any, epoch: int) -> bool:
    trainer.current_epoch = epoch
    return trainer.first_stage_ends()


def test_early_stopping_waits_for_the_second_stage():
    trainer = bare(WarmupTrainer, WarmupSettings(early_stopping=1))
    trainer.is_ddp, trainer.print_to_log_file = False, lambda line: None
    trainer.early_stopping = EarlyStopping(1)
    for loss in (1.0, 2.0):
        trainer.early_stopping.update(loss)
    assert not trainer._stops_early()
    trainer.second_stage = 0
    assert trainer._stops_early()


def test_rates_are_set_in_every_group():
    trainer = bare(WarmupTrainer, WarmupSettings(num_epochs=5, warmup_decoder_epochs=2))
    tensors = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [t]} for t in tensors], lr=1.0)
    EpochRates(optimizer, trainer.learning_rate).step(0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0005, 0.0005]


@pytest.mark.parametrize(("cls", "holds_decoder"), [(FrozenTrainer, True), (WarmupTrainer, False)])
def test_what_holds_still(make_network, cls, holds_decoder):
    trainer = bare(cls, cls.defaults)
    keys = make_network().state_dict()
    trainer.weights_loaded(set(keys))
    assert trainer.held == {key for key in keys if holds_decoder or in_encoder(key)}


@pytest.mark.parametrize(
    ("control", "trainer"),
    [(ScratchFrozenTrainer, FrozenTrainer), (ScratchWarmupTrainer, WarmupTrainer)],
)
def test_the_controls_share_every_setting(control, trainer):
    assert control.defaults == trainer.defaults
    assert trainer.needs_weights and not control.needs_weights
