"""One malformed input, and the damages that many of them share."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Words = Sequence[str]
Make = Callable[[Path], "Words | Callable[[], object]"]
Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Entry:
    """A malformed input and how it must be refused.

    Attributes:
        name: Unique, `reader: what is wrong`.
        make: Writes the input below the empty folder that it is given and returns what reads it: the words of an
            `nnunet-ssp` command, or a function of ours. nnU-Net's three folders are `raw`, `preprocessed` and
            `results` in that folder.
        says: Pattern that the message must hold: file, place and rule.
        exits: Status of the command; 0 where nothing is refused, or one part is left out by its rule.
        writes: Pattern of the paths, relative to the folder, that may be written although the input is refused;
            by default none.
    """

    name: str
    make: Make
    says: str
    exits: int = 1
    writes: str | None = None


# -- damages of any file ---------------------------------------------------------------------------

HTML = (
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Log in first.</body></html>\n"
)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 41216\n" % (b"4d" * 32)


def replaced(content: bytes) -> Damage:
    """Something else under the file's name."""

    def damage(file: Path) -> None:
        file.write_bytes(content)

    return damage


def cut(share: float) -> Damage:
    """The first part of the file, as a broken download leaves it."""

    def damage(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])

    return damage


def flip(place: float = 0.6) -> Damage:
    """One wrong bit."""

    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(place * len(content))] ^= 4
        file.write_bytes(content)

    return damage


def pipe(file: Path) -> None:
    """A named pipe that nobody writes to: whoever opens it waits forever."""
    import os

    file.unlink()
    os.mkfifo(file)


def folder(file: Path) -> None:
    """A folder under the file's name."""
    file.unlink()
    file.mkdir()


def loop(file: Path) -> None:
    """A link to itself."""
    file.unlink()
    file.symlink_to(file)


ANY_FILE: dict[str, Damage] = {
    "empty": replaced(b""),
    "a web page": replaced(HTML),
    "a git-lfs pointer": replaced(POINTER),
    "zeros": replaced(bytes(4096)),
}

# -- damages of NIfTI files ------------------------------------------------------------------------

# Byte offsets in a NIfTI-1 header.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, QFORM_CODE, SROW, MAGIC = (
    40,
    70,
    76,
    108,
    112,
    252,
    280,
    344,
)


def header(offset: int, form: str, *values: float | bytes) -> Damage:
    """Overwrite values of the header; file and checksum are whole."""

    def damage(file: Path) -> None:
        content = bytearray(gzip.decompress(file.read_bytes()))
        struct.pack_into(f"<{form}", content, offset, *values)
        file.write_bytes(gzip.compress(bytes(content), mtime=0))

    return damage


def shortened(share: float) -> Damage:
    """A whole gzip stream of a file that lacks voxels."""

    def damage(file: Path) -> None:
        content = gzip.decompress(file.read_bytes())
        file.write_bytes(gzip.compress(content[: int(share * len(content))], mtime=0))

    return damage


def wrong_checksum(file: Path) -> None:
    """Voxels are not those that were compressed."""
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)


NAN, INF = float("nan"), float("inf")

WHOLE_FILE: dict[str, Damage] = {
    **ANY_FILE,
    "cut at 30 %": cut(0.3),
    "cut at 98 %": cut(0.98),
    "wrong checksum": wrong_checksum,
    "voxels missing": shortened(0.7),
    "no voxels at all": shortened(0.0001),
}
