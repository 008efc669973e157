"""Numerical precision of a training, and what `precision=auto` takes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nnunet_ssp.training import trials
from nnunet_ssp.training.loop import LoopTrainer

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_GAIN = 1.25  # of bf16 over fp32, for `auto` to give up precision on a CPU
IMAGES = 2  # in a step
# 753 against 84 ms an image and step of a network of half widths at 96x96, one thread of a processor with AVX2 alone.
EMULATED = "PyTorch emulates them, up to nine times as slowly as float32"


def choose_precision(
    asked: str, half: Literal["bf16", "fp16"], device: torch.device
) -> torch.dtype | None:
    """Return the autocast type, None for float32.

    Args:
        asked: `auto`, `fp32`, `bf16` or `fp16`. On a CPU, `auto` is float32 here; see `choose_on_cpu`.
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


def precision_name(dtype: torch.dtype | None) -> str:
    """Return the setting's word for an autocast type.

    >>> precision_name(torch.bfloat16), precision_name(None)
    ('bf16', 'fp32')
    """
    return next((name for name, known in DTYPES.items() if known is dtype), "fp32")


def choose_on_cpu(network: nn.Module, shape: Sequence[int]) -> tuple[torch.dtype | None, str]:
    """Choose what `precision=auto` computes in on a CPU: bf16 if the processor has it and a trial shows the gain.

    Args:
        network: The planned network.
        shape: Channels and sides of its patch, without the batch.

    Returns:
        The autocast type, None for float32, and the reason in words.
    """
    if not has_bf16():
        return None, "this processor has no instructions for bfloat16"
    if len(shape) != 3 or sum(p.numel() for p in network.parameters()) < trials.FEWEST_PARAMETERS:
        return None, "only 2D networks of the usual size are timed in bfloat16"
    gain = bf16_gain(network, shape)
    said = (
        f"a step of the planned network takes {trials.times(gain)} times as long in float32 as in "
        "bfloat16"
    )
    if gain < LEAST_GAIN:
        return None, f"{said}, which is less than {LEAST_GAIN}"
    return torch.bfloat16, said


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16 (AMX or AVX-512 BF16); PyTorch would emulate it slowly."""
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def bf16_gain(network: nn.Module, shape: Sequence[int]) -> float:
    """Time a step in float32 and bfloat16; return the ratio of the shortest times, see `trials`.

    Args:
        network: The planned network, on the CPU.
        shape: Channels and sides of its patch, without the batch.
    """
    image = torch.rand(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    took = trials.shortest_times(
        image,
        {
            dtype: (network, partial(torch.autocast, "cpu", dtype, enabled=dtype is not None))
            for dtype in (None, torch.bfloat16)
        },
    )
    return took[None] / took[torch.bfloat16]


class InPrecision(nn.Module):
    """A network that computes in one precision, whatever surrounds it, and returns float32.

    Args:
        network: Any network with one or several outputs.
        autocast: Makes the context of the forward pass.
    """

    def __init__(self, network: nn.Module, autocast: Callable[[], torch.autocast]) -> None:
        super().__init__()
        self.network = network
        self.autocast = autocast

    def forward(self, x: Tensor) -> Any:
        """Return the outputs of the network, the loss's operands, in float32."""
        with self.autocast():
            output = self.network(x)
        return output.float() if isinstance(output, Tensor) else [o.float() for o in output]


class PrecisionTrainer(LoopTrainer):
    """A trainer that computes in the precision of its settings; `--c` goes on in that in which the run began.

    Attributes:
        autocast_dtype: Type that the network computes in; None for float32.
    """

    autocast_dtype: torch.dtype | None = None
    # Precision of the run that is resumed, if `auto` is to choose it.
    _began_in: str | None = None

    def use_precision(self, dtype: torch.dtype | None) -> None:
        """Compute in this type, None for float32; only fp16 has nnU-Net's loss scaler."""
        self.autocast_dtype = dtype
        if dtype is not torch.float16:
            self.grad_scaler = None
        elif self.grad_scaler is None:
            self.grad_scaler = torch.amp.GradScaler("cuda")
        if hasattr(self, "guard"):
            self.guard.scaler = self.grad_scaler

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def precision_of(self, ssp: Mapping[str, Any]) -> str | None:
        """Return the precision of a recorded run; before it was recorded, `auto` was fp32 on a CPU."""
        name: str | None = ssp.get("precision", "fp32" if self.device.type == "cpu" else None)
        return name

    def go_on_in(self, name: str | None) -> None:
        """Let `auto` choose what a resumed run began in; fp16 becomes fp32 on a CPU."""
        if self.settings.precision == "auto" and name and self.device.type in ("cpu", "cuda"):
            self._began_in = name
            dtype = DTYPES.get(name)
            scales = dtype is not torch.float16 or self.device.type == "cuda"
            self.use_precision(dtype if scales else None)

    def settle_precision(self, planned: nn.Module, suits: bool) -> None:
        """Choose before the first step what `precision=auto` computes in, and say so.

        Args:
            planned: The planned network.
            suits: Whether bfloat16 is exact enough here.
        """
        asked = self.settings.precision
        if asked == "bf16" and self.device.type == "cpu" and not has_bf16():
            self.print_to_log_file(
                "WARNING: precision=bf16: this processor has no instructions for bfloat16, and "
                f"{EMULATED}. precision=auto or fp32 computes in float32."
            )
        if asked != "auto":
            return
        if self._began_in is not None:
            why = f"the run began in {self._began_in}"
        elif self.device.type != "cpu":
            why = f"the device is {self.device.type}"
        elif not suits:
            why = "bfloat16 is too coarse for this method"
        else:
            patch = self.configuration_manager.patch_size
            chosen = [choose_on_cpu(planned, (self.num_input_channels, *patch))]
            if self.is_ddp:
                dist.broadcast_object_list(chosen)
            dtype, why = chosen[0]
            self.use_precision(dtype)
        name = precision_name(self.autocast_dtype)
        self.print_to_log_file(f"precision=auto computes in {name}: {why}.")
