"""Draw what each method does to a slice: the slice, what the network sees, what it is asked for.

`python docs/draw_methods.py [CINE.nii.gz]` writes `docs/pictures/methods.png`; without a file it takes the phantom.
The pixels are those of the methods' own `draw` and `panels`.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from nnunet_ssp import methods
from nnunet_ssp.files.nifti import as_cine, read_nifti
from nnunet_ssp.phantom import make_subject

PICTURE = Path(__file__).parent / "pictures" / "methods.png"
PATCH = (128, 128)
SLICE, NEIGHBOUR, FAR = range(3)  # rows of the batch
SIDE, GAP, LEFT, RIGHT, TOP = 1.2, 0.06, 1.5, 2.1, 0.3  # inches
DPI = 100
GREYS = 48


class Shown(NamedTuple):
    """One row of the picture. An image is named by the title of the method's panel and the row of the batch."""

    method: str
    name: str
    seen: list[tuple[str, int]]
    asked: tuple[str, int]
    text: str


CORRUPTED, TARGET = ("input", SLICE), ("target", SLICE)
FIRST, SECOND = ("first view", SLICE), ("second view", SLICE)
LOCAL = [("local 1", SLICE), ("local 2", SLICE)]
UNLIKE, NEAR, DISTANT = ("first view", FAR), ("second view", NEIGHBOUR), ("second view", FAR)
SIMCLR = "similar features for both\nviews, unlike those of other\nslices, such as this one"
PCL = "similar features at nearly\nthe same height, unlike at\nother heights, such as here"
DINO = "from every crop, what the\nteacher says of a large one"
BYOL = "from one crop, the teacher's\nfeatures of another"
DENSE = "where it will move, and each\nof its points in another view"
ROWS = (
    Shown(
        "MIM",
        "Masked image\nmodelling",
        [CORRUPTED],
        TARGET,
        "the hidden blocks\nof an augmented view",
    ),
    Shown(
        "ContextPrediction", "Context\nprediction", [CORRUPTED], TARGET, "what was in the squares"
    ),
    Shown(
        "ContextRestoration",
        "Context\nrestoration",
        [CORRUPTED],
        TARGET,
        "the squares that changed\nplaces, put back",
    ),
    Shown("SimCLR", "SimCLR", [FIRST, SECOND], UNLIKE, SIMCLR),
    Shown("PCL", "Positional\ncontrastive\nlearning (PCL)", [FIRST, NEAR], DISTANT, PCL),
    Shown("DINO", "DINO", LOCAL, ("global, blurred", SLICE), DINO),
    Shown("BYOL", "BYOL", [FIRST], SECOND, BYOL),
    Shown("Dense", "Dense", [FIRST, SECOND], ("movement", SLICE), DENSE),
)


def three_slices(file: Path | None) -> NDArray[np.float32]:
    """Return three normalised slices of two frames (3, 2, rows, columns): a middle one, its neighbour, a far one.

    Args:
        file: 4D NIfTI file; None takes the phantom.
    """
    if file is None:
        cine: NDArray[Any] = make_subject(0, seed=3, matrix=160, frames=2).image
    else:
        cine = as_cine(read_nifti(file)[0])
    frames = cine[..., [0, cine.shape[-1] // 2]].astype(np.float32)
    frames = frames.transpose(2, 3, 1, 0)  # rows are y, as in nnU-Net
    frames = (frames - frames.mean((0, 2, 3), keepdims=True)) / frames.std((0, 2, 3), keepdims=True)
    n = len(frames)
    chosen: NDArray[np.float32] = frames[[n // 2, n // 2 + 1, n - 2 if n > 5 else 0]]
    return chosen


def panels(name: str, slices: NDArray[np.float32], seed: int) -> dict[str, Tensor]:
    """Return a method's own panels of these slices, by title.

    Args:
        name: Of the method's class.
        slices: (3, 2, rows, columns), see `three_slices`.
        seed: Of views and masks.
    """
    cls: type[methods.Method] = getattr(methods, name)
    torch.manual_seed(0)
    network = PlainConvUNet(
        1, 4, [4] * 4, nn.Conv2d, 3, [1, 2, 2, 2], 1, 1, [1] * 3, norm_op=nn.InstanceNorm2d
    )
    method = cls(network, cls.settings_class(), PATCH, 1).eval()
    images = torch.from_numpy(slices)[:, :, None]
    sizes = np.full((*slices.shape[:2], 2), slices.shape[2:], dtype=np.int64)
    if not method.second_frames:
        images, sizes = images[:, 0], sizes[:, 0]
    drawn = method.draw(np.random.default_rng(seed), sizes)
    positions = torch.tensor([[4, 10], [5, 10], [9, 10]])
    batch = methods.Batch(images, torch.from_numpy(sizes), drawn, positions)
    with torch.no_grad():
        found = method.panels(batch)
    assert found is not None
    return found


def draw(slices: NDArray[np.float32], seed: int) -> Image.Image:
    """Return the picture, one row per method.

    Args:
        slices: (3, 2, rows, columns), see `three_slices`.
        seed: Of views and masks.
    """
    width = LEFT + 4 * SIDE + 5 * GAP + 0.5 + RIGHT
    height = TOP + len(ROWS) * (SIDE + GAP)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    seen, asked = LEFT + SIDE + 4 * GAP, LEFT + 3 * SIDE + 9 * GAP

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, va="center", **style)

    def show(image: NDArray[np.float32], x: float, top: float) -> None:
        axis = figure.add_axes((x / width, 1 - (top + SIDE) / height, SIDE / width, SIDE / height))
        low, high = np.percentile(image, (0.5, 99.5))
        axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        axis.set_axis_off()

    bold: dict[str, Any] = {"weight": "bold", "size": 10}
    write(LEFT + SIDE / 2, TOP / 2, "a slice", ha="center", **bold)
    write(seen + SIDE + GAP / 2, TOP / 2, "what the network sees", ha="center", **bold)
    write(asked, TOP / 2, "what it is asked for", **bold)
    rows, columns = slices.shape[2:]
    y, x = (rows - PATCH[0]) // 2, (columns - PATCH[1]) // 2
    original = slices[SLICE, 0, max(y, 0) :, max(x, 0) :][: PATCH[0], : PATCH[1]]
    for number, row in enumerate(ROWS):
        top = TOP + number * (SIDE + GAP)
        found = panels(row.method, slices, seed)
        write(0.05, top + SIDE / 2, row.name, **bold)
        show(original, LEFT, top)
        first = seen if len(row.seen) > 1 else seen + (SIDE + GAP) / 2
        for column, (title, index) in enumerate(row.seen):
            show(found[title][index, 0].numpy(), first + column * (SIDE + GAP), top)
        title, index = row.asked
        show(found[title][index, 0].numpy(), asked, top)
        write(asked + SIDE + 2 * GAP, top + SIDE / 2, row.text, size=9.5)
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return Image.open(buffer).convert("L").quantize(GREYS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture.

    Args:
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cine", nargs="?", type=Path, help="4D NIfTI file; by default the phantom")
    parser.add_argument("--output", type=Path, default=PICTURE, help="by default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of views and masks")
    given = parser.parse_args(arguments)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(three_slices(given.cine), given.seed).save(given.output, optimize=True)


if __name__ == "__main__":
    main()
