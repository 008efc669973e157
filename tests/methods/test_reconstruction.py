from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nnunet_ssp.methods import (
    MIM,
    ContextPrediction,
    ContextRestoration,
    InpaintingSettings,
    MIMSettings,
)
from nnunet_ssp.methods.parts.losses import coarse_weights
from nnunet_ssp.settings import override
from tests.gradients import corrupted_views

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(20, 40), (32, 24), (48, 48)]


@pytest.fixture
def make_mim(make_network):
    def make(kind="plain", patch=(32, 32), channels=1, features=(4, 6, 8, 8), **changes):
        network = make_network(kind, channels=channels, outputs=channels, features=features)
        return MIM(network, MIMSettings(**changes), patch, channels)

    return make


@pytest.fixture
def make_inpainting(make_network):
    def make(method=ContextPrediction, kind="plain", channels=1, **changes):
        network = make_network(kind, channels=channels, outputs=channels)
        return method(network, InpaintingSettings(**changes), (32, 32), channels)

    return make


# -- where the loss is taken -----------------------------------------------------------------------


def naive_figures(method, batch) -> dict[str, float]:
    """Compute all that `forward` returns, pixel by pixel in double precision."""
    target, corrupted, hidden, inside = corrupted_views(method, batch)
    with torch.no_grad():
        prediction = method.network(corrupted)
    b, c, height, width = target.shape
    counted, masked, norms, values = [], [], [], {}
    for i in range(b):
        for k in range(c):
            squares = []  # of the whole slice, whatever the loss is taken on
            for y in range(height):
                for x in range(width):
                    square = (prediction[i, k, y, x].item() - target[i, k, y, x].item()) ** 2
                    if not inside[i, 0, y, x]:
                        continue
                    squares.append(square)
                    if method.settings.loss_region == "image" or hidden[i, 0, y, x]:
                        counted.append(square)
                    if hidden[i, 0, y, x]:
                        masked.append(square)
                        values.setdefault((i, k), []).append(target[i, k, y, x].item())
            norms.append(math.sqrt(math.fsum(squares)))
    deviations = [v - math.fsum(vs) / len(vs) for vs in values.values() for v in vs]
    return {
        "loss": math.fsum(counted) / len(counted),
        "error": math.fsum(masked) / len(masked),
        "variance": math.fsum(d * d for d in deviations) / len(masked),
        "l2_norm": math.fsum(norms) / len(norms),  # all images have the same number of channels
    }


