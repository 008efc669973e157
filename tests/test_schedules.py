from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnunet_ssp.schedules import (
    EarlyStopping,
    average_momentum,
    gaussian_rampup,
    iteration_schedule,
    momentum_schedule,
    staircase,
    warmup_cosine,
)


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


def test_the_staircase_is_torchs_milestones():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    milestones = range(1, 100, 2)  # after the first epoch, then after every second one
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.9)
    for epoch in range(100):
        assert staircase(epoch, 0.3) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert staircase(0, 0.3) == 0.3


def test_the_staircase_has_a_lowest_step():
    rates = [staircase(epoch, 1e-3) for epoch in range(500)]
    assert rates == sorted(rates, reverse=True)
    assert rates[219] == rates[-1] == 1e-8 < rates[200]


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


# -- by step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "after"), [(20, 180), (0, 50), (1, 9), (2, 3)])
def test_dinos_schedule_is_linspace_and_torchs_cosine(warmup, after):
    peak, end, total = 0.0075, 1e-6, warmup + after
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=after, eta_min=end)
    expected = list(np.linspace(0, peak, warmup))
    for _ in range(after):
        expected += cosine.get_last_lr()
        optimizer.step()
        cosine.step()
    found = [iteration_schedule(step, total, warmup, peak, end=end) for step in range(total)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert found[warmup] == peak  # the first step of the cosine has the peak again
    assert found[-1] > end
    assert all(type(lr) is float for lr in found)


def test_byols_schedule_by_its_closed_form():
    start, peak, warmup, total = 3e-5, 0.25, 30, 400
    for step in range(total):
        if step < warmup:
            expected = start + step * (peak - start) / (warmup - 1)
        else:
            share = (step - warmup) / (total - warmup)
            expected = peak * (1 + math.cos(math.pi * share)) / 2
        assert iteration_schedule(step, total, warmup, peak, start) == pytest.approx(
            expected, rel=1e-12
        )
    assert iteration_schedule(0, total, warmup, peak, start) == start
    assert iteration_schedule(warmup - 1, total, warmup, peak, start) == pytest.approx(peak)


def test_a_run_that_is_all_warmup_ends_at_the_peak():
    found = [iteration_schedule(step, 5, 5, 1.0) for step in range(5)]
    assert found == [0, 0.25, 0.5, 0.75, 1]
    assert iteration_schedule(0, 1, 1, 1.0, start=0.1) == 0.1


@pytest.mark.parametrize("step", [-1, 10, 11])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=rf"`step` \(={step}\) must lie in \[0, total=10\)"):
        iteration_schedule(step, 10, 2, 1.0)


@pytest.mark.parametrize("warmup", [-1, 11])
def test_a_warmup_longer_than_the_run_is_refused(warmup):
    with pytest.raises(ValueError, match=rf"`warmup` \(={warmup}\) must lie in \[0, total=10\]"):
        iteration_schedule(3, 10, warmup, 1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", [0.996, 0.99, 0.0, 1.0])
def test_the_momentum_schedule_is_lightlys(start):
    scheduler = pytest.importorskip("lightly.utils.scheduler")
    total = 57
    for step in range(total + 1):
        # lightly divides by one less than the number of steps.
        expected = scheduler.cosine_schedule(step, total + 1, start, 1.0)
        assert momentum_schedule(step, total, start) == pytest.approx(expected, abs=1e-15)
    assert momentum_schedule(0, total, start) == pytest.approx(start, abs=1e-15)
    assert momentum_schedule(total, total, start) == 1


def test_an_average_follows_fast_at_first():
    found = [average_momentum(step, 0.9) for step in range(200)]
    assert found[:3] == pytest.approx([1 / 10, 2 / 11, 3 / 12])
    assert found[79] == pytest.approx(80 / 89) and set(found[80:]) == {0.9}
    assert average_momentum(0, 0.0) == 0
    for step in (0, 50, 10**6):  # steps that the average spans, against those so far
        assert 1 / (1 - average_momentum(step, 1.0)) == pytest.approx((step + 10) / 9)


def test_the_gaussian_rampup_is_mean_teachers():
    found = [gaussian_rampup(step, 8) for step in range(10)]
    assert found[:8] == pytest.approx([math.exp(-5 * (1 - step / 8) ** 2) for step in range(8)])
    assert found[8:] == [1, 1]
    assert found == sorted(found)
    assert gaussian_rampup(0, 0) == 1, "none"
    assert gaussian_rampup(0, 0.25) == pytest.approx(math.exp(-5))
