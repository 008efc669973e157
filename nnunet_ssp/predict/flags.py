"""Doubts about a segmented cine, each with a rule in words.

A flag asks a person to look; it does not say that the segmentation is wrong. The thresholds are chosen so that at most
one in ten true masks of real data raises a flag, and none of the phantom does (`docs/predict.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnunet_ssp.evaluation.volumes import LARGEST
from nnunet_ssp.files.grids import Array
from nnunet_ssp.predict.curves import minima, smooth

PIECE = 0.15  # of a class's volume; smaller pieces are specks
OPEN = 0.4  # of the LV's border
JUMP = 0.25  # of EDV, between neighbours of 20 or more
FRAMES = 20  # with fewer frames each lasts longer, and a volume may change more
DIP = 0.1  # of EDV
EF = (5.0, 85.0)  # %
APART = 0.6  # of the larger stroke volume
WIDER = 0.2  # of the area in the next slice
PIXEL, GAP = (0.4, 4.0), (3.0, 20.0)  # mm


@dataclass(frozen=True)
class Measured:
    """A segmented cine with its metrics."""

    # By structure, (X, Y, Z, T), bool; a structure without a class is not there
    masks: Mapping[str, Array]
    # By structure, (T,), ml
    volumes: Mapping[str, Array]
    # Frames from 0; ES is None where there is only one frame
    ed: int
    es: int | None
    # %; None where there is none
    ef: float | None
    # By ventricle, ml
    strokes: Mapping[str, float]
    # mm, in the order of X, Y, Z
    spacing: Sequence[float]
    # Whether the header tells it
    spacing_known: bool = True

    @cached_property
    def phases(self) -> dict[str, int]:
        """The frames by phase."""
        return {"ED": self.ed} | ({} if self.es is None else {"ES": self.es})

    def at_phases(self, structure: str) -> Iterator[tuple[str, Array]]:
        """Yield the phases and the masks (X, Y, Z) of a structure."""
        for phase, frame in self.phases.items():
            yield phase, self.masks[structure][..., frame]


@dataclass(frozen=True)
class Flag:
    """A doubt and its rule."""

    name: str
    # In words, what raises it
    rule: str
    # Structures that it needs; without a class for one it is off
    needs: tuple[str, ...]
    # Return what was found; empty where there is no doubt
    test: Callable[[Measured], str]


def raised(measured: Measured) -> dict[str, str]:
    """Return the flags that a cine raises, each with what was found."""
    tested = {
        flag.name: flag.test(measured)
        for flag in FLAGS
        if all(structure in measured.masks for structure in flag.needs)
    }
    return {name: detail for name, detail in tested.items() if detail}


def _no_lv(measured: Measured) -> str:
    n_slices = measured.masks["LV"].shape[2]
    first, last = n_slices // 3, n_slices - n_slices // 3
    empty = [p for p, lv in measured.at_phases("LV") if not lv[:, :, first:last].any()]
    return f"at {' and '.join(empty)}" if empty else ""


def _hole(measured: Measured) -> str:
    for phase, lv in measured.at_phases("LV"):
        filled = np.flatnonzero(lv.any(axis=(0, 1)))
        gaps = np.flatnonzero(np.diff(filled) > 1)
        if gaps.size:
            return f"slice {filled[gaps[0]] + 2} at {phase}"
    return ""


def _pieces(measured: Measured) -> str:
    from scipy.ndimage import label

    for structure in measured.masks:
        for phase, mask in measured.at_phases(structure):
            labelled, n_pieces = label(mask, np.ones((3, 3, 3)))
            if n_pieces > 1:
                sizes = np.sort(np.bincount(labelled.ravel())[1:])
                if sizes[-2] > PIECE * sizes.sum():
                    return f"{structure} at {phase}, the second of {100 * sizes[-2] / sizes.sum():.0f} %"
    return ""


def _open_ring(measured: Measured) -> str:
    for phase, frame in measured.phases.items():
        lv, myo = (measured.masks[name][..., frame] for name in ("LV", "MYO"))
        border = touching = 0
        for axis in (0, 1):
            for step in (-1, 1):
                beside = lv & ~np.roll(lv, step, axis)
                border += int(beside.sum())
                touching += int((beside & np.roll(myo, step, axis)).sum())
        if border and border - touching > OPEN * border:
            return f"{100 * (border - touching) / border:.0f} % at {phase}"
    return ""


def _jump(measured: Measured) -> str:
    curve = measured.volumes["LV"]
    if len(curve) < 3:
        return ""
    allowed = JUMP * max(1.0, FRAMES / len(curve)) * curve[measured.ed]
    steps = np.abs(np.roll(curve, -1) - curve)
    frame = int(steps.argmax())
    if steps[frame] <= allowed:
        return ""
    return f"{steps[frame]:.0f} ml between frames {frame} and {(frame + 1) % len(curve)}"


def _two_minima(measured: Measured) -> str:
    curve = measured.volumes["LV"]
    found = minima(smooth(curve), DIP * curve[measured.ed]) if len(curve) > 3 else []
    return f"frames {', '.join(map(str, found))}" if len(found) > 1 else ""


def _volume(measured: Measured) -> str:
    found = [
        f"{structure} of {curve[frame]:.0f} ml at {phase}"
        for structure, curve in measured.volumes.items()
        for phase, frame in measured.phases.items()
        if curve[frame] > LARGEST
    ]
    return ", ".join(found)


def _ef(measured: Measured) -> str:
    if measured.ef is None or EF[0] <= measured.ef <= EF[1]:
        return ""
    return f"{measured.ef:.0f} %"


def _edge(measured: Measured) -> str:
    last = len(measured.volumes["LV"]) - 1
    return f"frame {measured.es}" if last > 2 and measured.es in (0, last) else ""


def _strokes(measured: Measured) -> str:
    if len(measured.strokes) < 2:
        return ""
    lv, rv = measured.strokes["LV"], measured.strokes["RV"]
    return f"{round(lv)} and {round(rv)} ml" if abs(lv - rv) > APART * max(abs(lv), abs(rv)) else ""


def _cover(measured: Measured) -> str:
    area = measured.masks["LV"][..., measured.ed].sum(axis=(0, 1))
    if len(area) < 3:
        return ""
    ends = {1: (area[0], area[1]), len(area): (area[-1], area[-2])}
    cut = [str(n) for n, (end, beside) in ends.items() if end > (1 + WIDER) * beside]
    return f"slice {' and '.join(cut)}" if cut else ""


def _spacing(measured: Measured) -> str:
    if not measured.spacing_known:
        return "not in the header"
    *pixel, gap = measured.spacing
    plausible = all(PIXEL[0] <= edge <= PIXEL[1] for edge in pixel) and GAP[0] <= gap <= GAP[1]
    return "" if plausible else " x ".join(f"{edge:.3g}" for edge in measured.spacing) + " mm"


FLAGS = (
    Flag("no LV", "no LV in the middle third of the stack at ED or ES", ("LV",), _no_lv),
    Flag("hole", "a slice without LV between two that have it, at ED or ES", ("LV",), _hole),
    Flag(
        "pieces",
        f"a class in several pieces at ED or ES, the second of more than {100 * PIECE:.0f} % of its volume",
        (),
        _pieces,
    ),
    Flag(
        "open ring",
        f"more than {100 * OPEN:.0f} % of the LV's border is not beside myocardium at ED or ES",
        ("LV", "MYO"),
        _open_ring,
    ),
    Flag(
        "jump",
        f"the LV's volume changes between neighbouring frames by more than {100 * JUMP:.0f} % of EDV; with fewer than "
        f"{FRAMES} frames, by as much more as each lasts longer",
        ("LV",),
        _jump,
    ),
    Flag(
        "two minima",
        f"the LV's smoothed volume curve has a second minimum, {100 * DIP:.0f} % of EDV deep or more",
        ("LV",),
        _two_minima,
    ),
    Flag("volume", f"no heart holds more than {LARGEST} ml: is the spacing right?", (), _volume),
    Flag("EF", f"the LV's EF is outside of {EF[0]:.0f} to {EF[1]:.0f} %", ("LV",), _ef),
    Flag("edge", "ES is the first or the last frame: is this a whole beat?", ("LV",), _edge),
    Flag(
        "stroke volumes",
        f"those of LV and RV differ by more than {100 * APART:.0f} % of the larger",
        ("LV", "RV"),
        _strokes,
    ),
    Flag(
        "cover",
        f"the LV in the first or last slice is more than {100 * WIDER:.0f} % larger than in the next, at ED: does the "
        "stack reach base and apex?",
        ("LV",),
        _cover,
    ),
    Flag(
        "spacing",
        f"the header has no spacing, or pixels outside of {PIXEL[0]:g} to {PIXEL[1]:g} mm, or slices outside of "
        f"{GAP[0]:g} to {GAP[1]:g} mm",
        (),
        _spacing,
    ),
)
_RULES = {flag.name: flag.rule for flag in FLAGS}


def rule_of(name: str) -> str:
    """Return the rule of a flag in words, also of one that an older version has raised."""
    return _RULES.get(name, "a rule of an older version")
