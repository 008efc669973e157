"""Picture of a fine-tuning's progress, in place of nnU-Net's: with a title, whole epochs, and the legend beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ssp.console import count_of
from nnunet_ssp.training.monitor import Panel, plot_progress

SECONDS = "seconds of an epoch"
PANELS = (
    Panel("loss", {"train_losses": "training", "val_losses": "validation, random patches"}),
    Panel("pseudo Dice", {"mean_fg_dice": "mean over classes", "ema_fg_dice": "moving average"}),
    Panel("learning rate", {"lrs": "learning rate"}),
    Panel(SECONDS, {SECONDS: "training and validation"}),
)


class OwnPicture:
    """nnU-Net's logger, but for its picture.

    Args:
        logger: nnU-Net's.
        title: Title of the picture, without the epochs.
        epochs: Planned number of epochs.
    """

    def __init__(self, logger: Any, title: str, epochs: int) -> None:
        self._logger, self._title, self._epochs = logger, title, epochs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def plot_progress_png(self, output_folder: str) -> None:
        """Write `progress.png`, as nnU-Net calls for it."""
        logging = self._logger.local_logger.my_fantastic_logging
        began, ended = (logging[f"epoch_{which}_timestamps"] for which in ("start", "end"))
        seconds = [end - start for start, end in zip(began, ended, strict=False)]
        title = f"{self._title}, {len(seconds)} of {count_of(self._epochs, 'epoch')}"
        file = Path(output_folder) / "progress.png"
        plot_progress(file, {**logging, SECONDS: seconds}, PANELS, title)


@contextmanager
def own_picture(trainer: Any) -> Iterator[None]:
    """Let a trainer draw `OwnPicture` meanwhile.

    Args:
        trainer: Of nnU-Net.
    """
    logger = trainer.logger
    dataset = trainer.plans_manager.dataset_name
    title = f"{type(trainer).__name__}, {dataset}, fold {trainer.fold}"
    trainer.logger = OwnPicture(logger, title, trainer.num_epochs)
    try:
        yield
    finally:
        trainer.logger = logger
