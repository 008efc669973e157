from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ssp.methods import Batch, Dense, DenseSettings
from nnunet_ssp.methods.dense import draw_points
from nnunet_ssp.methods.parts.chunks import Chunks
from nnunet_ssp.methods.parts.maps import at_points
from nnunet_ssp.methods.parts.views import ViewSettings, apply_views, draw_views
from tests.gradients import gradients, relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (32, 32)
SIZES = np.array([(48, 40), (36, 60), (24, 30), (64, 64)])


@pytest.fixture
def make_dense(make_network):
    def make(kind="plain", features=(4, 8, 8, 8), channels=1, **changes):
        network = make_network(kind, channels=channels, outputs=channels, features=features)
        given = {"batch_size": 4, "points": 10, "head_width": 8, **changes}
        return Dense(network, DenseSettings(**given), PATCH, channels)

    return make


def smooth(rng: np.random.Generator, height: int, width: int) -> torch.Tensor:
    values = rng.normal(size=(1, height, width)).cumsum(1).cumsum(2)
    return torch.from_numpy((values - values.mean()) / values.std()).float()


def frames(method: Dense, seed: int = 0, moves: bool = True) -> Batch:
    """A batch of slices with a second frame each, the same one where nothing moves."""
    rng = np.random.default_rng(seed)
    pairs = np.stack([SIZES, SIZES], 1)
    slices = torch.zeros(len(SIZES), 2, method.channels, 64, 64)
    for number, (height, width) in enumerate(SIZES):
        first, second = (smooth(rng, height, width) for _ in range(2))
        slices[number, 0, :, :height, :width] = first
        slices[number, 1, :, :height, :width] = second if moves else first
    positions = torch.tensor([[3, 10]] * len(SIZES))
    return Batch(slices, torch.from_numpy(pairs), method.draw(rng, pairs), positions)


# -- points ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(20, 70), width=st.integers(20, 70))
def test_a_point_shows_the_same_pixel_in_both_views(seed, height, width):
    """The slice holds its own coordinates, so that a view tells where each of its pixels comes from."""
    rng = np.random.default_rng(seed)
    sizes = np.array([(height, width)])
    geometry = ViewSettings()
    views = tuple(draw_views(rng, sizes, 1, PATCH, geometry).geometry() for _ in range(2))
    shares, places, found = draw_points(rng, views, sizes, PATCH, 12)
    if not found[0]:
        return
    extent = torch.tensor([height, width])
    assert (places >= 0).all()
    assert (places <= extent - 1).all()
    assert (shares.abs() <= 1).all()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for axis, coordinate in enumerate((rows, columns)):
        slices = coordinate[None, None].float()
        for number, view in enumerate(views):
            image, inside = apply_views(slices, torch.from_numpy(sizes), view, PATCH)
            known = at_points(inside.float(), shares[:, number])[0, :, 0] > 0.999
            # Bicubic sampling bends at the slice's border; elsewhere a ramp is off by some 0.06 pixels.
            within = ((places[0] > 2) & (places[0] < extent - 3)).all(1)
            edge = (shares[0, number].abs() < 1 - 1 / 32).all(1)
            chosen = known & within & edge
            seen = at_points(image, shares[:, number])[0, chosen, 0]
            torch.testing.assert_close(seen, places[0, chosen, axis], rtol=0, atol=0.1)


