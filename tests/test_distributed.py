"""N ranks with parts of a batch equal one process with the whole of it: loss and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ssp.distributed import rank, sum_over_ranks, world_size
from nnunet_ssp.methods import MIM, Batch, MIMSettings
from tests.ranks import on_ranks

# Slices smaller than the patch have fewer pixels that count, so a plain mean over ranks would be wrong.
SIZES = np.array([[8, 30], [32, 32], [40, 9], [16, 16], [50, 40]])


def method() -> MIM:
    torch.manual_seed(0)
    network = PlainConvUNet(
        1, 3, [4, 8, 8], nn.Conv2d, 3, [1, 2, 2], 1, 1, 1, True, nn.InstanceNorm2d,
        {"affine": True}, nonlin=nn.LeakyReLU,
    )  # fmt: skip
    return MIM(network, MIMSettings(coarse_heads=True), (32, 32), 1)


def batch(made: MIM) -> Batch:
    rng = np.random.default_rng(3)
    slices = torch.zeros(len(SIZES), 1, 50, 40)
    for i, (height, width) in enumerate(SIZES):
        slices[i, :, :height, :width] = torch.from_numpy(rng.normal(size=(height, width)))
    positions = torch.zeros(len(SIZES), 2, dtype=torch.int64)
    return Batch(slices, torch.from_numpy(SIZES), made.draw(rng, SIZES), positions)


def step(made: nn.Module, part: Batch) -> dict[str, torch.Tensor]:
    output = made(part)
    output["loss"].backward()
    return {k: v.detach() for k, v in output.items()}


def gradients(made: MIM) -> dict[str, torch.Tensor]:
    return {k: p.grad for k, p in made.named_parameters() if p.grad is not None}


def train_one_rank(ranks: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    made = method()
    rows = np.array_split(np.arange(len(SIZES)), ranks)[rank()]
    whole = batch(made)
    wrapped = nn.parallel.DistributedDataParallel(made)
    output = step(wrapped, whole.share(slice(int(rows[0]), int(rows[-1]) + 1)))
    mean = {k: sum_over_ranks(v) / world_size() for k, v in output.items()}
    return mean, gradients(made)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one_process(ranks: int, tmp_path: Path) -> None:
    output, found = on_ranks(train_one_rank, ranks, tmp_path, ranks)[0]
    made = method()
    expected = step(made, batch(made))
    for key, value in expected.items():
        assert float(output[key]) == pytest.approx(float(value), rel=1e-5), key
    reference = gradients(made)
    assert found.keys() == reference.keys()
    assert len(found) == len([p for p in made.parameters() if p.requires_grad])
    largest = max(float(g.abs().max()) for g in reference.values())
    for key, gradient in reference.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5 * largest)


def test_a_single_process_needs_no_group() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    assert world_size() == 1
    assert rank() == 0
    total = sum_over_ranks(x)
    assert total.item() == 2
    assert not total.requires_grad
