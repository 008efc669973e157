from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunet_ssp.files.saving import save
from nnunet_ssp.network import in_encoder, is_alias, is_output_layer
from nnunet_ssp.training.transfer import (
    Pretrained,
    compare,
    fresh_keys,
    keep_own_fresh,
    moved,
    pretrained_weights,
    read,
    to_builtin,
    to_cpu,
)

KINDS = ["plain", "residual"]


def keep(network, reports) -> None:
    """Keep what is fresh, and note what moved."""

    def choose(fresh: set[str]) -> set[str]:
        reports.append(moved(network.state_dict(), fresh))
        return fresh

    keep_own_fresh(network, choose)


def is_aliased_alike(weights, state) -> bool:
    """Whether tensors share storage in the file exactly where they do in the network."""
    body = [key for key in state if not is_output_layer(key)]
    first: dict[int, str] = {}
    names = {key: first.setdefault(state[key].data_ptr(), key) for key in body}
    return all(weights[key].data_ptr() == weights[names[key]].data_ptr() for key in body) and len(
        {weights[key].data_ptr() for key in body}
    ) == len(first)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfers", ["encoder", "encoder+decoder"])
def test_trained_tensors_are_float32_and_fresh_ones_float16(make_network, kind, transfers):
    network = make_network(kind)
    state = network.state_dict()
    weights = pretrained_weights(network, transfers, num_classes=4)
    assert list(weights) == list(state)
    assert is_aliased_alike(weights, state)
    for key, tensor in weights.items():
        trained = not is_output_layer(key) and (transfers == "encoder+decoder" or in_encoder(key))
        assert tensor.dtype == (torch.float32 if trained else torch.float16), key
        if trained:
            assert torch.equal(tensor, state[key])
        elif not is_output_layer(key):
            assert torch.equal(tensor, state[key].half())
    expected = {key for key in weights if not is_output_layer(key) and not in_encoder(key)}
    assert fresh_keys(weights) == (expected if transfers == "encoder" else set())


def test_counters_share_the_fate_of_their_statistics(make_network):
    weights = pretrained_weights(make_network(norm=nn.BatchNorm2d), "encoder", num_classes=4)
    counters = {key for key in weights if key.endswith("num_batches_tracked")}
    assert {key for key in counters if in_encoder(key)} == counters - fresh_keys(weights) != set()


def test_the_networks_own_tensors_stay_as_they_are(make_network):
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    pretrained_weights(network, "encoder", num_classes=4)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key]) and tensor.dtype == torch.float32


def test_output_layers_are_fresh_for_the_labels(make_network, kind):
    network = make_network(kind, outputs=1, features=(16, 32, 64))
    weights = pretrained_weights(network, "encoder+decoder", num_classes=40)
    for i, features in enumerate((32, 16)):
        weight = weights[f"decoder.seg_layers.{i}.weight"].float()
        assert weight.shape == (40, features, 1, 1)
        assert (weights[f"decoder.seg_layers.{i}.bias"] == torch.zeros(40)).all()
        gain = 2 / (1 + 0.01**2)  # He et al. for nnU-Net's leaky ReLU
        assert weight.var().item() == pytest.approx(gain / features, rel=0.2)


