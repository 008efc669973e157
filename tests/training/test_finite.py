from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_ssp.distributed import rank
from nnunet_ssp.training.finite import MOST_IN_A_ROW, Skipped, StepGuard, first_not_finite
from tests.ranks import on_ranks

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "fused sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "fused adam": lambda p: torch.optim.AdamW(p, 0.1, fused=True),
}


class Training:
    """A layer with a batch norm, trained on what the test gives it."""

    def __init__(self, optimizer: str = "sgd", scaler: torch.amp.GradScaler | None = None) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.optimizer = OPTIMIZERS[optimizer](self.module.parameters())
        self.scaler = scaler
        self.told: list[Skipped] = []
        cpu = torch.device("cpu")
        self.guard = StepGuard(self.module, self.optimizer, scaler, cpu, self.told.append)
        self.step = 0

    def __call__(self, x: torch.Tensor, factor: float = 1.0, hidden: bool = False) -> None:
        self.guard.begin()
        self.optimizer.zero_grad()
        loss = self.module(x).pow(2).mean() * factor + self.module[0].weight.pow(2).mean()
        self.guard.saw(loss.new_zeros(()) if hidden else loss)
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.guard.end(self.step, lambda: ["case_frame00"])
        self.step += 1

    def state(self) -> dict[str, Any]:
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy(state)


GOOD = torch.arange(12.0).reshape(4, 3).sin()
LOST = torch.where(torch.arange(12).reshape(4, 3) == 5, math.nan, GOOD)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "bad",
    [
        {"x": LOST},
        {"x": GOOD, "factor": math.inf},
        {"x": GOOD, "factor": math.nan, "hidden": True},  # the gradient alone is lost
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(optimizer, bad):
    """Neither weights nor momenta, nor what a forward pass moves, and the steps after it are as without it."""
    training, other = Training(optimizer), Training(optimizer)
    training(GOOD)
    before = training.state()
    training(**bad)
    after = training.state()
    assert str(before) == str(after)
    for key, tensor in before["module"].items():
        assert torch.equal(tensor, after["module"][key]), key
    (skipped,) = training.told
    assert (skipped.step, skipped.cases, skipped.too_many) == (1, ["case_frame00"], False)
    training(GOOD)
    other(GOOD)
    other(GOOD)
    assert str(training.state()) == str(other.state())
    assert training.guard.state_dict() == {"in_a_row": 0, "total": 1, "steps": 3}


def test_the_guard_changes_no_finite_step():
    guarded, plain = Training(), Training()
    plain.optimizer._optimizer_step_pre_hooks.clear()
    plain.guard.end = lambda *_: None
    for training in (guarded, plain):
        for _ in range(3):
            training(GOOD)
    for key, tensor in guarded.module.state_dict().items():
        assert torch.equal(tensor, plain.module.state_dict()[key]), key


def test_too_many_in_a_row_and_too_many_in_all():
    training = Training()
    for _ in range(MOST_IN_A_ROW + 1):
        training(LOST)
    assert [s.too_many for s in training.told] == [False] * MOST_IN_A_ROW + [True]
    assert training.guard.skipped == list(range(MOST_IN_A_ROW + 1))
    training = Training()
    for step in range(20):
        training(LOST if step % 2 else GOOD)
    assert [s.in_a_row for s in training.told] == [1] * 10
    assert [s.too_many for s in training.told] == [False] * 5 + [True] * 5
    resumed = Training()
    resumed.guard.load_state_dict({"in_a_row": 5, "total": 5, "steps": 900})
    resumed(LOST)
    assert resumed.told[0].too_many
    assert Skipped(9000, [], 1, 90, 9000).too_many is False


def test_what_the_scaler_skips_while_it_looks_for_a_scale_does_not_count():
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    training = Training(scaler=scaler)
    before = training.state()["module"]["0.weight"]
    training(GOOD, factor=100)
    assert torch.equal(training.module[0].weight, before) and scaler.get_scale() < 2e38
    assert training.told == [] and training.guard.state_dict()["steps"] == 1
    # A loss that is lost is no question of the scale, and neither are gradients that overflow below 1.
    training(LOST)
    assert [s.step for s in training.told] == [1]
    assert all(buffer.isfinite().all() for buffer in training.module.buffers())
    small = Training(scaler=torch.amp.GradScaler("cpu", init_scale=0.5))
    small(GOOD, factor=math.inf, hidden=True)
    assert [s.step for s in small.told] == [0]


def one_rank() -> list[Any]:
    training = Training("fused sgd")
    training.module = nn.parallel.DistributedDataParallel(training.module[:1])
    inner = training.module

    class Both(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return inner(x)

    training.module = Both(*inner.module)
    before = copy.deepcopy(inner.module.state_dict())
    # One rank sees a loss that is lost, though its own gradient would be finite.
    training.guard.begin()
    training.guard.saw(torch.tensor(math.nan if rank() == 1 else 1.0))
    inner(GOOD).sum().backward()
    training.optimizer.step()
    training.guard._buffers = [b.clone() for b in training.guard.module.buffers()]
    training.guard.end(0, lambda: [str(rank())])
    same = all(torch.equal(before[k], v) for k, v in inner.module.state_dict().items())
    return [same, [s.cases for s in training.told]]


def test_all_ranks_skip_the_step_of_one(tmp_path: Path):
    assert on_ranks(one_rank, 2, tmp_path) == [[True, [["0"]]], [True, [["1"]]]]


def test_the_first_tensor_that_is_not_finite_is_named():
    good = torch.ones(2)
    state = {"a": {"b": [good, {"c": torch.tensor([1, 2])}]}, "best": math.inf, "none": None}
    assert first_not_finite(state) is None
    state["a"]["b"].append(torch.tensor([1.0, math.inf]).half())
    assert first_not_finite(state) == "a.b.2"
    assert first_not_finite({"x": good, "y": {0: torch.tensor(math.nan)}}) == "y.0"
