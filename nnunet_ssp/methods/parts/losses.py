"""Losses: pure functions of tensors, computed in float32 whatever the precision of the network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Smallest sum of weights to divide by: nothing masked gives 0, not 0 / 0.
SMALLEST = 1e-12
# Rows of the contrastive loss that are computed at a time.
ROWS = 256


def masked_squared_error(
    prediction: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum squared errors over weighted pixels, and sum the weights.

    These are two sums and not their ratio, since a batch may be processed in chunks. The loss of the whole is the
    ratio of the added sums.

    Args:
        prediction: (B, C, X, Y).
        target: (B, C, X, Y).
        weight: (B, 1, X, Y), bool or in [0, 1]; True counts.

    Returns:
        Two float32 scalars: the error summed over pixels and channels, and the weight summed over the same.

    >>> zeros, ones = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    >>> masked_squared_error(zeros, 3 * ones, torch.tensor([[[[True, False], [False, False]]]]))
    (tensor(18.), tensor(2.))
    """
    weight = weight.float().expand_as(target)
    error = (prediction.float() - target.float()).square() * weight
    return error.sum(), weight.sum()


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Average squared errors over the pixels where the mask is True (de Mooij et al., section 2).

    Equals `F.mse_loss(prediction[mask], target[mask])`. The mean is over channels too; the authors' code sums over
    channels, which is the same for one channel.

    Args:
        prediction: (B, C, X, Y).
        target: (B, C, X, Y).
        mask: (B, 1, X, Y), bool or in [0, 1]; True = hidden counts.

    Returns:
        A float32 scalar, 0 where nothing is masked.

    >>> target = torch.tensor([[[[3.0, 9.0]]]])
    >>> masked_mse(torch.zeros_like(target), target, torch.tensor([[[[True, False]]]]))
    tensor(9.)
    """
    error, weight = masked_squared_error(prediction, target, mask)
    return error / weight.clamp_min(SMALLEST)


def masked_variance(target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum squared deviations from each image's own masked mean, and sum the weights.

    This is the error of a network that has learned the mean of each image's hidden pixels, and no more. A masked error
    divided by it is 1 for such a network, and 0 for a perfect reconstruction.

    Args:
        target: (B, C, X, Y).
        mask: (B, 1, X, Y); True counts.

    Returns:
        Two float32 scalars, as in `masked_squared_error`.

    >>> target = torch.tensor([[[[1.0, 3.0, 100.0]]]])
    >>> masked_variance(target, target < 10)
    (tensor(2.), tensor(2.))
    """
    weight = mask.float()
    target = target.float()
    count = weight.sum((2, 3), keepdim=True).clamp_min(SMALLEST)
    mean = (target * weight).sum((2, 3), keepdim=True) / count
    return masked_squared_error(mean.expand_as(target), target, mask)


def coarse_weights(n: int) -> list[float]:
    """Return weights 2^-i / sum for n reconstruction outputs, finest first.

    They are nnU-Net's for deep supervision, none zeroed.

    >>> coarse_weights(2)
    [0.6666666666666666, 0.3333333333333333]
    """
    weights = [0.5**i for i in range(n)]
    return [weight / sum(weights) for weight in weights]


