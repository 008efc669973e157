"""Losses: pure functions of tensors, computed in float32 whatever the precision of the network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SMALLEST = 1e-12  # sum of weights that is divided by: nothing masked gives 0, not 0 / 0
ROWS = 256  # of the contrastive loss at a time


def masked_squared_error(
    prediction: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of squared errors over weighted pixels, and the sum of the weights.

    Two sums and not their ratio, so that a batch may be processed in chunks: the loss of the whole is the ratio of
    the added sums.

    Args:
        prediction: (B, C, X, Y).
        target: (B, C, X, Y).
        weight: (B, 1, X, Y), bool or in [0, 1]; True counts.

    Returns:
        Two float32 scalars: the error summed over pixels and channels, and the weight summed over the same.
    """
    weight = weight.float().expand_as(target)
    error = (prediction.float() - target.float()).square() * weight
    return error.sum(), weight.sum()


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the pixels where ``mask`` is True (de Mooij et al., section 2; masks: True = hidden).

    Equals ``F.mse_loss(prediction[mask], target[mask])``. The mean is over channels too; the authors' code sums
    over channels, which is the same for one channel. 0 where nothing is masked.

    Args:
        prediction: (B, C, X, Y).
        target: (B, C, X, Y).
        mask: (B, 1, X, Y), bool or in [0, 1]; True counts.
    """
    error, weight = masked_squared_error(prediction, target, mask)
    return error / weight.clamp_min(SMALLEST)


def masked_variance(target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squared deviations from each image's own masked mean, and the sum of the weights.

    The error of a network that has learned the mean of the hidden pixels of each image, and no more: a masked error
    divided by this is 1 there, and 0 for a perfect reconstruction.

    Args:
        target: (B, C, X, Y).
        mask: (B, 1, X, Y); True counts.

    Returns:
        Two float32 scalars, as in `masked_squared_error`.
    """
    weight = mask.float()
    target = target.float()
    count = weight.sum((2, 3), keepdim=True).clamp_min(SMALLEST)
    mean = (target * weight).sum((2, 3), keepdim=True) / count
    return masked_squared_error(mean.expand_as(target), target, mask)


def coarse_weights(n: int) -> list[float]:
    """Weights 2^-i / sum of n reconstruction outputs, finest first; nnU-Net's for deep supervision, none zeroed."""
    weights = [0.5**i for i in range(n)]
    return [weight / sum(weights) for weight in weights]


def contrastive_loss(
    features: Tensor, positives: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Contrast each row's positives with all other rows, by cosine similarity.

    ``-1/|P(i)| sum_{j in P(i)} log( exp(s_ij / T) / sum_{k != i} exp(s_ik / T) )``, averaged over the rows that have
    positives. With the twin view as the only positive this is NT-Xent (Chen et al., "A simple framework for
    contrastive learning of visual representations", section 2.1; Google's code adds the two directions, which is twice
    this value); with more it is the supervised contrastive loss in its "out" form (Khosla et al. 2020, equation 2),
    used for positions by Zeng et al. ("Positional contrastive learning", section 2) and de Mooij et al.

    Args:
        features: (N, D), not normalised.
        positives: (N, N) bool; the diagonal is ignored.
        temperature: T.

    Returns:
        The loss, a float32 scalar (float64 for float64 features), 0 when no row has a positive; and the number of
        rows without one, which are left out of the mean.
    """
    if features.dtype != torch.float64:
        features = features.float()
    z = F.normalize(features, dim=1)
    number = torch.arange(len(z), device=z.device)

    def block(start: int) -> tuple[Tensor, Tensor]:
        """The sum over some rows, and how many of them have no positive."""
        rows = slice(start, start + ROWS)
        itself = number[rows, None] == number
        similarity = (z[rows] @ z.T / temperature).masked_fill(itself, -torch.inf)
        log_share = similarity - similarity.logsumexp(1, keepdim=True)
        alike = positives[rows] & ~itself
        count = alike.sum(1)
        per_row = -log_share.where(alike, 0).sum(1) / count.clamp_min(1)
        return per_row.sum(), (count == 0).sum()

    if len(z) <= ROWS:
        total, lonely = block(0)
    else:  # computed again in the backward pass: the similarities of all pairs never exist at once
        parts = [
            checkpoint(block, start, use_reentrant=False, preserve_rng_state=False)
            for start in range(0, len(z), ROWS)
        ]
        total, lonely = (torch.stack(part).sum() for part in zip(*parts, strict=True))
    return total / (len(z) - lonely).clamp_min(1), lonely


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> dict[str, Tensor]:
    """DINO's cross-entropy between the teacher's view of an image and the student's other views.

    Source: Caron et al., "Emerging properties in self-supervised vision transformers", section 3.1.

    Args:
        student: (V, N, K) scores of V views of N images; the first ones are those the teacher sees.
        teacher: (Q, N, K) scores of Q of these views, without a gradient.
        centre: (K,) subtracted from the teacher's scores.
        student_temperature: the scores are divided by it.
        teacher_temperature: lower, so that the targets are sharper.

    Returns:
        ``loss``, the mean over pairs of different views and images; ``teacher_entropy``, of the targets, in nats (log K
        is uniform: collapse without an opinion); ``kl``, the loss above that entropy, the same mean of
        KL(teacher || student).
    """
    target = ((teacher.detach().float() - centre) / teacher_temperature).softmax(-1)
    log_student = (student.float() / student_temperature).log_softmax(-1)
    # A sum per image first: one over images and prototypes together would lose 0.01 nats in float32.
    cross = -torch.einsum("qnk,vnk->nqv", target, log_student).mean(0)
    different = ~torch.eye(*cross.shape, dtype=torch.bool, device=cross.device)
    loss = (cross * different).sum() / different.sum()
    entropy = torch.special.entr(target).sum(-1).mean()
    return {"loss": loss, "teacher_entropy": entropy, "kl": loss.detach() - entropy}


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's ``2 - 2 cos`` between predictions and targets, averaged over rows, in [0, 4].

    Source: Grill et al., "Bootstrap your own latent", equation 2.

    Args:
        prediction: (N, D).
        target: (N, D), gets no gradient.
    """
    cosine = F.cosine_similarity(prediction.float(), target.detach().float(), dim=1)
    return 2 - 2 * cosine.mean()


def error_sums(
    outputs: list[Tensor], target: Tensor, weight: Tensor, masked: Tensor, inside: Tensor
) -> Tensor:
    """What the loss and its figures need of a chunk, as sums over its images.

    Args:
        outputs: of the decoder, finest first.
        target: (B, C, X, Y).
        weight: (B, 1, X, Y) of the pixels that count in the loss.
        masked: (B, 1, X, Y) of the corrupted pixels.
        inside: (B, 1, X, Y) of all pixels of the slice.

    Returns:
        (outputs + 1, 2): weighted squared error and weights of each output; last the squared error of the finest
        output over the corrupted pixels, and the root of each slice's squared error, a mean over channels.
    """
    sums = []
    for output in outputs:
        sums.append(
            torch.stack(
                masked_squared_error(output, pooled(target, output), pooled(weight, output))
            )
        )
    with torch.no_grad():
        squared = (outputs[0].float() - target).square()
        norms = (squared * inside).sum((2, 3)).sqrt().mean(1).sum()
        sums.append(torch.stack([(squared * masked).sum(), norms]))
    return torch.stack(sums)


def pooled(x: Tensor, like: Tensor) -> Tensor:
    """Area averages at the resolution of another map."""
    height, width = like.shape[2:]
    return x if x.shape[2:] == like.shape[2:] else F.adaptive_avg_pool2d(x, (height, width))
