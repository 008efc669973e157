"""Pages of a run and of each subject: doubts first, then curves, contours and a player."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.files.grids import Array
from nnunet_ssp.predict.flags import FLAGS, rule_of
from nnunet_ssp.predict.inputs import InputCine
from nnunet_ssp.predict.results import ENDINGS, REPORT, in_short
from nnunet_ssp.reporting.figures import (
    COLOUR_WORDS,
    LETTERS_PER_INCH,
    OVERLAY_WIDTH,
    STRUCTURE_COLOURS,
    count_along,
    legend,
)
from nnunet_ssp.reporting.names import wrapped
from nnunet_ssp.reporting.page import Link, Page
from nnunet_ssp.reporting.player import Sprites

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTICE = (
    "For research, no medical device: look at the masks before you use a number. This page identifies patients where "
    "the names of the input do."
)
MARGIN = 0.5  # of the heart's size, around it
SUBJECTS_TO_COMPARE = 3  # for a median of their disagreements
SHARP = 3  # pixels of the page for one of the image
MS = 40.0  # from frame to frame, where the header does not tell
PAINT = STRUCTURE_COLOURS
PAINT_IN_WORDS = ", ".join(map(" ".join, zip(PAINT, COLOUR_WORDS, strict=False)))


# -- a run -----------------------------------------------------------------------------------------


def run_page(records: Mapping[str, Mapping[str, Any]], refused: Mapping[str, str]) -> Page:
    """Make the page of a run, the most doubtful subjects first.

    Args:
        records: The records of the subjects.
        refused: Those without a result, with the reason.
    """
    page = Page("New cines: volumes and doubts", NOTICE)
    if refused:
        page.heading("Refused")
        page.table(["Subject", "Reason"], list(refused.items()))
    page.heading("Subjects")
    page.paragraph(
        f"The most flags first, then the largest disagreement. {_about_doubt(records)}".strip()
    )
    # Flags second, so that a phone shows them without scrolling
    columns = [
        "Subject",
        "Flags",
        "EDV ml",
        "ESV ml",
        "EF %",
        "Mass g",
        "RV EF %",
        "Disagreement %",
    ]
    names = ("lv_edv_ml", "lv_esv_ml", "lv_ef_percent", "lv_mass_g", "rv_ef_percent")
    rows = [
        [
            Link(subject, f"{subject}{ENDINGS['page']}"),
            ", ".join(record["flags"]) or "none",
            *(_number(record["subject"].get(name)) for name in names),
            _number(record["subject"].get("disagreement_percent")),
        ]
        for subject, record in sorted(records.items(), key=_doubt)
    ]
    page.table(columns, rows, digits=1, collapse_above=10_000)
    raised = {name for record in records.values() for name in record["flags"]}
    if raised:
        page.heading("Flags")
        known = [flag.name for flag in FLAGS if flag.name in raised]
        shown = [*known, *sorted(raised.difference(known))]  # also those of an earlier version
        page.table(["Flag", "Raised by"], [[name, rule_of(name)] for name in shown])
    return page


def _about_doubt(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Explain the column of disagreements, and say what is high among these."""
    found = [record["subject"].get("disagreement_percent") for record in records.values()]
    known = sorted(value for value in found if value is not None)
    if not records:
        return ""
    if not known:
        return "Disagreement is empty for one fold without mirroring, and where nothing is called heart."
    words = (
        "Disagreement: of the voxels that are called heart, the part on which the folds, or the mirrored copies of the "
        "image, differ. 0 % is none. What is high depends on model and images, and no limit was measured"
    )
    if len(known) < SUBJECTS_TO_COMPARE:
        return f"{words}: compare with subjects whose masks you have looked at."
    return f"{words}: the median here is {np.median(known):.1f} %, so look at those far above it."


def _doubt(item: tuple[str, Mapping[str, Any]]) -> tuple[int, float, str]:
    subject, record = item
    return -len(record["flags"]), -(record["subject"].get("disagreement_percent") or 0.0), subject


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


# -- a subject -------------------------------------------------------------------------------------


def subject_page(
    subject: str, record: Mapping[str, Any], study: InputCine, mask: Array, labels: Labels
) -> Page:
    """Make the page of a subject.

    Args:
        subject: Its name.
        record: Its record.
        study: The images.
        mask: (X, Y, Z, T), label values.
        labels: Meaning of the values.
    """
    page = Page(subject, NOTICE)
    page.paragraph(Link("All subjects", REPORT))
    metrics, flags = record["subject"], record["flags"]
    if flags:
        page.heading("Doubts")
        # One cell, which fits a phone; it begins with a word, or the page would take it for a number
        rows = [[n, f"Here {found}. Raised by: {rule_of(n)}"] for n, found in flags.items()]
        page.table(["Flag", "Found, and the rule"], rows)
    page.heading("Volumes")
    page.paragraph(f"{in_short(metrics)}.")
    phases = _phases(record)
    page.plot(
        lambda figure: _draw_curves(figure, f"{subject}: volumes", record["frames"], phases),
        alt="Volumes of LV, myocardium and RV by frame, with ED and ES",
        size=(OVERLAY_WIDTH, 2.8),
    )
    shown = [[name, value] for name, value in metrics.items() if value is not None]
    page.table(["Metric", "Value"], shown, digits=1, collapse_above=5, caption="All metrics")
    window = _window(mask)
    page.heading("Cine")
    page.paragraph(f"Contours: {PAINT_IN_WORDS}. Slices count from 1.")
    page.player(_sprites(study, mask, labels, window, phases))
    for frame, phase in phases.items():
        page.heading(f"All slices at {phase}, frame {frame}")
        sheet = _contact_sheet(study, mask, frame, labels, window)
        page.sheet(sheet, f"With contours at {phase}")
    for note in record["notes"]:
        page.remark(f"{note}.")
    return page


