from __future__ import annotations

import pytest

from nnunet_ssp.network import in_encoder, is_alias, is_output_layer, parts
from nnunet_ssp.timm_unet import TimmUNet, strides_of, timm_features


@pytest.mark.parametrize(
    ("key", "alias", "output", "encoder"),
    [
        ("encoder.stages.0.0.convs.0.conv.weight", False, False, True),
        ("encoder.stages.0.0.convs.0.all_modules.0.weight", True, False, True),
        ("decoder.encoder.stages.0.0.convs.0.conv.weight", True, False, True),
        ("decoder.stages.1.convs.0.conv.weight", False, False, False),
        ("decoder.stages.1.convs.0.all_modules.1.bias", True, False, False),
        ("decoder.transpconvs.0.weight", False, False, False),
        ("decoder.seg_layers.0.weight", False, True, False),
    ],
)
def test_names(key, alias, output, encoder):
    assert (is_alias(key), is_output_layer(key), in_encoder(key)) == (alias, output, encoder)


@pytest.mark.parametrize(("kind", "stem"), [("plain", []), ("residual", ["encoder stem"])])
def test_parts_in_the_order_data_flows(make_network, kind, stem):
    network = make_network(kind, features=(4, 4, 6, 6, 8))
    state = network.state_dict()
    found = parts(state)
    encoder = [f"encoder {level}" for level in (1, 2, 3, 4, 5)]
    decoder = [f"decoder {level}" for level in (4, 3, 2, 1)]
    assert list(found) == [*stem, *encoder, *decoder]

    # Each tensor once, but for the output layers.
    keys = [key for group in found.values() for key in group]
    pointers = {state[key].data_ptr() for key in keys}
    assert len(pointers) == len(keys)
    everything = {t.data_ptr() for k, t in state.items() if not is_output_layer(k)}
    assert pointers == everything


def test_levels_are_resolutions(make_network):
    found = parts(make_network("plain", features=(4, 6, 8)).state_dict())
    # Level 2 is what the decoder makes of the bottleneck: it has the features of encoder 2.
    assert "decoder.transpconvs.0.weight" in found["decoder 2"]
    assert "decoder.stages.0.convs.0.conv.weight" in found["decoder 2"]
    assert "decoder.transpconvs.1.weight" in found["decoder 1"]
    assert "encoder.stages.0.0.convs.0.conv.weight" in found["encoder 1"]


def test_no_keys():
    assert parts([]) == {}


@pytest.mark.parametrize(
    ("model", "first", "last"), [("test_resnet", 3, 6), ("convnext_atto", 2, 5)]
)
def test_parts_with_an_encoder_of_timm(model, first, last):
    """Encoder and decoder count the same levels, also where one of them is not trained."""
    strides = [[stride, stride] for stride in strides_of(timm_features(model, 1))]
    keys = list(TimmUNet(1, 2, model, strides).state_dict())
    encoder = [f"encoder {n}" for n in range(first, last + 1)]
    decoder = [f"decoder {n}" for n in range(last - 1, 0, -1)]
    assert list(parts(keys)) == ["encoder stem", *encoder, *decoder]
    alone = [key for key in keys if key.startswith("encoder.")]
    assert list(parts(alone)) == ["encoder stem", *encoder]
