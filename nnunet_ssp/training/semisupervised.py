"""Fine-tuning that goes on using the unlabelled frames: a momentum teacher labels them for the student.

The teacher is the moving average of the student's weights (Mean Teacher, Tarvainen and Valpola 2017,
https://arxiv.org/abs/1703.01780). Its confident labels of a slice are the targets of a strongly changed view of that
slice (FixMatch, Sohn et al. 2020, https://arxiv.org/abs/2001.07685). Urschler et al. (Cascaded Self-Supervision,
Bioengineering 2025, 12(8):872, https://doi.org/10.3390/bioengineering12080872) find that student, teacher and
pseudo-labels together help cardiac MRI with few labels most.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssp.cohort import privacy
from nnunet_ssp.cohort.membership import check_stored, sides, subjects_by_case, validated_on
from nnunet_ssp.cohort.repeats import doubts
from nnunet_ssp.console import count_of, shape_in_words
from nnunet_ssp.distributed import mean_over_steps, world_size
from nnunet_ssp.methods.base import Batch
from nnunet_ssp.schedules import gaussian_rampup
from nnunet_ssp.settings import PretrainingSettings, SemiSettings
from nnunet_ssp.slices.drawing import SliceStore
from nnunet_ssp.slices.store import (
    preprocessing_of,
    read_index,
    require_preprocessing,
    store_folder,
)
from nnunet_ssp.training.averaging import AveragedTrainer
from nnunet_ssp.training.batches import Batches
from nnunet_ssp.training.compiling import compile_parts
from nnunet_ssp.training.pseudo_labels import make_loss, pseudo_labels
from nnunet_ssp.training.unlabelled import TwoViews, paste

PAPERS = [
    "Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, arXiv:1703.01780",
    "Sohn et al., FixMatch, NeurIPS 2020, arXiv:2001.07685",
]
CURVES = ("unlabelled_losses", "confident_pixels")


class SemiTrainer(AveragedTrainer):
    """Fine-tune on nnU-Net's labelled batches and, beside each, on unlabelled slices that the teacher labels.

    The labelled batches are those of `AveragedTrainer`, which is the control. The average is the teacher, and is what
    is validated and exported.

    Attributes:
        batches: Unlabelled slices of the run.
        draws_unlabelled: Whether the result depends on the slice store, for the fingerprints of studies.
    """

    defaults = SemiSettings()
    settings: SemiSettings
    draws_unlabelled = True
    batches: Batches
    # Hashes of all subjects that this training sees, and numbers of what is unlabelled.
    _subjects: Collection[str] = ()
    _counts: Mapping[str, int] = MappingProxyType({})
    # Unlabelled batches from the current step on.
    unlabelled: Iterator[Batch] | None = None
    # Weak and strong views, and what of them lies inside the slice; only during a training step.
    _views: tuple[Tensor, Tensor, Tensor] | None = None

    def build(self) -> None:
        """Build the network; the loss of each training step gets the unlabelled slices' part.

        Raises:
            ValueError: The configuration is not 2D, or is a cascade.
        """
        patch_size, name = self.configuration_manager.patch_size, self.configuration_name
        if len(patch_size) != 2 or self.is_cascaded:
            raise ValueError(
                f"configuration (={name}) must be 2D and no cascade: {type(self).__name__} draws unlabelled slices, "
                f"this patch is {shape_in_words(patch_size)}."
            )
        super().build()
        self.logger.local_logger.my_fantastic_logging.update({key: [] for key in CURVES})
        regions = self.label_manager.has_regions
        self._unlabelled_loss = make_loss(
            regions, self.configuration_manager.batch_dice, self.is_ddp
        )
        # Before the guard, which then sees the whole loss.
        self.loss.register_forward_hook(self._with_unlabelled, prepend=True)

    # -- data ----------------------------------------------------------------------------------

    def _open_unlabelled(self) -> None:
        """Find the unlabelled slices of this fold, and draw from the current epoch on.

        Raises:
            FileNotFoundError: There is no slice store.
            ValueError: There are no unlabelled frames, too few slices for a batch, or the store does not fit.
        """
        base = self.preprocessed_dataset_folder_base
        folder = store_folder(base, self.configuration_manager.data_identifier)
        plans, configuration = self.plans_manager.plans, self.configuration_manager.configuration
        require_preprocessing(folder, preprocessing_of(plans, configuration))
        cases = self._unlabelled_cases(folder)
        store = SliceStore(folder, list(cases))
        if len(store) and store.channels != self.num_input_channels:
            raise ValueError(
                f"{folder}: slices have {count_of(store.channels, 'channel')}, dataset.json names "
                f"{self.num_input_channels}: run nnunet-ssp prepare again."
            )
        height, width = (int(side) for side in self.configuration_manager.patch_size)
        self.two_views = TwoViews((height, width), store.channels, self.settings.cutmix)
        drawing = PretrainingSettings(seed=self.settings.seed, batch_size=self._batch_size(store))
        self.batches = Batches(
            self.two_views, drawing, store, None, lambda case: cases[case], self.device
        )
        self.unlabelled = self.batches.training(self.current_epoch * self.num_iterations_per_epoch)
        self._counts = {
            "subjects": len(set(cases.values())),
            "frames": len(cases),
            "slices": len(store),
        }
        before = self._resumed.get("unlabelled", self._counts)
        if before != self._counts:
            raise ValueError(
                f"--c must go on with the same data: the checkpoint saw unlabelled {before}, fold {self.fold} now has "
                f"{self._counts}. Start again without --c."
            )

    def _unlabelled_cases(self, folder: Path) -> dict[str, str]:
        """Return the subject of each case that pretraining on this fold would draw from and that is not labelled here.

        Raises:
            ValueError: There are none, or a test subject is in the store.
        """
        _, index = read_index(folder)
        cases, pattern = self.cases, self.settings.subject_pattern
        check_stored(subjects_by_case(index, cases, pattern), cases, folder)
        train, val = self.do_split()
        chosen = sides(index, validated_on(self.fold, train, val), cases, pattern)
        self._subjects = privacy.hashed_subjects(chosen.drawn)
        found = {case: chosen.subjects[case] for case in chosen.train if case not in train}
        if not found:
            raise ValueError(
                f"{folder}: fold {self.fold} leaves no unlabelled frames, so {type(self).__name__} has nothing but "
                f"labels to learn from. Use -tr {type(self).__name__.replace('Semi', 'Averaged')}, or convert and "
                "prepare unlabelled frames."
            )
        if not cases and pattern is None:
            for doubt in doubts(chosen.train, chosen.val):
                self.print_to_log_file(doubt)
        return found

    def _batch_size(self, store: SliceStore) -> int:
        """Return the slices of an unlabelled batch, over all ranks."""
        asked, n = self.settings.unlabelled_batch_size, len(store)
        size = min(self.configuration_manager.batch_size, n) if asked == "auto" else asked
        if not world_size() <= size <= n:
            raise ValueError(
                f"`unlabelled_batch_size` (={asked}) must lie between the number of processes (={world_size()}) and "
                f"the number of unlabelled slices (={n})."
            )
        return int(size)

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self._open_unlabelled()
        super().on_train_start()
        counted = ", ".join(
            count_of(number, name.removesuffix("s")) for name, number in self._counts.items()
        )
        self.print_to_log_file(
            f"Unlabelled: {counted}; {self.batches.settings.batch_size} slices beside each labelled batch. The teacher "
            "is that average."
        )

    def _begin_average(self) -> None:
        super()._begin_average()
        teacher: Any = self.exported()
        teacher.decoder.deep_supervision = False  # the finest output is all that it is asked for
        if self._do_i_compile():
            compile_parts([teacher])

    def _end_workers(self) -> None:
        super()._end_workers()
        close = getattr(self.unlabelled, "close", None)
        if close is not None:  # ends the reading thread
            close()

    def batch_cases(self, step: int, batch: Any) -> Callable[[], list[str]]:
        labelled = super().batch_cases(step, batch)
        return lambda: [*labelled(), *self.batches.cases_of(step)]

    # -- training ------------------------------------------------------------------------------

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        assert self.unlabelled is not None, "opened when training starts"
        unlabelled = next(self.unlabelled)
        with torch.no_grad():
            self._views = self.two_views.make(unlabelled)
            self._boxes = unlabelled.drawn["boxes"]
        try:
            output = super().train_step(batch)
        finally:
            self._views = None
        return {**output, **self._measured}

    def _with_unlabelled(self, module: nn.Module, inputs: Any, loss: Tensor) -> Tensor:
        """Add the weighted loss on unlabelled slices to that of a labelled batch, in the precision of the step."""
        if self._views is None:  # validation
            return loss
        weak, strong, inside = self._views
        with torch.no_grad():
            logits = self.exported()(weak)
        regions, threshold = self.label_manager.has_regions, self.settings.confidence_threshold
        target, counts = pseudo_labels(logits, inside, threshold, regions)
        # The wrapper of DDP has seen this step's forward pass; gradients are averaged after both.
        student = self.network.module if self.is_ddp else self.network
        output = student(paste(self._boxes, strong))
        finest = output[0] if self.enable_deep_supervision else output
        # As FixMatch's mean over all pixels: the few that an early teacher is sure of weigh little.
        confident = counts.sum() / inside.sum().clamp_min(1)
        added = confident * self._unlabelled_loss(finest.float(), paste(self._boxes, target))
        self._measured = {"unlabelled": added.detach(), "confident": confident}
        return loss + self.weight() * added

    def weight(self) -> float:
        """Return the weight of the unlabelled slices' loss in the current step."""
        s = self.settings
        rampup = s.rampup * self.num_iterations_per_epoch
        return s.consistency_weight * gaussian_rampup(self._last_step, rampup)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        names = ("unlabelled", "confident")
        means = mean_over_steps([{name: o[name] for name in names} for o in train_outputs])
        super().on_train_epoch_end([{"loss": o["loss"]} for o in train_outputs])
        for curve, name in zip(CURVES, names, strict=True):
            self.logger.log(curve, means[name], self.current_epoch)
        self.print_to_log_file(
            f"unlabelled loss {means['unlabelled']:.4f} with weight {self.weight():.3f}, the teacher is sure of "
            f"{means['confident']:.1%} of the pixels"
        )

    def record(self) -> dict[str, Any]:
        record = super().record()
        subjects = sorted({*record["subjects"], *self._subjects})
        papers = [*record.get("pretraining", {}).get("papers", []), *PAPERS]
        more = {"subjects": subjects, "unlabelled": dict(self._counts), "papers": papers}
        return {**record, **more}


class ScratchSemiTrainer(SemiTrainer):
    """`SemiTrainer` without pretraining: from nnU-Net's own random weights."""

    defaults = SemiSettings(initial_lr=0.01)
    needs_weights = False
