from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import nibabel
import nnunetv2.utilities.utils
import numpy as np
import pytest

from nnunet_ssp.dataset_conversion import mnms
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.preparation import fingerprints, preprocessing
from nnunet_ssp.preparation.command import prepare
from nnunet_ssp.preparation.raw import CaseJob
from nnunet_ssp.slices import store as slices

DATASET = "Dataset901_Phantom"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def set_folders(patch: pytest.MonkeyPatch, base: Path) -> None:
    for name in FOLDERS:
        (base / name).mkdir(exist_ok=True)
        patch.setenv(name, str(base / name))


def quicken_fingerprint(patch: pytest.MonkeyPatch, voxels: int = 10**5) -> list[int]:
    """Draw fewer than nnU-Net's 1e8 voxels; return a list that will hold the number of cases of each fingerprint."""
    made: list[int] = []
    real = fingerprints.fingerprint_of

    def counted(cases: Sequence[fingerprints.CaseDescription]) -> dict[str, Any]:
        made.append(len(cases))
        return real(cases)

    patch.setattr(fingerprints, "LABELLED_SAMPLES", voxels)
    patch.setattr(fingerprints, "fingerprint_of", counted)
    return made


@pytest.fixture(scope="module", autouse=True)
def listing_in_threads() -> Iterator[None]:
    """nnU-Net forks twelve processes to list a folder, up to three times per run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnunetv2.utilities.utils, "Pool", ThreadPool)
        yield


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder in M&Ms' layout (`source`), converted and prepared: 3 labelled subjects, 1 unlabelled, 1 test."""
    base = tmp_path_factory.mktemp("preparation")
    counts = {"labelled": 3, "unlabelled": 1, "testing": 1}
    write_mnms(base / "source", **counts, matrix=48, frames=3, slices=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnunetv2.utilities.utils, "Pool", ThreadPool)
        set_folders(patch, base)
        quicken_fingerprint(patch)
        mnms.convert(base / "source", 901, "Phantom", workers=1)
        prepare(901, workers=1)
    return base


@pytest.fixture
def base(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy what `phantom` made, with its times of modification, so that a test may change it."""
    for name in FOLDERS:
        shutil.copytree(phantom / name, tmp_path / name)
    set_folders(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def raw(base: Path) -> Path:
    return base / "nnUNet_raw" / DATASET


@pytest.fixture
def target(base: Path) -> Path:
    return base / "nnUNet_preprocessed" / DATASET


@pytest.fixture
def extractions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the numbers of cases of the fingerprints made, and make them quickly."""
    return quicken_fingerprint(monkeypatch)


@pytest.fixture
def preprocessed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the cases that are preprocessed, in order."""
    cases: list[str] = []
    real = preprocessing.preprocess_case

    def spy(job: CaseJob, **options: Any) -> slices.StoredCase | str:
        cases.append(job.case)
        return real(job, **options)

    monkeypatch.setattr(preprocessing, "preprocess_case", spy)
    return cases


def names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(file.name for file in folder.glob(pattern))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes()) for f in files}


def index(target: Path, identifier: str = "nnUNetPlans_2d") -> dict[str, slices.StoredCase]:
    return slices.read_index(target / f"{identifier}_slices")[1]


def everything(base: Path) -> dict[str, bytes]:
    return {str(f.relative_to(base)): f.read_bytes() for f in base.rglob("*") if f.is_file()}


def write_image(file: Path, voxels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 8, 1])), file)


def noise(seed: int, shape: tuple[int, int, int] = (40, 36, 3)) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def plain_dataset(
    base: Path, name: str, channels: int = 1, labelled: int = 2, unlabelled: int = 2
) -> Path:
    """Write a plain dataset of nnU-Net, without our tables; labels lie in a corner."""
    raw = base / "nnUNet_raw" / name
    for number in range(labelled + unlabelled):
        part = "Tr" if number < labelled else "Un"
        for channel in range(channels):
            file = raw / f"images{part}" / f"a.b_{number}_{channel:04d}.nii.gz"
            write_image(file, noise(10 * number + channel))
        if number < labelled:
            mask = np.zeros((40, 36, 3), np.uint8)
            mask[:9, :9] = 1
            write_image(raw / "labelsTr" / f"a.b_{number}.nii.gz", mask)
    content = {
        "channel_names": {str(c): "cineMRI" for c in range(channels)},
        "labels": {"background": 0, "heart": 1},
        "numTraining": labelled,
        "file_ending": ".nii.gz",
    }
    write_json(raw / "dataset.json", content)
    return raw


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's three folders, empty."""
    set_folders(monkeypatch, tmp_path)
    return tmp_path
