"""torch.compile for the parts of a method that gain from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

GRAPHS = 64  # student and teacher, chunks, validation, probe: more than torch keeps by default


def compile_parts(parts: Iterable[nn.Module]) -> None:
    """Compile modules in place, so that no key of a state dict gets a prefix.

    Each batch size has its own graph: with symbolic sizes torch keeps a slower memory layout.
    """
    dynamo: Any = torch._dynamo.config
    dynamo.cache_size_limit = max(dynamo.cache_size_limit, GRAPHS)
    for part in parts:
        part.compile(dynamic=False)