@pytest.mark.parametrize("loss_region", ["image", "corrupted"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("method", [ContextPrediction, ContextRestoration])
def test_loss_and_figures_against_a_naive_loop(
    make_inpainting, make_batch, loss_region, channels, method
):
    made = make_inpainting(method, channels=channels, loss_region=loss_region)
    batch = make_batch(made, SIZES)
    output = made(batch)
    expected = naive_figures(made, batch)
    assert output.keys() == expected.keys()
    for name, value in expected.items():
        assert output[name].item() == pytest.approx(value, rel=1e-5), name
        assert output[name].requires_grad == (name == "loss")
    figures = made.summarise({name: value.item() for name, value in output.items()})
    assert figures == {
        "error_over_variance": pytest.approx(expected["error"] / expected["variance"], rel=1e-5),
        "l2_norm": pytest.approx(expected["l2_norm"], rel=1e-5),
    }
    assert tuple(figures) == made.curves


def test_the_papers_sum_is_rows_times_columns_times_this_mean(make_inpainting, make_batch):
    method = make_inpainting(channels=2)
    batch = make_batch(method, [(32, 32), (40, 36), (32, 48)])  # no padding
    output = method(batch)
    panels = method.panels(batch)
    squares = (panels["raw output"] - panels["target"]).double().square()
    summed = squares.sum((2, 3)).mean(0).mean()  # over pixels; mean over the batch, then channels
    assert output["loss"].item() * 32 * 32 == pytest.approx(summed.item(), rel=1e-5)
    norms = squares.sum((2, 3)).sqrt().mean()
    assert output["l2_norm"].item() == pytest.approx(norms.item(), rel=1e-5)


@pytest.mark.parametrize("loss_region", ["image", "corrupted"])
def test_the_gradient_of_each_output_pixel(make_inpainting, make_batch, monkeypatch, loss_region):
    method = make_inpainting(channels=2, loss_region=loss_region, chunk_size=None)
    batch = make_batch(method, SIZES)
    target, _, hidden, inside = corrupted_views(method, batch)
    output = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    output.requires_grad_()
    monkeypatch.setattr(method, "run", lambda *_: [output])
    method(batch)["loss"].backward()
    counted = inside if loss_region == "image" else inside & hidden
    assert inside.any() and not inside.all() and (hidden & ~inside).any()
    weight = counted.expand_as(target).double()
    expected = 2 * (output.detach().double() - target) * weight / weight.sum()
    torch.testing.assert_close(output.grad.double(), expected, rtol=1e-5, atol=1e-9)


def test_constant_outputs_have_a_closed_form(make_inpainting, make_batch):
    """Compare each decoder stage with area averages of the whole image."""
    method = make_inpainting(coarse_heads=True)
    biases = []
    with torch.no_grad():
        for level, head in enumerate(reversed(method.network.decoder.seg_layers)):
            head.weight.zero_()
            biases.append(0.3 + level)
            head.bias.fill_(biases[-1])
    batch = make_batch(method, [(32, 32), (40, 36)])
    output = method(batch)
    output["loss"].backward()
    target = corrupted_views(method, batch)[0].double()
    finest_first = [area_average(target, 2**level) for level in range(len(biases))]
    weights = coarse_weights(len(biases))
    errors = [(b - t).square().mean() for b, t in zip(biases, finest_first, strict=True)]
    expected = sum(w * e for w, e in zip(weights, errors, strict=True)).item()
    assert output["loss"].item() == pytest.approx(expected, rel=1e-5)
    for level, head in enumerate(reversed(method.network.decoder.seg_layers)):
        slope = 2 * weights[level] * (biases[level] - finest_first[level]).mean().item()
        assert head.bias.grad.item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_half_precision_outputs_are_compared_in_full(make_inpainting, make_batch, monkeypatch):
    """The sum over an image overflows float16."""
    method = make_inpainting(chunk_size=None)
    batch = make_batch(method, [(32, 32)])
    target = corrupted_views(method, batch)[0]
    output = (target + 100).half().requires_grad_()
    monkeypatch.setattr(method, "run", lambda *_: [output])
    found = method(batch)
    assert found["loss"].dtype == found["l2_norm"].dtype == torch.float32
    assert found["loss"].item() == pytest.approx(100**2, rel=1e-3)
    assert found["l2_norm"].item() == pytest.approx(100 * 32, rel=1e-3)
    assert found["error"].item() == pytest.approx(100**2, rel=1e-3)


# -- coarse heads ----------------------------------------------------------------------------------


def area_average(image: torch.Tensor, factor: int) -> torch.Tensor:
    b, c, rows, columns = image.shape
    result = image.new_zeros(b, c, rows // factor, columns // factor)
    for y in range(rows // factor):
        for x in range(columns // factor):
            tile = image[..., y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            result[..., y, x] = tile.mean((2, 3))
    return result


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_deep_recipe_by_hand(make_mim, make_batch, kind):
    settings, _ = override(MIMSettings(), "recipe=deep")
    method = make_mim(kind, coarse_heads=settings.coarse_heads)
    batch = make_batch(method, SIZES)
    output = method(batch)
    target, corrupted, hidden, inside = corrupted_views(method, batch)
    weight = (hidden & inside).float()
    with torch.no_grad():
        predictions = method.network(corrupted)
    assert [p.shape[2] for p in predictions] == [32, 16, 8]  # one per decoder stage, finest first
    errors = []
    for level, prediction in enumerate(predictions):
        share = area_average(weight, 2**level)
        squares = (prediction - area_average(target, 2**level)).square() * share
        errors.append((squares.sum() / share.sum()).item())
    weights = [2.0**-level for level in range(3)]
    expected = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    assert output["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert output["error"].item() == pytest.approx(errors[0], rel=1e-5)
    with torch.no_grad():
        assert torch.equal(method.panels(batch)["raw output"], predictions[0])


def test_without_coarse_heads_the_network_gives_one_output(make_mim):
    for coarse in (False, True):
        method = make_mim(coarse_heads=coarse)
        output = method.network(torch.zeros(1, 1, 32, 32))
        assert isinstance(output, list) == coarse


# -- skip dropout ----------------------------------------------------------------------------------


def run_with_changed_skips(method, batch):
    """Outputs of two passes whose skips, but not their bottleneck, differ."""
    _, corrupted, hidden, _ = corrupted_views(method, batch)
    encoder = method.network.encoder
    keep = batch.drawn["keep_skips"]
    before = method.run(corrupted, hidden, keep)[0]
    handle = encoder.register_forward_hook(
        lambda _, __, skips: [*(s + torch.randn_like(s) for s in skips[:-1]), skips[-1]]
    )
    after = method.run(corrupted, hidden, keep)[0]
    handle.remove()
    return before, after


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_with_all_skips_dropped_the_bottleneck_decides(make_mim, make_batch, kind):
    method = make_mim(kind, skip_dropout=1.0)
    batch = make_batch(method, SIZES)
    assert torch.equal(*run_with_changed_skips(method, batch))
    method.eval()  # pictures are drawn with the skips
    assert not torch.equal(*run_with_changed_skips(method, batch))
    method = make_mim(kind)
    assert not torch.equal(*run_with_changed_skips(method, make_batch(method, SIZES)))


def test_skips_are_dropped_per_image_and_level(make_mim, make_batch):
    method = make_mim(skip_dropout=0.5, chunk_size=None)
    batch = make_batch(method, SIZES)
    batch.drawn["keep_skips"] = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 0, 1]], dtype=torch.bool)
    seen = []
    method.network.decoder.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    method(batch)
    dropped = [[(skip[i] == 0).all().item() for skip in seen] for i in range(3)]
    # finest skip first, the bottleneck last and always kept
    assert dropped == [[True, False, False, False], [False] * 4, [False, True, False, False]]


def test_share_of_dropped_skips(make_mim, make_batch):
    keep = make_batch(make_mim(skip_dropout=0.3), [(32, 32)] * 500).drawn["keep_skips"]
    assert keep.shape == (500, 3)
    assert keep.float().mean().item() == pytest.approx(0.7, abs=0.05)


# -- visible statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_every_norm_of_the_encoder_and_none_of_the_decoder(make_mim, make_batch, kind):
    method = make_mim(kind, visible_statistics=True)
    _, corrupted, hidden, _ = corrupted_views(method, make_batch(method, SIZES))
    encoder, decoder = method.network.encoder, method.network.decoder
    inner = {m for m in encoder.modules() if isinstance(m, nn.InstanceNorm2d)}
    outer = {m for m in decoder.modules() if isinstance(m, nn.InstanceNorm2d)} - inner
    seen = {}
    for layer in inner | outer:
        layer.register_forward_hook(lambda m, i, o: seen.__setitem__(m, (i[0], o)))
    method.run(corrupted, hidden, None)
    assert len(inner) > 3 and len(outer) == 3
    for layer, (x, result) in seen.items():
        stock = nn.functional.instance_norm(x, weight=layer.weight, bias=layer.bias, eps=layer.eps)
        assert torch.allclose(stock, result, atol=1e-5) == (layer in outer)
    # The layer after the first convolution, by hand.
    first = next(m for m in encoder.modules() if isinstance(m, nn.InstanceNorm2d))
    x, result = seen[first]
    for i in range(len(x)):
        values = x[i, 0][~hidden[i, 0]]
        expected = (x[i, 0] - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
        expected = expected * first.weight[0] + first.bias[0]
        torch.testing.assert_close(result[i, 0], expected, rtol=1e-4, atol=1e-4)


def test_the_network_itself_is_left_as_it_was(make_mim, make_network, make_batch):
    method = make_mim(visible_statistics=True)
    method(make_batch(method, SIZES))
    plain = make_network(features=(4, 6, 8, 8))
    plain.load_state_dict(method.network.state_dict())
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.network(x), plain(x))
    assert list(method.network.state_dict()) == list(plain.state_dict())


def test_gradients_pass_through_visible_statistics(make_mim, make_batch):
    method = make_mim(visible_statistics=True)
    method(make_batch(method, SIZES))["loss"].backward()
    first = method.network.encoder.stages[0][0].convs[0]
    for parameter in (first.conv.weight, first.norm.weight, first.norm.bias):
        assert math.isfinite(parameter.grad.norm()) and parameter.grad.norm() > 0


def test_another_normalisation_is_refused(make_network):
    network = make_network(norm=nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r"`visible_statistics` \(=yes\) must have InstanceNorm"):
        MIM(network, MIMSettings(visible_statistics=True), (32, 32), 1)


def test_chunks_of_plans_with_batchnorm_are_refused(make_network):
    network = make_network(norm=torch.nn.BatchNorm2d)
    with pytest.raises(
        ValueError, match=r"`chunk_size` \(=2\) must be none or auto: these plans use BatchNorm"
    ):
        MIM(network, MIMSettings(chunk_size=2), (32, 32), 1)