def test_writing_does_not_disturb_the_runs_random_numbers(make_network):
    network = make_network()
    before = torch.get_rng_state()
    pretrained_weights(network, "encoder", num_classes=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_file_holds_each_tensor_once_and_only_what_weights_only_reads(
    make_network, kind, tmp_path
):
    network = make_network(kind, features=(16, 32, 64))
    file = tmp_path / "new" / "checkpoint_final.pth"
    weights = pretrained_weights(network, "encoder+decoder", num_classes=4)
    ssp = to_builtin({"counts": {"slices": np.int64(3)}, "lr": np.float32(0.5), "file": file})
    save(file, {"network_weights": weights, "ssp": ssp})
    assert [f.name for f in file.parent.iterdir()] == ["checkpoint_final.pth"]
    one_copy = sum(p.numel() * 4 for p in network.parameters())
    assert one_copy < file.stat().st_size < 1.25 * one_copy
    content = torch.load(file, weights_only=True)
    assert is_aliased_alike(content["network_weights"], network.state_dict())
    assert content["ssp"] == {"counts": {"slices": 3}, "lr": 0.5, "file": str(file)}


def test_a_failed_save_leaves_the_old_file(tmp_path):
    file = tmp_path / "checkpoint.pth"
    save(file, {"network_weights": {}})
    with pytest.raises(AttributeError, match="pickle"):
        save(file, {"network_weights": lambda: None})
    assert torch.load(file) == {"network_weights": {}}
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pth"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(2.5), 2.5),
        (Path("a/b"), "a/b"),
        (torch.device("cuda", 1), "cuda:1"),
        ((1, (np.int32(2), "x")), [1, [2, "x"]]),
        ({"a": {1: np.float64(1), Path("p"): None}}, {"a": {1: 1.0, "p": None}}),
        (True, True),
        (None, None),
        (float("inf"), float("inf")),
    ],
)
def test_to_builtin(value, expected):
    result = to_builtin(value)
    assert result == expected
    assert type(result) is type(expected)
    stream = io.BytesIO()
    torch.save(result, stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=True) == expected


def test_to_builtin_reaches_every_depth():
    deep = to_builtin({"a": [{"b": (np.float64(1.0), {"c": np.int64(2)})}]})
    assert type(deep["a"][0]["b"][0]) is float
    assert type(deep["a"][0]["b"][1]["c"]) is int
    tensor = torch.ones(2)
    assert to_builtin({"t": tensor})["t"] is tensor


def test_to_cpu_goes_everywhere():
    state = {"a": [torch.ones(2, requires_grad=True), (torch.zeros(1), 3)], "b": "x"}
    moved_state = to_cpu(state)
    assert not moved_state["a"][0].requires_grad
    assert moved_state["a"][1][1] == 3 and moved_state["b"] == "x"
    assert moved_state["a"][1][0].device.type == "cpu"


# -- stock nnU-Net reads it ------------------------------------------------------------------------


def stored(tmp_path, network, transfers, num_classes=4):
    file = tmp_path / "checkpoint_final.pth"
    save(file, {"network_weights": pretrained_weights(network, transfers, num_classes)})
    return file


def own_body(network, side):
    return {
        key: tensor.clone()
        for key, tensor in network.state_dict().items()
        if not is_output_layer(key) and in_encoder(key) == (side == "encoder")
    }


def test_an_encoder_goes_through_nnunets_own_loader(make_network, kind, tmp_path, capsys):
    pretrained = make_network(kind, seed=1)
    file = stored(tmp_path, pretrained, "encoder")
    networks = [make_network(kind, outputs=4, seed=seed) for seed in (2, 3)]
    initial = [copy.deepcopy(network.state_dict()) for network in networks]
    reports: list[str] = []
    for network in networks:
        keep(network, reports)
        load_pretrained_weights(network, file)
    states = [network.state_dict() for network in networks]
    for key, tensor in states[0].items():
        if in_encoder(key):
            assert torch.equal(tensor, pretrained.state_dict()[key])
            assert torch.equal(tensor, states[1][key])
        else:  # decoder and output layers: each network's own initialisation, not the file's
            assert torch.equal(tensor, initial[0][key])
            assert torch.equal(states[1][key], initial[1][key])
            if key.endswith("conv.weight") or ("transpconvs" in key and "weight" in key):
                assert not torch.equal(tensor, states[1][key])
        assert tensor.dtype == torch.float32
    encoder = len({t.data_ptr() for k, t in states[0].items() if k.startswith("encoder.")})
    total = len({t.data_ptr() for t in states[0].values()})
    assert reports == [f"encoder {encoder} tensors, decoder 0, fresh {total - encoder}"] * 2


