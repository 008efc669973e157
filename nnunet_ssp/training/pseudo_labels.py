"""Labels that a teacher gives to unlabelled slices, and the student's loss on them.

The loss is nnU-Net's own. Pixels of which the teacher is not sure are ignored as nnU-Net ignores its ignore label
(confidence threshold of FixMatch, Sohn et al. 2020, https://arxiv.org/abs/2001.07685).
"""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

IGNORED = -1


def pseudo_labels(
    logits: Tensor, inside: Tensor, threshold: float, regions: bool
) -> tuple[Tensor, Tensor]:
    """Return the labels in the form that the loss wants, and the pixels that count.

    Args:
        logits: (N, K, X, Y) of the teacher.
        inside: (N, 1, X, Y) bool, True where a pixel may count.
        threshold: Least probability of a label that counts; of regions all must have it.
        regions: Whether the K outputs are regions that overlap, not classes that exclude each other.

    Returns:
        (N, 1, X, Y) integers with `IGNORED`, or for regions (N, K + 1, X, Y) bool whose last channel says what is
        ignored; and (N, 1, X, Y) bool, True where a pixel counts.

    >>> logits = torch.tensor([9.0, 0.1]).reshape(1, 2, 1, 1)
    >>> labels, counts = pseudo_labels(logits, torch.ones(1, 1, 1, 1, dtype=bool), 0.95, regions=False)
    >>> labels.item(), counts.item()
    (0, True)
    """
    if regions:
        probability = logits.float().sigmoid()
        confidence = torch.maximum(probability, 1 - probability).amin(1, keepdim=True)
        counts = inside & (confidence >= threshold)
        return torch.cat([probability > 0.5, ~counts], 1), counts
    confidence, label = logits.float().softmax(1).max(1, keepdim=True)
    counts = inside & (confidence >= threshold)
    return label.masked_fill(~counts, IGNORED), counts


def make_loss(regions: bool, batch_dice: bool, ddp: bool) -> nn.Module:
    """Build nnU-Net's loss of Dice and cross-entropy for `pseudo_labels`.

    Args:
        regions: Whether the outputs are regions that overlap.
        batch_dice: Whether Dice is taken over the batch, as planned.
        ddp: Whether ranks share the batch.
    """
    dice: dict[str, Any] = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": ddp}
    kind = MemoryEfficientSoftDiceLoss
    loss: nn.Module
    if regions:
        loss = DC_and_BCE_loss({}, {**dice, "do_bg": True}, use_ignore_label=True, dice_class=kind)
    else:
        loss = DC_and_CE_loss({**dice, "do_bg": False}, {}, ignore_label=IGNORED, dice_class=kind)
    return loss
