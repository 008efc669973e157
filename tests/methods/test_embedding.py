from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ssp.bench.counting import LiveBytes
from nnunet_ssp.methods import Batch
from nnunet_ssp.methods.embedding import Embedding, EmbeddingSettings
from nnunet_ssp.methods.parts.chunks import Chunks
from nnunet_ssp.methods.parts.features import alignment, effective_rank, spread, uniformity
from nnunet_ssp.methods.parts.views import ViewSettings, apply_views, draw_views
from tests.gradients import gradients, inputs_of, relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (16, 24)
SMALL = [(20, 40), (12, 9), (30, 30), (16, 24), (15, 33)]  # smaller and larger than the patch


@dataclass(frozen=True)
class PlainSettings(EmbeddingSettings):
    batch_size: int = 5
    chunk_size: int | Literal["auto"] | None = None
    initial_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-2


class PlainEmbedding(Embedding):
    """The least that a method of this family is: views, a head, and a loss of features."""

    settings_class = PlainSettings

    def __init__(self, network: nn.Module, settings: Any, patch_size: Any, channels: int) -> None:
        super().__init__(network, settings, patch_size, channels)
        self.head = nn.Linear(self.width, 3)

    def draw(self, rng: np.random.Generator, sizes: Any) -> dict[str, Any]:
        frames = sizes if sizes.ndim == 3 else np.stack([sizes, sizes], 1)
        return {
            name: draw_views(rng, frames[:, i], self.channels, self.patch_size, ViewSettings())
            for i, name in enumerate(("first", "second"))
        }

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        views = (batch.drawn["first"], batch.drawn["second"])
        pooled = self.embed(self.network.encoder, batch, views).flatten(0, 1)
        z = self.head(self.head_norm(pooled))
        return {"loss": (z @ z.T).logsumexp(1).mean(), "largest": z.detach().max()}


@pytest.fixture
def make_method(make_network):
    def make(kind="plain", patch=PATCH, channels=1, features=(4, 8, 8), **changes):
        network = make_network(kind, channels=channels, outputs=3, features=features)
        torch.manual_seed(1)
        return PlainEmbedding(network, PlainSettings(**changes), patch, channels)

    return make


def paired(method: Embedding, sizes, seed: int = 0) -> Batch:
    """A batch in which every slice has a second frame, of another size."""
    rng = np.random.default_rng(seed)
    table = np.stack([np.array(sizes), np.array(sizes[::-1])], 1)
    slices = torch.zeros(len(table), 2, method.channels, *table.max((0, 1)))
    for (i, frame), _ in np.ndenumerate(table[..., 0]):
        rows, columns = table[i, frame]
        values = rng.normal(size=(method.channels, rows, columns)).cumsum(1).cumsum(2)
        slices[i, frame, :, :rows, :columns] = torch.from_numpy(values / values.std())
    positions = torch.zeros(len(table), 2, dtype=torch.int64)
    return Batch(slices, torch.from_numpy(table), method.draw(rng, table), positions)


# -- what is trained -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_encoder_is_trained_and_the_decoder_that_holds_it_is_not(make_method, make_batch, kind):
    method = make_method(kind)
    assert method.transfers == "encoder"
    network = method.network
    assert network.decoder.encoder is network.encoder
    encoder = {id(p) for p in network.encoder.parameters()}
    head = {id(p) for p in method.head.parameters()}
    for name, parameter in method.named_parameters(remove_duplicate=False):
        assert parameter.requires_grad == (id(parameter) in encoder | head), name

    before = {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.SGD(
        [p for p in method.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-2
    )
    method(make_batch(method, SMALL))["loss"].backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    optimizer.step()
    for name, tensor in network.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        trained = name.startswith(("encoder.", "decoder.encoder."))
        # Biases that begin at 0 and precede a norm have neither decay nor, but for rounding, a gradient.
        assert moved == trained or (trained and (before[name] == 0).all()), name


# -- pooling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("pooling", ["average", "max", "stages"])
def test_pooling_by_hand(make_method, make_batch, kind, pooling):
    method = make_method(kind, pooling=pooling, features=(2, 4, 6, 8))
    batch = make_batch(method, SMALL)
    stages = method.network.encoder.stages
    maps: list[list[torch.Tensor]] = [[] for _ in stages]
    for stage, seen in zip(stages, maps, strict=True):
        stage.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output))
    views = (batch.drawn["first"], batch.drawn["second"])
    with torch.no_grad():
        found = method.embed(method.network.encoder, batch, views)
    whole = [torch.cat(seen) for seen in maps]
    assert [m.shape[1] for m in whole] == [2, 4, 6, 8]
    expected = {
        "average": whole[3].sum((2, 3)) / whole[3][0, 0].numel(),
        "max": whole[3].flatten(2).max(2).values,
        "stages": torch.cat([m.flatten(2).sum(2) / m[0, 0].numel() for m in whole[1:]], 1),
    }[pooling]
    assert method.width == expected.shape[1] == {"stages": 18}.get(pooling, 8)
    assert (found.dtype, found.shape) == (torch.float32, (2, 5, method.width))
    torch.testing.assert_close(found.flatten(0, 1), expected)


