"""Digests of what files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

PIECE = 2**20  # bytes read at a time


class Digest(Protocol):
    """One of hashlib's."""

    def update(self, content: bytes, /) -> None:
        """Take further content."""


def add_file(digest: Digest, file: Path) -> None:
    """Add the content of a file, of any size, to a digest."""
    with open(file, "rb") as stream:
        while piece := stream.read(PIECE):
            digest.update(piece)
