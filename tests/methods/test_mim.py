from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from nnunet_ssp.methods import MIM, MIMSettings
from nnunet_ssp.methods.parts.chunks import Chunks
from nnunet_ssp.methods.parts.views import BRIGHTNESS, ViewSettings
from nnunet_ssp.settings import override
from tests.gradients import corrupted_views, gradients

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = (32, 32)
SMALL = [(20, 40), (32, 24), (48, 48), (28, 28)]  # slices smaller and larger than the patch


@pytest.fixture
def make_mim(make_network):
    def make(kind="plain", patch=PATCH, channels=1, features=(4, 8, 8), **changes):
        network = make_network(kind, channels=channels, outputs=channels, features=features)
        return MIM(network, MIMSettings(**{"batch_size": 4, **changes}), patch, channels)

    return make


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], rel: float) -> None:
    assert a.keys() == b.keys()
    scale = max(g.abs().max().item() for g in a.values())
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=rel, atol=rel * scale, msg=key)


# -- the paper's method ----------------------------------------------------------------------------


def test_the_papers_masks_and_views(make_network):
    method = MIM(make_network(), MIMSettings(), (256, 256), 1)
    assert (method.side, method.grid) == (32, (8, 8))
    assert method.view_settings() == ViewSettings()
    assert (method.transfers, method.reconstructs) == ("encoder+decoder", True)
    drawn = method.draw(np.random.default_rng(0), np.array([[256, 256]] * 3))
    assert drawn["hidden_blocks"].sum((1, 2)).tolist() == [48, 48, 48]
    hidden = method.corrupt(torch.ones(3, 1, 256, 256), drawn)[1]
    assert hidden.sum((1, 2, 3)).tolist() == [49_152] * 3
    run = MIM(make_network(), MIMSettings(brightness="run"), (256, 256), 1)
    assert run.view_settings() == ViewSettings(brightness=BRIGHTNESS["run"])


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("recipe", ["paper", "deep"])
def test_the_loss_falls_on_two_batches(make_mim, make_batch, kind, recipe):
    settings, _ = override(MIMSettings(), f"recipe={recipe} batch_size=4")
    method = make_mim(kind, **{k: getattr(settings, k) for k in ("recipe", "coarse_heads")})
    batches = [make_batch(method, SMALL, seed) for seed in (0, 1)]
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-2)
    losses = []
    for step in range(24):
        loss = method(batches[step % 2])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-2:]) < 0.6 * sum(losses[:2])


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_loss_by_hand(make_mim, make_batch, kind, channels):
    method = make_mim(kind, channels=channels)
    batch = make_batch(method, SMALL)
    output = method(batch)
    panels = method.panels(batch)
    assert {x.shape for x in panels.values()} == {(4, channels, *PATCH)}
    target, masked, prediction = panels["target"], panels["input"], panels["raw output"]
    hidden = method.corrupt(target, batch.drawn)[1]

    assert torch.equal(masked, torch.where(hidden, 0.0, target))
    assert torch.equal(panels["composite"], torch.where(hidden, prediction, target))
    with torch.no_grad():
        assert torch.equal(prediction, method.network(masked))
    # Padding is exactly 0 in the target, and no pixel of an image is.
    counts = (hidden & (target != 0).any(1, keepdim=True)).expand_as(target)
    assert 0 < counts.sum() < hidden.expand_as(target).sum()
    expected = torch.nn.functional.mse_loss(prediction[counts], target[counts])
    torch.testing.assert_close(output["loss"].detach(), expected)
    torch.testing.assert_close(output["error"], expected)
    variance = sum(
        target[i, c][counts[i, c]].var(unbiased=False) * counts[i, c].sum()
        for i in range(4)
        for c in range(channels)
    )
    torch.testing.assert_close(output["variance"], variance / counts.sum())
    sums = {name: value.item() for name, value in output.items()}
    assert method.summarise(sums) == {
        "error_over_variance": pytest.approx((expected / (variance / counts.sum())).item())
    }
    assert set(method.summarise(sums)) == set(method.curves)
    assert not output["error"].requires_grad and not output["variance"].requires_grad


def test_without_variance_the_curve_is_not_a_number(make_mim):
    assert np.isnan(make_mim().summarise({"error": 1.0, "variance": 0.0})["error_over_variance"])


