"""The parts of nnU-Net's planned U-Nets, by the names of their tensors.

Levels count resolutions from 1 (full) to n (bottleneck), the same for encoder and decoder. nnU-Net's decoder also
holds the encoder (`decoder.encoder.*`). Blocks hold aliases (`...all_modules.*`) of the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# nnU-Net's name for the layers that belong to one set of labels.
OUTPUT_LAYERS = ".seg_layers."
# `encoder.stages.2.`, and with an encoder of timm `encoder.model.layer2.` or `encoder.model.stages_2.`
ENCODER_STAGE = re.compile(r"encoder\.(?:stages\.|model\.(?:layers?|stages?)[._]?)(\d+)\.")
DECODER_STAGE = re.compile(r"decoder\.(?:stages|transpconvs)\.(\d+)\.")


def is_alias(key: str) -> bool:
    """Whether the key is a second name of a tensor."""
    return key.startswith("decoder.encoder.") or ".all_modules." in key


def is_output_layer(key: str) -> bool:
    """Whether the tensor belongs to a segmentation (or reconstruction) output."""
    return OUTPUT_LAYERS in key


def in_encoder(key: str) -> bool:
    """Whether the tensor belongs to the encoder, under either of its names."""
    return key.startswith(("encoder.", "decoder.encoder."))


def parts(keys: Iterable[str]) -> dict[str, list[str]]:
    """Sort the tensors of a planned U-Net, without aliases and output layers, into its parts.

    Args:
        keys: Keys of its state dict.

    Returns:
        Keys by part, in the order in which data flows: `encoder stem` (residual encoders), `encoder 1` ... `encoder n`,
        `decoder n-1` ... `decoder 1`.

    >>> parts(["encoder.stages.0.conv.weight", "encoder.stages.1.conv.weight", "decoder.stages.0.conv.weight"])
    {'encoder 1': ['encoder.stages.0.conv.weight'], 'encoder 2': ['encoder.stages.1.conv.weight'],
     'decoder 1': ['decoder.stages.0.conv.weight']}
    """
    names = [key for key in keys if not is_alias(key) and not is_output_layer(key)]
    stages = [int(m[1]) for key in names if (m := ENCODER_STAGE.match(key))]
    decoding = [int(m[1]) for key in names if (m := DECODER_STAGE.match(key))]
    # With an encoder of timm the image is level 1; `layer1` of a ResNet is level 3, `stages_0` of others level 2.
    of_timm = any(key.startswith("encoder.model.") for key in names)
    depth = max(decoding, default=0) + 2 if of_timm else max(stages, default=-1) + 1
    found: dict[str, list[str]] = {}
    for key in names:
        if match := ENCODER_STAGE.match(key):
            part = f"encoder {int(match[1]) + 1 + of_timm}"
        elif match := DECODER_STAGE.match(key):
            part = f"decoder {depth - 1 - int(match[1])}"
        else:
            part = "encoder stem" if in_encoder(key) else "decoder"
        found.setdefault(part, []).append(key)
    # Residual encoders register the stem first, plain ones have none; only the decoder's order needs care.
    encoder = [part for part in found if part.startswith("encoder")]
    decoder = sorted(
        (part for part in found if part not in encoder),
        key=lambda p: -int(p.split()[-1]) if " " in p else 0,
    )
    return {part: found[part] for part in (*encoder, *decoder)}
