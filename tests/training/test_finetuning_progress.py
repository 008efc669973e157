from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_ssp.training import finetuning_progress
from nnunet_ssp.training.finetuning_progress import SECONDS, OwnPicture, own_picture


class Trainer:
    """What `own_picture` asks of a trainer, and what nnU-Net's end of an epoch does with the logger."""

    def __init__(self, epochs: int) -> None:
        self.logger = MetaLogger("", True)
        self.plans_manager = SimpleNamespace(dataset_name="Dataset001_Heart")
        self.fold, self.num_epochs = 3, epochs

    def end_epoch(self, epoch: int, folder: Path) -> None:
        for key in ("train_losses", "val_losses", "mean_fg_dice", "lrs"):
            self.logger.log(key, 0.5 - 0.1 * epoch, epoch)
        self.logger.log("epoch_start_timestamps", 100.0 * epoch, epoch)
        self.logger.log("epoch_end_timestamps", 100.0 * epoch + 7, epoch)
        self.logger.plot_progress_png(str(folder))


def test_the_picture_has_title_and_values_and_the_logger_is_as_before(tmp_path, monkeypatch):
    drawn = []
    plot = finetuning_progress.plot_progress
    monkeypatch.setattr(
        finetuning_progress,
        "plot_progress",
        lambda file, logging, panels, title: (
            drawn.append((title, {p.label: [logging[key] for key in p.curves] for p in panels})),
            plot(file, logging, panels, title),
        ),
    )
    trainer = Trainer(2)
    logger = trainer.logger
    for epoch in range(2):
        with own_picture(trainer):
            assert isinstance(trainer.logger, OwnPicture)
            trainer.end_epoch(epoch, tmp_path)
        assert trainer.logger is logger
    titles = [title for title, _ in drawn]
    assert titles == [f"Trainer, Dataset001_Heart, fold 3, {n} of 2 epochs" for n in (1, 2)]
    values = drawn[1][1]
    assert values[SECONDS] == [[7.0, 7.0]]
    assert values["loss"] == [[0.5, 0.4]] * 2
    assert values["pseudo Dice"][0] == [0.5, 0.4] and len(values["pseudo Dice"][1]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["progress.png"]


def test_an_error_leaves_the_logger():
    trainer = Trainer(1)
    logger = trainer.logger
    with pytest.raises(OSError), own_picture(trainer):
        raise OSError
    assert trainer.logger is logger
