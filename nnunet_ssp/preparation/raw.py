"""The raw dataset as `prepare` finds it: its cases, and the content of `dataset.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ssp.cohort.cases import read_cases
from nnunet_ssp.cohort.consistency import require_known_names
from nnunet_ssp.cohort.membership import is_trainable, test_subjects
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.console import count_of
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.files.names import must_all_be_plain, must_be_plain
from nnunet_ssp.files.nnunet import check_dataset
from nnunet_ssp.slices.intact import Stamps, file_stamp

REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")  # of dataset.json


@dataclass(frozen=True)
class CaseJob:
    """One case to preprocess.

    Attributes:
        case: Its name.
        images: One file per channel.
        label: The mask; None for an unlabelled case.
    """

    case: str
    images: tuple[str, ...]
    label: str | None

    @property
    def files(self) -> list[Path]:
        """Images and mask."""
        return [Path(file) for file in (*self.images, self.label) if file is not None]

    def source(self) -> Stamps:
        """Read name, size in bytes and modification time in ns of each file."""
        return tuple(file_stamp(file) for file in self.files)


def read_dataset_json(raw: Path) -> dict[str, Any]:
    """Return the checked content of `dataset.json`.

    Raises:
        FileNotFoundError: It is missing, perhaps because a conversion is unfinished.
        ValueError: It breaks a rule of nnU-Net.
    """
    file = raw / "dataset.json"
    if not file.is_file():
        advice = "nnU-Net needs it."
        if (raw / "convert.json").is_file():
            advice = "the conversion is unfinished, run nnunet-ssp convert again."
        raise FileNotFoundError(f"{file} is missing: {advice}")
    content = read_json(file, dict)
    if "modality" in content:  # nnU-Net's former name, which it still accepts
        content.setdefault("channel_names", content["modality"])
    check_dataset(content, str(file), REQUIRED_KEYS)
    return content


def _refuse_misnamed(images: Path, ending: str) -> None:
    """Refuse images without the number of their channel; nnU-Net cuts five characters off any name.

    Raises:
        ValueError: Names the first of them.
    """
    for file in sorted(images.glob(f"[!.]*{ending}")):
        case = file.name.removesuffix(ending)
        if not re.fullmatch(r".+_[0-9]{4}", case):
            raise ValueError(
                f"{file}: an image's name must end in the number of its channel: {case}_0000{ending}"
            )


def list_jobs(raw: Path, content: dict[str, Any]) -> list[CaseJob]:
    """List the training cases as nnU-Net finds them, then those of `imagesUn`."""
    ending = content["file_ending"]
    if "dataset" in content:
        # nnU-Net completes the paths of its argument in place.
        own = json.loads(json.dumps(content))
        training: dict[str, Any] = get_filenames_of_train_images_and_targets(str(raw), own)
    else:  # nnU-Net compares every name with every file, which takes an hour for 100,000
        _refuse_misnamed(raw / "imagesTr", ending)
        training = {
            case: {"images": files, "label": str(raw / "labelsTr" / f"{case}{ending}")}
            for case, files in _by_case(raw / "imagesTr", ending).items()
        }
    if not training:
        raise ValueError(f"{raw}: no image in imagesTr, and dataset.json lists none in imagesUn.")
    absent = [entry["label"] for entry in training.values() if not Path(entry["label"]).is_file()]
    # A dataset without any class and any mask has unlabelled images only.
    unlabelled = len(absent) == len(training) and len(content["labels"]) == 1
    if absent and not unlabelled:
        raise FileNotFoundError(f"{absent[0]} is missing: every image of imagesTr needs a mask.")
    must_all_be_plain(training, "case", str(raw))
    jobs = {
        case: CaseJob(case, tuple(entry["images"]), None if unlabelled else entry["label"])
        for case, entry in sorted(training.items())
    }
    for case, files in _by_case(raw / "imagesUn", ending).items():
        must_be_plain(case, "case", str(raw / "imagesUn"))
        if case in training and not unlabelled:
            raise ValueError(f"{raw}: case {case} must not be in both imagesTr and imagesUn.")
        jobs[case] = CaseJob(case, tuple(files), None)
    most = max(len(job.images) for job in jobs.values())
    for job in jobs.values():
        if len(job.images) < most:
            raise ValueError(
                f"{raw}: case {job.case} has {count_of(len(job.images), 'channel')}, but other cases have {most}."
            )
    return list(jobs.values())


def _by_case(folder: Path, ending: str) -> dict[str, list[str]]:
    """Return the images of each case, in the order of their channels."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob(f"[!.]*_[0-9][0-9][0-9][0-9]{ending}")):
        found.setdefault(file.name.removesuffix(ending)[:-5], []).append(str(file))
    return found


def check_subjects(raw: Path, jobs: Sequence[CaseJob]) -> None:
    """Refuse cases that a `cases.csv` does not name, or that are of a test subject; do nothing without one."""
    table = raw / "cases.csv"
    if not table.is_file():
        return
    cases = read_cases(table)
    tests = test_subjects(cases)
    for job in jobs:
        if job.case not in cases:
            raise ValueError(f"{table}: there is no row for case {job.case} ({job.images[0]}).")
        if cases[job.case].subject_key in tests:
            raise ValueError(
                f"{job.images[0]}: test subject {cases[job.case].subject} must be in imagesTs only, never in training."
            )


def check_folds(raw: Path, target: Path, labelled: Sequence[CaseJob]) -> None:
    """Check that the folds name known cases only; the copy in nnUNet_raw, if there is one, is the valid one."""
    table = raw / "cases.csv"
    known = {job.case for job in labelled}
    if table.is_file():
        known = {name for name, case in read_cases(table).items() if is_trainable(case)}
    for file in (raw / "splits_final.json", target / "splits_final.json"):
        if file.is_file():
            require_known_names(file, read_splits(file), known)
            return
