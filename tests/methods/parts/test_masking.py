from __future__ import annotations

import functools
import operator
from typing import get_args

import einops
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ssp.methods.parts.masking import (
    FillName,
    _from_patches,
    _to_patches,
    auto_block,
    draw_block_masks,
    fill,
    grid_shape,
    to_pixels,
)

FILLS = get_args(FillName)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(n: int, channels: int, rows: int, columns: int) -> torch.Tensor:
    """Images whose every pixel is a different number, the same in all channels but for its sign."""
    pixels = torch.arange(1, n * rows * columns + 1, dtype=torch.float32)
    image = pixels.reshape(n, 1, rows, columns)
    return torch.cat([image * (-1) ** c for c in range(channels)], 1)


def drawn(seed: int, n: int, grid: tuple[int, int], ratio: float = 0.75) -> torch.Tensor:
    blocks = draw_block_masks(np.random.default_rng(seed), n, grid, ratio, independent=True)
    return torch.from_numpy(blocks)


@pytest.mark.parametrize(
    ("patch", "block"), [(256, 32), (128, 16), (96, 12), (320, 40), (64, 8), (40, 8), (16, 8)]
)
def test_auto_block(patch, block):
    assert auto_block((patch, patch)) == block
    assert auto_block((patch, patch + 64)) == auto_block((patch + 64, patch)) == block


def test_exactly_48_of_64_blocks_are_hidden_at_the_papers_size():
    assert grid_shape((256, 256), 32) == (8, 8)
    blocks = draw_block_masks(np.random.default_rng(0), 20, (8, 8), 0.75)
    assert blocks.shape == (20, 8, 8)
    assert (blocks.sum((1, 2)) == 48).all()
    assert len({image.tobytes() for image in blocks}) == 20
    pixels = to_pixels(torch.from_numpy(blocks), 32, (256, 256))
    assert pixels.shape == (20, 1, 256, 256)
    assert (pixels.sum((1, 2, 3)) == 49_152).all()


def test_every_block_is_hidden_equally_often():
    blocks = draw_block_masks(np.random.default_rng(0), 4000, (4, 4), 0.75)
    assert np.abs(blocks.mean(0) - 0.75).max() < 0.03  # 4 standard errors


def test_independent_blocks():
    blocks = draw_block_masks(np.random.default_rng(0), 4000, (4, 4), 0.75, independent=True)
    counts = blocks.sum((1, 2))
    assert abs(counts.mean() - 12) < 0.12
    assert abs(counts.var() - 16 * 0.75 * 0.25) < 0.3  # binomial


@pytest.mark.parametrize(("ratio", "count"), [(0.1, 0), (0.9, 4)])
def test_hiding_nothing_or_everything_is_refused(ratio, count):
    message = (
        rf"`mask_ratio` \(={ratio}\) must hide at least one and not all of the 4 blocks.*{count}"
    )
    with pytest.raises(ValueError, match=message):
        draw_block_masks(np.random.default_rng(0), 1, (2, 2), ratio)


