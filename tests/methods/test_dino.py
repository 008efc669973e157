from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_ssp.methods import DINO, Batch, DINOSettings
from nnunet_ssp.methods.dino import encoder_stride, local_size
from nnunet_ssp.methods.parts.chunks import Chunks
from nnunet_ssp.methods.parts.heads import Standardise
from nnunet_ssp.methods.parts.views import BRIGHTNESS, Views, ViewSettings, apply_views
from nnunet_ssp.settings import override
from tests.gradients import gradients, inputs_of, relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (16, 24)
LOCAL = (8, 12)
SMALL = [(20, 40), (12, 9), (30, 30), (16, 24)]


@pytest.fixture
def make_dino(make_network):
    def make(kind="plain", patch=PATCH, channels=1, features=(4, 8, 8), **changes):
        network = make_network(kind, channels=channels, outputs=3, features=features)
        torch.manual_seed(1)
        tiny = {"head_width": 16, "head_bottleneck": 8, "out_dim": 32, "chunk_size": None}
        settings = DINOSettings(**{"batch_size": 4, "num_epochs": 100, **tiny, **changes})
        return DINO(network, settings, patch, channels)

    return make


def scores_of(head: torch.nn.Module) -> list[torch.Tensor]:
    """Scores of prototypes that the head gives from here on."""
    seen: list[torch.Tensor] = []
    head.register_forward_hook(lambda _m, _i, output: seen.append(output[1].detach().clone()))
    return seen


def optimizer_of(method: DINO) -> torch.optim.Optimizer:
    """The trainer's own choice, at a rate that shows."""
    from nnunet_ssp.training.pretraining import PretrainingTrainer

    trainer: Any = SimpleNamespace(method=method, settings=method.settings)
    optimizer: torch.optim.Optimizer = PretrainingTrainer.configure_optimizers(trainer)[0]
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    return optimizer


def step(method: DINO, batch: Batch, optimizer: torch.optim.Optimizer, number: int = 0) -> None:
    optimizer.zero_grad()
    method(batch)["loss"].backward()
    method.after_backward()
    optimizer.step()
    method.after_step(number, 100)


def paired(method: DINO, batch: Batch, seed: int = 0) -> Batch:
    """Every slice with another one as its second frame."""
    sizes = torch.stack([batch.sizes, batch.sizes.flip(0)], 1)
    slices = torch.stack([batch.slices, batch.slices.flip(0)], 1)
    drawn = method.draw(np.random.default_rng(seed), sizes.numpy())
    return Batch(slices, sizes, drawn, batch.positions)


# -- crops -----------------------------------------------------------------------------------------


def test_the_papers_crops(make_dino):
    # methods: 256 x 256 with seven stages, and 128 x 128.
    method = make_dino(patch=(256, 256), features=(2,) * 7)
    assert encoder_stride(method.network) == (64, 64)
    assert method.local_size == (128, 128)
    blurred, solarised, *local = method.crops()
    assert [patch for _, patch in (blurred, solarised)] == [(256, 256)] * 2
    assert [patch for _, patch in local] == [(128, 128)] * 6
    common = ViewSettings(
        rotation=180,
        scale=(math.sqrt(0.14) * 1.4, 1.4),
        translation=40 / 256,
        flip=0.5,
        noise=0.15,
        noise_sigma=(0, 0.2),
        blur=0.1,
        blur_sigma=(0.5, 1.5),
        brightness=(0.6, 1.5),
        brightness_probability=0.2,
        shift=0.4,
        shift_probability=0.15,
        gamma=(0.7, 1.5),
        gamma_probability=0.15,
        solarise=0,
    )
    assert blurred[0] == replace(common, blur=1, blur_sigma=(0.1, 2.0))
    assert solarised[0] == replace(common, solarise=0.2)
    assert common.scale == pytest.approx((0.524, 1.4), abs=1e-3)
    for settings, _ in local:
        assert settings == replace(common, scale=settings.scale, translation=160 / 256)
        assert settings.scale == pytest.approx((2 * 0.313, 2 * 0.524), abs=1e-3)
    run = make_dino(
        patch=(256, 256), features=(2,) * 7, local_scale="run", brightness="run", local_crops=3
    ).crops()
    assert len(run) == 5
    for settings, _ in run[2:]:
        assert settings.scale == pytest.approx((0.313, 0.524), abs=1e-3)
        assert settings.translation * 128 == 160
    assert {settings.brightness for settings, _ in run} == {BRIGHTNESS["run"]}
    # A window rounded to the stride of the encoder shows as much.
    rounded = make_dino(patch=(64, 80), features=(2,) * 5, local_crops=1, local_ratio=0.6)
    assert rounded.local_size == (32, 48)
    settings = rounded.crops()[2][0]
    area = np.array(settings.scale) ** 2 * 32 * 48 / (1.4**2 * 64 * 80)
    assert area == pytest.approx([0.05, 0.14])
    offset = np.array(settings.scale) * settings.translation
    assert offset == pytest.approx([0.313 * 1.25, 0.524 * 1.25], abs=0.002)
    # Areas of the largest global crop: 5 to 14 % as meant, as run a quarter of that; offsets alike.
    for settings, factor in ((local[0][0], 1), (run[2][0], 4)):
        area = (np.array(settings.scale) * 128 / (1.4 * 256)) ** 2
        assert factor * area == pytest.approx([0.05, 0.14])
        offset = np.array(settings.scale) * settings.translation * 128
        assert offset == pytest.approx([160 * 0.313, 160 * 0.524], abs=0.1)


