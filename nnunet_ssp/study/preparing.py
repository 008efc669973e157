"""Preparation of a study before its first training: a phantom if it asks for one, and its folds."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nnunet_ssp.cohort.dataset import open_dataset
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.contents import read_json
from nnunet_ssp.heartbeat import work
from nnunet_ssp.launch import find_command, planning_command
from nnunet_ssp.nnunet import NNUNET_FOLDERS, dataset_id, environment
from nnunet_ssp.study.data import Data, open_data, planned
from nnunet_ssp.study.runs import Run
from nnunet_ssp.study.spec import Study
from nnunet_ssp.training.handover import TIMM

PHANTOM_NUMBER, PHANTOM_NAME = 998, "StudyPhantom"
RECORD = "phantom.json"  # what the phantom was made with


def phantom_name(study: Study) -> str:
    """Return the name of the dataset of a study's phantom."""
    return f"Dataset{PHANTOM_NUMBER}_{PHANTOM_NAME}"


def make_phantom(study: Study, output: Path) -> str:
    """Write, convert and prepare a study's phantom, unless that was done.

    Returns:
        The dataset's name.

    Raises:
        RuntimeError: A command failed; the message shows the end of its log.
        ValueError: `output` holds another phantom.
    """
    assert study.phantom is not None
    wanted = {"phantom": study.phantom.model_dump(), "prepare": study.prepare, "plans": study.plans}
    record = output / RECORD
    if record.is_file():
        if read_json(record, dict) != wanted:
            raise ValueError(
                f"{output} holds another phantom ({record}): give another folder with -o."
            )
        return phantom_name(study)
    given = study.phantom.model_dump(exclude_none=True)
    fields = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    number = str(PHANTOM_NUMBER)
    where = ("-i", "phantom", "-d", number, "--name", PHANTOM_NAME)
    print("Making the phantom ...", flush=True)
    for arguments in (
        ("phantom", "phantom", *fields),
        ("convert", "mnms", *where, "--overwrite"),
        ("prepare", number, *shlex.split(study.prepare)),
    ):
        _command(("nnunet-ssp", *arguments), output)
    write_json(record, wanted)
    return phantom_name(study)


def make_plans(study: Study) -> None:
    """Prepare the dataset by the plans that the study describes and its runs name, if it has none of the name.

    Raises:
        RuntimeError: The command failed.
    """
    assert study.dataset is not None
    for plans, arguments in _missing_plans(study).items():
        print(f"Preparing {study.dataset} with plans {plans} ...", flush=True)
        _command(tuple(shlex.split(_planning(study, plans, arguments))), Path.cwd())


def plans_to_be_made(study: Study) -> list[str]:
    """Say in words which plans `make_plans` will make, of a dataset that is there.

    Raises:
        FileNotFoundError: There is no such dataset.
        RuntimeError: One of nnU-Net's variables is not set.
    """
    if study.phantom is not None or study.dataset is None:
        return []
    name = open_dataset(study.dataset).home.name
    return [
        f"{name} has no plans {plans} yet: the study makes them, with {_planning(study, plans, arguments)}"
        for plans, arguments in _missing_plans(study).items()
    ]


def _missing_plans(study: Study) -> dict[str, str]:
    """Return what `prepare` is told for each plans that the study makes, by name."""
    own = {} if study.phantom else {study.plans: study.prepare}
    wanted = {**own, **study.plans_of_runs()}
    dataset = str(study.dataset)
    return {name: how for name, how in wanted.items() if how and not planned(dataset, name)}


def _planning(study: Study, plans: str, arguments: str) -> str:
    return planning_command(dataset_id(str(study.dataset)), plans, arguments)


