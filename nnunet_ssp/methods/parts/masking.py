"""Block masks and what is put in place of the hidden pixels.

Masks are bool, True = hidden. Drawing (`draw_block_masks`) and applying (`fill`) are apart. What was drawn is a small
array on the host, the same on every device and for every split of the batch.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

FillName = Literal[
    "gaussian_noise",
    "shuffle_pixels_patch",
    "shuffle_pixels_image",
    "shuffle_pixels_batch",
    "shuffle_patches_image",
    "shuffle_patches_batch",
    "replace_patches",
]


def auto_block(patch_size: tuple[int, int]) -> int:
    """Return the side of a mask block in pixels: an eighth of the planned patch's short side.

    It is rounded to a multiple of 4 and at least 8. The paper's 32 px belong to its 256 px images (de Mooij et al.).

    >>> auto_block((256, 256)), auto_block((320, 192)), auto_block((48, 48))
    (32, 24, 8)
    """
    return max(8, 4 * round(min(patch_size) / 8 / 4))


def grid_shape(patch_size: tuple[int, int], block: int) -> tuple[int, int]:
    """Count the blocks along each side; the last ones are partial where `block` does not divide the side.

    >>> grid_shape((256, 250), 32)
    (8, 8)
    """
    return math.ceil(patch_size[0] / block), math.ceil(patch_size[1] / block)


def draw_block_masks(
    rng: np.random.Generator,
    n: int,
    grid: tuple[int, int],
    ratio: float,
    independent: bool = False,
) -> NDArray[np.bool_]:
    """Draw which blocks of each image are hidden.

    Args:
        rng: Source of randomness.
        n: Number of images.
        grid: Blocks along (rows, columns).
        ratio: Hidden share, in (0, 1).
        independent: False hides exactly `round(ratio * blocks)` blocks of each image, as in the paper. True hides each
            block on its own with probability `ratio`.

    Returns:
        (n, rows, columns), True = hidden.

    Raises:
        ValueError: The ratio hides no block, or all of them.

    >>> masks = draw_block_masks(np.random.default_rng(0), n=5, grid=(8, 8), ratio=0.75)
    >>> masks.sum((1, 2)).tolist()
    [48, 48, 48, 48, 48]
    """
    blocks = grid[0] * grid[1]
    score = rng.random((n, blocks))
    if independent:
        hidden = score < ratio
    else:
        count = round(ratio * blocks)
        if not 0 < count < blocks:
            raise ValueError(
                f"`mask_ratio` (={ratio}) must hide at least one and not all of the {blocks} blocks of an image; "
                f"it hides {count}."
            )
        rank = score.argsort(axis=1).argsort(axis=1)
        hidden = rank < count
    return hidden.reshape(n, *grid)


def to_pixels(blocks: Tensor, block: int, size: tuple[int, int]) -> Tensor:
    """Turn a block mask (B, rows, columns) into a pixel mask (B, 1, X, Y); blocks are cut off at the border.

    >>> to_pixels(torch.tensor([[[True, False]]]), 2, (2, 3)).int().tolist()
    [[[[1, 1, 0], [1, 1, 0]]]]
    """
    pixels = blocks.repeat_interleave(block, 1).repeat_interleave(block, 2)
    return pixels[:, None, : size[0], : size[1]]


def fill(
    images: Tensor,
    blocks: Tensor,
    block: int,
    how: float | FillName,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Replace the pixels of the hidden blocks; all others stay untouched.

    The fills are those of de Mooij et al.'s code, for any number of channels: a pixel moves with all its channels.
    Partial blocks at the border are completed by reflection when whole blocks move.

    * a number: that value (the paper's is 0, the mean after normalisation);
    * `gaussian_noise`: independent standard normal values;
    * `shuffle_pixels_{patch,image,batch}`: hidden pixels change places within each block, image, or the batch;
    * `shuffle_patches_{image,batch}`: hidden blocks change places within each image, or the batch;
    * `replace_patches`: each hidden block becomes the block at the same place of another image in the batch.

    Permutations are uniform, so an entry may stay where it was.

    Args:
        images: (B, C, X, Y).
        blocks: (B, rows, columns), True = hidden, with the rows and columns of `grid_shape`.
        block: Side of a block in pixels.
        how: A number or one of the names above.
        generator: Source of randomness on the device of the images.

    Returns:
        (B, C, X, Y), a new tensor.

    Raises:
        ValueError: An unknown name, or `replace_patches` with one image.

    >>> fill(torch.ones(1, 1, 2, 4), torch.tensor([[[True, False]]]), 2, 0.0).tolist()
    [[[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]]]
    """
    size = (images.shape[2], images.shape[3])
    mask = to_pixels(blocks, block, size)
    if isinstance(how, (int, float)):
        return images.masked_fill(mask, how)
    if how == "gaussian_noise":
        noise = torch.empty_like(images).normal_(generator=generator)
        return torch.where(mask, noise, images)
    if how == "replace_patches" and len(images) < 2:
        raise ValueError(
            f"`fill` (=replace_patches) must have at least 2 images in a batch, not {len(images)}."
        )

    if how in ("shuffle_pixels_image", "shuffle_pixels_batch"):
        return _shuffle_pixels(images, mask, how == "shuffle_pixels_batch", generator)

    patches = _to_patches(images, block)  # (B, blocks, block * block, C)
    hidden = blocks.flatten(1)  # (B, blocks)
    if how == "shuffle_pixels_patch":
        inside = _to_patches(torch.ones_like(images[:, :1]), block, mode="constant").bool()[..., 0]
        movable = hidden[..., None] & inside
        moved = _shuffle(patches.flatten(0, 1), movable.flatten(0, 1), generator).reshape(
            patches.shape
        )
    elif how == "shuffle_patches_image":
        moved = _shuffle(patches.flatten(2), hidden, generator).reshape(patches.shape)
    elif how == "shuffle_patches_batch":
        flat = patches.flatten(2).flatten(0, 1)[None]
        moved = _shuffle(flat, hidden.flatten()[None], generator).reshape(patches.shape)
    elif how == "replace_patches":
        n = len(images)
        step = torch.randint(1, n, hidden.shape, generator=generator, device=images.device)
        other = (
            torch.arange(n, device=images.device)[:, None] + step
        ) % n  # never the image itself
        source = patches[other, torch.arange(hidden.shape[1], device=images.device)]
        moved = torch.where(hidden[..., None, None], source, patches)
    else:
        raise ValueError(
            f"`fill` (={how}) must be a number or one of {', '.join(get_args(FillName))}."
        )
    return torch.where(mask, _from_patches(moved, blocks.shape[1:], block, size), images)


