"""Fine-tuning a pretrained network, and its control from scratch: stock nnU-Net training with our settings.

Schedule, losses, augmentation and validation are nnU-Net's own. Ours are settings and seeds, checks of the pretrained
file before anything starts, a report of what was loaded, and checkpoints that predict without this package.
"""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.membership import SEEN, subjects_by_case, validated_on
from nnunet_ssp.console import count_of, some
from nnunet_ssp.network import in_encoder, is_output_layer
from nnunet_ssp.schedules import polynomial
from nnunet_ssp.settings import EncoderSettings, FinetuningSettings
from nnunet_ssp.signals import ending_at_once
from nnunet_ssp.slices.intact import prepare_command
from nnunet_ssp.slices.store import (
    INDEX,
    PREPROCESSED,
    is_preprocessed,
    read_index,
    read_missing,
    require_sizes,
    store_folder,
)
from nnunet_ssp.training import transfer
from nnunet_ssp.training.chain import last_pattern, subjects_seen
from nnunet_ssp.training.checks import refuse_changed_masks, refuses_other_content
from nnunet_ssp.training.evidence import gain_of
from nnunet_ssp.training.finetuning_progress import own_picture
from nnunet_ssp.training.loop import BEST, FINAL, LATEST
from nnunet_ssp.training.monitor import learning_curve, write_curves
from nnunet_ssp.training.next_steps import after_finetuning
from nnunet_ssp.training.optimizers import DecayToStart, EpochRates, finetuning_optimizer
from nnunet_ssp.training.pace import time_left
from nnunet_ssp.training.precision import InPrecision, choose_precision
from nnunet_ssp.training.starting import StartingTrainer
from nnunet_ssp.training.validation import needs_no_workers, validate_here

STOCK_ITERATIONS = 250  # nnU-Net's steps per epoch
# Way from the seed to random numbers. 1, in checkpoints without a number: seeded when the process starts.
# 2: seeded at the start of each epoch; an interrupted run gives the same result.
STREAMS = 2
NO_DECODER = (
    "note: the file holds a pretrained encoder and no decoder; the decoder starts from this run's own random "
    "weights."
)


