"""A teacher's labels and the loss on them, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnunet_ssp.training.pseudo_labels import IGNORED, make_loss, pseudo_labels


def logits_of(probabilities: list[list[float]]) -> Tensor:
    """Logits (1, K, 1, pixels) whose softmax is given for each pixel."""
    return torch.tensor(probabilities).log().T[None, :, None]


def test_only_what_is_sure_and_inside_is_labelled():
    logits = logits_of([[0.96, 0.02, 0.02], [0.94, 0.03, 0.03], [0.01, 0.01, 0.98], [0, 1, 0]])
    inside = torch.tensor([True, True, True, False]).reshape(1, 1, 1, 4)
    labels, counts = pseudo_labels(logits, inside, 0.95, regions=False)
    assert labels.flatten().tolist() == [0, IGNORED, 2, IGNORED]
    assert counts.flatten().tolist() == [True, False, True, False]
    everything, _ = pseudo_labels(logits, inside, 0.0, regions=False)
    assert everything.flatten().tolist() == [0, 0, 2, IGNORED]


def test_all_regions_must_be_sure():
    probability = torch.tensor([[0.97, 0.01], [0.97, 0.5], [0.02, 0.96], [0.5, 0.99]])
    logits = probability.logit().T[None, :, None]
    inside = torch.tensor([True, True, True, True]).reshape(1, 1, 1, 4)
    target, counts = pseudo_labels(logits, inside, 0.95, regions=True)
    assert target.dtype == torch.bool and target.shape == (1, 3, 1, 4)
    assert counts.flatten().tolist() == [True, False, True, False]
    assert target[0, 2, 0].tolist() == [False, True, False, True], "the last says what is ignored"
    assert target[0, :2, 0, 0].tolist() == [True, False]
    assert target[0, :2, 0, 2].tolist() == [False, True]


@pytest.mark.parametrize("regions", [False, True])
def test_half_precision_decides_as_float32(regions):
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(4).bfloat16()
    inside = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    found = pseudo_labels(logits, inside, 0.9, regions)
    expected = pseudo_labels(logits.float(), inside, 0.9, regions)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def soft_dice(probability: Tensor, truth: Tensor) -> Tensor:
    """Dice over the batch of (pixels, K), mean over K."""
    both, sizes = (probability * truth).sum(0), probability.sum(0) + truth.sum(0)
    return ((2 * both + 1e-5) / (sizes + 1e-5)).mean()


def test_the_loss_of_classes_in_closed_form():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 4, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (2, 1, 4, 4), generator=generator)
    counts = torch.rand(2, 1, 4, 4, generator=generator) < 0.6
    loss = make_loss(regions=False, batch_dice=True, ddp=False)(
        logits, labels.masked_fill(~counts, IGNORED)
    )
    chosen = logits.movedim(1, -1)[counts[:, 0]]
    truth = torch.nn.functional.one_hot(labels[counts], 3)
    entropy = -(truth * chosen.log_softmax(1)).sum(1).mean()
    expected = entropy - soft_dice(chosen.softmax(1)[:, 1:], truth[:, 1:])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    gradient, wanted = (
        torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, expected)
    )
    assert torch.allclose(gradient, wanted, atol=1e-7)
    assert not gradient.movedim(1, -1)[~counts[:, 0]].any(), "nothing is learnt from the others"


def test_the_loss_of_regions_in_closed_form():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 2, 4, 4, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 2, 4, 4, generator=generator) * 3
    inside = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    target, counts = pseudo_labels(teacher, inside, 0.7, regions=True)
    assert 0 < counts.sum() < counts.numel()
    loss = make_loss(regions=True, batch_dice=True, ddp=False)(logits, target)
    chosen = logits.movedim(1, -1)[counts[:, 0]]
    truth = target[:, :2].movedim(1, -1)[counts[:, 0]].float()
    # nnU-Net sums over regions and divides by the number of pixels.
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(chosen, truth) * 2
    expected = entropy - soft_dice(chosen.sigmoid(), truth)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient.movedim(1, -1)[~counts[:, 0]].any()


@pytest.mark.parametrize("regions", [False, True])
def test_a_teacher_that_is_sure_of_nothing_teaches_nothing(regions):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    inside = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    target, counts = pseudo_labels(torch.zeros(2, 3, 4, 4), inside, 0.95, regions)
    assert not counts.any()
    loss = make_loss(regions, batch_dice=True, ddp=False)(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and not gradient.any()
