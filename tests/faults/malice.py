"""Checkpoints that would run code when opened; the code only creates a file."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch


class Copy:
    """Create a file when unpickled, through a function of Python's library."""

    needs = "shutil.copyfile"

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copyfile, (__file__, str(self.marker))


class Evaluate(Copy):
    """Create a file when unpickled, through Python's own `eval`."""

    needs = "eval"

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('pathlib').Path({str(self.marker)!r}).touch()",)


class Shell(Copy):
    """Create a file when unpickled, through a shell command."""

    needs = "system"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


PLACES = ("whole", "weights", "logging", "ssp", "init_args")


def content_with(what: Any, place: str, good: dict[str, Any]) -> Any:
    """Return a checkpoint's content with something else in one place."""
    content = dict(good)
    if place == "whole":
        return what
    if place == "weights":
        return {**content, "network_weights": OrderedDict(content["network_weights"], extra=what)}
    return {**content, place: {**content.get(place, {}), "extra": what}}


def write_modern(file: Path, content: Any) -> None:
    """Write PyTorch's zip file."""
    torch.save(content, file)


def write_legacy(file: Path, content: Any) -> None:
    """Write PyTorch's format before 1.6."""
    torch.save(content, file, _use_new_zipfile_serialization=False)


def write_plain(file: Path, content: Any) -> None:
    """Write Python's pickle, protocol 4."""
    file.write_bytes(pickle.dumps(content, protocol=4))


def write_old_plain(file: Path, content: Any) -> None:
    """Write Python's pickle as text."""
    file.write_bytes(pickle.dumps(content, protocol=0))


def write_newer_zip(file: Path, content: Any) -> None:
    """Write a zip file of PyTorch with a pickle of a protocol that PyTorch does not write."""
    torch.save({"network_weights": {}}, file)
    with zipfile.ZipFile(file) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new:
        for name, part in parts.items():
            new.writestr(name, pickle.dumps(content, 4) if name.endswith("data.pkl") else part)


WRITERS = {
    "modern": write_modern,
    "legacy": write_legacy,
    "pickle": write_plain,
    "old pickle": write_old_plain,
    "newer zip": write_newer_zip,
}


def claims_memory(n: int) -> torch.Tensor:
    """Return a tensor of n elements that stores one."""
    return torch.zeros(1).expand(n)
