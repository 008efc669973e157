from __future__ import annotations

import math

import pytest
import torch

from nnunet_ssp.schedules import EarlyStopping, warmup_cosine


@pytest.mark.parametrize(
    ("epoch", "num_epochs", "warmup", "factor"),
    [
        (0, 100, 0, 1.0),
        (25, 100, 0, 0.5 + math.sqrt(2) / 4),
        (50, 100, 0, 0.5),
        (99, 100, 0, (1 + math.cos(0.99 * math.pi)) / 2),
        (100, 100, 0, 0.0),
        (0, 10, 4, 0.2),
        (1, 10, 4, 0.4),
        (3, 10, 4, 0.8),
        (4, 10, 4, 1.0),
        (7, 10, 4, 0.5),
        (10, 10, 4, 0.0),
        (2.5, 10, 4, 0.7),
        (5, 5, 5, 1.0),
    ],
)
def test_warmup_cosine_table(epoch, num_epochs, warmup, factor):
    value = warmup_cosine(epoch, num_epochs, warmup)
    assert value == pytest.approx(factor, abs=1e-12)
    assert type(value) is float


def test_without_warmup_it_is_torchs_cosine():
    epochs = 23
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(epochs):
        assert 0.3 * warmup_cosine(epoch, epochs) == pytest.approx(
            scheduler.get_last_lr()[0], abs=1e-12
        )
        optimizer.step()
        scheduler.step()


def test_the_warmup_meets_the_cosine_without_a_jump():
    below, above = warmup_cosine(4 - 1e-9, 10, 4), warmup_cosine(4 + 1e-9, 10, 4)
    assert below == pytest.approx(above, abs=1e-8)


@pytest.mark.parametrize("epoch", [-1, 10.001])
def test_an_epoch_outside_the_run_is_refused(epoch):
    with pytest.raises(ValueError, match=r"`epoch` \(=.*\) must lie in \[0, num_epochs=10\]"):
        warmup_cosine(epoch, 10)


def stops_at(losses, patience, min_delta=0.0):
    stopping = EarlyStopping(patience, min_delta)
    for epoch, loss in enumerate(losses):
        stopping.update(loss)
        if stopping.should_stop:
            return epoch
    return None


def test_it_stops_after_patience_epochs_without_improvement():
    assert stops_at([3, 2, 2, 2, 1, 1, 1, 1], patience=3) == 7
    assert stops_at([3, 2, 2, 2, 1, 1, 1], patience=3) is None
    assert stops_at([1, 1], patience=1) == 1


def test_none_never_stops():
    assert stops_at([1.0] * 100, patience=None) is None


def test_an_improvement_must_exceed_min_delta():
    assert stops_at([1.0, 0.95, 0.9], patience=2, min_delta=0.1) == 2
    assert stops_at([1.0, 0.95, 0.85], patience=2, min_delta=0.1) is None


def test_a_loss_that_is_not_a_number_is_no_improvement():
    assert stops_at([1.0, math.nan, math.inf, math.nan], patience=3) == 3
    assert stops_at([math.nan, 1.0, math.nan], patience=2) is None


def test_it_goes_on_from_its_state():
    losses = [3.0, 2.0, 2.5, 2.4, 2.3]
    whole = EarlyStopping(3)
    for loss in losses[:3]:
        whole.update(loss)
    resumed = EarlyStopping(3)
    resumed.load_state_dict(whole.state_dict())
    for loss in losses[3:]:
        assert not resumed.should_stop
        resumed.update(loss)
    assert resumed.should_stop