def contrastive_loss(
    features: Tensor, positives: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Contrast each row's positives with all other rows, by cosine similarity.

    The loss of row i is `-1/|P(i)| sum_{j in P(i)} log( exp(s_ij / T) / sum_{k != i} exp(s_ik / T) )`. It is averaged
    over the rows that have positives.

    With the twin view as the only positive this is NT-Xent (Chen et al., "A simple framework for contrastive learning
    of visual representations", section 2.1). Google's code adds the two directions, which is twice this value. With
    more positives it is the supervised contrastive loss in its "out" form (Khosla et al. 2020, equation 2). Zeng et al.
    ("Positional contrastive learning", section 2) and de Mooij et al. use it for positions.

    Args:
        features: (N, D), not normalised.
        positives: (N, N) bool; the diagonal is ignored.
        temperature: T above, positive.

    Returns:
        The loss, a float32 scalar (float64 for float64 features), 0 when no row has a positive; and the number of
        rows without one, which are left out of the mean.

    >>> twins = torch.tensor([0, 1, 0, 1])
    >>> loss, lonely = contrastive_loss(torch.eye(2)[twins], twins[:, None] == twins, temperature=0.1)
    >>> round(loss.item(), 4), lonely.item()
    (0.0001, 0)
    """
    if features.dtype != torch.float64:
        features = features.float()
    z = F.normalize(features, dim=1)
    number = torch.arange(len(z), device=z.device)

    def block(start: int) -> tuple[Tensor, Tensor]:
        """Sum the loss over some rows, and count those without a positive."""
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


def point_contrast(
    first: Tensor, second: Tensor, near: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Contrast the points of one view of an image with those of another view, in both directions.

    The loss of point i is `-log( exp(s_ii / T) / sum_k exp(s_ik / T) )`, where k is i or no neighbour of i. Sources:
    Pinheiro et al. (VADeR, NeurIPS 2020), equation 1; Chaitanya et al. (NeurIPS 2020), equation 2, whose negatives also
    lie in the same image only.

    Args:
        first: (N, P, D), normalised embeddings of P points.
        second: (N, P, D), of the same points in another view.
        near: (N, P, P) bool, symmetric, True where two points are too close to be told apart.
        temperature: T above, positive.

    Returns:
        The loss of each image (N,). The share of its points that are nearest to themselves among those compared (N,).

    >>> corners = torch.eye(2)[None]
    >>> loss, found = point_contrast(corners, corners, torch.zeros(1, 2, 2, dtype=torch.bool), temperature=1.0)
    >>> round(loss.item(), 4), found.item()  # log(1 + 1/e)
    (0.3133, 1.0)
    """
    points = first.shape[1]
    itself = torch.eye(points, dtype=torch.bool, device=first.device)
    left_out = near & ~itself
    similarity = (first @ second.transpose(1, 2) / temperature).masked_fill(left_out, -torch.inf)
    own = similarity.diagonal(dim1=1, dim2=2)
    loss = (similarity.logsumexp(2) + similarity.logsumexp(1)) / 2 - own
    with torch.no_grad():
        number = torch.arange(points, device=first.device)
        hits = [(similarity.argmax(axis) == number).float().mean(1) for axis in (1, 2)]
    return loss.mean(1), (hits[0] + hits[1]) / 2


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> dict[str, Tensor]:
    """Return DINO's cross-entropy between the teacher's view of an image and the student's other views.

    Source: Caron et al., "Emerging properties in self-supervised vision transformers", section 3.1.

    Args:
        student: (V, N, K) scores of V views of N images; the first ones are those that the teacher sees.
        teacher: (Q, N, K) scores of Q of these views; gets no gradient.
        centre: (K,), subtracted from the teacher's scores.
        student_temperature: Divides the student's scores.
        teacher_temperature: Divides the teacher's scores; lower, so that the targets are sharper.

    Returns:
        `loss`, the mean over pairs of different views and over images. `teacher_entropy`, of the targets, in nats
        (log K is uniform: collapse without an opinion). `kl`, the loss above that entropy, the same mean of
        KL(teacher || student).

    >>> undecided = torch.zeros(2, 1, 4)
    >>> found = distillation_loss(undecided, undecided, torch.zeros(4), 0.1, 0.04)
    >>> round(found["loss"].item(), 4), round(found["teacher_entropy"].item(), 4)  # log 4
    (1.3863, 1.3863)
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
    """Return BYOL's `2 - 2 cos` between predictions and targets, averaged over rows, in [0, 4].

    Source: Grill et al., "Bootstrap your own latent", equation 2.

    Args:
        prediction: (N, D).
        target: (N, D); gets no gradient.

    >>> same, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    >>> [round(negative_cosine(same, target).item(), 4) for target in (3 * same, other, -same)]
    [0.0, 2.0, 4.0]
    """
    cosine = F.cosine_similarity(prediction.float(), target.detach().float(), dim=1)
    return 2 - 2 * cosine.mean()


def error_sums(
    outputs: list[Tensor], target: Tensor, weight: Tensor, masked: Tensor, inside: Tensor
) -> Tensor:
    """Sum over a chunk's images what the loss of the whole batch and its metrics need.

    Args:
        outputs: (B, C, ...) each, of the decoder, finest first.
        target: (B, C, X, Y).
        weight: (B, 1, X, Y), 1 where a pixel counts in the loss.
        masked: (B, 1, X, Y), 1 where a pixel was corrupted.
        inside: (B, 1, X, Y), 1 where a pixel lies in the slice.

    Returns:
        (outputs + 1, 2): weighted squared error and weights of each output. The last row has the squared error of the
        finest output over the corrupted pixels, and the root of each slice's squared error, a mean over channels.

    >>> ones = torch.ones(1, 1, 2, 2)
    >>> error_sums([0 * ones, 0 * ones[..., :1, :1]], 3 * ones, ones, 0 * ones, ones).tolist()
    [[36.0, 4.0], [9.0, 1.0], [0.0, 6.0]]
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
    """Average over areas, down to the resolution of another map.

    Args:
        x: (B, C, X, Y).
        like: (..., X', Y').

    >>> pooled(torch.tensor([[[[1.0, 3.0]]]]), torch.zeros(1, 1, 1, 1))
    tensor([[[[2.]]]])
    """
    height, width = like.shape[2:]
    return x if x.shape[2:] == like.shape[2:] else F.adaptive_avg_pool2d(x, (height, width))
