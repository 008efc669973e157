from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from matplotlib import image as mpimg
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from nnunet_ssp.reporting.wording import duration
from nnunet_ssp.training.monitor import (
    Panel,
    StageChange,
    describe_change,
    learning_curve,
    plot_images,
    plot_progress,
    stage_panel,
    write_curves,
)

STAGES = ["encoder 1", "encoder 2", "encoder 3", "decoder 2", "decoder 1"]


def turn(weight: torch.Tensor, angle: float) -> torch.Tensor:
    """The weight turned by an angle into a random direction, as long as before."""
    other = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    other -= weight * (other * weight).sum() / weight.square().sum()
    other *= weight.norm() / other.norm()
    return math.cos(angle) * weight + math.sin(angle) * other


@pytest.fixture
def network(make_network):
    return make_network("plain")


def test_no_change_at_the_start(network):
    change = StageChange(network).measure()
    assert list(change) == STAGES
    assert all(value == pytest.approx(0, abs=1e-6) for value in change.values())


def test_shrinking_and_growing_is_no_change(network):
    monitor = StageChange(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    assert max(monitor.measure().values()) < 1e-6
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(7)
    assert max(monitor.measure().values()) < 1e-6


@pytest.mark.parametrize("angle", [0.001, 0.1, math.pi / 6, math.pi / 2])
def test_a_known_angle_of_one_stage(network, angle):
    monitor = StageChange(network)
    layers = [network.decoder.transpconvs[0], network.decoder.stages[0].convs[0].conv]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(turn(layer.weight, angle))
            layer.bias.add_(100)  # biases and norms do not count
    change = monitor.measure()
    assert change.pop("decoder 2") == pytest.approx(math.sin(angle), rel=1e-4)
    assert max(change.values()) < 1e-6


def test_a_reversed_or_vanished_stage_is_a_number(network):
    monitor = StageChange(network)
    with torch.no_grad():
        for parameter in network.encoder.stages[1].parameters():
            parameter.zero_()
    assert monitor.measure()["encoder 2"] == 0


def test_it_keeps_no_grip_on_training(network):
    monitor = StageChange(network)
    parameter = network.encoder.stages[0][0].convs[0].conv.weight
    before = monitor.start["encoder 1"][0].clone()
    with torch.no_grad():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(monitor.start["encoder 1"][0], before)
    assert monitor.measure()["encoder 1"] > 0.1


def test_stages_of_the_residual_encoder(make_network):
    assert list(StageChange(make_network("residual")).measure()) == ["encoder stem", *STAGES]


def test_describe_change():
    values = {"encoder 1": 0.1234, "encoder 2": 0.05, "decoder 1": 1.0}
    assert describe_change(values) == "encoder 0.123 0.050 | decoder 1.000"


def test_curves_as_a_table(tmp_path):
    logging = {
        "train_losses": [1.0, 0.5],
        "val_losses": [2.0],
        "lrs": [np.float64(0.1), np.float64(0.05)],
        "dice_per_class_or_region": [[0.1], [0.2]],
        "empty": [],
    }
    file = tmp_path / "fold_0" / "monitor.csv"
    file.parent.mkdir()
    file.write_text("rows of an abandoned run\n" * 10)
    write_curves(file, logging)
    with open(file) as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["epoch", "train_losses", "val_losses", "lrs"],
        ["0", "1.0", "2.0", "0.1"],
        ["1", "0.5", "", "0.05"],
    ]
    assert [f.name for f in file.parent.iterdir()] == ["monitor.csv"]


def test_a_learning_curve():
    curve = learning_curve([0.2, 0.6, 0.7], [1.0, 0.5, 0.0], 250)
    assert curve == {
        "step": [250, 500, 750],
        "pseudo_dice": [0.2, 0.6, 0.7],
        "pseudo_dice_area": pytest.approx([0.2, 0.4, 0.5]),
        "val_loss": [1.0, 0.5, 0.0],
        "val_loss_area": pytest.approx([1.0, 0.75, 0.5]),
    }
    assert learning_curve([], [], 250) == {name: [] for name in curve}


def test_the_area_is_that_of_the_curve_over_its_steps():
    rng = np.random.default_rng(0)
    dice = rng.uniform(size=40)
    steps = 3
    area = learning_curve(dice, dice, steps)["pseudo_dice_area"]
    fine = np.repeat(dice, steps)  # what was known after each step
    for epoch in (0, 7, 39):
        assert area[epoch] == pytest.approx(fine[: steps * (epoch + 1)].mean())


def test_a_faster_learner_has_the_larger_area():
    fast, slow = ([1 - math.exp(-epoch / tau) for epoch in range(50)] for tau in (3, 10))
    areas = [learning_curve(c, c, 250)["pseudo_dice_area"][-1] for c in (fast, slow)]
    assert areas[0] > areas[1]


