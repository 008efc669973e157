"""Progress of a pretraining for its user: log lines, `monitor.csv`, `progress.png`, pictures and linear probe."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from nnunet_ssp.console import count_of
from nnunet_ssp.methods.base import Batch, Method
from nnunet_ssp.training.monitor import (
    Panel,
    StageChange,
    describe_change,
    plot_images,
    plot_progress,
    stage_panel,
    write_curves,
)
from nnunet_ssp.training.pace import time_left
from nnunet_ssp.training.probe import LinearProbe, find_probe
from nnunet_ssp.training.snapshots import is_due, ranks

PICTURES = 20  # pictures and probes per 100 epochs, besides those of the untrained network
WARNINGS = 10  # looks for a reason to warn per 100 epochs
ENOUGH_STEPS = 500  # before, what a method warns of is no more than a beginning
PROBE = "probe_dice"


def logged_curves(method: type[Method] | Method) -> dict[str, list[str]]:
    """Return the curves of a method, and the keys that each is logged under."""
    return {
        **{curve: [f"train_{curve}", f"val_{curve}"] for curve in method.curves},
        **{curve: [f"train_{curve}"] for curve in method.train_curves},
        **{curve: [f"val_{curve}"] for curve in method.val_curves},
    }


def logged_keys(method: type[Method] | Method) -> list[str]:
    """Return the keys of all curves of a method, in the order of the columns of `monitor.csv`."""
    both = [f"{side}_{curve}" for side in ("train", "val") for curve in method.curves]
    return [
        *both,
        *(f"train_{curve}" for curve in method.train_curves),
        *(f"val_{curve}" for curve in method.val_curves),
    ]


class Progress:
    """Log and draw how a pretraining goes.

    Args:
        method: The method that is trained.
        stages: The change of each stage of the planned network.
        logger: nnU-Net's logger, which holds a list of values per key.
        say: Writes a line to the log.
        name: Title of the pictures: method, dataset, fold.
        folder: Folder of the files; None on ranks that write none.
        epochs: Planned number of epochs.
        steps: Steps of an epoch.
        ends_early: Whether the training may stop earlier.
        validates_on: `validation` or `training`, the slices of the validation loss.
        pictured: Slices that the pictures show.
        precision: Returns the context that the network computes in.
        probe: Scores the encoder whenever pictures are due; None for no score.
        untrained: The probe's Dice before training, NaN if unknown.
        snapshots_every: Epochs from one snapshot to the next; None for no snapshots.
    """

    def __init__(
        self,
        method: Method,
        stages: StageChange,
        logger: Any,
        say: Callable[[str], None],
        *,
        name: str,
        folder: Path | None,
        epochs: int,
        steps: int,
        ends_early: bool,
        validates_on: str,
        pictured: Batch,
        precision: Callable[[], AbstractContextManager[object]],
        probe: LinearProbe | None = None,
        untrained: float = math.nan,
        snapshots_every: int | None = None,
    ) -> None:
        self.method, self.stages, self.logger, self.say = method, stages, logger, say
        self.name, self.folder, self.ends_early = name, folder, ends_early
        self.epochs, self.steps = epochs, steps
        self.validates_on, self.pictured, self.precision = validates_on, pictured, precision
        self.probe, self.untrained, self.snapshots_every = probe, untrained, snapshots_every
        # Whether this epoch ends with a picture.
        self._drawing = False
        # Beginnings of the warnings that were said.
        self._warned: set[str] = set()

    def start(self) -> None:
        """Draw and probe the untrained network; pictures of an earlier run in this folder go."""
        self._remove_pictures()
        self._draw_pictures(0)
        self.untrained = self._probe_dice()

    def end_epoch(self, epoch: int, last: bool) -> None:
        """Log an epoch whose losses are in the logger.

        Args:
            epoch: Number of the epoch, from 0.
            last: Whether no epoch follows.
        """
        change = self.stages.measure()
        for stage, value in change.items():
            self.logger.log(f"change {stage}", value, epoch)
        self._drawing = last or self._is_due(epoch, PICTURES)
        if PROBE in self._logging:
            probes = self._drawing or is_due(self.snapshots_every, epoch + 1)
            self.logger.log(PROBE, self._probe_dice() if probes else math.nan, epoch)
        self._log_epoch(epoch, change, warn=last or self._is_due(epoch, WARNINGS))

    def draw(self, epochs: int) -> None:
        """Write curves and pictures after this number of epochs; called once the checkpoint is safe."""
        if self.folder is not None:
            write_curves(self.folder / "monitor.csv", self._logging)
            title = f"{self.name}, {epochs} of {count_of(self.epochs, 'epoch')}"
            plot_progress(self.folder / "progress.png", self._logging, self._panels(), title)
        if self._drawing and self.method.pictures.change:
            self._draw_pictures(epochs)

    @property
    def probed(self) -> float | None:
        """The probe's Dice after the last epoch; None where there is none."""
        dice = self._logging.get(PROBE) or [math.nan]
        return float(dice[-1]) if math.isfinite(dice[-1]) else None

    @property
    def _logging(self) -> dict[str, list[Any]]:
        logging: dict[str, list[Any]] = self.logger.local_logger.my_fantastic_logging
        return logging

    def _is_due(self, epoch: int, times: int) -> bool:
        """Whether something is due that happens `times` times in 100 epochs, or in a shorter run as a whole."""
        return (epoch + 1) % max(1, min(self.epochs, 100) // times) == 0

    # -- the log -----------------------------------------------------------------------------------

    def _value(self, key: str) -> float:
        return float(self.logger.get_value(key, step=-1))

    def _log_epoch(self, epoch: int, change: dict[str, float], warn: bool) -> None:
        value = self._value
        self.say(f"train_loss {value('train_losses'):.4f}")
        where = "" if self.validates_on == "validation" else " (on training slices)"
        self.say(f"val_loss {value('val_losses'):.4f}{where}")
        logged = logged_curves(self.method)
        curves = {key: value(key) for keys in logged.values() for key in keys}
        for curve, keys in logged.items():
            if all(math.isnan(curves[key]) for key in keys):
                continue  # what a method leaves out, as movement alone does points
            values = ", ".join(f"{key.partition('_')[0]} {curves[key]:.4f}" for key in keys)
            self.say(f"{curve.replace('_', ' ')}: {values}")
        if self.probe is not None and math.isfinite(dice := value(PROBE)):
            self.say(f"linear probe: Dice {dice:.4f} ({self.untrained:.4f} before training)")
        self.say(f"change since initialisation: {describe_change(change)}")
        if warn and (epoch + 1) * self.steps >= ENOUGH_STEPS:
            self._warn(self.method.warnings(curves, change))
        seconds = value("epoch_end_timestamps") - value("epoch_start_timestamps")
        self.say(
            f"Epoch time: {seconds:.2f} s, {value('images_per_second'):.1f} slices/s, "
            f"{time_left(seconds, self.epochs - epoch - 1, self.ends_early)}"
        )

    def _warn(self, warnings: list[str]) -> None:
        """Log each warning once; its numbers change from epoch to epoch."""
        for warning in warnings:
            beginning = re.split(r"\d", warning)[0]
            if beginning not in self._warned:
                self._warned.add(beginning)
                self.say(warning)

    # -- the probe ---------------------------------------------------------------------------------

    def _probe_dice(self) -> float:
        """Return the linear probe's Dice now, or NaN."""
        if self.probe is None:
            return math.nan
        with self.precision():
            return self.probe.score(self.method.handed_on())

    # -- pictures ----------------------------------------------------------------------------------

    def _panels(self) -> list[Panel]:
        val = f"{self.validates_on} slices, fixed views"
        curves = []
        for curve, keys in logged_curves(self.method).items():
            lines = {key: "training" if key.startswith("train") else val for key in keys}
            reference = self.method.references.get(curve)
            curves.append(Panel(curve.replace("_", " "), lines, reference))
        if self.probe is not None:
            before = (self.untrained, "before training")
            dice = self._logging[PROBE]
            marks = {n: f"{rank}" for n, rank in ranks(dice, self.snapshots_every).items()}
            named = {PROBE: "Dice on training subjects"}
            curves.append(Panel("linear probe", named, before, marks=marks))
        return [
            Panel("loss", {"train_losses": "training", "val_losses": val}),
            *curves,
            stage_panel(list(self.stages.start)),
            Panel("learning rate", {"lrs": "learning rate"}),
            Panel("slices per second", {"images_per_second": "training"}),
        ]

    def _remove_pictures(self) -> None:
        if self.folder is not None:
            for file in self.folder.glob(re.sub(r"\{.*?\}", "*", self.method.pictures.file)):
                file.unlink()

    @torch.no_grad()
    def _draw_pictures(self, epochs: int) -> None:
        if self.folder is None:
            return
        self.method.eval()
        with self.precision():
            columns = self.method.panels(self.pictured)
        if columns is None:
            return
        pictures = self.method.pictures
        file = self.folder / pictures.file.format(epoch=epochs)
        title = pictures.title.format(slices=self.validates_on, epochs=count_of(epochs, "epoch"))
        plot_images(file, columns, f"{self.name}: {title}", pictures.caption, pictures.own_scale)


def begin_progress(trainer: Any, untrained: float) -> Progress:
    """Return the progress of a run, with a probe where the settings ask for one.

    Args:
        trainer: A `PretrainingTrainer` with its batches.
        untrained: The probe's Dice before training, of a run that is resumed.
    """
    probe = None
    if getattr(trainer.settings, "probe", False) and trainer.local_rank == 0:
        pattern = trainer.settings.subject_pattern
        probe, note = find_probe(
            Path(trainer.preprocessed_dataset_folder),  # nnU-Net's: labelled cases only
            {case: trainer.subject_of(case, pattern) for case in trainer.store.names},
            trainer.method.patch_size,
            trainer.label_manager,
            trainer.device,
        )
        trainer.print_to_log_file(note)
    return Progress(
        trainer.method,
        trainer.stage_change,
        trainer.logger,
        trainer.print_to_log_file,
        name=f"{type(trainer.method).__name__}, {trainer.plans_manager.dataset_name}, fold {trainer.fold}",
        folder=Path(trainer.output_folder) if trainer.local_rank == 0 else None,
        epochs=trainer.num_epochs,
        steps=trainer.num_iterations_per_epoch,
        ends_early=bool(trainer.settings.early_stopping),
        validates_on=trainer.batches.validates_on,
        pictured=trainer.batches.pictured(),
        precision=trainer.autocast,
        probe=probe,
        untrained=untrained,
        snapshots_every=trainer.settings.snapshot_epochs,
    )