def test_the_recipe_for_short_runs(make_network):
    s, _ = override(DINOSettings(), "recipe=short out_dim=128")
    assert (s.pooling, s.head_norm) == ("stages", "batch")  # what InstanceNorm needs stays
    assert (s.optimizer, s.initial_lr, s.teacher_temperature) == ("sgd", 0.3, 0.02)
    assert (s.out_dim, s.head_bottleneck, s.teacher_warmup) == (128, 64, 0)
    DINO(make_network(features=(4, 8)), s, PATCH, 1)


def test_the_papers_numbers(make_network):
    s, _ = override(DINOSettings(), "recipe=paper")
    assert (s.pooling, s.head_norm) == ("average", "none")
    # methods: batches of 64, 100 epochs, eight crops, and a rate of 0.03 for 256 slices.
    assert (s.batch_size, s.num_epochs, s.local_crops, s.warmup) == (64, 100, 6, 10)
    assert (s.optimizer, s.momentum, s.nesterov, s.weight_decay) == ("sgd", 0.9, False, 1e-4)
    assert (s.teacher_momentum, s.teacher_init, s.transfer_from) == (0.996, "copy", "student")
    assert (s.student_temperature, s.centre_momentum) == (0.1, 0.9)
    method = DINO(make_network(features=(4, 8)), s, PATCH, 1)
    linear = [layer for layer in method.head.mlp if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == [2048, 2048, 256]
    assert method.head.prototypes.shape == (8192, 256)
    rates = [method.learning_rate(number, 5) for number in range(500)]
    np.testing.assert_allclose(rates[:50], np.linspace(0, 0.0075, 50))
    after = 1e-6 + (0.0075 - 1e-6) * (1 + np.cos(np.pi * np.arange(450) / 450)) / 2
    np.testing.assert_allclose(rates[50:], after)


@pytest.mark.parametrize(
    ("patch", "stride", "ratio", "size"),
    [
        ((256, 256), (64, 64), 0.5, (128, 128)),
        ((192, 160), (32, 32), 0.5, (96, 96)),  # two and a half: rounded up
        ((224, 320), (32, 64), 0.4, (96, 128)),
        ((256, 256), (64, 64), 1.0, (256, 256)),
        ((64, 512), (32, 64), 1.0, (64, 512)),
    ],
)
def test_local_crops_are_whole_pixels_of_the_last_map(patch, stride, ratio, size):
    assert local_size(patch, stride, ratio) == size


@pytest.mark.parametrize(
    ("patch", "stride", "ratio", "left"),
    [
        ((128, 256), (64, 64), 0.5, "1 x 2"),
        ((256, 128), (64, 64), 0.5, "2 x 1"),
        ((256, 256), (64, 64), 0.3, "1 x 1"),
        ((256, 256), (64, 64), 0.01, "0 x 0"),
    ],
)
def test_local_crops_too_small_for_the_network_are_refused_with_the_numbers(
    patch, stride, ratio, left
):
    message = (
        rf"`local_ratio` \(={ratio}\) must leave at least 2 x 2 of the encoder's last map: of the planned patch "
        rf"{patch[0]} x {patch[1]} with stride {stride[0]} x {stride[1]} it leaves {left}\."
    )
    with pytest.raises(ValueError, match=message):
        local_size(patch, stride, ratio)


def test_without_local_crops_their_size_does_not_matter(make_dino):
    method = make_dino(local_crops=0, local_ratio=0.01)
    assert len(method.crops()) == 2


def test_a_method_refuses_a_plan_that_is_too_deep(make_dino):
    with pytest.raises(ValueError, match="patch 16 x 24 with stride 8 x 8 it leaves 1 x 2"):
        make_dino(features=(4, 4, 4, 4))


def test_the_stride_of_a_network_that_halves_its_sides_apart():
    encoder = SimpleNamespace(strides=[[1, 1], [2, 1], 2, (2, 2)])
    assert encoder_stride(SimpleNamespace(encoder=encoder)) == (8, 4)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_student_sees_all_crops_and_the_teacher_the_global_ones(
    make_dino, make_batch, kind, channels
):
    method = make_dino(kind, channels=channels)
    batch = make_batch(method, SMALL)
    assert list(batch.drawn) == [f"crop{i}" for i in range(8)]
    student, teacher = inputs_of(method.network.encoder), inputs_of(method.teacher_encoder.copy)
    heads = inputs_of(method.head), inputs_of(method.teacher_head.copy)
    method(batch)
    sizes = [PATCH] * 2 + [LOCAL] * 6
    crops = [
        apply_views(batch.slices, batch.sizes, batch.drawn[f"crop{i}"], size)[0]
        for i, size in enumerate(sizes)
    ]
    assert [x.shape for x in student] == [(8, channels, *PATCH), (24, channels, *LOCAL)]
    assert [x.shape for x in teacher] == [(8, channels, *PATCH)]
    torch.testing.assert_close(student[0], torch.cat(crops[:2]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(student[1], torch.cat(crops[2:]), atol=1e-4, rtol=1e-4)
    assert torch.equal(teacher[0], student[0])
    # All crops in one batch of the head, standardised as one.
    assert [[len(x) for x in seen] for seen in heads] == [[32], [8]]
    for (seen,) in heads:
        assert seen.mean(0).abs().max() < 1e-4
    panels = method.panels(batch)
    assert list(panels) == ["global, blurred", "global, solarised"] + [
        f"local {i + 1}" for i in range(6)
    ]
    for panel, expected in zip(panels.values(), crops, strict=True):
        assert torch.equal(panel, expected)


def test_the_drawn_parameters_have_the_crops_own_settings(make_dino):
    method = make_dino(brightness="run", channels=2)
    drawn = method.draw(np.random.default_rng(0), np.array([[20, 30]] * 1500))

    def zoom(views: Views) -> torch.Tensor:
        return torch.linalg.det(views.matrix[:, :, :2]).abs().sqrt()

    ranges = [(0.524, 1.4)] * 2 + [(0.626, 1.048)] * 6
    for i, (low, high) in enumerate(ranges):
        views = drawn[f"crop{i}"]
        assert len(views) == 1500
        assert low - 1e-3 < zoom(views).min() < low + 0.02
        assert high - 0.02 < zoom(views).max() < high + 1e-3
        assert abs((views.noise_sigma > 0).float().mean() - 0.15) < 0.04
        blurred = (views.blur_sigma[:, 0] > 0).float().mean()
        assert blurred == 1 if i == 0 else abs(blurred - 0.1) < 0.03
        limits = (0.1, 2.0) if i == 0 else (0.5, 1.5)
        sigma = views.blur_sigma[views.blur_sigma > 0]
        assert limits[0] <= sigma.min() and sigma.max() <= limits[1]
        assert abs(views.solarise.float().mean() - (0.2 if i == 1 else 0)) < 0.04
        applied = views.brightness[:, 0] != 1
        assert abs(applied.float().mean() - 0.2) < 0.04
        assert views.brightness[applied].min() >= 1.6 and views.brightness.max() <= 2.5
    matrices = torch.stack([drawn[f"crop{i}"].matrix for i in range(8)])
    assert len(matrices.flatten(1).unique(dim=0)) == 8  # no crop is another one's


@pytest.mark.parametrize("scale", ["meant", "run"])
def test_all_crops_of_a_slice_lie_about_one_centre(make_dino, scale):
    # methods 1.4: the centre is the same for all, then +-40 and +-160 px of the output, scaled and turned. A slice as
    # large as the patch has its centre in the middle.
    method = make_dino(patch=(64, 64), local_scale=scale)
    drawn = method.draw(np.random.default_rng(0), np.array([[64, 64]] * 1000))
    for i, (settings, patch) in enumerate(method.crops()):
        moved = (drawn[f"crop{i}"].matrix[:, :, 2] - 31.5).abs().max().item()
        limit = settings.scale[1] * settings.translation * patch[0] * math.sqrt(2)
        assert 0.8 * limit < moved <= limit + 1e-3, i


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(
    "changes", [{}, {"local_crops": 0}, {"head_norm": "none", "pooling": "average"}]
)
def test_the_loss_by_hand(make_dino, make_batch, kind, changes):
    method = make_dino(kind, channels=2, teacher_init="separate", **changes)
    method.centre.copy_(torch.linspace(-0.1, 0.1, 32))
    method.start_epoch(3)
    batch = make_batch(method, SMALL)
    crops = list(method.panels(batch).values())
    centre = method.centre.clone()
    norm = torch.nn.Identity() if changes.get("head_norm") == "none" else Standardise()
    with torch.no_grad():
        pooled = [method.pool(method.network.encoder(x)) for x in crops]
        targets = [method.pool(method.teacher_encoder.copy(x)) for x in crops[:2]]
        student = method.head(norm(torch.cat(pooled)))[1].chunk(len(crops))
        teacher = method.teacher_head.copy(norm(torch.cat(targets)))[1].chunk(2)
    terms = []
    for q in range(2):
        for v in range(len(crops)):
            if v != q:
                target = ((teacher[q] - centre) / (0.02 + 0.02 * 3 / 29)).softmax(1)
                terms.append(F.cross_entropy(student[v] / 0.1, target).item())
    assert len(terms) == (2 if changes.get("local_crops") == 0 else 14)
    output = method(batch)
    assert output["loss"].item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert [k for k, v in output.items() if v.requires_grad] == ["loss"]
    assert output["kl"].item() > 0
    difference = output["loss"] - output["teacher_entropy"]
    assert output["kl"].item() == pytest.approx(difference.item(), rel=1e-6)
    figures = method.summarise({k: v.item() for k, v in output.items()})
    assert set(figures) == set(method.curves)
    assert set(method.eval()(batch)) == {"loss", *method.curves, *method.val_curves}


@pytest.mark.filterwarnings("ignore")
def test_loss_and_centre_are_lightlys_over_several_steps(make_dino, make_batch):
    losses = pytest.importorskip("lightly.loss")
    oracle = losses.DINOLoss(
        32, warmup_teacher_temp=0.02, teacher_temp=0.04, warmup_teacher_temp_epochs=30,
        student_temp=0.1, center_momentum=0.9,
    )  # fmt: skip
    method = make_dino()
    optimizer = optimizer_of(method)
    student, teacher = scores_of(method.head), scores_of(method.teacher_head.copy)
    for number, epoch in enumerate((0, 0, 1, 17, 29, 60)):
        method.start_epoch(epoch)
        batch = make_batch(method, SMALL, seed=number)
        optimizer.zero_grad()
        loss = method(batch)["loss"]
        expected = oracle(list(teacher[-1].chunk(2)), list(student[-1].chunk(8)), epoch=epoch)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=2e-6)
        torch.testing.assert_close(method.centre, oracle.center.flatten(), atol=1e-7, rtol=1e-5)
        loss.backward()
        optimizer.step()
        method.after_step(number, 6)
    assert method.centre.abs().max() > 0.01


def test_the_centre_moves_after_its_use_and_in_training_only(make_dino, make_batch):
    method = make_dino()
    teacher = scores_of(method.teacher_head.copy)
    batch = make_batch(method, SMALL)
    method.eval()
    first = method(batch)["loss"]
    assert (method.centre == 0).all()
    method.train()
    # The loss is taken with the centre as it was.
    assert method(batch)["loss"].item() == pytest.approx(first.item(), rel=1e-6)
    torch.testing.assert_close(method.centre, 0.1 * teacher[-1].mean(0))
    assert method(batch)["loss"].item() != pytest.approx(first.item(), rel=1e-4)
    torch.testing.assert_close(method.centre, 0.19 * teacher[-1].mean(0))
    assert not method.centre.requires_grad
    without = make_dino(centring=False)
    without(batch)
    assert (without.centre == 0).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [*np.linspace(0.02, 0.04, 30), 0.04, 0.04]),
        ({"num_epochs": 10}, [0.02, 0.03, 0.04, 0.04]),  # auto: three tenths of a short run
        ({"num_epochs": 10, "warmup_teacher_epochs": 5}, [*np.linspace(0.02, 0.04, 5), 0.04]),
        ({"num_epochs": 1}, [0.04]),
        ({"warmup_teacher_epochs": 0}, [0.04] * 3),
        ({"warmup_teacher_epochs": 1}, [0.02, 0.04, 0.04]),
        ({"warmup_teacher_epochs": 3, "teacher_temperature": 0.07}, [0.02, 0.045, 0.07, 0.07]),
    ],
)
def test_the_teachers_temperature_by_epoch(make_dino, changes, expected):
    method = make_dino(**changes)
    found = []
    for epoch in range(len(expected)):
        method.start_epoch(epoch)
        found.append(method.teacher_temperature)
    assert found == pytest.approx(expected)


