"""Environments of their own, with what this package needs and, from its wheel, the package itself or not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
IN_THE_WHEEL = (
    *("nnunet_ssp", "trainers", "dataset_conversion"),
    *("pyproject.toml", "README.md", "LICENSE"),
)
# Runs a console script of another distribution, which the environment sees, but has no file for.
SCRIPT = (
    "import sys; from importlib.metadata import entry_points; sys.argv.pop(0); "
    "(found,) = entry_points(group='console_scripts', name=sys.argv[0]); sys.exit(found.load()())"
)


class Fresh:
    """A virtual environment, and nnU-Net's three folders for what runs in it.

    Args:
        base: Folder for all that.
        ours: Whether this package is installed, from its wheel.
    """

    def __init__(self, base: Path, ours: bool) -> None:
        self.base = base
        venv.create(base / "fresh", with_pip=False, symlinks=True)
        self.python = base / "fresh" / "bin" / "python"
        (self.site,) = (base / "fresh" / "lib").glob("python*/site-packages")
        # A place to look in, after the environment's own; an editable package there is not found.
        (self.site / "needed.pth").write_text(sysconfig.get_path("purelib"))
        outside = ("PYTHONPATH", "nnUNet_extTrainer", "nnUNet_ssp_settings")
        self.environment = {k: v for k, v in os.environ.items() if k not in outside}
        self.environment |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
        for kind in ("raw", "preprocessed", "results"):
            (base / kind).mkdir()
            self.environment[f"nnUNet_{kind}"] = str(base / kind)
        if ours:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
            source = copied(base)
            subprocess.run([*pip, "wheel", "--no-deps", "-w", str(base), str(source)], check=True)
            (wheel,) = base.glob("*.whl")
            pip += ["--python", str(base / "fresh"), "install", "--no-deps", "--ignore-installed"]
            subprocess.run([*pip, str(wheel)], check=True)

    def run(self, *words: object, **variables: str) -> str:
        """Return all that a command of this environment prints; it must end well."""
        done = subprocess.run(
            [str(self.python), "-c", SCRIPT, *map(str, words)],
            env={**self.environment, **variables},
            cwd=self.base,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}"
        return done.stdout

    def has(self, package: str) -> bool:
        """Whether the environment can import a package."""
        words = [str(self.python), "-c", f"import {package}"]
        done = subprocess.run(words, env=self.environment, cwd=self.base, capture_output=True)
        return done.returncode == 0


def copied(folder: Path) -> Path:
    """A copy without build folders: setuptools would put stale files of an earlier build into the wheel."""
    source = folder / "source"
    source.mkdir()
    for name in IN_THE_WHEEL:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    return source
