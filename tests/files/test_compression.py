from __future__ import annotations

import gzip
import io

import numpy as np
import pytest

from nnunet_ssp.files import compression
from nnunet_ssp.files.compression import DAMAGED, compressed, decompressing

NOISE = np.random.default_rng(0).normal(300, 20, 50_000).astype(np.int16).tobytes()


@pytest.fixture(params=[True, False], ids=["isal", "zlib"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and compression.isal_zlib is None:
        pytest.skip("isal is not installed")
    monkeypatch.setattr(compression, "WITH_ISAL", request.param)


@pytest.mark.parametrize("content", [b"", b"a", bytes(10**6), NOISE])
def test_either_library_reads_what_either_wrote(content: bytes):
    packed = compressed(content)
    assert gzip.decompress(packed) == content
    for written in (packed, gzip.compress(content)):
        assert decompressing(io.BytesIO(written)).read() == content


def test_files_are_small_and_hold_no_time():
    packed = compressed(NOISE)
    assert len(packed) <= 1.1 * len(gzip.compress(NOISE, 1))
    assert packed == compressed(NOISE)
    assert packed[4:8] == bytes(4), "the time in the header"


@pytest.mark.parametrize("place", [-1, -5, 100])
def test_a_wrong_bit_is_seen(place: int):
    packed = bytearray(compressed(NOISE))
    packed[place] ^= 1
    with pytest.raises(DAMAGED):
        decompressing(io.BytesIO(packed)).read()


def test_a_missing_end_is_seen():
    with pytest.raises(DAMAGED):
        decompressing(io.BytesIO(compressed(NOISE)[:-3])).read()