def _shuffle_pixels(
    images: Tensor, mask: Tensor, over_batch: bool, generator: torch.Generator | None
) -> Tensor:
    """Permute the hidden pixels (B, 1, X, Y) within each image, or over the batch."""
    pixels, hidden = images.flatten(2).transpose(1, 2), mask.flatten(1)  # (B, XY, C), (B, XY)
    if over_batch:
        pixels, hidden = pixels.flatten(0, 1)[None], hidden.flatten()[None]
    shuffled = _shuffle(pixels, hidden, generator).reshape(len(images), -1, images.shape[1])
    return shuffled.transpose(1, 2).reshape(images.shape)


def _shuffle(entries: Tensor, movable: Tensor, generator: torch.Generator | None) -> Tensor:
    """Permute the movable entries within each group: (G, N, D), (G, N) -> (G, N, D).

    Movable entries sort by a random key, the others by a common larger one; with stable sorts the latter land where
    they were, so groups with different numbers of movable entries need no loop.
    """
    key = torch.rand(movable.shape, generator=generator, device=entries.device)
    source = torch.where(movable, key, 2.0).argsort(dim=1, stable=True)
    target = (~movable).to(torch.uint8).argsort(dim=1, stable=True)
    taken = entries.gather(1, source[..., None].expand_as(entries))
    return torch.empty_like(entries).scatter(1, target[..., None].expand_as(entries), taken)


def _to_patches(images: Tensor, block: int, mode: str = "reflect") -> Tensor:
    """Cut (B, C, X, Y) into (B, blocks, block * block, C); partial blocks are completed by reflection or zeros."""
    rows, columns = grid_shape((images.shape[2], images.shape[3]), block)
    below, right = rows * block - images.shape[2], columns * block - images.shape[3]
    if below or right:
        images = F.pad(images, (0, right, 0, below), mode=mode)
    b, c = images.shape[:2]
    tiles = images.reshape(b, c, rows, block, columns, block).permute(0, 2, 4, 3, 5, 1)
    return tiles.reshape(b, rows * columns, block * block, c)


def _from_patches(patches: Tensor, grid: torch.Size, block: int, size: tuple[int, int]) -> Tensor:
    """Undo `_to_patches`, and cut to `size`."""
    b, c = patches.shape[0], patches.shape[-1]
    tiles = patches.reshape(b, grid[0], grid[1], block, block, c).permute(0, 5, 1, 3, 2, 4)
    return tiles.reshape(b, c, grid[0] * block, grid[1] * block)[:, :, : size[0], : size[1]]
