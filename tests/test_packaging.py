"""The wheel holds everything, and works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # A copy without build folders: setuptools would put stale files of an earlier build into the wheel.
    import shutil

    source = folder / "source"
    names = (
        "nnunet_ssp",
        "trainers",
        "dataset_conversion",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    )
    source.mkdir()
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    expected = {"nnunet_ssp/py.typed"}
    for folder, inside in {
        "nnunet_ssp": "nnunet_ssp",
        "trainers": "nnunet_ssp/trainers",
        "dataset_conversion": "nnunet_ssp/dataset_conversion",
    }.items():
        for file in (ROOT / folder).rglob("*.py"):
            expected.add(f"{inside}/{file.relative_to(ROOT / folder).as_posix()}")
    study = ROOT / "nnunet_ssp" / "study"
    data = [
        study / "Snakefile",
        study / "defaults.json",
        *study.rglob("*.yaml"),
        *study.rglob("*.csv"),
    ]
    expected |= {file.relative_to(ROOT).as_posix() for file in data}
    assert len(data) > 5
    assert packed == expected


def test_installed_wheel_shows_its_trainers(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "nnUNet_extTrainer"}
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_ssp.cli", "env"],
        env={**environment, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(done.stdout.strip().partition("=")[2])
    assert folder == site / "nnunet_ssp" / "trainers"
    assert (folder / "nnUNetTrainerMIMPretrain.py").is_file()