def test_partial_blocks_at_the_border():
    assert grid_shape((20, 17), 8) == (3, 3)
    blocks = torch.zeros(1, 3, 3, dtype=torch.bool)
    blocks[0, 2, 2] = blocks[0, 0, 1] = True
    pixels = to_pixels(blocks, 8, (20, 17))[0, 0]
    expected = torch.zeros(20, 17, dtype=torch.bool)
    expected[16:, 16:] = True
    expected[:8, 8:16] = True
    assert torch.equal(pixels, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_against_einops(channels):
    images = numbered(2, channels, 12, 8)
    patches = _to_patches(images, 4)
    assert torch.equal(
        patches, einops.rearrange(images, "b c (y h) (x w) -> b (y x) (h w) c", h=4, w=4)
    )
    assert torch.equal(_from_patches(patches, torch.Size((3, 2)), 4, (12, 8)), images)


def test_partial_patches_are_completed_by_reflection_and_cut_again():
    images = numbered(2, 2, 11, 6)
    patches = _to_patches(images, 4)
    padded = torch.cat([images, images[:, :, 9:10]], 2)
    padded = torch.cat([padded, padded[..., 4:5], padded[..., 3:4]], 3)
    assert torch.equal(
        patches, einops.rearrange(padded, "b c (y h) (x w) -> b (y x) (h w) c", h=4, w=4)
    )
    assert torch.equal(_from_patches(patches, torch.Size((3, 2)), 4, (11, 6)), images)


cases = st.fixed_dictionaries(
    {
        "block": st.integers(1, 9),
        "extra": st.tuples(st.integers(0, 14), st.integers(0, 14)),
        "n": st.integers(2, 4),
        "channels": st.integers(1, 3),
        "seed": st.integers(0, 2**31),
    }
)


@pytest.mark.parametrize("how", [*FILLS, -1.5])
@given(case=cases)
@settings(max_examples=25, deadline=None)
def test_every_fill_on_any_size(how, case):
    block, n, channels = case["block"], case["n"], case["channels"]
    size = (block + case["extra"][0], block + case["extra"][1])
    images = numbered(n, channels, *size)
    original = images.clone()
    blocks = drawn(case["seed"], n, grid_shape(size, block))
    filled = fill(images, blocks, block, how, generator(case["seed"]))
    mask = to_pixels(blocks, block, size)

    assert torch.equal(images, original), "the input must not change"
    assert (filled.shape, filled.dtype) == (images.shape, images.dtype)
    where = mask.expand_as(images)
    assert torch.equal(filled[~where], images[~where])
    if how == -1.5:
        assert (filled[where] == -1.5).all()
        return
    if how == "gaussian_noise":
        assert (filled[where] != images[where]).all()
        return
    for channel in range(1, channels):  # a pixel moves with all its channels
        assert torch.equal(filled[:, channel], filled[:, 0] * (-1) ** channel)
    check_what_moved(how, filled[:, 0], images[:, 0], blocks, block)


def check_what_moved(how, new, old, blocks, block):
    """Compare the values (B, X, Y) of the first channel before and after a fill that moves pixels."""
    _n, *size = old.shape
    tiles = [
        (slice(y * block, (y + 1) * block), slice(x * block, (x + 1) * block))
        for y in range(blocks.shape[1])
        for x in range(blocks.shape[2])
    ]

    def hidden_tiles(images):
        """Per image, the content of its hidden blocks."""
        return [
            [
                tuple(image[tile].flatten().tolist())
                for tile, h in zip(tiles, hide, strict=False)
                if h
            ]
            for image, hide in zip(images, blocks.flatten(1).tolist(), strict=False)
        ]

    before, after = hidden_tiles(old), hidden_tiles(new)
    if how == "shuffle_pixels_patch":
        assert [[sorted(t) for t in image] for image in after] == [
            [sorted(t) for t in image] for image in before
        ]
    elif how == "shuffle_pixels_image":
        assert torch.equal(new.flatten(1).sort(1)[0], old.flatten(1).sort(1)[0])
    elif how == "shuffle_pixels_batch":
        assert torch.equal(new.flatten().sort()[0], old.flatten().sort()[0])
    elif how == "replace_patches":
        # The same place of another image: numbers differ by a multiple of an image's pixels.
        distance = (new - old)[to_pixels(blocks, block, tuple(size))[:, 0]]
        assert (distance != 0).all()
        assert (distance % (size[0] * size[1]) == 0).all()
    else:
        if how == "shuffle_patches_batch":
            before, after = (
                [functools.reduce(operator.iadd, before, [])],
                [functools.reduce(operator.iadd, after, [])],
            )
            new, old = new[None], old[None]
        if all(side % block == 0 for side in size):
            assert [sorted(image) for image in after] == [sorted(image) for image in before]
        for image in range(len(new)):
            assert set(new[image].unique().tolist()) <= set(old[image].unique().tolist())


def test_shuffled_blocks_keep_their_inside_even_beside_partial_ones():
    images = numbered(1, 1, 20, 20)  # 8 px blocks: four whole, five partial
    hidden = torch.ones(1, 3, 3, dtype=torch.bool)
    filled = fill(images, hidden, 8, "shuffle_patches_image", generator(2))[0, 0]
    for y in (0, 8):
        for x in (0, 8):
            step_right = filled[y : y + 8, x : x + 8].diff(dim=1).abs()
            step_down = filled[y : y + 8, x : x + 8].diff(dim=0).abs()
            assert (step_right == 1).all()  # neighbours stay neighbours, mirrored at the border
            assert (step_down == 20).all()


@pytest.mark.parametrize("how", [name for name in FILLS if name.startswith("shuffle")])
def test_shuffles_do_move_things_and_are_uniform(how):
    images = numbered(2, 1, 2, 2)
    block = 2 if how == "shuffle_pixels_patch" else 1
    hidden = torch.ones(2, *grid_shape((2, 2), block), dtype=torch.bool)
    g = generator(0)
    first = torch.stack([fill(images, hidden, block, how, g)[0, 0, 0, 0] for _ in range(600)])
    places = 8 if how.endswith("batch") else 4
    counts = torch.stack([(first == value).sum() for value in range(1, places + 1)])
    assert counts.sum() == 600
    expected = 600 / places
    assert (((counts - expected) ** 2) / expected).sum() < 25  # chi-square, at most 7 degrees


def test_replacements_come_from_every_other_image_equally_often():
    n = 5
    images = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1).expand(n, 1, 40, 40)
    hidden = torch.ones(n, 10, 10, dtype=torch.bool)
    g = generator(0)
    filled = torch.stack([fill(images, hidden, 4, "replace_patches", g) for _ in range(10)])
    for image in range(n):
        shares = [(filled[:, image] == other).float().mean().item() for other in range(n)]
        assert shares[image] == 0
        assert all(abs(shares[o] - 0.25) < 0.06 for o in range(n) if o != image)


