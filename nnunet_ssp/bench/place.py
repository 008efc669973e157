"""The place of the measurements: a prepared phantom, trainers on it, and clocks."""

from __future__ import annotations

import contextlib
import gc
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from numpy.typing import NDArray

from nnunet_ssp.dataset_conversion import mnms
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.nnunet import read_dataset, read_plans
from nnunet_ssp.launch import TRAINERS_VARIABLE, trainers_folder
from nnunet_ssp.nnunet import NNUNET_FOLDERS, environment, quiet
from nnunet_ssp.phantom import write_mnms
from nnunet_ssp.preparation.command import prepare

DATASET = "Dataset999_Bench"
PLANS, NARROW = "nnUNetPlans", "narrow"
STOCK = "nnUNetTrainer"


@dataclass(frozen=True)
class Workload:
    """Sizes of everything that is measured.

    Attributes:
        side: Rows and columns of the phantom's slices, and so of the planned patch.
        batch: Slices in a step where speed is measured; None takes each method's own.
        narrow: Divisor of the planned widths where memory is measured and for lightly.
        seconds: Approximate seconds for each row of the table.
        unlabelled: Subjects besides the two labelled ones.
        frames: Frames of each subject, of eight slices each.
        batches: Slices in a step where SimCLR's memory is measured.
        growth: Slices in the synthetic stores, 256 x 256 pixels each.
        study: Frames and slices of the study that is predicted.
        shared: Bytes of the checkpoint that is exported, at least.
    """

    side: int
    batch: int | None
    narrow: int
    seconds: float = 30.0
    unlabelled: int = 6
    frames: int = 16
    batches: tuple[int, ...] = (64, 256, 1024)
    growth: tuple[int, ...] = (1_000, 10_000, 100_000)
    study: tuple[int, int] = (20, 10)
    shared: int = 500_000_000


ON_CPU = Workload(side=64, batch=16, narrow=4)
ON_CUDA = Workload(side=256, batch=None, narrow=1)  # the papers' sizes


def method_names() -> list[str]:
    """List the pretraining trainers, without the beginnings and ends of their names."""
    found = (
        re.fullmatch(rf"{STOCK}(\w+)Pretrain\.py", file.name)
        for file in trainers_folder().iterdir()
    )
    return sorted(match[1] for match in found if match)


def chosen_methods(methods: Sequence[str] | None) -> list[str]:
    """Return methods by their names, in upper or lower case; all for None.

    Raises:
        ValueError: A method is unknown.
    """
    known = {name.lower(): name for name in method_names()}
    unknown = [name for name in methods or () if name.lower() not in known]
    if unknown:
        names = ", ".join(known.values())
        raise ValueError(f"`--methods` (={unknown[0]}) must be some of {names}.")
    return [known[name.lower()] for name in methods or known]


