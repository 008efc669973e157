from __future__ import annotations

import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from nnunet_ssp.methods import Batch, SimCLR, SimCLRSettings
from nnunet_ssp.methods.parts.chunks import Chunks
from nnunet_ssp.methods.parts.features import alignment, effective_rank, spread, uniformity
from nnunet_ssp.methods.parts.losses import contrastive_loss
from nnunet_ssp.methods.parts.views import BRIGHTNESS, Views, ViewSettings, draw_views
from nnunet_ssp.settings import override

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (32, 32)
SMALL = [(20, 40), (32, 24), (48, 48), (28, 28), (40, 33), (31, 50)]


@pytest.fixture
def make_simclr(make_network):
    def make(kind="plain", patch=PATCH, channels=1, features=(4, 8, 8), **changes):
        network = make_network(kind, channels=channels, outputs=3, features=features)
        torch.manual_seed(1)
        settings = SimCLRSettings(**{"batch_size": 6, "head_width": 16, **changes})
        return SimCLR(network, settings, patch, channels)

    return make


def outputs_of(method: SimCLR) -> dict[str, torch.Tensor]:
    """Record the standardisation's inputs and the head's outputs from here on."""
    seen: dict[str, torch.Tensor] = {}
    method.head_norm.register_forward_pre_hook(lambda _, inputs: seen.update(pooled=inputs[0]))
    method.head.register_forward_hook(lambda _m, _i, output: seen.update(features=output))
    return seen


def gradients(method: SimCLR, batch: Batch) -> tuple[float, torch.Tensor]:
    method.zero_grad(set_to_none=True)
    loss = method(batch)["loss"]
    loss.backward()
    found = [p.grad.flatten().clone() for p in method.parameters() if p.requires_grad]
    return loss.item(), torch.cat(found)


# -- the paper's method ----------------------------------------------------------------------------


def test_the_papers_settings():
    s = SimCLRSettings()
    assert (s.batch_size, s.temperature, s.initial_lr, s.momentum) == (224, 0.1, 0.1, 0.9)
    assert (s.weight_decay, s.nesterov, s.num_epochs, s.head_width) == (1e-4, False, 100, 512)
    assert (s.pooling, s.head_norm, s.pairs, s.brightness) == (
        "average",
        "batch",
        "augment",
        "meant",
    )


@pytest.mark.parametrize("pooling", ["average", "stages"])
def test_the_papers_head_adapts_its_first_layer_to_the_planned_network(make_simclr, pooling):
    method = make_simclr(features=(4, 8, 16), head_width=512, pooling=pooling)
    widths = [(m.in_features, m.out_features) for m in method.head[::2]]
    assert widths == [(28 if pooling == "stages" else 16, 512), (512, 512), (512, 512)]


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_loss_falls_and_twins_align(make_simclr, make_batch, kind):
    method = make_simclr(kind, features=(8, 16))
    batches = [make_batch(method, SMALL * 2, seed) for seed in (0, 1)]
    # Small steps: with the paper's rate two tiny batches are chaos, whose end each processor's rounding decides.
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.03, 0.9)
    losses, alignments = [], []
    for step in range(24):
        output = method(batches[step % 2])
        optimizer.zero_grad()
        output["loss"].backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1)
        optimizer.step()
        losses.append(output["loss"].item())
        alignments.append(output["relative_alignment"].item())
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])
    assert sum(alignments[-2:]) < 0.8 * sum(alignments[:2])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_and_the_figures_by_hand(make_simclr, make_batch, channels, training):
    method = make_simclr(channels=channels, temperature=0.3).train(training)
    batch = make_batch(method, SMALL)
    seen = outputs_of(method)
    output = method(batch)
    features, pooled = seen["features"].detach(), seen["pooled"].detach()
    assert (features.shape, pooled.shape) == ((12, 16), (12, 8))
    z = torch.nn.functional.normalize(features, dim=1)
    similarity = z @ z.T / 0.3
    rows = []
    for i in range(12):
        others = torch.tensor([k for k in range(12) if k != i])
        rows.append(similarity[i, others].logsumexp(0) - similarity[i, (i + 6) % 12])
    torch.testing.assert_close(output["loss"].detach(), torch.stack(rows).mean())
    torch.testing.assert_close(output["alignment"], alignment(features[:6], features[6:]))
    torch.testing.assert_close(output["uniformity"], uniformity(features))
    torch.testing.assert_close(output["spread"], spread(features))
    assert set(output) == {"loss", *method.curves, *(() if training else method.val_curves)}
    if not training:
        torch.testing.assert_close(output["effective_rank"], effective_rank(pooled))
    sums = {name: value.item() for name, value in output.items()}
    assert set(method.summarise(sums)) == set(output) - {"loss"}