def test_the_temperature_reaches_the_targets(make_dino, make_batch):
    entropies = []
    for epoch in (0, 29):
        method = make_dino()
        method.start_epoch(epoch)
        entropies.append(method(make_batch(method, SMALL))["teacher_entropy"].item())
    assert entropies[0] < entropies[1]


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_prototypes_are_frozen_at_first_and_do_not_decay_either(
    make_dino, make_batch, optimizer_name, epochs
):
    method = make_dino(freeze_prototypes=epochs, optimizer=optimizer_name, weight_decay=0.1)
    optimizer = optimizer_of(method)
    for epoch in range(3):
        method.start_epoch(epoch)
        before = {k: v.clone() for k, v in method.head.named_parameters()}
        for seed in (0, 1):
            step(method, make_batch(method, SMALL, seed), optimizer)
        for name, parameter in method.head.named_parameters():
            frozen = name == "prototypes" and epoch < epochs
            assert torch.equal(parameter, before[name]) == frozen, (name, epoch)


def test_the_teacher_follows_and_gets_no_gradient(make_dino, make_batch):
    method = make_dino(teacher_momentum=0.5)
    optimizer = optimizer_of(method)
    method.start_epoch(1)
    before = [p.clone() for p in method.teacher_head.copy.parameters()]
    step(method, make_batch(method, SMALL), optimizer)
    pairs = zip(
        method.teacher_head.copy.parameters(), method.head.parameters(), before, strict=True
    )
    for teacher, student, old in pairs:
        torch.testing.assert_close(teacher, (old + student.detach()) / 2)
        assert teacher.grad is None and not teacher.requires_grad
    assert all(p.grad is None for p in method.teacher_encoder.parameters())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(method.head.prototypes) in trained
    assert not any(id(p) in trained for p in method.teacher_head.parameters())


