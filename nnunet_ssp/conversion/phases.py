"""End-diastole (ED) and end-systole (ES) among the frames of a cine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The order of M&Ms and M&Ms-2, with the names of nnU-Net's Dataset114_MNMs; other datasets are mapped to it.
LABELS = {"background": 0, "LVBP": 1, "LVM": 2, "RV": 3}


def label_phases(
    masks: Mapping[int, Array], ed_text: str, es_text: str, where: str = "CSV", first: int = 0
) -> tuple[dict[int, str], list[str], list[str]]:
    """Find ED and ES among the labelled frames: as the source says, unless the masks contradict it.

    The masks contradict it when a frame it names holds no labels, or when ED is the smaller one.
    Then ED is the labelled frame of largest volume and ES that of smallest. The volume is that of
    the left ventricle, or of all labels if a frame has no left ventricle. In some datasets the
    myocardium is drawn at ED only.

    Args:
        masks: The labelled frames `(X, Y, Z)` by time index, values as in `LABELS`, at least one.
        ed_text: Number of ED in the source, which may be empty or wrong.
        es_text: Number of ES in the source.
        where: The source of these numbers, for messages; empty without one.
        first: The source's number of the first frame, also in messages.

    Returns:
        The phase of each frame to use (two, or one if only one is labelled), corrections, notes.
    """
    lv = {frame: int((mask == LABELS["LVBP"]).sum()) for frame, mask in masks.items()}
    volume = lv if all(lv.values()) else {t: int((mask > 0).sum()) for t, mask in masks.items()}
    # Largest first; among equal volumes first the one that the source calls ED.
    ed, es = frame_number(ed_text, first), frame_number(es_text, first)
    frames = sorted(volume, key=lambda t: (-volume[t], t != ed, t))
    listed = " and ".join(str(t + first) for t in sorted(frames))
    nothing_said = not ed_text and not es_text
    said = f"{where} has ED {ed_text or 'empty'} and ES {es_text or 'empty'}, labels at {listed}"
    if len(frames) == 1:
        phase = "ES" if frames[0] == es != ed else "ED"
        notes = [f"only frame {listed} holds labels, taken as {phase}"]
        wrong = not nothing_said and frames[0] not in (ed, es)
        return {frames[0]: phase}, [said] if wrong else [], notes

    corrections, notes = [], []
    if ed in volume and es in volume and ed != es and volume[ed] >= volume[es]:
        phases = {ed: "ED", es: "ES"}
    else:
        phases = {frames[0]: "ED", frames[-1]: "ES"}
        found = f"ED is {frames[0] + first}, ES is {frames[-1] + first}"
        if not nothing_said:
            corrections.append(f"{said}: {found}")
        elif where:
            notes.append(f"{where} has neither ED nor ES; by volume {found}")
    if len(frames) > 2:
        used = " and ".join(str(t + first) for t in sorted(phases))
        notes.append(f"{len(frames)} frames hold labels; only {used} are used")
    return phases, corrections, notes


def frame_number(text: str, first: int = 0) -> int | None:
    """Return the time index from 0 that a number in a table means; None if it is no number.

    Args:
        text: `8`, `8.0`, or anything else.
        first: The table's number of the first frame.
    """
    # `float` would accept 1_0 and digits of other scripts, too.
    match = re.fullmatch(r"([+-]?[0-9]{1,9})(\.0*)?", text.strip())
    return int(match[1]) - first if match else None


def nearest_frame(cine: Array, frame: Array) -> tuple[int, bool]:
    """Find a 3D image among the frames of a cine.

    Args:
        cine: `(X, Y, Z, T)`.
        frame: `(X, Y, Z)`.

    Returns:
        The time index of the frame whose largest difference is smallest, and whether it is the same image. Rounding in
        storage may change voxels by up to 0.1 % of the image's range; two frames of a real cine differ more, by
        their noise alone.
    """
    wanted = frame.astype(np.float32)
    differences = [
        float(np.abs(cine[..., t].astype(np.float32) - wanted).max()) for t in range(cine.shape[3])
    ]
    nearest = int(np.argmin(differences))
    return nearest, differences[nearest] <= 1e-3 * float(np.ptp(wanted))
