from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from nnunet_ssp.methods import ContextPrediction, ContextRestoration, InpaintingSettings
from nnunet_ssp.methods.inpainting import BANK, view_settings
from nnunet_ssp.methods.parts.chunks import Chunks
from nnunet_ssp.methods.parts.squares import cover
from nnunet_ssp.methods.parts.views import ViewSettings
from nnunet_ssp.settings import override
from nnunet_ssp.training.recorded_settings import differences, from_checkpoint
from tests.gradients import corrupted_views, gradients, relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = {"prediction": ContextPrediction, "restoration": ContextRestoration}
PATCH = (32, 32)
SMALL = [(20, 40), (32, 24), (48, 48), (28, 28)]  # slices smaller and larger than the patch
# Every way to draw.
DRAWN = [
    {"sampling": sampling, "masks": masks}
    for sampling in ("poisson", "uniform")
    for masks in ("bank", "fresh")
]
# What serves every reconstructing method.
SHARED = {"coarse_heads": True, "skip_dropout": 0.3, "visible_statistics": True}

both = pytest.mark.parametrize("task", METHODS)
every_drawing = pytest.mark.parametrize("drawn", DRAWN, ids=lambda d: " ".join(d.values()))


@pytest.fixture
def make_method(make_network):
    def make(task, kind="plain", patch=PATCH, channels=1, features=(4, 8, 8), **changes):
        network = make_network(kind, channels=channels, outputs=channels, features=features)
        return METHODS[task](network, InpaintingSettings(**changes), patch, channels)

    return make


def drawn_squares(method, n=1, seed=0):
    """Draw the corruption of n images."""
    return method.draw(np.random.default_rng(seed), np.array([method.patch_size] * n))


def layouts(method, n=1, seed=0):
    """Return where n images are corrupted: (n, X, Y)."""
    return drawn_squares(method, n, seed)["hidden"].numpy()


# -- the paper's method ----------------------------------------------------------------------------


def test_the_papers_settings():
    s = InpaintingSettings()
    assert (s.num_epochs, s.batch_size, s.initial_lr, s.optimizer) == (500, 9, 1e-3, "adam")
    assert (s.beta1, s.beta2, s.weight_decay, s.precision) == (0.99, 0.995, 0, "fp32")
    assert (s.lr_schedule, s.early_stopping) == ("staircase", 4)
    assert s.early_stopping_delta * 512**2 == 50  # of the sum over their images
    assert (s.area, s.sampling, s.masks, s.loss_region) == (0.25, "poisson", "bank", "image")
    assert not (s.augment or s.coarse_heads or s.skip_dropout or s.visible_statistics)


@both
def test_what_a_trainer_needs_to_know(make_method, task):
    method = make_method(task)
    assert (method.transfers, method.reconstructs) == ("encoder+decoder", True)
    assert method.checkpoint == "checkpoint_best.pth"
    assert method.curves == ("error_over_variance", "l2_norm")


@both
@pytest.mark.parametrize(("side", "number"), [("auto", 16), (8, 256), (16, 64), (32, 16), (64, 4)])
def test_the_papers_squares(make_method, task, side, number):
    method = make_method(task, patch=(256, 256), mask_patch=side)
    assert method.layouts.number == number
    assert {len(layout) for layout in method.layouts.bank} == {number}
    assert (layouts(method, 5).mean((1, 2)) == 0.25).all()
    uniform = make_method(task, patch=(256, 256), mask_patch=side, sampling="uniform")
    shares = layouts(uniform, 5).mean((1, 2))
    # One square, or pair, more than needed at most.
    assert (shares >= 0.25).all()
    assert (shares < 0.25 + 2 * uniform.side**2 / 256**2).all()


