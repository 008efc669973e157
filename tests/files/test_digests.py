from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nnunet_ssp.files.digests import PIECE, add_file


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 3])
def test_a_file_is_as_its_content(tmp_path: Path, size: int):
    content = bytes(range(251)) * (size // 251) + bytes(size % 251)
    (tmp_path / "file").write_bytes(content)
    digest = hashlib.sha256(b"before")
    add_file(digest, tmp_path / "file")
    assert digest.digest() == hashlib.sha256(b"before" + content).digest()
