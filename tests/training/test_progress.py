"""Output of a pretraining for its user, made without nnU-Net."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_ssp.methods.mim import MIM, MIMSettings
from nnunet_ssp.methods.simclr import SimCLR, SimCLRSettings
from nnunet_ssp.training import progress as module
from nnunet_ssp.training.monitor import StageChange
from nnunet_ssp.training.progress import PROBE, Progress, logged_curves


class Logger:
    """Holds values by key as nnU-Net's does."""

    def __init__(self) -> None:
        self.local_logger = SimpleNamespace(my_fantastic_logging=defaultdict(list))

    def log(self, key: str, value: float, epoch: int) -> None:
        self.local_logger.my_fantastic_logging[key].append(value)

    def get_value(self, key: str, step: int) -> float:
        return float(self.local_logger.my_fantastic_logging[key][step])


class Probe:
    def __init__(self) -> None:
        self.scored = 0

    def score(self, encoder: Any) -> float:
        self.scored += 1
        return 0.1 * self.scored


@pytest.fixture
def make(make_network, make_batch, tmp_path, monkeypatch):
    drawn: list[Path] = []
    monkeypatch.setattr(module, "plot_progress", lambda file, *_: drawn.append(file))
    monkeypatch.setattr(module, "plot_images", lambda file, *_: drawn.append(file))

    def progress(settings: Any = None, **options: Any) -> SimpleNamespace:
        settings = settings or MIMSettings(batch_size=2)
        kind = SimCLR if isinstance(settings, SimCLRSettings) else MIM
        network = make_network()
        method = kind(network, settings, (32, 32), 1)
        said: list[str] = []
        logger = Logger()
        given: dict[str, Any] = {
            "name": "MIM, Dataset007_Heart, fold 0",
            "folder": tmp_path,
            "epochs": 4,
            "steps": 500,
            "ends_early": False,
            "validates_on": "validation",
            "pictured": make_batch(method, [(32, 32)] * 2),
            "precision": nullcontext,
        }
        made = Progress(method, StageChange(network), logger, said.append, **(given | options))
        return SimpleNamespace(made=made, said=said, logger=logger, drawn=drawn, method=method)

    return progress


def finish(one: SimpleNamespace, epoch: int, last: bool = False, **curves: float) -> None:
    values = {"train_losses": 0.5, "val_losses": 0.25, "images_per_second": 80.0, **curves}
    for keys in logged_curves(one.method).values():
        values = {**dict.fromkeys(keys, 1.5), **values}
    times = {"epoch_start_timestamps": 10.0, "epoch_end_timestamps": 70.0}
    for key, value in (values | times).items():
        one.logger.log(key, value, epoch)
    one.made.end_epoch(epoch, last)


def test_pictures_of_an_earlier_run_go_where_one_begins_anew(make, tmp_path: Path):
    one = make()
    folder = tmp_path / Path(one.method.pictures.file).parent
    folder.mkdir()
    for name in ("epoch_000.png", "epoch_104.png", "mine.png"):
        (folder / name).touch()
    finish(one, 0)
    assert len([*folder.iterdir()]) == 3
    one.made.start()
    assert [file.name for file in folder.iterdir()] == ["mine.png"]
    assert one.drawn == [folder / "epoch_000.png"]  # by a stand-in


def test_an_epoch_in_the_log(make):
    one = make()
    finish(one, 0)
    assert one.said[:3] == [
        "train_loss 0.5000",
        "val_loss 0.2500",
        "error over variance: train 1.5000, val 1.5000",
    ]
    assert one.said[3].startswith("change since initialisation: encoder 0.000")
    assert one.said[-1] == "Epoch time: 60.00 s, 80.0 slices/s, 3 min left"


def test_what_is_not_computed_has_no_line(make):
    one = make()
    nothing = math.nan
    finish(one, 0, train_error_over_variance=nothing, val_error_over_variance=nothing)
    assert one.said[2].startswith("change since initialisation")
    finish(one, 1, train_error_over_variance=nothing, val_error_over_variance=0.5)
    assert "error over variance: train nan, val 0.5000" in one.said