def test_padding_around_a_slice_in_its_canvas_means_nothing(make_simclr, make_batch):
    method = make_simclr()
    batch = make_batch(method, SMALL)
    wide = make_batch(method, SMALL, canvas=70)
    assert wide.slices.shape[2:] == (70, 70)
    torch.testing.assert_close(method(batch)["loss"], method(wide)["loss"], rtol=1e-3, atol=0)


def test_the_loss_is_in_float32_when_the_network_is_not(make_simclr, make_batch):
    method = make_simclr()
    batch = make_batch(method, SMALL)
    full = method(batch)["loss"].item()
    seen = outputs_of(method)
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch)["loss"]
    assert half.dtype == seen["features"].dtype == seen["pooled"].dtype == torch.float32
    assert half.item() == pytest.approx(full, rel=0.05)
    expected, _ = contrastive_loss(seen["features"], method.positives(batch), 0.1)
    assert half == expected


# -- views -----------------------------------------------------------------------------------------


def test_drawing_is_reproducible_and_forward_draws_nothing(make_simclr, make_batch):
    method = make_simclr()
    a, b, c = (make_batch(method, SMALL * 4, seed) for seed in (5, 5, 6))
    for name in ("first", "second"):
        for field in fields(Views):
            x, same = (getattr(batch.drawn[name], field.name) for batch in (a, b))
            assert torch.equal(x, same)
        assert not torch.equal(a.drawn[name].matrix, c.drawn[name].matrix)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = method(a)["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    assert method(b)["loss"] == first
    assert method(c)["loss"] != first


def test_two_views_differ_in_all_that_varies(make_simclr):
    drawn = make_simclr(channels=2).draw(np.random.default_rng(0), np.array([[90, 110]] * 50))
    first, second = drawn["first"], drawn["second"]
    for name in ("matrix", "noise_seed", "brightness", "shift", "gamma"):
        assert not (getattr(first, name) == getattr(second, name)).any(), name
        a, b = (getattr(v, name).reshape(50, -1)[:, 0].double() for v in (first, second))
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.5, name
    for views in (first, second):
        assert (views.gain == 1).all() and (views.contrast == 1).all()
        assert not views.solarise.any()


def test_two_views_lie_about_one_centre(make_simclr, monkeypatch):
    still = ViewSettings(rotation=0, scale=(1, 1), translation=0, flip=0)
    monkeypatch.setattr(
        "nnunet_ssp.methods.simclr.draw_views",
        lambda rng, sizes, channels, patch, settings, centre: draw_views(
            rng, sizes, channels, patch, still, centre
        ),
    )
    method = make_simclr(patch=(16, 20))
    drawn = method.draw(np.random.default_rng(0), np.array([[90, 110]] * 50))
    assert torch.equal(drawn["first"].matrix, drawn["second"].matrix)
    assert len(drawn["first"].matrix[:, :, 2].unique(dim=0)) > 40  # slices differ
    # A second frame of another size has the same centre, chosen in the first.
    sizes = np.array([[[26, 40], [36, 60]]] * 300)
    drawn = method.draw(np.random.default_rng(0), sizes)
    assert torch.equal(drawn["first"].matrix, drawn["second"].matrix)
    corner = drawn["second"].matrix[:, :, 2] - torch.tensor([7.5, 9.5])
    assert (corner.amin(0).tolist(), corner.amax(0).tolist()) == ([0, 0], [10, 20])


def test_brightness_as_meant_and_as_it_ran(make_simclr):
    sizes = np.array([[30, 30]] * 400)
    for name, (low, high) in BRIGHTNESS.items():
        drawn = make_simclr(brightness=name).draw(np.random.default_rng(0), sizes)
        for views in drawn.values():
            assert low <= views.brightness.min() < low + 0.05
            assert high - 0.05 < views.brightness.max() <= high


def test_second_frames_make_the_second_views(make_simclr, make_batch):
    method = make_simclr(pairs="frame", head_norm="none")
    one, other = make_batch(method, [(40, 40)] * 6), make_batch(method, [(40, 40)] * 6, seed=1)
    both = replace(
        one,
        slices=torch.stack([one.slices, other.slices], 1),
        sizes=torch.stack([one.sizes] * 2, 1),
    )
    seen = outputs_of(method)
    expected = []
    for batch, rows in ((one, slice(0, 6)), (replace(other, drawn=one.drawn), slice(6, 12))):
        method(batch)
        expected.append(seen["features"][rows])
    method(both)
    torch.testing.assert_close(seen["features"], torch.cat(expected), rtol=1e-4, atol=1e-5)


# -- large batches ---------------------------------------------------------------------------------


def test_a_batch_of_1024_in_chunks_has_the_gradient_of_one_pass(make_simclr):
    method = make_simclr(patch=(16, 16), batch_size=1024)
    sizes = torch.full((1024, 2), 18)
    coarse = torch.randn(1024, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    slices = torch.nn.functional.interpolate(coarse, (18, 18), mode="bilinear")
    drawn = method.draw(np.random.default_rng(0), sizes.numpy())
    batch = Batch(slices, sizes, drawn, torch.zeros(1024, 2, dtype=torch.int64))
    method.chunks = Chunks(None, method.network)
    loss, expected = gradients(method, batch)
    method.chunks = Chunks(64, method.network)
    chunked, found = gradients(method, batch)
    assert chunked == pytest.approx(loss, rel=1e-5)
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("changes", [{}, {"pooling": "max"}, {"head_norm": "none"}])
def test_chunks_change_nothing(make_simclr, make_batch, kind, changes):
    method = make_simclr(kind, channels=2, **changes)
    batch = make_batch(method, SMALL)
    method.chunks = Chunks(None, method.network)
    loss, expected = gradients(method, batch)
    method.chunks = Chunks(5, method.network)  # the last one is smaller
    chunked, found = gradients(method, batch)
    assert chunked == pytest.approx(loss, rel=1e-5)
    assert (found - expected).norm() < 2e-5 * expected.norm()


# -- monitors --------------------------------------------------------------------------------------


def warned(method: SimCLR, output: dict[str, torch.Tensor]) -> list[str]:
    return method.warnings({f"val_{name}": value.item() for name, value in output.items()})


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("features", [(4, 8, 8), (8, 16, 32, 32)])
def test_instance_norm_alone_stalls_and_the_monitors_say_so(
    make_simclr, make_batch, kind, features
):
    # The mean over a map that was just instance-normalised is nearly the same for every image.
    sizes = [(32, 32)] * 24
    method = make_simclr(kind, features=features, head_norm="none", head_width=64).eval()
    output = method(make_batch(method, sizes))
    assert output["spread"] < 0.1
    assert output["loss"].item() == pytest.approx(np.log(47), abs=0.05)
    (warning,) = warned(method, output)
    assert "collapsed" in warning and "head_norm=batch" in warning

    method = make_simclr(kind, features=features, head_norm="batch", head_width=64).eval()
    output = method(make_batch(method, sizes))
    assert output["spread"] > 0.3
    assert not any("collapsed" in warning for warning in warned(method, output))


def test_training_does_not_leave_the_stall_but_does_with_standardised_features(
    make_simclr, make_batch
):
    fallen = {}
    for head_norm in ("none", "batch"):
        method = make_simclr(features=(8, 16), head_norm=head_norm)
        batch = make_batch(method, SMALL * 2)
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1, 0.9)
        losses = []
        for _ in range(20):
            output = method(batch)
            optimizer.zero_grad()
            output["loss"].backward()
            optimizer.step()
            losses.append(output["loss"].item())
        # The lowest: at this rate single steps go up again, which ones differs between processors.
        fallen[head_norm] = losses[0] - min(losses)
    assert abs(fallen["none"]) < 0.1
    assert fallen["batch"] > 1


@pytest.mark.parametrize("part", ["head", "encoder"])
def test_a_collapse_is_seen(make_simclr, make_batch, part):
    method = make_simclr().eval()
    batch = make_batch(method, SMALL)
    assert not any("collapsed" in warning for warning in warned(method, method(batch)))
    with torch.no_grad():
        if part == "head":  # every image has the same embedding
            method.head[-1].weight.zero_()
            method.head[-1].bias.fill_(0.3)
        else:  # every image has the same features
            for parameter in method.network.encoder.stages[-1].parameters():
                parameter.zero_()
    output = method(batch)
    assert output["loss"].item() == pytest.approx(np.log(11), rel=1e-5)
    assert output["spread"].item() == pytest.approx(0, abs=1e-4)
    (warning,) = warned(method, output)
    assert warning.startswith("WARNING: the features have collapsed: spread 0.000")
    assert output["loss"].isfinite()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size=1", "`batch_size` (=1) must be at least 2"),
        ("temperature=0", "`temperature` (=0.0) must be positive"),
        ("temperature=-0.1", "`temperature` (=-0.1) must be positive"),
        ("head_width=0", "`head_width` (=0) must be at least 1"),
        ("head_norm=layer", "head_norm"),
        ("pooling=sum", "pooling"),
        ("pairs=slice", "pairs"),
    ],
)
def test_settings_that_cannot_work_are_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(SimCLRSettings(), text)