def test_every_trained_parameter_gets_a_gradient(make_dino, make_batch):
    method = make_dino("residual", channels=2)
    method(make_batch(method, SMALL))["loss"].backward()
    for name, parameter in method.named_parameters():
        trained = name.startswith(("head.", "network.encoder."))
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name


def test_prototypes_in_use_are_counted_by_epoch_and_in_training(make_dino, make_batch):
    method = make_dino(centring=False)
    teacher = scores_of(method.teacher_head.copy)
    batches = [make_batch(method, SMALL, seed) for seed in range(3)]
    method.start_epoch(0)
    for batch in batches:
        method(batch)
    expected = torch.cat(teacher).argmax(1).unique().numel()
    assert method.end_epoch() == {"prototypes_used": expected}
    assert expected > torch.cat(teacher[:1]).argmax(1).unique().numel() > 1
    method.eval()
    method.start_epoch(1)
    method(batches[0])
    assert method.end_epoch() == {"prototypes_used": 0}
    assert set(method.end_epoch()) == set(method.train_curves)
    assert "used" not in method.extra_state()


def test_prototypes_in_use_are_those_that_targets_choose(make_dino, make_batch):
    method = make_dino()
    offset = torch.zeros(32)
    offset[7] = 5.0  # what all images share, and the centre takes away
    scores = 0.1 * torch.eye(32)[:8]
    method.centre.copy_(offset)
    method.teacher_head.forward = lambda x: (x, scores + offset)
    method.start_epoch(0)
    method(make_batch(method, SMALL))
    assert method.end_epoch() == {"prototypes_used": 8}


