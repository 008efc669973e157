"""Files that travel together with their checksums, in a zip or in a folder; reading them runs and unpacks nothing."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from nnunet_ssp.files.atomic import atomic_write, write_together
from nnunet_ssp.files.contents import DEEPEST, nests_too_deeply, shown
from nnunet_ssp.files.crc import HEADER, StoredMember
from nnunet_ssp.files.soundness import is_lfs_pointer
from nnunet_ssp.files.tensors import Sink

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".npy", ".npz", ".joblib")
# A zip must not unpack to more than so many times its own bytes, and some room for texts: weights hardly compress.
MOST_UNPACKED, ROOM_FOR_TEXTS = 4, 2**24
LONGEST_TEXT = 2**26  # bytes
PIECE = 2**22  # bytes that are summed at a time
ZIP64 = 20  # bytes of a file's long sizes in a zip, behind its name
# Behind that zipalign's field pads, so that the file begins at a multiple of so many bytes and its numbers can be used
# where they lie.
PADDING, ALIGNED = 0xD935, 64

Writer = Callable[[Sink], object]


class Summed:
    """A stream that takes the checksum of what goes through it, in a thread beside reading or writing.

    What was read or written must not change until `sum` has returned, which may be called after the `with` block.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self._sum = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)  # begins with the first piece

    def __enter__(self) -> Summed:
        """Return the stream."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Let the thread end; after an error at once, as nobody will ask for the checksum."""
        failed = kind is not None
        self._thread.shutdown(wait=failed, cancel_futures=failed)

    def sum(self) -> str:
        """Wait for the checksum."""
        self._thread.shutdown()
        return self._sum.hexdigest()

    def write(self, data: Any, /) -> object:
        """Write bytes."""
        view = memoryview(data)
        for begin in range(0, len(view), PIECE):
            piece = view[begin : begin + PIECE]
            self._add(piece)
            self.stream.write(piece)
        return len(view)

    def readinto(self, place: memoryview, /) -> int:
        """Fill a place with the next bytes, or a part of it; return how many they are, 0 at the end."""
        number: int = self.stream.readinto(place[:PIECE])  # type: ignore[attr-defined]
        self._add(place[:number])
        return number

    def take(self, number: int) -> memoryview:
        """Return the next bytes in memory, fewer at the end: where they lie in the zip, or else read."""
        if isinstance(self.stream, _Stored) and (place := self.stream.mapped(number)) is not None:
            for begin in range(0, len(place), PIECE):
                self._add(place[begin : begin + PIECE])
            return place
        place, filled = memoryview(bytearray(number)), 0
        while more := self.readinto(place[filled:]):
            filled += more
        return place[:filled]

    def read(self) -> bytes:
        """Read all."""
        data = self.stream.read()
        self._add(data)
        return data

    def _add(self, data: bytes | memoryview) -> None:
        self._thread.submit(self._sum.update, data)


class _Stored(io.RawIOBase):
    """A file that lies in a zip as it is, read to where it belongs without a copy on the way.

    It takes the bytes from the disk, and not the zip's own 32-bit sum, as all are compared with `SUMS`.
    """

    def __init__(self, file: IO[bytes], member: zipfile.ZipInfo) -> None:
        super().__init__()
        self._file: Any = file
        self._left = member.file_size
        self._pages: memoryview | None = None
        file.seek(member.header_offset)
        header = file.read(HEADER)
        lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        file.seek(sum(lengths), os.SEEK_CUR)  # the name and more

    def readable(self) -> bool:
        return True

    def mapped(self, number: int) -> memoryview | None:
        """Return the next bytes as pages of the file, of which this process may change its own copy; None without."""
        # If somebody cuts the file short, or its disk fails, the system ends the process at the next look (SIGBUS), as
        # with PyTorch's own maps. Nothing is in its place by then. Reading takes almost twice the core-seconds.
        number = min(number, self._left)
        begin = self._file.tell()
        if self._pages is None:
            try:
                pages = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError:  # some file systems have none
                return None
            self._pages = memoryview(pages)
        self._file.seek(number, os.SEEK_CUR)
        self._left -= number
        return self._pages[begin : begin + number]

    def readinto(self, place: Any, /) -> int:
        number = self._file.readinto(memoryview(place)[: self._left]) or 0
        self._left -= number
        return number

    def close(self) -> None:
        self._file.close()
        super().close()