@both
def test_squares_cover_at_least_the_area_as_the_paper_says(make_method, task):
    """7.5 squares of 8 px are a quarter of 40 x 48; pairs need an even number."""
    least, most = (
        make_method(task, patch=(40, 48), mask_patch=8, area_rule=rule)
        for rule in ("least", "most")
    )
    assert (least.layouts.number, most.layouts.number) == (8, 7 if task == "prediction" else 6)
    assert (layouts(least, 5).mean((1, 2)) >= 0.25).all()
    assert (layouts(most, 5).mean((1, 2)) < 0.25).all()
    turned = (
        "the patch of 40 x 48 px is not square: layouts are rotated by half turns alone, in the paper by quarter "
        "turns, too."
    )
    assert least.layouts.notes == [
        "8 squares of 8 px cover 26.7% of the patch of 40 x 48 px: area=0.25, area_rule=least.",
        turned,
    ]
    uniform = make_method(task, patch=(40, 48), mask_patch=8, sampling="uniform", masks="fresh")
    assert uniform.layouts.notes == []


def test_a_run_that_is_older_than_the_rule_goes_on_with_that_of_their_code():
    before = {k: v for k, v in asdict(InpaintingSettings()).items() if k != "area_rule"}
    settings = from_checkpoint(InpaintingSettings(), "", before, ())
    assert settings.area_rule == "most"
    assert differences(before, settings) == []
    assert differences(before, InpaintingSettings()) == ["area_rule: most -> least"]


def test_the_rate_falls_every_two_epochs(make_method):
    method = make_method("prediction", initial_lr=2.0)
    rates = [method.learning_rate(step, 3) for step in range(21)]
    assert rates == pytest.approx(np.repeat([2, 1.8, 1.8, 1.62, 1.62, 1.458, 1.458], 3))
    cosine = make_method("prediction", initial_lr=2.0, lr_schedule="cosine", num_epochs=4)
    expected = [1 + np.cos(np.pi * epoch / 4) for epoch in range(4)]
    assert [cosine.learning_rate(3 * epoch, 3) for epoch in range(4)] == pytest.approx(expected)


def test_the_deep_recipe():
    s, _ = override(InpaintingSettings(), "recipe=deep")
    assert (s.optimizer, s.initial_lr, s.weight_decay, s.coarse_heads) == (
        "adamw",
        1e-3,
        0.01,
        True,
    )
    assert (s.num_epochs, s.lr_schedule, s.early_stopping) == (100, "cosine", None)
    assert (s.beta1, s.beta2) == (0.9, 0.999)
    assert (s.area, s.sampling, s.loss_region) == (0.25, "poisson", "image")  # the task stays


def test_plain_gradient_descent_by_setting():
    s, _ = override(InpaintingSettings(), "optimizer=sgd momentum=0.99 initial_lr=0.01")
    assert (s.optimizer, s.momentum, s.lr_schedule) == ("sgd", 0.99, "staircase")
    assert s.unused == ("beta1", "beta2")


# -- the corruption --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@every_drawing
def test_prediction_sets_squares_to_zero_in_all_channels(make_method, make_batch, channels, drawn):
    method = make_method("prediction", channels=channels, **drawn)
    batch = make_batch(method, SMALL)
    panels = method.panels(batch)
    target, corrupted, hidden, _ = corrupted_views(method, batch)
    assert (hidden.shape, hidden.dtype) == ((4, 1, *PATCH), torch.bool)
    where = hidden.expand_as(target)
    assert (corrupted[where] == 0).all() and not (target[where] == 0).all()
    assert torch.equal(corrupted[~where], target[~where])
    assert {x.shape for x in panels.values()} == {(4, channels, *PATCH)}
    assert torch.equal(panels["target"], target)
    assert torch.equal(panels["input"], corrupted)
    assert torch.equal(panels["composite"], torch.where(hidden, panels["raw output"], target))


