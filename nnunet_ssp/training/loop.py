"""nnU-Net's training loop, made safe against signals, full disks, non-finite values and a second training."""

from __future__ import annotations

import os
import shlex
import signal
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssp.console import DISK_FULL, Stopped
from nnunet_ssp.distributed import (
    ending_with_other_ranks,
    launched,
    launching_words,
    max_over_ranks,
    world_size,
)
from nnunet_ssp.files.lock import locked
from nnunet_ssp.schedules import EarlyStopping
from nnunet_ssp.setting_values import as_word
from nnunet_ssp.settings import TrainingSettings, typed_before
from nnunet_ssp.signals import ENDS
from nnunet_ssp.training.alive import AliveTrainer
from nnunet_ssp.training.finite import Skipped, StepGuard, first_not_finite
from nnunet_ssp.training.interruption import GRACE, Interruption
from nnunet_ssp.training.pace import Pace
from nnunet_ssp.training.workers import end_workers

LATEST, BEST, FINAL = (f"checkpoint_{name}.pth" for name in ("latest", "best", "final"))
# Settings that change neither the data nor the mathematics of a run; `--c` does not take them from the checkpoint.
WITHOUT_EFFECT = ("data_device", "chunk_size", "final_validation", "trust")


class LoopTrainer(AliveTrainer):
    """An `nnUNetTrainer` whose training can end between any two steps without loss.

    Attributes:
        settings: Settings of this run.
        early_stopping: Follows the validation loss.
        weights_from: Source of the initial weights: a file, or `scratch`.
        outputs: Outputs of the steps of the current epoch.
    """

    defaults: ClassVar[TrainingSettings]
    settings: TrainingSettings
    early_stopping: EarlyStopping
    weights_from: str
    guard: StepGuard
    interruption: Interruption
    outputs: list[Any]

    # Set by nnU-Net's constructor.
    fold: int | str
    current_epoch: int
    num_iterations_per_epoch: int
    batch_size: int
    was_initialized: bool
    my_init_kwargs: dict[str, Any]
    device: torch.device
    network: Any
    dataloader_train: Any
    dataloader_val: Any

    _pace: Pace
    # The network, while an empty one stands in its place, see `StartingTrainer.initialize`.
    _aside: nn.Module | None = None
    _last_step: int = 0
    _last_cases: Callable[[], list[str]] = list

    @property
    def dataset(self) -> str:
        """The dataset's id without leading zeros: 114 for Dataset114_MNMs."""
        return str(int(self.plans_manager.dataset_name[7:10]))

    @property
    def network_module(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        module = self.network if self._aside is None else self._aside
        if isinstance(module, DistributedDataParallel):
            module = module.module
        return module._orig_mod if isinstance(module, OptimizedModule) else module

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Remove the folders of a refused run if they hold nothing but its log."""
        try:
            yield
        except (ValueError, OSError):
            folder = Path(self.output_folder)
            if self.local_rank == 0 and set(folder.glob("*")) <= {Path(self.log_file)}:
                Path(self.log_file).unlink(missing_ok=True)
                with suppress(OSError):  # stops at the first that is not empty
                    for made in (folder, *folder.parents[:2]):
                        made.rmdir()
            raise

    @contextmanager
    def _folder_lock(self) -> Iterator[None]:
        """Allow one training at a time in the fold's folder; rank 0 takes the lock for all ranks.

        Raises:
            RuntimeError: Another process trains there; raised on every rank.
        """
        with ExitStack() as lock:
            refusal = [""]
            if self.local_rank == 0:
                try:
                    lock.enter_context(locked(Path(self.output_folder)))
                except RuntimeError as error:
                    refusal[0] = str(error)
            if self.is_ddp:
                dist.broadcast_object_list(refusal)
            if refusal[0]:
                raise RuntimeError(refusal[0])
            yield

    def run_training(self) -> None:
        """Run nnU-Net's loop; end early, skip steps that are not finite and heed signals between steps.

        Raises:
            SystemExit: A signal came, the disk is full, or too many steps are not finite; says what to do.
        """
        if self._aside is not None:
            self.network, self._aside = self._aside, None
        with ExitStack() as stack:
            stack.enter_context(self._refusing())
            stack.enter_context(self._ending_in_words())
            stack.enter_context(self._folder_lock())
            stack.enter_context(self.alive(self._what))
            self.on_train_start()
            self._refuse_lost_weights()
            self._pace = Pace(
                self.print_to_log_file, self.batch_size, bool(self.settings.early_stopping)
            )
            if self.current_epoch or self.outputs:
                done, steps = len(self.outputs), self.num_iterations_per_epoch
                after = f", after {done} of its {steps} steps" if done else ""
                self.print_to_log_file(f"Goes on with epoch {self.current_epoch}{after}.")
            begun = self.current_epoch
            while self.current_epoch < self.num_epochs and not self._stops_early():
                # The end of an epoch says the time that is left, so this is for the first one
                first = self.current_epoch == begun
                self._run_epoch(later=self.num_epochs - begun - 1 if first else 0)
            self.on_train_end()
            if self.interruption.asked(now=True) in ENDS:
                self._end_by_signal(f"the training is finished, {FINAL} is saved")

    def _run_epoch(self, later: int) -> None:
        """Run one epoch from its start, or from where a signal stopped it; `later` ones follow, of unknown duration."""
        self._check_folder()
        self._heed_signals()
        self.on_epoch_start()
        self.on_train_epoch_start()
        first = self.current_epoch * self.num_iterations_per_epoch
        self._pace.begin(len(self.outputs), later=later)
        while len(self.outputs) < self.num_iterations_per_epoch:
            self._heed_signals()
            batch = next(self.dataloader_train)
            self._last_step = step = first + len(self.outputs)
            self._last_cases = self.batch_cases(step, batch)
            self.guard.begin()
            self.outputs.append(self.train_step(batch))
            self.guard.end(step, self._last_cases)
            self._pace.step(len(self.outputs), self.num_iterations_per_epoch)
        self.guard.look()
        skipped = set(self.guard.skipped)
        kept = [o for step, o in enumerate(self.outputs, first) if step not in skipped]
        if not kept:
            self._stop_not_finite(
                f"no step of epoch {self.current_epoch} had a finite loss and gradient, up to {self._last_batch()}"
            )
        self.on_train_epoch_end(kept)
        with torch.no_grad():
            self.on_validation_epoch_start()
            validated: list[Any] = []
            self._pace.begin(0, "validation")
            while len(validated) < self.num_val_iterations_per_epoch:
                self._heed_signals()
                validated.append(self.validation_step(next(self.dataloader_val)))
                self._pace.step(len(validated), self.num_val_iterations_per_epoch)
            self.on_validation_epoch_end(self._finite_validation(validated))
        self.outputs = []
        self.guard.skipped.clear()
        self._check_folder()
        self.on_epoch_end()

    def _what(self) -> str:
        """Say what is being done, for signs of life."""
        steps = self.num_iterations_per_epoch
        if not self.outputs and not self.current_epoch:
            return "preparing the first step"
        where = f"after step {len(self.outputs)} of {steps}" if self.outputs else "between steps"
        return f"at work in epoch {self.current_epoch}, {where}"

    def batch_cases(self, step: int, batch: Any) -> Callable[[], list[str]]:
        """Return a function that names the cases of a batch.

        Args:
            step: Number of the step in the run, from 0.
            batch: What the step trains on.
        """
        return lambda: []

    @contextmanager
    def _ending_in_words(self) -> Iterator[None]:
        """Note signals, turn errors of the disk and of other ranks into one line, and end all workers."""
        self.interruption = Interruption(self._stuck, self.device)
        try:
            with self.interruption, ending_with_other_ranks(self.last_good):
                try:
                    yield
                except RuntimeError as error:
                    # A signal to the whole process group also ends nnU-Net's workers.
                    if isinstance(error, Stopped) or not self._asked_to_end():
                        raise
                    self._end_by_signal(self.keep())
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            file = error.filename or self.output_folder
            raise Stopped(f"{file}: no space left; {self.last_good()}") from None
        finally:
            self._end_workers()

    def _asked_to_end(self) -> bool:
        time.sleep(0.2)  # the signal may reach this process after its workers
        return world_size() == 1 and self.interruption.asked() in ENDS

    def _end_workers(self) -> None:
        end_workers(self.dataloader_train, self.dataloader_val)

    # -- signals -----------------------------------------------------------------------------------

    def _heed_signals(self) -> None:
        """Save, and end, if a signal asked for it; called between two steps."""
        number = self.interruption.asked()
        if number in ENDS:
            self._end_by_signal(self.keep())
        elif number:
            said = self.keep()
            if self.local_rank == 0:
                name = signal.Signals(number).name
                self.print_to_log_file(f"{name}: {said}; training goes on.")

    def _end_by_signal(self, said: str) -> NoReturn:
        number = self.interruption.number
        if self.local_rank == 0:
            name = signal.Signals(number).name
            line = (
                f"{name}: {said}; go on with: {self.command('--c', settings=self.kept_settings())}"
            )
            if not any(
                (Path(self.output_folder) / file).is_file() for file in (LATEST, BEST, FINAL)
            ):
                line = f"{name}: {said}; start again with the same command, without --c"
            self.print_to_log_file(line)
        if world_size() > 1:
            dist.barrier()  # the launcher ends all ranks with the first, and rank 0 has to save
            dist.destroy_process_group()
        raise SystemExit(128 + number)

    @abstractmethod
    def keep(self) -> str:
        """Save between two steps what --c needs to continue; return in words what was saved."""

    def _stuck(self) -> str:
        """Return the last line of a process that a signal ends within a step that does not finish."""
        others = ", perhaps because another rank has ended" if world_size() > 1 else ""
        return (
            f"The current step did not end within {GRACE:.0f} s after the signal{others}: the training ends without "
            f"saving; {self.last_good()}"
        )

    def command(
        self,
        *more: str,
        trainer: str = "",
        settings: str = "",
        fold: str = "",
        configuration: str = "",
        dataset: str = "",
        plans: str = "",
    ) -> str:
        """Return the command of this run, with more words or settings, or one part of it replaced.

        Under torchrun it is ours, else nnU-Net's.
        """
        plans = plans or self.plans_manager.plans_name
        ranks = 1 if trainer else world_size()
        ours = launched() and not trainer
        words = [*launching_words(), "nnunet-ssp", "train"] if ours else ["nnUNetv2_train"]
        words += [dataset or self.dataset]
        words += [configuration or self.configuration_name, fold or str(self.fold)]
        words += ["-p", plans] if plans != "nnUNetPlans" else []
        words += ["-tr", trainer or type(self).__name__]
        words += ["-device", self.device.type] if self.device.type != "cuda" else []
        words += ["-num_gpus", str(ranks)] if ranks > 1 and not ours else []
        return typed_before(settings) + shlex.join([*words, *more])

    def kept_settings(self) -> str:
        """Return the settings of this run that `--c` must be told again, as they are typed."""
        now, usual = asdict(self.settings), asdict(self.defaults)
        names = (name for name in WITHOUT_EFFECT if name in now and now[name] != usual[name])
        return " ".join(f"{name}={as_word(now[name])}" for name in names)

    def last_good(self) -> str:
        """Return the newest checkpoint and how to continue from it, in words; all its values are finite."""
        files = [Path(self.output_folder) / name for name in (LATEST, BEST)]
        saved = [file for file in files if file.is_file()]
        if not saved:
            return "no checkpoint was saved yet"
        newest = max(saved, key=os.path.getmtime)
        command = self.command("--c", settings=self.kept_settings())
        return f"last good checkpoint {newest}; continue with --c: {command}"

    # -- non-finite values -------------------------------------------------------------------------

    def _skipped(self, step: Skipped) -> None:
        """Log that a step was skipped, or end the training after too many."""
        where = self._named(step.step, step.cases)
        counted = f"{step.in_a_row} in a row, {step.total} of {step.steps} steps in all"
        if step.too_many:
            self._stop_not_finite(f"loss or gradient is not finite in {where}; {counted}")
        self.print_to_log_file(
            f"WARNING: loss or gradient is not finite, skipped {where}; {counted}."
        )

    def _named(self, step: int, cases: list[str]) -> str:
        names = f"{', '.join(cases[:20])}{' ...' if len(cases) > 20 else ''}"
        return (
            f"step {step} (epoch {step // self.num_iterations_per_epoch}) with a batch of {names}"
        )

    def _last_batch(self) -> str:
        return self._named(self._last_step, self._last_cases())

    def _stop_not_finite(self, what: str) -> NoReturn:
        settings = " ".join(f"{k}={as_word(v)}" for k, v in asdict(self.settings).items())
        lost = first_not_finite(self.network_module.state_dict())
        weights = f" The weights are lost ({lost})." if lost else ""
        raise Stopped(
            f"Training stopped: {what}.{weights} Either it has diverged (lower initial_lr, or set precision=fp32 where "
            f"there is that setting), or these cases hold extreme values. Settings: {settings}. {self.last_good()}"
        )

    def _finite_validation(self, outputs: list[Any]) -> list[Any]:
        """Return the outputs of the validation batches whose loss is finite on every rank."""
        losses = [torch.as_tensor(o["loss"], dtype=torch.float32).mean() for o in outputs]
        lost = max_over_ranks((~torch.stack(losses).to(self.device).isfinite()).float()).tolist()
        kept = [output for output, is_lost in zip(outputs, lost, strict=True) if not is_lost]
        if not kept:
            self._stop_not_finite(
                f"the validation loss of epoch {self.current_epoch} is not finite in any batch, after "
                f"{self._last_batch()}"
            )
        if len(kept) < len(outputs):
            self.print_to_log_file(
                f"WARNING: the loss of {len(outputs) - len(kept)} of {len(outputs)} validation batches is not finite; "
                "they were left out."
            )
        return kept

    def _refuse_lost_weights(self) -> None:
        lost = first_not_finite(self.network_module.state_dict())
        if lost:
            raise ValueError(f"{self.weights_from}: {lost} must be finite in all its values.")

    def _stops_early(self) -> bool:
        """Whether to stop; rank 0 decides for all."""
        decision = [self.early_stopping.should_stop]
        if self.is_ddp:
            dist.broadcast_object_list(decision)
        if decision[0]:
            self.print_to_log_file(
                f"Early stopping after epoch {self.current_epoch - 1}: the validation loss has not improved by "
                f"{self.settings.early_stopping_delta:.3g} for {self.settings.early_stopping} epochs."
            )
        return decision[0]

    def _check_folder(self) -> None:
        """Stop if the results' folder no longer exists; writing would create a new one without the earlier files."""
        if self.local_rank == 0 and not Path(self.output_folder).is_dir():
            raise Stopped(
                f"{self.output_folder} no longer exists, so this training cannot be saved. Restore it, or start again."
            )