def write_zip(target: Path, parts: Mapping[str, Writer]) -> None:
    """Write a zip with the checksums of its files, whole or not at all.

    Args:
        target: The zip.
        parts: What writes each file, by name.
    """
    with (
        atomic_write(target) as temporary,
        open(temporary, "wb") as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive,
    ):

        def opened(name: str) -> IO[bytes]:
            member = _member(name, stream.tell())
            return cast(IO[bytes], StoredMember(archive, member))

        def settle() -> None:
            stream.flush()
            os.fsync(stream.fileno())

        sums = _written(parts, opened, settle)
        with archive.open(_member(SUMS, stream.tell()), "w", force_zip64=True) as last:
            last.write(sums)


def _member(name: str, at: int) -> zipfile.ZipInfo:
    """Describe a file whose entry begins `at` in the zip, so that its content is aligned."""
    member = zipfile.ZipInfo(name)  # without a time it says 1980: equal files for equal contents
    field = struct.calcsize("<HHH")
    zeros = -(at + HEADER + len(name.encode()) + ZIP64 + field) % ALIGNED
    member.extra = struct.pack("<HHH", PADDING, 2 + zeros, ALIGNED) + bytes(zeros)
    return member


def write_folder(target: Path, parts: Mapping[str, Writer]) -> None:
    """Write the same files into a folder."""
    with write_together(target) as folder:
        sums = _written(parts, lambda name: (folder / name).open("wb"))
        (folder / SUMS).write_bytes(sums)


def _written(
    parts: Mapping[str, Writer],
    opened: Callable[[str], IO[bytes]],
    settle: Callable[[], object] = lambda: None,
) -> bytes:
    """Write files, and return the list of their checksums.

    Args:
        parts: What writes each file, by name.
        opened: Opens a file to be written.
        settle: Called when all are written, while the checksums are still taken.
    """
    sums = {}
    for name, write in parts.items():
        with opened(name) as stream, Summed(stream) as sums[name]:
            write(sums[name])
    settle()
    return "".join(f"{summed.sum()}  {name}\n" for name, summed in sums.items()).encode()


