"""The dataset fingerprint that nnU-Net plans by; the pass over the files that makes it also checks them."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
    DatasetFingerprintExtractor,
)
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from numpy.typing import NDArray

from nnunet_ssp.console import count_of
from nnunet_ssp.files.atomic import atomic_write, write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.parallel import WITH_NNUNET, process
from nnunet_ssp.preparation.raw_checks import (
    CheckedReader,
    RefusedError,
    Rules,
    absurd_spacing,
    is_natural,
    one_line,
    problem_lines,
)

FILE, MADE_OF = "dataset_fingerprint.json", "dataset_fingerprint.sha256"
# Foreground voxels that are drawn from a labelled dataset, with replacement, as in nnU-Net.
LABELLED_SAMPLES = 10**8
# The most voxels that are drawn for an unlabelled fingerprint.
SAMPLES_PER_CASE, SAMPLES = 10_000, 10**6


class CaseFiles(Protocol):
    """One case of the raw dataset."""

    @property
    def images(self) -> tuple[str, ...]:
        """One file per channel."""

    @property
    def label(self) -> str | None:
        """The mask."""

    def source(self) -> tuple[tuple[str, int, int], ...]:
        """Return stamps of the files."""


@dataclass(frozen=True)
class CaseDescription:
    """The properties of one case that a fingerprint needs.

    Attributes:
        file: First image.
        spacing: Edges in mm, by axis.
        shape: Voxels after nnU-Net's non-zero crop, by axis.
        share: Share of the voxels that the crop left.
        intensities: Samples of the foreground, one array per channel.
        notes: Warnings about the case.
    """

    file: str
    spacing: list[float]
    shape: list[int]
    share: float
    intensities: list[NDArray[Any]]
    notes: tuple[str, ...] = ()


def make_fingerprint(
    raw: Path, target: Path, jobs: Sequence[CaseFiles], rules: Rules, workers: int
) -> None:
    """Check the files of the cases that plans depend on, and write their fingerprint.

    Nothing is done if the same files passed the same rules before.

    Args:
        raw: The dataset's folder in nnUNet_raw.
        target: Its folder in nnUNet_preprocessed.
        jobs: All labelled cases or, without any, all cases.
        rules: The rules for their files.
        workers: Number of processes.

    Raises:
        ValueError: Labelled cases are wrong, or no unlabelled one can be used.
    """
    file, made_of = target / FILE, target / MADE_OF
    sources = hashlib.sha256(repr(([job.source() for job in jobs], rules)).encode()).hexdigest()
    if file.is_file() and made_of.is_file() and made_of.read_bytes() == sources.encode():
        return
    made_of.unlink(missing_ok=True)
    labelled = jobs[0].label is not None
    n = LABELLED_SAMPLES // len(jobs)
    if not labelled:
        n = max(1, min(SAMPLES_PER_CASE, SAMPLES // len(jobs)))
    describe = partial(_describe, rules=rules, n_samples=n)
    found = list(process(describe, jobs, workers, "Fingerprint", "case", WITH_NNUNET))
    cases = [entry for entry in found if isinstance(entry, CaseDescription)]
    problems = [entry for entry in found if isinstance(entry, str)]
    if labelled and cases:
        problems += _absurd_spacings(cases)
    listing = problem_lines(problems)
    if problems and labelled:
        raise ValueError(
            f"{count_of(len(problems), 'labelled case')} must be corrected first, "
            f"since the plans depend on all:\n{listing}"
        )
    if not cases:
        raise ValueError(f"{raw}: none of the {len(jobs)} images can be used:\n{listing}")
    if not all(any(len(c.intensities[i]) for c in cases) for i in range(rules.channels)):
        raise ValueError(f"{raw}: no mask has a labelled voxel, so nnU-Net cannot plan.")
    notes = [note for case in cases for note in case.notes]
    if notes:
        print(f"WARNING: masks lie elsewhere than their images:\n{problem_lines(notes)}")
    write_json(file, fingerprint_of(cases))
    with atomic_write(made_of) as temporary:
        temporary.write_text(sources)


def with_median_spacing(rules: Rules, target: Path) -> Rules:
    """Return rules that know the median spacing of the fingerprint."""
    spacings = read_json(target / FILE, dict)["spacings"]
    return replace(rules, spacing=_median(spacings))


def _median(spacings: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the lower median of each axis: a spacing that occurs, not the mean of a right and a wrong one."""
    middle = np.percentile(spacings, 50, axis=0, method="lower")
    return tuple(float(edge) for edge in middle)


def _absurd_spacings(cases: Sequence[CaseDescription]) -> list[str]:
    median = _median([case.spacing for case in cases if not is_natural(case.spacing)] or [[1] * 3])
    found = ((case.file, absurd_spacing(case.spacing, median)) for case in cases)
    return [f"{file}: {text}" for file, text in found if text]


def _describe(job: CaseFiles, rules: Rules, n_samples: int) -> CaseDescription | str:
    """Describe a case as nnU-Net would; in an unlabelled case the non-zero voxels count as labelled.

    Returns:
        The description or, for a refused case, the reason in words.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            reader = CheckedReader(rules)
            if job.label is None:
                return _describe_unlabelled(job, reader, n_samples)
            shape, spacing, intensities, _, share = DatasetFingerprintExtractor.analyze_case(
                list(job.images), job.label, lambda: reader, n_samples
            )
    except RefusedError as error:
        return str(error)
    except Exception as error:
        return f"{job.images[0]}: nnU-Net cannot analyse it ({one_line(error)})."
    return CaseDescription(
        job.images[0],
        [float(edge) for edge in spacing],
        [int(n) for n in shape],
        float(share),
        intensities,
        tuple(reader.notes),
    )


def _describe_unlabelled(
    job: CaseFiles, reader: CheckedReader, n_samples: int
) -> CaseDescription | str:
    image, properties = reader.read_images(list(job.images))
    if not image.any():
        return f"{job.images[0]}: all voxels are 0, there is no image."
    cropped, _, _ = crop_to_nonzero(image)
    foreground = (cropped != 0).any(axis=0, keepdims=True)
    drawn, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
        foreground, cropped, num_samples=n_samples
    )
    return CaseDescription(
        job.images[0],
        [float(edge) for edge in properties["spacing"]],
        [int(n) for n in cropped.shape[1:]],
        float(np.prod(cropped.shape[1:]) / np.prod(image.shape[1:])),
        drawn,
    )


def fingerprint_of(cases: Sequence[CaseDescription]) -> dict[str, Any]:
    """Return a dataset fingerprint in nnU-Net's form."""
    properties = {}
    for channel in range(len(cases[0].intensities)):
        values = np.concatenate([case.intensities[channel] for case in cases])
        low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
        properties[str(channel)] = {
            "mean": float(np.mean(values)),
            "median": float(median),
            "std": float(np.std(values)),
            "min": float(np.min(values)),
            "max": float(np.max(values)),
            "percentile_99_5": float(high),
            "percentile_00_5": float(low),
        }
    return {
        "spacings": [case.spacing for case in cases],
        "shapes_after_crop": [case.shape for case in cases],
        "foreground_intensity_properties_per_channel": properties,
        "median_relative_size_after_cropping": float(np.median([case.share for case in cases])),
    }
