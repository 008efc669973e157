"""Memory of work, and of sharing in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ssp.bench import memory, sharing
from nnunet_ssp.bench.place import PLANS, Bench
from nnunet_ssp.training import transfer

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell"),
    pytest.mark.usefixtures("one_thread"),
]


def test_memory_is_that_of_the_work() -> None:
    """In a process of its own: one that has worked before may hold memory to take from."""
    code = (
        "import torch; from nnunet_ssp.bench.memory import growth_of; kept = []; "
        "print(growth_of(lambda: kept.append(torch.ones(10_000_000))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 36_000_000 < int(done.stdout.split()[-1]) < 60_000_000


@pytest.mark.slow
@pytest.mark.heavy
def test_sharing_takes_little_more_than_the_tensors(bench: Bench, tmp_path: Path) -> None:
    """Also the first time in a process: what either loads besides PyTorch is little."""
    sharing.write_checkpoint(tmp_path, bench.folder / f"{PLANS}.json", 300_000_000)
    checkpoint, shared, taken = (
        tmp_path / name for name in (sharing.CHECKPOINT, sharing.SHARED, sharing.TAKEN)
    )
    size = sharing.tensors_bytes(transfer.read(checkpoint).weights)
    for name, source, target in (("export", checkpoint, shared), ("import", shared, taken)):
        grown = memory.growth_of_sharing(name, source, target)
        assert grown is not None
        assert 0.5 * size < grown < 1.2 * size, name
        assert target.is_file()
