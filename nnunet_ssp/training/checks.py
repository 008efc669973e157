"""Checks of a trainer's input before it is used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch

from nnunet_ssp.cohort.outdated import COPIES, changed_masks
from nnunet_ssp.console import count_of, shape_in_words, some
from nnunet_ssp.files.contents import NAMES, check, read_json, shown
from nnunet_ssp.files.names import must_be_plain
from nnunet_ssp.files.nnunet import check_dataset, check_plans, configuration_of
from nnunet_ssp.nnunet import must_be_fold
from nnunet_ssp.slices.intact import prepare_command
from nnunet_ssp.slices.store import read_index, store_folder
from nnunet_ssp.training import snapshots
from nnunet_ssp.training.loop import FINAL
from nnunet_ssp.training.transfer import Pretrained

T = TypeVar("T")


def check_files(
    plans: dict[str, Any],
    configuration: str,
    fold: int | str,
    dataset_json: dict[str, Any],
    trust: bool = False,
) -> None:
    """Check the content of nnU-Net's files before it becomes part of a path or names what is imported.

    Args:
        plans: Content of the plans file.
        configuration: Name of a configuration in it.
        fold: Number of the fold, or `all`.
        dataset_json: Content of `dataset.json`.
        trust: Whether the plans may name any class, see `check_plans`.

    Raises:
        ValueError: A value breaks its rule.
    """
    name = shown(plans.get("plans_name", "")) if isinstance(plans, dict) else ""
    check(
        {"plans": plans, "dataset.json": dataset_json},
        {"plans": NAMES, "dataset.json": NAMES},
        name,
    )
    check_plans(plans, f"plans {name}", trust)
    configuration_of(plans, configuration, f"plans {name}")
    check_dataset(dataset_json, f"dataset.json of {plans['dataset_name']}", ("labels",))
    must_be_plain(str(fold), "fold")
    if not isinstance(fold, int):  # the trainer says which numbers there are
        must_be_fold(fold, ": nnU-Net knows folds by their numbers.")


def refuses_other_content(load: Callable[[T, Any], None]) -> Callable[[T, Any], None]:
    """Make a trainer's `load_checkpoint` say in words that the file does not fit this run."""

    @wraps(load)
    def loading(trainer: T, source: Any) -> None:
        try:
            load(trainer, source)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            file = source if isinstance(source, str) else "the checkpoint"
            raise ValueError(
                f"{file}: this run cannot continue from it, as a part of it does not fit "
                f"({type(error).__name__}: {shown(str(error))})."
            ) from error

    return loading


def require_device(device: torch.device, command: str) -> None:
    """Refuse to train on a GPU where there is none.

    Args:
        device: Where the training would run.
        command: The command that trains on the CPU.

    Raises:
        ValueError: PyTorch finds no CUDA GPU.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"PyTorch finds no CUDA GPU here; to train on the CPU: {command}")


def require_fold(fold: int, folds: Sequence[object], file: Path, dataset: str) -> None:
    """Refuse a number that no fold has.

    Args:
        fold: The number.
        folds: All folds.
        file: That holds them.
        dataset: The dataset's id.

    Raises:
        ValueError: There are not so many.
    """
    if not 0 <= fold < len(folds):
        raise ValueError(
            f"fold (={fold}) must be all or one of the {len(folds)} folds that {file} holds, counted from 0; "
            f"nnunet-ssp folds {dataset} lists them."
        )


def of_unfinished(pretrained: Pretrained) -> list[str]:
    """Say that a file to start from is of a training that has not ended, or a snapshot, if it is.

    Beside the checkpoint of a finished training is its last one.
    """
    file, done = pretrained.file, pretrained.epochs
    if lines := snapshots.notes_on(file, pretrained.ssp):
        return lines
    epochs = pretrained.ssp.get("settings", {}).get("num_epochs")
    if epochs is None or file.name == FINAL or file.with_name(FINAL).is_file():
        return []
    if done is None or done >= epochs:
        return []
    return [f"the file is of a training that has not ended: {done} of {epochs} epochs"]


def refuse_changed_masks(trainer: Any) -> None:
    """Refuse to train on masks that are no longer the dataset's; a run that began with them gets a warning.

    Args:
        trainer: A `FinetuningTrainer` before it builds its network.

    Raises:
        ValueError: Names some of the masks, and the command that prepares them.
    """
    folder, dataset = Path(trainer.preprocessed_dataset_folder), trainer.plans_manager.dataset_name
    ending, store = trainer.dataset_json["file_ending"], store_folder(folder.parent, folder.name)
    changed = sorted(
        {*changed_masks(dataset, folder.parent, ending), *_newer_copies(store, ending)}
    )
    if not changed:
        return
    said = f"{count_of(len(changed), 'mask')} of {dataset} changed after nnunet-ssp prepare ({some(changed, 3)})"
    if trainer.goes_on or "--val" in sys.argv:
        trainer.warn(f"{said}: this run uses the earlier.")
        return
    raise ValueError(
        f"{said}: this training would learn from the earlier. Run {prepare_command(store)}."
    )


def _newer_copies(store: Path, ending: str) -> list[str]:
    """Return cases whose mask was copied anew since these plans were prepared, for others; told by the size."""
    try:
        _, stored = read_index(store)
    except (OSError, ValueError):  # of nnU-Net's own preprocessing; a damaged one is named later
        return []
    copies = {copy.name: copy.stat().st_size for copy in (store.parent / COPIES).glob(f"*{ending}")}
    return [
        case
        for case, entry in stored.items()
        for name, size, _ in entry.source
        if name == f"{case}{ending}" and copies.get(name, size) != size
    ]


def refuse_lost_start(trainer: Any) -> None:
    """Refuse to begin from scratch under `--c` what had begun from an earlier training's weights.

    Args:
        trainer: A `PretrainingTrainer` that has loaded no checkpoint.

    Raises:
        ValueError: Names the file that the training began from.
    """
    record = Path(trainer.output_folder) / "settings.json"
    if not trainer.goes_on or not record.is_file():
        return
    start = str(read_json(record, dict).get("weights_from", "scratch"))
    if start != "scratch":
        raise ValueError(
            f"{record.parent} has no checkpoint for --c, and its training began from {shown(start)}: start it again "
            f"from that file: {trainer.command('-pretrained_weights', f'FOLDER/{start}')}"
        )


def refuse_unsuitable(trainer: Any) -> None:
    """Refuse what cannot be pretrained: a 3D configuration, a cascade.

    Args:
        trainer: A `PretrainingTrainer` before it builds its network.

    Raises:
        ValueError: Says what to use instead.
    """
    name, configuration = type(trainer).__name__, trainer.configuration_name
    patch_size = trainer.configuration_manager.patch_size
    if len(patch_size) != 2:
        raise ValueError(
            f"configuration (={configuration}) must be 2D: {name} pretrains the planned 2D network, this one has the "
            f"patch {shape_in_words(patch_size)}. Use: {trainer.command(configuration='2d')}"
        )
    if trainer.is_cascaded:
        raise ValueError(f"configuration (={configuration}) must not be a cascade.")
