"""Generated natural images: coloured blobs and stripes of any size, for tests that pretrain on pictures first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_ssp.cli import main
from nnunet_ssp.files.grids import Array


def picture(seed: int, rows: int = 48, columns: int = 64) -> Array:
    """An image (rows, columns, 3) of uint8; each seed gives another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns] / max(rows, columns)
    image = np.zeros((rows, columns, 3))
    for _ in range(6):
        (cy, cx), size, colour = rng.random(2), rng.uniform(0.05, 0.3), rng.uniform(0, 255, 3)
        image += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / size**2)[..., None] * colour
    image += 20 * np.sin(40 * (x + y * rng.uniform(-1, 1)))[..., None]
    return image.clip(0, 255).astype(np.uint8)


def write_tree(folder: Path, number: int, rows: int = 48, columns: int = 64) -> Path:
    """Write images as PNG, JPEG and TIFF in turn, into the folders of two classes."""
    for n in range(number):
        file = folder / f"class{n % 2}" / f"image {n}{('.png', '.JPEG', '.tif')[n % 3]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(n, rows, columns + n % 3)).save(file)
    return folder


def prepare_cine_and_images(base: Path, source: Path, plans: str) -> None:
    """Convert and prepare cine (114) for a narrow network, and nine natural images (150) under its plans.

    Args:
        base: Folder for the images' files; nnU-Net's folders are set.
        source: Cine in the layout of M&Ms.
        plans: Name of the plans.
    """
    sizes = ["--patch", "32", "32", "--width", "0.125", "--batch", "2"]
    for words in (
        ["convert", "mnms", "-i", str(source), "-d", "114"],
        ["prepare", "114", *sizes, "-overwrite_plans_name", plans],
        ["convert", "images", "-i", str(write_tree(base / "pictures", 9)), "-d", "150"],
        ["prepare", "150", "--plans-from", "114", "-p", plans],
    ):
        assert main(words) == 0, words
