"""Numerical precision of pretraining."""

from __future__ import annotations

from typing import Literal

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(
    asked: str, half: Literal["bf16", "fp16"], device: torch.device
) -> torch.dtype | None:
    """Return the autocast type, None for float32.

    Args:
        asked: `auto`, `fp32`, `bf16` or `fp16`.
        half: Type that `auto` takes on CUDA, see `Method.half_precision`.
        device: Device of the network.

    Raises:
        ValueError: `fp16` was asked for on another device than CUDA, where gradients are not scaled.
    """
    if asked == "auto" and device.type == "cuda":
        # GPUs without bf16 would emulate it slowly.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        asked = half if native else "fp16"
    if asked == "fp16" and device.type != "cuda":
        raise ValueError("`precision` (=fp16) must be used on CUDA; use bf16 or fp32 here.")
    return DTYPES.get(asked)