def test_padding_and_visible_pixels_carry_no_loss(make_mim, make_batch, monkeypatch):
    method = make_mim()
    batch = make_batch(method, SMALL)
    loss, gradient = gradients(method, batch)
    target, corrupted, hidden, inside = corrupted_views(method, batch)
    counts = hidden & inside
    assert not counts.all() and (hidden & ~inside).any() and (inside & ~hidden).any()

    changed = torch.where(counts, target, target + 1000)  # the input stays as it was
    monkeypatch.setattr(method, "view", lambda _: (changed, inside))
    monkeypatch.setattr(method, "corrupt", lambda *_: (corrupted, hidden))
    same_loss, same_gradient = gradients(method, batch)
    assert same_loss == loss
    close(gradient, same_gradient, 1e-6)

    changed = torch.where(counts, target + 1000, target)
    assert method(batch)["loss"].item() > 100 * loss


def test_what_lies_outside_a_slice_in_the_canvas_means_nothing(make_mim, make_batch):
    method = make_mim()
    batch = make_batch(method, SMALL)
    wide = make_batch(method, SMALL, canvas=70)
    assert wide.slices.shape[2:] == (70, 70)
    torch.testing.assert_close(method(batch)["loss"], method(wide)["loss"], rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("patch", "mask_patch"), [((36, 44), 16), ((40, 28), "auto"), ((32, 32), 5), ((32, 32), 20)]
)
@pytest.mark.parametrize("fill", [0.0, "shuffle_patches_image", "replace_patches"])
def test_sides_that_are_no_multiple_of_the_block(make_mim, make_batch, patch, mask_patch, fill):
    method = make_mim(patch=patch, mask_patch=mask_patch, fill=fill)
    batch = make_batch(method, SMALL)
    loss, gradient = gradients(method, batch)
    assert 0 < loss < 100
    assert all(g.isfinite().all() for g in gradient.values())
    panels = method.panels(batch)
    hidden = method.corrupt(panels["target"], batch.drawn)[1]
    assert hidden.shape == (4, 1, *patch)
    count = round(0.75 * method.grid[0] * method.grid[1])
    assert (batch.drawn["hidden_blocks"].sum((1, 2)) == count).all()
    same = panels["input"] == panels["target"]
    assert same[~hidden.expand_as(same)].all()


# -- memory and determinism ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("changes", [{}, {"coarse_heads": True, "visible_statistics": True}])
@pytest.mark.parametrize("chunk", [1, 3, 4, 9])
def test_chunks_change_nothing(make_mim, make_batch, kind, changes, chunk):
    method = make_mim(kind, **changes, skip_dropout=0.3)
    batch = make_batch(method, SMALL)
    loss, gradient = gradients(method, batch)
    method.chunks = Chunks(chunk, method.network)
    chunked_loss, chunked_gradient = gradients(method, batch)
    assert chunked_loss == pytest.approx(loss, rel=1e-5)
    close(gradient, chunked_gradient, 1e-5)


