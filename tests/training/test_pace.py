from __future__ import annotations

from collections.abc import Callable

import pytest

from nnunet_ssp.training import pace as module
from nnunet_ssp.training.pace import SECONDS, Pace, time_left


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that stands still but when it is moved."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_a_long_epoch_says_how_far_it_is(clock: Callable[[float], None]):
    said: list[str] = []
    pace = Pace(said.append, slices=12)
    pace.begin(done=4)
    for done in range(5, 11):
        clock(SECONDS / 2)
        pace.step(done, planned=10)
    # Every second step makes a line; the end of the epoch speaks for itself.
    assert said == [
        "step 6 of 10, 1.6 slices/s, about 30 s left in this epoch's training",
        "step 8 of 10, 1.6 slices/s, about 15 s left in this epoch's training",
    ]


def test_the_first_epoch_says_how_long_all_take(clock: Callable[[float], None]):
    said: list[str] = []
    pace = Pace(said.append, slices=12)
    pace.begin(done=5, later=99)
    clock(SECONDS)
    pace.step(6, planned=10)
    # 15 s a step, 10 steps an epoch, 100 epochs
    left = "about 60 s left in this epoch's training, about 4.2 h for all 100 epochs to come"
    assert said == [f"step 6 of 10, 0.8 slices/s, {left}"]
    pace.ends_early = True
    clock(SECONDS)
    pace.step(7, planned=10)
    assert said[-1].endswith(", at most 4.2 h for all 100 epochs to come")


def test_later_epochs_speak_as_often(clock: Callable[[float], None]):
    said: list[str] = []
    pace = Pace(said.append, slices=1)
    for _ in range(3):
        pace.begin(done=0)
        for done in (1, 2, 3):
            clock(SECONDS - 1)
            pace.step(done, planned=9)
    # Two waits of 14 s each make a line; then one is left over.
    assert len(said) == 3 and all(line.startswith("step 2 of 9") for line in said)


def test_a_short_epoch_has_no_line(clock: Callable[[float], None]):
    said: list[str] = []
    pace = Pace(said.append, slices=1)
    for _ in range(9):
        pace.begin(done=0)
        clock(SECONDS - 1)
        pace.step(1, planned=9)
    assert said == []


def test_a_long_validation_says_how_far_it_is(clock: Callable[[float], None]):
    said: list[str] = []
    pace = Pace(said.append, slices=12)
    pace.begin(done=0)
    pace.begin(done=0, part="validation")
    for done in range(1, 5):
        clock(SECONDS)
        pace.step(done, planned=4)
    assert said == [
        "validation step 1 of 4, about 45 s left in this epoch's validation",
        "validation step 2 of 4, about 30 s left in this epoch's validation",
        "validation step 3 of 4, about 15 s left in this epoch's validation",
    ]


def test_the_time_left_is_that_of_the_epochs_to_come():
    assert time_left(3600, 10, ends_early=False) == "10.0 h left"
    assert time_left(30, 0, ends_early=False) == "the last epoch"