def test_the_loss_falls(make_dino, make_batch):
    method = make_dino(local_crops=2, student_temperature=0.2)
    optimizer = torch.optim.AdamW(method.parameter_groups(), 3e-3)
    batch = make_batch(method, SMALL)
    method.start_epoch(1)
    losses = []
    for _ in range(30):
        loss = method(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        # A teacher that stands still is what the student can reach.
        method.after_step(99, 100)
    assert losses[-1] < 0.8 * losses[0]


# -- warnings --------------------------------------------------------------------------------------


HEALTHY = {
    "val_spread": 0.5,
    "val_effective_rank": 9.0,
    "val_relative_alignment": 0.5,
    "val_teacher_entropy": 2.0,
    "val_kl": 0.5,
    "train_prototypes_used": 20.0,
}


def test_a_healthy_run_gives_no_warning(make_dino):
    method = make_dino()
    assert method.warnings(HEALTHY) == []
    (warning,) = method.warnings({**HEALTHY, "val_spread": 0.01})
    assert warning.startswith("WARNING: the features have collapsed")
    for changes in ({"val_kl": 0.009}, {"train_prototypes_used": 1.0}):
        (warning,) = method.warnings({**HEALTHY, **changes})
        assert warning.startswith("WARNING: the teacher gives all images the same target")
    for entropy, number in ((0.97, 0), (0.99, 1)):
        curves = {**HEALTHY, "val_teacher_entropy": entropy * math.log(32)}
        assert len(method.warnings(curves)) == number


def validated(method: DINO, batch: Batch) -> dict[str, float]:
    method.eval()
    curves = {
        f"val_{k}": v
        for k, v in method.summarise({k: v.item() for k, v in method(batch).items()}).items()
    }
    return {**curves, **{f"train_{k}": v for k, v in method.end_epoch().items()}}


def test_without_centring_the_teacher_collapses_and_a_warning_says_so(make_dino, make_batch):
    method = make_dino(
        centring=False,
        teacher_temperature=0.02,
        teacher_momentum=0.5,
        freeze_prototypes=0,
        local_crops=2,
    )
    optimizer = optimizer_of(method)
    for number in range(40):
        if number in (0, 30):
            method.start_epoch(number // 30)
        step(method, make_batch(method, SMALL, seed=number), optimizer, number)
    curves = validated(method, make_batch(method, SMALL, seed=99))
    assert curves["train_prototypes_used"] == 1
    assert curves["val_kl"] < 0.01
    (warning,) = [w for w in method.warnings(curves) if "teacher" in w]
    assert warning.startswith(
        "WARNING: the teacher gives all images the same target: 1 of 32 prototypes were chosen in this epoch"
    )
    assert "Keep centring=yes" in warning


def test_a_teacher_without_an_opinion_is_warned_of(make_dino, make_batch):
    method = make_dino(teacher_temperature=5.0, warmup_teacher_temperature=5.0)
    method.start_epoch(0)
    method(make_batch(method, SMALL))
    curves = validated(method, make_batch(method, SMALL))
    assert curves["val_teacher_entropy"] == pytest.approx(math.log(32), rel=0.01)
    (warning,) = [w for w in method.warnings(curves) if "teacher" in w]
    assert warning.startswith("WARNING: the teacher has no opinion: its entropy 3.4")
    assert "32 prototypes. Lower teacher_temperature." in warning


# -- memory, frames, precision and state -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("pooling", ["average", "stages"])
def test_chunks_change_nothing(make_dino, make_batch, kind, pooling):
    # Without training mode, so that the centre stays.
    method = make_dino(kind, channels=2, pooling=pooling, local_crops=3).eval()
    batch = make_batch(method, 3 * SMALL)
    loss, expected = gradients(method, batch)
    for size in (1, 5, 24):
        method.chunks = Chunks(size, method.network)
        chunked, found = gradients(method, batch)
        assert chunked == pytest.approx(loss, rel=1e-5)
        # A last bit in the pooled features makes 1e-5 here: BatchNorm of few rows that differ little.
        assert relative_error(found, expected) < 1e-4


def test_every_second_crop_is_made_from_the_second_frame(make_dino, make_batch):
    method = make_dino(pairs="frame", channels=2, local_crops=3)
    assert method.second_frames
    batch = paired(method, make_batch(method, SMALL))
    seen = inputs_of(method.network.encoder)
    method(batch)
    crops = [*seen[0].chunk(2), *seen[1].chunk(3)]
    for i, (name, crop) in enumerate(zip(method.panels(batch).items(), crops, strict=True)):
        own, other = (
            apply_views(
                batch.slices[:, frame],
                batch.sizes[:, frame],
                batch.drawn[f"crop{i}"],
                crop.shape[2:],
            )[0]
            for frame in (i % 2, 1 - i % 2)
        )
        torch.testing.assert_close(crop, own, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(name[1], own, atol=1e-4, rtol=1e-4)
        assert (crop - other).abs().max() > 0.01


def test_drawing_is_reproducible_and_forward_draws_nothing(make_dino, make_batch):
    method = make_dino().eval()
    a, b, c = (make_batch(method, SMALL, seed) for seed in (5, 5, 6))
    for name in a.drawn:
        assert torch.equal(a.drawn[name].matrix, b.drawn[name].matrix)
        assert not torch.equal(a.drawn[name].matrix, c.drawn[name].matrix)
    state = torch.get_rng_state()
    loss = method(a)["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    assert method(b)["loss"] == loss != method(c)["loss"]


def test_bfloat16_is_close(make_dino, make_batch):
    # Without standardisation, which makes the small differences between images large, rounding included.
    method = make_dino(head_norm="none").eval()
    batch = make_batch(method, SMALL)
    full = method(batch)["loss"].item()
    seen = scores_of(method.head)
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch)["loss"]
    assert half.dtype == seen[0].dtype == torch.float32
    assert half.item() == pytest.approx(full, rel=0.2)


@pytest.mark.parametrize("changes", [{}, {"transfer_from": "teacher", "teacher_init": "separate"}])
def test_a_run_goes_on_with_centre_and_teacher(make_dino, make_batch, changes):
    method = make_dino(**changes)
    optimizer = optimizer_of(method)
    method.start_epoch(1)
    for seed in (0, 1):
        step(method, make_batch(method, SMALL, seed), optimizer, seed)
    state = {k: v.clone() for k, v in method.extra_state().items()}
    assert {"centre", "head.prototypes", "teacher_head.copy.prototypes"} < state.keys()
    torch.manual_seed(5)
    resumed = make_dino(**changes)
    resumed.network.load_state_dict(method.exported().state_dict())
    resumed.load_extra_state(state)
    resumed.start_epoch(1)
    batch = make_batch(method, SMALL, seed=7)
    assert method.centre.abs().max() > 0
    assert torch.equal(resumed.centre, method.centre)
    assert resumed(batch)["loss"] == method(batch)["loss"]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("out_dim", 1, "be at least 2"),
        ("local_ratio", 0, r"lie in \(0, 1\]"),
        ("local_ratio", 1.01, r"lie in \(0, 1\]"),
        ("local_crops", -1, "not be negative"),
        ("student_temperature", 0, "be positive"),
        ("teacher_temperature", 0, "be positive"),
        ("warmup_teacher_temperature", -0.02, "be positive"),
        ("warmup_teacher_epochs", -1, "be auto or not negative"),
        ("centre_momentum", 1.1, r"lie in \[0, 1\]"),
        ("freeze_prototypes", -1, "not be negative"),
        ("head_width", 0, "be at least 1"),
        ("head_bottleneck", 0, "be at least 1"),
        ("teacher_momentum", 1.5, r"lie in \[0, 1\]"),
        ("batch_size", 1, "be at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(name, value, rule):
    with pytest.raises(ValueError, match=rf"`{name}` \(={value}\) must {rule}"):
        DINOSettings(**{name: value})