def test_drawing_is_reproducible_and_forward_draws_nothing(make_mim, make_batch):
    method = make_mim(fill="gaussian_noise", skip_dropout=0.5)
    a, b, c = (make_batch(method, SMALL, seed) for seed in (5, 5, 6))
    assert torch.equal(a.drawn["hidden_blocks"], b.drawn["hidden_blocks"])
    assert torch.equal(a.drawn["keep_skips"], b.drawn["keep_skips"])
    assert torch.equal(a.drawn["views"].matrix, b.drawn["views"].matrix)
    assert a.drawn["fill_seed"] == b.drawn["fill_seed"] != c.drawn["fill_seed"]
    assert not torch.equal(a.drawn["hidden_blocks"], c.drawn["hidden_blocks"])
    torch.manual_seed(0)
    np.random.seed(0)
    state = torch.get_rng_state()
    first = method(a)["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert method(b)["loss"] == first
    assert method(c)["loss"] != first


def test_masks_and_views_stay_the_same_when_skips_are_dropped(make_mim, make_batch):
    a = make_batch(make_mim(), SMALL).drawn
    b = make_batch(make_mim(skip_dropout=0.9), SMALL).drawn
    assert torch.equal(a["hidden_blocks"], b["hidden_blocks"])
    assert torch.equal(a["views"].matrix, b["views"].matrix)
    assert a["keep_skips"].all() and not b["keep_skips"].all()


def test_rows_of_a_batch(make_mim, make_batch):
    method = make_mim()
    batch = make_batch(method, SMALL)
    part = batch.share(slice(1, 3))
    assert (len(batch), len(part)) == (4, 2)
    assert torch.equal(part.slices, batch.slices[1:3])
    assert torch.equal(part.sizes, batch.sizes[1:3])
    assert torch.equal(part.drawn["hidden_blocks"], batch.drawn["hidden_blocks"][1:3])
    assert len(part.drawn["views"]) == 2
    assert part.drawn["fill_seed"] == batch.drawn["fill_seed"]


# -- parameters and state --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("changes", [{}, {"coarse_heads": True}, {"skip_dropout": 1.0}])
def test_exactly_the_used_parameters_are_trained(make_mim, make_batch, kind, changes):
    method = make_mim(kind, **changes)
    method(make_batch(method, SMALL))["loss"].backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    frozen = {key for key, p in method.named_parameters() if not p.requires_grad}
    unused = {f"network.decoder.seg_layers.0.{name}" for name in ("weight", "bias")}
    assert frozen == (set() if changes.get("coarse_heads") else unused)


def test_heads_go_into_the_extra_state_and_back(make_mim, make_batch):
    method, other = make_mim(), make_mim()
    with torch.no_grad():
        for parameter in method.network.decoder.seg_layers.parameters():
            parameter.normal_()
    batch = make_batch(method, SMALL)
    loss = method(batch)["loss"]
    assert other(batch)["loss"] != loss
    state = copy.deepcopy(method.extra_state())
    assert set(state) == {"heads"}
    other.load_extra_state(state)
    assert other(batch)["loss"] == loss


def test_bfloat16_is_close(make_mim, make_batch):
    method = make_mim()
    batch = make_batch(method, SMALL)
    full = method(batch)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch)["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full, rel=0.02)


# -- what is refused -------------------------------------------------------------------------------


def test_a_block_larger_than_the_patch_is_refused(make_mim):
    message = r"`mask_patch` \(=33\) must not exceed the shorter side of the planned patch \(32, 48"
    with pytest.raises(ValueError, match=message):
        make_mim(patch=(32, 48), mask_patch=33)


def test_a_ratio_that_hides_nothing_or_everything_is_refused(make_mim):
    with pytest.raises(ValueError, match=r"`mask_ratio` \(=0\.01\) must hide at least one"):
        make_mim(mask_ratio=0.01)
    with pytest.raises(ValueError, match=r"must hide at least one and not all of the 1 blocks"):
        make_mim(mask_patch=32)
    # Blocks that are hidden each on its own have no such limit.
    assert make_mim(mask_ratio=0.01, mask_independent=True).grid == (4, 4)


def test_independent_masks_that_hide_nothing_give_no_loss(make_mim, make_batch):
    method = make_mim(mask_ratio=1e-9, mask_independent=True)
    batch = make_batch(method, SMALL)
    assert not batch.drawn["hidden_blocks"].any()
    loss, gradient = gradients(method, batch)
    assert loss == 0
    assert all((g == 0).all() for g in gradient.values())


def test_replacing_patches_in_batches_of_one_is_refused(make_mim, monkeypatch):
    with pytest.raises(
        ValueError, match=r"`batch_size` \(=1\) must be at least 2 for fill=replace"
    ):
        MIMSettings(batch_size=1, fill="replace_patches")
    monkeypatch.setattr("nnunet_ssp.methods.mim.world_size", lambda: 3)
    with pytest.raises(
        ValueError, match=r"`batch_size` \(=5\) must be at least 2 for each of the 3"
    ):
        make_mim(batch_size=5, fill="replace_patches")
    make_mim(batch_size=6, fill="replace_patches")


def test_ranks_fill_in_noise_of_their_own(make_mim, make_batch, monkeypatch):
    method = make_mim(fill="gaussian_noise")
    batch = make_batch(method, SMALL)
    first = method.panels(batch)["input"]
    monkeypatch.setattr("nnunet_ssp.methods.mim.rank", lambda: 1)
    second = method.panels(batch)["input"]
    hidden = batch.drawn["hidden_blocks"].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    assert torch.equal(first[~hidden], second[~hidden])
    assert abs(torch.corrcoef(torch.stack([first[hidden], second[hidden]]))[0, 1]) < 0.1
