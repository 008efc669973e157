"""Each rule of `adapters` by a closed form: what the adapted network computes, not how its tensors look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from nnunet_ssp.network import in_encoder, is_alias, is_output_layer
from nnunet_ssp.training.adapters import (
    ADAPTERS,
    FIRST,
    Adaptation,
    Channels,
    adapt,
    fit_channels,
    fit_kernel,
    flatten_slices,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MakeNetwork = Callable[..., Any]


def planned(kernel: int | list[Any] = 3, dimensions: int = 2, seed: int = 0) -> Any:
    """A plain planned network with kernels of a size, also in 3D."""
    torch.manual_seed(seed)
    three = dimensions == 3
    stride = [1, 2, 2] if three else 2
    network = PlainConvUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=[4, 8, 8],
        conv_op=nn.Conv3d if three else nn.Conv2d,
        kernel_sizes=kernel,
        strides=[1, stride, stride],
        n_conv_per_stage=2,
        num_classes=2,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d if three else nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=False,
    )
    network.apply(network.initialize)
    return network


def filled(
    network: Any,
    source: Any,
    channels: Channels = Channels(),  # noqa: B008  # frozen
    **changes: Any,
) -> Adaptation:
    """Fill a network from another; the output layers too, so that their outputs compare."""
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    made = adapt(source.state_dict(), shapes, changes.pop("fresh", set()), channels, **changes)
    own, theirs = network.state_dict(), source.state_dict()
    with torch.no_grad():
        for key, tensor in made.tensors.items():
            own[key].copy_(tensor)
        for key in own:
            if is_output_layer(key) and not is_alias(key):
                own[key].copy_(theirs[key].reshape(own[key].shape))
    return made


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def fates(made: Adaptation) -> Mapping[str, str]:
    return {fate.key: fate.kind for fate in made.fates}


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_grey_image_gives_what_it_gave_as_a_triple(make_network: MakeNetwork, kind: str):
    rgb, grey = make_network(kind, channels=3), make_network(kind, channels=1, seed=1)
    made = filled(grey, rgb)
    picture = image(2, 1, 16, 16)
    torch.testing.assert_close(grey(picture), rgb(picture.repeat(1, 3, 1, 1)))
    (fate,) = (f for f in made.fates if f.kind == "adapted")
    assert fate.how == "3 input channels summed" and made.share == 1


@pytest.mark.parametrize(("theirs", "ours"), [(1, 3), (2, 4), (3, 6)])
def test_channels_taken_in_turn_keep_the_activation(make_network: MakeNetwork, theirs, ours):
    few, many = make_network(channels=theirs), make_network(channels=ours, seed=1)
    filled(many, few)
    picture = image(2, theirs, 16, 16)
    torch.testing.assert_close(
        many(picture.repeat(1, ours // theirs, 1, 1)), few(picture), rtol=1e-4, atol=1e-5
    )


def test_the_expected_activation_stays_for_any_number_of_channels():
    """Of channels that are alike: the mean over their order is what it was."""
    weight = image(8, 3, 3, 3)
    means = []
    for turn in range(3):
        fitted = fit_channels(weight.roll(turn, 1), (8, 4, 3, 3), FIRST, Channels())
        assert fitted is not None
        means.append(fitted[0].sum(1))
    torch.testing.assert_close(torch.stack(means).mean(0), weight.sum(1))


def test_channels_by_name(make_network: MakeNetwork):
    """The channels that both have are found in any order; a new one changes nothing at first."""
    three, four = make_network(channels=3), make_network(channels=4, seed=1)
    channels = Channels(("T1", "T2", "FLAIR"), ("T2", "PD", "FLAIR", "T1"))
    made = filled(four, three, channels)
    t1, t2, flair, new = image(2, 4, 16, 16).split(1, 1)
    expected = three(torch.cat([t1, t2, flair], 1))
    torch.testing.assert_close(four(torch.cat([t2, new, flair, t1], 1)), expected)
    how = next(f.how for f in made.fates if f.kind == "adapted")
    assert how == "channels by name: T2, FLAIR, T1; PD begin at 0"
    # The same names in the same order, and names that nobody shares, are no reason to change anything.
    same = fates(filled(make_network(channels=3), three, channels=Channels("abc", "abc")))
    assert {kind for key, kind in same.items() if not is_output_layer(key)} == {"moved"}
    one = filled(make_network(channels=1), three, Channels(("R", "G", "B"), ("cineMRI",)))
    assert next(f.how for f in one.fates if f.kind == "adapted") == "3 input channels summed"


@pytest.mark.parametrize("names", [("MRI", "MRI", "T2"), ("T1", "T2", "MRI")])
def test_channels_with_repeated_names_are_taken_in_turn(make_network: MakeNetwork, names):
    three, six = make_network(channels=3), make_network(channels=6, seed=1)
    made = filled(six, three, Channels(names, ("MRI",) * 6))
    how = next(f.how for f in made.fates if f.kind == "adapted")
    assert how == "3 input channels taken in turn for 6, times 3/6"


def test_a_larger_kernel_computes_the_same():
    small, large = planned(3), planned(5, seed=1)
    made = filled(large, small)
    picture = image(2, 1, 24, 24)
    torch.testing.assert_close(large(picture), small(picture), rtol=1e-4, atol=1e-5)
    words = {f.how for f in made.fates if f.kind == "adapted"}
    assert words == {"kernel 3x3 padded with 0 to 5x5"}


def test_a_kernel_that_is_0_around_its_centre_may_be_cropped():
    small, large = planned(3), planned(5, seed=1)
    filled(large, small)
    again = planned(3, seed=2)
    made = filled(again, large)
    picture = image(2, 1, 24, 24)
    torch.testing.assert_close(again(picture), small(picture))
    assert "kernel 5x5 cropped to 3x3" in {f.how for f in made.fates}


def test_kernels_without_a_common_centre_are_not_fitted():
    assert (
        fit_kernel(image(2, 2, 4, 4), (2, 2, 3, 3), ("encoder", 1, 0, "conv.weight"), Channels())
        is None
    )
    assert fit_kernel(image(2, 2, 4, 4), (2, 2, 2, 2), ("up", 0, "weight"), Channels()) is None


def test_a_3d_network_that_looks_at_single_slices_is_a_2d_network():
    volume, flat = planned([[1, 3, 3]] * 3, dimensions=3), planned(3, seed=1)
    made = filled(flat, volume)
    picture = image(2, 1, 16, 16)
    torch.testing.assert_close(flat(picture), volume(picture[:, :, None])[:, :, 0])
    assert made.share == 1 and made.left_out == []


def test_summed_kernels_see_a_volume_of_equal_slices():
    volume, transposed = image(4, 2, 3, 3, 3), image(4, 2, 2, 2, 2)
    picture = image(1, 2, 8, 8)
    summed = flatten_slices(volume, (4, 2, 3, 3), ("encoder", 1, 0, "conv.weight"), Channels())
    assert summed is not None
    equal = picture[:, :, None].expand(1, 2, 5, 8, 8)
    expected = nn.functional.conv3d(equal, volume, padding=1)[:, :, 2]
    found = nn.functional.conv2d(picture, summed[0], padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    averaged = flatten_slices(transposed, (4, 2, 2, 2), ("up", 0, "weight"), Channels())
    assert averaged is not None
    wide = image(1, 4, 8, 8)
    equal = wide[:, :, None].expand(1, 4, 5, 8, 8)
    expected = nn.functional.conv_transpose3d(equal, transposed, stride=2).mean(2)
    found = nn.functional.conv_transpose2d(wide, averaged[0], stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("deeper", [True, False])
def test_stages_are_matched_from_the_full_resolution(make_network: MakeNetwork, kind, deeper):
    few, many = (make_network(kind, features=f) for f in ([4, 8, 8], [4, 8, 8, 8, 8]))
    ours, theirs = (many, few) if deeper else (few, many)
    shapes = {key: tuple(tensor.shape) for key, tensor in ours.state_dict().items()}
    made = adapt(theirs.state_dict(), shapes, set(), Channels())
    there = theirs.state_dict()
    levels = len(few.decoder.stages)
    for key in ("encoder.stages.2", "encoder.stages.0"):
        for name in (k for k in made.tensors if k.startswith(key)):
            assert torch.equal(made.tensors[name], there[name])
    # Decoders count from the bottleneck: the last stage is at the full resolution in both.
    for level in range(1, levels + 1):
        ours_key = f"decoder.stages.{len(ours.decoder.stages) - level}.convs.0.conv.weight"
        theirs_key = f"decoder.stages.{len(theirs.decoder.stages) - level}.convs.0.conv.weight"
        assert torch.equal(made.tensors[ours_key], there[theirs_key])
    assert bool(made.left_out) != deeper
    assert (made.share < 1) == deeper


def test_a_residual_encoder_shares_its_convolutions_with_a_plain_one(make_network: MakeNetwork):
    """There and back again nothing of a plain encoder is lost."""
    plain, residual = make_network("plain"), make_network("residual", seed=1)
    there = filled(residual, plain)
    how = {fate.key: fate.how for fate in there.fates}
    assert how["encoder.stem.convs.0.conv.weight"] == "from encoder.stages.0.0.convs.0.conv.weight"
    assert (
        how["encoder.stages.1.blocks.0.conv2.norm.bias"]
        == "from encoder.stages.1.0.convs.1.norm.bias"
    )
    assert how["encoder.stages.1.blocks.0.skip.1.conv.weight"] == "the file has none"
    back = make_network("plain", seed=2)
    filled(back, residual)
    own, before = back.state_dict(), plain.state_dict()
    for key in own:
        if in_encoder(key) or key.startswith("decoder.stages"):
            assert torch.equal(own[key], before[key]), key
    assert fates(there)["decoder.stages.0.convs.0.conv.weight"] == "moved"


def test_the_report_names_every_tensor(make_network: MakeNetwork):
    ours, theirs = make_network(features=[4, 8, 16]), make_network(features=[4, 8, 8, 8])
    theirs_fresh = {k for k in theirs.state_dict() if k.startswith("decoder.stages.2")}
    shapes = {key: tuple(tensor.shape) for key, tensor in ours.state_dict().items()}
    made = adapt(theirs.state_dict(), shapes, theirs_fresh, Channels(), encoder_only=False)
    assert sorted(f.key for f in made.fates) == sorted(k for k in shapes if not is_alias(k))
    how = {fate.key: fate.how for fate in made.fates}
    assert how["encoder.stages.2.0.convs.0.conv.weight"] == "8x8x3x3 in the file"
    assert how["decoder.stages.1.convs.0.conv.weight"] == "not trained in the file"
    assert how["encoder.stages.0.0.convs.0.conv.weight"] == ""
    assert {how[key] for key in how if is_output_layer(key)} == {"output layer"}
    table = made.table()
    assert "decoder.seg_layers.1.bias  1  fresh: output layer" in table
    assert "encoder.stages.0.0.convs.0.conv.weight  4x1x3x3  moved" in table
    assert "encoder.stages.2.0.convs.0.conv.weight  16x8x3x3  fresh: 8x8x3x3 in the file" in table
    assert "encoder.stages.3.0.convs.0.conv.weight  left out of the file" in table
    assert len(table) == len(made.fates) + len(made.left_out)
    encoder = {
        k: t.numel() for k, t in ours.encoder.state_dict().items() if ".all_modules." not in k
    }
    kept = sum(n for k, n in encoder.items() if k.startswith(("stages.0", "stages.1")))
    assert made.share == pytest.approx(kept / sum(encoder.values()))
    numbers = [list(fates(made).values()).count(kind) for kind in ("moved", "adapted", "fresh")]
    assert made.summary.startswith("{} moved, {} adapted, {} fresh; ".format(*numbers))


def test_the_encoder_alone(make_network: MakeNetwork):
    ours, theirs = make_network(), make_network(seed=1)
    made = filled(ours, theirs, encoder_only=True)
    assert {in_encoder(key) for key in made.tensors} == {True} and made.share == 1
    assert fates(made)["decoder.transpconvs.0.weight"] == "fresh"


def test_tensors_of_another_network_are_at_no_place():
    shapes = {"encoder.stages.0.0.convs.0.conv.weight": (4, 1, 3, 3)}
    made = adapt({"layer1.0.conv1.weight": image(4, 1, 3, 3)}, shapes, set(), Channels())
    assert made.tensors == {} and made.share == 0
    assert made.left_out == ["layer1.0.conv1.weight"]


def test_every_rule_is_in_the_table():
    assert [rule.__name__ for rule in ADAPTERS] == [
        "flatten_slices",
        "fit_kernel",
        "name_channels",
        "fit_channels",
    ]
