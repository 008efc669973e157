from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ssp.methods import BYOL, Batch, BYOLSettings
from nnunet_ssp.methods.parts.chunks import Chunks
from nnunet_ssp.methods.parts.heads import Standardise
from nnunet_ssp.methods.parts.views import CropSettings, apply_views, draw_resized_crops
from nnunet_ssp.network import in_encoder
from nnunet_ssp.settings import override
from tests.gradients import gradients, inputs_of, relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (16, 24)
SMALL = [(20, 40), (12, 9), (30, 30), (16, 24)]


@pytest.fixture
def make_byol(make_network):
    def make(kind="plain", patch=PATCH, channels=1, features=(4, 8, 8), **changes):
        network = make_network(kind, channels=channels, outputs=3, features=features)
        torch.manual_seed(1)
        tiny = {"head_width": 16, "head_out": 6, "predictor_width": 12, "chunk_size": None}
        settings = BYOLSettings(**{"batch_size": 4, "num_epochs": 10, **tiny, **changes})
        return BYOL(network, settings, patch, channels)

    return make


# -- the paper's method ----------------------------------------------------------------------------


def test_the_papers_numbers(make_network):
    s, _ = override(BYOLSettings(), "recipe=paper")
    assert (s.pooling, s.head_norm) == ("average", "none")
    # methods: batches of 128, 400 epochs, LARS at 0.5 for 256 slices.
    assert (s.batch_size, s.num_epochs, s.warmup) == (128, 400, 10)
    assert (s.optimizer, s.momentum, s.weight_decay) == ("lars", 0.9, 1e-5)
    assert (s.teacher_momentum, s.teacher_init, s.transfer_from) == (0.99, "copy", "teacher")
    method = BYOL(make_network(features=(4, 8)), s, PATCH, 1)
    shapes = {
        name: [tuple(p.shape) for p in part.parameters() if p.ndim > 1]
        for name, part in (("head", method.head), ("predictor", method.predictor))
    }
    assert shapes == {"head": [(4096, 8), (256, 4096)], "predictor": [(8192, 256), (256, 8192)]}
    for part in (method.head, method.predictor):
        assert [type(m) for m in part] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    rates = [method.learning_rate(step, 3) for step in range(1200)]
    np.testing.assert_allclose(rates[:30], np.linspace(3e-5, 0.25, 30))
    after = 0.25 * (1 + np.cos(np.pi * np.arange(1170) / 1170)) / 2
    np.testing.assert_allclose(rates[30:], after, atol=1e-15)