class Archive:
    """The files of a zip or of a folder, read within bounds.

    Attributes:
        path: The zip or folder.
        sizes: Declared bytes of each file by name; no more than that is read.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int], opened: Callable[[str], IO[bytes]]):
        self.path = path
        self.sizes = sizes
        self._opened = opened
        self._sums: dict[str, Summed] = {}

    @contextmanager
    def stream(self, name: str) -> Iterator[Summed]:
        """Yield a file that must be there, and take its checksum."""
        if name not in self.sizes:
            raise ValueError(f"{self.path}: not whole: {name} is missing.")
        with self._opened(name) as stream, Summed(stream) as summed:
            yield summed
            # At its end a compressed file is compared with the zip's own sum.
            while summed.readinto(memoryview(bytearray(2**16))):
                pass
        self._sums[name] = summed

    def text(self, name: str) -> bytes:
        """Read a short file."""
        if self.sizes.get(name, 0) > LONGEST_TEXT:
            raise ValueError(f"{self.path}: {name} must be at most {LONGEST_TEXT} bytes long.")
        with self.stream(name) as stream:
            return stream.read()

    def names_and_values(self, name: str) -> dict[str, Any]:
        """Read a JSON file that holds names with values."""
        place = f"{self.path}, {name}"
        try:
            content = json.loads(self.text(name))
        except RecursionError:
            raise ValueError(f"{place}: must not nest more than {DEEPEST} levels deep.") from None
        except ValueError as error:
            if not isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
                raise
            raise ValueError(f"{place}: not a JSON file ({shown(str(error))}).") from None
        if not isinstance(content, dict) or nests_too_deeply(content):
            raise ValueError(
                f"{place}: must hold names with values, at most {DEEPEST} levels deep."
            )
        return content

    def listed_sums(self) -> dict[str, str]:
        """Read the checksums that came with the files."""
        lines = self.text(SUMS).decode("utf-8", "replace").splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def check_sums(self, listed: Mapping[str, str], but: Collection[str] = ()) -> None:
        """Compare the files that were read with checksums; the archive may be closed by then.

        Args:
            listed: From `listed_sums`.
            but: Names of files that may have been edited.

        Raises:
            ValueError: Names a file that was altered, is missing or has no checksum.
        """
        read = {name: summed for name, summed in self._sums.items() if name != SUMS}
        for name in sorted(read.keys() | listed.keys()):
            if name not in read:
                raise ValueError(f"{self.path}: not whole: {shown(name)} is missing.")
            if name not in but and listed.get(name) != read[name].sum():
                raise ValueError(
                    f"{self.path}: {name} was altered, or damaged on its way: its checksum is not that in {SUMS}."
                )


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open files that travel together.

    Args:
        path: A zip, or a folder.

    Yields:
        Its files.

    Raises:
        ValueError: A zip is damaged, would unpack to too much, or holds a pickle or a name that leads elsewhere.
    """
    if path.is_dir():
        files = {file.name: file for file in path.iterdir() if file.is_file()}
        for file in files.values():
            if is_lfs_pointer(file):
                raise ValueError(
                    f"{file}: a git-lfs pointer in place of the file: run git lfs pull."
                )
        sizes = {name: file.stat().st_size for name, file in files.items()}
        yield Archive(path, sizes, lambda name: cast(IO[bytes], files[name].open("rb", 0)))
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(
                path, _declared(archive, path), lambda name: _open_in(archive, name, path)
            )
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OverflowError) as error:
        raise ValueError(
            f"{path}: not whole, or altered: it is no zip that can be read ({shown(str(error))})."
        ) from error


def _open_in(archive: zipfile.ZipFile, name: str, path: Path) -> IO[bytes]:
    member = archive.getinfo(name)
    stream = archive.open(member)  # compares the name before the file with that of the directory
    if member.compress_type != zipfile.ZIP_STORED:
        return stream
    stream.close()
    return cast(IO[bytes], _Stored(path.open("rb", buffering=0), member))


def _declared(archive: zipfile.ZipFile, path: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    whole = path.stat().st_size
    for member in archive.infolist():
        name = member.filename
        if re.search(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:", name):
            raise ValueError(f"{path}: {shown(name)} leads out of the folder it is unpacked to.")
        if name.lower().endswith(PICKLES):
            raise ValueError(
                f"{path}: {shown(name)} may run code when it is opened; a shared pretraining has no pickle. A model of "
                "nnUNetv2_export_model_to_zip is for nnUNetv2_install_pretrained_model_from_zip."
            )
        if name in sizes:
            raise ValueError(f"{path}: {shown(name)} occurs twice.")
        kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if member.flag_bits & 1 or member.compress_type not in kinds:
            raise ValueError(
                f"{path}: {shown(name)} must be stored or deflated, without a password."
            )
        stored = member.compress_type == zipfile.ZIP_STORED
        if (stored and member.compress_size != member.file_size) or not (
            0 <= member.header_offset < whole
        ):
            raise ValueError(f"{path}: not whole, or altered: {shown(name)} is not where it says.")
        sizes[name] = member.file_size
    most = MOST_UNPACKED * whole + ROOM_FOR_TEXTS
    if sum(sizes.values()) > most:
        raise ValueError(
            f"{path}: would unpack to {sum(sizes.values())} bytes, more than {most}, the most for a zip of its size."
        )
    return sizes
