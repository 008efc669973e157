"""Scoring a pair of label maps beside the way that it replaced, and beside nnU-Net's Dice."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray

from nnunet_ssp.bench.files import clinical_matrix
from nnunet_ssp.bench.place import Bench, core_seconds, in_turns, ratio
from nnunet_ssp.evaluation import distances, scoring
from nnunet_ssp.evaluation.files import Pair
from nnunet_ssp.evaluation.labels import Labels
from nnunet_ssp.files.nifti import write_nifti
from nnunet_ssp.parallel import one_thread
from nnunet_ssp.phantom import make_subject

LABELS = Labels({"LV": (1,), "MYO": (2,), "RV": (3,)})
SUBJECTS = 2
SHIFT = 2  # pixels between a reference and its prediction
SHARE = 6  # of the seconds of a row, which is short


def scoring_over_before(bench: Bench) -> dict[str, Any]:
    """Compare the core-seconds of `evaluate` for a pair of files with those of two other ways.

    Returns:
        `scoring_over_before`, the way without what spares them, and `scoring_over_nnunet`, nnU-Net's Dice alone, where
        ours also has distances, volumes and Dice by slice; `scoring_pairs`, of which they are.
    """
    with tempfile.TemporaryDirectory(prefix="nnunet-ssp-scoring-") as folder:
        pairs = write_pairs(bench, Path(folder))
        works: dict[str, Callable[[], object]] = {
            "nnunet": lambda: dice_alone(pairs),
            "before": lambda: score_as_before(pairs),
            "ours": lambda: score_as_today(pairs),
        }
        with one_thread():
            seconds = bench.workload.seconds / SHARE
            took = in_turns(works, bench.device, seconds, clock=core_seconds)
    return {
        **ratio("scoring_over_before", took["before"], took["ours"]),
        **ratio("scoring_over_nnunet", took["nnunet"], took["ours"]),
        "scoring_pairs": len(pairs),
    }


def write_pairs(bench: Bench, folder: Path) -> list[Pair]:
    """Write label maps of phantom subjects at ED and ES, and predictions that are shifted."""
    _, slices = bench.workload.study
    matrix = clinical_matrix(bench.workload.side)
    pairs = []
    for number in range(SUBJECTS):
        subject = make_subject(number, matrix=matrix, frames=4, slices=slices)
        for phase, frame in (("ED", subject.ed), ("ES", subject.es)):
            mask = subject.mask[..., frame]
            case = f"subject{number}_{phase}"
            reference, prediction = (folder / f"{case}_{w}.nii.gz" for w in ("true", "predicted"))
            write_nifti(reference, mask, subject.affine)
            write_nifti(prediction, np.roll(mask, SHIFT, axis=0), subject.affine)
            pairs.append(Pair("bench", 0, case, prediction, reference))
    return pairs


def score_as_today(pairs: Sequence[Pair]) -> list[Any]:
    """Score pairs as `evaluate` does."""
    return [scoring.score_pair(pair, LABELS) for pair in pairs]


def score_as_before(pairs: Sequence[Pair]) -> list[Any]:
    """Score pairs without the crop, by eroded masks and with a distance for each voxel of the box."""
    with _before():
        return score_as_today(pairs)


def dice_alone(pairs: Sequence[Pair]) -> list[Any]:
    """Score pairs as nnU-Net does: Dice and counts of voxels of each class."""
    reader, values = SimpleITKIO(), [value for own in LABELS.classes.values() for value in own]
    return [compute_metrics(str(p.reference), str(p.prediction), reader, values) for p in pairs]


@contextlib.contextmanager
def _before() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (scoring, "_crop", lambda *maps: list(maps)),
            (distances, "surface", _eroded),
            (distances, "_nearest", _distances_everywhere),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def _distances_everywhere(
    own: NDArray[np.bool_], other: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float64]:
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~other, sampling=spacing)[own])
