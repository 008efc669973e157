"""Metrics that tell without labels whether features carry content."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Share of a uniform spread below which features count as collapsed.
COLLAPSED_SPREAD = 0.1
# Effective rank below which features lie on a line.
COLLAPSED_RANK = 2.0
# Relative alignment from which on views of one slice are like views of any two.
UNALIGNED = 0.95


def spread(features: Tensor) -> Tensor:
    """Measure how far normalised features spread over the sphere: 0 when all are equal, 1 when they are uniform.

    It is the standard deviation of each coordinate of the normalised features, averaged and multiplied by sqrt(D)
    (Chen and He, "Exploring simple Siamese representation learning", section 4.1).

    Args:
        features: (N, D).

    >>> round(spread(torch.ones(5, 3)).item(), 4)
    0.0
    """
    z = F.normalize(features.float(), dim=1)
    return z.std(0, correction=0).mean() * z.shape[1] ** 0.5


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Average the squared distances between the normalised features of positive pairs, in [0, 4].

    Source: Wang and Isola, "Understanding contrastive representation learning through alignment and uniformity on
    the hypersphere", section 4, alpha = 2.

    Args:
        first: (N, D).
        second: (N, D), row i is the partner of row i.

    >>> round(alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item(), 4)
    2.0
    """
    z = F.normalize(first.float(), dim=1) - F.normalize(second.float(), dim=1)
    return z.square().sum(1).mean()


def relative_alignment(first: Tensor, second: Tensor) -> Tensor:
    """Divide `alignment` by the mean squared distance of any two rows: below 1 when partners are nearer than strangers.

    Alignment alone also falls when all features draw together; this ratio does not.

    Args:
        first: (N, D).
        second: (N, D), row i is the partner of row i.

    >>> relative_alignment(torch.eye(3), torch.eye(3)).item()
    0.0
    """
    z = F.normalize(torch.cat([first, second]).float(), dim=1)
    n = len(z)
    cosine = (z.sum(0).square().sum() - n) / (n * (n - 1))  # the mean over pairs of different rows
    return alignment(first, second) / (2 - 2 * cosine).clamp_min(1e-12)


def uniformity(features: Tensor) -> Tensor:
    """Return the log of the mean Gaussian potential between different rows, t = 2.

    It is at most 0, where all rows are equal; lower is more uniform. Source: as `alignment`.

    Args:
        features: (N, D), at least two rows.

    >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item(), 4)
    -8.0
    """
    z = F.normalize(features.float(), dim=1)
    n = len(z)
    potential = (4 * (z @ z.T) - 4).exp()  # exp(-2 |a - b|^2) of unit vectors
    return ((potential.sum() - potential.diagonal().sum()) / (n * (n - 1))).log()


def effective_rank(features: Tensor) -> Tensor:
    """Count the directions that the centred features use: exp of the entropy of their singular values.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007; for features Garrido et al., "RankMe", ICML 2023.
    Features are centred, because those that share one large mean would otherwise count as one direction.

    Args:
        features: (N, D).

    Returns:
        A value in [1, min(N, D)]: 1 when all rows are equal, nan when a feature is not finite.

    >>> round(effective_rank(torch.cat([torch.eye(3), -torch.eye(3)])).item(), 4)
    3.0
    """
    x = features.detach().cpu().double()  # not every device has double precision
    x = x - x.mean(0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    if not gram.isfinite().all():
        return features.new_full((), torch.nan, dtype=torch.float32)
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-12)
    return torch.special.entr(share).sum().exp().float().to(features.device)


def collapse_warning(spread: float, effective_rank: float, relative_alignment: float) -> str | None:
    """Say in words when features have collapsed, so that all images look alike, or when nothing is learned.

    Args:
        spread: From the function of that name.
        effective_rank: From the function of that name.
        relative_alignment: From the function of that name.

    >>> collapse_warning(spread=0.5, effective_rank=20.0, relative_alignment=0.3) is None
    True
    >>> collapse_warning(spread=0.01, effective_rank=20.0, relative_alignment=0.3)[:37]
    'WARNING: the features have collapsed:'
    """
    if not all(map(math.isfinite, (spread, effective_rank, relative_alignment))):
        return "WARNING: the features are not finite."
    if spread >= COLLAPSED_SPREAD and effective_rank >= COLLAPSED_RANK:
        if relative_alignment < UNALIGNED:
            return None
        return (
            "WARNING: nothing is learned yet: two views of a slice are as far apart as views of any two slices "
            f"(relative alignment {relative_alignment:.3f}). If that stays so after the warm-up, try a higher "
            "initial_lr, or pooling=stages where that is not the default."
        )
    return (
        f"WARNING: the features have collapsed: spread {spread:.3f} of a uniform one, effective rank "
        f"{effective_rank:.1f}. All images look nearly alike to the network, and fine-tuning gains nothing from it. "
        "Lower initial_lr, use larger batches, keep head_norm=batch."
    )