def test_encoder_and_decoder_go_through_nnunets_own_loader(make_network, kind, tmp_path):
    pretrained = make_network(kind, seed=1)
    file = stored(tmp_path, pretrained, "encoder+decoder")
    networks = [make_network(kind, outputs=4, seed=seed) for seed in (2, 3)]
    initial = copy.deepcopy(networks[0].state_dict())
    reports: list[str] = []
    for network in networks:
        keep(network, reports)
        load_pretrained_weights(network, file)
    for key, tensor in networks[0].state_dict().items():
        if is_output_layer(key):
            assert torch.equal(tensor, initial[key])
        else:
            assert torch.equal(tensor, pretrained.state_dict()[key])
    seg = "decoder.seg_layers.1.weight"
    assert not torch.equal(*(network.state_dict()[seg] for network in networks))
    assert reports[0].endswith("fresh 4") and ", decoder 0," not in reports[0]


def test_the_caller_may_keep_more_than_what_is_fresh(make_network):
    source, network = make_network(seed=1), make_network(seed=2)
    initial = copy.deepcopy(network.state_dict())
    keep_own_fresh(network, lambda fresh: {key for key in initial if not in_encoder(key)})
    network.load_state_dict(source.state_dict())
    for key, tensor in network.state_dict().items():
        expected = source.state_dict() if in_encoder(key) else initial
        assert torch.equal(tensor, expected[key]), key


def test_without_our_hook_the_fresh_decoder_of_the_file_is_usable(make_network, tmp_path):
    pretrained = make_network(seed=1)
    file = stored(tmp_path, pretrained, "encoder")
    network = make_network(outputs=4, seed=2)
    load_pretrained_weights(network, file)
    for key, tensor in own_body(network, "decoder").items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, pretrained.state_dict()[key].half().float())
    assert network(torch.zeros(1, 1, 16, 16)).isfinite().all()


def test_a_plain_state_passes_unchanged(make_network):
    source, network = make_network(seed=1), make_network(seed=2)
    reports: list[str] = []
    keep(network, reports)
    state = source.state_dict()
    network.load_state_dict(state)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key])
    assert len(reports) == 1 and "fresh 4" in reports[0]


def test_the_callers_state_is_not_changed(make_network):
    network = make_network(seed=2)
    keep(network, [])
    state = pretrained_weights(make_network(seed=1), "encoder", 1)
    before = dict(state)
    network.load_state_dict(state)
    assert all(state[key] is before[key] for key in before)


def test_a_file_all_in_half_precision_counts_as_trained(make_network):
    source = make_network(seed=1)
    network = make_network(seed=2)
    keep(network, [])
    state = {key: tensor.half() for key, tensor in source.state_dict().items()}
    assert fresh_keys(state) == set()
    network.load_state_dict(state)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key].float())
    # The output layers may well be float32 there: they are nobody's pretraining.
    state = {key: t if is_output_layer(key) else t.half() for key, t in source.state_dict().items()}
    assert fresh_keys(state) == set()


def test_moved_counts_each_storage_once():
    weight = torch.ones(1)
    own = {
        "encoder.a": weight,
        "encoder.all_modules.0": weight,
        "decoder.encoder.a": weight,
        "decoder.b": torch.ones(1),
        "decoder.c": torch.ones(1),
        "decoder.seg_layers.0.weight": torch.ones(1),
    }
    assert moved(own, {"decoder.c"}) == "encoder 1 tensors, decoder 1, fresh 2"


# -- reading ---------------------------------------------------------------------------------------

PLANS = {
    "dataset_name": "Dataset114_MNMs",
    "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
    "configurations": {
        "2d": {
            "spacing": [1.25, 1.25],
            "normalization_schemes": ["ZScoreNormalization"],
            "patch_size": [256, 256],
            "batch_size": 12,
        },
        "2d_small": {"inherits_from": "2d", "patch_size": [128, 128]},
        "2d_smaller": {"inherits_from": "2d_small", "batch_size": 2},
    },
}
CONFIGURATION = PLANS["configurations"]["2d"]


