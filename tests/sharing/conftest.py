"""A pretraining of a small network, with the dataset that it was made on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.cases import Case, write_cases
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.slices.store import StoredCase, store_folder, write_case, write_index
from tests.training.test_inspection import DATASET, SSP, make_plans, write_checkpoint

SUBJECTS = {"A": ("mm1", "Siemens"), "B": ("mm1", "Philips"), "C": ("acdc", "Siemens")}
OTHER = "Dataset908_Other"


def row(subject: str, frame: int, split: str = "train") -> Case:
    source, vendor = SUBJECTS[subject]
    name = f"{subject}_frame{frame:02d}"
    return Case(
        *(name, subject, source, frame, split, frame, 9, "", "first"),
        *(vendor, "1", "scanner", "1.5", "NOR"),
    )


def key(subject: str) -> str:
    return f"{SUBJECTS[subject][0]}-{subject}"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture
def dataset(environment: Path) -> Path:
    """The dataset of the pretraining: A and B were seen, C was held out."""
    folder = environment / "preprocessed" / DATASET
    frames = [row(subject, frame) for subject in SUBJECTS for frame in (0, 3)]
    write_cases(folder / "cases.csv", frames)
    store = store_folder(folder, "nnUNetPlans_2d")
    data = np.zeros((1, 5, 4, 4), dtype=np.float32)
    index = {c.case: StoredCase(write_case(store, c.case, data), 0, 5) for c in frames}
    write_index(store, {}, index)
    return folder


@pytest.fixture
def checkpoint(environment: Path) -> Path:
    """As a pretraining on that dataset leaves it, by a user who keeps files in a telling place."""
    folder = environment / "results" / "run" / "fold_0"
    record = SSP | {
        "transfers": "encoder",
        "subjects": sorted(privacy.hashed_subject(key(s)) for s in "AB"),
        "counts": {"subjects": 2, "frames": 4, "slices": 20},
        "weights_from": "/home/alice/secret/checkpoint_final.pth",
    }
    write_json(
        folder.parent / "dataset_fingerprint.json",
        {"spacings": [[8.0, 1.5, 1.5]], "who": "/home/alice/secret"},
    )
    return write_checkpoint(
        folder / "checkpoint_final.pth",
        make_plans(lambda c: c.update(note="/home/alice/secret/plans")),
        "encoder",
        ssp=record,
        current_epoch=3,
        logging={
            "train_losses": [0.5, 0.25],
            "val_losses": [0.5, float("nan")],
            "lrs": [1.0],
            "epoch_start_timestamps": [1.7e9],
            "mean_fg_dice": [],
        },
        init_args={
            "plans": make_plans(lambda c: c.update(note="/home/alice/secret/plans")),
            "configuration": "2d",
            "dataset_json": {
                "channel_names": {"0": "cineMRI"},
                "labels": {"background": 0},
                "description": "Alice's heart",
            },
        },
    )


@pytest.fixture
def other(environment: Path) -> Path:
    """A raw dataset of somebody else, with a test subject that nobody has seen."""
    folder = environment / "raw" / OTHER
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "cineMRI"},
            "labels": {"background": 0, "heart": 1},
            "file_ending": ".nii.gz",
            "numTraining": 1,
        },
    )
    write_cases(folder / "cases.csv", [row("C", 0, "test")])
    return folder
