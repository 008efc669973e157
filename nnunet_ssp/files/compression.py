"""gzip by ISA-L where it is installed, several times as fast as zlib, and otherwise by zlib."""

from __future__ import annotations

import gzip
import zlib
from typing import BinaryIO, cast

try:
    from isal import igzip, isal_zlib
except ImportError:  # no wheel for this machine
    igzip = isal_zlib = None

WITH_ISAL = isal_zlib is not None
# Of the levels it has, the smallest files; as fast as level 1, its files 2 % below those of zlib's level 1.
ISAL_LEVEL = 2
GZIP_WBITS = 31  # a gzip header, with the largest window
DAMAGED = (OSError, EOFError, zlib.error, *([isal_zlib.error] if WITH_ISAL else []))


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