@pytest.mark.parametrize("patch", [PATCH, (40, 24)])
@every_drawing
def test_restoration_keeps_all_values_and_moves_squares(make_method, drawn, patch):
    channels = 2
    method = make_method("restoration", patch=patch, channels=channels, mask_patch=4, **drawn)
    n, pixels = 3, patch[0] * patch[1]
    numbers = torch.arange(1.0, n * pixels + 1).reshape(n, 1, *patch)
    images = torch.cat([numbers, -numbers], 1)
    corrupted, hidden = method.corrupt(images, drawn_squares(method, n))
    assert torch.equal(corrupted[:, 1], -corrupted[:, 0]), "pixels move with all their channels"
    assert torch.equal(corrupted.flatten(2).sort(2)[0], images.flatten(2).sort(2)[0])
    moved = (corrupted != images)[:, :1]
    assert not (moved & ~hidden).any()
    if drawn["sampling"] == "poisson":
        assert torch.equal(moved, hidden), "every square has changed its place"
    else:  # squares of several pairs may come back
        assert (moved & hidden).sum() > 0.9 * hidden.sum()


@pytest.mark.parametrize("masks", ["bank", "fresh"])
def test_restoration_exchanges_two_by_two(make_method, masks):
    method = make_method("restoration", mask_patch=4, masks=masks)
    image = torch.arange(32.0 * 32).reshape(1, 1, *PATCH)
    for seed in range(5):
        drawn = drawn_squares(method, 1, seed)
        corrupted, hidden = method.corrupt(image, drawn)
        shift = (corrupted - image)[hidden]
        # Each square moves as a whole, and its partner by the same way back.
        assert len(shift.unique()) <= method.layouts.number
        assert torch.equal(shift.sort()[0], (-shift).sort()[0])
        back, _ = method.corrupt(corrupted, drawn)
        assert torch.equal(back, image)


@both
@pytest.mark.parametrize("sampling", ["poisson", "uniform"])
@pytest.mark.parametrize(("patch", "turns"), [(PATCH, range(4)), ((32, 48), (0, 2))])
def test_a_bank_is_used_in_all_rotations(make_method, task, sampling, patch, turns):
    method = make_method(task, patch=patch, sampling=sampling)
    assert len(method.layouts.bank) == BANK == 100
    masks = [cover(layout, method.side, patch) for layout in method.layouts.bank]
    expected = {np.rot90(mask, k).tobytes() for mask in masks for k in turns}
    assert len(expected) == 100 * len(turns)
    found = {mask.tobytes() for mask in layouts(method, 4000)}
    assert found <= expected
    assert len(found) > 0.99 * len(expected)


def test_the_bank_belongs_to_the_seed(make_method):
    def same(a, b):
        return all(
            np.array_equal(x, y) for x, y in zip(a.layouts.bank, b.layouts.bank, strict=True)
        )

    assert same(make_method("prediction"), make_method("prediction"))
    assert not same(make_method("prediction"), make_method("prediction", seed=1))


@both
@pytest.mark.parametrize("sampling", ["poisson", "uniform"])
def test_fresh_layouts_never_repeat(make_method, task, sampling):
    method = make_method(task, sampling=sampling, masks="fresh", mask_patch=4)
    assert len({mask.tobytes() for mask in layouts(method, 500)}) == 500


def test_poisson_disc_squares_are_paired_afresh(make_method):
    """All pairings of the 4 squares of one layout, equally often."""
    method = make_method("restoration", patch=(32, 48), mask_patch=8, area=0.15)
    assert method.layouts.number == 4
    method.layouts.bank = method.layouts.bank[:1] * BANK
    drawn = drawn_squares(method, 600)
    one, other = np.unique(drawn["hidden"].numpy(), axis=0, return_counts=True)
    assert len(one) == 2 and (other > 240).all()  # two rotations of this patch
    _, counts = np.unique(drawn["source"].numpy(), axis=0, return_counts=True)
    assert len(counts) == 2 * 3 and (counts > 70).all()


def test_uniform_pairs_stay_pairs(make_method):
    method = make_method("restoration", patch=(32, 48), sampling="uniform")
    method.layouts.bank = method.layouts.bank[:1] * BANK
    sources = drawn_squares(method, 50)["source"]
    assert len(sources.unique(dim=0)) == 2


