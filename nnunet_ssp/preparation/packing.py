"""Unlabelled cases through nnU-Net's own preprocessor, and 2D images, of which there may be a million, in packs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnunet_ssp.preparation.raw import CaseJob
from nnunet_ssp.preparation.raw_checks import (
    CheckedPlans,
    CheckedReader,
    RefusedError,
    Rules,
    one_line,
)
from nnunet_ssp.slices import store as slices
from nnunet_ssp.slices.packs import CASES, pack_name, write_pack

SPACE_FOR_A_CASE = 2**24  # bytes; more than most cases take


class WithoutMask(ConfigurationManager):
    """Configuration for cases without a mask, whose data are the same.

    nnU-Net makes up a mask for them, which nobody keeps. Resampling it takes as long as resampling the image.
    """

    @property
    def resampling_fn_seg(self) -> Callable[..., NDArray[Any]]:
        """A function that makes an empty mask of the new shape."""
        return lambda mask, new_shape, *_: np.zeros((len(mask), *new_shape), np.int8)


def open_plans(
    plans_file: Path, configuration: str, rules: Rules
) -> tuple[CheckedPlans, ConfigurationManager]:
    """Open plans for the work of one process; a worker computes with one thread, as there are as many as cores."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)
    plans = CheckedPlans(plans_file, CheckedReader(rules))
    return plans, plans.get_configuration(configuration)


def run_unlabelled(
    job: CaseJob, plans: PlansManager, manager: ConfigurationManager, content: dict[str, Any]
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Preprocess an unlabelled case.

    Returns:
        Its data (channels, slices, rows, cols) and nnU-Net's properties.

    Raises:
        RefusedError: All voxels are equal.
    """
    images = list(job.images)
    without = WithoutMask(manager.configuration)
    preprocessor = manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(images, None, plans, without, content)
    if data.min() == data.max():
        raise RefusedError(f"{images[0]}: all voxels are equal, there is no image.")
    return data, properties


def groups(jobs: Sequence[CaseJob], workers: int) -> list[tuple[CaseJob, ...]]:
    """Return the cases of each pack, so that every worker has one."""
    n = max(1, min(CASES, -(-len(jobs) // workers)))
    return [tuple(jobs[start : start + n]) for start in range(0, len(jobs), n)]


def preprocess_pack(
    jobs: tuple[CaseJob, ...],
    target: Path,
    plans_file: Path,
    configuration: str,
    content: dict[str, Any],
    rules: Rules,
) -> list[slices.StoredCase | str]:
    """Preprocess unlabelled 2D images into one pack; one at a time is in memory.

    Returns:
        For each case its entry of the slice store or, if it failed, the problem in words.

    Raises:
        OSError: The disk is full.
    """
    plans, manager = open_plans(plans_file, configuration, rules)
    problems: dict[str, str] = {}

    def made() -> Iterator[tuple[str, NDArray[np.float16], slices.StoredCase]]:
        for job in jobs:
            try:
                source = job.source()
                data, properties = run_unlabelled(job, plans, manager, content)
                array = slices.as_slices(job.case, data)
            except Exception as error:
                problems[job.case] = why_it_failed(job, error)
                continue
            n, channels, rows, columns = array.shape
            place = slices.stack_position(properties)
            shape = (n, channels, rows, columns)
            yield job.case, array, slices.StoredCase(shape, *place, source)

    store = slices.store_folder(target, manager.data_identifier)
    entries = write_pack(store, pack_name(job.case for job in jobs), made())
    return [entries.get(job.case) or problems[job.case] for job in jobs]


def why_it_failed(job: CaseJob, error: Exception) -> str:
    """Say why a case could not be preprocessed."""
    if isinstance(error, RefusedError):
        return str(error)
    return f"{job.images[0]}: nnU-Net cannot preprocess it ({one_line(error)})."


def require_space(folder: Path) -> None:
    """Tell a full disk from a bad case; blosc2 and numpy report a full disk by errors of many kinds.

    Raises:
        OSError: The system's error, if there is no space for a case.
    """
    probe = folder / "space"
    try:
        probe.write_bytes(bytes(SPACE_FOR_A_CASE))
    finally:
        probe.unlink(missing_ok=True)