def test_epochs_without_a_dice_do_not_count(tmp_path):
    curve = learning_curve([math.nan, 0.4, math.nan, 0.6], [1.0, math.inf, 3.0, 2.0], 1)
    np.testing.assert_allclose(curve["pseudo_dice_area"], [math.nan, 0.4, 0.4, 0.5])
    np.testing.assert_allclose(curve["val_loss_area"], [1.0, 1.0, 2.0, 2.0])
    write_curves(tmp_path / "learning_curve.csv", curve)
    rows = (tmp_path / "learning_curve.csv").read_text().splitlines()
    assert rows[0] == "epoch,step,pseudo_dice,pseudo_dice_area,val_loss,val_loss_area"
    assert rows[1] == "0,1,,,1.0,1.0"


def read_png(file):
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = mpimg.imread(file)
    assert picture[..., :3].std() > 0.01, "the picture is empty"
    return picture


@pytest.mark.parametrize("epochs", [1, 4])
def test_progress_is_a_picture(tmp_path, epochs):
    logging = {
        "train_losses": [1 / (e + 1) for e in range(epochs)],
        "val_losses": [math.nan] * epochs,
        **{f"change {stage}": [0.1 * e for e in range(epochs)] for stage in STAGES},
        "change encoder stem": [0.2] * epochs,
    }
    panels = [
        Panel("loss", {"train_losses": "training", "val_losses": "validation"}, (1.0, "mean")),
        stage_panel(["encoder stem", *STAGES]),
        Panel("never logged", {"nothing": "nothing"}),
    ]
    plot_progress(tmp_path / "progress.png", logging, panels, "a title")
    two = read_png(tmp_path / "progress.png")
    plot_progress(tmp_path / "one.png", logging, panels[:1], "a title")
    assert two.shape[0] > 1.8 * read_png(tmp_path / "one.png").shape[0]
    assert {f.name for f in tmp_path.iterdir()} == {"progress.png", "one.png"}


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_epochs_are_whole_numbers_and_every_curve_is_seen(tmp_path, monkeypatch, epochs):
    drawn = []
    save = Figure.savefig

    def keep(figure, *arguments, **options):
        save(figure, *arguments, **options)
        drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    logging = {
        f"change {s}": [0.1 * i + 0.1 * e for e in range(epochs)] for i, s in enumerate(STAGES)
    }
    plot_progress(tmp_path / "progress.png", logging, [stage_panel(STAGES)], "a title")
    (axis,) = drawn[0].axes
    low, high = axis.get_xlim()
    assert low < 1 and epochs < high
    ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert ticks and all(float(tick).is_integer() for tick in ticks)
    canvas = FigureCanvasAgg(drawn[0])
    canvas.draw()
    left, bottom, right, top = (round(v) for v in axis.get_window_extent().extents)
    picture = np.asarray(canvas.buffer_rgba())[::-1][bottom:top, left:right, :3] / 255
    for line in axis.lines[: len(STAGES)]:
        away = np.abs(picture - np.array(to_rgb(line.get_color()))).max(axis=-1)
        assert (away < 0.01).any(), f"{line.get_label()} is not seen"


def test_stages_share_a_colour_per_resolution():
    panel = stage_panel(STAGES)
    styles = dict(zip(STAGES, panel.styles, strict=True))
    assert list(panel.curves) == [f"change {stage}" for stage in STAGES]
    assert styles["encoder 1"]["color"] == styles["decoder 1"]["color"]
    assert styles["encoder 1"]["color"] != styles["encoder 2"]["color"]
    assert styles["encoder 1"]["marker"] == styles["decoder 1"]["marker"]
    assert styles["encoder 1"]["marker"] != styles["encoder 2"]["marker"]
    assert (styles["encoder 1"]["linestyle"], styles["decoder 1"]["linestyle"]) == ("-", "--")


@pytest.mark.parametrize(("n", "columns"), [(3, 4), (1, 4), (3, 1), (1, 1)])
def test_images_are_a_picture(tmp_path, n, columns):
    g = torch.Generator().manual_seed(0)
    images = {
        f"column {i}": torch.randn(n, 2, 16, 24, generator=g).bfloat16() for i in range(columns)
    }
    file = tmp_path / "reconstructions" / "epoch_000.png"
    plot_images(file, images, "after 0 epochs")
    picture = read_png(file)
    assert picture.shape[1] == 240 * columns
    plot_images(file, images, "after 0 epochs", "What the columns mean.")
    assert read_png(file).shape[0] > picture.shape[0]


def test_a_constant_image_is_no_trouble(tmp_path):
    plot_images(tmp_path / "a.png", {"input": torch.zeros(1, 1, 8, 8)}, "constant")
    read_png(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (48.4, "48 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (720, "12 min"),
        (5999, "100 min"),
        (6000, "1.7 h"),
        (12600, "3.5 h"),
        (math.inf, "unknown"),
        (math.nan, "unknown"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
