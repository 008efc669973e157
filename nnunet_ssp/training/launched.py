"""`nnunet-ssp train`: nnU-Net's training command for processes that torchrun starts, on one machine or several."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

from nnunet_ssp.console import path
from nnunet_ssp.launch import NNUNET_PLANS
from nnunet_ssp.nnunet import dataset_folder, nnunet_folder

HELP = """Pretrain on the GPUs of several machines: as nnUNetv2_train, in every process that torchrun starts.

    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --no-python \\
        nnunet-ssp train 114 2d 0 -tr nnUNetTrainerMIMPretrain

The machines share nnUNet_preprocessed and nnUNet_results. Batch sizes are those of all processes together, and the
result does not depend on their number. On one machine nnUNetv2_train -num_gpus N does the same.
"""


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train",
        help="pretrain on several machines, under torchrun; on one, nnUNetv2_train does",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", help="dataset id or name, as in nnUNetv2_train")
    add("configuration", help="a 2D configuration of its plans, usually 2d")
    add("fold", help="number of the fold, or all")
    add("-tr", dest="trainer", required=True, metavar="TRAINER", help="one of our ...Pretrain")
    add("-p", dest="plans_name", metavar="PLANS", default=NNUNET_PLANS, help="name of the plans")
    add(
        "-pretrained_weights",
        dest="weights",
        metavar="FILE",
        type=path,
        help="file of another training to begin from",
    )
    add("--c", dest="go_on", action="store_true", help="go on from the last checkpoint")
    add("--disable_checkpointing", action="store_true", help="save nothing")
    add("-device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.set_defaults(
        run=lambda args: train(**{k: v for k, v in vars(args).items() if k != "run"})
    )


def train(
    dataset: str,
    configuration: str,
    fold: str,
    trainer: str,
    plans_name: str = NNUNET_PLANS,
    weights: Path | None = None,
    go_on: bool = False,
    disable_checkpointing: bool = False,
    device: str = "cuda",
) -> None:
    """Pretrain in this process, together with the others that torchrun has started.

    Args:
        dataset: Id or name of the dataset.
        configuration: A 2D configuration of its plans.
        fold: Number of the fold, or `all`.
        trainer: Name of the trainer.
        plans_name: Name of the plans.
        weights: File to begin from.
        go_on: Whether to go on from the last checkpoint.
        disable_checkpointing: Whether to save nothing.
        device: Kind of the device.

    Raises:
        ValueError: The trainer is none of pretraining, the fold is no number, or the ranks differ.
    """
    _require_number(fold, dataset)
    dataset_folder(nnunet_folder("nnUNet_preprocessed"), dataset)  # nnU-Net's error names none
    from nnunet_ssp.launch import TRAINERS_VARIABLE, with_trainers
    from nnunet_ssp.parallel import small_machine_environment

    # Read when nnU-Net is imported.
    os.environ.update(small_machine_environment(os.environ))
    os.environ[TRAINERS_VARIABLE] = with_trainers()
    import torch

    from nnunet_ssp.distributed import joined

    if device == "cuda":
        torch.set_num_threads(1)  # as nnU-Net's command
    with joined(torch.device(device)):
        _train(
            dataset,
            configuration,
            fold,
            trainer,
            plans_name,
            weights,
            go_on,
            disable_checkpointing,
            torch.device(device),
        )


def _require_number(fold: str, dataset: str) -> None:
    """Refuse what is no fold before PyTorch is imported; of a fold's name, tell the number."""
    # Here, as every command imports this module.
    from nnunet_ssp.cohort.dataset import open_dataset, read_folds
    from nnunet_ssp.nnunet import must_be_fold

    names = []
    with suppress(OSError, RuntimeError, ValueError):  # no such dataset, or one without our tables
        data = open_dataset(dataset)
        names = [f.name for f in read_folds(data.prepared) or data.folds]  # what is trained on
    named = "".join(f"; {name} is {n}" for n, name in enumerate(names) if name == fold)
    must_be_fold(fold, f"{named}; nnunet-ssp folds {dataset} lists them.")
    if names and fold != "all" and int(fold) >= len(names):
        raise ValueError(
            f"fold (={fold}) must be all or one of the {len(names)} folds, counted from 0; nnunet-ssp folds {dataset} "
            "lists them."
        )


def _train(
    dataset: str,
    configuration: str,
    fold: str,
    trainer: str,
    plans_name: str,
    weights: Path | None,
    go_on: bool,
    disable_checkpointing: bool,
    device: object,
) -> None:
    from nnunetv2.run.run_training import run_training
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    if not hasattr(recursive_find_trainer_class_by_name(trainer), "method_class"):
        raise ValueError(
            f"-tr (={trainer}) must be one of our trainers of pretraining; for others there is nnUNetv2_train."
        )
    run_training(
        *(dataset, configuration, fold, trainer, plans_name),
        None if weights is None else str(weights),
        continue_training=go_on,
        disable_checkpointing=disable_checkpointing,
        device=device,
    )
