from __future__ import annotations

import pytest
import torch

from nnunet_ssp.bench.counting import Floor

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_floor_of_a_matrix_product_by_hand():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with Floor(flops_per_s=10.0, bytes_per_s=1000.0) as floor:
        a @ b
    assert floor.flops == 2 * 3 * 5 * 7
    assert floor.bytes == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert floor.seconds == floor.flops / 10
    with Floor(flops_per_s=1e9, bytes_per_s=10.0) as floor:
        a.T[1:].unsqueeze(0).expand(2, 4, 3)
    assert floor.seconds == floor.bytes == 0
    with Floor(flops_per_s=1e9, bytes_per_s=10.0) as floor:
        a + a
    assert floor.seconds == 4 * 3 * 15 / 10  # read twice, written once


def test_the_floor_counts_the_backward_pass():
    convolution = torch.nn.Conv2d(2, 3, 3, bias=False)
    x = torch.ones(1, 2, 6, 6, requires_grad=True)
    with Floor(1.0, 1e30) as floor:
        y = convolution(x)
        forward = floor.flops
        y.sum().backward()
    assert forward == 2 * 9 * 2 * 3 * 4 * 4
    assert floor.flops == 3 * forward  # gradients of input and weights
