"""Files and their preparation, each in turn with the way that it replaces."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_ssp.bench.place import PLANS, Bench, core_seconds, in_turns, ratio
from nnunet_ssp.dataset_conversion import mnms
from nnunet_ssp.files import compression
from nnunet_ssp.files.nnunet import read_plans
from nnunet_ssp.nnunet import NNUNET_FOLDERS, environment, quiet
from nnunet_ssp.parallel import one_thread
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.preparation import packing, preprocessing
from nnunet_ssp.preparation.raw import list_jobs, read_dataset_json
from nnunet_ssp.preparation.raw_checks import Rules, label_values

ENLARGED, MATRIX = 4, 256  # times the patch, and at most: the sides of clinical images
DATASET = 998


def files_over_zlib(bench: Bench) -> dict[str, Any]:
    """Compare the core-seconds of `convert` and of unlabelled frames in `prepare` with those without what spares them.

    Returns:
        `convert_over_zlib`, None where ISA-L is not installed, and `unlabelled_over_resampled_mask`.
    """
    frames, slices = bench.workload.study
    with tempfile.TemporaryDirectory(prefix="nnunet-ssp-files-") as folder:
        base = Path(folder)
        variables = {name: str(base / name) for name in NNUNET_FOLDERS}
        for path in variables.values():
            Path(path).mkdir()
        sizes = {"matrix": clinical_matrix(bench.workload.side), "frames": frames, "slices": slices}
        with environment(**variables), contextlib.redirect_stderr(io.StringIO()):
            source = write_mnms(base / "source", labelled=1, unlabelled=1, testing=0, **sizes)
            convert = partial(_convert, source)
            without = _replacing(compression, "WITH_ISAL", False, convert)
            found = _compare("convert_over_zlib", bench, convert, without)
            prepare = _preparing(bench, base / "nnUNet_raw" / f"Dataset{DATASET}_Files", base)
        resampling = _replacing(packing, "WithoutMask", ConfigurationManager, prepare)
        found |= _compare("unlabelled_over_resampled_mask", bench, prepare, resampling)
    return found if compression.WITH_ISAL else found | {"convert_over_zlib": None}


def clinical_matrix(side: int) -> int:
    """Return rows and columns of images like clinical ones, for patches of a side; a card's are as large."""
    return min(ENLARGED * side, MATRIX)


def _compare(
    name: str, bench: Bench, ours: Callable[[], None], before: Callable[[], None]
) -> dict[str, Any]:
    works: dict[str, Callable[[], object]] = {"before": before, "ours": ours}
    with one_thread():
        took = in_turns(works, bench.device, bench.workload.seconds / 2, clock=core_seconds)
    return ratio(name, took["before"], took["ours"])


def _replacing(
    module: Any, name: str, value: object, work: Callable[[], None]
) -> Callable[[], None]:
    """Return the work with another value of a name of a module."""

    def replaced() -> None:
        with mock.patch.object(module, name, value):
            work()

    return replaced


def _convert(source: Path) -> None:
    with quiet():
        mnms.convert(source, DATASET, "Files", overwrite=True, workers=1)


def _preparing(bench: Bench, raw: Path, scratch: Path) -> Callable[[], None]:
    """Return what preprocesses the unlabelled frames of a dataset with the bench's plans."""
    content = read_dataset_json(raw)
    plans = bench.folder / f"{PLANS}.json"
    reader = read_plans(plans)["image_reader_writer"]
    one = partial(
        preprocessing.preprocess_case,
        target=scratch / "prepared",
        plans_file=plans,
        configuration="2d",
        content=content,
        rules=Rules(reader, len(content["channel_names"]), label_values(content["labels"])),
    )
    jobs = [job for job in list_jobs(raw, content) if job.label is None]

    def prepare() -> None:
        for problem in filter(lambda done: isinstance(done, str), map(one, jobs)):
            raise RuntimeError(problem)

    return prepare
