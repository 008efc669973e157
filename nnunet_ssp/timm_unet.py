"""U-Net with an encoder of timm, in the form of nnU-Net's planned networks.

Plans name this class; nnU-Net imports it wherever this package is installed. The encoder is any model of timm that
gives feature maps (`features_only`). The decoder is that of Kalapos and Gyires-Tóth (https://arxiv.org/abs/2209.00314):
nearest upsampling, then two convolutions per stage, with BatchNorm and ReLU, about 9 million parameters for ResNet-50.
Its full-resolution skip is the image itself, where theirs has none.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunet_ssp.console import nearest

# Features of the decoder from the full resolution down, as in segmentation-models-pytorch 0.3, which theirs uses.
DECODER = (16, 32, 64, 128, 256)


def timm_features(model: str, channels: int) -> Any:
    """Make a model of timm that returns its feature maps, with random weights.

    Args:
        model: Its name.
        channels: Of the images.

    Raises:
        ValueError: timm has no such model, or it has no feature maps; names the nearest.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, at its import
        import timm

    base = model.partition(".")[0]
    if not timm.is_model(base):
        known = timm.list_models()
        raise ValueError(f"timm (={model}) must be one of its models.{nearest(model, known)}")
    try:
        made = create(base, features_only=True, in_chans=channels)
        made.feature_info.reduction()
    except Exception as error:  # each family of models refuses in its own way
        raise ValueError(
            f"timm (={model}) must be a model with feature maps (features_only), for the skip connections of a U-Net: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    return made


def create(model: str, **options: Any) -> Any:
    """Make a model of timm with random weights, on the device that is torch's default here.

    Args:
        model: Its name.
        **options: Of `timm.create_model`.
    """
    import timm

    with torch.device(
        "cpu"
    ):  # RegNet computes its widths with tensors, which the device meta cannot
        made = timm.create_model(model, pretrained=False, **options)
    return made.to(torch.get_default_device())


def strides_of(features: Any) -> list[int]:
    """Return how much smaller each map is than the one before; the image itself is the first.

    >>> strides_of(timm_features("resnet18", 1))
    [1, 2, 2, 2, 2, 2]
    """
    reductions = [1, *features.feature_info.reduction()]
    return [1, *(b // a for a, b in pairwise(reductions))]


class TimmEncoder(nn.Module):
    """Feature maps of a model of timm, finest first; before them the image.

    Args:
        model: Name of the model.
        channels: Of the images.
    """

    def __init__(self, model: str, channels: int) -> None:
        super().__init__()
        self.model = timm_features(model, channels)
        self.output_channels = [channels, *self.model.feature_info.channels()]
        self.strides = [[stride, stride] for stride in strides_of(self.model)]
        self._last = "NHWC" in str(getattr(self.model, "output_fmt", ""))  # channels, as in Swin

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return (B, C, X, Y) of each level for images (B, C, X, Y)."""
        maps = self.model(images)
        return [images, *(m.permute(0, 3, 1, 2).contiguous() if self._last else m for m in maps)]


class TimmDecoder(nn.Module):
    """Nearest upsampling and convolutions, by the names of nnU-Net's decoder.

    Args:
        encoder: The encoder.
        classes: Channels of the outputs.
        features: Channels of each stage, from the full resolution down; the last counts for deeper ones.
        convolutions: Number of convolutions of a stage.
        deep_supervision: Whether every stage has an output.
    """

    def __init__(
        self,
        encoder: TimmEncoder,
        classes: int,
        features: Sequence[int],
        convolutions: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        below = encoder.output_channels[-1]
        stages, ups, outputs = [], [], []
        for level in range(len(encoder.output_channels) - 2, -1, -1):
            width = features[min(level, len(features) - 1)]
            stages.append(
                _convolutions(below + encoder.output_channels[level], width, convolutions)
            )
            ups.append(nn.Upsample(scale_factor=encoder.strides[level + 1][0], mode="nearest"))
            outputs.append(nn.Conv2d(width, classes, 1))
            below = width
        self.stages, self.transpconvs = nn.ModuleList(stages), nn.ModuleList(ups)
        self.seg_layers = nn.ModuleList(outputs)

    def forward(self, skips: Sequence[Tensor]) -> Any:
        """Return the outputs, finest first, or the finest alone."""
        x = skips[-1]
        outputs: list[Tensor] = []
        parts = zip(self.transpconvs, self.stages, self.seg_layers, skips[-2::-1], strict=True)
        for number, (up, stage, output, skip) in enumerate(parts, 1):
            x = stage(torch.cat([up(x), skip], 1))
            if self.deep_supervision or number == len(self.stages):
                outputs.insert(0, output(x))
        return outputs if self.deep_supervision else outputs[0]


def _convolutions(channels: int, width: int, number: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(number):
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)


class TimmUNet(nn.Module):
    """U-Net with an encoder of timm, for nnU-Net's plans.

    Args:
        input_channels: Channels of the images.
        num_classes: Channels of the outputs.
        model: Name of the encoder in timm.
        strides: Of each level, as nnU-Net reads them from the plans; they must be the model's.
        decoder_features: Channels of the decoder's stages, from the full resolution down.
        n_conv_per_stage_decoder: Convolutions of a stage.
        deep_supervision: Whether every stage has an output.

    Raises:
        ValueError: The model is unknown or has no feature maps, or the strides are not its own.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        model: str,
        strides: Sequence[Sequence[int]],
        decoder_features: Sequence[int] = DECODER,
        n_conv_per_stage_decoder: int = 2,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = TimmEncoder(model, input_channels)
        if [list(stride) for stride in strides] != self.encoder.strides:
            raise ValueError(
                f"strides (={list(strides)}) must be those of timm's {model}: {self.encoder.strides}."
            )
        self.decoder = TimmDecoder(
            self.encoder, num_classes, decoder_features, n_conv_per_stage_decoder, deep_supervision
        )

    def forward(self, images: Tensor) -> Any:
        """Return logits (B, classes, X, Y), with deep supervision those of all stages, finest first."""
        return self.decoder(self.encoder(images))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Count the values that all convolutions give for one image, by which nnU-Net estimates memory."""
        sizes: list[int] = []
        network = copy.deepcopy(self).to("meta").eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda *called: sizes.append(called[-1].numel()))
        channels = self.encoder.output_channels[0]
        with torch.no_grad():
            network(torch.empty(1, channels, *map(int, input_size), device="meta"))
        return sum(sizes)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialise the decoder as nnU-Net does; the encoder keeps timm's own weights."""
        if isinstance(module, TimmDecoder):
            module.apply(InitWeights_He(1e-2))
