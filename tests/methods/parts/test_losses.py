from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ssp.bench.counting import LiveBytes
from nnunet_ssp.methods.parts import losses
from nnunet_ssp.methods.parts.losses import (
    coarse_weights,
    contrastive_loss,
    distillation_loss,
    masked_mse,
    masked_squared_error,
    masked_variance,
    negative_cosine,
    point_contrast,
)


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


# -- contrastive -----------------------------------------------------------------------------------


def twins(n: int) -> torch.Tensor:
    """(2n, 2n): all first views, then all second ones; the twin is the only positive."""
    number = torch.arange(n).repeat(2)
    return number[:, None] == number


def random_features(rows: int, width: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=g, dtype=dtype).requires_grad_()


def with_gradient(function, features: torch.Tensor) -> tuple[float, torch.Tensor]:
    loss = function(features)
    (gradient,) = torch.autograd.grad(loss, features)
    return loss.item(), gradient


def naive(features: torch.Tensor, positives: torch.Tensor, temperature: float) -> float:
    z = [[float(v) / float(row.norm()) for v in row] for row in features.detach().double()]
    n, losses = len(z), []
    s = [[sum(a * b for a, b in zip(x, y, strict=True)) / temperature for y in z] for x in z]
    for i in range(n):
        partners = [j for j in range(n) if j != i and positives[i, j]]
        if partners:
            below = math.log(sum(math.exp(s[i][k]) for k in range(n) if k != i))
            losses.append(-sum(s[i][j] - below for j in partners) / len(partners))
    return sum(losses) / len(losses) if losses else 0.0


def lightly_nt_xent(features: torch.Tensor) -> torch.Tensor:
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.1, memory_bank_size=0)
    return loss(*features.chunk(2))


