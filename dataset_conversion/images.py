"""Natural images: a tree of PNG, JPEG or TIFF, as an unlabelled 2D dataset of RGB images to pretrain on first.

    nnunet-ssp convert images -i FOLDER -d 150
    nnunet-ssp prepare 150 --plans-from 114         under the plans of the dataset that follows

All images below FOLDER are taken, in whatever folders. Colours are kept as they are, grey images become RGB. An image
that is not exactly 8-bit RGB is named and left out: CMYK, 16 bits, transparent, animated, truncated or empty.
"""

from __future__ import annotations

import argparse
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_ssp import __version__
from nnunet_ssp.console import count_of
from nnunet_ssp.conversion.convert import failures_in_words
from nnunet_ssp.conversion.natural import ImageOutcome, case_of, find_images, write_images
from nnunet_ssp.conversion.record import NewDataset, check_folder, made_otherwise, without_folder
from nnunet_ssp.dataset_conversion.command import add_place, add_running
from nnunet_ssp.files.atomic import TEMPORARY, write_json
from nnunet_ssp.files.lock import locked_dataset
from nnunet_ssp.nnunet import check_dataset_id, nnunet_folder
from nnunet_ssp.parallel import number_of_workers, process

FOLDER, ENDING = "imagesTr", "_0000.png"
CHANNELS = ("red", "green", "blue")
AT_ONCE = 64  # images of one piece of work
SHOWN = 20  # refused images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`, under the same names."""
    add_place(parser, "the images, in whatever folders below it", "Images", "Dataset150_Images")
    add_running(parser)


def convert(
    input_folder: str | Path,
    dataset_id: int,
    name: str = "Images",
    *,
    overwrite: bool = False,
    workers: int | None = None,
) -> Path:
    """Convert a tree of natural images and print a summary.

    Args:
        input_folder: See the head of this module.
        dataset_id: Number of the new dataset.
        name: Name of the new dataset.
        overwrite: Delete an earlier conversion of this id and start again.
        workers: Number of processes, see `parallel.number_of_workers`.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: The id is taken, or the folder is not ours to continue or delete.
        FileNotFoundError: There is no such folder.
        RuntimeError: Writing failed, a worker died, or another process works on this dataset; a second run continues.
        ValueError: There is no image, or none could be converted.
    """
    workers = number_of_workers(workers)
    source = Path(input_folder)
    images, others = find_images(source)
    new = NewDataset(dataset_id, name, {"background": 0}, "", "images", source, {})
    target = check_dataset_id(dataset_id, name)
    if not (target / "convert.json").is_file():  # a folder that is not ours gets no lock, either
        check_folder(target, new.settings(), overwrite)
    prepared = nnunet_folder("nnUNet_preprocessed") / target.name
    with failures_in_words(target), locked_dataset(target, prepared, create=target):
        check_dataset_id(dataset_id, name)  # it may have been taken since
        check_folder(target, new.settings(), overwrite)
        if overwrite and (made := made_otherwise(target, new.settings())):
            print(f"Replacing {target.name}, {made}")
        lines = _convert(target, new, images, overwrite, workers)
    if others:
        lines.append(f"{count_of(others, 'other file')} left alone.")
    print("\n".join(lines))
    print(
        f"\nConverted to {target}\nNext, with the dataset to train on afterwards in place of DATASET:\n"
        f"nnunet-ssp prepare {dataset_id} --plans-from DATASET"
    )
    return target


def _convert(
    target: Path, new: NewDataset, images: list[Path], overwrite: bool, workers: int
) -> list[str]:
    """Convert the images into a folder of ours and finish it; return the lines of the summary."""
    marker = {**new.settings(), "version": __version__}
    write_json(target / "convert.json", marker)
    (target / "dataset.json").unlink(missing_ok=True)
    names = [case_of(image.relative_to(new.source)) for image in images]
    pairs = [
        (image, target / FOLDER / f"{name}{ENDING}")
        for image, name in zip(images, names, strict=True)
    ]
    _remove(target, set() if overwrite else {copy for _, copy in pairs})
    parts = [pairs[start : start + AT_ONCE] for start in range(0, len(pairs), AT_ONCE)]
    done: list[ImageOutcome] = []
    for results in process(write_images, parts, workers, "Converting", "batch of images"):
        done += results
    whole = {copy for (_, copy), found in zip(pairs, done, strict=True) if not found.refused}
    refused = [without_folder(found.refused, new.source) for found in done if found.refused]
    _remove(target, whole)  # of images that an interrupted run has converted, and have changed
    shutil.rmtree(target / TEMPORARY, ignore_errors=True)
    if not whole:
        _withdraw(target)
        raise ValueError(
            f"{new.source}: no image could be converted.\n" + "\n".join(_listing(refused))
        )
    nbytes = sum(found.nbytes for found in done)
    write_json(target / "convert.json", {**marker, "refused": refused, "nbytes": nbytes})
    write_json(target / "dataset.json", _dataset_json(len(whole)))
    sides = [found.side for found in done if found.side]
    return [
        "",
        f"{count_of(len(whole), 'image')} converted ({nbytes / 1e6:.3g} MB), {len(refused)} refused. "
        f"Shorter sides: {min(sides)} to {max(sides)} pixels.",
        *_listing(refused),
    ]


def _withdraw(target: Path) -> None:
    """Remove a conversion without images; files that are not ours stay, and the folder with them."""
    (target / "convert.json").unlink()
    for folder in (target / FOLDER, target):
        with suppress(OSError):
            folder.rmdir()


def _listing(refused: list[str]) -> list[str]:
    more = [f"  ... and {len(refused) - SHOWN} more, see convert.json"]
    return [f"  {line}" for line in refused[:SHOWN]] + more * (len(refused) > SHOWN)


def _remove(target: Path, keep: set[Path]) -> None:
    """Remove the images of this conversion that do not belong there any more."""
    for file in (target / FOLDER).glob(f"[!.]*{ENDING}"):
        if file not in keep:
            file.unlink()


def _dataset_json(n_images: int) -> dict[str, Any]:
    return {
        "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
        "labels": {"background": 0},
        "numTraining": n_images,
        "file_ending": ".png",
        "natural_images": True,
        "description": "natural images, to pretrain on",
        "converted_by": f"nnunet-ssp {__version__}",
    }