class FinetuningTrainer(StartingTrainer):
    """Train the planned segmentation network from pretrained weights, all at once as de Mooij et al. do."""

    defaults = FinetuningSettings()
    settings: FinetuningSettings
    needs_weights = True

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = self.settings.iterations_per_epoch or STOCK_ITERATIONS
        self.num_val_iterations_per_epoch = self.settings.val_iterations_per_epoch
        self.weight_decay = self.settings.weight_decay
        # Hashes of all subjects that the weights have seen, here and in pretraining.
        self.subjects: set[str] = set()
        self._loads_checkpoint = False
        # Names of the tensors that pretrained weights filled.
        self.loaded: set[str] = set()
        # Their values, for `l2_sp`. A checkpoint holds them: a resumed run need not find the pretrained file.
        self.start: dict[str, Tensor] = {}
        # Whether the preprocessed cases were checked.
        self._checked = False
        # Record of the run that is resumed.
        self._resumed: dict[str, Any] = {}
        self.streams = STREAMS
        # Checkpoint of the last epoch, if it is not on disk.
        self._boundary: dict[str, Any] | None = None

    def build(self) -> None:
        """Build the network with the run's seed; check the pretrained file before its tensors are loaded.

        Raises:
            ValueError: The dataset has no labels, nothing was preprocessed, or the pretrained file does not fit; says
                what differs.
        """
        if not self.label_manager.foreground_labels and not self.label_manager.has_regions:
            raise ValueError(
                f"{self.plans_manager.dataset_name} has no labels (dataset.json names only background): "
                f"{type(self).__name__} has nothing to learn. Pretrain on it, or convert labelled subjects."
            )
        folder = Path(self.preprocessed_dataset_folder)
        if not any(file.name.endswith(PREPROCESSED) for file in folder.glob("*")):
            command = prepare_command(store_folder(folder.parent, folder.name))
            raise ValueError(f"{folder}: no case is preprocessed: run {command}.")
        refuse_changed_masks(self)
        file = self.pretrained_argument()
        if file is not None and not self.needs_weights:
            raise ValueError(
                f"{type(self).__name__} trains from scratch and takes no -pretrained_weights; "
                "use -tr nnUNetTrainerFinetune."
            )
        if self.settings.l2_sp and not self.needs_weights:
            raise ValueError(
                f"`l2_sp` (={self.settings.l2_sp}) must be 0 for {type(self).__name__}: it draws weights towards "
                "pretrained ones, and a training from scratch has none."
            )
        pretrained = self.open_pretrained()
        torch.manual_seed(self.settings.seed)
        super().build()
        self.use_precision(choose_precision(self.settings.precision, "fp16", self.device))
        # The guard sees every loss before its step; those of the validation come between steps and do no harm.
        self.loss.register_forward_hook(lambda *called: self.guard.saw(called[-1]))
        transfer.keep_own_fresh(self.network_module, self._take)
        if pretrained is not None:
            self._check_pretrained(pretrained)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Return nnU-Net's optimiser and scheduler, or those that the settings ask for in their place."""
        nnunets, scheduler = super().configure_optimizers()
        s = self.settings
        optimizer = finetuning_optimizer(nnunets, self.network_module, s)
        if optimizer is nnunets and not s.warmup_epochs:
            return nnunets, scheduler
        return optimizer, EpochRates(optimizer, self.learning_rate)

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0: nnU-Net's polynomial, after a warm-up if any."""
        warmup = self.settings.warmup_epochs
        if epoch < warmup:
            return self.initial_lr * (epoch + 1) / (warmup + 1)
        return polynomial(epoch - warmup, self.num_epochs - warmup, self.initial_lr)

    def _check_pretrained(self, pretrained: transfer.Pretrained) -> None:
        """Check file and chain; load what only `adapt=yes` makes fit, the rest is left to nnU-Net."""
        if "method" in pretrained.ssp:
            known = pretrained.plans.get("dataset_name"), self.plans_manager.dataset_name
            self.print_to_log_file(gain_of(pretrained.ssp, pretrained.epochs, *known))
        encoder_only = self.settings.transfer == "encoder"
        adaptation = self.compare_pretrained(pretrained, self.network_module, encoder_only)
        if adaptation is None and pretrained.encoder_alone:  # nnU-Net's loader asks for a decoder
            adaptation = transfer.adapted(pretrained, self.network_module, {}, encoder_only=True)
        self.take_chain(pretrained)
        train, val = self.do_split()
        self.check_validation(validated_on(self.fold, train, val))
        trained = subjects_by_case(train, self.cases, last_pattern(self.chain)).values()
        self.subjects = subjects_seen(self.chain) | privacy.hashed_subjects(trained)
        if adaptation is not None:
            self.weights_loaded(self.fill(self.network_module, adaptation))
            if pretrained.encoder_alone:
                self.print_to_log_file(NO_DECODER)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the fold's cases; one that holds nobody out validates on its training cases, as nnU-Net's `all` does.

        Raises:
            FileNotFoundError: A file of a case is missing.
            ValueError: The fold is unusable, cases are not preprocessed, or a file is damaged.
        """
        train, val = super().do_split()
        if not self._checked:
            self._check_preprocessed({*train, *val})
            self._checked = True
        return train, val or train

    def _check_preprocessed(self, names: set[str]) -> None:
        """Check that every case is present and undamaged before nnU-Net's workers open it."""
        folder = Path(self.preprocessed_dataset_folder)
        store = store_folder(folder.parent, folder.name)
        if isinstance(self.fold, int):
            absent = {name for name in names if not is_preprocessed(folder, name)}
            if absent:
                known = read_missing(store)
                reasons = "".join(
                    f"; {name}: {known[name]}" for name in sorted(absent) if name in known
                )
                raise ValueError(
                    f"{folder}: {some(absent)} of fold {self.fold} must be there: run {prepare_command(store)}, or "
                    f"leave them out of the fold{reasons}."
                )
        elif self.cases:
            self.require_stored(self.known_cases() - names, folder, store)
        if (store / INDEX).is_file():
            _, index = read_index(store)
            require_sizes(folder, {name: index[name] for name in names & index.keys()}, store)

    def _take(self, fresh: set[str]) -> set[str]:
        """Return the tensors that keep their own initialisation when weights are loaded, given the untrained ones."""
        if self._loads_checkpoint:
            return fresh
        if not self.needs_weights:
            raise ValueError(
                f"{type(self).__name__} trains from scratch and takes no pretrained weights."
            )
        if self.pretrained is None:
            raise ValueError(
                f"{type(self).__name__} loads only weights that it has checked: give them to nnU-Net's command or to "
                "its run_training, which initialise the trainer for them."
            )
        own = self.network_module.state_dict()
        decoder = {key for key in own if not in_encoder(key)}
        kept = fresh | decoder if self.settings.transfer == "encoder" else fresh
        self.weights_from = str(self.pretrained.file)
        self.print_to_log_file(f"Loaded {self.weights_from}: {transfer.moved(own, kept)}")
        if decoder <= fresh | {key for key in own if is_output_layer(key)}:
            self.print_to_log_file(NO_DECODER)
        self.weights_loaded({key for key in own if key not in kept and not is_output_layer(key)})
        return kept

    def weights_loaded(self, loaded: set[str]) -> None:
        """Note the names of the tensors that pretrained weights are about to fill."""
        self.loaded = loaded

    @refuses_other_content
    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        if not self.was_initialized:
            self.initialize()
        content = self.open_checkpoint(filename_or_checkpoint)
        ssp = content.get("ssp", {})
        self.check_resume(ssp)
        self._loads_checkpoint = True
        started_with = self.my_init_kwargs
        super().load_checkpoint(filename_or_checkpoint)
        self.my_init_kwargs = started_with  # nnU-Net takes the file's, which may list cases
        self._loads_checkpoint = False
        if "ssp_early_stopping" in content:
            self.early_stopping.load_state_dict(content["ssp_early_stopping"])
        if "ssp_skipped" in content:
            self.guard.load_state_dict(content["ssp_skipped"])
        self.streams = content.get("ssp_streams", 1)
        self.weights_from = ssp.get("weights_from", "a checkpoint")
        self._resumed = ssp
        if (seen := ssp.get(SEEN, 0)) and not self.seen_in_validation:
            self.warn_of_seen(seen)
        self.load_entries(content)

    def on_train_start(self) -> None:
        """Refuse to start without weights: the run would silently train from scratch.

        Raises:
            ValueError: Neither pretrained weights nor a checkpoint was loaded.
        """
        if not self.was_initialized:
            self.initialize()
        if self.needs_weights and self.weights_from == "nothing yet":
            raise ValueError(
                f"{type(self).__name__} got no weights: give -pretrained_weights FILE to start, or --c to go on with a "
                "run that has a checkpoint. For training from scratch use -tr nnUNetTrainerScratch."
            )
        if not self.needs_weights and self.weights_from == "nothing yet":
            self.weights_from = "scratch"
        if self.current_epoch == 0:
            self.refuse_overwriting()
        if not self.subjects:
            trained = subjects_by_case(self.do_split()[0], self.cases)
            self.subjects = privacy.hashed_subjects(trained.values())
        self.settle_computing(self.network_module)
        if self.settings.l2_sp:
            self._decay_to_start()
        self._seed_epoch()
        super().on_train_start()
        self.print_to_log_file(
            "The seed fixes the initial weights; it fixes the order of the data only with nnUNet_n_proc_DA=0."
        )

    def _decay_to_start(self) -> None:
        named = dict(self.network_module.named_parameters())
        if not self.start:  # a resumed run has them from its checkpoint
            loaded = named.keys() & self.loaded
            self.start = {name: named[name].detach().clone() for name in sorted(loaded)}
        start = {named[name]: tensor.to(self.device) for name, tensor in self.start.items()}
        DecayToStart(self.optimizer, start, self.settings.l2_sp, self.settings.weight_decay)

    def _seed_epoch(self) -> None:
        """Seed every generator of this process; nnU-Net's workers stay unseeded.

        Each rank has its own stream, and a resumed run does not repeat the first epochs'.
        """
        entropy = [self.settings.seed, self.current_epoch, self.local_rank]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def on_train_epoch_start(self) -> None:
        if self.streams >= 2:
            self._seed_epoch()
        super().on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self._in_precision():
            output: dict[str, Any] = super().train_step(batch)
        return output

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self._in_precision():
            output: dict[str, Any] = super().validation_step(batch)
        return output

    @contextmanager
    def _in_precision(self) -> Iterator[None]:
        """Let nnU-Net's step see a network in the run's precision, where that is not nnU-Net's own."""
        nnunets = torch.float16 if self.device.type == "cuda" else None
        if self.autocast_dtype is nnunets:
            yield
            return
        network = self.network
        self.network = InPrecision(network, self.autocast)
        try:
            yield
        finally:
            self.network = network

    def batch_cases(self, step: int, batch: Any) -> Callable[[], list[str]]:
        names = sorted(map(str, batch["keys"])) if isinstance(batch, dict) else []
        return lambda: names

    def on_epoch_end(self) -> None:
        """Do what nnU-Net does, but save by the clock; keep a checkpoint in memory otherwise."""
        # As in a checkpoint: nnU-Net's moving averages of np.float32 and of float differ in the last digit.
        logging = self.logger.local_logger.my_fantastic_logging
        logging.update(transfer.to_builtin(logging))
        self.early_stopping.update(float(self.logger.get_value("val_losses", step=-1)))
        self.save_every = self.num_epochs + 1  # nnU-Net saves before it knows of a new best
        with own_picture(self):
            super().on_epoch_end()
        if self.current_epoch < self.num_epochs:
            start, end = (logging[f"epoch_{which}_timestamps"][-1] for which in ("start", "end"))
            to_come = self.num_epochs - self.current_epoch
            early = bool(self.settings.early_stopping)
            then = "the final validation" if self.settings.final_validation else ""
            self.print_to_log_file(time_left(end - start, to_come, early, then))
        gc.collect()  # a plot leaves much in reference cycles, which otherwise pile up over epochs
        if self.current_epoch < self.num_epochs:
            self._keep_boundary()
        if self.local_rank == 0:
            curve = learning_curve(
                logging["mean_fg_dice"], logging["val_losses"], self.num_iterations_per_epoch
            )
            write_curves(Path(self.output_folder) / "learning_curve.csv", curve)

    def record(self) -> dict[str, Any]:
        # The subjects of both trainings: another training may start from this file.
        record = {**super().record(), "subjects": sorted(self.subjects)}
        if self.pretrained is not None:
            ssp = self.pretrained.ssp
            record["pretraining"] = {
                k: ssp[k] for k in ("method", "settings", "counts", "papers") if k in ssp
            }
            record[SEEN] = len(self.seen_in_validation)
            record["chain"] = self.chain
        kept = (
            "pretraining",
            SEEN,
            "weights_from_hash",
            "chain",
        )
        before = {k: self._resumed[k] for k in kept if k in self._resumed}
        if "subjects" in self._resumed:
            before["subjects"] = sorted(privacy.hashed_subjects(self._resumed["subjects"]))
        return record | before

    def save_checkpoint(self, filename: str) -> None:
        """Save nnU-Net's checkpoint under the name of nnU-Net's own trainer, so that it predicts without us."""
        if self.local_rank == 0:
            self.write_checkpoint(filename, self._content())

    def exported(self) -> torch.nn.Module:
        """Return the network that a checkpoint holds."""
        return self.network_module

    def _content(self, **entries: Any) -> dict[str, Any]:
        return self.checkpoint(
            transfer.to_cpu(self.exported().state_dict()),
            trainer_name="nnUNetTrainer",
            ssp_streams=self.streams,
            **self.checkpoint_entries(),
            **entries,
        )

    def _keep_boundary(self) -> None:
        """Save the epoch that has just ended, or keep a copy in memory for a signal before the next save."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        content = self._content(current_epoch=self.current_epoch)
        if self._save_is_due():
            self._boundary = None
            self.write_checkpoint(Path(self.output_folder) / LATEST, content)
        else:  # on the CPU these are the tensors that train
            self._boundary = copy.deepcopy(content) if self.device.type == "cpu" else content

    def keep(self) -> str:
        """Save the last finished epoch; an unfinished one starts again."""
        file = Path(self.output_folder) / LATEST
        if self.disable_checkpointing:
            return "nothing was saved (--disable_checkpointing)"
        if self.current_epoch == 0:
            return "no epoch was finished, so nothing is saved"
        if self._boundary is not None:
            self.write_checkpoint(file, self._boundary)
            self._boundary = None
        # A run that continued from the best checkpoint and has finished no epoch since.
        if not file.is_file():
            return f"no epoch was finished since, {file.with_name(BEST).name} is unchanged"
        return f"{file} holds the training after epoch {self.current_epoch - 1}"

    def checkpoint_entries(self) -> dict[str, Any]:
        """Return further entries of a checkpoint."""
        return {"ssp_start": transfer.to_cpu(self.start)} if self.settings.l2_sp else {}

    def load_entries(self, checkpoint: dict[str, Any]) -> None:
        """Restore `checkpoint_entries`."""
        if self.settings.l2_sp:
            self.start = checkpoint["ssp_start"]

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        kept = [word for word in self.kept_settings().split() if word != "final_validation=no"]
        wanted = [] if self.settings.final_validation else ["final_validation=yes"]
        validate = self.command("--val", settings=" ".join([*kept, *wanted]))
        if self.settings.final_validation:
            n_cases = len(self.do_split()[1])
            with ending_at_once(lambda: self._stopped(validate)), self.alive_in_validation(n_cases):
                self._announce_validation(n_cases)
                if needs_no_workers(self):
                    validate_here(self, save_probabilities)
                else:
                    super().perform_actual_validation(save_probabilities)
            self.repeat_warnings()
        elif not self.disable_checkpointing:
            self.print_to_log_file(
                f"final_validation=no: no validation case was predicted. To do it later:\n{validate}"
            )
        if self.disable_checkpointing:
            self.print_to_log_file("Training done; nothing was saved (--disable_checkpointing).")
            return
        if said := self._next_lines():
            self.print_to_log_file(said)

    def _next_lines(self, validated: bool = True) -> str:
        name, folder = self.plans_manager.dataset_name, Path(self.output_folder)
        return after_finetuning(name, folder, self.fold, self.device.type, validated)

    def _stopped(self, validate: str) -> str:
        """Return the last words where the final validation was stopped; the test subjects do not need it."""
        if self.disable_checkpointing:
            return "nothing was saved"
        saved = f"the training is finished and {FINAL} saved; validate with: {validate}"
        return "\n".join(filter(None, (saved, self._next_lines(validated=False))))

    def _announce_validation(self, n_cases: int) -> None:
        """Log what nnU-Net does next; it has one line for each case, which takes minutes on a CPU."""
        slow = (
            ", on a CPU each may take minutes (final_validation=no leaves this out)"
            if self.device.type == "cpu"
            else ""
        )
        kept = "" if self.disable_checkpointing else ", the training is saved"
        self.print_to_log_file(
            f"Final validation: {count_of(n_cases, 'case')} to predict{slow}. Ctrl-C ends it{kept}."
        )


class FinetuneEncoderTrainer(FinetuningTrainer):
    """Fine-tune from the pretrained encoder alone: the decoder starts fresh.

    The choice is Dominic et al.'s, whose optimiser is Adam at 0.001. Here optimiser and rate are those of
    `FinetuningTrainer`, so that both have one control.
    """

    defaults = EncoderSettings()


class ScratchTrainer(FinetuningTrainer):
    """The control of fine-tuning: the same settings and steps, from nnU-Net's own random weights."""

    # nnU-Net's rate, and that of de Mooij et al.'s baseline.
    defaults = FinetuningSettings(initial_lr=0.01)
    needs_weights = False
