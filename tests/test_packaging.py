"""The wheel holds everything, and works away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import nnunet_ssp

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def copied(folder: Path) -> Path:
    """A copy without build folders: setuptools would put stale files of an earlier build into the wheel."""
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
    return source


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = str(copied(folder))
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), source], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_every_module_and_data_file_is_in_the_wheel(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    expected = set()
    for folder, inside in {
        "nnunet_ssp": "nnunet_ssp",
        "trainers": "nnunet_ssp/trainers",
        "dataset_conversion": "nnunet_ssp/dataset_conversion",
    }.items():
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                expected.add(f"{inside}/{file.relative_to(ROOT / folder).as_posix()}")
    assert sum(not name.endswith(".py") for name in expected) > 5
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


def test_one_version() -> None:
    declared = [
        re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)[1]
        for name, pattern in (
            ("pyproject.toml", r'^version = "(.+)"$'),
            ("CITATION.cff", r"^version: (.+)$"),
            ("CHANGELOG.md", r"^## ([0-9]\S*)$"),
        )
    ]
    assert declared == [nnunet_ssp.__version__] * 3


@pytest.mark.heavy
def test_a_stranger_installs_a_release(tmp_path: Path) -> None:
    """Built as for a release, installed in a fresh environment: `doctor` is content, and every trainer is found.

    Then the first two steps of the demo. What the package needs comes from this environment: downloading it would
    take longer than all other tests.
    """
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(copied(tmp_path))]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert [file.name for file in tmp_path.glob("*.tar.gz")] == [
        f"nnunet_ssp-{nnunet_ssp.__version__}.tar.gz"
    ]
    venv.create(tmp_path / "fresh", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "fresh" / "lib").glob("python*/site-packages")
    # A line of such a file is a place to look in, after the environment's own.
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "fresh"), "--quiet"]
    # The packages of this environment would count as installed.
    subprocess.run([*pip, "install", "--no-deps", "--ignore-installed", str(wheel)], check=True)

    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "nnUNet_extTrainer")
    }
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        environment[f"nnUNet_{name}"] = str(tmp_path / name)
    command = str(tmp_path / "fresh" / "bin" / "nnunet-ssp")

    def run(*words: str) -> str:
        done = subprocess.run(
            [command, *words], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    line = run("env").strip()
    variable, _, folder = line.removeprefix("export ").partition("=")
    assert folder == str(site / "nnunet_ssp" / "trainers")
    environment[variable] = folder
    said = run("doctor")
    assert f"nnunet-ssp {nnunet_ssp.__version__}," in said and "FAILED" not in said
    (found,) = (line for line in said.splitlines() if "nnU-Net finds" in line)
    trainers = {file.stem for file in (ROOT / "trainers").glob("nnUNet*.py")}
    assert trainers == set(re.findall(r"nnUNetTrainer\w+", found))
    run("phantom", "source", "--labelled", "2", "--matrix", "32", "--frames", "2", "--slices", "3")
    run("convert", "mnms", "-i", "source", "-d", "901")
    (dataset,) = (tmp_path / "raw").glob("Dataset901_*")
    assert len(list((dataset / "imagesTr").iterdir())) == 4
