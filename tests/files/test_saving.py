"""Checkpoints of PyTorch, as every reader of zips takes them."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from nnunet_ssp.files import saving
from nnunet_ssp.files.saving import save, saved

CONTENT = {
    "network_weights": {"a": torch.arange(400_000.0), "none": torch.zeros(0), "b": torch.ones(3)},
    "epoch": 3,
}


@pytest.fixture(params=["ISA-L", "zlib", "PyTorch 2.5"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Path:
    """Return a checkpoint, written in each way."""
    if request.param == "zlib":
        monkeypatch.setattr(saving, "WITH_ISAL", False)
    if request.param == "PyTorch 2.5":
        monkeypatch.delattr(torch.serialization, "set_crc32_options", raising=False)
    save(tmp_path / "x.pth", CONTENT)
    return tmp_path / "x.pth"


def test_readers_of_zips_take_it(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        sums = [member.CRC for member in archive.infolist() if member.file_size]
    assert len(sums) > 5
    assert 0 not in sums
    if unzip := shutil.which("unzip"):
        done = subprocess.run([unzip, "-tq", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_pytorch_reads_it(file: Path) -> None:
    for mmap in (False, True):
        read = torch.load(file, weights_only=True, mmap=mmap)
        assert read["epoch"] == 3
        for name, tensor in CONTENT["network_weights"].items():
            assert torch.equal(read["network_weights"][name], tensor)


def test_a_wrong_bit_is_seen(file: Path) -> None:
    """By readers that look at the sums, as before."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() == "archive/data/0"


def test_pytorchs_way_is_left_as_it_was(file: Path) -> None:
    if hasattr(torch.serialization, "get_crc32_options"):
        assert torch.serialization.get_crc32_options()


def test_it_moves_to_its_place_at_the_end_alone(tmp_path: Path) -> None:
    target = tmp_path / "x.pth"
    with pytest.raises(KeyError), saved(target, CONTENT):
        assert not target.exists()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with saved(target, CONTENT):
        pass
    assert torch.load(target, weights_only=True)["epoch"] == 3