def test_both_views_are_resized_crops_of_the_papers_strength(make_byol):
    method = make_byol(channels=2)
    sizes = np.array([[40, 50], [20, 20], [60, 33]])
    drawn = method.draw(np.random.default_rng(3), sizes)
    rng = np.random.default_rng(3)
    assert list(drawn) == ["first", "second"]
    for name in drawn:
        expected = draw_resized_crops(rng, sizes, 2, PATCH, CropSettings())
        for field in ("matrix", "gain", "contrast"):
            assert torch.equal(getattr(drawn[name], field), getattr(expected, field))
    assert not torch.equal(drawn["first"].matrix, drawn["second"].matrix)
    # methods: area 0.08-1, ratio 3/4-4/3, flip 0.5, brightness and contrast 0.8-1.2 with probability 0.8.
    assert CropSettings() == CropSettings(
        (0.08, 1.0), (3 / 4, 4 / 3), 0.5, 0.8, (0.8, 1.2), (0.8, 1.2)
    )


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"channels": 2}, {"head_norm": "none", "pooling": "average"}, {"pooling": "max"}],
)
def test_the_loss_by_hand(make_byol, make_batch, kind, changes):
    method = make_byol(kind, teacher_init="separate", **changes)
    batch = make_batch(method, SMALL)
    norm = nn.Identity() if changes.get("head_norm") == "none" else Standardise()
    predicted, wanted = [], []
    with torch.no_grad():
        for x in method.panels(batch).values():
            student = norm(method.pool(method.network.encoder(x)))
            predicted.append(method.predictor(method.head(student)))
            teacher = norm(method.pool(method.teacher_encoder.copy(x)))
            wanted.append(method.teacher_head.copy(teacher))
    expected = 0.0
    for p, z in ((predicted[0], wanted[1]), (predicted[1], wanted[0])):
        for a, b in zip(p, z, strict=True):
            expected += (2 - 2 * float(a @ b) / float(a.norm() * b.norm())) / len(p)
    output = method(batch)
    assert output["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert 0 <= output["loss"] <= 8
    assert [k for k, v in output.items() if v.requires_grad] == ["loss"]
    figures = method.summarise({k: v.item() for k, v in output.items()})
    assert set(figures) == set(method.curves)
    assert set(method.eval()(batch)) == {"loss", *method.curves, *method.val_curves}


@pytest.mark.filterwarnings("ignore")
def test_the_loss_is_lightlys(make_byol, make_batch):
    oracle = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    method = make_byol()
    predicted, wanted = [], []
    method.predictor.register_forward_hook(lambda _m, _i, output: predicted.append(output))
    method.teacher_head.register_forward_hook(lambda _m, _i, output: wanted.append(output))
    loss = method(make_batch(method, SMALL))["loss"]
    (p0, p1), (z0, z1) = predicted, wanted
    assert not z0.requires_grad
    expected = 4 + 2 * oracle(p0, z1) + 2 * oracle(p1, z0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_ends_of_the_loss(make_byol, make_batch, sign):
    method = make_byol()
    # One direction for all images, and a predictor that says it, or the opposite.
    for head in (method.teacher_head.copy, method.predictor):
        with torch.no_grad():
            head[-1].weight.zero_()
            head[-1].bias.fill_(1)
    with torch.no_grad():
        method.predictor[-1].bias.mul_(sign)
    loss = method(make_batch(method, SMALL))["loss"]
    assert loss.item() == pytest.approx(0 if sign == 1 else 8, abs=1e-5)


def test_the_loss_is_symmetric_in_its_views(make_byol, make_batch):
    method = make_byol(teacher_init="separate")
    batch = make_batch(method, SMALL)
    loss, expected = gradients(method, batch)
    batch.drawn = {"first": batch.drawn["second"], "second": batch.drawn["first"]}
    swapped, found = gradients(method, batch)
    assert swapped == pytest.approx(loss, rel=1e-5)
    assert relative_error(found, expected) < 1e-4


def test_each_view_is_a_batch_of_its_own_and_only_the_student_predicts(make_byol, make_batch):
    method = make_byol()
    batch = make_batch(method, SMALL)
    student, teacher = inputs_of(method.network.encoder), inputs_of(method.teacher_encoder.copy)
    heads = [inputs_of(m) for m in (method.head, method.teacher_head.copy, method.predictor)]
    method(batch)
    views = torch.cat(
        [
            apply_views(batch.slices, batch.sizes, batch.drawn[name], PATCH)[0]
            for name in ("first", "second")
        ]
    )
    for seen in (student, teacher):
        assert len(seen) == 1
        torch.testing.assert_close(seen[0], views, atol=1e-4, rtol=1e-4)
    assert [[len(x) for x in seen] for seen in heads] == [[4, 4]] * 3
    for seen in heads[:2]:
        for x in seen:
            assert x.mean(0).abs().max() < 1e-4
    assert not any("predictor" in name for name, _ in method.teacher_head.named_parameters())
    assert list(method.panels(batch)) == ["first view", "second view"]


def test_the_target_gets_no_gradient_and_all_else_that_is_trained_does(make_byol, make_batch):
    method = make_byol("residual")
    method(make_batch(method, SMALL))["loss"].backward()
    for name, parameter in method.named_parameters():
        trained = name.startswith(("head.", "predictor."))
        trained |= in_encoder(name.removeprefix("network."))
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name
    groups = method.parameter_groups()
    names = {id(p): name for name, p in method.named_parameters()}
    optimised = {names[id(p)] for group in groups for p in group["params"]}
    assert {"predictor.0.weight", "predictor.3.bias", "head.0.weight"} < optimised
    assert not any("teacher" in name for name in optimised)


def test_the_loss_falls_without_collapse(make_byol, make_batch):
    method = make_byol(teacher_momentum=0.9)
    optimizer = torch.optim.SGD(method.parameter_groups(), 0.01, 0.9)
    batches = [make_batch(method, SMALL, seed) for seed in (0, 1)]
    losses = []
    for step in range(30):
        output = method(batches[step % 2])
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        method.after_step(step, 30)
        losses.append(output["loss"].item())
    assert sum(losses[-2:]) < 0.6 * sum(losses[:2])
    assert output["spread"] > 0.1


# -- what is handed on and kept --------------------------------------------------------------------


def test_the_targets_encoder_is_handed_on(make_byol, make_batch):
    method = make_byol()
    optimizer = torch.optim.SGD(method.parameter_groups(), 0.1)
    method(make_batch(method, SMALL))["loss"].backward()
    optimizer.step()
    method.after_step(0, 10)
    exported = method.exported().encoder.state_dict()
    teacher, student = method.teacher_encoder.copy.state_dict(), method.network.encoder.state_dict()
    assert all(torch.equal(exported[k], teacher[k]) for k in teacher)
    assert any(not torch.equal(exported[k], student[k]) for k in student)
    # The student goes on from the extra state.
    state = {k: v.clone() for k, v in method.extra_state().items()}
    resumed = make_byol()
    resumed.network.load_state_dict(method.exported().state_dict())
    resumed.load_extra_state(state)
    batch = make_batch(method, SMALL, seed=3)
    assert resumed(batch)["loss"] == method(batch)["loss"]
    assert "predictor.0.weight" in state


# -- memory, frames and precision ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("pooling", ["average", "stages"])
def test_chunks_change_nothing(make_byol, make_batch, kind, pooling):
    method = make_byol(kind, channels=2, pooling=pooling)
    batch = make_batch(method, 3 * SMALL)
    loss, expected = gradients(method, batch)
    for size in (1, 5, 24):
        method.chunks = Chunks(size, method.network)
        chunked, found = gradients(method, batch)
        assert chunked == pytest.approx(loss, rel=1e-5)
        # A last bit in the pooled features makes 1e-5 here: BatchNorm of few rows that differ little.
        assert relative_error(found, expected) < 1e-4


def test_the_second_view_is_made_from_the_second_frame(make_byol, make_batch):
    method = make_byol(pairs="frame", channels=2)
    single = make_batch(method, SMALL)
    sizes = torch.stack([single.sizes, single.sizes.flip(0)], 1)
    slices = torch.stack([single.slices, single.slices.flip(0)], 1)
    drawn = method.draw(np.random.default_rng(0), sizes.numpy())
    batch = Batch(slices, sizes, drawn, single.positions)
    seen = inputs_of(method.network.encoder)
    method(batch)
    for frame, (name, view) in enumerate(zip(drawn, seen[0].chunk(2), strict=True)):
        own, inside = apply_views(slices[:, frame], sizes[:, frame], drawn[name], PATCH)
        assert inside.all()  # drawn for this frame's own size
        torch.testing.assert_close(view, own, atol=1e-4, rtol=1e-4)


def test_drawing_is_reproducible_and_forward_draws_nothing(make_byol, make_batch):
    method = make_byol()
    a, b, c = (make_batch(method, SMALL, seed) for seed in (5, 5, 6))
    state = torch.get_rng_state()
    loss = method(a)["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    assert method(b)["loss"] == loss != method(c)["loss"]


def test_heads_stay_in_float32_when_the_network_does_not(make_byol, make_batch):
    method = make_byol(head_norm="none")
    batch = make_batch(method, SMALL)
    full = method(batch)["loss"].item()
    seen = inputs_of(method.predictor)
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch)["loss"]
    assert half.dtype == seen[0].dtype == torch.float32
    assert half.item() == pytest.approx(full, rel=0.2)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head_width", "head_out", "predictor_width"])
def test_an_empty_layer_is_refused(name):
    with pytest.raises(ValueError, match=rf"`{name}` \(=0\) must be at least 1"):
        BYOLSettings(**{name: 0})


@pytest.mark.parametrize("value", [1.5, -0.5])
def test_a_momentum_outside_its_range_is_refused(value):
    with pytest.raises(ValueError, match=rf"`teacher_momentum` \(={value}\) must lie in \[0, 1\]"):
        BYOLSettings(teacher_momentum=value)
