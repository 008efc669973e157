"""What every run of the bench does: say what is measured and where, and leave nothing behind."""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from importlib import metadata
from typing import Any

import torch

from nnunet_ssp.console import count_of
from nnunet_ssp.parallel import available_cores

PACKAGES = ("nnunet-ssp", "nnunetv2", "torch", "batchgeneratorsv2", "lightly")


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end this process as an error does, so that temporary folders are removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def announce(text: str) -> None:
    """Say on the error stream what is measured now."""
    print(f"bench: {text} ...", file=sys.stderr, flush=True)


def setting(device: torch.device) -> dict[str, Any]:
    """Return date, device, cores, load and versions of a measurement."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    cuda = device.type == "cuda"
    return {
        "date": date.today().isoformat(),
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def heading(s: Mapping[str, Any]) -> str:
    """Write a `setting` in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in s["versions"].items())
    return (
        f"{s['date']}, {s['device']} ({s['name']}), {s['cores']} cores, "
        f"PyTorch with {count_of(s['threads'], 'thread')}, load {s['load']}; {versions}."
    )
