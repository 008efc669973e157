"""The modes of `nnunet-ssp bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ssp.console import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `nnunet-ssp bench`, the keywords of `run`."""
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="e.g. MIM SimCLR (default: all)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda when there is a GPU"
    )
    parser.add_argument(
        "--json", dest="file", type=path, metavar="FILE", help="also write all numbers to this file"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--steps",
        dest="steps_alone",
        action="store_true",
        help="the training steps alone, on one core, beside float32 and nnU-Net's own modules",
    )
    mode.add_argument(
        "--gpu",
        dest="for_gpu",
        action="store_true",
        help="all that is worth knowing on a card, by importance, until the time is over",
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="of --gpu: no row begins later (default: 8)"
    )
    parser.add_argument(
        "--acdc",
        type=path,
        metavar="FOLDER",
        help="of --gpu: ends with a part of the study acdc-few",
    )


def run(
    methods: Sequence[str] | None = None,
    device: str | None = None,
    file: Path | None = None,
    steps_alone: bool = False,
    for_gpu: bool = False,
    minutes: float | None = None,
    acdc: Path | None = None,
) -> dict[str, Any]:
    """Measure in the mode that is asked for, see `command.run`, `steps.run` and `gpu.run`.

    Args:
        methods: Names of methods, in upper or lower case; None measures all.
        device: "cpu" or "cuda"; None takes the GPU when there is one.
        file: JSON file for the metrics.
        steps_alone: Whether to measure training steps alone.
        for_gpu: Whether to measure what is worth knowing on a GPU.
        minutes: Time of `for_gpu`.
        acdc: Folder of ACDC for the end of `for_gpu`.

    Raises:
        ValueError: Arguments that do not belong together.
    """
    if not for_gpu and (minutes is not None or acdc is not None):
        name = "--minutes" if minutes is not None else "--acdc"
        raise ValueError(f"`{name}` must come with --gpu.")
    if steps_alone and device == "cuda":
        raise ValueError("`--device` (=cuda) must be cpu with --steps; --gpu measures a card.")
    from nnunet_ssp.bench import command, gpu, steps

    if steps_alone:
        return steps.run(methods, file)
    if for_gpu:
        return gpu.run(methods, device, file, gpu.MINUTES if minutes is None else minutes, acdc)
    return command.run(methods, device, file)
