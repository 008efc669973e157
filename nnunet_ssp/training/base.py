"""What all our trainers share: settings, seeds, strict folds, early stopping and safe checkpoints."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

import nnunet_ssp
import nnunet_ssp.methods  # makes every method's settings known
from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.cases import Case, read_cases, subject_of
from nnunet_ssp.cohort.consistency import (
    HOLDS_NOBODY_OUT,
    differing_fold,
    unknown_names,
)
from nnunet_ssp.cohort.folds import is_trainable, read_splits
from nnunet_ssp.console import DISK_FULL, Stopped, some
from nnunet_ssp.distributed import ending_with_other_ranks, max_over_ranks, world_size
from nnunet_ssp.files import checkpoints
from nnunet_ssp.files.atomic import remove_half_written, write_json
from nnunet_ssp.files.contents import NAMES, check, shown
from nnunet_ssp.files.lock import holder_of, in_use, locked
from nnunet_ssp.files.names import must_be_plain
from nnunet_ssp.files.nnunet import check_dataset, check_plans, configuration_of
from nnunet_ssp.schedules import EarlyStopping
from nnunet_ssp.settings import TrainingSettings, as_word, differences, from_environment
from nnunet_ssp.signals import ENDS
from nnunet_ssp.slices.intact import prepare_command
from nnunet_ssp.slices.store import PREPROCESSED, read_missing
from nnunet_ssp.training import transfer
from nnunet_ssp.training.finite import Skipped, StepGuard, first_not_finite
from nnunet_ssp.training.interruption import GRACE, Interruption

T = TypeVar("T")

SECONDS_BETWEEN_SAVES = 300  # a preempted job loses at most this and one epoch
# Settings that change neither the data nor the mathematics of a run.
WITHOUT_EFFECT = ("data_device", "chunk_size", "final_validation", "trust")
LATEST, BEST, FINAL = (f"checkpoint_{name}.pth" for name in ("latest", "best", "final"))


def _check_files(
    plans: dict[str, Any], configuration: str, fold: int | str, dataset_json: dict[str, Any]
) -> None:
    """Check what nnU-Net has read of its files, before a path is made of it."""
    name = shown(plans.get("plans_name", "")) if isinstance(plans, dict) else ""
    check(
        {"plans": plans, "dataset.json": dataset_json},
        {"plans": NAMES, "dataset.json": NAMES},
        name,
    )
    check_plans(plans, f"plans {name}")
    configuration_of(plans, configuration, f"plans {name}")
    check_dataset(dataset_json, f"dataset.json of {plans['dataset_name']}", ("labels",))
    must_be_plain(str(fold), "fold")


def refuses_other_content(load: Callable[[T, Any], None]) -> Callable[[T, Any], None]:
    """Make a trainer's `load_checkpoint` say in words that a part of the file is not what this run needs."""

    @wraps(load)
    def loading(trainer: T, source: Any) -> None:
        try:
            load(trainer, source)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            file = source if isinstance(source, str) else "the checkpoint"
            raise ValueError(
                f"{file}: a part of it is not what this run can go on from "
                f"({type(error).__name__}: {shown(str(error))})."
            ) from error

    return loading