def test_read_ours(make_network, tmp_path):
    network = make_network()
    file = tmp_path / "a.pth"
    weights = pretrained_weights(network, "encoder", 4)
    arguments = {"plans": PLANS, "configuration": "2d"}
    ssp = {"method": "MIM"}
    save(file, {"network_weights": weights, "init_args": arguments, "ssp": ssp})
    pretrained = read(str(file))
    assert pretrained.file == file
    assert pretrained.ssp == ssp
    assert (pretrained.plans, pretrained.configuration) == (PLANS, "2d")
    fresh = fresh_keys(pretrained.weights)
    assert "decoder.stages.0.convs.0.conv.weight" in fresh
    assert not fresh & {
        "encoder.stages.0.0.convs.0.conv.weight",
        "decoder.encoder.stages.0.0.convs.0.conv.weight",
    }


def test_read_plain_nnunet_with_numpy_numbers(make_network, tmp_path):
    file = tmp_path / "a.pth"
    weights = make_network().state_dict()
    logging = {"mean_fg_dice": [np.float64(0.5)]}
    arguments = {"plans": PLANS, "configuration": "2d"}
    torch.save({"network_weights": weights, "logging": logging, "init_args": arguments}, file)
    pretrained = read(file)
    assert pretrained.ssp == {}
    assert pretrained.plans == PLANS
    assert fresh_keys(pretrained.weights) == set()


def test_a_missing_file(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"In quotes ~ is a folder of that name: /.*/x\.pth"
    ):
        read("~/x.pth")
    with pytest.raises(FileNotFoundError, match=r"Checkpoint .*none\.pth does not exist"):
        read(tmp_path / "none.pth")


GARBAGE = [
    b"",
    b"\0" * 100,
    b"hello, world\n",
    b"PK\x03\x04 not really a zip",
    b"(dp0\n.",
    b"cos\nmissing_name\n.",
    b"cno.such.module\nname\n.",
    b"\x80\x02]q\x00(K\x01",
    b"I12x\n.",
    bytes(range(256)),
    "Übungsdaten".encode("latin-1"),
    b"<!doctype html><html>404</html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_refused_in_words(tmp_path, content):
    file = tmp_path / "a.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth is (not |a git-lfs pointer)"):
        read(file)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_in_words(make_network, tmp_path, share):
    file = stored(tmp_path, make_network(), "encoder")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"checkpoint_final\.pth is not a readable checkpoint"):
        read(file)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, torch.ones(3), "text"])
def test_other_contents_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"not an nnU-Net checkpoint: it has no `network_weights`"):
        read(tmp_path / "a.pth")


# -- comparing -------------------------------------------------------------------------------------


def described(network: nn.Module, plans=PLANS, configuration="2d", ssp=None) -> Pretrained:
    weights = pretrained_weights(network, "encoder", 4)
    ssp = {"method": "SimCLR"} if ssp is None else ssp
    return Pretrained(Path("a.pth"), weights, ssp, plans, configuration)


def test_a_file_that_fits(make_network, kind):
    network = make_network(kind, outputs=4, seed=2)
    comparison = compare(described(make_network(kind, seed=1)), network, PLANS, CONFIGURATION)
    assert (comparison.refusals, comparison.notes) == ([], [])
    rows = {line[:12].strip(): line[13:] for line in comparison.table}
    assert list(rows)[-2:] == ["decoder 2", "decoder 1"]
    assert all(
        fate.split()[1:] == ["pretrained" if part.startswith("encoder") else "fresh"]
        for part, fate in rows.items()
    )
    assert rows["encoder 1"] == "8 pretrained"


def refusals(pretrained, network, configuration=CONFIGURATION, plans=PLANS):
    return compare(pretrained, network, plans, configuration).refusals


