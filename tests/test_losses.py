from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nnunet_ssp.losses import coarse_weights, masked_mse, masked_squared_error, masked_variance


@pytest.fixture
def example():
    g = torch.Generator().manual_seed(0)
    shape = (3, 2, 7, 5)
    mask = torch.rand(3, 1, 7, 5, generator=g) < 0.4
    return torch.randn(shape, generator=g), torch.randn(shape, generator=g), mask


def test_it_is_the_mean_over_hidden_pixels_of_all_channels(example):
    prediction, target, mask = example
    where = mask.expand_as(target)
    torch.testing.assert_close(
        masked_mse(prediction, target, mask), F.mse_loss(prediction[where], target[where])
    )


def test_naive_loop(example):
    prediction, target, mask = example
    total = count = 0.0
    for b in range(3):
        for c in range(2):
            for x in range(7):
                for y in range(5):
                    if mask[b, 0, x, y]:
                        total += (prediction[b, c, x, y] - target[b, c, x, y]).item() ** 2
                        count += 1
    error, weight = masked_squared_error(prediction, target, mask)
    assert error.item() == pytest.approx(total, rel=1e-5)
    assert weight.item() == count
    assert masked_mse(prediction, target, mask).item() == pytest.approx(total / count, rel=1e-5)


def test_fractional_weights_count_by_their_share(example):
    prediction, target, _ = example
    weight = torch.full((3, 1, 7, 5), 1e-3)  # sums to less than one
    torch.testing.assert_close(
        masked_mse(prediction, target, weight), F.mse_loss(prediction, target)
    )
    error, total = masked_variance(target, weight)
    expected = target.var((2, 3), unbiased=False).mean()
    torch.testing.assert_close(error / total, expected)


def test_visible_pixels_carry_no_loss_and_no_gradient(example):
    prediction, target, mask = example
    prediction.requires_grad_()
    changed = torch.where(mask, target, target + 100)
    loss = masked_mse(prediction, changed, mask)
    assert loss == masked_mse(prediction, target, mask)
    loss.backward()
    assert (prediction.grad[~mask.expand_as(target)] == 0).all()


def test_the_gradient_is_the_closed_form(example):
    prediction, target, mask = example
    prediction.requires_grad_()
    masked_mse(prediction, target, mask).backward()
    expected = 2 * (prediction.detach() - target) * mask / mask.expand_as(target).sum()
    torch.testing.assert_close(prediction.grad, expected)


def test_the_gradient_agrees_with_finite_differences(example):
    prediction, target, mask = example
    prediction.requires_grad_()
    masked_mse(prediction, target, mask).backward()
    direction = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2  # exact up to rounding: the loss is quadratic
    with torch.no_grad():
        above = masked_mse(prediction + step * direction, target, mask)
        below = masked_mse(prediction - step * direction, target, mask)
    slope = ((above - below) / (2 * step)).item()
    assert slope == pytest.approx((prediction.grad * direction).sum().item(), rel=1e-3)


def test_it_is_symmetric_and_zero_at_the_target(example):
    prediction, target, mask = example
    assert masked_mse(prediction, target, mask) == masked_mse(target, prediction, mask)
    assert masked_mse(target, target, mask) == 0


def test_half_precision_is_summed_in_float32():
    # 512 * 512 squared errors of 1 exceed float16's range.
    prediction = torch.zeros(1, 1, 512, 512, dtype=torch.float16)
    mask = torch.ones(1, 1, 512, 512, dtype=torch.bool)
    error, weight = masked_squared_error(prediction, prediction + 1, mask)
    assert (error.dtype, error.item(), weight.item()) == (torch.float32, 512**2, 512**2)
    assert masked_mse(prediction.bfloat16(), prediction + 1, mask) == 1
    variance, _ = masked_variance(prediction + 1, mask)
    assert (variance.dtype, variance.item()) == (torch.float32, 0)


def test_nothing_masked_is_zero(example):
    prediction, target, mask = example
    nothing = torch.zeros_like(mask)
    prediction.requires_grad_()
    loss = masked_mse(prediction, target, nothing)
    loss.backward()
    assert loss == 0
    assert (prediction.grad == 0).all()
    assert masked_variance(target, nothing) == (0, 0)


def test_a_prediction_of_each_images_masked_mean_has_error_over_variance_one(example):
    _, target, mask = example
    mean = torch.stack(
        [
            torch.stack([image[c][m[0]].mean() for c in range(2)])
            for image, m in zip(target, mask, strict=False)
        ]
    )
    prediction = mean[..., None, None].expand_as(target)
    error, weight = masked_squared_error(prediction, target, mask)
    variance, same_weight = masked_variance(target, mask)
    assert (error / variance).item() == pytest.approx(1, abs=1e-6)
    assert weight == same_weight
    variances = [
        image[c][m[0]].var(unbiased=False) * m.sum()
        for image, m in zip(target, mask, strict=False)
        for c in range(2)
    ]
    torch.testing.assert_close(variance, torch.stack(variances).sum())


def test_sums_over_chunks_are_the_sums_of_the_whole(example):
    _prediction, target, mask = example
    for function, inputs in ((masked_squared_error, example), (masked_variance, (target, mask))):
        whole = function(*inputs)
        parts = [function(*(x[rows] for x in inputs)) for rows in (slice(0, 2), slice(2, 3))]
        for i in range(2):
            torch.testing.assert_close(parts[0][i] + parts[1][i], whole[i])


def test_coarse_weights_are_nnunets_deep_supervision_weights():
    expected = torch.tensor([0.50794, 0.25397, 0.12698, 0.06349, 0.03175, 0.01587])
    torch.testing.assert_close(torch.tensor(coarse_weights(6)), expected, atol=1e-5, rtol=0)
    assert coarse_weights(1) == [1.0]
