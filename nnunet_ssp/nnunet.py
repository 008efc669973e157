"""nnU-Net's folders, dataset numbers and environment variables, and its output silenced."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from nnunet_ssp.console import nearest_first, some
from nnunet_ssp.files.names import must_be_plain

NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def nnunet_folder(variable: str) -> Path:
    """Return the folder that one of nnU-Net's environment variables names.

    Args:
        variable: `nnUNet_raw`, `nnUNet_preprocessed` or `nnUNet_results`.

    Raises:
        RuntimeError: The variable is not set, or holds a `~` that the shell has left there.
    """
    value = os.environ.get(variable)
    if not value:
        raise RuntimeError(
            f"The environment variable {variable} is not set. nnU-Net needs all three of "
            f"{', '.join(NNUNET_FOLDERS)}, e.g. export {variable}=/data/{variable}"
        )
    if has_tilde(value):
        raise RuntimeError(
            f"{variable}={value}: nnU-Net takes ~ for a folder of that name. {without_tilde(variable)}"
        )
    folder = Path(value)
    if not folder.is_absolute():
        _note_relative(variable, folder)
    return folder


def results_here() -> Path:
    """Return `nnUNet_results`; where it is not set, a path below which there is nothing."""
    return Path(os.environ.get("nnUNet_results") or os.devnull)


def check_folders() -> None:
    """Check those of nnU-Net's variables that are set, as `nnunet_folder` does."""
    for variable in NNUNET_FOLDERS:
        if os.environ.get(variable):
            nnunet_folder(variable)


@lru_cache
def _note_relative(variable: str, folder: Path) -> None:
    """Say once that a folder is another one for a command that runs elsewhere."""
    line = f"export {variable}={shlex.quote(str(folder.resolve()))}"
    print(
        f"Note: {variable}={folder} is another folder in each working folder: {line}",
        file=sys.stderr,
    )


def has_tilde(value: str) -> bool:
    """Return whether a path holds the home folder's sign, which the shell leaves in quotes and nnU-Net takes as is."""
    return value.startswith("~") or "~" in Path(value).parts


def without_tilde(variable: str) -> str:
    """Return the line that sets one of nnU-Net's variables, which holds a `~`, to the folder that was meant."""
    value = os.environ[variable]
    parts = Path(value).parts
    place = 0 if value.startswith("~") else parts.index("~")
    meant = os.path.expanduser(Path(*parts[place:]))
    if has_tilde(meant):  # there is no such user, or another one
        meant = f"/where/you/keep/{variable}"
    return f"export {variable}={shlex.quote(meant)}"


def dataset_id(dataset: str | int) -> int:
    """Return the number of a dataset given as a number or as `DatasetXXX_Name`.

    Raises:
        ValueError: It is neither, or the number is not within 1 to 999.
    """
    match = re.fullmatch(r"([0-9]+)|Dataset([0-9]{3})_.+", str(dataset))
    if match is None:
        raise ValueError(
            f"`dataset` (={dataset}) must be a number (114) or a full name (Dataset114_MNMs). "
            f"{datasets_there(str(dataset))}"
        )
    number = int(match[1] or match[2])
    if not 1 <= number <= 999:
        raise ValueError(f"dataset id (={number}) must be within 1 to 999, nnU-Net's three digits.")
    return number


def datasets_there(wanted: str) -> str:
    """Return a sentence that lists the datasets in nnU-Net's folders, those first that are most like a wrong one."""
    bases = [Path(os.environ[name]) for name in NNUNET_FOLDERS if os.environ.get(name)]
    names = {f.name for base in bases for f in base.glob("Dataset*") if f.is_dir()}
    return f"There are: {some(nearest_first(wanted, names)) or 'no datasets yet'}."


def dataset_folder(base: str | Path, dataset: str | int) -> Path:
    """Return the folder of a dataset within one of nnU-Net's three folders.

    Args:
        base: One of them, for example `nnunet_folder("nnUNet_raw")`.
        dataset: Dataset id (114, "114") or full name ("Dataset114_MNMs").

    Raises:
        FileNotFoundError: `base` has no such dataset.
        ValueError: `dataset` is no id or name, or several folders have this id.
    """
    base = Path(base)
    found = _folders_with_id(base, dataset_id(dataset))
    if str(dataset).startswith("Dataset"):
        found = [folder for folder in found if folder.name == dataset]
    if not found:
        present = nearest_first(str(dataset), {f.name for f in base.glob("Dataset*")})
        raise FileNotFoundError(
            f"{base}: no dataset {dataset} here; found {some(present) or 'no dataset'}."
        )
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise ValueError(f"{base}: dataset id {dataset} must belong to one folder, not to {names}.")
    return found[0]


def check_dataset_id(number: int, name: str) -> Path:
    """Check that a new dataset of this id would be alone in all three of nnU-Net's folders.

    The caller judges a folder of the same id *and* name in `nnUNet_raw`.

    Args:
        number: The dataset's id.
        name: The part after the id: `MNMs` for `Dataset114_MNMs`.

    Returns:
        The dataset's folder in `nnUNet_raw`, existing or not.

    Raises:
        FileExistsError: The id is taken, in any of the folders.
        RuntimeError: One of nnU-Net's three environment variables is not set.
        ValueError: The id or the name is not one nnU-Net can use.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"`name` (={name}) must be made of letters, digits, `_`, `-` and `.`.")
    full_name = must_be_plain(f"Dataset{dataset_id(number):03d}_{name}", "dataset")
    bases = [nnunet_folder(variable) for variable in NNUNET_FOLDERS]
    target = bases[0] / full_name
    for base in bases:
        for folder in _folders_with_id(base, number):
            if folder.name != full_name or not target.is_dir():
                said = f"{folder}: dataset id {number} is taken; choose another id"
                if (folder / "convert.json").is_file():  # ours, under another name
                    raise FileExistsError(
                        f"{said}. To convert that dataset again add --name {folder.name[11:]} --overwrite: this "
                        "deletes the converted dataset, never your files."
                    )
                raise FileExistsError(f"{said} or remove it.")
    return target


def must_be_fold(fold: int | str, more: str = "") -> None:
    """Refuse a fold that nnU-Net cannot read.

    Args:
        fold: What was given.
        more: Words behind the rule.

    Raises:
        ValueError: It is neither a number nor `all`.
    """
    text = str(fold)
    if text != "all" and not (text.isascii() and text.isdecimal()):
        raise ValueError(f"fold (={fold}) must be a number, 0 or above, or all{more}")


def free_dataset_id(first: int = 114) -> int:
    """Return the first id from `first` on that no dataset has in those of nnU-Net's folders that are set."""
    bases = [Path(os.environ[name]) for name in NNUNET_FOLDERS if os.environ.get(name)]
    numbers = (n for n in range(first, 1000) if not any(_folders_with_id(b, n) for b in bases))
    return next(numbers, first)


def _folders_with_id(base: Path, number: int) -> list[Path]:
    return sorted(f for f in base.glob(f"Dataset{number:03d}_*") if f.is_dir())


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables within a `with` block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what nnU-Net prints, unless it fails."""
    chatter = io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter):
            yield
    except Exception:
        print(chatter.getvalue(), end="", file=sys.stderr)
        raise
