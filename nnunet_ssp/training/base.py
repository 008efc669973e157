"""Base of all our trainers: settings, strict folds, early stopping and safe checkpoints."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Collection
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch

import nnunet_ssp
from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.cases import Case, read_cases, subject_of
from nnunet_ssp.cohort.consistency import (
    HOLDS_NOBODY_OUT,
    differing_fold,
    unknown_names,
)
from nnunet_ssp.cohort.membership import is_trainable
from nnunet_ssp.cohort.splits import read_splits
from nnunet_ssp.console import count_of, end_in_words, some
from nnunet_ssp.distributed import device_of_rank
from nnunet_ssp.files import checkpoints, saving
from nnunet_ssp.files.atomic import remove_half_written, write_json
from nnunet_ssp.files.contents import check
from nnunet_ssp.files.lock import holder_of, in_use
from nnunet_ssp.nnunet import check_folders
from nnunet_ssp.schedules import EarlyStopping
from nnunet_ssp.setting_values import as_word
from nnunet_ssp.settings import (
    ENVIRONMENT_VARIABLE,
    TrainingSettings,
    from_environment,
)
from nnunet_ssp.slices.intact import prepare_command
from nnunet_ssp.slices.store import PREPROCESSED, read_missing
from nnunet_ssp.training import snapshots, transfer
from nnunet_ssp.training.advice import advice
from nnunet_ssp.training.checks import check_files, require_device, require_fold
from nnunet_ssp.training.computing import ComputingTrainer
from nnunet_ssp.training.finite import StepGuard, first_not_finite
from nnunet_ssp.training.handover import ARGUMENT, hand_over_shared, loading_frame
from nnunet_ssp.training.loop import BEST, FINAL, LATEST, WITHOUT_EFFECT
from nnunet_ssp.training.recorded_settings import differences, from_checkpoint
from nnunet_ssp.training.threads import follow_threads

SECONDS_BETWEEN_SAVES = 300  # a preempted job loses at most this and one epoch
# Prefix of a finished run's checkpoints while its repetition runs.
REPLACED = "replaced_"
# Part of a checkpoint that may hold values that are not finite, from steps that were skipped.
STEPS = "ssp_state.epoch.outputs"

# Here too: nnU-Net's search for a trainer imports this module before it knows dataset and plans.
end_in_words(advice)


class SettingsTrainer(ComputingTrainer):
    """An `nnUNetTrainer` with settings; its constructor is exactly nnU-Net's.

    Attributes:
        defaults: Settings of the trainer, before `nnUNet_ssp_settings`.
        settings: Settings of this run.
        outputs: Outputs of the steps of the current epoch.
        cases: Rows of `cases.csv` by case; empty for a dataset without that file.
    """

    defaults: ClassVar[TrainingSettings] = TrainingSettings()

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's signature
    ) -> None:
        end_in_words(advice)
        # First, so that a misspelt setting or a name that is a path elsewhere leaves no folder behind.
        self.settings, foreign = from_environment(self.defaults)
        check_folders()
        check_files(plans, configuration, fold, dataset_json, self.settings.trust)
        # Whether the command has `--c`.
        self.goes_on = bool(plans.get("continue_training"))
        # nnU-Net copies the content into every checkpoint and into the results' folder.
        dataset_json = privacy.without_files(dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:  # nnU-Net takes the GPU of the rank's number among all machines
            self.device = device_of_rank(device)
            if self.device.type != "cuda":
                self.grad_scaler = None
        if foreign:
            self.print_to_log_file(
                f"Settings of other trainers, ignored here: {', '.join(foreign)}{self._meant(foreign)}"
            )
        if self.goes_on:
            with self._refusing():
                self._take_settings()
        self.num_epochs = self.settings.num_epochs
        self.initial_lr = self.settings.initial_lr
        self.early_stopping = EarlyStopping(
            self.settings.early_stopping, self.settings.early_stopping_delta
        )
        # What filled the network: a file or `scratch`.
        self.weights_from = "nothing yet"
        # Logged once, and again at the end.
        self.warnings: list[str] = []
        self.cases: dict[str, Case] = {}
        if self.preprocessed_dataset_folder_base is not None:
            table = Path(self.preprocessed_dataset_folder_base) / "cases.csv"
            with self._refusing():
                self.cases = read_cases(table) if table.is_file() else {}
                self._require_fold()
        self.outputs = []
        self._saved_at = -math.inf
        # Whether this run repeats a finished one.
        self._repeats = False

    def _take_settings(self) -> None:
        """Take the settings that were not named from the checkpoint that `--c` goes on from.

        Defaults may have changed since. A checkpoint that cannot be read is left to `load_checkpoint`, which says why.
        """
        names = (FINAL, LATEST, BEST)  # nnU-Net's order
        files = (Path(self.output_folder) / name for name in names)
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            self.print_to_log_file(
                f"WARNING: --c finds no checkpoint in {self.output_folder}: this training starts anew."
            )
            return
        try:
            ssp = checkpoints.load(file, self.settings.trust, mmap=True).get("ssp", {})
        except (ValueError, OSError):
            return
        if not ssp.get("settings"):
            return
        before, text = asdict(self.settings), os.environ.get(ENVIRONMENT_VARIABLE, "")
        try:
            self.settings = from_checkpoint(self.defaults, text, ssp["settings"], WITHOUT_EFFECT)
        except ValueError as error:
            raise ValueError(f"{file}: its settings do not fit this run: {error}") from None
        if taken := differences(before, self.settings):
            said = "; ".join(taken)
            self.print_to_log_file(f"Settings that were not named come from {file.name}: {said}")

    def initialize(self) -> None:
        """Build the network and all that trains it; a refused run leaves no folder."""
        with self._refusing():
            require_device(self.device, self._on_cpu())
            if line := follow_threads(self.device):
                self.print_to_log_file(line)
            self.build()
            hand_over_shared(self.weights_read())
        self.guard = StepGuard(
            self.network_module, self.optimizer, self.grad_scaler, self.device, self._skipped
        )

    def weights_read(self) -> dict[str, torch.Tensor] | None:
        """Return what nnU-Net's loader is to find in a shared pretraining; None if it has not been read."""
        return None

    def build(self) -> None:
        """Build the network and all that trains it."""
        super().initialize()

    def _on_cpu(self) -> str:
        """Return the command of this run, as it was given, for the CPU."""
        file = self.pretrained_argument()
        more = ["-pretrained_weights", file] if file else ["--c"] * ("--c" in sys.argv)
        settings = os.environ.get(ENVIRONMENT_VARIABLE, "")
        return self.command("-device", "cpu", *more, settings=settings)

    def _meant(self, foreign: Collection[str]) -> str:
        """Say which settings act here, too, where the variable seems to be meant for another trainer."""
        words = os.environ.get(ENVIRONMENT_VARIABLE, "").split()
        taken = [word for word in words if not {word, word.partition("=")[0]} & {*foreign}]
        return f". Of the same variable, this training takes: {' '.join(taken)}" if taken else ""

    @staticmethod
    def pretrained_argument() -> str | None:
        """Return the file that nnU-Net is about to load weights from, before it opens it.

        If nnU-Net's function that initialises this trainer is running, the file is one of its arguments. Otherwise it
        follows `-pretrained_weights` on the command line. nnU-Net's argparse also takes prefixes of that word
        (`-pre FILE`) and `-pretrained_weights=FILE`.
        """
        frame = loading_frame()
        if frame is not None:
            file = frame.f_locals.get(ARGUMENT)
            ignored = frame.f_locals[
                "validation_only"
            ]  # nnU-Net loads the run's own checkpoint then
            return None if file is None or ignored else str(file)
        given = None
        for word, following in zip(sys.argv, [*sys.argv[1:], None], strict=True):
            flag, equals, value = word.partition("=")
            if len(flag) > 2 and "-pretrained_weights".startswith(flag):
                given = value if equals else following  # argparse takes the last one
        return given

    def subject_of(self, case: str, pattern: str | None) -> str:
        """Return the subject of a case, see `cases.subject_of`."""
        return subject_of(case, self.cases, pattern)

    @property
    def splits_file(self) -> Path:
        """The file of the folds that are trained on."""
        return Path(self.preprocessed_dataset_folder_base) / "splits_final.json"

    def _require_fold(self) -> None:
        """Refuse a fold that does not exist before anything is built; without a file nnU-Net draws folds later."""
        if isinstance(self.fold, int) and (self.cases or self.splits_file.is_file()):
            require_fold(self.fold, self.folds(), self.splits_file, self.dataset)

    def folds(self) -> list[dict[str, list[str]]]:
        """Return the folds of `splits_final.json`; where it is missing, nnU-Net makes them by case."""
        file = self.splits_file
        if not file.is_file():
            if self.cases:
                raise FileNotFoundError(
                    f"{file} is missing, so only fold `all` can be trained: {self.command(fold='all')}"
                )
            fold, self.fold = self.fold, 0
            super().do_split()
            self.fold = fold
        return read_splits(file)

    def warn(self, text: str) -> None:
        """Log a doubt about the result's validity, now and again at the end."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.print_to_log_file(f"WARNING: {text}")

    def repeat_warnings(self) -> None:
        """Log every warning again."""
        for text in self.warnings:
            self.print_to_log_file(f"WARNING: {text}")

    def known_cases(self) -> set[str]:
        """Return the cases that a fold may name."""
        if self.cases:
            return {name for name, case in self.cases.items() if is_trainable(case)}
        folder = Path(self.preprocessed_dataset_folder)
        files = folder.iterdir() if folder.is_dir() else ()
        return {file.stem for file in files if file.suffix in PREPROCESSED}

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split, but refuse a fold that is not in the file; nnU-Net would make one up by case.

        Raises:
            ValueError: The fold is out of range, or names something that is no case.
        """
        fold = self.fold
        if not isinstance(fold, int):
            train, val = super().do_split()
            return train, val
        splits = self.folds()
        require_fold(fold, splits, self.splits_file, self.dataset)
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
        """Warn of cases that `prepare` left out, and refuse to train without cases that it has not seen.

        Args:
            absent: Names of the cases.
            where: Folder that should hold them.
            store: The slice store, whose index says why `prepare` left out a case.

        Raises:
            ValueError: `prepare` did not finish, or has not seen these cases.
        """
        if not absent:
            return
        reasons = read_missing(store)
        unexplained = [name for name in absent if name not in reasons]
        if unexplained:
            holder = holder_of(store.parent)
            busy = f" ({in_use(store.parent, holder)})" if holder else ""
            raise ValueError(
                f"{where}: {count_of(len(unexplained), 'case')} of this dataset missing, {some(unexplained)}: run "
                f"{prepare_command(store)}{busy}."
            )
        name = min(absent)
        self.warn(
            f"prepare left {count_of(len(absent), 'case')} of the dataset out of training, {some(absent)} "
            f"({name}: {reasons[name]})."
        )

    def refuse_overwriting(self) -> None:
        """Refuse to replace a finished run that had other settings or started from other weights.

        Raises:
            FileExistsError: Names the differences and what to do.
        """
        folder = Path(self.output_folder)
        file = folder / FINAL
        if not file.is_file():
            if any((folder / name).is_file() for name in (LATEST, BEST)):
                self._repeats = True
                self.print_to_log_file(
                    f"WARNING: {folder} holds an unfinished training, which --c would have continued. Its checkpoints "
                    f"are kept as {REPLACED}checkpoint_... until this training is finished."
                )
            return
        ssp = transfer.read(file, self.settings.trust).ssp
        changed = self._differences(ssp)
        if not privacy.has_origin(ssp, self.weights_from):
            changed.append(f"weights from: {ssp.get('weights_from')} -> {self.weights_from}")
        if changed:
            raise FileExistsError(
                f"{file} was made with other settings ({'; '.join(changed)}). Move or delete it, or set another "
                "nnUNet_results."
            )
        self._repeats = True

    def _set_aside(self) -> None:
        """Rename the files of the run that this one repeats; `--c` would continue from its checkpoints."""
        if not self.disable_checkpointing:
            snapshots.set_aside(self.output_folder)
            for name in (LATEST, BEST, FINAL):
                file = Path(self.output_folder) / name
                if file.is_file():
                    file.replace(file.with_name(REPLACED + name))

    def _differences(self, ssp: dict[str, Any]) -> list[str]:
        """Return the differences between a record's settings and this run's, without those that have no effect.

        A precision or layout that is named now does not differ from `auto` that chose it.
        """
        old = ssp.get("settings", {})
        now = asdict(self.settings)
        kept = {name: value for name, value in now.items() if name in WITHOUT_EFFECT}
        for name, chosen in self.computed(ssp).items():
            if now[name] == chosen and old.get(name, "auto") == "auto":
                kept[name] = chosen
        return differences({**old, **kept}, self.settings)

    def open_checkpoint(self, source: dict[str, Any] | str) -> dict[str, Any]:
        """Open a checkpoint to continue from, before nnU-Net's own loader, which runs code that a file holds.

        Args:
            source: The file, or its content.

        Raises:
            ValueError: It cannot be used; names an older one, if any.
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
            copy = shlex.join(["cp", *older[:1], str(source)])
            advice = f" To go on from an older one: {copy}" if older else ""
            raise ValueError(f"{error}{advice}") from None
        return content

    def check_resume(self, ssp: dict[str, Any]) -> None:
        """Refuse to continue with other settings than the checkpoint's.

        Raises:
            ValueError: Names each difference.
        """
        changed = self._differences(ssp)
        if changed and "--val" not in sys.argv:  # which trains nothing
            raise ValueError(
                "--c must go on with the settings of the checkpoint, but these differ: "
                + "; ".join(changed)
            )
        self.go_on_as(ssp)

    def record(self) -> dict[str, Any]:
        """Return the run's record for checkpoints (key `ssp`) and `settings.json`: no subjects' names, no paths."""
        return {
            "trainer": type(self).__name__,
            "settings": asdict(self.settings),
            **self.computes(),
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
        """Write the settings to `settings.json` and to the log, before anything else that a run writes."""
        if self.local_rank == 0:
            folder = Path(self.output_folder)
            for place in (folder, *(inner for inner in folder.iterdir() if inner.is_dir())):
                remove_half_written(place)  # pictures, too
            if self._repeats:
                self._set_aside()
            write_json(
                Path(self.output_folder) / "settings.json", transfer.to_builtin(self.record())
            )
        unused = dict.fromkeys(self.settings.unused, "  (not used by this optimizer)")
        lines = "\n".join(
            f"  {name} = {as_word(value)}{unused.get(name, '')}"
            for name, value in asdict(self.settings).items()
        )
        self.print_to_log_file(f"Settings (change with nnUNet_ssp_settings):\n{lines}")

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.local_rank == 0:
            for file in Path(self.output_folder).glob(f"{REPLACED}checkpoint_*.pth"):
                file.unlink()
            snapshots.forget_earlier(self.output_folder)
        self.repeat_warnings()

    # -- files -------------------------------------------------------------------------------------

    def _save_is_due(self) -> bool:
        """Whether to save now: every `SECONDS_BETWEEN_SAVES`, and after the first epoch to see that it works."""
        due = time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES
        if due:
            self._saved_at = time.monotonic()
        return due

    def checkpoint(self, weights: dict[str, Any], **entries: Any) -> dict[str, Any]:
        """Return a checkpoint in nnU-Net's form, made of tensors on the CPU and builtins.

        Args:
            weights: State of the network.
            entries: Entries that replace or extend nnU-Net's.
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
        """Write a checkpoint, whole or not at all, that `weights_only=True` can read.

        Raises:
            SystemExit: The results' folder no longer exists, or a tensor is not finite.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        self._check_folder()
        lost = first_not_finite(content, but=(STEPS,))
        if lost:
            self._stop_not_finite(
                f"{lost} is not finite after {self._last_batch()}; {Path(file).name} was not written"
            )
        saving.save(file, content)