def metric_learning(name: str):
    def function(features: torch.Tensor) -> torch.Tensor:
        losses = pytest.importorskip("pytorch_metric_learning.losses")
        number = torch.arange(len(features) // 2).repeat(2)
        return getattr(losses, name)(temperature=0.1)(features, number)

    return function


def monai_contrastive(features: torch.Tensor) -> torch.Tensor:
    loss = pytest.importorskip("monai.losses").ContrastiveLoss(temperature=0.1)
    return loss(*features.chunk(2))


def both_directions(features: torch.Tensor) -> torch.Tensor:
    """Half of what Google's code computes: cross-entropy from the first views, plus that from the second ones."""
    a, b = F.normalize(features, dim=1).chunk(2)
    n = len(a)
    itself = torch.eye(n) * 1e9
    total = features.new_zeros(())
    for x, y in ((a, b), (b, a)):
        logits = torch.cat([x @ y.T, x @ x.T - itself], 1) / 0.1
        total = total + F.cross_entropy(logits, torch.arange(n))
    return total / 2


@pytest.mark.filterwarnings("ignore")  # upstream's, when it is imported
@pytest.mark.parametrize(
    "oracle",
    [
        lightly_nt_xent,
        metric_learning("NTXentLoss"),
        metric_learning("SupConLoss"),
        monai_contrastive,
        both_directions,
    ],
    ids=["lightly", "pml NTXentLoss", "pml SupConLoss", "monai", "google / 2"],
)
@pytest.mark.parametrize(("n", "width"), [(2, 3), (3, 128), (33, 16)])
def test_with_twins_as_positives_it_is_nt_xent(oracle, n, width):
    features = random_features(2 * n, width)
    expected, expected_gradient = with_gradient(oracle, features)
    loss, gradient = with_gradient(lambda f: contrastive_loss(f, twins(n), 0.1)[0], features)
    assert loss == pytest.approx(expected, abs=1e-6, rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("threshold", [0.1, 0.03, 0.004])
def test_with_positions_it_is_metric_learnings_supcon(threshold):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    features = random_features(40, 8, dtype=torch.float64)
    position = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    near = (position[:, None] - position).abs() < threshold
    apart = ~torch.eye(40, dtype=torch.bool)
    a1, p = (near & apart).nonzero().T
    a2, n = (~near & apart).nonzero().T
    lonely = int(((near & apart).sum(1) == 0).sum())
    assert (0 < lonely < 40) == (threshold < 0.1)  # anchors without positives are left out

    def oracle(f):
        return losses.SupConLoss(temperature=0.1)(f, indices_tuple=(a1, p, a2, n))

    expected, expected_gradient = with_gradient(oracle, features)
    loss, gradient = with_gradient(lambda f: contrastive_loss(f, near, 0.1)[0], features)
    assert loss == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-12, rtol=1e-9)
    assert contrastive_loss(features, near, 0.1)[1] == lonely


@settings(deadline=None)
@given(
    n=st.integers(1, 9),
    width=st.integers(1, 5),
    density=st.floats(0, 1),
    temperature=st.floats(0.05, 2),
    seed=st.integers(0, 99),
)
def test_contrastive_naive_loop(n, width, density, temperature, seed):
    features = random_features(n, width, seed, torch.float64)
    positives = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < density
    loss, lonely = contrastive_loss(features, positives, temperature)
    expected = naive(features, positives, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert lonely == (positives.fill_diagonal_(False).sum(1) == 0).sum()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    permuted, _ = contrastive_loss(features[order], positives[order][:, order], temperature)
    assert permuted.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_contrastive_gradient_agrees_with_finite_differences():
    features = random_features(8, 3, dtype=torch.float64)
    positives = twins(4)
    positives[0, 1] = positives[1, 0] = True  # more than one positive
    positives[3] = positives[7] = False  # and none
    assert torch.autograd.gradcheck(lambda f: contrastive_loss(f, positives, 0.2)[0], features)


def test_a_view_is_no_positive_and_no_negative_of_itself():
    features = random_features(12, 5)
    positives = twins(6)
    assert positives.diagonal().all()
    with_itself, lonely = contrastive_loss(features, positives, 0.1)
    without, same = contrastive_loss(features, positives & ~torch.eye(12, dtype=torch.bool), 0.1)
    assert with_itself == without
    assert lonely == same == 0
    # Perfect twins, all else orthogonal: the row's own similarity would add e^(1/T) below the line.
    perfect = torch.eye(6).repeat(2, 1)
    expected = math.log(math.exp(1 / 0.5) + 10) - 1 / 0.5
    assert contrastive_loss(perfect, positives, 0.5)[0].item() == pytest.approx(expected, rel=1e-6)


def test_equal_features_give_the_log_of_the_number_of_others():
    features = torch.ones(14, 3)
    for positives in (twins(7), torch.ones(14, 14, dtype=torch.bool)):
        loss, _ = contrastive_loss(features, positives, 0.1)
        assert loss.item() == pytest.approx(math.log(13), rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_without_any_positive_the_loss_and_its_gradient_are_zero(n):
    features = random_features(n, 4)
    loss, lonely = contrastive_loss(features, torch.eye(n, dtype=torch.bool), 0.1)
    assert (loss.item(), lonely.item()) == (0, n)
    (gradient,) = torch.autograd.grad(loss, features)
    assert torch.equal(gradient, torch.zeros(n, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
    # Squares of these leave float16's range, and so does exp of their similarities.
    features = (300 * random_features(16, 256).detach()).to(dtype).requires_grad_()
    loss, _ = contrastive_loss(features, twins(8), 0.05)
    expected, _ = contrastive_loss(features.double(), twins(8), 0.05)
    assert loss.dtype == torch.float32
    assert expected.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_large_logits_do_not_overflow():
    features = random_features(10, 4)
    loss, gradient = with_gradient(lambda f: contrastive_loss(f, twins(5), 1e-4)[0], features)
    expected, _ = contrastive_loss(features.double(), twins(5), 1e-4)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert loss > 100  # exp of it is beyond float32
    assert gradient.isfinite().all()


@settings(deadline=None)
@given(scale=st.floats(1e-3, 1e3))
def test_only_the_direction_of_features_counts(scale):
    features = random_features(6, 4, dtype=torch.float64)
    expected, _ = contrastive_loss(features, twins(3), 0.1)
    factor = torch.linspace(1, scale, 6)[:, None]
    torch.testing.assert_close(contrastive_loss(factor * features, twins(3), 0.1)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 7, 20, 59])
def test_in_blocks_of_rows_it_is_the_same(monkeypatch, rows, dtype):
    features = random_features(60, 8, dtype=dtype)
    group = torch.arange(60) % 13
    positives = group[:, None] == group
    positives[5] = positives[:, 5] = False  # one row without a positive

    def loss(f):
        value, lonely = contrastive_loss(f, positives, 0.1)
        assert lonely == 1
        return value

    expected, expected_gradient = with_gradient(loss, features)
    monkeypatch.setattr(losses, "ROWS", rows)
    found, gradient = with_gradient(loss, features)
    precision = torch.finfo(dtype).eps
    assert found == pytest.approx(expected, rel=10 * precision)
    torch.testing.assert_close(gradient, expected_gradient, atol=10 * precision, rtol=0)


def test_the_similarities_of_all_pairs_never_exist_at_once():
    n = 1024
    features = random_features(n, 4)
    positives = twins(n // 2)
    with LiveBytes() as live:
        contrastive_loss(features, positives, 0.1)[0].backward()
    assert live.peak < 4 * n * n * 1.75  # five blocks of 256 rows; in one piece 5 times as much


# -- distillation ----------------------------------------------------------------------------------


def scores(views: int, n: int, width: int, seed: int) -> torch.Tensor:
    """Cosines, as the head gives them."""
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(views, n, width, generator=g) - 1).requires_grad_()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("views", [8, 2])
def test_distillation_is_lightlys_dino_loss(views):
    losses = pytest.importorskip("lightly.loss")
    width = 64
    oracle = losses.DINOLoss(
        width, warmup_teacher_temp=0.02, teacher_temp=0.04, warmup_teacher_temp_epochs=30,
        student_temp=0.1, center_momentum=0.9,
    )  # fmt: skip
    centre = torch.zeros(width)
    for call, epoch in enumerate((0, 0, 11, 29, 30, 99)):
        student, teacher = scores(views, 5, width, seed=call), scores(2, 5, width, seed=100 + call)
        temperature = 0.02 + 0.02 * min(epoch / 29, 1)
        loss = distillation_loss(student, teacher, centre, 0.1, temperature)["loss"]
        expected = oracle(list(teacher.detach()), list(student), epoch=epoch)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=2e-6)
        (gradient,) = torch.autograd.grad(loss, student)
        (expected_gradient,) = torch.autograd.grad(expected, student)
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-7, rtol=1e-4)
        centre = 0.9 * centre + 0.1 * teacher.detach().mean((0, 1))
        torch.testing.assert_close(centre, oracle.center.flatten())


@settings(deadline=None)
@given(
    seen=st.integers(1, 3),
    more=st.integers(0, 3),
    n=st.integers(1, 4),
    width=st.integers(1, 5),
    temperature=st.floats(0.02, 1),
    seed=st.integers(0, 99),
)
def test_distillation_naive_loop(seen, more, n, width, temperature, seed):
    views = max(seen + more, 2)
    student, teacher = scores(views, n, width, seed), scores(seen, n, width, seed + 1)
    centre = scores(1, 1, width, seed + 2)[0, 0].detach()
    found = distillation_loss(student, teacher, centre, 0.1, temperature)
    terms, entropies, divergences = [], [], []
    for q in range(seen):
        for i in range(n):
            targets = softmax((teacher[q, i] - centre).tolist(), temperature)
            entropies.append(-sum(p * math.log(p) for p in targets if p > 0))
            for v in range(views):
                if v != q:
                    guesses = softmax(student[v, i].tolist(), 0.1)
                    pairs = list(zip(targets, guesses, strict=True))
                    terms.append(-sum(p * math.log(g) for p, g in pairs))
                    divergences.append(sum(p * math.log(p / g) for p, g in pairs if p > 0))
    assert found["loss"].item() == pytest.approx(np.mean(terms), rel=1e-5, abs=1e-5)
    assert found["teacher_entropy"].item() == pytest.approx(np.mean(entropies), abs=1e-4)
    assert found["kl"].item() == pytest.approx(np.mean(divergences), rel=1e-4, abs=1e-4)
    assert found["kl"] >= -1e-5


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp((value - max(values)) / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def test_only_the_student_gets_distillations_gradient():
    student, teacher = scores(4, 3, 6, seed=0), scores(2, 3, 6, seed=1)
    centre = torch.zeros(6, requires_grad=True)
    found = distillation_loss(student, teacher, centre.detach(), 0.1, 0.04)
    assert [k for k, v in found.items() if v.requires_grad] == ["loss"]
    found["loss"].backward()
    assert teacher.grad is None
    # Views that the teacher does not see are compared with both of its, the others with one.
    size = student.grad.abs().sum((1, 2))
    assert (size > 0).all()
    student.grad = None
    distillation_loss(student[:2], teacher, torch.zeros(6), 0.1, 0.04)["loss"].backward()
    expected = (student[:2].detach() / 0.1).softmax(-1)
    target = (teacher.detach() / 0.04).softmax(-1).flip(0)
    # Of a cross-entropy of logits: what is predicted less the target.
    torch.testing.assert_close(student.grad[:2], (expected - target) / 0.1 / 6)
    assert (student.grad[2:] == 0).all()


def test_distillations_gradient_agrees_with_finite_differences():
    student, teacher = scores(3, 2, 4, seed=0), scores(2, 2, 4, seed=1).detach()
    loss = distillation_loss(student, teacher, torch.zeros(4), 0.5, 0.3)["loss"]
    (gradient,) = torch.autograd.grad(loss, student)
    direction = torch.randn(student.shape, generator=torch.Generator().manual_seed(2))
    ahead, behind = (
        distillation_loss(student + step * direction, teacher, torch.zeros(4), 0.5, 0.3)["loss"]
        for step in (1e-2, -1e-2)
    )
    slope = ((ahead - behind) / 2e-2).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("width", [2, 8192])
def test_a_uniform_teacher_has_the_log_of_the_number_of_prototypes_as_entropy(width):
    teacher, centre = torch.full((2, 3, width), 0.3), torch.full((width,), -7.0)
    found = distillation_loss(scores(4, 3, width, 0), teacher, centre, 0.1, 0.04)
    assert found["teacher_entropy"].item() == pytest.approx(math.log(width), rel=1e-5)


def test_a_uniform_student_has_nothing_to_learn_from_a_uniform_teacher():
    # At the paper's size: 64 images and 8192 prototypes, and a warning when the KL is below 0.01.
    teacher, student = torch.full((2, 64, 8192), 0.3), torch.ones(3, 64, 8192)
    found = distillation_loss(student, teacher, torch.zeros(8192), 0.1, 0.04)
    assert found["loss"].item() == pytest.approx(math.log(8192), rel=1e-5)
    assert found["kl"].item() == pytest.approx(0, abs=1e-4)


def test_a_centre_takes_away_what_all_images_share():
    student, teacher = scores(4, 3, 8, seed=0), scores(2, 3, 8, seed=1).detach()
    offset = scores(1, 1, 8, seed=2)[0, 0].detach()
    expected = distillation_loss(student, teacher, torch.zeros(8), 0.1, 0.04)
    found = distillation_loss(student, teacher + offset, offset, 0.1, 0.04)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-5)


def test_a_teacher_without_doubt_has_no_entropy():
    teacher = torch.zeros(2, 3, 8)
    teacher[..., 5] = 1
    found = distillation_loss(scores(4, 3, 8, 0), teacher, torch.zeros(8), 0.1, 1e-3)
    assert found["teacher_entropy"] == 0
    assert found["loss"].isfinite() and found["kl"] == found["loss"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_compared_in_float32(dtype):
    student, teacher = scores(4, 3, 500, 0).to(dtype), scores(2, 3, 500, 1).to(dtype)
    found = distillation_loss(student, teacher, torch.zeros(500), 0.1, 0.02)
    expected = distillation_loss(student.float(), teacher.float(), torch.zeros(500), 0.1, 0.02)
    for key, value in expected.items():
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key], value)


@pytest.mark.filterwarnings("ignore")
def test_negative_cosine_is_lightlys():
    oracle = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    prediction, target = random_features(12, 7, seed=0), random_features(12, 7, seed=1)
    loss, gradient = with_gradient(lambda p: negative_cosine(p, target), prediction)
    expected, expected_gradient = with_gradient(
        lambda p: 2 + 2 * oracle(p, target.detach()), prediction
    )
    assert loss == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-7, rtol=1e-4)
    assert target.grad is None
    assert not negative_cosine(prediction.detach(), target).requires_grad