def _phases(record: Mapping[str, Any]) -> dict[int, str]:
    keys = {"ED": "ed_frame", "ES": "es_frame"}
    found = {phase: record["subject"].get(key) for phase, key in keys.items()}
    return {frame: phase for phase, frame in found.items() if frame is not None}


def _draw_curves(
    figure: Figure, title: str, frames: Mapping[str, Sequence[float]], phases: Mapping[int, str]
) -> None:
    axes = figure.subplots()
    # Above the names of the phases, which stand at the axes' upper edge
    figure.suptitle(wrapped(title, int(LETTERS_PER_INCH * figure.get_figwidth())))
    for structure, colour in PAINT.items():
        if (curve := frames.get(f"{structure.lower()}_ml")) is not None:
            axes.plot(curve, color=colour, label=structure, marker=".")
    for frame, phase in phases.items():
        axes.axvline(frame, color="grey", linestyle=":")
        axes.annotate(phase, (frame, 1), xycoords=("data", "axes fraction"), va="bottom")
    axes.set(xlabel="frame", ylabel="volume (ml)", ylim=(0, None))
    count_along(axes, 0, max(map(len, frames.values())) - 1)
    legend(figure, axes.get_legend_handles_labels()[0])


def _window(mask: Array) -> tuple[slice, slice]:
    """Return the columns and rows around the heart in all frames; all of them without a heart."""
    around = []
    for axis in (0, 1):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(4) if a != axis)))
        if not found.size:
            return slice(None), slice(None)
        margin = int(MARGIN * (found[-1] - found[0] + 1) / 2) + 4
        around.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
    return around[0], around[1]


def _grey(voxels: Array) -> Array:
    low, high = np.percentile(voxels, (1, 99.5))
    return (np.clip((voxels - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)


def _contours(mask: Array, labels: Labels) -> Array:
    """Draw the borders of the structures of a slice (X, Y): numbers of `_inks`, 0 elsewhere."""
    drawn = np.zeros(mask.shape, np.uint8)
    for structure, name in labels.structures.items():
        inside = np.pad(np.isin(mask, labels.classes[name]), 1)
        inner = inside[2:, 1:-1] & inside[:-2, 1:-1] & inside[1:-1, 2:] & inside[1:-1, :-2]
        border = inside[1:-1, 1:-1] & ~inner
        drawn[border] = 1 + [*PAINT].index(structure)
    return drawn


def _inks() -> Array:
    """Return the colours of contours, RGBA: transparent, then those of `PAINT`."""
    from matplotlib.colors import to_rgba

    inks = [(0, 0, 0, 0), *map(to_rgba, PAINT.values())]
    return np.round(255 * np.array(inks)).astype(np.uint8)


def _sprites(
    study: InputCine,
    mask: Array,
    labels: Labels,
    window: tuple[slice, slice],
    phases: Mapping[int, str],
) -> Sprites:
    images, masks = _grey(study.voxels[window]), mask[window]
    columns, rows, n_slices, n_frames = images.shape
    grey = images.transpose(2, 1, 3, 0).reshape(n_slices * rows, n_frames * columns)
    drawn = np.zeros(grey.shape, np.uint8)
    for z, t in np.ndindex(n_slices, n_frames):
        tile = np.s_[z * rows : (z + 1) * rows, t * columns : (t + 1) * columns]
        drawn[tile] = _contours(masks[:, :, z, t], labels).T
    stretch = study.spacing[1] / study.spacing[0]
    return Sprites(
        images=_png(grey),
        contours=_png(drawn, _inks()),
        n_frames=n_frames,
        n_slices=n_slices,
        tile=(columns, rows),
        shown=(SHARP * columns, max(1, round(SHARP * rows * stretch))),
        frame=next(iter(phases), 0),
        slice=n_slices // 2,
        frame_time=1000 * study.frame_time if study.frame_time else MS,
        labels=dict(phases),
        alt="One slice of the cine with contours",
    )


def _contact_sheet(
    study: InputCine, mask: Array, frame: int, labels: Labels, window: tuple[slice, slice]
) -> list[tuple[bytes, str]]:
    """Draw each slice of a frame with contours, with its number; pixels are as high as they are wide in mm."""
    images, masks = _grey(study.voxels[..., frame][window]), mask[..., frame][window]
    stretch = study.spacing[1] / study.spacing[0]
    inks, found = _inks(), []
    for z in range(images.shape[2]):
        tile = np.repeat(images[:, :, z, None], 3, axis=2)
        lines = _contours(masks[:, :, z], labels)
        tile[lines > 0] = inks[lines[lines > 0], :3]
        tile = np.repeat(tile.transpose(1, 0, 2), 2, axis=1)
        n_rows = max(1, round(2 * tile.shape[0] * stretch))
        rows = (np.arange(n_rows) + 0.5) * tile.shape[0] / n_rows
        found.append((_png(tile[rows.astype(int)]), f"slice {z + 1}"))
    return found


def _png(pixels: Array, inks: Array | None = None) -> bytes:
    """Return a PNG of grey values or RGBA, or of the numbers of inks."""
    from PIL import Image

    image, buffer = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    options: dict[str, Any] = {}
    if inks is not None:
        image.putpalette(inks[:, :3].tobytes())
        options["transparency"] = inks[:, 3].tobytes()
    image.save(buffer, format="PNG", optimize=False, **options)
    return buffer.getvalue()
