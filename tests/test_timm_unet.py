from __future__ import annotations

from typing import Any

import pytest
import torch

from nnunet_ssp.timm_unet import TimmUNet, strides_of, timm_features

STRIDES = [[1, 1], *[[2, 2]] * 5]


def make(model: str = "test_resnet", channels: int = 1, **more: Any) -> TimmUNet:
    strides = [[s, s] for s in strides_of(timm_features(model, channels))]
    return TimmUNet(channels, 4, model, strides, **more)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_network_of_kalapos():
    """ResNet-50 with a decoder of about 9 million parameters: 9.0 in the paper."""
    with torch.device("meta"):
        network = make("resnet50")
    assert count(network.encoder) == 23_501_760  # timm's own, for one channel
    assert count(network.decoder) == pytest.approx(9.0e6, rel=0.01)
    ups = network.decoder.transpconvs
    assert {(up.mode, up.scale_factor) for up in ups} == {("nearest", 2.0)}
    convolutions = [m for m in network.decoder.stages[0] if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 2


def test_outputs_are_those_that_nnunet_expects():
    network = make(deep_supervision=True).eval()
    images = torch.randn(2, 1, 64, 96)
    outputs = network(images)
    sizes = [tuple(output.shape) for output in outputs]
    assert sizes == [(2, 4, 64 // s, 96 // s) for s in (1, 2, 4, 8, 16)]
    network.decoder.deep_supervision = False
    torch.testing.assert_close(network(images), outputs[0])
    maps = network.encoder(images)
    assert [m.shape[1] for m in maps] == network.encoder.output_channels
    assert torch.equal(maps[0], images)


@pytest.mark.parametrize("model", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_models_that_begin_at_a_quarter(model):
    network = make(model).eval()
    side = 224 if model.startswith("swin") else 64  # Swin takes one size, and has its channels last
    assert [s for s, _ in network.encoder.strides] == [1, 4, 2, 2, 2]
    with torch.no_grad():
        assert network(torch.randn(1, 1, side, side)).shape == (1, 4, side, side)


def test_plans_are_made_without_memory_of_models_that_compute_with_tensors():
    """RegNet computes its widths with an operation that the device meta does not have."""
    with torch.device("meta"):
        network = make("regnety_004")
    assert {tensor.device.type for tensor in network.parameters()} == {"meta"}
    assert {k: t.shape for k, t in network.state_dict().items()} == {
        k: t.shape for k, t in make("regnety_004").state_dict().items()
    }


def test_the_size_of_all_feature_maps():
    network = make(n_conv_per_stage_decoder=1)
    seen: list[int] = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *called: seen.append(called[-1].numel()))
    network.eval()(torch.randn(1, 1, 32, 64))
    whole = sum(seen)
    deep = sum(4 * 32 * 64 // 4**level for level in range(1, 5))  # outputs of coarser stages
    network.decoder.deep_supervision = True
    assert network.compute_conv_feature_map_size((32, 64)) == whole + deep


def test_the_encoder_keeps_the_weights_of_timm():
    network = make()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.apply(network.initialize)
    after = network.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith("encoder."))
    assert not torch.equal(after["decoder.stages.0.0.weight"], before["decoder.stages.0.0.weight"])


def test_names_that_timm_does_not_know():
    with pytest.raises(ValueError, match=r"timm \(=resnet51\) must be one of its models\. Perhaps"):
        timm_features("resnet51", 1)
    with pytest.raises(ValueError, match="resnet50"):
        timm_features("resnet5O", 1)


def test_a_model_without_feature_maps(monkeypatch):
    import timm

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ValueError, match=r"must be a model with feature maps .*not implemented"):
        timm_features("resnet18", 1)


def test_strides_of_another_model():
    with pytest.raises(ValueError, match=r"strides .* must be those of timm's convnext_atto"):
        TimmUNet(1, 4, "convnext_atto", STRIDES)
