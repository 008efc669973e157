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


class Prepared:
    """Stand-in for `Bench.prepared`."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __enter__(self) -> Bench:
        return self.bench

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which the command makes its temporary ones."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder
