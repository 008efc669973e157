"""`docs/adding-a-method.md`, followed to the letter in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COPIED = (
    "nnunet_ssp trainers dataset_conversion docs tests/conftest.py tests/test_layering.py "
    "pyproject.toml README.md Makefile"
)
FEW = "num_epochs=1 iterations_per_epoch=2"


def blocks() -> dict[str, str]:
    """The page's Python by the file that its first line names."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text()
    found = re.findall(r"^```python\n# (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(found) == text.count("```python")
    return dict(found)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of the page.

    Lines for a file that exists go into its imports, sorted, and indented ones into its tuple `METHODS`.
    """
    copy = tmp_path_factory.mktemp("project")
    for name in COPIED.split():
        (copy / name).parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    for folder in ("trainers", "dataset_conversion"):  # where an installation puts them
        (copy / "nnunet_ssp" / folder).symlink_to(copy / folder)
    for name, code in blocks().items():
        file = copy / name
        if file.exists():
            text, new = file.read_text(), code.splitlines(keepends=True)
            lines = text.splitlines(keepends=True)
            imports = [line for line in lines if line.startswith("from ")]
            added = sorted([*imports, *(line for line in new if line.startswith("from "))])
            text = text.replace("".join(imports), "".join(added))
            before, opening, members = text.partition("METHODS: tuple[type[Method], ...] = (\n")
            assert opening
            code = "".join([before, opening, *(line for line in new if line[0] == " "), members])
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    return copy


def run(project: Path, *words: object) -> str:
    """Return what a command of this Python environment prints, with the copy in place of the checkout."""
    env = {**os.environ, "PYTHONPATH": str(project)}
    program, *arguments = map(str, words)
    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments],
        cwd=project,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}"
    return done.stdout


def test_the_page_names_its_files() -> None:
    assert list(blocks()) == [
        "nnunet_ssp/methods/rotation.py",
        "nnunet_ssp/methods/__init__.py",
        "trainers/nnUNetTrainerRotationPretrain.py",
        "tests/methods/test_rotation.py",
        "own_trainers/nnUNetTrainerFinetuneSmooth.py",
    ]


@pytest.mark.heavy
def test_its_own_tests_and_the_layering_pass(project: Path) -> None:
    tests = ("tests/methods/test_rotation.py", "tests/test_layering.py")
    # The copy has no tests of other modules.
    chosen = ("-k", "not every_module_has_its_tests")
    said = run(project, "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *chosen)
    assert re.search(r"^\d+ passed", said, re.MULTILINE)


def test_the_settings_page_takes_it_up(project: Path) -> None:
    run(project, "python", "docs/make_settings.py")
    page = (project / "docs" / "settings.md").read_text()
    assert "| `nnUNetTrainerRotationPretrain` |" in page
    assert "| `softness` | number | `1.0` | Divides the scores before the softmax" in page


@pytest.mark.heavy
def test_it_pretrains_and_fine_tunes(
    project: Path,
    preprocessed: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., str],
) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(project / "trainers"))
    monkeypatch.setenv("PYTHONPATH", str(project))
    train = ("nnUNetv2_train", 901, "2d", 0, "-p", "tiny", "-device", "cpu", "-tr")
    settings = f"{FEW} batch_size=8 softness=2"
    said = command(
        *train, "nnUNetTrainerRotationPretrain", folder=project, nnUNet_ssp_settings=settings
    )
    assert re.search(r": accuracy: train \d\.\d{4}, val \d\.\d{4}", said)
    weights = said.split("-pretrained_weights ")[-1].split()[0]
    ssp = torch.load(weights, weights_only=True)["ssp"]
    assert (ssp["method"], ssp["transfers"], ssp["settings"]["softness"]) == (
        "Rotation",
        "encoder",
        2,
    )

    settings = f"{FEW} val_iterations_per_epoch=1 final_validation=no softness=2"
    words = ("nnUNetTrainerFinetune", "-pretrained_weights", weights)
    said = command(*train, *words, folder=project, nnUNet_ssp_settings=settings)
    assert "Settings of other trainers, ignored here: softness" in said
    assert "encoder 32 tensors, decoder 0, fresh 36" in said
