from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnunet_ssp.evaluation.dice import dice, dice_of_counts

masks = arrays(bool, (2, 3, 4))


def naive_dice(prediction: np.ndarray, reference: np.ndarray, empty: float) -> float:
    both = either = 0
    for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        both += p and r
        either += p + r
    return 2 * both / either if either else empty


@given(masks, masks)
def test_agrees_with_counting_voxel_by_voxel(prediction, reference):
    for rule, empty in (("one", 1.0), ("nan", np.nan)):
        expected = naive_dice(prediction, reference, empty)
        np.testing.assert_allclose(dice(prediction, reference, empty=rule), expected)
        slices = [naive_dice(p, r, empty) for p, r in zip(prediction, reference, strict=True)]
        np.testing.assert_allclose(dice(prediction, reference, (1, 2), rule), slices)


@given(masks, masks, st.permutations(range(3)))
def test_is_symmetric_within_0_and_1_and_blind_to_the_order_of_axes(prediction, reference, order):
    score = dice(prediction, reference)
    assert 0 <= score <= 1
    assert score == dice(reference, prediction)
    assert score == dice(prediction.transpose(order), reference.transpose(order))


def test_two_boxes_that_share_half_score_half():
    prediction, reference = np.zeros((2, 4, 8, 8), bool)
    prediction[:, 0:4, 2:6] = True
    reference[:, 2:6, 2:6] = True
    assert dice(prediction, reference) == 0.5
    assert dice(prediction, reference, axis=(1, 2)).tolist() == [0.5] * 4


@pytest.mark.parametrize(("rule", "both_empty"), [("one", 1.0), ("nan", np.nan)])
def test_empty_masks(rule, both_empty):
    prediction, reference = np.array([[1, 0], [0, 0], [0, 0]]), np.array([[0, 0], [0, 1], [0, 0]])
    scores = dice(prediction > 0, reference > 0, (1,), rule)
    np.testing.assert_array_equal(scores, [0, 0, both_empty])


def test_unequal_shapes_and_unknown_rule_are_refused():
    with pytest.raises(ValueError, match=r"shape=\(2, 3\)\) must have the shape of `reference`"):
        dice(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
    with pytest.raises(ValueError, match=r"`empty` \(='zero'\) must be 'one' or 'nan'"):
        dice(np.zeros(3, bool), np.zeros(3, bool), empty="zero")  # type: ignore[arg-type]


def test_agrees_with_monai():
    monai_metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    for highest in (2, 3):  # with 2, class 3 is in neither map
        maps = generator.integers(0, highest + 1, (2, 5, 9, 9))
        one_hot = torch.stack([torch.from_numpy(maps == label) for label in range(4)], 1).float()
        expected = monai_metrics.compute_dice(
            one_hot[:1], one_hot[1:], include_background=False, ignore_empty=False
        )
        scores = [dice(*(maps == label)) for label in (1, 2, 3)]
        np.testing.assert_allclose(scores, expected[0], rtol=1e-6)


def test_counts_give_the_dice_of_the_masks_they_count():
    one, other = np.random.default_rng(0).random((2, 4, 5, 6)) < 0.3
    one[2] = other[2] = False
    both, size = (one & other).sum((1, 2)), one.sum((1, 2)) + other.sum((1, 2))
    for rule in ("one", "nan"):
        np.testing.assert_array_equal(
            dice_of_counts(both, size, rule), dice(one, other, (1, 2), rule)
        )
    with pytest.raises(ValueError, match="`empty`"):
        dice_of_counts(1, 2, "two")