def test_another_number_of_channels_is_refused(make_network, kind):
    pretrained = described(make_network(kind, channels=2))
    assert refusals(pretrained, make_network(kind, channels=1)) == [
        "channels: pretrained with 2 input channels, these plans have 1"
    ]


def volume(channels: int = 1) -> nn.Module:
    """A tiny 3D network as nnU-Net plans it."""
    arguments = {
        "input_channels": channels,
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": nn.Conv3d,
        "kernel_sizes": 3,
        "strides": [1, 2],
        "num_classes": 4,
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "norm_op": nn.InstanceNorm3d,
    }
    return PlainConvUNet(**arguments)


def plain(network: nn.Module) -> Pretrained:
    return Pretrained(Path("a.pth"), network.state_dict(), {}, {}, "")


def test_another_dimension_is_refused(make_network):
    flat = make_network(features=(4, 8), outputs=4)
    for theirs, ours, words in (
        (volume(), flat, "dimension: pretrained in 3D, these plans are 2D"),
        (flat, volume(), "dimension: pretrained in 2D, these plans are 3D"),
    ):
        assert words in refusals(plain(theirs), ours)


def test_volumes_fit_volumes():
    """The trainers that fine-tune take plans in 3D, too."""
    assert refusals(plain(volume()), volume()) == []
    assert refusals(plain(volume()), volume(2)) == [
        "channels: pretrained with 1 input channel, these plans have 2"
    ]


@pytest.mark.parametrize("features", [(8, 8, 8), (4, 8, 16), (4, 8), (4, 8, 8, 8)])
def test_another_architecture_is_refused(make_network, kind, features):
    found = refusals(described(make_network(kind, features=features)), make_network(kind))
    assert len(found) == 1
    assert found[0].startswith("architecture: ")
    assert "the first is encoder." in found[0] or "the first is decoder." in found[0]


def test_the_other_encoder_is_refused(make_network):
    found = refusals(described(make_network("residual")), make_network("plain"))
    assert len(found) == 1 and found[0].startswith("architecture: ")
    assert "absent in the file, 4x1x3x3 in this network" in found[0]


def test_channels_and_architecture_are_named_apart(make_network):
    found = refusals(
        described(make_network(channels=3, features=(8, 8, 8))), make_network(channels=1)
    )
    assert [line.split(":")[0] for line in found] == ["channels", "architecture"]
    assert "pretrained with 3 input channels, these plans have 1" in found[0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("spacing", [1.5, 1.5], "spacing: pretrained with [1.25, 1.25], these plans have [1.5, 1"),
        ("spacing", [1.25, 1.3], "spacing: pretrained with"),
        (
            "normalization_schemes",
            ["NoNormalization"],
            "normalisation: pretrained with ['ZScoreNormalization'], these plans have ['NoNorm",
        ),
    ],
)
def test_other_preprocessing_is_refused(make_network, name, value, message):
    network = make_network()
    found = refusals(described(network), network, {**CONFIGURATION, name: value})
    assert len(found) == 1 and found[0].startswith(message)


@pytest.mark.parametrize(
    ("theirs", "own", "said"),
    [
        (
            {"dataset_name": "Dataset120_Sunny", "plans_name": "nnUNetPlans"},
            {"dataset_name": "Dataset005_Mine", "plans_name": "nnUNetPlans"},
            " For its own plans, those of Dataset120_Sunny: nnunet-ssp prepare 5 --plans-from 120 "
            "-overwrite_plans_name nnUNetPlans_120; then train with -p nnUNetPlans_120.",
        ),
        (
            {"dataset_name": "Dataset005_Mine", "plans_name": "my plans"},
            {"dataset_name": "Dataset005_Mine", "plans_name": "nnUNetPlans"},
            " Its plans are my plans of Dataset005_Mine: -p 'my plans'.",
        ),
        ({"plans_name": "small"}, {"dataset_name": "Dataset005_Mine"}, ""),  # a stripped file
        (
            {"dataset_name": "Dataset150_Images", "plans_name": "a", "image_reader_writer": "NaturalImage2DIO"},
            {"dataset_name": "Dataset005_Mine"},
            "",
        ),
    ],
)  # fmt: skip
def test_a_file_of_other_plans_says_how_to_get_them(make_network, theirs, own, said):
    network, other = make_network(), make_network(features=(8, 8, 8))
    theirs, own = ({**PLANS, "dataset_name": None, **names} for names in (theirs, own))
    assert compare(described(other, theirs), network, own, CONFIGURATION).remedy == said
    assert compare(described(network, theirs), network, own, CONFIGURATION).remedy == ""
    channels = described(make_network(channels=3), theirs)
    assert compare(channels, network, own, CONFIGURATION).remedy == ""


