"""Ways to compute a step, timed in turns."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_ssp.training import trials
from nnunet_ssp.training.trials import shortest_times

IMAGE = torch.rand(2, 1, 16, 16)


def two_ways(network: nn.Module) -> dict[str, Any]:
    half = partial(torch.autocast, "cpu", torch.bfloat16)
    return {"single": (network, nullcontext), "half": (network, half)}


def test_the_shortest_times_in_turns(make_network, monkeypatch):
    """Steps of 9, 3, 4 and 6 s in one way and of 9, 8, 2 and 5 s in the other; the first do not count."""
    durations = [9.0, 9.0, 3.0, 8.0, 4.0, 2.0, 6.0, 5.0]
    clock = itertools.chain.from_iterable((0.0, seconds) for seconds in durations)
    monkeypatch.setattr(trials.time, "process_time", lambda: next(clock))
    assert shortest_times(IMAGE, two_ways(make_network())) == {"single": 3.0, "half": 2.0}


def test_a_trial_has_an_end(make_network, monkeypatch):
    """One round counts, however slow; no further one begins after the longest time."""
    network, steps = make_network(), []
    network.register_forward_hook(lambda *_: steps.append(1))
    monkeypatch.setattr(trials, "LONGEST", 0.0)
    assert all(seconds > 0 for seconds in shortest_times(IMAGE, two_ways(network)).values())
    assert len(steps) == 4


@pytest.mark.usefixtures("one_thread")
def test_a_trial_leaves_the_run_alone(make_network):
    torch.set_num_threads(2)
    network = make_network(norm=nn.BatchNorm2d)
    network.encoder.stages[0].append(nn.Dropout(0.5))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    threads = []
    network.register_forward_hook(lambda *_: threads.append(torch.get_num_threads()))
    assert shortest_times(IMAGE, two_ways(network))["half"] > 0
    assert set(threads) == {1} and torch.get_num_threads() == 2
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
