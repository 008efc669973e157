"""Monitoring of a training: curves, reconstructions, and whether every part of the network learns."""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssp.files.atomic import atomic_write
from nnunet_ssp.methods.parts.depth import STANDING_STILL
from nnunet_ssp.network import parts
from nnunet_ssp.reporting.figures import count_along

MARKERS = "osD^vP*X"  # of the resolutions, from the finest
PANEL_INCHES = 3.0  # width of an image of `plot_images`


class StageChange:
    """Measure how far the weights of each stage have turned away from their initial values.

    The change of a stage is the sine of the angle between its convolution weights now and at the start. It is 0 when
    they have not moved or have only shrunk under weight decay, and 1 when nothing of the initial direction is left.
    The norm of the difference cannot distinguish decay from learning.

    Args:
        network: The planned network, before its first step; parts that are not trained are left out.
    """

    def __init__(self, network: nn.Module) -> None:
        named = network.named_parameters(remove_duplicate=False)
        weights = {k: p for k, p in named if p.ndim > 1 and p.requires_grad}
        self.weights = {part: [weights[k] for k in keys] for part, keys in parts(weights).items()}
        self.start = {
            part: [w.detach().cpu().clone() for w in group] for part, group in self.weights.items()
        }

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return the change of each stage in the order data flows: encoder 1 ... n, decoder n-1 ... 1."""
        change = {}
        for part, group in self.weights.items():
            now = torch.cat([w.detach().cpu().float().flatten() for w in group]).double()
            start = torch.cat([w.float().flatten() for w in self.start[part]]).double()
            turned = now - start * (now @ start) / (start @ start).clamp_min(1e-30)
            change[part] = float(turned.norm() / now.norm().clamp_min(1e-30))
        return change


def describe_change(change: Mapping[str, float]) -> str:
    """Return one line: `encoder 0.12 0.08 ... | decoder 0.05 ...`, first to last."""
    sides = {
        side: " ".join(f"{v:.3f}" for part, v in change.items() if part.startswith(side))
        for side in ("encoder", "decoder")
    }
    return " | ".join(f"{side} {values}" for side, values in sides.items() if values)


def write_curves(file: Path, logging: Mapping[str, Sequence[Any]]) -> None:
    """Write `monitor.csv`: one row per finished epoch, one column per curve; absent values and NaN stay empty.

    Each call rewrites the whole file, so a resumed run cannot leave rows of an abandoned one.
    """
    columns = [
        key for key, values in logging.items() if values and isinstance(values[0], int | float)
    ]
    n = max((len(logging[key]) for key in columns), default=0)
    with atomic_write(file) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["epoch", *columns])
        for epoch in range(n):
            row = [
                logging[key][epoch] if epoch < len(logging[key]) else math.nan for key in columns
            ]
            writer.writerow([epoch, *("" if math.isnan(value) else value for value in row)])


def learning_curve(
    dice: Sequence[float], losses: Sequence[float], steps_per_epoch: int
) -> dict[str, list[float]]:
    """Return how fast a fine-tuning learns, for `write_curves`.

    Args:
        dice: nnU-Net's mean pseudo Dice of each epoch.
        losses: Validation loss of each epoch.
        steps_per_epoch: Optimiser steps of an epoch.

    Returns:
        `step`, `pseudo_dice` and `val_loss`. For the last two also the area under the curve up to that step, divided
        by the steps, which is the mean so far. This is the measure of convergence of Kalapos and Gyires-Tóth
        (https://arxiv.org/abs/2209.00314); the last rows of runs of equal length compare. Epochs without a finite
        value are left out.
    """
    curve: dict[str, list[float]] = {
        "step": [steps_per_epoch * (epoch + 1) for epoch in range(len(dice))]
    }
    for name, values in (("pseudo_dice", dice), ("val_loss", losses)):
        known = np.isfinite(values)
        sums = np.cumsum(np.where(known, values, 0.0))
        counts = np.cumsum(known)
        area = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
        curve[name] = [float(value) for value in values]
        curve[f"{name}_area"] = area.tolist()
    return curve


@dataclass(frozen=True)
class Panel:
    """One panel of `plot_progress`.

    Attributes:
        label: Label of the vertical axis.
        curves: Label of each key to draw.
        reference: Value and label of a horizontal line.
        styles: Style of each curve, as arguments of matplotlib's `plot`.
        threshold: Share of the largest of the curves at which a dotted line is drawn, and its label.
        marks: Rank of the first curve's value among the snapshots, by epoch.
    """

    label: str
    curves: Mapping[str, str]
    reference: tuple[float, str] | None = None
    styles: Sequence[Mapping[str, Any]] = ()
    threshold: tuple[float, str] | None = None
    marks: Mapping[int, str] = field(default_factory=dict)


def stage_panel(stages: Sequence[str]) -> Panel:
    """Return the panel of `StageChange`: a colour and a marker per resolution, the decoder dashed."""
    from matplotlib import colormaps

    levels = [int(stage.split()[1]) if stage.split()[-1].isdigit() else 0 for stage in stages]
    deepest = max(*levels, 1)
    styles = [
        {
            "color": colormaps["viridis_r"](0.1 + 0.9 * level / deepest),
            "linestyle": "-" if stage.startswith("encoder") else "--",
            "marker": MARKERS[level % len(MARKERS)],
            "markersize": 4,
            "markevery": 0.1,
        }
        for stage, level in zip(stages, levels, strict=True)
    ]
    curves = {f"change {stage}": stage for stage in stages}
    warned = (STANDING_STILL, "warning if the deep half\nlies below (median)")
    return Panel("change since initialisation", curves, styles=styles, threshold=warned)


def plot_progress(
    file: Path, logging: Mapping[str, Sequence[Any]], panels: Sequence[Panel], title: str
) -> None:
    """Draw curves over epochs, one panel below the other; many panels take two columns.

    Args:
        file: The picture to write.
        logging: Values per epoch by key.
        panels: What to draw.
        title: Title of the picture.
    """
    from matplotlib.figure import Figure

    # What a method leaves out, as movement alone does points, is NaN in every epoch.
    shown = [p for p in panels if any(map(math.isfinite, _values(p, logging)))]
    columns = 1 if len(shown) <= 5 else 2
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(10 * columns, 0.4 + 3.2 * rows), layout="constrained")
    figure.suptitle(title)
    grid = np.atleast_1d(figure.subplots(rows, columns, sharex=True)).ravel()
    axes = grid[: len(shown)]
    for unused in grid[len(shown) :]:
        unused.remove()
    for axis, panel in zip(axes, shown, strict=True):
        _draw_panel(axis, panel, logging)
    epochs = max(
        (len(logging[key]) for p in shown for key in p.curves if logging.get(key)), default=0
    )
    for axis in axes:
        count_along(axis, 1, epochs)
    for axis in axes[-columns:]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("epochs finished (1: the log's Epoch 0)")
    with atomic_write(file) as temporary:
        figure.savefig(temporary, dpi=110)


def _values(panel: Panel, logging: Mapping[str, Sequence[Any]]) -> Iterator[float]:
    return chain.from_iterable(logging.get(key) or () for key in panel.curves)


def _draw_panel(axis: Any, panel: Panel, logging: Mapping[str, Sequence[Any]]) -> None:
    for position, (key, label) in enumerate(panel.curves.items()):
        points = [(i, v) for i, v in enumerate(logging.get(key) or [], 1) if math.isfinite(v)]
        style = {"marker": "o" if len(points) < 3 else None}
        style |= panel.styles[position] if panel.styles else {}
        if len(points) < 3:
            style.pop("markevery", None)  # matplotlib draws no marker of a curve without length
        epochs, values = zip(*points, strict=True) if points else ((), ())
        axis.plot(epochs, values, label=label, **style)
    if panel.marks:
        first = logging[next(iter(panel.curves))]
        heights = [first[epoch - 1] for epoch in panel.marks]
        axis.plot(list(panel.marks), heights, "k^", markersize=5, label="snapshot, by rank")
        for (epoch, rank), height in zip(panel.marks.items(), heights, strict=True):
            place = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axis.annotate(rank, (epoch, height), fontsize=7, **place)
    if panel.reference is not None:
        axis.axhline(panel.reference[0], color="grey", linestyle=":", label=panel.reference[1])
    if panel.threshold is not None:
        share, label = panel.threshold
        every = [logging.get(key) or [] for key in panel.curves]
        largest = [max(values) for values in zip(*every, strict=False)]
        axis.plot(
            range(1, len(largest) + 1),
            [share * v for v in largest],
            color="black",
            linestyle=":",
            zorder=5,  # curves of stages may lie on it
            label=label,
        )
    axis.set_ylabel(panel.label)
    # Beside the plot, where it hides no curve.
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.grid(alpha=0.3)


def plot_images(
    file: Path, columns: Mapping[str, Tensor], title: str, caption: str = "", own_scale: str = ""
) -> None:
    """Draw the first channel of images as a table: one row per slice, one column per kind.

    Args:
        file: The picture to write.
        columns: (B, C, X, Y) by title; `target`, else the first column, sets the grey scale of each row.
        title: Title of the picture.
        caption: Words below it.
        own_scale: Column that sets the grey scale of itself and of those behind it.
    """
    from matplotlib.figure import Figure

    images = {name: x[:, 0].float().cpu().numpy() for name, x in columns.items()}
    n = len(next(iter(images.values())))
    height, width = next(iter(images.values())).shape[1:]
    letters = 24 * len(images)  # of a line of the title
    lines = textwrap.wrap(caption, 3 * letters // 2)
    size = 0.6 + PANEL_INCHES * n * height / width + 0.2 * len(lines)
    figure = Figure(figsize=(PANEL_INCHES * len(images), size), layout="constrained")
    axes = np.atleast_2d(figure.subplots(n, len(images)))
    if axes.shape != (n, len(images)):
        axes = axes.reshape(n, len(images))
    scale = images.get("target", next(iter(images.values())))
    for column, (name, stack) in enumerate(images.items()):
        scale = stack if name == own_scale else scale
        for row in range(n):
            low, high = np.percentile(scale[row], (0.5, 99.5))
            axis = axes[row, column]
            axis.imshow(stack[row], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=11)
    figure.suptitle(textwrap.fill(title, letters), fontsize=11)
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=8)
    with atomic_write(file) as temporary:
        figure.savefig(temporary, dpi=80)
