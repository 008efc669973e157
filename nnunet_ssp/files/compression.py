"""gzip by ISA-L where it is installed, several times as fast as zlib, and otherwise by zlib."""

from __future__ import annotations

import gzip
import zlib
from importlib import import_module
from typing import Any, BinaryIO, cast


def _of_isal(name: str) -> Any:
    try:
        return import_module(f"isal.{name}")
    except ImportError:  # no wheel for this machine
        return None


igzip, isal_zlib = _of_isal("igzip"), _of_isal("isal_zlib")
WITH_ISAL = isal_zlib is not None
# The level with the smallest files, 2 % below those of zlib's level 1; as fast as ISA-L's level 1.
ISAL_LEVEL = 2
GZIP_WBITS = 31  # a gzip header, with the largest window
DAMAGED: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
if WITH_ISAL:
    DAMAGED = (*DAMAGED, isal_zlib.error)


def compressed(content: bytes, zlib_level: int = 1) -> bytes:
    """Compress a file's content, with neither name nor time in its header.

    Args:
        content: The whole content.
        zlib_level: Level without ISA-L.
    """
    if WITH_ISAL:
        return cast(bytes, isal_zlib.compress(content, ISAL_LEVEL, GZIP_WBITS))
    return gzip.compress(content, zlib_level, mtime=0)


def decompressing(stored: BinaryIO) -> gzip.GzipFile:
    """Return a stream of the content of a compressed file, which checks its checksum at its end."""
    reader = igzip.IGzipFile if WITH_ISAL else gzip.GzipFile
    return cast(gzip.GzipFile, reader(fileobj=stored, mode="rb"))