@both
@every_drawing
def test_drawing_is_reproducible_and_forward_draws_nothing(make_method, make_batch, task, drawn):
    method = make_method(task, **drawn)
    a, b, c = (make_batch(method, SMALL, seed) for seed in (5, 5, 6))
    assert a.drawn.keys() == c.drawn.keys()
    for name in a.drawn.keys() - {"views"}:
        assert torch.equal(a.drawn[name], b.drawn[name])
    assert not torch.equal(a.drawn["hidden"], c.drawn["hidden"])
    state = torch.get_rng_state()
    first = method(a)["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    assert method(b)["loss"] == first != method(c)["loss"]


@both
def test_rows_of_a_batch(make_method, make_batch, task):
    method = make_method(task)
    batch = make_batch(method, SMALL)
    corrupted = corrupted_views(method, batch)[1]
    part = batch.share(slice(1, 3))
    assert torch.equal(corrupted_views(method, part)[1], corrupted[1:3])


def test_the_views_are_the_slices_themselves(make_method, make_batch):
    method = make_method("prediction")
    batch = make_batch(method, [(32, 32), (48, 40), (20, 32)])
    target, _, _, inside = corrupted_views(method, batch)
    torch.testing.assert_close(target[0], batch.slices[0, :, :32, :32], rtol=0, atol=1e-4)
    crops = batch.slices[1].unfold(1, 32, 1).unfold(2, 32, 1)  # every box that nnU-Net may draw
    distance = (crops - target[1][:, None, None]).abs().amax((3, 4))
    assert distance.min() < 1e-4
    torch.testing.assert_close(
        target[2, :, 6:26], batch.slices[2, :, :20, :32], rtol=0, atol=1e-4
    )  # padded on both sides, as nnU-Net does
    assert inside[2].sum() == 20 * 32 and inside[:2].all()

    augmented = make_method("prediction", augment=True)
    assert view_settings(augmented.settings) == ViewSettings()
    target = corrupted_views(augmented, make_batch(augmented, [(32, 32)]))[0]
    assert (target[0] - batch.slices[0, :, :32, :32]).abs().max() > 0.1


# -- learning --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_loss_falls_on_two_batches(make_method, make_batch, task, kind):
    method = make_method(task, kind)
    batches = [make_batch(method, SMALL, seed) for seed in (0, 1)]
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 1e-2)
    outputs = []
    for step in range(24):
        output = method(batches[step % 2])
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        outputs.append({k: v.item() for k, v in output.items()})
    for name in ("loss", "l2_norm", "error"):
        assert sum(o[name] for o in outputs[-2:]) < 0.8 * sum(o[name] for o in outputs[:2]), name


@both
@pytest.mark.parametrize("loss_region", ["image", "corrupted"])
@pytest.mark.parametrize(
    ("patch", "mask_patch", "drawn"),
    [((36, 44), 8, DRAWN[0]), ((40, 28), "auto", DRAWN[2]), (PATCH, 5, DRAWN[1])],
)
def test_any_patch_and_any_square(
    make_method, make_batch, task, loss_region, patch, mask_patch, drawn
):
    changes = {**SHARED, **drawn, "loss_region": loss_region}
    method = make_method(task, patch=patch, channels=2, mask_patch=mask_patch, **changes)
    loss, gradient = gradients(method, make_batch(method, SMALL))
    assert 0 < loss < 100
    assert all(g.isfinite().all() for g in gradient.values())


@both
@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("changes", [{}, SHARED], ids=["paper", "shared"])
@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_chunks_change_nothing(make_method, make_batch, task, kind, changes, chunk):
    method = make_method(task, kind, chunk_size=None, **changes)
    batch = make_batch(method, SMALL)
    whole = method(batch)
    loss, gradient = gradients(method, batch)
    method.chunks = Chunks(chunk, method.network)
    for name, value in method(batch).items():
        assert value.item() == pytest.approx(whole[name].item(), rel=1e-5), name
    chunked_loss, chunked_gradient = gradients(method, batch)
    assert chunked_loss == pytest.approx(loss, rel=1e-5)
    assert relative_error(chunked_gradient, gradient) < 1e-5


