"""Unlabelled slices of a fine-tuning: which they are, and two views of each, one for the teacher, one for the student.

Both views share their geometry, so that the teacher's label of a pixel is the student's target at the same pixel
(weak and strong views of FixMatch, Sohn et al. 2020). Boxes of one slice are pasted into another for the student alone
(CutMix, French et al. 2020, https://arxiv.org/abs/1906.01916; on ACDC in UniMatch, https://arxiv.org/abs/2208.09910).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ssp.methods.base import Batch
from nnunet_ssp.methods.parts.views import ViewSettings, apply_views, draw_views

# Intensities vary as in pretraining. Geometry varies less: a teacher labels best what looks like the labelled slices,
# most of which nnU-Net's augmentation leaves upright.
STRENGTH = ViewSettings(rotation=20.0, scale=(0.8, 1.25), translation=0.0)
# Sides of a pasted box, as a share of the patch's; uniform.
BOX = (0.25, 0.6)


class TwoViews:
    """Draw and make the views of unlabelled slices, see `batches.Draws`.

    Args:
        patch_size: Rows and columns of the views.
        channels: Channels of the slices.
        cutmix: Probability that a box is pasted into a student's slice.
    """

    smallest_batch: ClassVar[int] = 1
    second_frames: bool = False
    second_frames_by: ClassVar[str] = ""
    other_frames: ClassVar[bool] = False
    centres: NDArray[np.float64] | None = None

    def __init__(self, patch_size: tuple[int, int], channels: int, cutmix: float) -> None:
        self.patch_size, self.channels, self.cutmix = patch_size, channels, cutmix

    def draw(self, rng: np.random.Generator, sizes: NDArray[np.int64]) -> dict[str, Any]:
        """Return the strong views, and (B, 4) the box of each: first and last row and column, empty for none."""
        strong = draw_views(rng, sizes, self.channels, self.patch_size, STRENGTH)
        n, patch = len(sizes), np.asarray(self.patch_size)
        pasted = rng.uniform(0, 1, (n, 1)) < self.cutmix
        side = np.where(pasted, np.round(rng.uniform(*BOX, (n, 2)) * patch), 0)
        corner = np.floor(rng.uniform(0, 1, (n, 2)) * (patch - side + 1))
        boxes = np.concatenate([corner, corner + side], 1).astype(np.int64)
        return {"strong": strong, "boxes": torch.from_numpy(boxes)}

    def make(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Make the views of a batch, in float32.

        Returns:
            Weak and strong views (B, C, *patch_size), and where they lie inside the slice (B, 1, *patch_size), bool.
        """
        strong = batch.drawn["strong"]
        weak, inside = apply_views(batch.slices, batch.sizes, strong.geometry(), self.patch_size)
        return weak, apply_views(batch.slices, batch.sizes, strong, self.patch_size)[0], inside


def paste(boxes: Tensor, x: Tensor) -> Tensor:
    """Paste into each image the box of the one before it; the first takes it from the last.

    Args:
        boxes: (B, 4) first row and column, then the row and column behind the last.
        x: (B, C, X, Y).

    >>> paste(torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]), torch.arange(4.0).reshape(2, 1, 1, 2)).flatten().tolist()
    [2.0, 1.0, 2.0, 3.0]
    """
    row = torch.arange(x.shape[2], device=x.device)[:, None]
    column = torch.arange(x.shape[3], device=x.device)
    top, left, bottom, right = boxes.to(x.device)[..., None, None, None].unbind(1)
    within = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return torch.where(within, x.roll(1, 0), x)