def test_rounding_of_the_spacing_is_no_difference(make_network):
    network = make_network()
    close = {**CONFIGURATION, "spacing": (1.2500001, np.float64(1.25))}
    assert refusals(described(network), network, close) == []


def test_what_may_differ_is_noted(make_network):
    network = make_network()
    plans = {
        **PLANS,
        "dataset_name": "Dataset027_ACDC",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 2.0}},
    }
    configuration = {**CONFIGURATION, "patch_size": [192, 160], "batch_size": 9}
    comparison = compare(described(network), network, plans, configuration)
    assert comparison.refusals == []
    assert comparison.notes == [
        "patch size: pretrained [256, 256], here [192, 160]",
        "batch size: pretrained 12, here 9",
        "pretrained on Dataset114_MNMs",
        "intensity statistics of the datasets differ",
    ]


def test_channels_in_another_order_are_noted(make_network):
    network = make_network()
    pretrained = replace(described(network), channels=("T1", "T2"))
    note = (
        "channels: pretrained with T1, T2, here T2, T1; a file that fits is taken in its own order"
    )
    assert compare(pretrained, network, PLANS, CONFIGURATION, ("T2", "T1")).notes == [note]
    assert compare(pretrained, network, PLANS, CONFIGURATION, ("T1", "T2")).notes == []


def test_a_tuple_is_no_other_patch_size(make_network):
    network = make_network()
    configuration = {**CONFIGURATION, "patch_size": (256, 256)}
    assert compare(described(network), network, PLANS, configuration).notes == []


def test_inherited_configurations_are_resolved(make_network):
    network = make_network()
    small = {**CONFIGURATION, "patch_size": [128, 128], "batch_size": 2}
    pretrained = described(network, configuration="2d_smaller")
    assert compare(pretrained, network, PLANS, small).notes == []
    coarse = {**small, "spacing": [2.0, 2.0]}
    assert refusals(pretrained, network, coarse)[0].startswith("spacing: ")


def test_a_plain_nnunet_checkpoint_is_accepted_with_a_note(make_network):
    network = make_network(outputs=4)
    plain = Pretrained(Path("a.pth"), make_network(outputs=9).state_dict(), {}, PLANS, "2d")
    comparison = compare(plain, network, PLANS, CONFIGURATION)
    assert comparison.refusals == []
    assert comparison.notes == ["a plain nnU-Net checkpoint, not one of nnunet-ssp"]
    assert all(line.endswith("pretrained") for line in comparison.table)


def test_a_file_without_plans_says_what_was_not_compared(make_network):
    network = make_network()
    comparison = compare(described(network, {}, ""), network, PLANS, CONFIGURATION)
    assert comparison.refusals == []
    assert comparison.notes == [
        "the file holds no plans: spacing and normalisation could not be compared"
    ]


def test_the_table_names_what_differs(make_network):
    network = make_network()
    wide = described(make_network(features=(4, 8, 16)))
    rows = {
        line[:12].strip(): line[13:] for line in compare(wide, network, PLANS, CONFIGURATION).table
    }
    assert rows["encoder 2"] == "8 pretrained"
    assert rows["encoder 3"].endswith("differs")
    assert "differs" in rows["decoder 2"]
    assert not any(is_alias(key) for key in rows)
