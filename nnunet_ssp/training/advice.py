"""The last line below an error that nnU-Net's command raises before a trainer of ours exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nnunet_ssp.console import nearest, nearest_first, some
from nnunet_ssp.files.nnunet import names_of_plans
from nnunet_ssp.launch import planning_command, trainers_folder
from nnunet_ssp.nnunet import dataset_id, has_tilde, without_tilde

NEEDED = ("nnUNet_preprocessed", "nnUNet_results")  # of a training; it reads nothing in nnUNet_raw


def advice(error: BaseException) -> str:
    """Return what to do about a mistyped trainer, dataset or plans name; empty for any other error."""
    text = str(error)
    if found := re.search(r"Could not find requested nnunet trainer (\S+)", text):
        return _trainer(found[1])
    if found := re.search(r"Could not find a dataset with the ID (\d+)", text):
        return _dataset(found[1])
    if found := re.search(r"dataset_name_or_id must .*Your input: (.*)", text, re.DOTALL):
        return _dataset(found[1])
    if isinstance(error, TypeError) and "NoneType" in text:  # nnU-Net joins a path to no folder
        return _unset()
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str):
        return _file(Path(error.filename))
    return ""


def _trainer(name: str) -> str:
    names = sorted(file.stem for file in trainers_folder().glob("nnUNetTrainer*.py"))
    near = nearest(name, [*names, "nnUNetTrainer"])
    return f"no trainer is called {name}.{near} nnunet-ssp doctor lists ours."


def _unset() -> str:
    """Return what to type where a variable that a training needs is not set; empty if none is missing."""
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if not missing:
        return ""
    lines = " ".join(f"{name}=/where/you/keep/{name}" for name in missing)
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set in this shell: export {lines}"


def _dataset(wanted: str) -> str:
    if unset := _unset():
        return f"no dataset {wanted}: {unset}"
    base = Path(value := os.environ.get("nnUNet_preprocessed", ""))
    if has_tilde(value):
        return (
            f"no dataset {wanted}: nnU-Net takes ~ for a folder of that name. "
            f"{without_tilde('nnUNet_preprocessed')}"
        )
    there = {folder.name for folder in base.glob("Dataset*") if names_of_plans(folder)}
    known = some(nearest_first(wanted, there)) or "none"
    return f"no dataset {wanted}; prepared are: {known}. nnunet-ssp prepare ID prepares one."


def _is_raw(name: str) -> bool:
    """Whether there is a dataset of this name to be prepared."""
    return Path(os.environ.get("nnUNet_raw", ""), name).is_dir()


def _file(file: Path) -> str:
    """Return advice on a missing file of a prepared dataset."""
    folder = file.parent
    if folder.parent != Path(os.environ.get("nnUNet_preprocessed", "")) or file.suffix != ".json":
        return ""
    plans = names_of_plans(folder)
    if not plans and not _is_raw(folder.name):
        return _dataset(folder.name)
    if not plans:
        try:
            number = dataset_id(folder.name)
        except ValueError as rule:  # a folder that somebody has named by hand
            return str(rule)
        return f"{folder.name} is not prepared: {planning_command(number, file.stem)}"
    return f"{folder.name} has no plans called {file.stem}; choose with -p: {', '.join(plans)}"