def test_visible_statistics_leave_out_the_squares(make_method, make_batch):
    method = make_method("restoration", visible_statistics=True, chunk_size=None)
    batch = make_batch(method, [PATCH] * 3)
    first = method.network.encoder.stages[0][0].convs[0].norm
    seen = {}
    first.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], y=output))
    method(batch)
    visible = ~batch.drawn["hidden"][0]
    values = seen["y"][0, 0][visible]
    assert values.mean().item() == pytest.approx(0, abs=1e-5)
    assert values.std().item() == pytest.approx(1, abs=1e-2)
    assert abs(seen["y"][0, 0].std().item() - 1) > 1e-3


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"area": 0.0}, r"`area` \(=0\.0\) must lie in \(0, 1\)"),
        ({"area": 1.0}, r"`area` \(=1\.0\) must lie in \(0, 1\)"),
        ({"mask_patch": 0}, r"`mask_patch` \(=0\) must be auto or at least 1"),
        ({"warmup_epochs": 5}, r"`warmup_epochs` \(=5\) must be 0 for lr_schedule=staircase"),
        ({"warmup_epochs": "auto"}, r"`warmup_epochs` \(=auto\) must be 0 for"),
        ({"skip_dropout": 2.0}, r"`skip_dropout` \(=2\.0\) must lie in \[0, 1\]"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        InpaintingSettings(**changes)
    InpaintingSettings(warmup_epochs=5, lr_schedule="cosine")


@pytest.mark.parametrize("drawn", DRAWN)
def test_squares_that_do_not_fit_are_refused_before_anything_runs(make_method, drawn):
    message = r"`mask_patch` \(=33\) must not exceed the shorter side of the planned patch \(32, 48"
    with pytest.raises(ValueError, match=message):
        make_method("prediction", patch=(32, 48), mask_patch=33, **drawn)
    with pytest.raises(ValueError, match=r"must leave place for two squares in 32 x 32 px"):
        make_method("restoration", mask_patch=17, **drawn)
    most = {**drawn, "area_rule": "most"}
    message = r"`area` \(=0\.25\) must hold 1 square of 17 px .*at least 0\.283"
    with pytest.raises(ValueError, match=message):
        make_method("prediction", mask_patch=17, **most)
    # Half of 0.25 does for one square of 16 px, but not for two.
    make_method("prediction", mask_patch=16, **most)
    message = r"`area` \(=0\.25\) must hold 2 squares of 16 px .*at least 0\.500"
    with pytest.raises(ValueError, match=message):
        make_method("restoration", mask_patch=16, **most)


@both
@pytest.mark.parametrize("rule", ["least", "most"])
@pytest.mark.parametrize("masks", ["bank", "fresh"])
def test_an_area_that_poisson_disc_squares_cannot_cover(make_method, task, masks, rule):
    """The refusal says what is possible, and that is: neither the start nor the run ends there."""
    changes = {"patch": (64, 64), "masks": masks, "mask_patch": 8, "area_rule": rule}
    number = 38 if rule == "most" else 39 if task == "prediction" else 40
    message = rf"`area` must not ask for {number} squares of 8 px"
    with pytest.raises(ValueError, match=message) as refused:
        make_method(task, area=0.6, **changes)
    largest = float(str(refused.value).split("Largest area here: ")[1].rstrip("."))
    assert largest > 0.25
    layouts(make_method(task, area=largest, **changes), 500)
    # Squares that may overlap have no such limit.
    shares = layouts(make_method(task, area=0.9, sampling="uniform", **changes), 5).mean((1, 2))
    assert (shares >= 0.9).all()


def test_a_run_with_fresh_layouts_does_not_end_by_bad_luck(make_method):
    method = make_method("prediction", patch=(48, 48), mask_patch=8, masks="fresh")
    method.layouts.number = (
        13  # two of three attempts fill up earlier, and one of 80 times ten of them do
    )
    assert (layouts(method, 1000).sum((1, 2)) == 13 * 8**2).all()