def test_views_without_a_common_point_do_not_count(make_dense):
    views = draw_views(np.random.default_rng(0), SIZES, 1, PATCH, ViewSettings())
    away = draw_views(np.random.default_rng(0), SIZES, 1, PATCH, ViewSettings())
    away.matrix[0, :, 2] += 1000
    _, _, found = draw_points(np.random.default_rng(0), (views, away), SIZES, PATCH, 5)
    assert found.tolist() == [False, True, True, True]
    method = make_dense(movement=0.0)
    drawn = method.draw(np.random.default_rng(0), SIZES)
    slices = torch.randn(4, 1, 64, 64)
    batch = Batch(slices, torch.from_numpy(SIZES), drawn, torch.zeros(4, 2, dtype=torch.int64))
    drawn["found"][0] = False
    expected = method(_rows(batch, [1, 2, 3]))
    assert method(batch)["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)


def _rows(batch: Batch, rows: list[int]) -> Batch:
    def pick(entry: Any) -> Any:
        views = hasattr(entry, "matrix")
        return type(entry)(*(v[rows] for v in vars(entry).values())) if views else entry[rows]

    drawn = {name: pick(entry) for name, entry in batch.drawn.items()}
    return Batch(batch.slices[rows], batch.sizes[rows], drawn, batch.positions[rows])


def test_draws_do_not_depend_on_the_share_that_is_found(make_dense):
    method = make_dense()
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    method.draw(rng, SIZES)
    method.draw(other, np.full_like(SIZES, 8))  # hardly a point of these lies in both views
    assert rng.random() == other.random()


# -- tasks -----------------------------------------------------------------------------------------


def test_the_target_is_the_difference_of_two_frames_seen_through_the_view(make_dense):
    method = make_dense()
    batch = frames(method)
    images, movement, known = method.view(batch, slice(0, 4))
    difference = (batch.slices[:, 0] - batch.slices[:, 1]).abs()
    for half, name in zip(range(2), ("first", "second"), strict=True):
        views = batch.drawn[name]
        expected, inside = apply_views(difference, batch.sizes[:, 0], views.geometry(), PATCH)
        image, _ = apply_views(batch.slices[:, 0], batch.sizes[:, 0], views, PATCH)
        assert torch.equal(movement.chunk(2)[half], expected)
        assert torch.equal(known.chunk(2)[half], inside)
        assert torch.equal(images.chunk(2)[half], image)


def test_frames_of_different_sizes_are_left_out_of_the_movement(make_dense):
    method = make_dense()
    batch = frames(method)
    batch.sizes[2, 1, 0] -= 1
    known = method.view(batch, slice(0, 4))[2].flatten(1).any(1)
    assert known.tolist() == [True, True, False, True] * 2
    batch.slices[1, 1] = batch.slices[1, 0]  # a frame that has no other
    known = method.view(batch, slice(0, 4))[2].flatten(1).any(1)
    assert known.tolist() == [True, False, False, True] * 2


def test_nothing_moves_is_a_finite_loss(make_dense):
    method = make_dense()
    found = method(frames(method, moves=False))
    assert all(torch.isfinite(value) for value in found.values())
    assert found["variance"] == 0


def test_the_loss_is_the_weighted_sum_of_both_tasks(make_dense):
    method = make_dense(contrast=0.5, movement=3.0)
    batch = frames(method)
    images, movement, known = method.view(batch, slice(0, 4))
    network: Any = method.network
    network.decoder.deep_supervision = True
    outputs = network(images)
    mean = torch.stack([m[k].mean() for m, k in zip(movement, known, strict=True)])
    spread = torch.cat([(m[k] - c).square() for m, k, c in zip(movement, known, mean, strict=True)])
    errors = []
    for output in outputs:
        weight = torch.nn.functional.adaptive_avg_pool2d(known.float(), output.shape[2:])
        target = torch.nn.functional.adaptive_avg_pool2d(movement, output.shape[2:])
        errors.append(((output - target).square() * weight).sum() / weight.sum())
    shares = [2 ** (2 - i) / 7 for i in range(3)]
    share = sum(w * e for w, e in zip(shares, errors, strict=True)) / spread.mean()
    found = method(batch)
    torch.testing.assert_close(found["loss"], 0.5 * found["contrast"] + 3 * share)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_loss_falls_on_two_batches(make_dense, kind, weights):
    contrast, movement = weights
    method = make_dense(kind, contrast=contrast, movement=movement)
    batches = [frames(method, seed) for seed in (0, 1)]
    optimizer = torch.optim.AdamW(method.parameter_groups()[0]["params"], 5e-3)
    losses = []
    for step in range(60):
        loss = method(batches[step % 2])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_every_trained_weight_gets_a_gradient(make_dense, weights):
    """Parameters without one would stop training on several GPUs."""
    method = make_dense(contrast=weights[0], movement=weights[1])
    _, found = gradients(method, frames(method))
    assert all(gradient is not None for gradient in found.values())
    untouched = {k for k, p in method.named_parameters() if not p.requires_grad}
    finest = tuple(
        f"network.decoder.{part}." for part in ("stages.2", "transpconvs.2", "seg_layers")
    )
    expected = (() if weights[0] else ("heads.",)) + (() if weights[1] else finest)
    assert untouched == {k for k, _ in method.named_parameters() if k.startswith(expected)}


def test_chunks_change_nothing(make_dense):
    whole, parts = make_dense(), make_dense()
    parts.chunks = Chunks(3, parts.network)
    batch = frames(whole)
    loss, expected = gradients(whole, batch)
    other, found = gradients(parts, batch)
    assert other == pytest.approx(loss, rel=1e-5)
    assert relative_error(found, expected) < 1e-4


def test_the_state_holds_heads_and_output_layers(make_dense):
    method, other = make_dense(), make_dense()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1)
    other.load_extra_state(method.extra_state())
    ours, theirs = method.state_dict(), other.state_dict()
    kept = [k for k in ours if not k.startswith("network.") or "decoder.seg_layers." in k]
    assert any("heads." in k for k in kept)
    assert any("seg_layers" in k for k in kept)
    assert all(torch.equal(ours[k], theirs[k]) for k in kept)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"contrast": 0.0, "movement": 0.0}, r"`contrast \+ movement` \(=0\.0\) must be positive"),
        ({"movement": -1.0}, r"`movement` \(=-1\.0\) must not be negative"),
        ({"points": 1}, r"`points` \(=1\) must be at least 2"),
        ({"temperature": 0.0}, r"`temperature` \(=0\.0\) must be positive"),
        ({"levels": 3}, r"`levels` \(=3\) must be below the number of decoder stages \(=3\)"),
    ],
)
def test_unusable_settings_are_refused(make_dense, changes, rule):
    with pytest.raises(ValueError, match=rule):
        make_dense(**changes)


def test_one_frame_is_enough_without_movement(make_dense, make_batch):
    method = make_dense(movement=0.0)
    assert not method.second_frames
    assert make_dense().second_frames
    found = method.summarise(
        {k: v.item() for k, v in method(make_batch(method, [(40, 40)] * 3)).items()}
    )
    assert np.isnan(found["error_over_variance"])
    assert 0 <= found["points_found"] <= 1