def link_validation_images(trainings: Iterable[Run], data: Data, output: Path) -> None:
    """Link the images of each fold's validation cases in a folder that `nnUNetv2_predict` takes.

    Raises:
        FileNotFoundError: A case has no image.
    """
    for fold in dict.fromkeys(run.fold for run in trainings):
        folder = output / data.validation_images(fold)
        folder.mkdir(parents=True, exist_ok=True)
        for case in data.fold(fold)[1].val:
            found = sorted((data.dataset.raw / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].*"))
            if not found:
                raise FileNotFoundError(f"{data.dataset.raw}: {case} of fold {fold} has no image.")
            for image in found:
                link = folder / image.name
                if link.exists():
                    continue
                link.unlink(missing_ok=True)  # it led to a folder that was moved since
                try:
                    link.symlink_to(image)
                except OSError:  # not every file system has links
                    shutil.copyfile(image, link)


def missing_files(trainings: Iterable[Run], output: Path) -> list[str]:
    """List, in words, the files of weights that trainings start from and that are not in the study's folder."""
    named = {before.file: before for run in trainings for before in run.origin if before.file}
    return [
        f"{output / file.removeprefix(TIMM)} is missing: the pretraining {before.name} is this file. Put it there, or "
        "leave its models out with --models."
        for file, before in named.items()
        if not before.digest and file != TIMM
    ]


def missing_folds(study: Study, data: Data) -> list[str]:
    """List the folds that the study needs and the dataset lacks."""
    wanted = [study.fold_of(label, seed) for _, label, seed in study.needed()]
    for before in {study.models[name].pretraining for name, _, _ in study.needed()}:
        for part in study.origin_of(before):
            if part.dataset is None and part.file is None:
                wanted.append(study.folds.get(part.fold, part.fold))
    return [name for name in dict.fromkeys(wanted) if not data.has_fold(name)]


def make_folds(study: Study, data: Data) -> Data:
    """Append the missing folds as the study says; existing folds stay as they are.

    Returns:
        The dataset with these folds.

    Raises:
        RuntimeError: A command failed.
        ValueError: Some folds are still missing.
    """
    if not missing_folds(study, data):
        return data
    for arguments in study.make_folds:
        _command(("nnunet-ssp", "folds", data.number, *shlex.split(arguments)), Path.cwd())
    data = open_data(data.name, data.plans_name)
    if missing := missing_folds(study, data):
        raise ValueError(
            f"{data.dataset.home} has no fold called {', '.join(missing)}: make it with nnunet-ssp folds "
            f"{data.number}, or name another in the study's `folds`."
        )
    return data


def folds_that_cannot_be_made(study: Study, dataset: str | int) -> str:
    """Make the missing folds in a copy of the dataset's tables, and say what is missing then.

    Returns:
        The reason in words; empty if the study's `make_folds` makes all of them.
    """
    data = Data(open_dataset(dataset), study.plans, {})
    missing = missing_folds(study, data)
    if not missing:
        return ""
    if not study.make_folds:
        return f"{data.name} has no fold called {', '.join(missing)}"
    with tempfile.TemporaryDirectory() as place:
        folders = (data.dataset.raw, data.dataset.prepared)
        copies = {name: Path(place) / name for name in NNUNET_FOLDERS}
        for copy, folder in zip(copies.values(), folders, strict=False):
            _link_without_tables(folder, copy / folder.name)
        with environment(**{name: str(folder) for name, folder in copies.items()}):
            try:
                for arguments in study.make_folds:
                    words = shlex.split(arguments)
                    _command(("nnunet-ssp", "folds", data.number, *words), Path.cwd())
            except RuntimeError as error:
                return str(error)
            missing = missing_folds(study, replace(data, dataset=open_dataset(data.name)))
    if not missing:
        return ""
    how = f"nnunet-ssp folds with {' and '.join(study.make_folds)}"
    return f"{data.name}: {how} makes no fold called {', '.join(missing)}"


def _link_without_tables(folder: Path, copy: Path) -> None:
    """Copy a dataset's tables and link all else; nothing that is written to the copy reaches the dataset."""
    if not folder.is_dir():
        return
    copy.mkdir(parents=True)
    for file in folder.iterdir():
        if file.suffix in (".csv", ".json") and file.is_file():
            shutil.copyfile(file, copy / file.name)
        elif not file.name.startswith("."):
            with suppress(OSError):  # not every file system has links
                (copy / file.name).symlink_to(file.resolve(), target_is_directory=file.is_dir())


def _command(command: Sequence[str], folder: Path) -> None:
    """Run a command in a folder.

    Raises:
        RuntimeError: It failed.
    """
    with work(f"running {shlex.join(command)}"):
        done = subprocess.run(
            [find_command(command[0]), *command[1:]],
            cwd=folder,
            env=dict(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(f"{shlex.join(command)} failed:\n{tail}")
