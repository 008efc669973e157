"""Two ways to compute a step of a network, timed in turns before a run begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nnunet_ssp.parallel import one_thread

ROUNDS = 4  # of a step each way; the first does not count
LONGEST = 10.0  # seconds after which no further round begins, once one counts
# Networks with fewer parameters spend their time between operations: one trial would say little.
FEWEST_PARAMETERS = 100_000

_Way = TypeVar("_Way")


def times(gain: float) -> str:
    """Write how many times as long a way takes, rounded down: what misses a limit reads as less than it.

    >>> times(1.0499), times(1.05), times(0.29)
    ('1.04', '1.05', '0.29')
    """
    return f"{math.floor(round(100 * gain, 6)) / 100:.2f}"


def shortest_times(
    image: Tensor,
    ways: Mapping[_Way, tuple[nn.Module, Callable[[], AbstractContextManager[Any]]]],
) -> dict[_Way, float]:
    """Time forward and backward pass of a network in some ways in turns; return the shortest time of each.

    On a CPU these are core-seconds of one thread, which hardly depend on what else the machine does: threads that wait
    for each other count as busy. So all trainings on a machine choose alike. Neither the networks nor the run's random
    numbers change.

    Args:
        image: Input of the network (B, C, X, Y), on its device.
        ways: Network with one or several outputs, and context of its forward pass.
    """
    took: dict[_Way, list[float]] = {way: [] for way in ways}
    cuda = image.device.type == "cuda"

    def now() -> float:
        if not cuda:
            return time.process_time()
        torch.cuda.synchronize(image.device)
        return time.perf_counter()

    begun = time.perf_counter()
    networks = [network for network, _ in ways.values()]
    with _untouched(networks), torch.random.fork_rng([image.device] if cuda else []):
        for number in range(ROUNDS):
            if number > 1 and time.perf_counter() - begun > LONGEST:
                break
            for way, (network, context) in ways.items():
                start = now()
                with context():
                    output = network(image)
                outputs = output if isinstance(output, list | tuple) else [output]
                loss = torch.stack([x.float().square().mean() for x in outputs]).sum()
                parameters = [p for p in network.parameters() if p.requires_grad]
                torch.autograd.grad(loss, parameters, allow_unused=True)
                took[way].append(now() - start)
    return {way: min(seconds[1:]) for way, seconds in took.items()}


@contextmanager
def _untouched(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Keep PyTorch to one thread for a while, and give the networks their buffers back."""
    buffers = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]
    try:
        with one_thread():
            yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