class SettingsTrainer(nnUNetTrainer):
    """An `nnUNetTrainer` that is controlled by settings; the constructor is exactly nnU-Net's.

    Attributes:
        defaults: settings of the trainer, before ``nnUNet_ssp_settings``.
        settings: what this run uses.
        outputs: of the steps of the current epoch.
        cases: rows of `cases.csv` by case; empty for a dataset without that file.
    """

    defaults: ClassVar[TrainingSettings] = TrainingSettings()

    # What nnU-Net's constructor sets and we use.
    fold: int | str
    current_epoch: int
    num_iterations_per_epoch: int
    was_initialized: bool
    my_init_kwargs: dict[str, Any]
    device: torch.device
    network: Any
    dataloader_train: Any
    dataloader_val: Any

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's signature
    ) -> None:
        # First, so that a misspelt setting, or names that lead elsewhere, leave no folder behind.
        self.settings, foreign = from_environment(self.defaults)
        _check_files(plans, configuration, fold, dataset_json)
        # nnU-Net puts the content into every checkpoint, and beside it.
        dataset_json = privacy.without_files(dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if foreign:
            self.print_to_log_file(
                f"Settings of other trainers, ignored here: {', '.join(foreign)}"
            )
        self.num_epochs = self.settings.num_epochs
        self.initial_lr = self.settings.initial_lr
        self.early_stopping = EarlyStopping(
            self.settings.early_stopping, self.settings.early_stopping_delta
        )
        self.weights_from = "nothing yet"  # what filled the network: a file or scratch
        self.warnings: list[str] = []  # said once, and again at the end of the log
        self.cases: dict[str, Case] = {}
        if self.preprocessed_dataset_folder_base is not None:
            table = Path(self.preprocessed_dataset_folder_base) / "cases.csv"
            self.cases = read_cases(table) if table.is_file() else {}
        self.outputs: list[Any] = []
        self.guard: StepGuard
        self.interruption: Interruption
        self._saved_at = -math.inf
        self._last_step = 0
        self._last_cases: Callable[[], list[str]] = list

    def initialize(self) -> None:
        """Build the network and all that trains it; a run that is refused leaves no folder."""
        with self._refusing():
            self.build()
        self.guard = StepGuard(
            self.network_module, self.optimizer, self.grad_scaler, self.device, self._skipped
        )

    def build(self) -> None:
        """Build the network and all that trains it."""
        super().initialize()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Remove the run's folders when it is refused, if nothing else is in them than the log it began."""
        try:
            yield
        except (ValueError, OSError):
            folder = Path(self.output_folder)
            if self.local_rank == 0 and set(folder.glob("*")) <= {Path(self.log_file)}:
                Path(self.log_file).unlink(missing_ok=True)
                with suppress(OSError):  # until one that is not empty
                    for made in (folder, *folder.parents[:2]):
                        made.rmdir()
            raise

    @property
    def dataset(self) -> str:
        """The dataset as people type it: 114 for Dataset114_MNMs."""
        return str(int(self.plans_manager.dataset_name[7:10]))

    @property
    def network_module(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        module = self.network
        if isinstance(module, DistributedDataParallel):
            module = module.module
        return module._orig_mod if isinstance(module, OptimizedModule) else module

    @staticmethod
    def pretrained_argument() -> str | None:
        """The file after ``-pretrained_weights`` on the command line.

        nnU-Net's argparse also takes beginnings of that word (``-pre FILE``) and ``-pretrained_weights=FILE``.
        """
        given = None
        for word, following in zip(sys.argv, [*sys.argv[1:], None], strict=True):
            flag, equals, value = word.partition("=")
            if len(flag) > 2 and "-pretrained_weights".startswith(flag):
                given = value if equals else following  # argparse takes the last one
        return given

    def subject_of(self, case: str, pattern: str | None) -> str:
        """The subject of a case, see `cases.subject_of`."""
        return subject_of(case, self.cases, pattern)

    def folds(self) -> list[dict[str, list[str]]]:
        """The folds of `splits_final.json`; nnU-Net makes them by case where there is none."""
        file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if not file.is_file():
            if self.cases:
                raise FileNotFoundError(
                    f"{file} is missing, so only fold `all` can be trained: "
                    f"nnUNetv2_train {self.dataset} {self.configuration_name} all ..."
                )
            fold, self.fold = self.fold, 0
            super().do_split()
            self.fold = fold
        return read_splits(file)

    def warn(self, text: str) -> None:
        """Say in the log what may make a result worth nothing, and again at its end."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.print_to_log_file(f"WARNING: {text}")

    def repeat_warnings(self) -> None:
        """Say every warning again."""
        for text in self.warnings:
            self.print_to_log_file(f"WARNING: {text}")

    def known_cases(self) -> set[str]:
        """The cases that a fold may name."""
        if self.cases:
            return {name for name, case in self.cases.items() if is_trainable(case)}
        folder = Path(self.preprocessed_dataset_folder)
        files = folder.iterdir() if folder.is_dir() else ()
        return {file.stem for file in files if file.suffix in PREPROCESSED}

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, but a fold that is not in the file is refused, not made up by case.

        Raises:
            ValueError: the fold is out of range, or names what is no case.
        """
        fold = self.fold
        if not isinstance(fold, int):
            train, val = super().do_split()
            return train, val
        splits = self.folds()
        if not 0 <= fold < len(splits):
            raise ValueError(
                f"fold (={fold}) must be all or one of the {len(splits)} folds that "
                f"{self.preprocessed_dataset_folder_base}/splits_final.json holds, counted from 0."
            )
        prepared = Path(self.preprocessed_dataset_folder_base)
        wrong = unknown_names(splits[fold], self.known_cases())
        if wrong:
            raise ValueError(
                f"{prepared / 'splits_final.json'}: fold {fold}: {'; '.join(wrong)}. Correct the file; that in "
                f"nnUNet_raw, where there is one, and run nnunet-ssp folds {self.dataset}."
            )
        if not splits[fold]["val"]:
            self.warn(f"fold {fold}: {HOLDS_NOBODY_OUT}.")
        raw = os.environ.get("nnUNet_raw")
        if raw and (differs := differing_fold(Path(raw) / prepared.name, prepared, fold)):
            self.warn(
                f"{differs}; run nnunet-ssp folds {self.dataset} and, if cases changed, prepare."
            )
        return splits[fold]["train"], splits[fold]["val"]

    def require_stored(self, absent: Collection[str], where: Path, store: Path) -> None:
        """Say which cases of `cases.csv` or the fold a training does without, unless `prepare` knows why.

        Args:
            absent: names of the cases.
            where: where they should be.
            store: the slice store, whose index says why `prepare` left out a case.

        Raises:
            ValueError: `prepare` did not come to its end, or has not seen these cases.
        """
        if not absent:
            return
        reasons = read_missing(store)
        unexplained = [name for name in absent if name not in reasons]
        if unexplained:
            holder = holder_of(store.parent)
            busy = f" ({in_use(store.parent, holder)})" if holder else ""
            raise ValueError(
                f"{where}: {len(unexplained)} case(s) of this dataset are missing, {some(unexplained)}: run "
                f"{prepare_command(store)}{busy}."
            )
        name = min(absent)
        self.warn(
            f"{len(absent)} case(s) of cases.csv are not trained on, {some(absent)}: prepare left them out "
            f"({name}: {reasons[name]})."
        )

    def refuse_overwriting(self) -> None:
        """Refuse to replace the finished run of other settings or from other weights.

        Raises:
            FileExistsError: names the differences and what to do.
        """
        file = Path(self.output_folder) / "checkpoint_final.pth"
        if not file.is_file():
            return
        ssp = transfer.read(file, self.settings.trust).ssp
        changed = self._differences(ssp.get("settings", {}))
        if not privacy.has_origin(ssp, self.weights_from):
            changed.append(f"weights from: {ssp.get('weights_from')} -> {self.weights_from}")
        if changed:
            raise FileExistsError(
                f"{file} was made with other settings ({'; '.join(changed)}). Move or delete it, or set another "
                "nnUNet_results."
            )

    def _differences(self, old: dict[str, Any]) -> list[str]:
        """Differences between the settings of a file and this run's, without those that have no effect."""
        kept = {
            name: value for name, value in asdict(self.settings).items() if name in WITHOUT_EFFECT
        }
        return differences({**old, **kept}, self.settings)

    def open_checkpoint(self, source: dict[str, Any] | str) -> dict[str, Any]:
        """Open a checkpoint to go on from, before nnU-Net's own loader does, which runs what a file asks for.

        Args:
            source: the file, or its content.

        Raises:
            ValueError: it cannot be used; says which older one there is.
        """
        if isinstance(source, dict):
            return source
        try:
            content = checkpoints.load(source, self.settings.trust)
            check(content, {}, source, checkpoints.TO_GO_ON)
            curves = tuple(self.logger.local_logger.my_fantastic_logging)
            check(content["logging"], {}, f"{source}, `logging`", curves)
            checkpoints.refuse_non_finite(source, content["network_weights"])
        except ValueError as error:
            names = ("checkpoint_latest.pth", "checkpoint_best.pth")
            others = [file for name in names if (file := Path(source).with_name(name)).is_file()]
            older = [str(file) for file in others if file != Path(source)]
            advice = f" To go on from an older one: cp {older[0]} {source}" if older else ""
            raise ValueError(f"{error}{advice}") from None
        return content

    def check_resume(self, ssp: dict[str, Any]) -> None:
        """Refuse to go on with other settings than the checkpoint's: the run would be neither.

        Raises:
            ValueError: names each difference.
        """
        changed = self._differences(ssp.get("settings", {}))
        if changed and "--val" not in sys.argv:  # which trains nothing
            raise ValueError(
                "--c must go on with the settings of the checkpoint, but these differ: "
                + "; ".join(changed)
            )

    def record(self) -> dict[str, Any]:
        """What the checkpoint (key ``ssp``) and `settings.json` say about this run: no names of subjects, no paths."""
        return {
            "trainer": type(self).__name__,
            "settings": asdict(self.settings),
            **privacy.origin(self.weights_from),
            "versions": {
                "nnunet_ssp": nnunet_ssp.__version__,
                "nnunetv2": version("nnunetv2"),
                "torch": str(torch.__version__),
            },
        }

    def on_train_start(self) -> None:
        super().on_train_start()
        self.log_settings()

    def log_settings(self) -> None:
        """Write `settings.json` and the same to the log; first of all that a run writes."""
        if self.local_rank == 0:
            remove_half_written(self.output_folder)
            write_json(
                Path(self.output_folder) / "settings.json", transfer.to_builtin(self.record())
            )
        unused = dict.fromkeys(self.settings.unused, "  (not used by this optimizer)")
        lines = "\n".join(
            f"  {name} = {value}{unused.get(name, '')}"
            for name, value in asdict(self.settings).items()
        )
        self.print_to_log_file(f"Settings (change with nnUNet_ssp_settings):\n{lines}")

    @contextmanager
    def _folder_lock(self) -> Iterator[None]:
        """One training at a time in the fold's folder; rank 0 takes the lock for all ranks.

        Raises:
            RuntimeError: another process trains there; on every rank.
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

    def on_train_end(self) -> None:
        super().on_train_end()
        self.repeat_warnings()

    # -- the loop ------------------------------------------------------------------------------

    def run_training(self) -> None:
        """nnU-Net's loop, which can end early, skips what is not finite and heeds signals between steps.

        Raises:
            SystemExit: A signal, a full disk, too many steps that are not finite; says what to do.
        """
        with self._refusing(), self._ending_in_words(), self._folder_lock():
            self.on_train_start()
            self._refuse_lost_weights()
            while self.current_epoch < self.num_epochs and not self._stops_early():
                self._run_epoch()
            self.on_train_end()
            if self.interruption.asked(now=True) in ENDS:
                self._end_by_signal(f"the training is finished, {FINAL} is saved")

    def _run_epoch(self) -> None:
        """One epoch, from its start or from where a signal has stopped it."""
        self._check_folder()
        self._heed_signals()
        self.on_epoch_start()
        self.on_train_epoch_start()
        first = self.current_epoch * self.num_iterations_per_epoch
        while len(self.outputs) < self.num_iterations_per_epoch:
            self._heed_signals()
            batch = next(self.dataloader_train)
            self._last_step = step = first + len(self.outputs)
            self._last_cases = self.batch_cases(step, batch)
            self.guard.begin()
            self.outputs.append(self.train_step(batch))
            self.guard.end(step, self._last_cases)
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
            validated = []
            for _ in range(self.num_val_iterations_per_epoch):
                self._heed_signals()
                validated.append(self.validation_step(next(self.dataloader_val)))
            self.on_validation_epoch_end(self._finite_validation(validated))
        self.outputs = []
        self.guard.skipped.clear()
        self._check_folder()
        self.on_epoch_end()

    def batch_cases(self, step: int, batch: Any) -> Callable[[], list[str]]:
        """Names of the cases of a batch, to be called when they are needed.

        Args:
            step: its number in the run, from 0.
            batch: what the step trains on.
        """
        return lambda: []

    @contextmanager
    def _ending_in_words(self) -> Iterator[None]:
        """Note signals; turn the errors of a disk and of other ranks into a line; end all workers."""
        self.interruption = Interruption(self._stuck, self.device)
        try:
            with self.interruption, ending_with_other_ranks(self.last_good):
                try:
                    yield
                except RuntimeError as error:
                    # A signal to the whole process group ends nnU-Net's workers, too.
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
        for loader in (self.dataloader_train, self.dataloader_val):
            # nnU-Net's workers; the thread that reads our slices
            end = getattr(loader, "_finish", None) or getattr(loader, "close", None)
            if end is not None:
                end()

    # -- signals -------------------------------------------------------------------------------

    def _heed_signals(self) -> None:
        """Between two steps: save, and end, when a signal has asked for it."""
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
            line = f"{name}: {said}; go on with: {self.command('--c')}"
            if not any((Path(self.output_folder) / file).is_file() for file in (LATEST, FINAL)):
                line = f"{name}: {said}; start again with the same command, without --c"
            self.print_to_log_file(line)
        if world_size() > 1:
            dist.barrier()  # the launcher ends all when the first has ended: not before rank 0 has saved
            dist.destroy_process_group()
        raise SystemExit(128 + number)

    def keep(self) -> str:
        """Save what a run with --c needs to go on, between two steps; returns what was saved, in words."""
        raise NotImplementedError

    def _stuck(self) -> str:
        """The line of a process that a signal ends although its step does not."""
        others = ", as if another rank had gone" if world_size() > 1 else ""
        return (
            f"The step that runs did not end within {GRACE:.0f} s after the signal{others}: the training ends without "
            f"saving; {self.last_good()}"
        )

    def command(self, *more: str) -> str:
        """nnU-Net's command of this run, with more words."""
        plans = self.plans_manager.plans_name
        words = ["nnUNetv2_train", self.dataset, self.configuration_name, str(self.fold)]
        words += ["-p", plans] if plans != "nnUNetPlans" else []
        words += ["-tr", type(self).__name__]
        words += ["-device", self.device.type] if self.device.type != "cuda" else []
        words += ["-num_gpus", str(world_size())] if world_size() > 1 else []
        return shlex.join([*words, *more])

    def last_good(self) -> str:
        """The newest checkpoint to go on from, and how; none of ours holds a value that is not finite."""
        files = [Path(self.output_folder) / name for name in (LATEST, BEST)]
        saved = [file for file in files if file.is_file()]
        if not saved:
            return "no checkpoint was saved yet"
        newest = max(saved, key=os.path.getmtime)
        return f"last good checkpoint {newest}; continue with --c: {self.command('--c')}"

    # -- what is not finite --------------------------------------------------------------------

    def _skipped(self, step: Skipped) -> None:
        """Say that a step was skipped, or end when there were too many."""
        where = self._named(step.step, step.cases)
        counted = f"{step.in_a_row} in a row, {step.total} of {step.steps} steps in all"
        if step.too_many:
            self._stop_not_finite(f"loss or gradient are not finite in {where}; {counted}")
        self.print_to_log_file(
            f"WARNING: loss or gradient are not finite, skipped {where}; {counted}."
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
        """The outputs of the validation's batches without those whose loss is not finite on any rank."""
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
        """Whether to stop, as rank 0 sees it."""
        decision = [self.early_stopping.should_stop]
        if self.is_ddp:
            dist.broadcast_object_list(decision)
        if decision[0]:
            self.print_to_log_file(
                f"Early stopping after epoch {self.current_epoch - 1}: the validation loss has not improved by "
                f"{self.settings.early_stopping_delta:.3g} for {self.settings.early_stopping} epochs."
            )
        return decision[0]

    # -- files ---------------------------------------------------------------------------------

    def _check_folder(self) -> None:
        """Stop when the results' folder has gone; who writes would make it anew, and leave the rest behind."""
        if self.local_rank == 0 and not Path(self.output_folder).is_dir():
            raise Stopped(
                f"{self.output_folder} has gone: nothing of this training can be saved. Bring it back, or start again."
            )

    def _save_is_due(self) -> bool:
        """Whether to save now: by the clock, and once early to see that it works."""
        due = time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES
        if due:
            self._saved_at = time.monotonic()
        return due

    def checkpoint(self, weights: dict[str, Any], **entries: Any) -> dict[str, Any]:
        """A checkpoint in nnU-Net's form, of tensors on the CPU and builtins.

        Args:
            weights: the network's state.
            entries: replace or extend nnU-Net's entries.
        """
        return {
            "network_weights": weights,
            "optimizer_state": transfer.to_cpu(self.optimizer.state_dict()),
            "grad_scaler_state": self.grad_scaler.state_dict()
            if self.grad_scaler is not None
            else None,
            "logging": transfer.to_builtin(self.logger.get_checkpoint()),
            "_best_ema": transfer.to_builtin(self._best_ema),
            "current_epoch": self.current_epoch + 1,
            "init_args": transfer.to_builtin(self.my_init_kwargs),
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "ssp": transfer.to_builtin(self.record()),
            "ssp_early_stopping": self.early_stopping.state_dict(),
            "ssp_skipped": self.guard.state_dict(),
            **entries,
        }

    def write_checkpoint(self, file: str | Path, content: dict[str, Any]) -> None:
        """Write a checkpoint as a whole or not at all, readable with ``weights_only=True``.

        Raises:
            SystemExit: The results' folder has gone, or a tensor is not finite.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        self._check_folder()
        lost = first_not_finite(content)
        if lost:
            self._stop_not_finite(
                f"{lost} is not finite after {self._last_batch()}; {Path(file).name} was not written"
            )
        transfer.save(file, content)