def test_the_log_says_what_it_validates_on_and_that_it_may_end_early(make):
    one = make(validates_on="training", ends_early=True)
    finish(one, 1)
    assert "val_loss 0.2500 (on training slices)" in one.said
    assert one.said[-1].endswith("at most 2 min left")


def test_every_stage_has_its_curve(make):
    one = make()
    finish(one, 0)
    curves = one.logger.local_logger.my_fantastic_logging
    for stage in one.made.stages.start:
        assert curves[f"change {stage}"] == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("epochs", [4, 100, 1000])
def test_pictures_at_most_twenty_times_in_a_hundred_epochs(make, epochs):
    one = make(epochs=epochs)
    for epoch in range(min(epochs, 100)):
        finish(one, epoch, last=epoch == epochs - 1)
        one.made.draw(epoch + 1)
    pictures = [file for file in one.drawn if file.parent.name == "reconstructions"]
    assert len(pictures) == min(epochs, 20)
    assert pictures[-1].name == f"epoch_{min(epochs, 100):03d}.png"
    assert sum(file.name == "progress.png" for file in one.drawn) == min(epochs, 100)


def test_views_are_drawn_once(make):
    one = make(SimCLRSettings(batch_size=2))
    one.made.start()
    finish(one, 0, last=True)
    one.made.draw(1)
    assert [file.name for file in one.drawn] == ["views.png", "progress.png"]


def test_a_rank_without_a_folder_draws_nothing(make, tmp_path):
    one = make(folder=None)
    one.made.start()
    finish(one, 0, last=True)
    one.made.draw(1)
    assert not one.drawn
    assert list(tmp_path.iterdir()) == []


def test_the_probe_is_compared_with_the_untrained_network(make):
    one = make(probe=Probe())
    one.logger.local_logger.my_fantastic_logging[PROBE] = []
    one.made.start()
    finish(one, 0)
    assert one.made.untrained == pytest.approx(0.1)
    assert "linear probe: Dice 0.2000 (0.1000 before training)" in one.said


def test_the_probe_ranks_the_snapshots(make):
    one = make(probe=Probe(), snapshots_every=2)
    one.logger.local_logger.my_fantastic_logging[PROBE] = []
    one.made.start()
    for epoch in range(4):
        finish(one, epoch)
    (panel,) = (p for p in one.made._panels() if p.label == "linear probe")
    assert panel.marks == {4: "1", 2: "2"}  # it rises with each look


def test_without_a_probe_nothing_is_said_of_it(make):
    one = make()
    one.logger.local_logger.my_fantastic_logging[PROBE] = []
    one.made.start()
    finish(one, 0)
    assert math.isnan(one.made.untrained)
    assert math.isnan(one.logger.get_value(PROBE, -1))
    assert not any("probe" in line for line in one.said)


def test_the_curves_are_a_table(make, tmp_path):
    one = make()
    finish(one, 0)
    one.made.draw(1)
    header, row = (tmp_path / "monitor.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["val_losses"] == "0.25"


def test_a_warning_is_said_once_and_not_before_there_is_something_to_know(make, monkeypatch):
    one = make(epochs=100, steps=20)
    epochs = iter(range(100))
    warnings = lambda *_: [f"WARNING: look at {next(epochs)}", "WARNING: and there"]  # noqa: E731
    monkeypatch.setattr(type(one.method), "warnings", warnings)
    for epoch in range(20):
        finish(one, epoch)
    assert not any("WARNING" in line for line in one.said)  # 400 steps
    for epoch in range(20, 50):
        finish(one, epoch)
    # Their numbers change from epoch to epoch.
    assert [line for line in one.said if "WARNING" in line] == [
        "WARNING: look at 0",
        "WARNING: and there",
    ]


def test_panels_are_drawn_in_evaluation_mode(make):
    one = make()
    one.method.train()
    one.made.start()
    assert not one.method.training
    assert torch.is_grad_enabled()
