"""CRC-32 of what is written to zips, by ISA-L where it is installed: ten times as fast as zlib's and PyTorch's."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from nnunet_ssp.files.compression import WITH_ISAL, isal_zlib

crc32 = cast(Callable[..., int], isal_zlib.crc32 if WITH_ISAL else zlib.crc32)
PIECE = 2**20  # bytes that are still in the processor's cache when they are written
HEADER = 30  # bytes before the name of a file in a zip
DESCRIBED = 8  # flag of a file whose sum also stands behind it
DESCRIPTOR = b"PK\x07\x08"  # begins what stands behind such a file
ENTRY = b"PK\x01\x02"  # begins a file's entry in the directory


class StoredMember(io.RawIOBase):
    """A file that is written to a zip as it is; the same bytes as by `ZipFile.open(member, "w", force_zip64=True)`."""

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        """Begin a file at the end of a zip, which is closed after a file that was written by its own methods."""
        super().__init__()
        self._archive, self._member = archive, member
        assert archive.fp is not None
        self._stream = archive.fp
        member.header_offset = self._stream.tell()
        member.external_attr = 0o600 << 16
        member.CRC = member.file_size = member.compress_size = 0
        self._stream.write(member.FileHeader(zip64=True))

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any, /) -> int:
        """Write bytes."""
        view, member = memoryview(data).cast("B"), self._member
        for begin in range(0, len(view), PIECE):
            piece = view[begin : begin + PIECE]
            member.CRC = crc32(piece, member.CRC)
            self._stream.write(piece)
        member.file_size += len(view)
        return len(view)

    def close(self) -> None:
        """Write sum and size before the file, and add it to the directory."""
        if self.closed:
            return
        super().close()
        member, archive = self._member, self._archive
        member.compress_size = member.file_size
        archive.start_dir = self._stream.tell()
        self._stream.seek(member.header_offset)
        self._stream.write(member.FileHeader(zip64=True))
        self._stream.seek(archive.start_dir)
        archive.filelist.append(member)
        archive.NameToInfo[member.filename] = member


def write_sums(file: Path, known: Mapping[tuple[int, int], int]) -> None:
    """Write the sums of a zip's stored files where they are 0.

    Args:
        file: The zip.
        known: Sums of bytes that were written, by place and number. Others are read.
    """
    with open(file, "r+b") as stream:
        with zipfile.ZipFile(stream) as archive:
            members, begin = archive.infolist(), archive.start_dir
        stream.seek(begin)
        directory, at = bytearray(stream.read()), 0
        for member in members:
            place = _place(stream, member)
            total = known.get((place, member.file_size))
            if total is None:
                total = _read_sum(stream, place, member.file_size)
            field = struct.pack("<L", total)
            if member.flag_bits & DESCRIBED:
                at_sum = place + member.file_size
                stream.seek(at_sum)
                if stream.read(len(DESCRIPTOR)) != DESCRIPTOR:
                    raise ValueError(f"{file}: {member.filename}: no data descriptor behind it.")
            else:
                at_sum = member.header_offset + 10
            stream.seek(at_sum + 4)
            stream.write(field)
            if directory[at : at + 4] != ENTRY:
                raise ValueError(f"{file}: no entry for {member.filename} in its directory.")
            directory[at + 16 : at + 20] = field
            at += 46 + sum(struct.unpack_from("<3H", directory, at + 28))
        stream.seek(begin)
        stream.write(directory)


def _place(stream: io.BufferedIOBase, member: zipfile.ZipInfo) -> int:
    """Return where a file's content begins."""
    stream.seek(member.header_offset + 26)
    return member.header_offset + HEADER + sum(struct.unpack("<2H", stream.read(4)))


def _read_sum(stream: io.BufferedIOBase, place: int, number: int) -> int:
    stream.seek(place)
    total = 0
    while number:
        piece = stream.read(min(number, PIECE))
        if not piece:
            raise EOFError("a zip that is cut short")
        total, number = crc32(piece, total), number - len(piece)
    return total