def test_gaussian_noise_is_standard_normal_in_every_channel():
    images = torch.full((4, 2, 128, 128), 7.0)
    hidden = torch.ones(4, 8, 8, dtype=torch.bool)
    noise = fill(images, hidden, 16, "gaussian_noise", generator(0))
    assert noise.mean().abs() < 0.01
    assert (noise.var() - 1).abs() < 0.02
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.1)
    assert torch.corrcoef(noise.transpose(0, 1).flatten(1))[0, 1].abs() < 0.015


@pytest.mark.parametrize("how", FILLS)
def test_a_fill_is_decided_by_its_generator(how):
    images = numbered(3, 2, 18, 18)
    blocks = drawn(1, 3, (5, 5))
    a = fill(images, blocks, 4, how, generator(1))
    assert torch.equal(a, fill(images, blocks, 4, how, generator(1)))
    assert not torch.equal(a, fill(images, blocks, 4, how, generator(2)))


@pytest.mark.parametrize("how", FILLS)
def test_half_precision_stays_half(how):
    images = torch.randn(2, 1, 10, 10, generator=generator()).half()
    filled = fill(images, drawn(0, 2, (3, 3)), 4, how, generator())
    assert filled.dtype == torch.float16


def test_replacing_needs_two_images():
    hidden = torch.ones(1, 2, 2, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"`fill` \(=replace_patches\) must have at least 2 images"
    ):
        fill(torch.zeros(1, 1, 8, 8), hidden, 4, "replace_patches")


def test_an_unknown_fill_is_refused():
    hidden = torch.ones(1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`fill` \(=zebra\) must be a number or one of gaussian_"):
        fill(torch.zeros(1, 1, 8, 8), hidden, 4, "zebra")
