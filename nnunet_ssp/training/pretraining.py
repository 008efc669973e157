"""Pretraining of nnU-Net's planned 2D network without labels, as an nnU-Net trainer."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.folds import shuffled
from nnunet_ssp.cohort.repeats import continuing_names, shared_prefixes
from nnunet_ssp.distributed import share, sum_over_ranks, world_size
from nnunet_ssp.files.atomic import write_json
from nnunet_ssp.files.lock import locked
from nnunet_ssp.methods.base import Batch, Method
from nnunet_ssp.network import is_output_layer
from nnunet_ssp.reporting.wording import duration
from nnunet_ssp.settings import PretrainingSettings
from nnunet_ssp.slices.drawing import (
    DRAW,
    FRAME,
    VALIDATION,
    SameSlice,
    SliceReader,
    batch_indices,
    fits_on_device,
    random_stream,
)
from nnunet_ssp.slices.store import (
    PREPROCESSED,
    SliceStore,
    follow_preprocessed,
    preprocessing_of,
    read_index,
    store_folder,
)
from nnunet_ssp.training import transfer
from nnunet_ssp.training.base import BEST, LATEST, SettingsTrainer, refuses_other_content
from nnunet_ssp.training.monitor import (
    Panel,
    StageChange,
    depth_warning,
    describe_change,
    plot_images,
    plot_progress,
    stage_panel,
    write_curves,
)
from nnunet_ssp.training.probe import LinearProbe, labelled_slices

VALIDATION_SLICES = 256
SHOWN_SLICES = 6  # rows of a reconstruction picture
PICTURES = 20  # reconstruction pictures and probes in 100 epochs, besides the untrained network's
WARNINGS = 10  # times in 100 epochs that a warning is said
PROBE = "probe_dice"


class PretrainingTrainer(SettingsTrainer):
    """Wraps the planned network in a method and trains it on every slice that the fold may see.

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
        self.probe: LinearProbe | None = None
        self._probed_untrained = float("nan")
        self.best_loss = float("inf")
        self.validates_on = "validation"
        self._resumed: tuple[dict[str, int], set[str]] | None = None  # counts and subjects before
        self._resumed_buffers: dict[str, Tensor] = {}  # of the epoch in which the run stopped
        self._epoch_seconds = 0.0  # of its steps
        logging = self.logger.local_logger.my_fantastic_logging
        for side in ("train", "val"):
            logging.update({f"{side}_{curve}": [] for curve in self.method_class.curves})
        logging.update({f"train_{curve}": [] for curve in self.method_class.train_curves})
        logging.update({f"val_{curve}": [] for curve in self.method_class.val_curves})
        logging["images_per_second"] = []
        if self._probes:
            logging[PROBE] = []

    @property
    def _probes(self) -> bool:
        """Whether this method's encoder is measured with a linear probe."""
        return getattr(self.settings, "probe", False)

    # -- building ------------------------------------------------------------------------------

    def build(self) -> None:
        """Build network, method and optimiser.

        Not nnU-Net's: it would compile the whole wrapper, turn heads' BatchNorm into SyncBatchNorm and infer the
        dataset class from a folder that pretraining does not read.
        """
        if self.was_initialized:
            raise RuntimeError("initialize was called twice.")
        self._refuse_unsuitable()
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
        self.method = self.method_class(
            planned, self.settings, (height, width), self.num_input_channels
        )
        self.stage_change = StageChange(planned)
        logging = self.logger.local_logger.my_fantastic_logging
        logging.update({f"change {stage}": [] for stage in self.stage_change.start})

        self.method.to(self.device)
        if self._do_i_compile():
            self.print_to_log_file("Using torch.compile on encoder and decoder...")
            # In place, so that no key gets a prefix; the method around them is not worth compiling.
            # Each batch size has its own graph: with symbolic sizes torch keeps a slower memory layout.
            # Student and teacher, chunks, validation, probe: more graphs than torch keeps by default.
            dynamo: Any = torch._dynamo.config
            dynamo.cache_size_limit = max(dynamo.cache_size_limit, 64)
            for part in self.method.compiled():
                part.compile(dynamic=False)
        self.network = self.method
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = DistributedDataParallel(self.method, device_ids=[self.local_rank])
        self._choose_precision()
        self.was_initialized = True
        self.logger.update_config({"hparas": asdict(self.settings)})

    def _refuse_unsuitable(self) -> None:
        patch_size = self.configuration_manager.patch_size
        if len(patch_size) != 2:
            raise ValueError(
                f"configuration (={self.configuration_name}) must be 2D: {type(self).__name__} pretrains "
                f"the planned 2D network, this one has the patch {list(patch_size)}. "
                f"Use: nnUNetv2_train {self.dataset} 2d ..."
            )
        if self.is_cascaded:
            raise ValueError(f"configuration (={self.configuration_name}) must not be a cascade.")
        if self.pretrained_argument() is not None:
            raise ValueError(
                f"{type(self).__name__} starts from scratch and takes no -pretrained_weights; give that file to "
                "-tr nnUNetTrainerFinetune."
            )

    def _choose_precision(self) -> None:
        precision = self.settings.precision
        if precision == "auto" and self.device.type == "cuda":
            # Cards without bf16 would emulate it, slowly.
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            precision = self.method_class.half_precision if native else "fp16"
        self.autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        if precision == "fp16" and self.device.type != "cuda":
            raise ValueError("`precision` (=fp16) must be used on CUDA; use bf16 or fp32 here.")
        if precision != "fp16":
            self.grad_scaler = None

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """The method's optimiser; the method says the learning rate of each step.

        Fused where torch has that: in fp16 no step waits for the device then, to see whether it overflowed.
        """
        s = self.settings
        groups, lr, decay = self.method.parameter_groups(), s.initial_lr, s.weight_decay
        if s.optimizer in ("adam", "adamw"):
            adam = torch.optim.Adam if s.optimizer == "adam" else torch.optim.AdamW
            betas = (s.beta1, s.beta2)
            return adam(groups, lr, betas, weight_decay=decay, fused=True), None
        if s.optimizer == "lars":
            from timm.optim import Lars

            # Groups without weight decay are not adapted, either. Trust as in Kalapos and Gyires-Toth's solo-learn.
            trust = {"trust_coeff": 0.02, "trust_clip": True}
            return Lars(
                groups, lr, s.momentum, weight_decay=decay, nesterov=s.nesterov, **trust
            ), None
        sgd = torch.optim.SGD(
            groups, lr, s.momentum, weight_decay=decay, nesterov=s.nesterov, fused=True
        )
        _begin_momentum(sgd)
        return sgd, None

    # -- data ----------------------------------------------------------------------------------

    def do_split(self) -> tuple[list[str], list[str]]:
        """Cases to train on, labelled or not, and those that only give the validation loss.

        Training: every case of the slice store but those of subjects with a case in the fold's validation list.
        Test subjects must not be in the store at all.

        Raises:
            ValueError: a test subject in the slice store, a case missing in `cases.csv`, or a fold out of range.
        """
        _, index = read_index(self.store_folder)
        pattern = self.settings.subject_pattern
        subject = {case: self.subject_of(case, pattern) for case in index}
        if self.cases:
            unknown = sorted(index.keys() - self.cases.keys())
            if unknown:
                raise ValueError(
                    f"{self.store_folder}: {unknown[0]} is not in cases.csv ({len(unknown)} such case(s)): "
                    "run nnunet-ssp prepare again."
                )
            training = {name for name, case in self.cases.items() if case.split == "train"}
            self.require_stored(training - index.keys(), self.store_folder, self.store_folder)
        tests = {case.subject_key for case in self.cases.values() if case.split == "test"}
        leaked = sorted({subject[case] for case in index} & tests)
        if leaked:
            raise ValueError(
                f"{self.store_folder}: test subject {', '.join(leaked)} must not be in the slice store. "
                "Delete that folder and run nnunet-ssp prepare again."
            )
        held_out: set[str] = set()
        if isinstance(self.fold, int):
            held_out = {self.subject_of(case, pattern) for case in super().do_split()[1]}
        drawn = self._drawn_subjects({subject[case] for case in index} - held_out)
        train = [case for case in index if subject[case] in drawn]
        val = [case for case in index if subject[case] in held_out]
        self._log_split(train, val, subject, tests)
        self.train_subjects = sorted({subject[case] for case in train})
        return train, val

    def known_cases(self) -> set[str]:
        return super().known_cases() or set(read_index(self.store_folder)[1])

    def _drawn_subjects(self, subjects: set[str]) -> set[str]:
        """The share of the training subjects that ``data_fraction`` asks for."""
        s = self.settings
        n = max(1, round(s.data_fraction * len(subjects)))
        if n < len(subjects):
            self.print_to_log_file(
                f"data_fraction={s.data_fraction}: {n} of {len(subjects)} training subjects, drawn with seed={s.seed}"
            )
        return set(shuffled(subjects, s.seed)[:n])

    def _log_split(
        self, train: list[str], val: list[str], subject: dict[str, str], tests: set[str]
    ) -> None:
        _, index = read_index(self.store_folder)
        labelled = {c.subject_key for c in self.cases.values() if c.labelled}

        def counts(cases: list[str]) -> str:
            n_slices = sum(index[case].shape[0] for case in cases)
            n_subjects = len({subject[c] for c in cases})
            return f"{people(n_subjects)}, {len(cases)} frames, {n_slices} slices"

        def people(number: int) -> str:
            return f"{number} subject" + "s" * (number != 1)

        def names(subjects: set[str], none: str = "") -> str:
            shown = sorted(subjects)[:10]
            return ", ".join([*shown, *(["..."] if len(subjects) > 10 else [])]) or none

        chosen = {subject[case] for case in train}
        lines = [
            f"Slice store {self.store_folder}: {counts(list(index))}",
            f"Fold {self.fold} trains on {counts(train)}",
        ]
        if self.cases:
            for kind, group in (("with", chosen & labelled), ("without", chosen - labelled)):
                lines.append(
                    f"  {people(len(group))} {kind} labelled frames: {names(group, 'none')}"
                )
        held_out = {subject[case] for case in val}
        lines += [
            f"  left out for validation: {names(held_out, 'nobody')}"
            + (f" ({counts(val)})" if val else ""),
            f"  test subjects, never in the store: {names(tests, 'none known')}",
            "No label is used in training.",
        ]
        self.print_to_log_file("\n".join(lines))
        if not self.cases and self.settings.subject_pattern is None:
            shared = shared_prefixes(train, val)
            if shared:
                self.print_to_log_file(
                    f"WARNING: cases on both sides of this fold share a prefix, e.g. {shared[0]} ({len(shared)} such "
                    "prefixes). If they are one subject, set subject_pattern, or give the dataset a cases.csv."
                )
            if repeats := continuing_names(train, val):
                self.print_to_log_file(
                    f"NOTE: numbers of cases continue across the sides of this fold, as in {' and '.join(repeats[0])} "
                    f"({len(repeats)} such pairs): possible repeats of one subject, not certain. nnunet-ssp folds "
                    "--check compares their images."
                )

    @property
    def store_folder(self) -> Path:
        """The slice store of this dataset and these plans."""
        base = self.preprocessed_dataset_folder_base
        return store_folder(base, self.configuration_manager.data_identifier)

    def _ensure_store(self) -> None:
        """Check that these plans made the slice store; for a plain nnU-Net dataset, build it or bring it up to date."""
        preprocessing = preprocessing_of(
            self.plans_manager.plans, self.configuration_manager.configuration
        )
        if self.local_rank == 0 and not self.cases:
            folder = Path(self.preprocessed_dataset_folder)
            base = Path(self.preprocessed_dataset_folder_base)
            saying = f"{base} is in use by another process: waiting for it"
            with locked(base, wait=math.inf, saying=saying):
                if follow_preprocessed(self.store_folder, folder, preprocessing):
                    built = f"Built the slice store {self.store_folder} from {folder}"
                    self.print_to_log_file(built)
                if isinstance(self.fold, int):
                    self.folds()  # nnU-Net writes them where there are none
        if self.is_ddp:
            dist.barrier()
        made_by, _ = read_index(self.store_folder)
        changed = [name for name in preprocessing if made_by.get(name) != preprocessing[name]]
        if changed:
            raise ValueError(
                f"{self.store_folder} was made by other plans ({', '.join(changed)} differ): "
                "run nnunet-ssp prepare again, or delete that folder if nnU-Net's own preprocessing is new."
            )

    def get_dataloaders(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Batches of training slices from the current epoch on, and the fixed validation batches, round and round."""
        self._ensure_store()
        train, val = self.do_split()
        bases = {name: case.base for name, case in self.cases.items()}
        self.store = SliceStore(self.store_folder, train, bases)
        if self.store.channels != self.num_input_channels:
            raise ValueError(
                f"{self.store_folder}: slices have {self.store.channels} channel(s), dataset.json names "
                f"{self.num_input_channels}: run nnunet-ssp prepare again."
            )
        n = len(self.store)
        # Refused before anything runs: a batch larger than the data, or than the processes can share.
        batch_indices(self.settings.seed, 0, n, self.batch_size)
        if self.batch_size < world_size():
            raise ValueError(
                f"`batch_size` (={self.batch_size}) must be at least the number of processes (={world_size()})."
            )
        self.num_iterations_per_epoch = self.settings.iterations_per_epoch or n // self.batch_size

        self.validates_on = "validation" if val else "training"
        val_store = SliceStore(self.store_folder, val, bases) if val else self.store
        # Every rank needs a slice of every batch, and some methods more than one; too few of them are repeated.
        smallest = max(self.method.smallest_batch, world_size())
        shown = max(min(len(val_store), VALIDATION_SLICES), smallest)
        chosen = np.linspace(0, len(val_store) - 1, shown).round().astype(np.int64)
        batches = np.array_split(chosen, max(1, shown // self.batch_size))
        self.num_val_iterations_per_epoch = len(batches)
        self.print_to_log_file(
            f"{n} slices, {self.num_iterations_per_epoch} batches of {self.batch_size} per epoch; the validation loss "
            f"is taken on {shown} {self.validates_on} slices with fixed views and masks."
        )
        for note in self.method.examine(self.store):
            self.print_to_log_file(note)
        self.frames = self._frames_of(self.store)
        if self.frames is not None and self.frames.counts.max(initial=0) < 2:
            raise ValueError(
                "`pairs` (=frame) must find several frames of a subject: every slice is there once. Cases are told "
                "to be one subject by cases.csv or by the setting subject_pattern."
            )
        on_device = self.settings.data_device == "device" or (
            self.settings.data_device == "auto" and fits_on_device(self.store, self.device)
        )
        reader = SliceReader(self.store, self.device, on_device)
        pictured = chosen[:: max(1, shown // SHOWN_SLICES)][:SHOWN_SLICES]
        self._picture_batch = self._fixed_batch(val_store, pictured, 0)
        fixed = [
            self._fixed_batch(val_store, batch, i + 1).share(share(len(batch)))
            for i, batch in enumerate(batches)
        ]
        return self._train_batches(reader), _round_and_round(fixed)

    def _train_batches(self, reader: SliceReader) -> Iterator[Batch]:
        first = self.current_epoch * self.num_iterations_per_epoch + len(self.outputs)
        own = share(self.batch_size)
        canvases = reader.steps(self._indices(step)[own] for step in count(first))
        for step, slices in enumerate(canvases, first):
            # Drawn for the global batch on every rank, so that the number of ranks changes nothing.
            rng = random_stream(self.settings.seed, DRAW, step)
            batch = self._drawn(self.store, self._indices(step), rng)
            part = batch.share(own)
            if self.device.type == "cuda":
                part = part.pinned()
            part.slices, part.sizes = slices, part.sizes.to(self.device, non_blocking=True)
            yield part

    def _indices(self, step: int) -> NDArray[np.int64]:
        """Numbers of the slices that step number ``step`` draws: (B,), or (B, 2) with second frames."""
        seed = self.settings.seed
        indices = batch_indices(seed, step, len(self.store), self.batch_size)
        return self._with_frames(self.frames, indices, random_stream(seed, FRAME, step))

    def _frames_of(self, store: SliceStore) -> SameSlice | None:
        """Where to find the second frames, for a method that wants them."""
        if not self.method.second_frames:
            return None
        pattern = self.settings.subject_pattern
        return SameSlice(store, [self.subject_of(case, pattern) for case in store.names])

    @staticmethod
    def _with_frames(
        frames: SameSlice | None, indices: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        return indices if frames is None else np.stack([indices, frames.draw(rng, indices)], 1)

    def _drawn(
        self, store: SliceStore, indices: NDArray[np.int64], rng: np.random.Generator
    ) -> Batch:
        """A global batch with everything but its pixels."""
        sizes = store.sizes[indices]
        positions = store.positions[indices if indices.ndim == 1 else indices[:, 0]]
        nothing = torch.empty(len(indices), 0)
        drawn = self.method.draw(rng, sizes)
        return Batch(nothing, torch.from_numpy(sizes), drawn, torch.from_numpy(positions))

    def _fixed_batch(self, store: SliceStore, indices: NDArray[np.int64], number: int) -> Batch:
        """A batch that is the same in every epoch and every run with this seed."""
        rng = random_stream(self.settings.seed, VALIDATION, number)
        indices = self._with_frames(self._frames_of(store), indices, rng)
        batch = self._drawn(store, indices, rng)
        batch.slices = store.read(indices).to(self.device)
        batch.sizes = batch.sizes.to(self.device)
        return batch

    # -- training ------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        starts = self.current_epoch == 0 and self._resumed is None
        if starts:
            self.refuse_overwriting()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        self._check_resumed_data()
        self.print_plans()
        empty_cache(self.device)
        if self.local_rank == 0:
            base = Path(self.output_folder_base)
            write_json(base / "plans.json", self.plans_manager.plans)
            write_json(base / "dataset.json", self.dataset_json)
            fingerprint = Path(self.preprocessed_dataset_folder_base) / "dataset_fingerprint.json"
            if fingerprint.is_file():
                shutil.copyfile(fingerprint, base / "dataset_fingerprint.json")
        self._save_debug_information()
        self.log_settings()
        if self._probes:
            self._make_probe()
        if starts:
            self._draw_pictures()
            self._probed_untrained = self._probe_dice()

    def _make_probe(self) -> None:
        """Choose labelled slices of the training fold, where there are some."""
        labels = self.label_manager.foreground_labels
        if self.local_rank != 0:
            return
        if not labels or self.label_manager.has_regions:
            self.print_to_log_file("No linear probe: this dataset has no labels, or regions.")
            return
        folder = Path(self.preprocessed_dataset_folder)  # nnU-Net's: labelled cases only
        pattern = self.settings.subject_pattern
        labelled = {
            case: self.subject_of(case, pattern)
            for case in self.store.names
            if any((folder / f"{case}{ending}").is_file() for ending in PREPROCESSED)
        }
        height, width = self.method.patch_size
        data = labelled_slices(folder, labelled, (height, width), labels)
        if data is None:
            self.print_to_log_file(
                "No linear probe: fewer than two slices of this fold have labels."
            )
            return
        self.probe = LinearProbe(data, self.device)
        parted = "other subjects" if data.by_subject else "other slices of the same subject"
        self.print_to_log_file(
            f"Linear probe, a monitor: labels of {len(data.images)} slices of training subjects are read now and then, "
            f"to fit a linear segmentation on the frozen encoder ({int(data.fit.sum())} slices) and to score it on "
            f"{parted}. Training never sees them; probe=no leaves it out."
        )

    def _probe_dice(self) -> float:
        """Dice of the linear probe now, or nan."""
        if self.probe is None:
            return float("nan")
        with self._autocast():
            return self.probe.score(self.method.handed_on())

    def on_train_epoch_start(self) -> None:
        self.network.train()
        self.method.start_epoch(self.current_epoch)
        for name, buffer in self._resumed_buffers.items():
            self.method.get_buffer(name).copy_(buffer)
        self._resumed_buffers = {}
        first = self.current_epoch * self.num_iterations_per_epoch
        self._step = first + len(self.outputs)
        lr = self.method.learning_rate(first, self.num_iterations_per_epoch)
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self.print_to_log_file(f"Current learning rate: {lr:.5g}")
        self.logger.log("lrs", lr, self.current_epoch)
        self._epoch_started = time.perf_counter() - self._epoch_seconds
        self._epoch_seconds = 0.0

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step; the results stay on the device until the epoch ends."""
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
            nn.utils.clip_grad_norm_(parameters, clip)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        self.method.after_step(self._step, self.num_epochs * self.num_iterations_per_epoch)
        self._step += 1
        return {name: value.detach() for name, value in output.items()}

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        with self._autocast():
            output: dict[str, Tensor] = self.network(batch)
        return output

    def _autocast(self) -> torch.autocast:
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

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
        def names() -> list[str]:
            cases = self.store.case_of[self._indices(step).reshape(-1)]
            return sorted({self.store.names[case] for case in cases})

        return names

    def validation_step(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of one fixed batch; the validation's batches differ by at most one slice."""
        output = self._forward(batch)
        return {name: value.detach() for name, value in output.items()}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Tensor]]) -> None:
        loss, curves = self._reduce(val_outputs)
        self.logger.log("val_losses", loss, self.current_epoch)
        for name, value in curves.items():
            self.logger.log(f"val_{name}", value, self.current_epoch)

    def _reduce(self, outputs: list[dict[str, Tensor]]) -> tuple[float, dict[str, float]]:
        """Mean loss over steps and ranks, and the epoch's curves; the only wait for the device in an epoch."""
        names = list(outputs[0])
        total = torch.stack(
            [torch.stack([o[name].float() for name in names]) for o in outputs]
        ).mean(0)
        values = (sum_over_ranks(total) / world_size()).tolist()
        sums = dict(zip(names, values, strict=True))
        return sums["loss"], self.method.summarise(sums)

    def on_epoch_end(self) -> None:
        """Log, draw, save: nnU-Net's own asks for a Dice that pretraining does not have."""
        epoch = self.current_epoch
        self.logger.log("epoch_end_timestamps", time.time(), epoch)
        change = self.stage_change.measure()
        for stage, value in change.items():
            self.logger.log(f"change {stage}", value, epoch)
        loss = float(self.logger.get_value("val_losses", step=-1))
        self.early_stopping.update(loss)
        last = epoch == self.num_epochs - 1 or self.early_stopping.should_stop
        pictured = last or self._due(PICTURES)
        if self._probes:
            self.logger.log(PROBE, self._probe_dice() if pictured else float("nan"), epoch)
        self._log_epoch(change, warn=last or self._due(WARNINGS))

        if loss < self.best_loss:
            self.best_loss = loss
            self.save_checkpoint(os.path.join(self.output_folder, BEST))
        if not last and self._save_is_due():
            self.save_checkpoint(os.path.join(self.output_folder, LATEST))
        self.current_epoch += 1
        if self.local_rank == 0:
            logging = self.logger.local_logger.my_fantastic_logging
            write_curves(Path(self.output_folder) / "monitor.csv", logging)
            plot_progress(Path(self.output_folder) / "progress.png", logging, self._plot_panels())
        if pictured and self.method.reconstructs:  # views do not change
            self._draw_pictures()

    def _due(self, times: int) -> bool:
        """Whether to do now what is done so often in 100 epochs, or in all of a shorter run."""
        return (self.current_epoch + 1) % max(1, min(self.num_epochs, 100) // times) == 0

    def _log_epoch(self, change: dict[str, float], warn: bool) -> None:
        def value(key: str) -> float:
            return float(self.logger.get_value(key, step=-1))

        self.print_to_log_file(f"train_loss {value('train_losses'):.4f}")
        where = "" if self.validates_on == "validation" else " (on training slices)"
        self.print_to_log_file(f"val_loss {value('val_losses'):.4f}{where}")
        curves = {key: value(key) for keys in self._curves().values() for key in keys}
        for curve, keys in self._curves().items():
            values = ", ".join(f"{key.partition('_')[0]} {curves[key]:.4f}" for key in keys)
            self.print_to_log_file(f"{curve.replace('_', ' ')}: {values}")
        if self.probe is not None and np.isfinite(dice := value(PROBE)):
            untrained = f"{self._probed_untrained:.4f} before training"
            self.print_to_log_file(f"linear probe: Dice {dice:.4f} ({untrained})")
        self.print_to_log_file(f"change since initialisation: {describe_change(change)}")
        if warn:
            warnings = self.method.warnings(curves)
            if self.method.reconstructs and (warning := depth_warning(change)):
                warnings.append(warning)
            for warning in warnings:
                self.print_to_log_file(warning)
        seconds = value("epoch_end_timestamps") - value("epoch_start_timestamps")
        left = seconds * (self.num_epochs - self.current_epoch - 1)
        self.print_to_log_file(
            f"Epoch time: {seconds:.2f} s, {value('images_per_second'):.1f} images/s, "
            f"{'at most ' if self.settings.early_stopping else ''}{duration(left)} left"
        )

    def _curves(self) -> dict[str, list[str]]:
        """The method's curves, and what each is logged as."""
        method = self.method
        return {
            **{curve: [f"train_{curve}", f"val_{curve}"] for curve in method.curves},
            **{curve: [f"train_{curve}"] for curve in method.train_curves},
            **{curve: [f"val_{curve}"] for curve in method.val_curves},
        }

    def _plot_panels(self) -> list[Panel]:
        val = f"{self.validates_on} slices, fixed views"
        curves = []
        for curve, keys in self._curves().items():
            lines = {key: "training" if key.startswith("train") else val for key in keys}
            reference = self.method.references.get(curve)
            curves.append(Panel(curve.replace("_", " "), lines, reference))
        return [
            Panel("loss", {"train_losses": "training", "val_losses": val}),
            *curves,
            *([self._probe_panel()] if self.probe is not None else []),
            stage_panel(list(self.stage_change.start)),
            Panel("learning rate", {"lrs": "learning rate"}),
            Panel("images per second", {"images_per_second": "training"}),
        ]

    def _probe_panel(self) -> Panel:
        before = (self._probed_untrained, "before training")
        return Panel("linear probe", {PROBE: "Dice on training subjects"}, before)

    @torch.no_grad()
    def _draw_pictures(self) -> None:
        if self.local_rank != 0:
            return
        self.method.eval()
        with self._autocast():
            columns = self.method.panels(self._picture_batch)
        if columns is None:
            return
        file = Path(self.output_folder) / "views.png"
        title = f"{self.validates_on} slices as the encoder sees them"
        if self.method.reconstructs:
            file = file.with_name("reconstructions") / f"epoch_{self.current_epoch:03d}.png"
            title = f"{self.validates_on} slices after {self.current_epoch} epochs"
        plot_images(file, columns, title)

    def on_train_end(self) -> None:
        super().on_train_end()
        self.dataloader_train.close()  # ends the reading thread

    # -- files ---------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        method = self.method
        cases = self.store.names
        return {
            **super().record(),
            "method": type(method).__name__,
            "transfers": method.transfers,
            "subjects": sorted(privacy.hashed_subjects(self.train_subjects)),
            "counts": {
                "subjects": len(self.train_subjects),
                "frames": len(cases),
                "slices": len(self.store),
            },
            "preprocessing": self.store.preprocessing,
            "papers": [method.paper],
        }

    def save_checkpoint(self, filename: str) -> None:
        """The whole planned network under nnU-Net's names, and in ``ssp_state`` what only a resumed run needs."""
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
            "torch_random_state": torch.get_rng_state(),
            "cuda_random_state": torch.cuda.get_rng_state(self.device)
            if self.device.type == "cuda"
            else None,
            **more_state,
        }
        return self.checkpoint(weights, ssp_state=state, **entries)

    def keep(self) -> str:
        """Save the run between two steps, exactly; the epoch's steps so far are saved with it."""
        if self.disable_checkpointing:
            return "nothing was saved (--disable_checkpointing)"
        file = Path(self.output_folder) / LATEST
        epoch, steps = self.current_epoch, len(self.outputs)
        if self.local_rank == 0:
            content = self._content({"epoch": self._epoch_state()}, current_epoch=epoch)
            # Of an epoch that has not ended, all is logged again.
            content["logging"] = {k: curve[:epoch] for k, curve in content["logging"].items()}
            self.write_checkpoint(file, content)
        done = f"after step {steps} of {self.num_iterations_per_epoch} of epoch {epoch}"
        return f"{file} holds the training {done}"

    def _epoch_state(self) -> dict[str, Any]:
        """What the steps of the current epoch have left for its end."""
        self.guard.look()
        kept = self.method.state_dict().keys()
        buffers = {k: b for k, b in self.method.named_buffers() if k not in kept}
        names = list(self.outputs[0]) if self.outputs else []
        seconds = time.perf_counter() - self._epoch_started if self.outputs else 0.0
        return {
            "outputs": {k: torch.stack([o[k] for o in self.outputs]).cpu() for k in names},
            "skipped": list(self.guard.skipped),
            "buffers": transfer.to_cpu(buffers) if self.outputs else {},
            "seconds": seconds,
        }

    def _load_epoch_state(self, state: dict[str, Any]) -> None:
        outputs = {k: column.to(self.device) for k, column in state["outputs"].items()}
        steps = len(next(iter(outputs.values()), ()))
        self.outputs = [{k: outputs[k][step] for k in outputs} for step in range(steps)]
        self.guard.skipped = list(state["skipped"])
        self._resumed_buffers = state["buffers"]
        self._epoch_seconds = state["seconds"]

    @refuses_other_content
    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Go on exactly where the checkpoint was written.

        Raises:
            ValueError: the settings differ from the checkpoint's.
        """
        if not self.was_initialized:
            self.initialize()
        checkpoint = self.open_checkpoint(filename_or_checkpoint)
        self.check_resume(checkpoint["ssp"])
        body = {k: v for k, v in checkpoint["network_weights"].items() if not is_output_layer(k)}
        missing, unexpected = self.method.network.load_state_dict(body, strict=False)
        wrong = [k for k in missing if not is_output_layer(k)] + unexpected
        if wrong:
            raise ValueError(f"The checkpoint does not fit the planned network: {wrong[0]}.")
        state = checkpoint["ssp_state"]
        self.method.load_extra_state(state["method"])
        self.early_stopping.load_state_dict(checkpoint["ssp_early_stopping"])
        if "ssp_skipped" in checkpoint:
            self.guard.load_state_dict(checkpoint["ssp_skipped"])
        if "epoch" in state:  # saved in the middle of one
            self._load_epoch_state(state["epoch"])
        self.best_loss = state["best_loss"]
        self._probed_untrained = state["probed_untrained"]
        torch.set_rng_state(state["torch_random_state"])
        if self.device.type == "cuda" and state["cuda_random_state"] is not None:
            torch.cuda.set_rng_state(state["cuda_random_state"], self.device)
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if isinstance(self.optimizer, torch.optim.SGD):
            _begin_momentum(self.optimizer)
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        ssp = checkpoint["ssp"]
        self._resumed = ssp["counts"], privacy.hashed_subjects(ssp["subjects"])

    def _check_resumed_data(self) -> None:
        """Refuse to go on with other data than before."""
        if self._resumed is None:
            return
        now = self.record()
        if (now["counts"], set(now["subjects"])) != self._resumed:
            raise ValueError(
                f"--c must go on with the same data: the checkpoint saw {self._resumed[0]}, fold {self.fold} "
                f"now has {now['counts']}. Start again without --c."
            )

    # -- what pretraining does not do ------------------------------------------------------------

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The method decides which outputs the decoder gives."""

    def plot_network_architecture(self) -> None:
        """Nothing to add to the plans."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """There is no segmentation to validate; print what to run next."""
        self.repeat_warnings()
        if self.disable_checkpointing:
            self.print_to_log_file("Pretraining done; nothing was saved (--disable_checkpointing).")
            return
        file = Path(self.output_folder) / self.method_class.checkpoint
        plans = self.plans_manager.plans_name
        words = [
            f"nnUNetv2_train {self.dataset} {self.configuration_name} {self.fold}",
            "" if plans == "nnUNetPlans" else f"-p {plans}",
            "-tr nnUNetTrainerFinetune",
            "" if self.device.type == "cuda" else f"-device {self.device.type}",
            f"-pretrained_weights {file}",
        ]
        line = " ".join(word for word in words if word)
        if self.label_manager.foreground_labels or self.label_manager.has_regions:
            self.print_to_log_file(f"Pretraining done. Fine-tune with:\n{line}")
        else:
            self.print_to_log_file(
                f"Pretraining done. {self.plans_manager.dataset_name} has no labels; with another dataset "
                f"of the same spacing and architecture in place of {self.dataset}, fine-tune with:\n{line}"
            )


def _begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Give every parameter without a momentum one of 0, which is what plain SGD begins with.

    Torch's fused step would take memory as it finds it, and leave it so when the first gradients of fp16 overflow; and
    it wants all momenta of a group or none, which parameters that are frozen at first do not have.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            state.setdefault("momentum_buffer", torch.zeros_like(parameter))


def _round_and_round(batches: list[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches
