"""Metrics of one segmented cine: volumes of each frame, ED and ES, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.evaluation.volumes import ejection_fraction, myocardial_mass, stroke_volume
from nnunet_ssp.files.grids import Array
from nnunet_ssp.predict.curves import find_phases
from nnunet_ssp.predict.flags import Measured, raised


@dataclass(frozen=True)
class Choices:
    """The user's choices about the metrics."""

    # Known frames of ED and ES, from 0
    frames: tuple[int, int] | None = None
    # Count the same slices in all frames, see `_extent`
    fixed_base: bool = False

    def check(self, n_frames: int) -> None:
        """Raise a ValueError where a known frame is not one of the cine."""
        for frame in self.frames or ():
            if not 0 <= frame < n_frames:
                raise ValueError(
                    f"`--frames` (={' '.join(map(str, self.frames or ()))}) must be within 0 to {n_frames - 1}, "
                    "the frames of the cine."
                )


@dataclass(frozen=True)
class Metrics:
    """The metrics of one subject; one that cannot be had is absent."""

    # By column of `phases.csv`, one number for each frame
    frames: Mapping[str, list[float]]
    # By column of `volumes.csv`
    subject: Mapping[str, float | int]
    # By name, with what was found
    flags: Mapping[str, str] = field(default_factory=dict)


def measure(
    mask: Array,
    spacing: Sequence[float],
    labels: Labels,
    choices: Choices = Choices(),  # noqa: B008 (immutable)
    spacing_known: bool = True,
) -> Metrics:
    """Measure a segmented cine.

    Args:
        mask: (X, Y, Z, T), label values.
        spacing: mm, of X, Y and Z.
        labels: Meaning of the values.
        choices: What the user says.
        spacing_known: Whether the header tells the spacing.

    Raises:
        ValueError: A frame of `choices` is not one of the cine.
    """
    masks = {
        structure: np.isin(mask, labels.classes[name])
        for structure, name in labels.structures.items()
    }
    n_frames = mask.shape[3]
    volumes = _volumes(masks, spacing)
    ed, es = _phases(volumes["LV"], choices)
    if choices.fixed_base and es is not None:
        held = _extent(masks["LV"][..., [ed, es]])
        volumes = _volumes({name: part[:, :, held] for name, part in masks.items()}, spacing)
    metrics, strokes = _metrics(volumes, ed, es)
    flags = raised(
        Measured(
            masks=masks,
            volumes=volumes,
            ed=ed,
            es=es,
            ef=metrics.get("lv_ef_percent"),
            strokes=strokes,
            spacing=spacing,
            spacing_known=spacing_known,
        )
    )
    frames = {f"{structure.lower()}_ml": curve.tolist() for structure, curve in volumes.items()}
    if "MYO" in volumes:
        frames["lv_mass_g"] = [myocardial_mass(ml) for ml in frames["myo_ml"]]
    counts = {"n_frames": n_frames, "n_slices": mask.shape[2], "ed_frame": ed}
    return Metrics(frames, counts | ({} if es is None else {"es_frame": es}) | metrics, flags)


def _volumes(masks: Mapping[str, Array], spacing: Sequence[float]) -> dict[str, Array]:
    voxel_ml = float(np.prod(spacing)) / 1000
    return {name: np.count_nonzero(mask, axis=(0, 1, 2)) * voxel_ml for name, mask in masks.items()}


def _extent(ventricle: Array) -> slice:
    """Return the slices from the first to the last with LV in all frames (X, Y, Z, T); those between may lack it."""
    both = np.flatnonzero(np.all(ventricle.any(axis=(0, 1)), axis=1))
    return slice(both[0], both[-1] + 1) if both.size else slice(0)


def _phases(curve: Array, choices: Choices) -> tuple[int, int | None]:
    choices.check(len(curve))
    if choices.frames is not None:
        return choices.frames
    # Without LV in any frame no frame is end-systole, whatever the RV does.
    return find_phases(curve) if len(curve) > 1 and curve.any() else (0, None)


def _metrics(
    volumes: Mapping[str, Array], ed: int, es: int | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the columns of `volumes.csv` that come from volumes, and the stroke volumes by ventricle."""
    metrics: dict[str, Any] = {}
    strokes: dict[str, float] = {}
    for name in ("LV", "RV"):
        if name not in volumes:
            continue
        edv, column = float(volumes[name][ed]), name.lower()
        metrics[f"{column}_edv_ml"] = edv
        if es is not None:
            esv = float(volumes[name][es])
            strokes[name] = stroke_volume(edv, esv)
            metrics[f"{column}_esv_ml"], metrics[f"{column}_sv_ml"] = esv, strokes[name]
            if edv > 0:
                metrics[f"{column}_ef_percent"] = ejection_fraction(edv, esv)
        if name == "LV" and "MYO" in volumes:
            metrics["lv_mass_g"] = myocardial_mass(float(volumes["MYO"][ed]))
    if len(strokes) == 2:
        metrics["sv_difference_ml"] = strokes["LV"] - strokes["RV"]
    return metrics, strokes