def test_negative_cosine_is_the_squared_distance_of_unit_vectors():
    prediction, target = random_features(12, 7, seed=0).detach(), random_features(12, 7, 1).detach()
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (prediction, target))
    found = negative_cosine(prediction, target)
    torch.testing.assert_close(found, (a - b).square().sum(1).mean())
    torch.testing.assert_close(negative_cosine(5 * prediction, 0.1 * target), found)
    assert negative_cosine(prediction, prediction).item() == pytest.approx(0, abs=1e-6)
    assert negative_cosine(prediction, -prediction).item() == pytest.approx(4)
    half = negative_cosine(prediction.half(), target.half())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(found.item(), abs=1e-3)


# -- points ----------------------------------------------------------------------------------------


def test_points_far_apart_are_classes_of_a_cross_entropy():
    first, second = (F.normalize(torch.randn(3, 7, 5), dim=-1) for _ in range(2))
    losses, _ = point_contrast(first, second, torch.eye(7, dtype=torch.bool).expand(3, -1, -1), 0.2)
    for loss, a, b in zip(losses, first, second, strict=True):
        scores = a @ b.T / 0.2
        both = [F.cross_entropy(s, torch.arange(7)) for s in (scores, scores.T)]
        torch.testing.assert_close(loss, sum(both) / 2)


def test_near_points_are_no_negatives():
    first, second = (F.normalize(torch.randn(1, 4, 5), dim=-1) for _ in range(2))
    near = torch.zeros(1, 4, 4, dtype=torch.bool)
    near[0, :2, :2] = True  # the first two are one place
    loss, _ = point_contrast(first, second, near, 0.2)
    scores = (first @ second.transpose(1, 2) / 0.2)[0]
    kept = [[0, 2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    rows = [s[i, k].logsumexp(0) - s[i, i] for s in (scores, scores.T) for i, k in enumerate(kept)]
    torch.testing.assert_close(loss[0], torch.stack(rows).mean())


def test_points_found_count_those_nearest_to_themselves():
    corners = torch.eye(4)[None]
    swapped = corners[:, [1, 0, 2, 3]]
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert point_contrast(corners, corners, nothing, 0.1)[1].item() == 1
    assert point_contrast(corners, swapped, nothing, 0.1)[1].item() == 0.5
    one_place = nothing.clone()
    one_place[0, :2, :2] = True
    assert point_contrast(corners, swapped, one_place, 0.1)[1].item() == 1
