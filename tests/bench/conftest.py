"""A bench on the phantom of the trainers' tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunet_ssp.bench.place import (
    NARROW,
    PLANS,
    Bench,
    Workload,
)
from tests.training.conftest import own_copy, prepared, preprocessed

__all__ = ["own_copy", "prepared", "preprocessed"]

CPU = torch.device("cpu")


TINY = Workload(
    side=48,
    batch=4,
    narrow=8,
    seconds=0,
    unlabelled=1,
    frames=4,
    batches=(4, 8),
    growth=(20, 40),
    study=(2, 3),
    shared=100_000,
)


@pytest.fixture
def bench(own_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Bench on the prepared phantom of the trainers' tests, with a narrow network everywhere."""
    tiny = json.loads((own_copy / "tiny.json").read_text())
    for name in (PLANS, NARROW):
        (own_copy / f"{name}.json").write_text(json.dumps({**tiny, "plans_name": name}))
    return Bench(own_copy, CPU, TINY)
