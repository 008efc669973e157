"""Pretraining of nnU-Net's planned 2D network without labels, as an nnU-Net trainer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.membership import (
    check_stored,
    members_in_words,
    sides,
    subjects_by_case,
    training_cases,
    validated_on,
)
from nnunet_ssp.cohort.repeats import doubts
from nnunet_ssp.console import count_of
from nnunet_ssp.distributed import mean_over_steps, require_equal_ranks, with_global_statistics
from nnunet_ssp.files.nnunet import write_descriptions
from nnunet_ssp.methods.base import Batch, Method
from nnunet_ssp.preparation.prepared import recorded
from nnunet_ssp.settings import PretrainingSettings
from nnunet_ssp.slices.drawing import SliceStore
from nnunet_ssp.slices.store import read_index, store_folder
from nnunet_ssp.training import snapshots, transfer
from nnunet_ssp.training.batches import Batches, ensure_store
from nnunet_ssp.training.chain import continue_heads, seen
from nnunet_ssp.training.checks import refuse_lost_start, refuse_unsuitable, refuses_other_content
from nnunet_ssp.training.compiling import compile_parts
from nnunet_ssp.training.crops import label_use, place_crops
from nnunet_ssp.training.interchange import marks
from nnunet_ssp.training.loop import BEST, LATEST
from nnunet_ssp.training.monitor import StageChange
from nnunet_ssp.training.next_steps import next_step
from nnunet_ssp.training.optimizers import make_optimizer
from nnunet_ssp.training.precision import choose_precision
from nnunet_ssp.training.progress import PROBE, Progress, begin_progress, logged_keys
from nnunet_ssp.training.ranks import data_of_rank, run_of_rank
from nnunet_ssp.training.resuming import (
    earlier_origin,
    pack_steps,
    random_state,
    require_same_data,
    take_back,
    unpack_steps,
)
from nnunet_ssp.training.starting import StartingTrainer


class PretrainingTrainer(StartingTrainer):
    """Wrap the planned network in a method and train it on every slice that the fold may see.

    A subclass names the method. Nothing else differs between methods: they share this `train_step`.
    """

    method_class: ClassVar[type[Method]]
    settings: PretrainingSettings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "defaults" not in cls.__dict__:
            cls.defaults = cls.method_class.settings_class()

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.weight_decay = self.settings.weight_decay
        self.weights_from = "scratch"
        self.enable_deep_supervision = False
        self.method: Method
        self.batches: Batches
        self.progress: Progress
        self.best_loss = float("inf")
        # The probe's Dice before training, for a resumed run.
        self._probed_untrained = float("nan")
        # Counts, subjects and digest of images of the run that is resumed.
        self._resumed: tuple[dict[str, int], set[str], str] | None = None
        # File that the resumed run started from, see `privacy.origin`.
        self._origin: dict[str, str] = {}
        # What the interrupted epoch's finished steps left, until that epoch goes on.
        self._unfinished: dict[str, Any] = {}
        logging = self.logger.local_logger.my_fantastic_logging
        logging.update({key: [] for key in logged_keys(self.method_class)})
        logging["images_per_second"] = []
        if getattr(self.settings, "probe", False):  # methods that train the encoder alone
            logging[PROBE] = []

    # -- building ----------------------------------------------------------------------------------

    def build(self) -> None:
        """Build network, method and optimiser.

        This replaces nnU-Net's own, which would compile the whole wrapper and turn the heads' BatchNorm into
        SyncBatchNorm. It would also infer the dataset class from a folder that pretraining does not read.
        """
        if self.was_initialized:
            raise RuntimeError("initialize was called twice.")
        refuse_unsuitable(self)
        require_equal_ranks(run_of_rank(self))
        pretrained = self.open_pretrained()
        self.batch_size = self.settings.batch_size
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        height, width = (int(side) for side in self.configuration_manager.patch_size)
        reconstructs = self.method_class.reconstructs
        torch.manual_seed(self.settings.seed)
        planned = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.num_input_channels if reconstructs else self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        )
        planned = with_global_statistics(planned, self.is_ddp and self.device.type == "cuda")
        if pretrained is not None:
            adapted = self._continue_from(pretrained, planned)
        self.method = self.method_class(
            planned, self.settings, (height, width), self.num_input_channels
        )
        if pretrained is not None:
            heads = continue_heads(self.method, pretrained.ssp, pretrained.state, adapted)
            self.print_to_log_file(f"Optimizer and learning rate begin anew; {heads}.")
        self.stage_change = StageChange(planned)
        logging = self.logger.local_logger.my_fantastic_logging
        logging.update({f"change {stage}": [] for stage in self.stage_change.start})

        self.method.to(self.device)
        if self._do_i_compile():
            self.print_to_log_file("Using torch.compile on encoder and decoder...")
            compile_parts(self.method.compiled())
        self.network = self.method
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = DistributedDataParallel(
                self.method, [self.device] if self.device.type == "cuda" else None
            )
        half = self.method_class.half_precision
        self.use_precision(choose_precision(self.settings.precision, half, self.device))
        self.was_initialized = True
        self.logger.update_config({"hparas": asdict(self.settings)})

    def _continue_from(self, pretrained: transfer.Pretrained, network: nn.Module) -> bool:
        """Fill the planned network from an earlier training's file; one of an encoder method with the encoder alone.

        Returns:
            Whether the weights were adapted.
        """
        only = self.method_class.transfers == "encoder"
        adaptation = self.compare_pretrained(pretrained, network, only)
        self.take_chain(pretrained)
        split = super().do_split() if isinstance(self.fold, int) else ([], [])
        self.check_validation(validated_on(self.fold, *split))
        # Without the channels' names, what fits is taken as it is.
        self.fill(network, adaptation or transfer.adapted(pretrained, network, {}, only))
        return adaptation is not None

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """Return the method's optimiser; the method gives the learning rate of each step."""
        return make_optimizer(self.method.parameter_groups(), self.settings), None

    # -- data --------------------------------------------------------------------------------------

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the cases to train on, labelled or not, and those that only give the validation loss.

        Training takes every case of the slice store except those of subjects that the fold validates on. Test subjects
        must not be in the store at all.

        Raises:
            ValueError: A test subject in the slice store, a case missing in `cases.csv`, or a fold out of range.
        """
        _, index = read_index(self.store_folder)
        cases, pattern = self.cases, self.settings.subject_pattern
        subjects = subjects_by_case(index, cases, pattern)
        check_stored(subjects, cases, self.store_folder)
        prepared = Path(self.preprocessed_dataset_folder_base)
        whole = recorded(prepared) if self.natural else training_cases(cases)
        absent = whole - index.keys()
        self.require_stored(absent, self.store_folder, self.store_folder)
        fraction, seed = self.settings.data_fraction, self.settings.seed
        superset, numbered = self.settings.data_superset, isinstance(self.fold, int)
        split = super().do_split() if numbered or superset is not None else ([], [])
        validation = validated_on(self.fold, *split) if numbered else ()
        drawn = (fraction, seed, superset, split[0])
        chosen = sides(index, validation, cases, pattern, *drawn)
        n_slices = {case: entry.shape[0] for case, entry in index.items()}
        said = members_in_words(chosen, n_slices, cases, self.fold, self.store_folder)
        self.print_to_log_file("\n".join([*said, label_use(self.settings)]))
        if not cases and pattern is None and not self.natural:
            for doubt in doubts(chosen.train, chosen.val):
                self.print_to_log_file(doubt)
        self.train_subjects = sorted(chosen.drawn & set(subjects.values()))
        return chosen.train, chosen.val

    def known_cases(self) -> set[str]:
        return super().known_cases() or set(read_index(self.store_folder)[1])

    @property
    def store_folder(self) -> Path:
        """The slice store of this dataset and these plans."""
        base = self.preprocessed_dataset_folder_base
        return store_folder(base, self.configuration_manager.data_identifier)

    def get_dataloaders(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Return the batches from the current step on, and the fixed validation batches in an endless cycle."""
        ensure_store(self)
        train, val = self.do_split()
        bases = {name: case.base for name, case in self.cases.items()}
        self.store = SliceStore(self.store_folder, train, bases)
        if self.store.channels != self.num_input_channels:
            raise ValueError(
                f"{self.store_folder}: slices have {count_of(self.store.channels, 'channel')}, dataset.json names "
                f"{self.num_input_channels}: run nnunet-ssp prepare again."
            )
        self.batches = batches = Batches(
            self.method,
            self.settings,
            self.store,
            SliceStore(self.store_folder, val, bases) if val else None,
            partial(self.subject_of, pattern=self.settings.subject_pattern),
            self.device,
        )
        place_crops(self)
        self.num_iterations_per_epoch = batches.per_epoch
        self.num_val_iterations_per_epoch = batches.n_validation()
        self.print_to_log_file(
            f"{len(self.store)} slices, {batches.per_epoch} batches of {self.batch_size} per epoch; the validation "
            f"loss is taken on {len(batches.fixed)} {batches.validates_on} slices with fixed views and masks."
        )
        for note in self.method.examine(self.store):
            self.print_to_log_file(note)
        first = self.current_epoch * batches.per_epoch + len(self.outputs)
        return batches.training(first), batches.validation()

    # -- training ----------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self.settle_computing(self.method.network, self.method_class.half_precision == "bf16")
        starts = self.current_epoch == 0 and self._resumed is None
        if starts:
            refuse_lost_start(self)
            self.refuse_overwriting()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        if self._resumed is not None:
            require_same_data(self._resumed, self.record(), self.fold)
        require_equal_ranks(data_of_rank(self))
        if self.local_rank == 0 and not (starts or self.disable_checkpointing):
            snapshots.forget_later(self.output_folder, self.current_epoch)
        self.print_plans()
        empty_cache(self.device)
        if self.local_rank == 0:
            base, prepared = self.output_folder_base, self.preprocessed_dataset_folder_base
            write_descriptions(base, self.plans_manager.plans, self.dataset_json, prepared)
        self._save_debug_information()
        self.log_settings()
        self.progress = begin_progress(self, self._probed_untrained)
        if starts:
            self.progress.start()
            self._probed_untrained = self.progress.untrained

    def on_train_epoch_start(self) -> None:
        self.network.train()
        self.method.start_epoch(self.current_epoch)
        for name, buffer in self._unfinished.get("buffers", {}).items():
            self.method.get_buffer(name).copy_(buffer)
        first = self.current_epoch * self.num_iterations_per_epoch
        self._step = first + len(self.outputs)
        lr = self.method.learning_rate(first, self.num_iterations_per_epoch)
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self.print_to_log_file(f"Current learning rate: {lr:.5g}")
        self.logger.log("lrs", lr, self.current_epoch)
        self._epoch_started = time.perf_counter() - self._unfinished.get("seconds", 0.0)
        self._unfinished = {}

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step; the results stay on the device until the epoch ends."""
        lr = self.method.learning_rate(self._step, self.num_iterations_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        output = self._forward(batch)
        self.guard.saw(output["loss"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        clip = self.settings.gradient_clip
        if self.grad_scaler is not None:
            self.grad_scaler.scale(output["loss"]).backward()
            self.grad_scaler.unscale_(self.optimizer)
        else:
            output["loss"].backward()
        self.method.after_backward()
        if clip is not None:
            self.guard.saw_norm(nn.utils.clip_grad_norm_(parameters, clip))
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        self.method.after_step(self._step, self.num_epochs * self.num_iterations_per_epoch)
        self._step += 1
        return {name: value.detach() for name, value in output.items()}

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        self.method.chunks.scaled = self.grad_scaler is not None
        with self.autocast():
            return self.network(batch)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Tensor]]) -> None:
        loss, curves = self._reduce(train_outputs)
        seconds = time.perf_counter() - self._epoch_started
        self.logger.log("train_losses", loss, self.current_epoch)
        for name, value in {**curves, **self.method.end_epoch()}.items():
            self.logger.log(f"train_{name}", value, self.current_epoch)
        images = self.num_iterations_per_epoch * self.batch_size
        self.logger.log("images_per_second", images / seconds, self.current_epoch)
        if self.method.chunks.note:
            self.print_to_log_file(self.method.chunks.note)
            self.method.chunks.note = ""

    def batch_cases(self, step: int, batch: Any) -> Callable[[], list[str]]:
        return partial(self.batches.cases_of, step)

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self._forward(batch).items()}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Tensor]]) -> None:
        loss, curves = self._reduce(val_outputs)
        self.logger.log("val_losses", loss, self.current_epoch)
        for name, value in curves.items():
            self.logger.log(f"val_{name}", value, self.current_epoch)

    def _reduce(self, outputs: list[dict[str, Tensor]]) -> tuple[float, dict[str, float]]:
        """Return the mean loss and the epoch's curves."""
        means = mean_over_steps(outputs)
        return means["loss"], self.method.summarise(means)

    def on_epoch_end(self) -> None:
        """Log, save and draw; nnU-Net's own asks for a Dice, which pretraining does not have."""
        epoch = self.current_epoch
        self.logger.log("epoch_end_timestamps", time.time(), epoch)
        loss = float(self.logger.get_value("val_losses", step=-1))
        self.early_stopping.update(loss)
        last = epoch == self.num_epochs - 1 or self.early_stopping.should_stop
        self.progress.end_epoch(epoch, last)
        if snapshots.is_due(self.settings.snapshot_epochs, epoch + 1):
            self._save_snapshot()  # before what --c goes on from: a kill between them must not skip it
        if loss < self.best_loss:
            self.best_loss = loss
            self.save_checkpoint(os.path.join(self.output_folder, BEST))
        if not last and self._save_is_due():
            self.save_checkpoint(os.path.join(self.output_folder, LATEST))
        self.current_epoch += 1
        self.progress.draw(self.current_epoch)

    def on_train_end(self) -> None:
        super().on_train_end()
        self.dataloader_train.close()  # ends the reading thread

    # -- files -------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        method = self.method
        return {
            **super().record(),
            "method": type(method).__name__,
            "transfers": method.transfers,
            **seen(self.store.names, len(self.store), self.train_subjects, self.natural),
            "preprocessing": self.store.preprocessing,
            "papers": [method.paper],
            **({"chain": self.chain} if self.chain else {}),
            **self._origin,
        }

    def save_checkpoint(self, filename: str) -> None:
        """Save the planned network under nnU-Net's names, and in `ssp_state` what only a resumed run needs."""
        if self.local_rank == 0:
            self.write_checkpoint(filename, self._content({}))

    def _content(self, more_state: dict[str, Any], **entries: Any) -> dict[str, Any]:
        weights = transfer.pretrained_weights(
            self.method.exported(), self.method.transfers, self.label_manager.num_segmentation_heads
        )
        state = {
            "method": transfer.to_cpu(self.method.extra_state()),
            "best_loss": self.best_loss,
            "probed_untrained": self._probed_untrained,
            **random_state(self.device),
            # A resumed run builds the network anew; without a chain its seed gives the same start.
            **({"change_from": self.stage_change.start} if self.chain else {}),
            **more_state,
        }
        configuration = self.configuration_manager.configuration
        marked = marks(
            *(self.method.network, self.plans_manager.plans, self.configuration_name),
            *(configuration, self.num_input_channels, [self.method.paper]),
        )
        entries = transfer.to_builtin(marked) | entries
        return self.checkpoint(weights, ssp_state=state, **entries)

    def _save_snapshot(self) -> None:
        if self.local_rank == 0:
            content = snapshots.content(
                self._content({}), self.num_epochs, self.progress.probed, self.method.transfers
            )
            file = snapshots.snapshot_file(self.output_folder, content["current_epoch"])
            self.write_checkpoint(file, content)

    def keep(self) -> str:
        """Save the exact state between two steps, with what the epoch's steps so far have left."""
        if self.disable_checkpointing:
            return "nothing was saved (--disable_checkpointing)"
        file = Path(self.output_folder) / LATEST
        epoch, steps = self.current_epoch, len(self.outputs)
        if self.local_rank == 0:
            content = self._content({"epoch": self._epoch_state()}, current_epoch=epoch)
            # The resumed run logs the unfinished epoch again.
            content["logging"] = {k: curve[:epoch] for k, curve in content["logging"].items()}
            self.write_checkpoint(file, content)
        n = self.num_iterations_per_epoch
        return f"{file} holds the training after step {steps} of {n} of epoch {epoch}"

    def _epoch_state(self) -> dict[str, Any]:
        """Return what the steps of the current epoch leave for its end."""
        if self._unfinished:  # a signal came before the first step of a resumed run
            return self._unfinished
        self.guard.look()
        seconds = time.perf_counter() - self._epoch_started if self.outputs else 0.0
        return pack_steps(self.outputs, self.guard.skipped, self.method, seconds)

    @refuses_other_content
    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Continue exactly where the checkpoint was written.

        Raises:
            ValueError: The settings differ from the checkpoint's.
        """
        if not self.was_initialized:
            self.initialize()
        checkpoint = self.open_checkpoint(filename_or_checkpoint)
        self.check_resume(checkpoint["ssp"])
        take_back(checkpoint, self.method, self.optimizer, self.grad_scaler, self.device)
        state = checkpoint["ssp_state"]
        self.early_stopping.load_state_dict(checkpoint["ssp_early_stopping"])
        if "ssp_skipped" in checkpoint:
            self.guard.load_state_dict(checkpoint["ssp_skipped"])
        if "epoch" in state:  # saved within an epoch
            self._unfinished = state["epoch"]
            self.outputs = unpack_steps(self._unfinished["outputs"], self.device)
            self.guard.skipped = list(self._unfinished["skipped"])
        self.stage_change.start = state.get("change_from", self.stage_change.start)
        self.best_loss = state["best_loss"]
        self._probed_untrained = state["probed_untrained"]
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        ssp = checkpoint["ssp"]
        subjects, digest = privacy.hashed_subjects(ssp["subjects"]), ssp.get("images_digest", "")
        self._resumed = ssp["counts"], subjects, digest
        self.chain, self._origin = ssp.get("chain", []), earlier_origin(ssp)

    # -- what pretraining does not do --------------------------------------------------------------

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: the method decides which outputs the decoder gives."""

    def plot_network_architecture(self) -> None:
        """Do nothing: the plans describe the architecture."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Print what to run next: there is no segmentation to validate."""
        self.repeat_warnings()
        if self.disable_checkpointing:
            self.print_to_log_file("Pretraining done; nothing was saved (--disable_checkpointing).")
            return
        file = Path(self.output_folder) / self.method_class.checkpoint
        self.print_to_log_file(next_step(self, file))