def test_pooling_is_in_float32_when_the_network_is_not(make_method):
    method = make_method()
    maps = [torch.full((1, 1, 64, 64), 30.0, dtype=torch.float16)]  # the sum leaves its range
    pooled = method.pool(maps)
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[30.0]]


def test_a_shallow_network_pools_all_its_stages(make_method, make_batch):
    method = make_method(features=(4, 8), pooling="stages")
    assert method.width == 12
    assert method(make_batch(method, SMALL))["loss"].isfinite()


@pytest.mark.parametrize("head_norm", ["batch", "none"])
def test_head_norm(make_method, make_batch, head_norm):
    method = make_method(head_norm=head_norm).eval()
    seen = []
    method.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method(make_batch(method, SMALL))
    standardised = seen[0].mean(0).abs().max() < 1e-3
    assert standardised == (head_norm == "batch")


# -- views -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_views_chunk_by_chunk_are_the_views_in_one_piece(make_method, make_batch, size):
    method = make_method(channels=2)
    batch = make_batch(method, SMALL)
    method.chunks = Chunks(size, method.network)
    seen = inputs_of(method.network.encoder)
    method(batch)["loss"].backward()
    pieces = -(-10 // size)
    assert len(seen) == (2 * pieces if pieces > 1 else 1)  # once more for the gradient
    expected = torch.cat(
        [
            apply_views(batch.slices, batch.sizes, batch.drawn[name], PATCH)[0]
            for name in ("first", "second")
        ]
    )
    torch.testing.assert_close(torch.cat(seen[:pieces]), expected, atol=1e-4, rtol=1e-4)
    for again in seen[pieces:]:
        assert any(torch.equal(again, once) for once in seen[:pieces])


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("pooling", ["average", "max", "stages"])
def test_chunks_change_nothing(make_method, make_batch, kind, pooling):
    method = make_method(kind, channels=2, pooling=pooling)
    batch = make_batch(method, SMALL)
    loss, expected = gradients(method, batch)
    for size in (1, 3, 9):
        method.chunks = Chunks(size, method.network)
        chunked, found = gradients(method, batch)
        assert chunked == pytest.approx(loss, rel=1e-5)
        assert relative_error(found, expected) < 1e-5


def test_the_second_view_is_made_from_the_second_frame(make_method):
    method = make_method(pairs="frame", channels=2)
    assert method.second_frames
    assert not make_method().second_frames
    batch = paired(method, SMALL)
    assert batch.slices.ndim == 5
    method.chunks = Chunks(4, method.network)
    seen = inputs_of(method.network.encoder)
    with torch.no_grad():
        method(batch)
    for i, (name, views) in enumerate(
        zip(("first", "second"), torch.cat(seen).chunk(2), strict=True)
    ):
        own, other = (
            apply_views(batch.slices[:, f], batch.sizes[:, f], batch.drawn[name], PATCH)[0]
            for f in (i, 1 - i)
        )
        torch.testing.assert_close(views, own, atol=1e-4, rtol=1e-4)
        assert (views - other).abs().amax((1, 2, 3))[[0, 1, 3, 4]].min() > 0.01


def test_a_second_frame_that_is_the_first_changes_nothing(make_method, make_batch):
    method = make_method()
    batch = make_batch(method, SMALL)
    rng = np.random.default_rng(4)
    single = method.draw(np.random.default_rng(4), batch.sizes.numpy())
    twice = torch.stack([batch.sizes] * 2, 1)
    double = method.draw(rng, twice.numpy())
    expected = method(replace(batch, drawn=single))["loss"]
    slices = torch.stack([batch.slices] * 2, 1)
    assert method(replace(batch, slices=slices, sizes=twice, drawn=double))["loss"] == expected


def test_many_views_of_another_size_alternate_between_frames(make_method):
    method = make_method(pairs="frame")
    batch = paired(method, SMALL)
    patch = (8, 12)
    rng = np.random.default_rng(7)
    frames = (0, 1, 0, 1)
    sizes = batch.sizes.numpy()
    views = [draw_views(rng, sizes[:, f], 1, patch, ViewSettings()) for f in frames]
    seen = inputs_of(method.network.encoder)
    with torch.no_grad():
        pooled = method.embed(method.network.encoder, batch, views, patch)
    assert pooled.shape == (4, 5, 8)
    images = torch.cat(seen).reshape(4, 5, 1, *patch)
    for v, f in enumerate(frames):
        expected, _ = apply_views(batch.slices[:, f], batch.sizes[:, f], views[v], patch)
        torch.testing.assert_close(images[v], expected, atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            features = method.pool(method.network.encoder(expected))
        torch.testing.assert_close(pooled[v], features, atol=1e-4, rtol=1e-4)


def test_views_are_made_in_float32_when_the_network_runs_in_bfloat16(make_method, make_batch):
    method = make_method()
    batch = make_batch(method, SMALL)
    seen = inputs_of(method.network.encoder)
    full = method(batch)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch)["loss"]
    assert torch.equal(seen[0], seen[1])
    assert half.item() == pytest.approx(full, rel=0.05)
    assert half.item() != full


def test_the_peak_of_memory_does_not_grow_with_the_batch(make_method):
    patch = (24, 24)
    method = make_method(patch=patch, features=(8, 8))

    def peak(n: int) -> int:
        sizes = torch.full((n, 2), 26)
        slices = torch.randn(n, 1, 26, 26, generator=torch.Generator().manual_seed(0))
        drawn = method.draw(np.random.default_rng(0), sizes.numpy())
        batch = Batch(slices, sizes, drawn, torch.zeros(n, 2, dtype=torch.int64))
        method.chunks = Chunks(64, method.network)
        # Without the loss, whose similarities are the square of the batch.
        with LiveBytes() as live:
            views = (drawn["first"], drawn["second"])
            method.embed(method.network.encoder, batch, views).square().sum().backward()
        return live.peak

    peak(2)  # gradients exist from here on
    small, large = peak(64), peak(1024)
    assert small > 64 * 8 * 24 * 24 * 4  # one map of one chunk, at least
    assert large < 1.2 * small


def test_a_share_of_a_batch_with_second_frames(make_method):
    method = make_method(pairs="frame")
    batch = paired(method, SMALL)
    part = batch.share(slice(1, 4))
    assert (len(part), part.total) == (3, 5)
    assert torch.equal(part.slices, batch.slices[1:4])
    assert torch.equal(part.sizes, batch.sizes[1:4])
    assert torch.equal(part.positions, batch.positions[1:4])
    assert torch.equal(part.drawn["second"].matrix, batch.drawn["second"].matrix[1:4])


# -- what is shown and kept ------------------------------------------------------------------------


def test_panels_show_both_views(make_method, make_batch):
    method = make_method(channels=2)
    single = make_batch(method, SMALL)
    double = paired(method, SMALL)
    for batch, frames in ((single, None), (double, (0, 1))):
        panels = method.panels(batch)
        assert list(panels) == ["first view", "second view"]
        for i, name in enumerate(("first", "second")):
            slices = batch.slices if frames is None else batch.slices[:, i]
            sizes = batch.sizes if frames is None else batch.sizes[:, i]
            expected, _ = apply_views(slices, sizes, batch.drawn[name], PATCH)
            assert torch.equal(panels[f"{name} view"], expected)
            assert expected.shape == (5, 2, *PATCH)


def test_summarise_hands_on_all_but_the_loss(make_method):
    assert make_method().summarise({"loss": 3.0, "spread": 0.5}) == {"spread": 0.5}


def test_warnings_come_from_the_validations_figures(make_method):
    method = make_method()
    healthy = {
        "train_spread": 0.0,
        "val_spread": 0.5,
        "val_effective_rank": 20.0,
        "val_relative_alignment": 0.5,
    }
    assert method.warnings(healthy) == []
    for collapsed in ({"val_spread": 0.05}, {"val_effective_rank": 1.2}):
        (warning,) = method.warnings({**healthy, **collapsed})
        assert warning.startswith("WARNING: the features have collapsed")
    assert set(method.references) <= {*method.curves, *method.val_curves}


def test_metrics(make_method):
    method = make_method()
    g = torch.Generator().manual_seed(0)
    features, pooled = torch.randn(10, 4, generator=g), torch.randn(6, 8, generator=g)
    found = method.metrics(features.requires_grad_(), pooled)
    assert set(found) == set(method.curves)  # the rank costs too much for every step
    assert not any(value.requires_grad for value in found.values())
    torch.testing.assert_close(found["alignment"], alignment(features[:5], features[5:]).detach())
    torch.testing.assert_close(found["uniformity"], uniformity(features).detach())
    torch.testing.assert_close(found["spread"], spread(features).detach())
    found = method.eval().metrics(features, pooled)
    assert set(found) == {*method.curves, *method.val_curves}
    torch.testing.assert_close(found["effective_rank"], effective_rank(pooled))


def test_only_the_head_goes_into_the_extra_state_and_back(make_method, make_batch):
    method, other = make_method(), make_method()
    with torch.no_grad():
        method.head.weight.normal_()
    batch = make_batch(method, SMALL)
    loss = method(batch)["loss"]
    assert other(batch)["loss"] != loss
    state = method.extra_state()
    assert set(state) == {"head.weight", "head.bias"}
    weights = {k: v.clone() for k, v in other.network.state_dict().items()}
    other.load_extra_state(state)
    assert other(batch)["loss"] == loss
    assert all(torch.equal(v, weights[k]) for k, v in other.network.state_dict().items())


def test_an_extra_state_of_another_method_is_refused(make_method):
    method = make_method()
    state = method.extra_state()
    for wrong in (
        {},
        {"head.weight": state["head.weight"]},
        {**state, "teacher.weight": torch.zeros(3)},
    ):
        with pytest.raises(ValueError, match=r"state does not fit the method: (head|teacher)"):
            method.load_extra_state(wrong)


def test_an_extra_state_of_other_settings_is_refused(make_method):
    with pytest.raises(ValueError, match="state does not fit the method"):
        make_method().load_extra_state(make_method(pooling="stages").extra_state())


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 0])
def test_a_batch_of_one_is_refused(size):
    with pytest.raises(ValueError, match=rf"`batch_size` \(={size}\) must be at least"):
        PlainSettings(batch_size=size)
    assert Embedding.smallest_batch == 2


def test_chunks_with_batchnorm_are_refused(make_network):
    network = make_network(norm=nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r"`chunk_size` \(=4\) must be none or auto: .* BatchNorm"):
        PlainEmbedding(network, PlainSettings(chunk_size=4), PATCH, 1)
    assert PlainEmbedding(network, PlainSettings(), PATCH, 1).chunks.size is None


@pytest.mark.parametrize("name", ["SimCLR", "DINO"])
def test_pictures_are_made_in_float32_whatever_the_networks_precision(
    make_network, make_batch, name
):
    import nnunet_ssp.methods as methods

    chosen = getattr(methods, name)
    method = chosen(make_network(), chosen.settings_class(), (32, 32), 1)
    batch = make_batch(method, [(40, 40)] * 6)
    expected = method.panels(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = method.panels(batch)
    for title, images in expected.items():
        assert torch.equal(found[title], images), title
