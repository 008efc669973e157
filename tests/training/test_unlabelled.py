"""Views of unlabelled slices: the same geometry for teacher and student, boxes for the student alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ssp.methods.base import Batch
from nnunet_ssp.training.unlabelled import TwoViews, paste

SIZES = np.array([[40, 50], [32, 32], [20, 60]])


def drawn(cutmix: float = 0.0, seed: int = 0, channels: int = 1) -> tuple[TwoViews, Batch]:
    views = TwoViews((32, 32), channels, cutmix)
    slices = torch.zeros(3, channels, 40, 60)
    for number, (rows, columns) in enumerate(SIZES):
        ramp = 1 + torch.arange(rows)[:, None] + 0.3 * torch.arange(columns)
        slices[number, :, :rows, :columns] = ramp / ramp.std()
    made = views.draw(np.random.default_rng(seed), SIZES)
    batch: Any = Batch(slices, torch.from_numpy(SIZES), made, torch.zeros(3, 2))
    return views, batch


def test_the_student_sees_the_teachers_place_in_other_intensities():
    views, batch = drawn()
    weak, strong, inside = views.make(batch)
    assert weak.shape == strong.shape == (3, 1, 32, 32) and weak.dtype == torch.float32
    # Undone, the change of intensity leaves the same picture: it rises and falls at the same places.
    for one, other, within in zip(weak, strong, inside, strict=True):
        pair = torch.stack([one[within], other[within]])
        assert torch.corrcoef(pair)[0, 1] > 0.7
    assert not torch.allclose(weak, strong, atol=0.05)
    assert not weak.masked_select(~inside).any()


def test_the_teachers_view_keeps_the_intensities():
    """Three pixels from the border, where the kernel sees none, a constant stays one."""
    views, batch = drawn()
    batch.slices[batch.slices > 0] = 2.0
    weak, strong, inside = views.make(batch)
    inner = torch.nn.functional.avg_pool2d(inside.float(), 7, 1, 3) > 0.999
    assert inner.any((1, 2, 3)).all()
    assert torch.allclose(weak[inner], torch.tensor(2.0), atol=1e-4)
    assert not torch.allclose(strong[inner], torch.tensor(2.0), atol=0.05)


def test_boxes_lie_in_the_patch_and_follow_their_probability():
    views = TwoViews((32, 24), 1, 0.5)
    sizes = np.full((400, 2), 40)
    boxes = views.draw(np.random.default_rng(3), sizes)["boxes"]
    sides = boxes[:, 2:] - boxes[:, :2]
    pasted = (sides > 0).all(1)
    assert 0.4 < pasted.float().mean() < 0.6 and not sides[~pasted].any()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([32, 24])).all()
    assert (sides[pasted] >= torch.tensor([8, 6])).all()
    assert (sides[pasted] <= torch.tensor([19, 14])).all()
    none = TwoViews((32, 24), 1, 0.0).draw(np.random.default_rng(3), sizes)["boxes"]
    assert torch.equal(none[:, :2], none[:, 2:])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_labels_are_pasted_alike(channels):
    images = torch.arange(3.0)[:, None, None, None].expand(3, channels, 4, 6)
    boxes = torch.tensor([[1, 2, 3, 5], [0, 0, 0, 0], [0, 0, 4, 6]])
    found = paste(boxes, images)
    assert found[0, :, 1:3, 2:5].eq(2).all(), "from the last"
    assert found[0].sum() == 2 * 6 * channels
    assert found[1].eq(1).all() and found[2].eq(1).all()
    labels = paste(boxes, images[:, :1].long())
    assert torch.equal(labels.float(), found[:, :1])


def test_ranks_share_a_batch():
    views, batch = drawn(cutmix=1.0)
    whole = views.make(batch)
    part = views.make(batch.share(slice(1, 3)))
    for one, other in zip(whole, part, strict=True):
        assert torch.equal(one[1:], other)