def found_device(device: str | None) -> torch.device:
    """Return the device to measure: the GPU when there is one, unless another is named.

    Raises:
        ValueError: There is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device` (=cuda) must be a device that PyTorch finds here: cpu.")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda":  # as nnUNetv2_train
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = True
    return where


@dataclass
class Bench:
    """A prepared phantom, and trainers on it as `nnUNetv2_train` makes them.

    Attributes:
        folder: Folder of the preprocessed dataset.
        device: Where training runs.
        workload: Sizes of everything.
    """

    folder: Path
    device: torch.device
    workload: Workload

    @classmethod
    @contextmanager
    def prepared(cls, base: Path, device: torch.device, workload: Workload) -> Iterator[Bench]:
        """Make the phantom dataset in `base`, with the planned and with narrow plans, inside nnU-Net's environment."""
        variables = {name: str(base / name) for name in NNUNET_FOLDERS}
        variables |= {TRAINERS_VARIABLE: str(trainers_folder()), "nnUNet_n_proc_DA": "0"}
        variables |= {"nnUNet_wandb_enabled": "0", "nnUNet_ssp_settings": ""}
        with environment(**variables):
            for name in NNUNET_FOLDERS:
                (base / name).mkdir()
            with quiet(), contextlib.redirect_stderr(io.StringIO()):
                source = write_mnms(
                    base / "source",
                    labelled=2,
                    unlabelled=workload.unlabelled,
                    testing=0,
                    matrix=workload.side,
                    frames=workload.frames,
                    slices=8,
                )
                mnms.convert(source, int(DATASET[7:10]), DATASET[11:])
                folder = prepare(DATASET)
            plans = read_plans(folder / f"{PLANS}.json")
            widths = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
            widths["features_per_stage"] = [
                max(1, n // workload.narrow) for n in widths["features_per_stage"]
            ]
            plans["plans_name"] = NARROW
            write_json(folder / f"{NARROW}.json", plans)
            yield cls(folder, device, workload)

    def trainer(self, name: str, plans: str = PLANS, settings: str = "") -> Any:
        """Make and initialise a trainer."""
        content = read_plans(self.folder / f"{plans}.json")
        content["continue_training"] = False
        dataset = read_dataset(self.folder / "dataset.json")
        with environment(nnUNet_ssp_settings=settings), quiet():
            found = recursive_find_trainer_class_by_name(name)
            trainer = found(content, "2d", "all", dataset, self.device)
            trainer.initialize()
        return trainer

    @contextmanager
    def pretraining(
        self,
        method: str,
        plans: str = PLANS,
        batch: int | None = None,
        settle: bool = False,
        **settings: object,
    ) -> Iterator[Any]:
        """Make a pretraining trainer at its first step.

        Args:
            method: Its name.
            plans: Name of its plans.
            batch: Slices in a step; None leaves the method's own.
            settle: Whether `auto` chooses how to compute, as in a run. Else it is float32 on a CPU, and contiguous.
            settings: Other settings.
        """
        gc.collect()  # nnU-Net's trainers refer to themselves, so the one before may still be there
        settings["iterations_per_epoch"] = 1000  # schedules are those of a long run
        if batch is not None:
            settings["batch_size"] = batch
        text = " ".join(f"{key}={value}" for key, value in settings.items())
        trainer = self.trainer(f"{STOCK}{method}Pretrain", plans, text)
        with quiet():
            if settle:
                suits = trainer.method_class.half_precision == "bf16"
                trainer.settle_computing(trainer.method.network, suits)
            else:
                trainer.fuse_norms()
            trainer.dataloader_train, _ = trainer.get_dataloaders()
            trainer.on_train_epoch_start()
        with contextlib.closing(trainer.dataloader_train):
            yield trainer


def now(device: torch.device) -> float:
    """Read the clock in seconds, once the device has done all its work.

    On the CPU these are core-seconds of this process, which other programs on the machine do not lengthen.
    """
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def both_clocks(device: torch.device) -> NDArray[np.float64]:
    """Read `now` and the wall clock, which also counts the time that the process waits."""
    return np.array([now(device), time.perf_counter()])


def in_turns(
    works: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    most: int = 1000,
    clock: Callable[[torch.device], Any] = now,
) -> dict[str, list[Any]]:
    """Run some works in turns, after one round that does not count.

    Args:
        works: Functions by name.
        device: Where they run.
        seconds: Time after which no new round begins; at least three rounds count.
        most: Largest number of counted rounds.
        clock: Returns the device's seconds, of one clock or several.

    Returns:
        The seconds of each round, by name.
    """
    took: dict[str, list[Any]] = {name: [] for name in works}
    end = 0.0
    for number in range(most + 1):
        if number == 1:
            end = time.perf_counter() + seconds
        if number > 3 and time.perf_counter() > end:
            break
        for name, work in works.items():
            start = clock(device)
            work()
            took[name].append(clock(device) - start)
    return {name: rounds[1:] for name, rounds in took.items()}


def ratio(
    name: str, slow: Sequence[float], fast: Sequence[float], factor: float = 1.0
) -> dict[str, Any]:
    """Compute `factor * slow / fast` over rounds.

    Returns:
        The median under `name`, the first and third quartile under `name_quartiles`, and the number of rounds under
        `name_rounds`.
    """
    ratios = factor * np.divide(slow, fast)
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return {name: median, f"{name}_quartiles": [low, high], f"{name}_rounds": len(ratios)}


def core_seconds(device: torch.device) -> float:
    """Read the seconds that this process has kept cores busy, including its waits for the device."""
    now(device)
    return time.process_time()
