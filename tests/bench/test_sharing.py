"""Export and import beside a plain copy."""

from __future__ import annotations

import math

import pytest
import torch

from nnunet_ssp.bench import sharing
from nnunet_ssp.bench.place import PLANS, Bench
from nnunet_ssp.training import transfer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_is_measured_is_real(bench: Bench, tmp_path) -> None:
    size = 2_000_000
    sharing.write_checkpoint(tmp_path, bench.folder / f"{PLANS}.json", size)
    sharing.write_checkpoint(tmp_path / sharing.SMALL, bench.folder / f"{PLANS}.json", 1)
    weights = transfer.read(tmp_path / sharing.CHECKPOINT).weights
    assert sharing.tensors_bytes(weights) >= size / 2
    found = sharing.measure_sharing(tmp_path, 0)
    assert found["shared_bytes"] >= size
    for name in ("export_over_copy", "import_over_copy"):
        assert math.isfinite(found[name]) and found[f"{name}_rounds"] == 3
    taken = transfer.read(tmp_path / sharing.TAKEN).weights
    assert all(
        torch.equal(taken[name], tensor)
        for name, tensor in weights.items()
        if ".seg_layers." not in name
    )
